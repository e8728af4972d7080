//! The calls that are asked about: by which arguments they name files, and what they do, from which follows how they can fail.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Site;
use super::notify::Asked;

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Role {
    /// It gives a directory a name.
    pub(super) makes: bool,
    /// It may take blocks.
    pub(super) grows: bool,
    /// It changes anything else.
    pub(super) changes: bool,
    pub(super) syncs: bool,
    /// It may have to ask the disk.
    pub(super) reads: bool,
    /// It opens for writing.
    pub(super) writable: bool,
    /// It makes a descriptor.
    pub(super) descriptor: bool,
}

const NONE: Role =
    Role { makes: false, grows: false, changes: false, syncs: false, reads: false, writable: false, descriptor: false };
const MAKES: Role = Role { makes: true, ..NONE };
const GROWS: Role = Role { grows: true, ..NONE };
const CHANGES: Role = Role { changes: true, ..NONE };
const SYNCS: Role = Role { syncs: true, ..NONE };
const READS: Role = Role { reads: true, ..NONE };
const DESCRIPTOR: Role = Role { descriptor: true, ..NONE };

/// By what a call says which file it is about.
#[derive(Debug, Clone, Copy)]
enum Names {
    /// A descriptor.
    Open(usize),
    /// A path.
    Path(usize),
    /// A directory's descriptor and a path.
    At(usize, usize),
    /// It is about no file.
    Nothing,
}

use Names::{At, Nothing, Open, Path as ByPath};

/// Number, name, by what it names its file (the one that comes to be, if there are two), what it does.
type Row = (libc::c_long, &'static str, Names, Role);

const OPENS: &str = "openat";

const EVERYWHERE: &[Row] = &[
    (libc::SYS_openat, OPENS, At(0, 1), DESCRIPTOR),
    (libc::SYS_openat2, "openat2", At(0, 1), DESCRIPTOR),
    (libc::SYS_mkdirat, "mkdirat", At(0, 1), MAKES),
    (libc::SYS_mknodat, "mknodat", At(0, 1), MAKES),
    (libc::SYS_linkat, "linkat", At(2, 3), MAKES),
    (libc::SYS_symlinkat, "symlinkat", At(1, 2), MAKES),
    (libc::SYS_renameat, "renameat", At(2, 3), MAKES),
    (libc::SYS_renameat2, "renameat2", At(2, 3), MAKES),
    (libc::SYS_unlinkat, "unlinkat", At(0, 1), CHANGES),
    (libc::SYS_write, "write", Open(0), GROWS),
    (libc::SYS_writev, "writev", Open(0), GROWS),
    (libc::SYS_pwrite64, "pwrite64", Open(0), GROWS),
    (libc::SYS_pwritev, "pwritev", Open(0), GROWS),
    (libc::SYS_pwritev2, "pwritev2", Open(0), GROWS),
    (libc::SYS_fallocate, "fallocate", Open(0), GROWS),
    (libc::SYS_ftruncate, "ftruncate", Open(0), GROWS),
    (libc::SYS_truncate, "truncate", ByPath(0), GROWS),
    (libc::SYS_copy_file_range, "copy_file_range", Open(2), GROWS),
    (libc::SYS_sendfile, "sendfile", Open(0), GROWS),
    (libc::SYS_fsync, "fsync", Open(0), SYNCS),
    (libc::SYS_fdatasync, "fdatasync", Open(0), SYNCS),
    (libc::SYS_syncfs, "syncfs", Open(0), SYNCS),
    (libc::SYS_sync_file_range, "sync_file_range", Open(0), SYNCS),
    (libc::SYS_fchmod, "fchmod", Open(0), CHANGES),
    (libc::SYS_fchmodat, "fchmodat", At(0, 1), CHANGES),
    (libc::SYS_fchown, "fchown", Open(0), CHANGES),
    (libc::SYS_fchownat, "fchownat", At(0, 1), CHANGES),
    (libc::SYS_utimensat, "utimensat", At(0, 1), CHANGES),
    (libc::SYS_setxattr, "setxattr", ByPath(0), GROWS),
    (libc::SYS_lsetxattr, "lsetxattr", ByPath(0), GROWS),
    (libc::SYS_fsetxattr, "fsetxattr", Open(0), GROWS),
    (libc::SYS_removexattr, "removexattr", ByPath(0), CHANGES),
    (libc::SYS_lremovexattr, "lremovexattr", ByPath(0), CHANGES),
    (libc::SYS_fremovexattr, "fremovexattr", Open(0), CHANGES),
    (libc::SYS_read, "read", Open(0), READS),
    (libc::SYS_readv, "readv", Open(0), READS),
    (libc::SYS_pread64, "pread64", Open(0), READS),
    (libc::SYS_preadv, "preadv", Open(0), READS),
    (libc::SYS_preadv2, "preadv2", Open(0), READS),
    (libc::SYS_getdents64, "getdents64", Open(0), READS),
    (libc::SYS_readlinkat, "readlinkat", At(0, 1), READS),
    (libc::SYS_statx, "statx", At(0, 1), READS),
    (libc::SYS_newfstatat, "newfstatat", At(0, 1), READS),
    (libc::SYS_fstat, "fstat", Open(0), READS),
    (libc::SYS_statfs, "statfs", ByPath(0), READS),
    (libc::SYS_fstatfs, "fstatfs", Open(0), READS),
    (libc::SYS_getxattr, "getxattr", ByPath(0), READS),
    (libc::SYS_lgetxattr, "lgetxattr", ByPath(0), READS),
    (libc::SYS_listxattr, "listxattr", ByPath(0), READS),
    (libc::SYS_llistxattr, "llistxattr", ByPath(0), READS),
    (libc::SYS_faccessat, "faccessat", At(0, 1), READS),
    (libc::SYS_faccessat2, "faccessat2", At(0, 1), READS),
    (libc::SYS_socket, "socket", Nothing, DESCRIPTOR),
    (libc::SYS_socketpair, "socketpair", Nothing, DESCRIPTOR),
    (libc::SYS_accept4, "accept4", Nothing, DESCRIPTOR),
    (libc::SYS_epoll_create1, "epoll_create1", Nothing, DESCRIPTOR),
    (libc::SYS_eventfd2, "eventfd2", Nothing, DESCRIPTOR),
    (libc::SYS_pipe2, "pipe2", Nothing, DESCRIPTOR),
    (libc::SYS_memfd_create, "memfd_create", Nothing, DESCRIPTOR),
    (libc::SYS_inotify_init1, "inotify_init1", Nothing, DESCRIPTOR),
    (libc::SYS_pidfd_open, "pidfd_open", Nothing, DESCRIPTOR),
    (libc::SYS_fsopen, "fsopen", Nothing, DESCRIPTOR),
    (libc::SYS_fsmount, "fsmount", Nothing, DESCRIPTOR),
    (libc::SYS_open_tree, "open_tree", Nothing, DESCRIPTOR),
];

/// What newer architectures no longer have.
#[cfg(target_arch = "x86_64")]
const BESIDES: &[Row] = &[
    (libc::SYS_open, "open", ByPath(0), DESCRIPTOR),
    (libc::SYS_creat, "creat", ByPath(0), Role { makes: true, descriptor: true, ..NONE }),
    (libc::SYS_mkdir, "mkdir", ByPath(0), MAKES),
    (libc::SYS_mknod, "mknod", ByPath(0), MAKES),
    (libc::SYS_link, "link", ByPath(1), MAKES),
    (libc::SYS_symlink, "symlink", ByPath(1), MAKES),
    (libc::SYS_rename, "rename", ByPath(1), MAKES),
    (libc::SYS_unlink, "unlink", ByPath(0), CHANGES),
    (libc::SYS_rmdir, "rmdir", ByPath(0), CHANGES),
    (libc::SYS_chmod, "chmod", ByPath(0), CHANGES),
    (libc::SYS_chown, "chown", ByPath(0), CHANGES),
    (libc::SYS_lchown, "lchown", ByPath(0), CHANGES),
    (libc::SYS_readlink, "readlink", ByPath(0), READS),
    (libc::SYS_stat, "stat", ByPath(0), READS),
    (libc::SYS_lstat, "lstat", ByPath(0), READS),
    (libc::SYS_access, "access", ByPath(0), READS),
];
#[cfg(not(target_arch = "x86_64"))]
const BESIDES: &[Row] = &[];

fn rows() -> impl Iterator<Item = &'static Row> {
    EVERYWHERE.iter().chain(BESIDES)
}

