//! Owner, extended attributes, mode and times of what was just made, with as few system calls as the case allows.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::Time;
use super::entry::Metadata;
use crate::fs::xattr;

/// Attributes whose setting makes later children inherit; set when the layer is complete.
const INHERITED_XATTR: &[u8] = b"system.posix_acl_default";
const ACCESS_ACL_XATTR: &[u8] = b"system.posix_acl_access";

/// What giving an owner is called in error messages.
pub(super) const GIVE_OWNER: &str = "give an owner to";

/// Something made: by its own descriptor, or by its directory's and its name.
#[derive(Clone, Copy)]
pub(super) enum Made<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a [u8]),
}

/// Which call on which attribute failed.
pub(super) struct Failure {
    pub(super) operation: &'static str,
    pub(super) errno: Errno,
}

fn failed(operation: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure { operation, errno }
}

/// What new files of this process get by themselves, and what it may change.
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
    umask: u32,
    squash: bool,
}

impl Owner {
    pub(super) fn current(squash: bool) -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { uid, gid, umask: umask(), squash }
    }

    /// Whether this process may use directories whatever their mode.
    pub(super) fn is_privileged(&self) -> bool {
        self.uid == 0
    }

    /// The mode that a file has after `open` or `mkdir` was given `mode`.
    pub(super) fn created_mode(&self, mode: u32) -> u32 {
        mode & 0o777 & !self.umask
    }

    /// Sets owner, extended attributes and mode. `setgid`: the directory hands its group down; `has_mode`: what the
    /// file has now; `None`: a symbolic link, which has no mode of its own.
    pub(super) fn set(
        &self,
        made: Made<'_>,
        wanted: &Metadata,
        setgid: bool,
        has_mode: Option<u32>,
    ) -> Result<(), Failure> {
        let (uid, gid) = self.wanted(wanted);
        let chowned = setgid || (uid, gid) != (self.uid, self.gid);
        if chowned {
            chown(made, uid, gid).map_err(failed(GIVE_OWNER))?;
        }
        let mut has_acl = false;
        for (name, value) in &wanted.xattrs {
            has_acl |= name == ACCESS_ACL_XATTR;
            if name != INHERITED_XATTR {
                set_xattr(made, name, value)?;
            }
        }
        match has_mode {
            Some(mode) if has_acl || mode != wanted.mode => chmod(made, wanted.mode).map_err(failed("set the mode of")),
            _ => Ok(()),
        }
    }

    /// The owner that an entry's file gets.
    pub(super) fn wanted(&self, metadata: &Metadata) -> (u32, u32) {
        if self.squash { (self.uid, self.gid) } else { (metadata.uid, metadata.gid) }
    }
}

/// The operation that a file system refuses when a file has too many.
pub(super) const SET_XATTR: &str = "set an extended attribute of";

/// Sets an extended attribute; a file system that has none of its kind keeps the file without it, as containerd does.
pub(super) fn set_xattr(made: Made<'_>, name: &[u8], value: &[u8]) -> Result<(), Failure> {
    let (dir, file) = made.for_xattr();
    match xattr::set(dir, file, name, value) {
        Err(Errno::NOTSUP) => {
            tracing::warn!(name = %String::from_utf8_lossy(name), "extended attribute not supported here: left out");
            Ok(())
        }
        other => other.map_err(failed(SET_XATTR)),
    }
}

/// Sets the attribute that [`Owner::set`] leaves out.
pub(super) fn inherited_xattr(metadata: &Metadata) -> Option<&[u8]> {
    metadata.xattrs.iter().find(|(name, _)| name == INHERITED_XATTR).map(|(_, value)| value.as_slice())
}

/// Sets what [`inherited_xattr`] found.
pub(super) fn set_inherited_xattr(made: Made<'_>, value: &[u8]) -> Result<(), Failure> {
    set_xattr(made, INHERITED_XATTR, value)
}

impl<'a> Made<'a> {
    fn for_xattr(self) -> (BorrowedFd<'a>, &'a [u8]) {
        match self {
            Self::Open(fd) => (fd, b""),
            Self::Named(dir, name) => (dir, name),
        }
    }
}

pub(super) fn chown(made: Made<'_>, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match made {
        Made::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Made::Named(dir, name) => rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
    }
}

/// Sets the mode; of a name, only where it is known to be no symbolic link.
pub(super) fn chmod(made: Made<'_>, mode: u32) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match made {
        Made::Open(fd) => rustix::fs::fchmod(fd, mode),
        Made::Named(dir, name) => rustix::fs::chmodat(dir, name, mode, AtFlags::empty()),
    }
}

pub(super) fn set_times(made: Made<'_>, atime: Time, mtime: Time) -> rustix::io::Result<()> {
    let spec = |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    match made {
        Made::Open(fd) => rustix::fs::futimens(fd, &times),
        Made::Named(dir, name) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    }
}

/// Sets the times of `name` in `dir`, itself if it is a link.
pub(crate) fn set_times_of(dir: BorrowedFd<'_>, name: &[u8], atime: Time, mtime: Time) -> rustix::io::Result<()> {
    set_times(Made::Named(dir, name), atime, mtime)
}

/// Gives a file all that the entry of a hard link to it says.
pub(crate) fn describe_link(
    dir: BorrowedFd<'_>,
    name: &[u8],
    wanted: &Metadata,
    is_link: bool,
) -> rustix::io::Result<()> {
    let made = Made::Named(dir, name);
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let chowned = (wanted.uid, wanted.gid) != (stat.st_uid, stat.st_gid);
    if chowned {
        chown(made, wanted.uid, wanted.gid)?;
    }
    for (attribute, value) in &wanted.xattrs {
        set_xattr(made, attribute, value).map_err(|failure| failure.errno)?;
    }
    if !is_link && (chowned || stat.st_mode & 0o7777 != wanted.mode) {
        chmod(made, wanted.mode)?;
    }
    set_times(made, wanted.atime, wanted.mtime)
}

/// The process's file mode mask. All bits if it cannot be read: then every mode is set explicitly.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    field.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}
