//! Copies trees with everything they have: content, holes, owners, modes, times, extended attributes, hard links.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};
use crate::{Result, overlay};

/// Bytes copied at a time where the kernel cannot do it by itself.
const COPY_BYTES: usize = 128 << 10;

/// Gives the directory `to` the owner, mode, times and extended attributes of `from`.
pub(crate) fn root_attributes(from: &Path, to: &Path) -> Result<()> {
    let source = fs::open_dir(from).at("open", from)?;
    let target = fs::open_dir(to).at("open", to)?;
    let stat = rustix::fs::fstat(&source).at("stat", from)?;
    attributes(source.as_fd(), b"", &stat, target.as_fd(), b"").at("copy the attributes of", from)
}

/// Which extended attributes come along, by name.
pub(crate) type Taken = fn(&[u8]) -> bool;

/// Copies what is in the directory `from` into the empty directory `to`, and its attributes; of directories those that are `taken`.
pub(crate) fn tree(from: &Path, to: &Path, taken: Taken) -> Result<()> {
    let (source, target) = (fs::open_dir(from).at("open", from)?, fs::open_dir(to).at("open", to)?);
    let copied = |from: BorrowedFd<'_>, name: &[u8], stat: &Stat, to: BorrowedFd<'_>| {
        file(from, name, stat, to, name).map(|()| true)
    };
    remake(source, target, taken, copied).at("copy", from)
}

/// Makes the directory `source` anew in the empty directory `target`: directories with the attributes that are `taken`, and whatever
/// else is there as `make` does it: from a directory, by its name, with what it is, into another directory. It says whether it
/// made anything; further names of what it made become hard links.
pub(crate) fn remake(
    source: OwnedFd,
    target: OwnedFd,
    taken: Taken,
    make: impl FnMut(BorrowedFd<'_>, &[u8], &Stat, BorrowedFd<'_>) -> rustix::io::Result<bool>,
) -> rustix::io::Result<()> {
    // Before anybody reads in it, which is an access.
    let stat = rustix::fs::fstat(&source)?;
    let [top, here] = [&source, &target].map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 0));
    let mut remaker = Remaker { root: target, here: here?, taken, make, links: HashMap::new() };
    remaker.run(source)?;
    attributes_taken(top?.as_fd(), b"", &stat, remaker.root.as_fd(), b"", taken)
}

struct Remaker<M> {
    root: OwnedFd,
    /// The directory that the walk's directory becomes.
    here: OwnedFd,
    taken: Taken,
    make: M,
    /// Where the first name of a file with several went.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<M: FnMut(BorrowedFd<'_>, &[u8], &Stat, BorrowedFd<'_>) -> rustix::io::Result<bool>> Remaker<M> {
    fn run(&mut self, source: OwnedFd) -> rustix::io::Result<()> {
        let mut walk = Walk::new(source)?;
        let mut stats = Vec::new();
        while let Some(step) = walk.next()? {
            match step {
                Step::Enter { name, stat } => {
                    rustix::fs::mkdirat(&self.here, &name, Mode::RWXU)?;
                    self.here = rustix::fs::openat(&self.here, &name, DIRECTORY, Mode::empty())?;
                    stats.push(stat);
                }
                Step::Leave { name } => {
                    // The tree is nobody else's yet, so `..` is where it was.
                    self.here = rustix::fs::openat(&self.here, c"..", DIRECTORY, Mode::empty())?;
                    let Some(stat) = stats.pop() else { return Err(Errno::STALE) };
                    let name = name.as_bytes();
                    attributes_taken(walk.dir(), name, &stat, self.here.as_fd(), name, self.taken)?;
                }
                Step::Other { name, stat } => self.other(&walk, name.as_bytes(), &stat)?,
            }
        }
        Ok(())
    }

