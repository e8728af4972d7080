//! Lets one entry take effect on the tree of an image: what [`super::tree`] and [`super::directories`] do with files, where there
//! are no files yet. The rules, and their order, are those of a tree that overlayfs will show and that was empty to begin with: so
//! everything in it is the layer's own.
//!
//! Content goes into the image at once; names and attributes wait in memory, within the limits.

use tar_core::SparseEntry;

use super::attributes::Owner;
use super::deferred::{Deferred, DeferredLink};
use super::directories::{NOT_A_DIRECTORY, TOO_MANY_LINKS};
use super::entry::{Entry, Kind, Metadata, shorten};
use super::meter::Meter;
use super::source::Source;
use super::tree::{TO_ITSELF, is_within};
use super::whiteout::{self, Mark};
use super::{Limits, Options};
use crate::erofs::{self, Builder, Inode, Node, ROOT};
use crate::error::At as _;
use crate::fs::way::{Turn, Way};
use crate::{ApplyTarget, Error, ImageTarget, Result, fs};

/// The tree while a layer is applied.
pub(super) struct ImageTree<'a> {
    target: &'a ApplyTarget,
    image: &'a ImageTarget,
    builder: Builder,
    deferred: Deferred,
    owner: Owner,
    limits: Limits,
    meter: Meter,
    links: u64,
}

/// Where an entry goes.
struct Place {
    dir: Node,
    name: Vec<u8>,
    /// Its path, without symbolic links.
    path: Vec<u8>,
}

/// Where something is that should be there already.
enum Found {
    /// Here; `None`: only as a link that waits for the layers below.
    Here(Vec<u8>, Option<Node>),
    /// Not in this layer, and nothing in it says that it is in none below.
    Below(Vec<u8>),
    /// Gone, or never there.
    Nowhere,
}

enum Resolved {
    Directory(Node, Vec<u8>),
    Below(Vec<u8>),
    Nowhere,
}

impl<'a> ImageTree<'a> {
    /// Begins an image, or goes on with one that an earlier layer of the same snapshot has begun.
    pub(super) fn open(
        target: &'a ApplyTarget,
        image: &'a ImageTarget,
        options: &Options,
        owner: Owner,
    ) -> Result<Self> {
        let deferred = target.deferred.as_deref();
        let (builder, deferred) = match image.unsealed.exists() {
            true => {
                let deferred = deferred.map(Deferred::load).transpose()?.unwrap_or_default();
                (Builder::resume(&image.file, &image.unsealed)?, deferred)
            }
            false => (Builder::create(&image.file)?, Deferred::default()),
        };
        let meter = Meter::new(options.admission.clone());
        let links = deferred.links.values().map(|link| link.order).max().unwrap_or(0);
        Ok(Self { target, image, builder, deferred, owner, limits: options.limits.clone(), meter, links })
    }

    /// Applies `entry`, reading content from `source`, and returns how much of it is left unread.
    pub(super) fn write(&mut self, entry: &Entry, source: &mut Source) -> Result<u64> {
        if entry.path.is_empty() || whiteout::is_aufs(&entry.path) {
            return Ok(entry.size);
        }
        self.meter.entry().at("write", self.shown(&entry.path))?;
        let place = self.place(entry)?;
        if self.whiteout(entry, &place)? {
            return Ok(entry.size);
        }
        match entry.kind {
            Kind::File => return self.file(entry, &place, source),
            Kind::Directory => self.directory(entry, &place)?,
            Kind::HardLink => self.hard_link(entry, place)?,
            Kind::Symlink => {
                self.builder.hold(entry.link.len())?;
                self.special(entry, &place, erofs::Kind::Symlink(entry.link.as_slice().into()))?;
            }
            Kind::Fifo => self.special(entry, &place, erofs::Kind::Fifo)?,
            Kind::Char(major, minor) => self.special(entry, &place, erofs::Kind::Character(device(major, minor)))?,
            Kind::Block(major, minor) => self.special(entry, &place, erofs::Kind::Block(device(major, minor)))?,
        }
        Ok(0)
    }

