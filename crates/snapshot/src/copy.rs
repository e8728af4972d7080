//! Copies trees with everything they have: content, holes, owners, modes, times, extended attributes, hard links.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::Result;
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};

/// Bytes copied at a time where the kernel cannot do it by itself.
const COPY_BYTES: usize = 128 << 10;

/// Gives the directory `to` the owner, mode, times and extended attributes of `from`.
pub(crate) fn root_attributes(from: &Path, to: &Path) -> Result<()> {
    let source = fs::open_dir(from).at("open", from)?;
    let target = fs::open_dir(to).at("open", to)?;
    let stat = rustix::fs::fstat(&source).at("stat", from)?;
    attributes(source.as_fd(), b"", &stat, target.as_fd(), b"").at("copy the attributes of", from)
}

/// Copies what is in the directory `from` into the empty directory `to`, and its attributes.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<()> {
    let (root, here) = (fs::open_dir(to).at("open", to)?, fs::open_dir(to).at("open", to)?);
    let source = fs::open_dir(from).at("open", from)?;
    let mut copier = Copier { root, here, links: HashMap::new() };
    copier.run(source).at("copy", from)?;
    root_attributes(from, to)
}

struct Copier {
    root: OwnedFd,
    /// The directory that the walk's directory is copied to.
    here: OwnedFd,
    /// Where the first name of a file with several went.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl Copier {
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
                    attributes(walk.dir(), name.as_bytes(), &stat, self.here.as_fd(), name.as_bytes())?;
                }
                Step::Other { name, stat } => self.file(&walk, name.as_bytes(), &stat)?,
            }
        }
        Ok(())
    }

    fn file(&mut self, walk: &Walk, name: &[u8], stat: &Stat) -> rustix::io::Result<()> {
        if stat.st_nlink > 1 {
            let path = fs::join(&walk.path(), name);
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let (parent, first_name) = fs::split(first);
                let dir = fs::open_beneath(self.root.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
                return rustix::fs::linkat(dir, first_name, &self.here, name, AtFlags::empty());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path);
        }
        file(walk.dir(), name, stat, self.here.as_fd(), name)
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

/// Copies owner, extended attributes, mode and times; names may be empty for the directories themselves.
pub(crate) fn attributes(
    from: BorrowedFd<'_>,
    name: &[u8],
    stat: &Stat,
    to: BorrowedFd<'_>,
    to_name: &[u8],
) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let target = if to_name.is_empty() { &b"."[..] } else { to_name };
    rustix::fs::chownat(to, target, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    for (attribute, value) in xattr::all(from, name)? {
        if !attribute.starts_with(b"trusted.overlay.") && !attribute.starts_with(b"user.overlay.") {
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