    fn other(&mut self, walk: &Walk, name: &[u8], stat: &Stat) -> rustix::io::Result<()> {
        let inode = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
        if let Some(first) = inode.and_then(|inode| self.links.get(&inode)) {
            let (parent, first_name) = fs::split(first);
            let dir = fs::open_beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
            return rustix::fs::linkat(dir, first_name, &self.here, name, AtFlags::empty());
        }
        let made = (self.make)(walk.dir(), name, stat, self.here.as_fd())?;
        self.links.extend(inode.filter(|_| made).map(|inode| (inode, fs::join(&walk.path(), name))));
        Ok(())
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Copies anything but a directory to a new name.
pub(crate) fn file(
    from: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &[u8],
) -> rustix::io::Result<()> {
    match fs::file_type(stat) {
        FileType::RegularFile => content(from, name, stat, to, to_name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, to_name)?;
        }
        kind => rustix::fs::mknodat(to, to_name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
    }
    attributes(from, name, stat, to, to_name)
}

/// Copies owner, extended attributes but overlayfs' own, mode and times; names may be empty for the directories themselves.
pub(crate) fn attributes(
    from: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &[u8],
) -> rustix::io::Result<()> {
    attributes_taken(from, name, stat, to, to_name, overlay::is_foreign)
}

/// The same with another choice of extended attributes.
pub(crate) fn attributes_taken(
    from: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &[u8],
    taken: Taken,
) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let target = if to_name.is_empty() { &b"."[..] } else { to_name };
    rustix::fs::chownat(to, target, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    for (attribute, value) in xattr::all(from, name)? {
        if taken(&attribute) {
            xattr::set(to, to_name, &attribute, &value)?;
        }
    }
    if fs::file_type(stat) != FileType::Symlink {
        rustix::fs::chmodat(to, target, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    };
    rustix::fs::utimensat(to, target, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn content(
    from: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &[u8],
) -> rustix::io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let target = File::from(rustix::fs::openat(to, to_name, write, Mode::RUSR | Mode::WUSR)?);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if size == 0 || rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    rustix::fs::ftruncate(&target, size)?;
    let mut offset = 0;
    while let Some((start, end)) = next_data(&source, offset, size)? {
        copy_range(&source, &target, start, end).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        offset = end;
    }
    Ok(())
}

/// The next stretch of a file that is no hole, from `offset` on.
pub(crate) fn next_data(file: &File, offset: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if offset >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL) => return Ok(Some((offset, size))),
        Err(error) => return Err(error),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    Ok((start < size).then_some((start, end)))
}

fn copy_range(source: &File, target: &File, mut start: u64, end: u64) -> io::Result<()> {
    while start < end {
        let (mut from, mut to) = (start, start);
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => return Ok(()),
            Ok(copied) => start += copied as u64,
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_bytes(source, target, start, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(source: &File, target: &File, mut start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while start < end {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX).min(buffer.len());
        let read = source.read_at(&mut buffer[..length], start)?;
        if read == 0 {
            return Ok(());
        }
        target.write_all_at(&buffer[..read], start)?;
        start += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// A name that went while a tree was taken over took the other names of its file with it.
    #[test]
    fn further_names_of_a_file_are_made_although_the_first_went() {
        let directory = tempfile::tempdir().unwrap();
        let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
        [&source, &target].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        std::fs::write(source.join("a"), "bytes").unwrap();
        ["b", "c"].iter().for_each(|name| std::fs::hard_link(source.join("a"), source.join(name)).unwrap());
        let mut goes = true;
        let make = |from: BorrowedFd<'_>, name: &[u8], stat: &Stat, to: BorrowedFd<'_>| {
            if std::mem::take(&mut goes) { Ok(false) } else { file(from, name, stat, to, name).map(|()| true) }
        };
        let [from, to] = [&source, &target].map(|path| fs::open_dir(path).unwrap());
        remake(from, to, overlay::is_foreign, make).unwrap();
        let made = std::fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino());
        let made: Vec<u64> = made.collect();
        assert_eq!((made.len(), made.iter().collect::<BTreeSet<_>>().len()), (2, 1), "two names of one file");
    }
}