    /// Leaves the image to the commit, which may have to settle it.
    pub(super) fn finish(self) -> Result<()> {
        self.builder.leave(&self.image.unsealed)?;
        match &self.target.deferred {
            // What an earlier layer left open may be settled by this one.
            Some(path) if !self.deferred.is_empty() || path.exists() => self.deferred.save(path),
            _ => Ok(()),
        }
    }

    fn shown(&self, path: &[u8]) -> std::path::PathBuf {
        fs::shown(&self.target.root, path)
    }

    /// The place of `entry`; its parents are made if they are missing.
    fn place(&mut self, entry: &Entry) -> Result<Place> {
        let (parent, name) = fs::split(&entry.path);
        match self.resolve(parent, entry, true)? {
            Resolved::Directory(dir, path) => Ok(Place { dir, path: fs::join(&path, name), name: name.to_vec() }),
            Resolved::Below(_) | Resolved::Nowhere => Err(entry.hostile("its parent cannot be made")),
        }
    }

    fn resolve(&mut self, path: &[u8], entry: &Entry, make: bool) -> Result<Resolved> {
        let (mut way, mut at, mut here) = (Way::along(path), vec![ROOT], Vec::new());
        while let Some(turn) = way.next() {
            let Turn::Into(name) = turn else {
                // Like the root of a file system, whose parent is itself.
                at.truncate((at.len() - 1).max(1));
                here.truncate(fs::split(&here).0.len());
                continue;
            };
            let next = fs::join(&here, &name);
            self.limits.check_place(&next)?;
            let dir = at.last().copied().unwrap_or(ROOT);
            let found = self.builder.tree.child(dir, &name);
            let node = match found.map(|node| (node, &self.builder.tree.get(node).kind)) {
                None if self.deferred.links.contains_key(&next) => return Err(entry.hostile(NOT_A_DIRECTORY)),
                None if make => self.imply(dir, &name, &next)?,
                None => return Ok(Resolved::Below(way.rest(next))),
                Some((node, erofs::Kind::Directory(_))) => node,
                Some((_, erofs::Kind::Symlink(target))) => {
                    if !way.follow(target) {
                        return Err(entry.hostile(TOO_MANY_LINKS));
                    }
                    if target.starts_with(b"/") {
                        at.truncate(1);
                        here.clear();
                    }
                    continue;
                }
                Some((_, erofs::Kind::Character(0))) if make => {
                    self.clear(dir, &name, &next);
                    let made = self.make_implied(dir, &name)?;
                    self.builder.hide_below(made)?;
                    made
                }
                Some((_, erofs::Kind::Character(0))) => return Ok(Resolved::Nowhere),
                Some(_) => return Err(entry.hostile(NOT_A_DIRECTORY)),
            };
            at.push(node);
            here = next;
        }
        Ok(Resolved::Directory(at.last().copied().unwrap_or(ROOT), here))
    }

    /// A directory that no entry made; its attributes come from below.
    fn imply(&mut self, dir: Node, name: &[u8], path: &[u8]) -> Result<Node> {
        self.deferred.implied.insert(path.to_vec());
        self.make_implied(dir, name)
    }

    fn make_implied(&mut self, dir: Node, name: &[u8]) -> Result<Node> {
        self.builder.hold(name.len())?;
        let (uid, gid) = (self.owner.uid, self.owner.gid);
        Ok(self.builder.tree.make(dir, name, Inode { uid, gid, ..Inode::directory(super::directories::IMPLIED_MODE) }))
    }

    /// Removes what is at a place, whatever it is, and all notes about it.
    fn clear(&mut self, dir: Node, name: &[u8], path: &[u8]) {
        let tree = &mut self.builder.tree;
        if tree.child(dir, name).is_some_and(|node| tree.get(node).is_directory()) {
            self.deferred.forget_below(path);
        }
        self.deferred.forget(path);
        tree.remove(dir, name);
    }

