//! Ties the open ends of a layer that was applied without its parents, so that the tree comes out as if they had been
//! there: directories that the layer only implies take their attributes from below, hard links into lower layers
//! become real ones by copying the file up with all its names, a deletion of everything becomes one of each name.
//!
//! What the layer itself says later in its tar wins over what it left open; that is in the tree already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::apply::{self, Deferred, DeferredLink, Metadata};
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};
use crate::merged::{self, Merged, Upper, is_opaque};
use crate::{ApplyTarget, Error, Result, Whiteouts, copy};

/// Resolves what `target` left open against the trees below, nearest first.
///
/// # Errors
/// [`Error::LinkTarget`] if a hard link's target is nowhere.
///
/// # Durability
/// None: the caller syncs.
pub(crate) fn settle(target: &ApplyTarget, lowers: &[PathBuf]) -> Result<()> {
    let (Some(notes), Whiteouts::Overlay { userxattr }) = (&target.deferred, target.whiteouts) else { return Ok(()) };
    let deferred = Deferred::load(notes)?;
    if deferred.is_empty() {
        return Ok(());
    }
    let opaque = crate::overlay::opaque_name(userxattr);
    let root = fs::open_dir(&target.root).at("open", &target.root)?;
    let mut settler = Settler {
        path: &target.root,
        root,
        opaque,
        lower: Merged::of(lowers.iter().map(|path| Upper::open(path, opaque)).collect::<Result<_>>()?),
        implied: deferred.implied,
        hidden: HashMap::new(),
        touched: BTreeMap::new(),
        waiting: deferred.links.keys().cloned().collect(),
        copied: HashMap::new(),
        postponed: HashMap::new(),
        made: Vec::new(),
        opaque_root: deferred.opaque_root,
    };
    let settled = settler.run(deferred.links, deferred.replaced_links, &deferred.whiteouts);
    if settled.is_err() {
        settler.undo();
    }
    settled?;
    std::fs::remove_file(notes).at("remove", notes)
}

/// Which of the two files such a link means depends on the order in the tar, which is not known any more; no program
/// that makes layers names a target so.
pub(crate) const AROUND: &str =
    "it is a hard link whose target lies behind a symbolic link of a lower layer, where this layer has something else";

struct Settler<'a> {
    path: &'a Path,
    root: OwnedFd,
    opaque: &'static [u8],
    lower: Merged<Upper>,
    implied: BTreeSet<Vec<u8>>,
    /// Whether a directory of this layer hides what is below it, by path.
    hidden: HashMap<Vec<u8>, bool>,
    /// Directories written into, with the times they had.
    touched: BTreeMap<Vec<u8>, (apply::Time, apply::Time)>,
    /// Where links will be made: what lower layers have there is as good as gone.
    waiting: BTreeSet<Vec<u8>>,
    /// Files copied up, and where they are now.
    copied: HashMap<FileId, Vec<u8>>,
    /// What replaced links said of files that nothing shows, should a later link bring them back.
    postponed: HashMap<FileId, Vec<Metadata>>,
    /// What was made, so that a commit that failed (a full disk) can be tried again.
    made: Vec<Vec<u8>>,
    opaque_root: bool,
}

/// What a path shows in the layers below.
type Seen = merged::Seen<Stat>;

/// A file of a lower layer, whatever its names: device and inode.
type FileId = (u64, u64);

fn file_id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

