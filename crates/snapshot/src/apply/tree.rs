//! Lets one entry take effect on the tree.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar_core::SparseEntry;

use super::Options;
use super::attributes::{self, Failure, GIVE_OWNER, Made, Owner};
use super::deferred::DeferredLink;
use super::directories::{Directories, Ending, Found, Place};
use super::entry::{Entry, Kind, Metadata, shorten};
use super::meter::Meter;
use super::source::Source;
use crate::error::At as _;
use crate::fs;
use crate::record::NotesWriter;
use crate::{ApplyTarget, Error, Result};

pub(super) const TO_ITSELF: &str = "it is a hard link to itself, or to what it replaces";
/// What needs privilege, for messages.
const OWNERS: &str = "giving a file the owner and attributes that the layer names";

/// The tree while a layer is applied.
pub(super) struct Tree<'a> {
    target: &'a ApplyTarget,
    pub(super) dirs: Directories,
    links: u64,
    /// What files hash to.
    notes: Option<NotesWriter>,
    /// Asks for room.
    meter: Meter,
}

impl<'a> Tree<'a> {
    pub(super) fn open(target: &'a ApplyTarget, options: &Options, owner: Owner) -> Result<Self> {
        let dirs = Directories::open(target, owner, &options.limits)?;
        let notes = target.applied.as_deref().map(NotesWriter::open).transpose()?;
        let meter = Meter::new(options.admission.clone());
        Ok(Self { target, dirs, links: 0, notes, meter })
    }

    /// Applies `entry`, reading content from `source`, and returns how much of it is left unread.
    pub(super) fn write(&mut self, entry: &Entry, source: &mut Source) -> Result<u64> {
        // The root is the snapshot's own; containerd leaves it alone too.
        if entry.path.is_empty() || super::whiteout::is_aufs(&entry.path) {
            return Ok(entry.size);
        }
        self.meter.entry().at("write", self.dirs.shown(&entry.path))?;
        let place = self.dirs.place(entry)?;
        if self.whiteout(entry, &place)? {
            return Ok(entry.size);
        }
        let left = match entry.kind {
            Kind::File => self.file(entry, &place, source)?,
            Kind::Directory => self.directory(entry, &place)?,
            Kind::Symlink => self.symlink(entry, &place)?,
            Kind::HardLink => self.hard_link(entry, place)?,
            Kind::Fifo => self.node(entry, &place, FileType::Fifo, (0, 0))?,
            Kind::Char(major, minor) => self.node(entry, &place, FileType::CharacterDevice, (major, minor))?,
            Kind::Block(major, minor) => self.node(entry, &place, FileType::BlockDevice, (major, minor))?,
        };
        Ok(left)
    }

    /// Sets what had to wait for the last entry.
    pub(super) fn finish(mut self) -> Result<()> {
        self.dirs.end()?;
        if let Some(notes) = self.notes.take() {
            notes.finish(&self.target.root, self.dirs.has_cleared())?;
        }
        match &self.target.deferred {
            Some(path) if !self.dirs.deferred.is_empty() => self.dirs.deferred.save(path),
            _ => Ok(()),
        }
    }

    /// Makes something new at `place`; what is there goes first.
    fn make<T>(
        &mut self,
        place: &Place,
        operation: &'static str,
        mut make: impl FnMut(&Place) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let made = match make(place) {
            Err(Errno::EXIST) => {
                self.dirs.clear(place)?;
                make(place)
            }
            made => made,
        };
        if made.is_ok() {
            self.dirs.deferred.forget(&place.path);
            self.dirs.mark_own(&place.path);
        }
        made.at(operation, self.dirs.shown(&place.path))
    }

