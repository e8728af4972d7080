//! Ties the open ends of a layer that was applied without its parents: what [`crate::settle`] does to a directory, on the tree of
//! an image before it is sealed. The rules are the same, and so is their order.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::attributes;
use super::build::Builder;
use super::read::{Found, Image};
use super::stack::{Seen, Stack};
use super::tree::{Inode, Kind, Node, ROOT};
use crate::apply::{Deferred, DeferredLink, Metadata, Time};
use crate::settle::{AROUND, text};
use crate::{Error, Result, fs, overlay};

/// Resolves what a layer left open against the images below, nearest first.
///
/// # Errors
/// [`Error::LinkTarget`] if a hard link's target is nowhere.
pub(super) fn settle(builder: &mut Builder, deferred: Deferred, lowers: &[PathBuf], shown: &Path) -> Result<()> {
    let mut lower = Stack::of(lowers.iter().map(|path| Image::open(path)).collect::<Result<_>>()?);
    if let Some((layer, root)) = lower.directories_of(b"")?.first().copied() {
        copy_attributes(builder, ROOT, &lower, layer, &root)?;
    }
    if deferred.is_empty() {
        return Ok(());
    }
    let mut settler = Settler {
        builder,
        shown,
        lower,
        implied: deferred.implied,
        waiting: deferred.links.keys().cloned().collect(),
        copied: HashMap::new(),
        postponed: HashMap::new(),
        opaque_root: deferred.opaque_root,
    };
    let kept = deferred.links.into_iter().map(|(path, link)| (path, link, true));
    let replaced = deferred.replaced_links.into_iter().map(|(path, link)| (path, link, false));
    settler.links(kept.chain(replaced).collect())?;
    settler.whiteouts(&deferred.whiteouts)?;
    settler.hide_everything()?;
    settler.imply()
}

/// A file of a lower layer, whatever its names.
type FileId = (usize, u64);

struct Settler<'a> {
    builder: &'a mut Builder,
    shown: &'a Path,
    lower: Stack,
    implied: BTreeSet<Vec<u8>>,
    /// Where links will be made: what lower layers have there is as good as gone.
    waiting: BTreeSet<Vec<u8>>,
    /// Files copied up.
    copied: HashMap<FileId, Node>,
    /// What replaced links said of files that nothing shows, should a later link bring them back.
    postponed: HashMap<FileId, Vec<Metadata>>,
    opaque_root: bool,
}

