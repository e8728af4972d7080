//! Mounts whose users are mapped: options `uidmap=` and `gidmap=`, each `ON-DISK:SHOWN:COUNT[,…]`.
//!
//! The kernel takes a mapping in the form of a user namespace, and a user namespace with somebody in it: a child that waits
//! until its maps are written and the namespace is open, and is killed then.
//!
//! # Invariants
//! - No child outlasts the call that made it, or the thread that called.
//! - No child has open what this process has: whatever other threads hold and let go meanwhile, mounts among it, is let go.
//! - What cannot be mapped is not mounted instead: whoever asked for other owners does not get the ones on disk.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};
use rustix::process::{Pid, Signal, WaitOptions};

use super::{bad, permitted};
use crate::error::At as _;
use crate::{Error, Result};

const USERS: &str = "uidmap=";
const GROUPS: &str = "gidmap=";

/// The option of overlayfs whose directories are mapped.
const LOWER: &str = "lowerdir=";

/// What was done when it failed.
const MAPPING: &str = "map the users of";

/// What is asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    users: String,
    groups: String,
}

impl Asked {
    /// Takes an option, if it is one of these; the last one of a kind is right.
    pub(super) fn take(&mut self, option: &str) -> bool {
        let (list, value) = if let Some(value) = option.strip_prefix(USERS) {
            (&mut self.users, value)
        } else if let Some(value) = option.strip_prefix(GROUPS) {
            (&mut self.groups, value)
        } else {
            return false;
        };
        value.clone_into(list);
        true
    }

    /// The mapping that was asked for. One of users or of groups alone is none, as in containerd.
    ///
    /// # Errors
    /// If it is malformed, or the kernel does not take it or may not be asked.
    pub(super) fn mapping(&self) -> Result<Option<Mapping>> {
        if self.users.is_empty() || self.groups.is_empty() {
            return Ok(None);
        }
        let maps = [("uid_map", lines(USERS, &self.users)?), ("gid_map", lines(GROUPS, &self.groups)?)];
        let child = Child::new()?;
        for (name, lines) in maps {
            let file = child.proc(name);
            match std::fs::write(&file, &lines) {
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    let lines = lines.trim_end().replace('\n', ", ");
                    return Err(bad(format!(
                        "{name} {lines}: the kernel refuses it: no two ranges may have a number in common, none may be \
                         empty or go beyond {}, and there may be 340 of them",
                        u32::MAX - 1
                    )));
                }
                Err(error) => return Err(error).at("write", file),
                Ok(()) => {}
            }
        }
        let namespace = child.proc("ns/user");
        Ok(Some(Mapping { namespace: File::open(&namespace).at("open", namespace)?.into() }))
    }
}

/// What the kernel reads: a range a line.
fn lines(option: &str, list: &str) -> Result<String> {
    let wrong =
        || bad(format!("option \"{option}{list}\": expected {option}ON-DISK:SHOWN:COUNT[,ON-DISK:SHOWN:COUNT]…"));
    let mut lines = String::new();
    for range in list.split(',') {
        let numbers: Vec<u32> = range.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let [on_disk, shown, count] = numbers[..] else { return Err(wrong()) };
        lines.push_str(&format!("{on_disk} {shown} {count}\n"));
    }
    Ok(lines)
}

/// A process in a user namespace of its own that does nothing, until this is dropped.
struct Child {
    pid: Pid,
}

impl Child {
    fn new() -> Result<Self> {
        let us = rustix::process::getpid();
        // With descriptors of its own it would keep busy what other threads are about to unmount, and locked what they unlock.
        let flags = i64::from(libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD);
        // SAFETY: without a stack or memory that is shared the call is what fork(2) is: the child has a copy of this process with
        // this thread alone, and its table of descriptors, which it does not touch. Other threads may have held any lock, so it must
        // not allocate or call what may; it makes a few bare system calls and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if pid == 0 {
            child(us);
        }
        let what = "make a user namespace for";
        if pid < 0 {
            let error = std::io::Error::last_os_error();
            return match Errno::from_io_error(&error) {
                Some(Errno::NOSPC | Errno::USERS) => Err(unsupported(format!(
                    "no user namespace can be made ({error}): raise /proc/sys/user/max_user_namespaces"
                ))),
                Some(errno) => permitted(Err(errno), what, Path::new("this process")),
                None => Err(error).at(what, "this process"),
            };
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        Ok(Self { pid: pid.ok_or(Errno::SRCH).at(what, "this process")? })
    }

