//! The directories of the tree: found without following links in the kernel, kept open while in use, made where a
//! layer only implies them, and given their times at the end.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::attributes::{self, GIVE_OWNER, Made, Owner};
use super::deferred::Deferred;
use super::entry::Entry;
use super::{Limits, Time};
use crate::error::At as _;
use crate::fs::way::{Turn, Way};
use crate::fs::{self, xattr};
use crate::{ApplyTarget, Result, Whiteouts};

/// Directories kept open; a tar's entries come mostly directory by directory.
const OPEN_DIRECTORIES: usize = 64;
/// Mode of directories that neither this layer nor one below describes.
pub(super) const IMPLIED_MODE: u32 = 0o755;

/// An open directory of the tree.
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Its path, without symbolic links.
    pub(super) path: Vec<u8>,
    /// Whether what is made in it gets its group.
    pub(super) setgid: bool,
}

/// Where an entry goes.
pub(super) struct Place {
    pub(super) dir: Rc<Directory>,
    pub(super) name: Vec<u8>,
    /// Its path, without symbolic links.
    pub(super) path: Vec<u8>,
}

impl Place {
    pub(super) fn made(&self) -> Made<'_> {
        Made::Named(self.dir.fd.as_fd(), &self.name)
    }
}

/// Where something is that should be there already.
pub(super) enum Found {
    /// Here; `None`: only as a link that waits for the layers below.
    Here(Place, Option<Box<Stat>>),
    /// Not in this layer, and nothing in it says that it is in none below. The path is resolved as far as it goes.
    Below(Vec<u8>),
    /// Gone, or never there.
    Nowhere,
}

/// What a directory gets when nothing more is written into it.
pub(super) struct Ending {
    pub(super) atime: Time,
    pub(super) mtime: Time,
    /// The mode, where the final one would have been in the way.
    pub(super) mode: Option<u32>,
    pub(super) inherited_xattr: Option<Vec<u8>>,
    /// An entry described it.
    pub(super) explicit: bool,
}

/// The directories of one tree while a layer is applied.
pub(super) struct Directories {
    pub(super) root_path: PathBuf,
    pub(super) whiteouts: Whiteouts,
    pub(super) owner: Owner,
    pub(super) deferred: Deferred,
    pub(super) endings: BTreeMap<Vec<u8>, Ending>,
    root: Rc<Directory>,
    open: HashMap<Vec<u8>, Rc<Directory>>,
    /// Hashes of the paths that this layer made or passed through; `None` where it made everything.
    own: Option<HashSet<u64>>,
    hasher: RandomState,
    limits: Limits,
    /// Something was removed.
    cleared: bool,
}

enum Resolved {
    Directory(Rc<Directory>),
    Below(Vec<u8>),
    Nowhere,
}

impl Directories {
    pub(super) fn open(target: &ApplyTarget, owner: Owner, limits: &Limits) -> Result<Self> {
        let fd = fs::open_dir(&target.root).at("open", &target.root)?;
        let stat = rustix::fs::fstat(&fd).at("stat", &target.root)?;
        let is_empty = std::fs::read_dir(&target.root).at("read", &target.root)?.next().is_none();
        let own = (target.whiteouts == Whiteouts::Delete && !is_empty).then(HashSet::new);
        let root = Rc::new(Directory { fd, path: Vec::new(), setgid: stat.st_mode & 0o2000 != 0 });
        Ok(Self {
            root_path: target.root.clone(),
            whiteouts: target.whiteouts,
            owner,
            deferred: Deferred::default(),
            endings: BTreeMap::new(),
            root,
            open: HashMap::new(),
            own,
            hasher: RandomState::new(),
            limits: limits.clone(),
            cleared: false,
        })
    }

    /// The place of `entry`; its parents are made if they are missing.
    pub(super) fn place(&mut self, entry: &Entry) -> Result<Place> {
        let (parent, name) = fs::split(&entry.path);
        match self.resolve(parent, entry, true)? {
            Resolved::Directory(dir) => Ok(place(dir, name)),
            Resolved::Below(_) | Resolved::Nowhere => Err(entry.hostile("its parent cannot be made")),
        }
    }