    fn file(&mut self, entry: &Entry, place: &Place, source: &mut Source) -> Result<u64> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.metadata.mode & 0o777);
        let fd = self.make(place, "create", |place| rustix::fs::openat(&place.dir.fd, &place.name, flags, mode))?;
        let file = File::from(fd);
        let mut hasher = self.notes.as_ref().filter(|_| entry.sparse.is_none()).map(|_| blake3::Hasher::new());
        let left = match &entry.sparse {
            None => copy(source, &file, entry.size, &mut self.meter, hasher.as_mut()).map(|()| 0),
            Some((size, regions)) => copy_sparse(source, &file, *size, regions, &mut self.meter)
                .map(|()| entry.size - regions.iter().map(|region| region.length).sum::<u64>()),
        };
        let left = left.map_err(|error| self.writing(error, place))?;
        let made = Made::Open(file.as_fd());
        let has_mode = self.dirs.owner.created_mode(entry.metadata.mode);
        self.describe(made, entry, place, Some(has_mode))?;
        self.set_times(made, &entry.metadata, place)?;
        if let (Some(notes), Some(hasher)) = (&mut self.notes, hasher) {
            let stat = rustix::fs::fstat(&file).at("stat", self.dirs.shown(&place.path))?;
            notes.hashed(&stat, &hasher.finalize().into())?;
        }
        Ok(left)
    }

    fn directory(&mut self, entry: &Entry, place: &Place) -> Result<u64> {
        // Without privilege a directory must stay open for its owner until its content is there.
        let wanted = entry.metadata.mode;
        let postponed = !self.dirs.owner.is_privileged() && wanted & 0o700 != 0o700;
        let first = if postponed { wanted | 0o700 } else { wanted };
        let was_link = self.dirs.deferred.forget(&place.path);
        let has_mode = self.make_directory(place, first, was_link)?;
        let metadata = Metadata { mode: first, ..entry.metadata.clone() };
        self.describe_as(place.made(), &metadata, entry, place, has_mode)?;
        self.dirs.reopen(&place.path);
        let ending = Ending {
            atime: metadata.atime,
            mtime: metadata.mtime,
            mode: postponed.then_some(wanted),
            inherited_xattr: attributes::inherited_xattr(&metadata).map(<[u8]>::to_vec),
            explicit: true,
        };
        self.dirs.endings.insert(place.path.clone(), ending);
        Ok(0)
    }

    /// Makes a directory, or keeps the one that is there without its extended attributes; gives the mode it has.
    fn make_directory(&mut self, place: &Place, mode: u32, hide_below: bool) -> Result<Option<u32>> {
        let create =
            |place: &Place| rustix::fs::mkdirat(&place.dir.fd, &place.name, Mode::from_raw_mode(mode & 0o1777));
        let shown = || fs::shown(&self.target.root, &place.path);
        let replaced = match create(place) {
            Ok(()) => hide_below,
            Err(Errno::EXIST) => {
                let stat =
                    rustix::fs::statat(&place.dir.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW).at("stat", shown())?;
                if fs::file_type(&stat) == FileType::Directory {
                    self.dirs.mark_own(&place.path);
                    self.strip(place)?;
                    return Ok(Some(stat.st_mode & 0o7777));
                }
                self.dirs.clear(place)?;
                create(place).at("make the directory", shown())?;
                true
            }
            Err(error) => return Err(error).at("make the directory", shown()),
        };
        self.dirs.mark_own(&place.path);
        if replaced {
            // Whatever was here hid what is below; so must the directory.
            self.dirs.hide_below(place)?;
        }
        let inherited = if place.dir.setgid { 0o2000 } else { 0 };
        Ok(Some(self.dirs.owner.created_mode(mode) | mode & 0o1000 | inherited))
    }

    /// An entry describes a directory completely: attributes that it does not name go.
    pub(super) fn strip(&self, place: &Place) -> Result<()> {
        let dir = place.dir.fd.as_fd();
        let shown = || self.dirs.shown(&place.path);
        for name in fs::xattr::list(dir, &place.name).at("list the attributes of", shown())? {
            let kept = Some(name.as_slice()) == self.dirs.opaque_name() || name.starts_with(b"security.selinux");
            if !kept {
                fs::xattr::remove(dir, &place.name, &name).at("remove an attribute of", shown())?;
            }
        }
        // The owner is set only where it differs from what new files get.
        attributes::chown(place.made(), self.dirs.owner.uid, self.dirs.owner.gid).at(GIVE_OWNER, shown())
    }

    fn symlink(&mut self, entry: &Entry, place: &Place) -> Result<u64> {
        let link = entry.link.as_slice();
        self.make(place, "make the symbolic link", |place| rustix::fs::symlinkat(link, &place.dir.fd, &place.name))?;
        self.describe(place.made(), entry, place, None)?;
        self.set_times(place.made(), &entry.metadata, place)?;
        Ok(0)
    }

    fn node(&mut self, entry: &Entry, place: &Place, kind: FileType, device: (u32, u32)) -> Result<u64> {
        let mode = Mode::from_raw_mode(entry.metadata.mode & 0o777);
        let device: Dev = rustix::fs::makedev(device.0, device.1);
        let made = self
            .make(place, "make the node", |place| rustix::fs::mknodat(&place.dir.fd, &place.name, kind, mode, device));
        made.map_err(|error| self.privileged(error, "making a device node", entry))?;
        let has_mode = self.dirs.owner.created_mode(entry.metadata.mode);
        self.describe(place.made(), entry, place, Some(has_mode))?;
        self.set_times(place.made(), &entry.metadata, place)?;
        Ok(0)
    }

    fn hard_link(&mut self, entry: &Entry, place: Place) -> Result<u64> {
        let missing =
            || Error::LinkTarget { entry: entry.name(), target: shorten(&String::from_utf8_lossy(&entry.link)) };
        match self.dirs.find(&entry.link, entry)? {
            Found::Here(target, _) if is_within(&target.path, &place.path) => return Err(entry.hostile(TO_ITSELF)),
            Found::Here(target, Some(stat)) => self.link(entry, &place, &target, &stat)?,
            Found::Here(target, None) => {
                let target = self.dirs.deferred.links[&target.path].target.clone();
                self.defer(entry, place, target)?;
            }
            Found::Below(target) if is_within(&target, &place.path) => return Err(entry.hostile(TO_ITSELF)),
            Found::Below(target) if self.target.deferred.is_some() => self.defer(entry, place, target)?,
            Found::Below(_) | Found::Nowhere => return Err(missing()),
        }
        Ok(0)
    }

    fn link(&mut self, entry: &Entry, place: &Place, target: &Place, stat: &Stat) -> Result<()> {
        if fs::file_type(stat) == FileType::Directory {
            return Err(entry.hostile("it is a hard link to a directory"));
        }
        self.make(place, "make the hard link", |place| {
            rustix::fs::linkat(&target.dir.fd, &target.name, &place.dir.fd, &place.name, AtFlags::empty())
        })?;
        // The link's entry describes the file that both names share.
        let is_link = fs::file_type(stat) == FileType::Symlink;
        let metadata = self.owned(&entry.metadata);
        attributes::describe_link(place.dir.fd.as_fd(), &place.name, &metadata, is_link)
            .at("set the attributes of", self.dirs.shown(&place.path))
            .map_err(|error| self.privileged(error, OWNERS, entry))?;
        self.renew(place)
    }

    /// A file that has another name has another change time.
    fn renew(&mut self, place: &Place) -> Result<()> {
        let Some(notes) = &mut self.notes else { return Ok(()) };
        let stat = rustix::fs::statat(&place.dir.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW);
        notes.renewed(&stat.at("stat", self.dirs.shown(&place.path))?)
    }

    fn defer(&mut self, entry: &Entry, place: Place, target: Vec<u8>) -> Result<()> {
        self.dirs.clear(&place)?;
        self.links += 1;
        let link = DeferredLink { order: self.links, target, metadata: self.owned(&entry.metadata) };
        self.dirs.deferred.links.insert(place.path, link);
        Ok(())
    }

    /// The metadata with the owner that it comes to here.
    fn owned(&self, metadata: &Metadata) -> Metadata {
        let (uid, gid) = self.dirs.owner.wanted(metadata);
        Metadata { uid, gid, ..metadata.clone() }
    }

    fn describe(&self, made: Made<'_>, entry: &Entry, place: &Place, has_mode: Option<u32>) -> Result<()> {
        self.describe_as(made, &entry.metadata, entry, place, has_mode)
    }

    fn describe_as(
        &self,
        made: Made<'_>,
        metadata: &Metadata,
        entry: &Entry,
        place: &Place,
        has_mode: Option<u32>,
    ) -> Result<()> {
        let set = self.dirs.owner.set(made, metadata, place.dir.setgid, has_mode);
        set.map_err(|failure| self.failed(failure, entry, place))
    }

    fn set_times(&self, made: Made<'_>, metadata: &Metadata, place: &Place) -> Result<()> {
        attributes::set_times(made, metadata.atime, metadata.mtime).at("set the times of", self.dirs.shown(&place.path))
    }

    fn failed(&self, failure: Failure, entry: &Entry, place: &Place) -> Error {
        let path = self.dirs.shown(&place.path);
        let error = Error::Io { operation: failure.operation, path, source: failure.errno.into() };
        if failure.operation == attributes::SET_XATTR && failure.errno == Errno::NOSPC && self.has_room() {
            // ext4 keeps all attributes of a file in one block.
            let what = "giving a file all the extended attributes that the layer names";
            let reason = format!("{error}, though the disk is not full: this file system holds fewer for each file");
            return Error::Unsupported { what, reason };
        }
        self.privileged(error, OWNERS, entry)
    }

    /// Whether the file system has space left.
    fn has_room(&self) -> bool {
        const ROOM: u64 = 1 << 20;
        let stat = rustix::fs::statvfs(&self.target.root);
        stat.is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) > ROOM)
    }

    /// Says what would help if `error` is a matter of privilege.
    fn privileged(&self, error: Error, what: &'static str, entry: &Entry) -> Error {
        let Error::Io { operation, source, .. } = &error else { return error };
        let errno = source.raw_os_error().unwrap_or_default();
        // A user namespace answers EINVAL for owners that it does not map.
        let unmapped = errno == Errno::INVAL.raw_os_error() && *operation == GIVE_OWNER;
        if errno != Errno::PERM.raw_os_error() && !unmapped {
            return error;
        }
        let Metadata { uid, gid, .. } = entry.metadata;
        let advice = match self.dirs.owner.is_privileged() {
            true => "not even root may do that on this file system, or without the capability for it",
            false => "run as root, or in a user namespace that maps these ids",
        };
        let reason = format!("{error} (entry {:?}, user {uid}, group {gid}): {advice}", entry.name());
        Error::Unsupported { what, reason }
    }

    fn writing(&self, error: Error, place: &Place) -> Error {
        match error {
            Error::Io { operation, source, .. } => Error::Io { operation, path: self.dirs.shown(&place.path), source },
            other => other,
        }
    }
}

/// Whether `path` is `dir` or below it.
pub(super) fn is_within(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn copy(
    source: &mut Source,
    mut file: &File,
    mut left: u64,
    meter: &mut Meter,
    mut hasher: Option<&mut blake3::Hasher>,
) -> Result<()> {
    while left > 0 {
        let bytes = source.next_slice(left)?;
        let count = bytes.len();
        meter.take(count as u64).at("write", "")?;
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes);
        }
        file.write_all(bytes).at("write", "")?;
        source.consume(count);
        left -= count as u64;
    }
    Ok(())
}

fn copy_sparse(source: &mut Source, file: &File, size: u64, regions: &[SparseEntry], meter: &mut Meter) -> Result<()> {
    file.set_len(size).at("extend", "")?;
    for region in regions {
        let (mut offset, end) = (region.offset, region.offset + region.length);
        while offset < end {
            let bytes = source.next_slice(end - offset)?;
            let count = bytes.len();
            meter.take(count as u64).at("write", "")?;
            file.write_all_at(bytes, offset).at("write", "")?;
            source.consume(count);
            offset += count as u64;
        }
    }
    Ok(())
}