/// The numbers of all of them.
pub(super) fn numbers() -> impl Iterator<Item = u32> {
    rows().map(|row| row.0 as u32)
}

/// The call, if it is about a file below `root` or about none.
pub(super) fn site(asked: &Asked, root: &Path) -> Option<Site> {
    let (_, call, names, role) = *rows().find(|row| row.0 == libc::c_long::from(asked.number))?;
    let path = match names {
        Nothing => return Some(Site { call, path: PathBuf::new(), role }),
        Open(at) => asked.descriptor(at)?,
        ByPath(at) => asked.below(asked.current()?, at)?,
        At(directory, at) => asked.below(asked.directory(directory)?, at)?,
    };
    let path = path.strip_prefix(root).ok()?.to_owned();
    let role = match call {
        "open" | OPENS | "openat2" => opening(asked, call, &root.join(&path)),
        _ => role,
    };
    Some(Site { call, path, role })
}

/// What opening does depends on its flags, and on whether the file is there.
fn opening(asked: &Asked, call: &str, path: &Path) -> Role {
    let flags = match call {
        "open" => asked.arguments[1] as i32,
        OPENS => asked.arguments[2] as i32,
        // They are the first word of what the argument points at.
        _ => asked.word(2).unwrap_or(0) as i32,
    };
    Role {
        makes: flags & libc::O_TMPFILE == libc::O_TMPFILE || flags & libc::O_CREAT != 0 && !path.exists(),
        writable: flags & libc::O_ACCMODE != libc::O_RDONLY,
        reads: flags & libc::O_PATH == 0,
        descriptor: true,
        ..NONE
    }
}

impl Asked {
    fn link(&self, name: &str) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/{name}", self.thread)).ok()
    }

    fn current(&self) -> Option<PathBuf> {
        self.link("cwd")
    }

    /// What a descriptor is open on.
    fn descriptor(&self, at: usize) -> Option<PathBuf> {
        self.link(&format!("fd/{}", self.arguments[at] as i32)).filter(|path| path.is_absolute())
    }

    fn directory(&self, at: usize) -> Option<PathBuf> {
        if self.arguments[at] as i32 == libc::AT_FDCWD { self.current() } else { self.descriptor(at) }
    }

    /// A path as an argument has it; without one it is the directory itself that is meant.
    fn below(&self, directory: PathBuf, at: usize) -> Option<PathBuf> {
        if self.arguments[at] == 0 {
            return Some(directory);
        }
        let bytes = self.memory(self.arguments[at], libc::PATH_MAX as usize)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(directory.join(OsStr::from_bytes(&bytes[..end])))
    }

    fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.memory(self.arguments[at], size_of::<u64>())?;
        Some(u64::from_ne_bytes(bytes.get(..size_of::<u64>())?.try_into().ok()?))
    }
}