    /// Looks for the target of a hard link.
    pub(super) fn find(&mut self, path: &[u8], entry: &Entry) -> Result<Found> {
        let (parent, name) = fs::split(path);
        let dir = match self.resolve(parent, entry, false)? {
            Resolved::Directory(dir) => dir,
            Resolved::Below(parent) => return Ok(self.below(fs::join(&parent, name))),
            Resolved::Nowhere => return Ok(Found::Nowhere),
        };
        let place = place(dir, name);
        match rustix::fs::statat(&place.dir.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.is_overlay() && fs::is_whiteout(&stat) => Ok(Found::Nowhere),
            Ok(stat) => Ok(Found::Here(place, Some(Box::new(stat)))),
            Err(Errno::NOENT) if self.deferred.links.contains_key(&place.path) => Ok(Found::Here(place, None)),
            Err(Errno::NOENT) => Ok(self.below(place.path)),
            Err(error) => Err(error).at("stat", self.shown(&place.path)),
        }
    }

    /// What `path`, which this layer does not have, means for the layers below.
    fn below(&self, path: Vec<u8>) -> Found {
        let Some(opaque) = self.opaque_name() else { return Found::Nowhere };
        let mut above = fs::split(&path).0;
        while !above.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            if let Ok(dir) = fs::open_beneath(self.root.fd.as_fd(), above, flags)
                && let Ok(Some(_)) = xattr::get(dir.as_fd(), b"", opaque)
            {
                return Found::Nowhere;
            }
            above = fs::split(above).0;
        }
        if self.deferred.opaque_root { Found::Nowhere } else { Found::Below(path) }
    }

    pub(super) fn is_overlay(&self) -> bool {
        self.whiteouts != Whiteouts::Delete
    }

    /// The attribute that makes a directory hide what is below it.
    pub(super) fn opaque_name(&self) -> Option<&'static [u8]> {
        match self.whiteouts {
            Whiteouts::Delete => None,
            Whiteouts::Overlay { userxattr } => Some(crate::overlay::opaque_name(userxattr)),
        }
    }

    pub(super) fn shown(&self, path: &[u8]) -> PathBuf {
        fs::shown(&self.root_path, path)
    }

    /// Whether this layer made what is at `path`.
    pub(super) fn is_own(&self, path: &[u8]) -> bool {
        self.own.as_ref().is_none_or(|own| own.contains(&self.hasher.hash_one(path)))
    }

    pub(super) fn mark_own(&mut self, path: &[u8]) {
        let hash = self.hasher.hash_one(path);
        if let Some(own) = &mut self.own {
            own.insert(hash);
        }
    }

    /// Whether something was removed, so that its inode may become another file's.
    pub(super) fn has_cleared(&self) -> bool {
        self.cleared
    }

    /// Something is removed that [`Self::clear`] is not asked for.
    pub(super) fn note_cleared(&mut self) {
        self.cleared = true;
    }

    /// Removes what is at `place`, whatever it is, and all notes about it.
    pub(super) fn clear(&mut self, place: &Place) -> Result<()> {
        self.forget(&place.path);
        self.cleared |= rustix::fs::statat(&place.dir.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        fs::remove::remove(place.dir.fd.as_fd(), &place.name).at("remove", self.shown(&place.path))
    }

    /// Forgets notes about `path` and below; true if it was a link that waited.
    pub(super) fn forget(&mut self, path: &[u8]) -> bool {
        if self.endings.remove(path).is_some() || self.open.contains_key(path) || self.own.is_some() {
            let below = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
            self.open.retain(|other, _| !below(other) && other != path);
            let gone: Vec<_> = self
                .endings
                .range(path.to_vec()..)
                .map(|(other, _)| other)
                .take_while(|other| other.starts_with(path))
                .filter(|other| below(other))
                .cloned()
                .collect();
            for other in gone {
                self.endings.remove(&other);
            }
            self.deferred.forget_below(path);
        }
        self.deferred.forget(path)
    }

    /// Forgets an open directory whose attributes change.
    pub(super) fn reopen(&mut self, path: &[u8]) {
        self.open.remove(path);
    }

    fn resolve(&mut self, path: &[u8], entry: &Entry, make: bool) -> Result<Resolved> {
        if path.is_empty() {
            return Ok(Resolved::Directory(self.root.clone()));
        }
        if let Some(dir) = self.opened(path, make) {
            return Ok(Resolved::Directory(dir));
        }
        // Where this layer made all there is, one call finds a directory without links on its way.
        if self.own.is_none()
            && let Ok(fd) = fs::open_beneath(self.root.fd.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)
        {
            return self.keep(fd, path.to_vec()).map(Resolved::Directory);
        }
        self.resolve_stepwise(path, entry, make)
    }

    /// An open directory; to make something in one of a lower layer, it must have been noted first.
    fn opened(&self, path: &[u8], make: bool) -> Option<Rc<Directory>> {
        self.open.get(path).filter(|_| !make || self.is_own(path)).cloned()
    }

    fn resolve_stepwise(&mut self, path: &[u8], entry: &Entry, make: bool) -> Result<Resolved> {
        let (mut way, mut at) = (Way::along(path), self.root.clone());
        while let Some(turn) = way.next() {
            let Turn::Into(name) = turn else {
                at = self.at(fs::split(&at.path).0)?;
                continue;
            };
            let here = fs::join(&at.path, &name);
            self.limits.check_place(&here)?;
            at = match self.step(&at, &name, here, entry, make)? {
                Step::Into(dir) => dir,
                Step::Link(target) => {
                    if !way.follow(&target) {
                        return Err(entry.hostile(TOO_MANY_LINKS));
                    }
                    if target.starts_with(b"/") { self.root.clone() } else { at }
                }
                Step::Missing(here) => return Ok(Resolved::Below(way.rest(here))),
                Step::Gone => return Ok(Resolved::Nowhere),
            };
        }
        Ok(Resolved::Directory(at))
    }

    fn step(&mut self, at: &Rc<Directory>, name: &[u8], here: Vec<u8>, entry: &Entry, make: bool) -> Result<Step> {
        if let Some(dir) = self.opened(&here, make) {
            return Ok(Step::Into(dir));
        }
        let stat = match rustix::fs::statat(&at.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if self.deferred.links.contains_key(&here) => return Err(entry.hostile(NOT_A_DIRECTORY)),
            Err(Errno::NOENT) if make => return self.imply(at, name, here, true).map(Step::Into),
            Err(Errno::NOENT) => return Ok(Step::Missing(here)),
            stat => stat.at("stat", self.shown(&here))?,
        };
        let own = self.is_own(&here);
        match fs::file_type(&stat) {
            FileType::Directory => {
                if make && !own {
                    self.pass_through(&here, &stat);
                }
                self.enter(at, name, here).map(Step::Into)
            }
            // A link of a lower layer is hidden by the directory that the entry implies, as on overlayfs.
            FileType::Symlink if own || !make => {
                let target = rustix::fs::readlinkat(&at.fd, name, Vec::new()).at("read the link", self.shown(&here))?;
                Ok(Step::Link(target.into_bytes()))
            }
            _ if self.is_overlay() && fs::is_whiteout(&stat) => {
                if !make {
                    return Ok(Step::Gone);
                }
                self.replace(at, name, here).map(Step::Into)
            }
            _ if own => Err(entry.hostile(NOT_A_DIRECTORY)),
            _ if make => self.replace(at, name, here).map(Step::Into),
            _ => Ok(Step::Gone),
        }
    }

    /// Makes an implied directory where something else was.
    fn replace(&mut self, at: &Rc<Directory>, name: &[u8], here: Vec<u8>) -> Result<Rc<Directory>> {
        let place = place(at.clone(), name);
        self.clear(&place)?;
        let dir = self.imply(at, name, here, false)?;
        self.hide_below(&place)?;
        Ok(dir)
    }

    /// Makes the directory at `place` hide what lower layers have there.
    pub(super) fn hide_below(&self, place: &Place) -> Result<()> {
        let Some(opaque) = self.opaque_name() else { return Ok(()) };
        xattr::set(place.dir.fd.as_fd(), &place.name, opaque, b"y").at("mark as opaque", self.shown(&place.path))
    }

    /// Notes a directory of a lower layer that an entry goes through: it keeps its times.
    fn pass_through(&mut self, path: &[u8], stat: &Stat) {
        self.mark_own(path);
        let (atime, mtime) = times(stat);
        let ending = Ending { atime, mtime, mode: None, inherited_xattr: None, explicit: false };
        self.endings.entry(path.to_vec()).or_insert(ending);
    }

    fn imply(&mut self, at: &Rc<Directory>, name: &[u8], path: Vec<u8>, from_below: bool) -> Result<Rc<Directory>> {
        rustix::fs::mkdirat(&at.fd, name, Mode::from_raw_mode(IMPLIED_MODE))
            .at("make the directory", self.shown(&path))?;
        let made = Made::Named(at.fd.as_fd(), name);
        if at.setgid {
            attributes::chown(made, self.owner.uid, self.owner.gid).at(GIVE_OWNER, self.shown(&path))?;
        }
        if at.setgid || self.owner.created_mode(IMPLIED_MODE) != IMPLIED_MODE {
            attributes::chmod(made, IMPLIED_MODE).at("set the mode of", self.shown(&path))?;
        }
        let ending = Ending {
            atime: Time::default(),
            mtime: Time::default(),
            mode: None,
            inherited_xattr: None,
            explicit: false,
        };
        self.endings.insert(path.clone(), ending);
        self.mark_own(&path);
        if from_below && self.is_overlay() {
            self.deferred.implied.insert(path.clone());
        }
        self.enter(at, name, path)
    }

    fn enter(&mut self, at: &Rc<Directory>, name: &[u8], path: Vec<u8>) -> Result<Rc<Directory>> {
        let fd = fs::open_beneath(at.fd.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY);
        let fd = fd.at("open", self.shown(&path))?;
        self.keep(fd, path)
    }

    /// Opens a directory that is known to be there.
    pub(super) fn at(&mut self, path: &[u8]) -> Result<Rc<Directory>> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(dir.clone());
        }
        let fd = fs::open_beneath(self.root.fd.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY);
        let fd = fd.at("open", self.shown(path))?;
        self.keep(fd, path.to_vec())
    }

    fn keep(&mut self, fd: OwnedFd, path: Vec<u8>) -> Result<Rc<Directory>> {
        let stat = rustix::fs::fstat(&fd).at("stat", self.shown(&path))?;
        if self.open.len() >= OPEN_DIRECTORIES {
            self.open.clear();
        }
        let dir = Rc::new(Directory { fd, path: path.clone(), setgid: stat.st_mode & 0o2000 != 0 });
        self.open.insert(path, dir.clone());
        Ok(dir)
    }

    /// Gives every directory what it gets at the end.
    pub(super) fn end(&mut self) -> Result<()> {
        let endings = std::mem::take(&mut self.endings);
        for (path, ending) in &endings {
            let (parent, name) = fs::split(path);
            let dir = self.at(parent)?;
            let made = Made::Named(dir.fd.as_fd(), name);
            if let Some(value) = &ending.inherited_xattr {
                attributes::set_inherited_xattr(made, value)
                    .map_err(|failure| failure.errno)
                    .at("set the ACL of", self.shown(path))?;
            }
            attributes::set_times(made, ending.atime, ending.mtime).at("set the times of", self.shown(path))?;
        }
        // Children first: without privilege, a mode may close the way to them.
        for (path, ending) in endings.iter().rev() {
            let Some(mode) = ending.mode else { continue };
            let (parent, name) = fs::split(path);
            let dir = self.at(parent)?;
            attributes::chmod(Made::Named(dir.fd.as_fd(), name), mode).at("set the mode of", self.shown(path))?;
        }
        Ok(())
    }
}

pub(super) const NOT_A_DIRECTORY: &str = "a component of its path is not a directory";
pub(super) const TOO_MANY_LINKS: &str = "its path has too many symbolic links";

enum Step {
    Into(Rc<Directory>),
    Link(Vec<u8>),
    Missing(Vec<u8>),
    Gone,
}

fn place(dir: Rc<Directory>, name: &[u8]) -> Place {
    let path = fs::join(&dir.path, name);
    Place { dir, name: name.to_vec(), path }
}

/// Access and modification time of a `stat`.
pub(crate) fn times(stat: &Stat) -> (Time, Time) {
    let time = |seconds, nanos| Time { seconds, nanos };
    (time(stat.st_atime, stat.st_atime_nsec as u32), time(stat.st_mtime, stat.st_mtime_nsec as u32))
}
