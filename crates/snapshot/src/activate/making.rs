//! One mount on one directory.

use std::path::{Component, Path};

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::idmap::{Layers, Mapping};
use super::options::Options;
use super::{Wanted, bad, erofs, fuse, loops, not_here, options, permitted};
use crate::{Mount, Result};

/// The most bytes of options that mount(2) takes: a page with its terminating zero.
const MAX_DATA: usize = 4095;

/// Mounts it, and says what it was mounted from and with which options.
pub(super) fn mount_on(mount: Wanted, point: &Path) -> Result<Wanted> {
    // The mount point is new and empty: nothing is below it.
    if Path::new(&mount.target).components().any(|part| !matches!(part, Component::RootDir | Component::CurDir)) {
        return Err(not_here(format!(
            "a mount below the mount point, at {:?}, is not made by this server",
            mount.target
        )));
    }
    if mount.kind == erofs::KIND {
        return erofs::mount_on(&mount, point);
    }
    if let Some(helper) = fuse::helper(&mount.kind) {
        fuse::mount_on(&mount, helper, point)?;
        return Ok(mount);
    }
    let options = options::parse(&mount.options)?;
    let mapping = options.mapped.mapping()?;
    if mount.kind == "overlay" && !options.looped && !options.flags.contains(MountFlags::BIND) {
        overlay_on(&mount, &options, mapping.as_ref(), point)?;
        return Ok(mount);
    }
    if mount.kind == "bind" || options.flags.contains(MountFlags::BIND) {
        bind_on(&mount, &options, point)?;
    } else {
        system_on(&mount, &options, point)?;
    }
    if let Some(mapping) = mapping {
        mapping.remount(point)?;
    }
    Ok(mount)
}

fn system_on(mount: &Wanted, options: &Options, point: &Path) -> Result<()> {
    let data = options.data.join(",");
    if data.len() > MAX_DATA {
        return Err(bad(format!("its options have {} bytes: mount(2) takes {MAX_DATA}", data.len())));
    }
    let data = std::ffi::CString::new(data).map_err(|_| bad("an option has a zero byte".into()))?;
    let mut source = Path::new(&mount.source);
    // Until it is mounted; then the mount keeps it.
    let device;
    if options.looped {
        device = loops::attach(source, options.flags.contains(MountFlags::RDONLY), options.direct)?;
        source = device.path();
    }
    let mounted = rustix::mount::mount(source, point, mount.kind.as_str(), options.flags, data.as_c_str());
    permitted(mounted, "mount on", point)
}

/// Flags other than read-only are the mount's; overlayfs knows none of them.
fn overlay_on(mount: &Wanted, parsed: &Options, mapping: Option<&Mapping>, point: &Path) -> Result<()> {
    let mut options = parsed.data.clone();
    // Until it is mounted.
    let _layers = mapping.map(|mapping| Layers::map(mapping, &mut options, point)).transpose()?;
    let mut flags = parsed.flags;
    if flags.contains(MountFlags::RDONLY) {
        options.push("ro".into());
    }
    let overlay = Mount { kind: mount.kind.clone(), source: mount.source.clone(), options };
    match crate::mount_all(&[overlay], point) {
        Err(crate::Error::Io { operation, source, .. })
            if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) =>
        {
            permitted(Err(Errno::PERM), operation, point)?;
        }
        other => other?,
    }
    flags.remove(MountFlags::RDONLY);
    reflagged(point, flags, parsed.flags)
}

fn bind_on(mount: &Wanted, options: &Options, point: &Path) -> Result<()> {
    let bind = options.flags & (MountFlags::BIND | MountFlags::REC) | MountFlags::BIND;
    permitted(rustix::mount::mount(mount.source.as_str(), point, "", bind, None), "bind-mount on", point)?;
    let flags = options.flags.difference(MountFlags::BIND | MountFlags::REC);
    reflagged(point, flags, flags)
}

/// Sets `all` flags of a mount, if there are `any` that it has not yet.
fn reflagged(point: &Path, any: MountFlags, all: MountFlags) -> Result<()> {
    if any.is_empty() {
        return Ok(());
    }
    permitted(rustix::mount::mount_remount(point, MountFlags::BIND | all, c""), "change the flags of", point)
}
