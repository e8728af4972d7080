//! What the rest of the crate needs of the file system: every call is relative to a directory descriptor and follows
//! no link.

pub(crate) mod remove;
pub(crate) mod walk;
pub(crate) mod way;
pub(crate) mod xattr;

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::Result;
use crate::error::At as _;

/// Opens the directory at `path`, which the caller trusts.
pub(crate) fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Makes a directory and those above it; those that it makes survive a power cut.
pub(crate) fn make_directories(path: &Path, mode: u32) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or(Errno::NOENT).at("make the directory", path)?;
            make_directories(parent, mode)?;
            make_directories(path, mode)
        }
        made => {
            made.at("make the directory", path)?;
            let parent = path.parent().unwrap_or(path);
            let handle = open_dir(parent).at("open", parent)?;
            rustix::fs::fsync(&handle).at("sync", parent)
        }
    }
}

/// Opens `path` below `root`; a symbolic link anywhere on the way is `ELOOP`. An empty path is the root.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and sandboxes that filter what they do not know.
        Err(Errno::NOSYS | Errno::PERM) => open_stepwise(root, path, flags),
        opened => opened,
    }
}

/// What `openat2` does, one name at a time: `O_NOFOLLOW` on each.
fn open_stepwise(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = path.split(|&b| b == b'/').filter(|name| !name.is_empty()).peekable();
    let mut dir = rustix::fs::openat(root, ".", step, Mode::empty())?;
    while let Some(name) = names.next() {
        if name == b".." {
            return Err(Errno::XDEV);
        }
        if names.peek().is_none() {
            return rustix::fs::openat(&dir, name, flags, Mode::empty());
        }
        dir = rustix::fs::openat(&dir, name, step, Mode::empty())?;
    }
    rustix::fs::openat(&dir, ".", flags, Mode::empty())
}

/// A path by which system calls that know no directory descriptors reach `name` in `dir`, the last step unfollowed
/// if the call does not follow.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    if !name.is_empty() {
        path.push(OsStr::from_bytes(name));
    }
    path
}

/// Splits a path into its parent, perhaps empty, and its last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Joins two relative paths; either may be empty.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() || name.is_empty() {
        return [dir, name].concat();
    }
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// The path as the operating system's error messages should show it.
pub(crate) fn shown(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}

/// The kind of file that a `stat` shows.
pub(crate) fn file_type(stat: &Stat) -> rustix::fs::FileType {
    rustix::fs::FileType::from_raw_mode(stat.st_mode)
}

/// Whether this is overlayfs' mark for a deleted name: the character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == rustix::fs::FileType::CharacterDevice && stat.st_rdev == 0
}
