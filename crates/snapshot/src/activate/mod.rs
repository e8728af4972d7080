//! Mounts that a server makes for a client: what must be prepared before any system can mount it, as containerd's mount
//! manager does.
//!
//! A type may have transforms before it, each ended by `/`: `format` fills in templates over the mounts before it, `mkdir`
//! makes directories, `mkfs` a file system in a file. Whatever comes before the last mount with a transform is mounted here,
//! each on a directory of its own, and so is what comes before an `erofs`, with it; the rest is left to the client. A temporary
//! activation is mounted here whole, and the client gets a bind mount.
//!
//! ```text
//! <directory>/0, 1, …      mount points, unmounted from the last to the first
//! <directory>/0.0, 0.1, …  mapped layers of an overlayfs that is just being mounted on 0
//! ```
//!
//! # Invariants
//! - Whoever activates has chosen a new directory, and calls [`deactivate`] when it fails or ends.
//! - Nothing is ever removed but empty directories: what is still mounted is somebody's tree.
//! - Loop devices go with the mounts that use them. What `mkdir` and `mkfs` made stays: it is the client's.

mod erofs;
mod fuse;
mod idmap;
mod loops;
mod making;
mod mkdir;
mod mkfs;
mod options;
mod roots;
mod template;

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};

use crate::error::At as _;
use crate::{Error, Result};

/// What may stand before a type.
const TRANSFORMS: [&str; 3] = ["format", "mkdir", "mkfs"];

/// A mount as a client describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The type, perhaps with transforms before it.
    pub kind: String,
    /// The device or directory.
    pub source: String,
    /// Where below the mount point.
    pub target: String,
    /// Options as mount(8) takes them.
    pub options: Vec<String>,
}

/// A mount that was made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Active {
    /// What it is, with all transforms made; an `erofs` from the loop devices that it needed.
    pub mount: Wanted,
    /// Where.
    pub point: PathBuf,
}

/// What an activation made, and what it leaves to the client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activated {
    /// In the order in which they were made.
    pub active: Vec<Active>,
    /// In the order in which they are to be made.
    pub system: Vec<Wanted>,
}

/// Mounts an EROFS image, a file, on a directory.
pub(crate) fn mount_image(image: &Path, point: &Path) -> Result<()> {
    let file = std::fs::File::open(image).at("open", image)?;
    // Its own path may be longer than the kernel takes.
    let short = (image.as_os_str().len() > LONGEST_SOURCE).then(|| format!("/proc/self/fd/{}", file.as_raw_fd()));
    let source = short.unwrap_or_else(|| image.display().to_string());
    erofs::mount_on(&Wanted { kind: erofs::KIND.into(), source, ..Wanted::default() }, point).map(drop)
}

/// Bytes of a source that fsconfig(2) takes.
const LONGEST_SOURCE: usize = 255;

/// How many of `mounts`, from the first, have to be made by a server.
///
/// # Errors
/// [`Error::NotMountedHere`] if none has to: the client mounts them by itself; and if one asks for what this program cannot.
pub fn needed(mounts: &[Wanted], temporary: bool) -> Result<usize> {
    let mut needed = None;
    for (at, mount) in mounts.iter().enumerate() {
        let (transforms, kind) = transforms(&mount.kind);
        if !transforms.is_empty() {
            needed = Some(at);
        }
        if kind == erofs::KIND {
            erofs::possible(mount)?;
        }
        if kind == erofs::KIND || temporary {
            needed = Some(at + 1);
        }
    }
    needed.ok_or_else(|| not_here("nothing has to be activated, the system can mount it as it is".into()))
}

/// The transforms at the beginning of a type, and what they lead to.
fn transforms(kind: &str) -> (Vec<&str>, &str) {
    let (mut found, mut rest) = (Vec::new(), kind);
    while let Some((first, after)) = rest.split_once('/')
        && TRANSFORMS.contains(&first)
    {
        found.push(first);
        rest = after;
    }
    (found, rest)
}