    fn proc(&self, name: &str) -> PathBuf {
        format!("/proc/{}/{name}", self.pid.as_raw_nonzero()).into()
    }
}

/// Waits to be killed, by the thread that made it or because that is gone.
fn child(parent: Pid) -> ! {
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    while bound.is_ok() && rustix::process::getppid() == Some(parent) {
        // A signal that this program listens to wakes it; it is not meant.
        // SAFETY: it takes nothing, and waits in the kernel alone.
        unsafe { libc::pause() };
    }
    // SAFETY: it ends this process at once, and touches nothing of it.
    unsafe { libc::_exit(1) }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It is ours and was not waited for: the number is nobody else's.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        while matches!(rustix::process::waitpid(Some(self.pid), WaitOptions::empty()), Err(Errno::INTR)) {}
    }
}

/// A mapping of users and groups.
#[derive(Debug)]
pub(super) struct Mapping {
    namespace: OwnedFd,
}

impl Mapping {
    /// Maps what is mounted on `point`, with all below it.
    ///
    /// # Errors
    /// Then it may still be mounted there as it was.
    pub(super) fn remount(&self, point: &Path) -> Result<()> {
        let tree = self.clone_of(point, OpenTreeFlags::AT_RECURSIVE)?;
        // The clone keeps it, and nobody finds the other owners below it.
        rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).at("unmount", point)?;
        attach(&tree, point)
    }

    /// Maps a mount that is nowhere yet, which is to be attached to `point`.
    pub(super) fn apply(&self, tree: impl AsFd, point: &Path) -> Result<()> {
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: libc::MS_PRIVATE,
            userns_fd: self.namespace.as_raw_fd() as u64,
        };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the kernel reads an empty string and a `struct mount_attr` of the size it is told, both of which outlast the
        // call, as do the two descriptors; it writes nothing.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_fd().as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        };
        if done == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        match Errno::from_io_error(&error) {
            Some(Errno::NOSYS) => {
                Err(unsupported("the kernel has no mount_setattr(2): use Linux 5.12 or later".into()))
            }
            Some(Errno::INVAL) => Err(unsupported(format!(
                "the file system of {}, or one below it, cannot do it with this kernel (proc, sysfs, overlayfs and most of \
                 fuse cannot at all): mount it without {USERS} and {GROUPS}",
                point.display()
            ))),
            Some(Errno::PERM) => {
                let what = "Operation not permitted: users are mapped there already, or this process may not map them, which \
                            takes root";
                Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, what)).at(MAPPING, point)
            }
            _ => Err(error).at(MAPPING, point),
        }
    }

    fn clone_of(&self, tree: &Path, recursive: OpenTreeFlags) -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive;
        let clone = match open_tree(CWD, tree, flags) {
            Err(Errno::NOSYS) => {
                return Err(unsupported("the kernel has no open_tree(2): use Linux 5.12 or later".into()));
            }
            other => permitted(other, MAPPING, tree)?,
        };
        self.apply(&clone, tree)?;
        Ok(clone)
    }
}

fn attach(tree: &OwnedFd, point: &Path) -> Result<()> {
    permitted(move_mount(tree, c"", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH), "mount on", point)
}

fn unsupported(reason: String) -> Error {
    Error::Unsupported { what: "a mount with mapped users", reason }
}

/// The layers of an overlayfs, mapped one by one: it cannot be itself. They are mounted beside its mount point, under its name
/// with a number after it, until this is dropped; the overlayfs that was mounted meanwhile keeps its own.
pub(super) struct Layers {
    points: Vec<PathBuf>,
}