impl Settler<'_> {
    fn find(&self, path: &[u8]) -> Option<Node> {
        self.builder.tree.find(path)
    }

    /// Whether what lower layers have at `path` can be seen through this layer, which has nothing there itself.
    fn is_visible(&self, path: &[u8]) -> bool {
        self.find(path).is_none() && !self.is_hidden(path)
    }

    /// Whether a parent of `path` in this layer hides what is below it.
    fn is_hidden(&self, path: &[u8]) -> bool {
        let tree = &self.builder.tree;
        let mut dir = ROOT;
        for name in fs::split(path).0.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            match tree.child(dir, name) {
                // What is not in this layer has nothing of it below either.
                None => return self.opaque_root,
                Some(node) if !tree.get(node).is_directory() || tree.get(node).opaque => return true,
                Some(node) => dir = node,
            }
        }
        self.opaque_root
    }

    /// Links stand on links, and each says what the file is to have: so in the order of the tar.
    fn links(&mut self, mut links: Vec<(Vec<u8>, DeferredLink, bool)>) -> Result<()> {
        links.sort_by_key(|(_, link, _)| link.order);
        for (path, link, kept) in links {
            let seen = self.target(&path, &link.target)?;
            if kept {
                let node = self.link(&path, &seen)?;
                self.describe(node, &path, &link.metadata)?;
            } else {
                match self.bring_up(&seen)? {
                    Some(node) => self.describe(node, &path, &link.metadata)?,
                    None => self.postponed.entry(seen.file()).or_default().push(link.metadata),
                }
            }
        }
        Ok(())
    }

    /// What the hard link `path` names in the layers below.
    fn target(&mut self, path: &[u8], target: &[u8]) -> Result<Seen> {
        let missing = || Error::LinkTarget { entry: text(path), target: text(target) };
        let seen = self.lower.resolve(target)?.ok_or_else(missing)?;
        if seen.found.is_directory() {
            return Err(Error::Hostile { entry: text(path), reason: "it is a hard link to a directory" });
        }
        let replaced = !self.copied.contains_key(&seen.file()) && !self.is_visible(&seen.path);
        if seen.path != target && replaced {
            return Err(Error::Hostile { entry: text(path), reason: AROUND });
        }
        Ok(seen)
    }

    fn link(&mut self, path: &[u8], seen: &Seen) -> Result<Node> {
        if let Some(node) = self.bring_up(seen)? {
            self.name(path, node)?;
            return Ok(node);
        }
        let node = self.copy_up(seen)?;
        self.name(path, node)?;
        for metadata in self.postponed.remove(&seen.file()).unwrap_or_default() {
            self.describe(node, path, &metadata)?;
        }
        Ok(node)
    }

    /// Makes the file that was seen one of this layer, under all its visible names; none if there is none.
    fn bring_up(&mut self, seen: &Seen) -> Result<Option<Node>> {
        if let Some(node) = self.copied.get(&seen.file()) {
            return Ok(Some(*node));
        }
        let names = self.names_of(seen)?;
        if names.is_empty() {
            return Ok(None);
        }
        let node = self.copy_up(seen)?;
        names.iter().try_for_each(|name| self.name(name, node))?;
        Ok(Some(node))
    }

    /// All names that the file that was seen has in its layer and keeps.
    fn names_of(&mut self, seen: &Seen) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if self.keeps(&seen.path) {
            names.push(seen.path.clone());
        }
        if seen.found.raw.links <= 1 {
            return Ok(names);
        }
        for path in self.lower.names_of(seen)?.into_iter().filter(|path| *path != seen.path) {
            let shows = self.lower.look(&path)?.is_some_and(|other| other.layer == seen.layer);
            if shows && self.keeps(&path) {
                names.push(path);
            }
        }
        Ok(names)
    }

    /// Whether `path` goes on showing what lower layers have there.
    fn keeps(&self, path: &[u8]) -> bool {
        !self.waiting.contains(path) && self.is_visible(path)
    }

    fn copy_up(&mut self, seen: &Seen) -> Result<Node> {
        let image = self.lower.layer(seen.layer);
        let node = copy(self.builder, image, &seen.found)?;
        self.copied.insert(seen.file(), node);
        Ok(node)
    }

    fn name(&mut self, path: &[u8], node: Node) -> Result<()> {
        let (parent, name) = fs::split(path);
        let dir = self.make_parents(parent)?;
        self.builder.hold(name.len())?;
        self.builder.tree.name(dir, name, node);
        Ok(())
    }

    /// Makes the directories down to `dir`, which are all visible from below.
    fn make_parents(&mut self, dir: &[u8]) -> Result<Node> {
        let (mut at, mut path) = (ROOT, Vec::new());
        for name in dir.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            path = fs::join(&path, name);
            at = match self.builder.tree.child(at, name) {
                Some(node) => node,
                None => {
                    self.builder.hold(name.len())?;
                    self.implied.insert(path.clone());
                    self.builder.tree.make(at, name, Inode::directory(0o700))
                }
            };
        }
        Ok(at)
    }

    /// The link's own entry says what the file that both name is to have.
    fn describe(&mut self, node: Node, path: &[u8], metadata: &Metadata) -> Result<()> {
        let shown = fs::shown(self.shown, path);
        attributes::describe_link(self.builder, node, metadata, &shown)
            .map_err(|error| attributes::explained(error, &text(path)))
    }

    /// Removes the whiteouts that delete nothing: where nothing is below, overlayfs would list their names.
    fn whiteouts(&mut self, whiteouts: &BTreeSet<Vec<u8>>) -> Result<()> {
        for path in whiteouts {
            if !self.is_hidden(path) && self.lower.look(path)?.is_some() {
                continue;
            }
            let (parent, name) = fs::split(path);
            if let Some(dir) = self.find(parent) {
                self.builder.tree.remove(dir, name);
            }
        }
        Ok(())
    }

    /// Marks every name that lower layers show in the root as deleted, and every directory there as opaque.
    fn hide_everything(&mut self) -> Result<()> {
        if !self.opaque_root {
            return Ok(());
        }
        let mut names = BTreeSet::new();
        for (layer, root) in self.lower.directories_of(b"")? {
            names.extend(self.lower.layer(layer).entries(&root)?.into_iter().map(|(name, _)| name));
        }
        for name in names {
            if self.lower.look(&name)?.is_none() {
                continue;
            }
            match self.builder.tree.child(ROOT, &name) {
                Some(node) if self.builder.tree.get(node).is_directory() => self.builder.hide_below(node)?,
                Some(_) => {}
                None => drop(self.builder.tree.make(ROOT, &name, Inode::whiteout())),
            }
        }
        Ok(())
    }

    /// Gives the implied directories what the layers below say.
    fn imply(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.implied) {
            let Some(node) = self.find(&path).filter(|_| !self.is_hidden(&path)) else { continue };
            let Some(seen) = self.lower.look(&path)? else { continue };
            if seen.found.is_directory() {
                copy_attributes(self.builder, node, &self.lower, seen.layer, &seen.found)?;
            }
        }
        Ok(())
    }
}