/// Makes the first of `mounts` that have to be, in `directory`, which is new. Directories and file systems are made below
/// `roots` alone.
///
/// # Errors
/// What was mounted until then stays for [`deactivate`].
pub fn activate(mounts: &[Wanted], temporary: bool, directory: &Path, roots: &[&Path]) -> Result<Activated> {
    let needed = needed(mounts, temporary)?;
    let mut made = Activated::default();
    for (at, mount) in mounts[..needed].iter().enumerate() {
        let mount = transformed(mount, &made.active, roots)?;
        let point = directory.join(at.to_string());
        std::fs::create_dir(&point).at("make the directory", &point)?;
        let mount = making::mount_on(mount, &point)?;
        made.active.push(Active { mount, point });
    }
    if let Some((first, rest)) = mounts[needed..].split_first() {
        made.system.push(transformed(first, &made.active, roots)?);
        made.system.extend(rest.iter().cloned());
    }
    if let Some(last) = made.active.last().filter(|_| temporary) {
        let source = last.point.display().to_string();
        made.system.push(Wanted { kind: "bind".into(), source, options: vec!["rbind".into()], ..Wanted::default() });
    }
    Ok(made)
}

fn transformed(mount: &Wanted, before: &[Active], roots: &[&Path]) -> Result<Wanted> {
    let (transforms, kind) = transforms(&mount.kind);
    let mut result = Wanted { kind: kind.to_owned(), ..mount.clone() };
    for transform in transforms {
        match transform {
            "format" => template::format(&mut result, before)?,
            "mkfs" => mkfs::make(&mut result, roots)?,
            _ => mkdir::make(&mut result, roots)?,
        }
    }
    Ok(result)
}

/// Unmounts what an activation mounted in `directory`, the last one first, and removes it. That it is gone is fine.
///
/// # Errors
/// If something is still in use, that and what was mounted before it stay; it can be tried again.
pub fn deactivate(directory: &Path) -> Result<()> {
    unmount_all(directory, UnmountFlags::NOFOLLOW)
}

/// The same for what nobody was told of, so that nobody uses it: what a program that is just being started has inherited may be open
/// for a moment still, and is let go by the kernel then.
///
/// # Errors
/// As of [`deactivate`], but for that.
pub fn abandon(directory: &Path) -> Result<()> {
    unmount_all(directory, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

fn unmount_all(directory: &Path, how: UnmountFlags) -> Result<()> {
    let mut points = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.at("list", directory)?,
    };
    for entry in entries {
        let name = entry.at("list", directory)?.file_name();
        points.extend(name.to_str().and_then(|name| Some((order(name)?, directory.join(name)))));
    }
    points.sort_unstable();
    for (_, point) in points.into_iter().rev() {
        unmount(&point, how).at("unmount", &point)?;
        removed(&point)?;
    }
    removed(directory)
}

/// Unmounts whatever is on `point`.
pub(crate) fn unmount(point: &Path, how: UnmountFlags) -> rustix::io::Result<()> {
    while is_mounted(point) {
        match rustix::mount::unmount(point, how) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::INVAL) => {}
            other => return other,
        }
    }
    Ok(())
}

/// What comes after what among the names of mount points; `None` is nobody's.
fn order(name: &str) -> Option<(u32, Option<u32>)> {
    Some(match name.split_once('.') {
        Some((point, layer)) => (point.parse().ok()?, Some(layer.parse().ok()?)),
        None => (name.parse().ok()?, None),
    })
}

fn removed(directory: &Path) -> Result<()> {
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", directory),
    }
}

/// Whether something is mounted there.
pub fn is_mounted(point: &Path) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, point, flags, StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Says what it takes to mount, where the system only says that it was not enough.
fn permitted<T>(result: rustix::io::Result<T>, operation: &'static str, path: &Path) -> Result<T> {
    let what = "Operation not permitted: this process may not mount; run it as root, or in a user and mount namespace of \
                its own (unshare -Urm)";
    let said = result.map_err(|error| match error {
        Errno::PERM => std::io::Error::new(std::io::ErrorKind::PermissionDenied, what),
        other => other.into(),
    });
    said.at(operation, path)
}

fn bad(reason: String) -> Error {
    Error::BadMount { reason }
}

fn not_here(reason: String) -> Error {
    Error::NotMountedHere { reason }
}

#[cfg(test)]
mod tests {
    use orlop_testkit::mounts::{Cleaned, mounted};
    use orlop_testkit::process::need_root;

    use super::*;

    /// Killed between mapping an overlayfs's layers and mounting it.
    #[test]
    fn mapped_layers_that_were_left_are_unmounted_too() {
        if !need_root() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().canonicalize().unwrap().join("7");
        let _cleaned = Cleaned(directory.clone());
        let layer = scratch.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        for name in ["0", "1.0", "1.1", "1.10", "1"] {
            std::fs::create_dir_all(directory.join(name)).unwrap();
            rustix::mount::mount_bind(&layer, directory.join(name)).unwrap();
        }
        deactivate(&directory).unwrap();
        assert!(mounted(&directory).is_empty() && !directory.exists());
    }
}