    /// Gives an inode its name; what is there goes first.
    fn name(&mut self, place: &Place, node: Node) -> Result<()> {
        self.builder.hold(place.name.len())?;
        if self.builder.tree.child(place.dir, &place.name).is_some() {
            self.clear(place.dir, &place.name, &place.path);
        }
        self.deferred.forget(&place.path);
        self.builder.tree.name(place.dir, &place.name, node);
        Ok(())
    }

    /// What an entry makes of an inode.
    fn described(&mut self, mut inode: Inode, entry: &Entry) -> Result<Inode> {
        let metadata = self.owned(&entry.metadata);
        let shown = self.shown(&entry.path);
        erofs::describe(&mut self.builder, &mut inode, &metadata, &shown)
            .map_err(|error| erofs::explained(error, &entry.name()))?;
        Ok(inode)
    }

    /// The metadata with the owner that it comes to here.
    fn owned(&self, metadata: &Metadata) -> Metadata {
        let (uid, gid) = self.owner.wanted(metadata);
        Metadata { uid, gid, ..metadata.clone() }
    }

    fn file(&mut self, entry: &Entry, place: &Place, source: &mut Source) -> Result<u64> {
        // What it will be is said with its content.
        let inode = self.described(Inode::file(), entry)?;
        let (node, left) = match &entry.sparse {
            None => (self.content(entry.size, inode, source)?, 0),
            Some((size, regions)) => {
                let content: u64 = regions.iter().map(|region| region.length).sum();
                (self.sparse(*size, regions, inode, source)?, entry.size - content)
            }
        };
        self.name(place, node)?;
        Ok(left)
    }

    fn content(&mut self, size: u64, inode: Inode, source: &mut Source) -> Result<Node> {
        let mut filling = self.builder.begin(size, inode.xattrs.len())?;
        let mut left = size;
        while left > 0 {
            let bytes = source.next_slice(left)?;
            let count = bytes.len();
            self.meter.take(count as u64).at("write", &self.image.file)?;
            self.builder.push(&mut filling, bytes)?;
            source.consume(count);
            left -= count as u64;
        }
        self.builder.end(filling, inode)
    }

    fn sparse(&mut self, size: u64, regions: &[SparseEntry], inode: Inode, source: &mut Source) -> Result<Node> {
        let mut sparse = self.builder.begin_sparse(size)?;
        for region in regions {
            let (mut offset, end) = (region.offset, region.offset + region.length);
            while offset < end {
                let bytes = source.next_slice(end - offset)?;
                let count = bytes.len();
                self.meter.take(count as u64).at("write", &self.image.file)?;
                self.builder.push_at(&mut sparse, offset, bytes)?;
                source.consume(count);
                offset += count as u64;
            }
        }
        self.builder.end_sparse(sparse, inode)
    }

    fn directory(&mut self, entry: &Entry, place: &Place) -> Result<()> {
        let was_link = self.deferred.forget(&place.path);
        let there = self.builder.tree.child(place.dir, &place.name);
        if let Some(node) = there.filter(|node| self.builder.tree.get(*node).is_directory()) {
            let inode = self.builder.tree.get(node).clone();
            *self.builder.tree.change(node) = self.described(inode, entry)?;
            return Ok(());
        }
        if there.is_some() {
            self.clear(place.dir, &place.name, &place.path);
        }
        let inode = self.described(Inode::directory(0), entry)?;
        self.builder.hold(place.name.len())?;
        let node = self.builder.tree.make(place.dir, &place.name, inode);
        if there.is_some() || was_link {
            // Whatever was here hid what is below; so must the directory.
            self.builder.hide_below(node)?;
        }
        Ok(())
    }

    fn special(&mut self, entry: &Entry, place: &Place, kind: erofs::Kind) -> Result<()> {
        let mode = if matches!(kind, erofs::Kind::Symlink(_)) { 0o777 } else { 0 };
        let inode = self.described(Inode::new(kind, mode), entry)?;
        let node = self.builder.tree.add(inode);
        self.name(place, node)
    }

