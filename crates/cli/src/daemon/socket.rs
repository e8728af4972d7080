//! The daemon's socket file.
//!
//! # Invariants
//! - A path on which somebody answers is never taken away from him; one that a killed daemon left is.
//! - Who binds a path holds `PATH.lock` (flock) from before he looks until he ends, so two daemons that start at once
//!   cannot both find the path free.
//! - At its end a daemon removes the socket only if it is still the one it made.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};

use crate::error::{Class, CliError, Result};

/// The longest path that the kernel takes, without the byte at its end.
const MAX_PATH_BYTES: usize = 107;

/// Who may connect.
#[derive(Debug)]
pub(super) struct Access {
    mode: u32,
    group: Option<u32>,
}

impl Access {
    /// A mode in octal digits, and a group by name or number.
    pub(super) fn new(mode: &str, group: Option<&str>) -> Result<Self> {
        let mode = crate::config::mode(mode)
            .ok_or_else(|| CliError::new(Class::Usage, format!("{mode:?}: expected an octal mode like 0660")))?;
        Ok(Self { mode, group: group.map(group_number).transpose()? })
    }

    fn give(&self, path: &Path) -> Result<()> {
        if let Some(group) = self.group {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(CliError::at("give to the group", path))?;
        }
        let permissions = std::fs::Permissions::from_mode(self.mode);
        std::fs::set_permissions(path, permissions).map_err(CliError::at("set the mode of", path))
    }
}

/// Looks a group up in `/etc/group`; what another service knows has a number, too.
fn group_number(name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let path = Path::new("/etc/group");
    let text = std::fs::read_to_string(path).map_err(CliError::at("read", path))?;
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    number.ok_or_else(|| {
        CliError::new(Class::NotFound, format!("group {name:?} is not in /etc/group"))
            .hint(format!("make it with `groupadd --system {name}`, or give its number"))
    })
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// (device, inode) of the file that was made.
    file: (u64, u64),
    _lock: File,
}

impl Socket {
    /// Binds a path, in the place of what a killed daemon left there.
    pub(super) fn bind(path: &Path, access: &Access) -> Result<(Self, UnixListener)> {
        let length = path.as_os_str().len();
        if length > MAX_PATH_BYTES {
            return Err(CliError::new(
                Class::Usage,
                format!(
                    "socket {}: the path has {length} bytes, at most {MAX_PATH_BYTES} are possible",
                    path.display()
                ),
            )
            .hint("give a shorter --socket PATH"));
        }
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty() && !d.is_dir()) {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(directory);
            made.map_err(CliError::at("create", directory))?;
        }
        let lock = lock(path)?;
        clear(path)?;
        // Until it has its mode, nobody but the owner may connect.
        let before = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(CliError::at("listen on", path))?;
        let file = place(path).map_err(CliError::at("listen on", path))?;
        access.give(path)?;
        Ok((Self { path: path.to_owned(), file, _lock: lock }, listener))
    }

    /// Removes the file, unless it has become somebody else's.
    pub(super) fn remove(&self) {
        if place(&self.path).is_ok_and(|found| found == self.file) {
            // Somebody who removed it first did what was to be done.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn place(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn taken(path: &Path) -> CliError {
    CliError::new(Class::Conflict, format!("socket {}: another daemon serves it", path.display()))
        .hint("stop that daemon, or give another --socket PATH")
}

/// Takes the lock beside a socket for as long as the file is open. It is never removed: who waited for a removed one
/// would hold nothing.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = File::options().create(true).truncate(false).write(true).open(&name);
    let file = file.map_err(CliError::at("open", &name))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(taken(path)),
        Err(errno) => Err(CliError::io("lock", Some(&name), errno.into())),
    }
}

/// Removes what is left of a daemon that is gone.
fn clear(path: &Path) -> Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(CliError::at("look at", path))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(CliError::new(Class::Conflict, format!("{} exists and is no socket", path.display()))
            .hint("remove it, or give another --socket PATH"));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(CliError::at("remove", path))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // One that answers, is too busy to, or may not be asked has an owner.
        _ => Err(taken(path)),
    }
}
