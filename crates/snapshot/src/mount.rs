//! Mounting what the drivers describe.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind_recursive, mount_remount, move_mount,
};

use crate::error::At as _;
use crate::overlay::unsupported;
use crate::{Mount, Result, fs};

/// The most bytes of options that mount(2) takes: a page with its terminating zero.
const MAX_OPTIONS: usize = 4095;
/// The longest value that fsconfig(2) takes.
const MAX_VALUE: usize = 255;

/// A bind mount, as containerd's snapshotters describe it.
pub(crate) fn bind(source: &Path, writable: bool) -> Vec<Mount> {
    let access = if writable { "rw" } else { "ro" };
    let options = vec![access.to_owned(), "rbind".to_owned()];
    vec![Mount { kind: "bind".to_owned(), source: source.display().to_string(), options }]
}

/// Mounts all of `mounts` on `target`, one over the other.
///
/// # Errors
/// If one fails; those before it are unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            for _ in 0..done {
                // The first failure is the one to report.
                let _ = unmount(target);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Unmounts what is topmost on `target`.
pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW).at("unmount", target)
}

fn mount_one(mount: &Mount, target: &Path) -> Result<()> {
    match mount.kind.as_str() {
        "bind" => bind_on(mount, target),
        "overlay" => overlay_on(mount, target),
        other => Err(crate::Error::Unsupported {
            what: "this mount",
            reason: format!("kind {other:?}: bind and overlay are known"),
        }),
    }
}

fn bind_on(mount: &Mount, target: &Path) -> Result<()> {
    mount_bind_recursive(mount.source.as_str(), target).at("bind-mount on", target)?;
    if mount.options.iter().any(|option| option == "ro") {
        let remounted = mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"");
        if remounted.is_err() {
            // Writable is not what was asked for: better none.
            let _ = unmount(target);
        }
        return remounted.at("make read-only", target);
    }
    Ok(())
}

fn overlay_on(mounted: &Mount, target: &Path) -> Result<()> {
    let data = mounted.options.join(",");
    if data.len() <= MAX_OPTIONS {
        return mount("overlay", target, "overlay", MountFlags::empty(), options_c_str(&data)?.as_c_str())
            .at("mount overlayfs on", target);
    }
    match overlay_by_layers(&mounted.options) {
        Ok(tree) => attach(tree.as_fd(), target),
        // Before Linux 6.8 layers cannot be added one by one.
        Err(Errno::INVAL | Errno::NOSYS) => overlay_by_descriptors(&mounted.options, target),
        Err(error) => Err(error).at("mount overlayfs on", target),
    }
}

fn options_c_str(data: &str) -> Result<std::ffi::CString> {
    std::ffi::CString::new(data).map_err(|_| unsupported("a mount option has a zero byte".into()))
}

fn attach(tree: BorrowedFd<'_>, target: &Path) -> Result<()> {
    move_mount(tree, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("mount overlayfs on", target)
}

/// Configures overlayfs one layer at a time, which has no limit on the sum.
fn overlay_by_layers(options: &[String]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options {
        match option.split_once('=') {
            None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    set_short(context.as_fd(), "lowerdir+", layer)?;
                }
            }
            Some((name, value)) => set_short(context.as_fd(), name, value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn set_short(context: BorrowedFd<'_>, name: &str, value: &str) -> rustix::io::Result<()> {
    if value.len() > MAX_VALUE {
        return Err(Errno::INVAL);
    }
    fsconfig_set_string(context, name, value)
}

/// Names the layers by open descriptors, which are short.
fn overlay_by_descriptors(options: &[String], target: &Path) -> Result<()> {
    let mut open = Vec::new();
    let mut short = Vec::new();
    for option in options {
        short.push(match option.split_once('=') {
            Some((name @ ("lowerdir" | "upperdir" | "workdir"), paths)) => {
                let mut names = Vec::new();
                for path in paths.split(':') {
                    let dir = fs::open_dir(Path::new(path)).at("open", path)?;
                    names.push(format!("/proc/self/fd/{}", dir.as_raw_fd()));
                    open.push(dir);
                }
                format!("{name}={}", names.join(":"))
            }
            _ => option.clone(),
        });
    }
    let data = short.join(",");
    if data.len() > MAX_OPTIONS {
        return Err(unsupported(format!(
            "{} layers are too many for this kernel's mount(2); Linux 6.8 takes more",
            open.len()
        )));
    }
    mount("overlay", target, "overlay", MountFlags::empty(), options_c_str(&data)?.as_c_str())
        .at("mount overlayfs on", target)
}

/// A mount on a directory of its own that goes when this is dropped.
#[derive(Debug)]
pub struct TempMount {
    path: PathBuf,
    mounted: usize,
}

impl TempMount {
    /// Mounts `mounts` on a new directory in `parent`.
    pub fn new(mounts: &[Mount], parent: &Path) -> Result<Self> {
        let path = unique_dir(parent)?;
        let mut guard = Self { path, mounted: 0 };
        mount_all(mounts, &guard.path)?;
        guard.mounted = mounts.len();
        Ok(guard)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempMount {
    fn drop(&mut self) {
        for _ in 0..self.mounted {
            if let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
                tracing::warn!(path = %self.path.display(), %error, "cannot unmount");
                return;
            }
        }
        // Never with its content: if it is still mounted, that is somebody's tree.
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn unique_dir(parent: &Path) -> Result<PathBuf> {
    static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    loop {
        let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = parent.join(format!("orlop-{}-{number}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).at("make the directory", path),
        }
    }
}

/// Tries a mount of overlayfs that is never attached anywhere.
pub(crate) fn probe_overlay(root: &Path, userxattr: bool) -> Result<()> {
    let dir = unique_dir(root)?;
    let tried = try_overlay(&dir, userxattr);
    let removed = std::fs::remove_dir_all(&dir).at("remove", &dir);
    tried.and(removed)
}

fn try_overlay(dir: &Path, userxattr: bool) -> Result<()> {
    let mut options = Vec::new();
    if userxattr {
        options.push("userxattr".to_owned());
    }
    for (option, name) in [("workdir", "work"), ("upperdir", "upper"), ("lowerdir", "lower")] {
        let path = dir.join(name);
        std::fs::create_dir(&path).at("make the directory", &path)?;
        options.push(format!("{option}={}", path.display()));
    }
    let target = dir.join("mounted");
    std::fs::create_dir(&target).at("make the directory", &target)?;
    let mounted = Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options };
    mount_all(std::slice::from_ref(&mounted), &target).map_err(|error| explain(&error, userxattr))?;
    unmount(&target)
}

fn explain(error: &crate::Error, userxattr: bool) -> crate::Error {
    let crate::Error::Io { source, .. } = error else { return unsupported(error.to_string()) };
    let errno = source.raw_os_error().unwrap_or_default();
    let reason = if errno == Errno::PERM.raw_os_error() {
        "mounting is not permitted: run as root, or in a user and mount namespace of its own (unshare -Urm)"
    } else if errno == Errno::NODEV.raw_os_error() {
        "the kernel has no overlayfs: load the module (modprobe overlay), or use the native snapshotter"
    } else if userxattr {
        "in a user namespace overlayfs needs Linux 5.11 or later and a file system with user attributes; \
         or use the native snapshotter"
    } else {
        "the file system cannot carry it (it needs d_type and extended attributes, and may not be overlayfs itself): \
         use another for the store, or the native snapshotter"
    };
    unsupported(format!("{source}; {reason}"))
}
