//! `ROOT/daemon.lock`: whether a daemon serves a root, and where it listens.
//!
//! The daemon holds the file locked (flock, exclusive) for as long as it serves; the file says its PID and its socket as
//! JSON. A command that would open the root looks here first and joins the daemon instead. The lock alone says that the
//! daemon runs, so what a killed one left in the file misleads nobody.
//!
//! # Invariants
//! - At most one daemon serves a root.
//! - The file is written after the socket takes connections; a locked file without a socket is a daemon that starts.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Class, CliError, Result};

/// How long a daemon may take from locking the root to listening; a large database is checked within.
const STARTING: Duration = Duration::from_secs(30);

/// How long commands that only look may keep a daemon from taking the lock. Each has it for an instant.
const LOOKING: Duration = Duration::from_secs(2);

const STEP: Duration = Duration::from_millis(20);

/// The daemon of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Its process.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// A root that this process serves.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
    path: PathBuf,
}

fn path(root: &Path) -> PathBuf {
    root.join("daemon.lock")
}

impl Held {
    /// Becomes the daemon of a root.
    ///
    /// # Errors
    /// [`Class::Conflict`] if there is one already.
    pub(crate) fn take(root: &Path) -> Result<Self> {
        let path = path(root);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(CliError::at("open", &path))?;
        let deadline = Instant::now() + LOOKING;
        while !try_lock(&file, FlockOperation::NonBlockingLockExclusive, &path)? {
            if Instant::now() >= deadline {
                return Err(served(root, read(&file, &path)?.as_ref()));
            }
            std::thread::sleep(STEP);
        }
        let held = Self { file, path };
        held.clear()?;
        Ok(held)
    }

    /// Says where the daemon listens, from now on.
    pub(crate) fn announce(&mut self, socket: &Path) -> Result<()> {
        let socket = std::path::absolute(socket).map_err(CliError::at("resolve", socket))?;
        let holder = Holder { pid: std::process::id(), socket };
        let text = serde_json::to_string(&holder).map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
        self.file.write_all(text.as_bytes()).map_err(CliError::at("write", &self.path))
    }

    fn clear(&self) -> Result<()> {
        self.file.set_len(0).map_err(CliError::at("write", &self.path))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Only for people who look into the file: the lock goes with it.
        let _ = self.clear();
    }
}

/// The daemon that serves a root; waits for one that is starting.
pub(crate) fn find(root: &Path) -> Result<Option<Holder>> {
    let path = path(root);
    // Without a root there is no daemon; what else is wrong with the root, opening it tells.
    let Ok(file) = File::open(&path) else { return Ok(None) };
    let deadline = Instant::now() + STARTING;
    loop {
        if try_lock(&file, FlockOperation::NonBlockingLockShared, &path)? {
            return Ok(None);
        }
        if let Some(holder) = read(&file, &path)? {
            return Ok(Some(holder));
        }
        if Instant::now() >= deadline {
            return Err(CliError::new(
                Class::Unavailable,
                format!("the daemon of {} has been starting for {} s", root.display(), STARTING.as_secs()),
            )
            .hint("look at its log"));
        }
        std::thread::sleep(STEP);
    }
}

fn try_lock(file: &File, operation: FlockOperation, path: &Path) -> Result<bool> {
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(CliError::io("lock", Some(path), errno.into())),
    }
}

/// What the file says; `None` while a daemon starts.
fn read(mut file: &File, path: &Path) -> Result<Option<Holder>> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(CliError::at("read", path))?;
    Ok(serde_json::from_str(&text).ok())
}

fn served(root: &Path, holder: Option<&Holder>) -> CliError {
    let by = holder.map(|h| format!(" by process {} on {}", h.pid, h.socket.display())).unwrap_or_default();
    CliError::new(Class::Conflict, format!("{} is served already{by}", root.display()))
        .hint("stop that daemon, or give another --root DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_and_it_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        let mut held = Held::take(dir.path()).unwrap();
        held.announce(Path::new("/run/x.sock")).unwrap();
        let found = find(dir.path()).unwrap().unwrap();
        assert_eq!(found, Holder { pid: std::process::id(), socket: "/run/x.sock".into() });
        let refused = Held::take(dir.path()).unwrap_err();
        assert!(refused.class == Class::Conflict && refused.message.contains("/run/x.sock"), "{refused}");
        drop(held);
        assert_eq!(find(dir.path()).unwrap(), None);
    }

    #[test]
    fn what_a_killed_daemon_left_misleads_nobody() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), r#"{"pid":1,"socket":"/run/x.sock"}"#).unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        let _held = Held::take(dir.path()).unwrap();
        assert_eq!(std::fs::read(path(dir.path())).unwrap(), b"");
    }
}