impl Settler<'_> {
    fn run(
        &mut self,
        links: BTreeMap<Vec<u8>, DeferredLink>,
        replaced: Vec<(Vec<u8>, DeferredLink)>,
        whiteouts: &BTreeSet<Vec<u8>>,
    ) -> Result<()> {
        self.links(links, replaced)?;
        self.whiteouts(whiteouts)?;
        self.hide_everything()?;
        self.restore_times()?;
        self.imply()
    }

    /// Takes back what was made, as far as it goes: the failure that led here is the one to report.
    fn undo(&mut self) {
        for path in std::mem::take(&mut self.made).iter().rev() {
            let (parent, name) = fs::split(path);
            let undone = self.open(parent).map(|dir| fs::remove::remove(dir.as_fd(), name));
            if !matches!(undone, Ok(Ok(()))) {
                tracing::warn!(path = %self.shown(path).display(), "cannot take back what a failed commit made");
            }
        }
        let _ = self.restore_times();
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        fs::shown(self.path, path)
    }

    fn open(&self, dir: &[u8]) -> Result<OwnedFd> {
        fs::open_beneath(self.root.as_fd(), dir, OFlags::PATH | OFlags::DIRECTORY).at("open", self.shown(dir))
    }

    fn stat(&self, path: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = fs::split(path);
        let dir = fs::open_beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY);
        match dir.and_then(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error).at("stat", self.shown(path)),
        }
    }

    /// Whether what lower layers have at `path` can be seen through this layer, which has nothing there itself.
    fn is_visible(&mut self, path: &[u8]) -> Result<bool> {
        Ok(self.stat(path)?.is_none() && !self.is_hidden(path)?)
    }

    /// Whether a parent of `path` in this layer hides what is below it.
    fn is_hidden(&mut self, path: &[u8]) -> Result<bool> {
        // Up to what is known, then down again: recursion would follow a layer as deep as it likes.
        let mut unknown = Vec::new();
        let mut dir = fs::split(path).0;
        let mut hidden = self.opaque_root;
        while !hidden && !dir.is_empty() {
            if let Some(known) = self.hidden.get(dir) {
                hidden = *known;
                break;
            }
            unknown.push(dir);
            dir = fs::split(dir).0;
        }
        for dir in unknown.into_iter().rev() {
            hidden = hidden || self.hides(dir)?;
            self.hidden.insert(dir.to_vec(), hidden);
        }
        Ok(hidden)
    }

    /// Whether `path` in this layer, by itself, hides what layers below have there.
    fn hides(&self, path: &[u8]) -> Result<bool> {
        match self.stat(path)? {
            None => Ok(false),
            Some(stat) if fs::file_type(&stat) == FileType::Directory => {
                let (above, name) = fs::split(path);
                is_opaque(self.open(above)?.as_fd(), name, self.opaque).at("read an attribute of", self.shown(path))
            }
            Some(_) => Ok(true),
        }
    }

    /// Links stand on links, and each says what the file is to have: so in the order of the tar.
    fn links(&mut self, links: BTreeMap<Vec<u8>, DeferredLink>, replaced: Vec<(Vec<u8>, DeferredLink)>) -> Result<()> {
        let kept = links.into_iter().map(|(path, link)| (path, link, true));
        let mut links: Vec<_> = kept.chain(replaced.into_iter().map(|(path, link)| (path, link, false))).collect();
        links.sort_by_key(|(_, link, _)| link.order);
        for (path, link, kept) in links {
            let seen = self.target(&path, &link.target)?;
            if kept {
                self.link(&path, &seen)?;
                self.describe(&path, &link.metadata, &seen)?;
            } else {
                self.replaced(link.metadata, &seen)?;
            }
        }
        Ok(())
    }

    /// What the hard link `path` names in the layers below.
    fn target(&mut self, path: &[u8], target: &[u8]) -> Result<Seen> {
        let missing = || Error::LinkTarget { entry: text(path), target: text(target) };
        let seen = self.lower.resolve(target)?.ok_or_else(missing)?;
        if fs::file_type(&seen.found) == FileType::Directory {
            return Err(Error::Hostile { entry: text(path), reason: "it is a hard link to a directory" });
        }
        if seen.path != target && self.is_replaced(&seen)? {
            return Err(Error::Hostile { entry: text(path), reason: AROUND });
        }
        Ok(seen)
    }

    /// Whether the layer itself, not what was done here, has or hides something where the file was seen.
    fn is_replaced(&mut self, seen: &Seen) -> Result<bool> {
        Ok(!self.copied.contains_key(&file_id(&seen.found)) && !self.is_visible(&seen.path)?)
    }

    fn link(&mut self, path: &[u8], seen: &Seen) -> Result<()> {
        self.touch(fs::split(path).0)?;
        if let Some(now) = self.bring_up(seen)? {
            return self.name_again(&now, path);
        }
        self.copied.insert(file_id(&seen.found), path.to_vec());
        self.copy_up(seen, path)?;
        for metadata in self.postponed.remove(&file_id(&seen.found)).unwrap_or_default() {
            self.describe(path, &metadata, seen)?;
        }
        Ok(())
    }

    /// The name is gone; the file, where anything shows it, keeps what the link's entry said.
    fn replaced(&mut self, metadata: Metadata, seen: &Seen) -> Result<()> {
        match self.bring_up(seen)? {
            Some(now) => self.describe(&now, &metadata, seen)?,
            None => self.postponed.entry(file_id(&seen.found)).or_default().push(metadata),
        }
        Ok(())
    }

    /// Makes the file that was seen one of this layer, under all its visible names, and gives one of them; none if
    /// there is none.
    fn bring_up(&mut self, seen: &Seen) -> Result<Option<Vec<u8>>> {
        if let Some(now) = self.copied.get(&file_id(&seen.found)) {
            return Ok(Some(now.clone()));
        }
        let names = self.names_of(seen)?;
        let Some((first, others)) = names.split_first() else { return Ok(None) };
        self.copied.insert(file_id(&seen.found), first.clone());
        self.copy_up(seen, first)?;
        for name in others {
            self.name_again(first, name)?;
        }
        Ok(Some(first.clone()))
    }

    /// All names that the file that was seen has in its layer and keeps; the one it was seen by comes first.
    fn names_of(&mut self, seen: &Seen) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        if self.keeps(&seen.path)? {
            names.push(seen.path.clone());
        }
        if seen.found.st_nlink == 1 {
            return Ok(names);
        }
        let layer = self.lower.layer(seen.layer);
        let shown = layer.shown(b"");
        let root = fs::open_beneath(layer.fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY);
        let mut walk = Walk::new(root.at("open", &shown)?).at("read", &shown)?;
        while let Some(step) = walk.next().at("read", &shown)? {
            let Step::Other { name, stat } = step else { continue };
            let path = fs::join(&walk.path(), name.as_bytes());
            if file_id(&stat) != file_id(&seen.found) || path == seen.path {
                continue;
            }
            let shows = self.lower.look(&path)?.is_some_and(|other| other.layer == seen.layer);
            if shows && self.keeps(&path)? {
                names.push(path);
            }
        }
        Ok(names)
    }

    /// Whether `path` goes on showing what lower layers have there.
    fn keeps(&mut self, path: &[u8]) -> Result<bool> {
        Ok(!self.waiting.contains(path) && self.is_visible(path)?)
    }

    fn copy_up(&mut self, seen: &Seen, path: &[u8]) -> Result<()> {
        let (parent, name) = fs::split(path);
        self.make_parents(parent)?;
        let to = self.open(parent)?;
        let from = self.lower.layer(seen.layer).parent(&seen.path)?;
        self.made.push(path.to_vec());
        copy::file(from.as_fd(), fs::split(&seen.path).1, &seen.found, to.as_fd(), name)
            .at("copy up to", self.shown(path))
    }

    fn name_again(&mut self, now: &[u8], path: &[u8]) -> Result<()> {
        let ((from, from_name), (to, to_name)) = (fs::split(now), fs::split(path));
        self.make_parents(to)?;
        let (from, to) = (self.open(from)?, self.open(to)?);
        self.made.push(path.to_vec());
        rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty()).at("make the hard link", self.shown(path))
    }

    /// Makes the directories down to `dir`, which are all visible from below, and notes that `dir` changes.
    fn make_parents(&mut self, dir: &[u8]) -> Result<()> {
        let mut missing = Vec::new();
        let mut there = dir;
        while !there.is_empty() && self.stat(there)?.is_none() {
            missing.push(there);
            there = fs::split(there).0;
        }
        self.touch(there)?;
        for dir in missing.into_iter().rev() {
            let (parent, name) = fs::split(dir);
            self.made.push(dir.to_vec());
            rustix::fs::mkdirat(self.open(parent)?, name, Mode::RWXU).at("make the directory", self.shown(dir))?;
            self.implied.insert(dir.to_vec());
        }
        Ok(())
    }

    /// Remembers a directory's times before something is made in it.
    fn touch(&mut self, dir: &[u8]) -> Result<()> {
        if dir.is_empty() || self.touched.contains_key(dir) {
            return Ok(());
        }
        if let Some(stat) = self.stat(dir)? {
            self.touched.insert(dir.to_vec(), apply::times(&stat));
        }
        Ok(())
    }

    /// The link's own entry says what the file that both name is to have.
    fn describe(&self, path: &[u8], metadata: &Metadata, seen: &Seen) -> Result<()> {
        let (parent, name) = fs::split(path);
        let dir = self.open(parent)?;
        let is_link = fs::file_type(&seen.found) == FileType::Symlink;
        apply::describe_link(dir.as_fd(), name, metadata, is_link).at("set the attributes of", self.shown(path))
    }

    /// Removes the whiteouts that delete nothing: where nothing is below, overlayfs would list their names.
    fn whiteouts(&mut self, whiteouts: &BTreeSet<Vec<u8>>) -> Result<()> {
        for path in whiteouts {
            if !self.is_hidden(path)? && self.lower.look(path)?.is_some() {
                continue;
            }
            let (parent, name) = fs::split(path);
            self.touch(parent)?;
            fs::remove::remove(self.open(parent)?.as_fd(), name).at("remove the whiteout", self.shown(path))?;
        }
        Ok(())
    }

    /// Marks every name that lower layers show in the root as deleted, and every directory there as opaque.
    fn hide_everything(&mut self) -> Result<()> {
        if !self.opaque_root {
            return Ok(());
        }
        for name in self.names_below_root()? {
            match self.stat(&name)? {
                Some(stat) if fs::file_type(&stat) == FileType::Directory => {
                    xattr::set(self.root.as_fd(), &name, self.opaque, b"y").at("mark as opaque", self.shown(&name))?;
                }
                Some(_) => {}
                None => {
                    let device = rustix::fs::makedev(0, 0);
                    rustix::fs::mknodat(&self.root, &*name, FileType::CharacterDevice, Mode::empty(), device)
                        .at("make the whiteout", self.shown(&name))?;
                }
            }
        }
        Ok(())
    }

    fn names_below_root(&mut self) -> Result<BTreeSet<Vec<u8>>> {
        let mut names = BTreeSet::new();
        for (layer, ()) in self.lower.directories_of(b"")? {
            let layer = self.lower.layer(layer);
            let shown = layer.shown(b"");
            let root = fs::open_beneath(layer.fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY);
            for entry in Dir::read_from(root.at("open", &shown)?).at("read", &shown)? {
                let name = entry.at("read", &shown)?.file_name().to_bytes().to_vec();
                if !matches!(name.as_slice(), b"." | b"..") && self.lower.look(&name)?.is_some() {
                    names.insert(name);
                }
            }
        }
        Ok(names)
    }

    fn restore_times(&mut self) -> Result<()> {
        for (path, (atime, mtime)) in std::mem::take(&mut self.touched) {
            let (parent, name) = fs::split(&path);
            let dir = self.open(parent)?;
            apply::set_times(dir.as_fd(), name, atime, mtime).at("set the times of", self.shown(&path))?;
        }
        Ok(())
    }

    /// Gives the implied directories what the layers below say; deepest first, since a mode may close the way.
    fn imply(&mut self) -> Result<()> {
        for path in std::mem::take(&mut self.implied).into_iter().rev() {
            if self.is_hidden(&path)? {
                continue;
            }
            let Some(seen) = self.lower.look(&path)? else { continue };
            if fs::file_type(&seen.found) == FileType::Directory {
                self.copy_attributes(&path, &seen)?;
            }
        }
        Ok(())
    }

    fn copy_attributes(&self, path: &[u8], seen: &Seen) -> Result<()> {
        let (parent, name) = fs::split(path);
        let from: OwnedFd = self.lower.layer(seen.layer).parent(path)?;
        let to: BorrowedFd<'_> = self.root.as_fd();
        let to = fs::open_beneath(to, parent, OFlags::PATH | OFlags::DIRECTORY).at("open", self.shown(parent))?;
        copy::attributes(from.as_fd(), name, &seen.found, to.as_fd(), name).at("copy attributes to", self.shown(path))
    }
}

pub(crate) fn text(path: &[u8]) -> String {
    apply::shorten(&String::from_utf8_lossy(path))
}
