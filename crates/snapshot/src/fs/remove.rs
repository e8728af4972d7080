//! Removes trees, whatever is in them.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::walk::{Step, Walk};

/// Removes `name` in `dir`, with all below it if it is a directory. It need not be there.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlink(dir, name, AtFlags::empty());
    }
    remove_children(dir, name)?;
    unlink(dir, name, AtFlags::REMOVEDIR)
}

fn remove_children(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            unlock(parent, name)?;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    let mut walk = Walk::new(root)?;
    while let Some(step) = walk.next()? {
        match step {
            Step::Enter { name, stat } => enter(walk.dir(), &name, stat.st_mode)?,
            Step::Leave { name } => unlink(walk.dir(), name.as_bytes(), AtFlags::REMOVEDIR)?,
            Step::Other { name, .. } => unlink(walk.dir(), name.as_bytes(), AtFlags::empty())?,
        }
    }
    Ok(())
}

/// Without privilege, a directory must be readable, writable and searchable for its content to be removed.
fn enter(dir: BorrowedFd<'_>, name: &CString, mode: u32) -> rustix::io::Result<()> {
    if mode & 0o700 == 0o700 || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    unlock(dir, name.as_bytes())
}

fn unlock(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())
}

fn unlink(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        // Immutable or append-only, the file or its directory (chattr +i): the owner of the tree may still remove it.
        Err(Errno::PERM) => {
            release(dir, name);
            rustix::fs::unlinkat(dir, name, flags)
        }
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(dir, Mode::RWXU)?;
            rustix::fs::unlinkat(dir, name, flags)
        }
        other => other,
    }
}

/// Takes the immutable and append-only flags away, as far as they are there and it is allowed.
fn release(dir: BorrowedFd<'_>, name: &[u8]) {
    for target in [&b"."[..], name] {
        let kind = rustix::fs::statat(dir, target, AtFlags::SYMLINK_NOFOLLOW).map(|stat| super::file_type(&stat));
        // Opening a device or a fifo could do something.
        if !matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::openat(dir, target, flags, Mode::empty()) else { continue };
        let Ok(current) = rustix::fs::ioctl_getflags(&file) else { continue };
        let locked = IFlags::IMMUTABLE | IFlags::APPEND;
        if current.intersects(locked) {
            // The unlink that follows reports the failure.
            let _ = rustix::fs::ioctl_setflags(&file, current - locked);
        }
    }
}
