//! Images of committed snapshots as they are mounted below `fs`: when somebody asks for mounts that stand on them, and until they are
//! removed.
//!
//! A mount outlives the process that made it, and dies with the machine: so nothing is noted anywhere, and whoever needs one looks
//! whether it is there. Overlayfs holds what it stands on by itself: an image that is unmounted goes on being shown by the mounts
//! that were made of it.
//!
//! # Concurrency
//! Whoever mounts holds a lock on the snapshot's directory, in every process; two that need the same image get one mount.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::activate;
use crate::error::At as _;
use crate::{Error, Result, fs};

/// What is wanted of the kernel, for error messages.
const MOUNTING: &str = "mounting EROFS images";

/// Does something with `point`, a directory in `home`, while nothing is mounted there and nobody else mounts; nothing if something is.
pub(super) fn unless_mounted(home: &Path, point: &Path, act: impl FnOnce() -> Result<()>) -> Result<()> {
    if is_mounted(point) {
        return Ok(());
    }
    let _lock = lock(home)?;
    if is_mounted(point) { Ok(()) } else { act() }
}

/// Mounts `image` on `point`, where nothing is mounted.
pub(super) fn mount(image: &Path, point: &Path) -> Result<()> {
    match rustix::fs::mkdir(point, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => {}
        made => made.at("make the directory", point)?,
    }
    activate::mount_image(image, point).map_err(explained)
}

fn lock(home: &Path) -> Result<OwnedFd> {
    let lock = fs::open_dir(home).at("open", home)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).at("lock", home)?;
    Ok(lock)
}

/// Unmounts what nobody uses, and takes the directory away: an overlayfs that named it would show nothing of it, without a word.
pub(super) fn release(home: &Path, point: &Path) -> Result<()> {
    if !is_mounted(point) {
        return Ok(());
    }
    let _lock = lock(home)?;
    match activate::unmount(point, UnmountFlags::NOFOLLOW) {
        // Somebody looks into it.
        Err(Errno::BUSY) => return Ok(()),
        unmounted => unmounted.at("unmount", point)?,
    }
    match rustix::fs::rmdir(point) {
        Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(()),
        removed => removed.at("remove", point),
    }
}

/// Whether an image is mounted there.
pub(super) fn is_mounted(point: &Path) -> bool {
    activate::is_mounted(point)
}

/// Unmounts whatever images are there.
pub(super) fn unmount(point: &Path) -> Result<()> {
    activate::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).at("unmount", point)
}

/// Whether this kernel has EROFS and this user may mount.
///
/// # Errors
/// [`Error::Unsupported`], with what is missing and what to do.
pub(super) fn possible() -> Result<()> {
    let unsupported = |reason: &str| Err(Error::Unsupported { what: MOUNTING, reason: reason.into() });
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loadable = || {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        let list = |name: &str| std::fs::read_to_string(format!("/lib/modules/{release}/{name}")).unwrap_or_default();
        ["modules.dep", "modules.builtin"].iter().any(|name| list(name).contains("/erofs.ko"))
    };
    if !known.lines().any(|line| line.ends_with("\terofs")) && !loadable() {
        return unsupported(
            "the kernel has no EROFS: load the module (modprobe erofs), or use the overlayfs snapshotter",
        );
    }
    if !crate::overlay::in_initial_user_namespace() {
        return unsupported("it needs root, and not that of another user namespace: use the overlayfs snapshotter");
    }
    Ok(())
}

fn explained(error: Error) -> Error {
    let reason = match &error {
        Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NODEV) => {
                "the kernel has no EROFS: load the module (modprobe erofs), or use the overlayfs snapshotter"
            }
            Some(Errno::PERM | Errno::ACCESS) => "mounting is not permitted: it needs root (CAP_SYS_ADMIN)",
            Some(Errno::LOOP) => "the store is on a stack of file systems too deep: use another place for it",
            _ => return error,
        },
        _ => return error,
    };
    Error::Unsupported { what: MOUNTING, reason: format!("{error}; {reason}") }
}