    fn hard_link(&mut self, entry: &Entry, place: Place) -> Result<()> {
        match self.find(&entry.link, entry)? {
            Found::Here(target, _) if is_within(&target, &place.path) => Err(entry.hostile(TO_ITSELF)),
            Found::Here(_, Some(node)) => self.link(entry, &place, node),
            Found::Here(target, None) => {
                let target = self.deferred.links[&target].target.clone();
                self.defer(entry, place, target)
            }
            Found::Below(target) if is_within(&target, &place.path) => Err(entry.hostile(TO_ITSELF)),
            Found::Below(target) => self.defer(entry, place, target),
            Found::Nowhere => {
                let target = shorten(&String::from_utf8_lossy(&entry.link));
                Err(Error::LinkTarget { entry: entry.name(), target })
            }
        }
    }

    /// Looks for the target of a hard link.
    fn find(&mut self, path: &[u8], entry: &Entry) -> Result<Found> {
        let (parent, name) = fs::split(path);
        let (dir, path) = match self.resolve(parent, entry, false)? {
            Resolved::Directory(dir, path) => (dir, fs::join(&path, name)),
            Resolved::Below(parent) => return Ok(self.below(fs::join(&parent, name))),
            Resolved::Nowhere => return Ok(Found::Nowhere),
        };
        match self.builder.tree.child(dir, name) {
            Some(node) if self.builder.tree.get(node).is_whiteout() => Ok(Found::Nowhere),
            Some(node) => Ok(Found::Here(path, Some(node))),
            None if self.deferred.links.contains_key(&path) => Ok(Found::Here(path, None)),
            None => Ok(self.below(path)),
        }
    }

    /// What `path`, which this layer does not have, means for the layers below.
    fn below(&self, path: Vec<u8>) -> Found {
        let tree = &self.builder.tree;
        let mut above = fs::split(&path).0;
        while !above.is_empty() {
            if tree.find(above).is_some_and(|node| tree.get(node).opaque) {
                return Found::Nowhere;
            }
            above = fs::split(above).0;
        }
        if self.deferred.opaque_root { Found::Nowhere } else { Found::Below(path) }
    }

    fn link(&mut self, entry: &Entry, place: &Place, node: Node) -> Result<()> {
        if self.builder.tree.get(node).is_directory() {
            return Err(entry.hostile("it is a hard link to a directory"));
        }
        self.name(place, node)?;
        // The link's entry describes the file that both names share.
        let (metadata, shown) = (self.owned(&entry.metadata), self.shown(&place.path));
        erofs::describe_link(&mut self.builder, node, &metadata, &shown)
            .map_err(|error| erofs::explained(error, &entry.name()))
    }

    fn defer(&mut self, entry: &Entry, place: Place, target: Vec<u8>) -> Result<()> {
        self.clear(place.dir, &place.name, &place.path);
        self.links += 1;
        let link = DeferredLink { order: self.links, target, metadata: self.owned(&entry.metadata) };
        self.deferred.links.insert(place.path, link);
        Ok(())
    }

    /// Applies `entry` if it is a deletion.
    fn whiteout(&mut self, entry: &Entry, place: &Place) -> Result<bool> {
        match whiteout::mark(entry, &place.name)? {
            None => return Ok(false),
            Some(Mark::Itself) => self.delete(place.dir, &place.name, &place.path)?,
            Some(Mark::Name(name)) => {
                let path = fs::join(fs::split(&place.path).0, name);
                self.delete(place.dir, name, &path)?;
            }
            Some(Mark::Everything) if place.dir == ROOT => self.deferred.opaque_root = true,
            Some(Mark::Everything) => self.builder.hide_below(place.dir)?,
        }
        Ok(true)
    }

    fn delete(&mut self, dir: Node, name: &[u8], path: &[u8]) -> Result<()> {
        self.clear(dir, name, path);
        self.builder.hold(name.len())?;
        let (uid, gid) = (self.owner.uid, self.owner.gid);
        self.builder.tree.make(dir, name, Inode { uid, gid, ..Inode::whiteout() });
        self.deferred.whiteouts.insert(path.to_vec());
        Ok(())
    }
}

/// A device's number as the kernel takes it from programs: 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    rustix::fs::makedev(major, minor) as u32
}