/// Gives a directory owner, mode, times and attributes of a lower one, but not overlayfs' own.
fn copy_attributes(builder: &mut Builder, node: Node, lower: &Stack, layer: usize, found: &Found) -> Result<()> {
    let mut xattrs = builder.xattrs_of(builder.tree.get(node))?;
    xattrs.extend(own_xattrs(lower.layer(layer).xattrs(found)?));
    let xattrs = builder.xattrs(xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())))?;
    let inode = builder.tree.change(node);
    inode.xattrs = xattrs;
    take_over(inode, found);
    Ok(())
}

fn take_over(inode: &mut Inode, found: &Found) {
    let raw = &found.raw;
    inode.mode = u32::from(raw.mode) & 0o7777;
    (inode.uid, inode.gid) = (raw.uid, raw.gid);
    inode.mtime = Time { seconds: raw.seconds as i64, nanos: raw.nanos };
}

/// Attributes that are the file's, not overlayfs'.
fn own_xattrs(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    xattrs.into_iter().filter(|(name, _)| overlay::is_foreign(name))
}

/// Copies anything but a directory out of a lower image.
fn copy(builder: &mut Builder, image: &Image, found: &Found) -> Result<Node> {
    let kind = match found.kind() {
        libc::S_IFLNK => Kind::Symlink(image.target(found)?.into()),
        libc::S_IFCHR => Kind::Character(found.raw.place),
        libc::S_IFBLK => Kind::Block(found.raw.place),
        libc::S_IFSOCK => Kind::Socket,
        // A file's content takes its place below.
        _ => Kind::Fifo,
    };
    let mut inode = Inode::new(kind, 0);
    take_over(&mut inode, found);
    let xattrs: Vec<_> = own_xattrs(image.xattrs(found)?).collect();
    inode.xattrs = builder.xattrs(xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())))?;
    if found.kind() != libc::S_IFREG {
        return Ok(builder.tree.add(inode));
    }
    if found.raw.layout == super::format::Layout::Chunks {
        let mut sparse = builder.begin_sparse(found.raw.size)?;
        image.content(found, |offset, bytes| builder.push_at(&mut sparse, offset, bytes))?;
        return builder.end_sparse(sparse, inode);
    }
    let mut filling = builder.begin(found.raw.size, inode.xattrs.len())?;
    image.content(found, |_, bytes| builder.push(&mut filling, bytes))?;
    builder.end(filling, inode)
}