impl Layers {
    /// Maps what the option `lowerdir=` names, and names in its place what came of it.
    ///
    /// # Errors
    /// Then nothing is left.
    pub(super) fn map(mapping: &Mapping, options: &mut [String], point: &Path) -> Result<Self> {
        let mut lower = options.iter_mut().rev().filter(|option| option.starts_with(LOWER));
        let (Some(lower), None) = (lower.next(), lower.next()) else {
            return Err(bad(format!(
                "an overlay with {USERS} and {GROUPS} maps what is in {LOWER}: give that option once"
            )));
        };
        let mut layers = Self { points: Vec::new() };
        let mut named = Vec::new();
        for (at, layer) in lower[LOWER.len()..].split(':').enumerate() {
            let mut beside = point.as_os_str().to_owned();
            beside.push(format!(".{at}"));
            let beside = PathBuf::from(beside);
            let tree = mapping.clone_of(Path::new(layer), OpenTreeFlags::empty())?;
            std::fs::create_dir(&beside).at("make the directory", &beside)?;
            layers.points.push(beside.clone());
            attach(&tree, &beside)?;
            named.push(beside.display().to_string());
        }
        *lower = format!("{LOWER}{}", named.join(":"));
        Ok(layers)
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for point in self.points.iter().rev() {
            // What stays is found when the activation ends, or failed.
            let _ = rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(point);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(options: &[&str]) -> Asked {
        let mut asked = Asked::default();
        assert!(options.iter().all(|option| asked.take(option)));
        asked
    }

    /// A child that another thread needs kept a copy of every descriptor, and with that a mount busy that was just made.
    #[test]
    fn a_child_keeps_no_mount_busy() {
        if !orlop_testkit::process::need_root() {
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let point = scratch.path().canonicalize().unwrap().join("point");
        std::fs::create_dir(&point).unwrap();
        let _cleaned = orlop_testkit::mounts::Cleaned(point.clone());
        let mapping = asked(&["uidmap=0:1000:1", "gidmap=0:1000:1"]).mapping().unwrap().unwrap();
        let tree = mapping.clone_of(scratch.path(), OpenTreeFlags::empty()).unwrap();
        let child = Child::new().unwrap();
        attach(&tree, &point).unwrap();
        drop(tree);
        // Programs that other tests are just starting have copies of the descriptors too, until they run; the child would have them for ever.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while let Err(errno) = rustix::mount::unmount(&point, UnmountFlags::NOFOLLOW) {
            assert!(errno == rustix::io::Errno::BUSY && std::time::Instant::now() < deadline, "{errno}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(child);
    }

    #[test]
    fn ranges_are_told_to_the_kernel_line_by_line_and_the_last_option_is_right() {
        let found = asked(&["uidmap=7", "gidmap=0:1:2", "uidmap=0:1000:2,5:+7:1"]);
        assert_eq!(lines(USERS, &found.users).unwrap(), "0 1000 2\n5 7 1\n");
        assert_eq!(lines(GROUPS, &found.groups).unwrap(), "0 1 2\n");
        assert!(!Asked::default().take("mode=700"));
    }

    #[test]
    fn what_is_no_range_is_refused_by_its_option() {
        for list in ["0:1", "0:1:2:3", "a:1:1", "0:-1:1", "0:1:4294967296", "0:1:1,", "0: 1:1", "0:1:1;2:3:1"] {
            let told = asked(&["gidmap=0:0:1", &format!("{USERS}{list}")]).mapping().unwrap_err().to_string();
            assert!(told.contains(&format!("\"{USERS}{list}\"")) && told.contains("ON-DISK:SHOWN:COUNT"), "{told}");
        }
    }

    #[test]
    fn one_of_both_is_none() {
        for options in [&["uidmap=0:0:1"][..], &["gidmap=nonsense"], &["uidmap=0:0:1", "gidmap="], &[]] {
            assert!(asked(options).mapping().unwrap().is_none(), "{options:?}");
        }
    }
}
