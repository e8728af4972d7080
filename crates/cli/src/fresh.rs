//! A store that a command made and left empty, as a pull does that finds nothing: it is taken away again, so that it hides
//! nothing else and tells nobody that there is a store.
//!
//! # Invariants
//! - Only what this command made goes, and only if nothing is in it: no blob, no write that could be resumed, no snapshot, no
//!   change of a record.
//! - Nobody else has it open: whoever opens a root holds `ROOT/lock` (flock, shared) before its database, and here it is held
//!   exclusively. Directories go first, and with them what somebody is just beginning: that makes it fail, not be lost.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::find::places::Product;
use crate::find::{Reach, is_root};
use crate::settings::Settings;

/// How long what served the command in this process may take to let the store go.
const ENDING: Duration = Duration::from_secs(2);

const STEP: Duration = Duration::from_millis(10);

/// Files of a store that hold nothing that anybody kept; the one that makes it a store goes last but for the lock.
const FILES: &[&str] = &[
    "gc.lock",
    "daemon.lock",
    "reserve",
    "history.log",
    "meta.db-wal",
    "meta.db-shm",
    "meta.db-journal",
    "meta.db",
    "lock",
];

/// Directories of a store that has nothing in it, what is inside before what it is in.
const DIRECTORIES: &[&str] = &[
    "content/blobs/sha256",
    "content/blobs/sha512",
    "content/blobs",
    "content/ingest",
    "content",
    "snapshots/overlayfs",
    "snapshots/native",
    "snapshots/erofs",
    "snapshots",
    "mounts",
    "trash",
];

/// A root at which there is no store yet, before a command that makes one.
#[derive(Debug)]
pub(crate) struct Fresh {
    root: PathBuf,
    /// Whether its directory is not there either.
    with_directory: bool,
}

impl Fresh {
    /// Of a command that makes a store if there is none, if there is none.
    pub(crate) fn of(settings: &Settings, reach: Reach) -> Option<Self> {
        let root = settings.root.clone();
        let is_none = reach == Reach::Make && !is_root(Product::Orlop, &root);
        is_none.then(|| Self { with_directory: !root.exists(), root })
    }

    /// Takes the store away if it is there, empty, and used by nobody. That it stays harms nobody: no error is worth more
    /// than the one that the command has.
    pub(crate) async fn abandon(self) {
        let removed = tokio::task::spawn_blocking(move || self.remove()).await;
        if let Ok(Err(error)) = removed {
            tracing::debug!(%error, "a store that was made and is empty stays");
        }
    }

    fn remove(&self) -> io::Result<()> {
        let Ok(lock) = File::open(self.root.join("lock")) else { return Ok(()) };
        let deadline = Instant::now() + ENDING;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Ok(());
            }
            std::thread::sleep(STEP);
        }
        if !is_empty(&self.root)? {
            return Ok(());
        }
        each(DIRECTORIES, &self.root, |path| fs::remove_dir(path))?;
        each(FILES, &self.root, |path| fs::remove_file(path))?;
        if self.with_directory { fs::remove_dir(&self.root) } else { Ok(()) }
    }
}

/// Does something with each that is there.
fn each(names: &[&str], root: &Path, act: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    names.iter().try_for_each(|name| match act(&root.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// Whether nothing is below but what an empty store has.
fn is_empty(root: &Path) -> io::Result<bool> {
    let mut ahead = vec![PathBuf::new()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            let inside = directory.join(entry.file_name());
            let is_known = |names: &[&str]| names.iter().any(|name| Path::new(name) == inside);
            if entry.file_type()?.is_dir() {
                if !is_known(DIRECTORIES) {
                    return Ok(false);
                }
                ahead.push(inside);
            } else if !is_known(FILES) || (inside == Path::new("history.log") && entry.metadata()?.len() > 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Fresh) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for directory in ["content/blobs/sha256", "snapshots/native"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["lock", "meta.db", "history.log"] {
            fs::write(root.join(file), "").unwrap();
        }
        (dir, Fresh { root, with_directory: true })
    }

    #[test]
    fn an_empty_store_goes_with_its_directory_or_leaves_that_which_was_there() {
        let (_dir, fresh) = store();
        fresh.remove().unwrap();
        assert!(!fresh.root.exists());
        let (_dir, fresh) = store();
        Fresh { with_directory: false, root: fresh.root.clone() }.remove().unwrap();
        assert_eq!(fs::read_dir(&fresh.root).unwrap().count(), 0);
    }

    #[test]
    fn what_has_something_in_it_stays_whole() {
        for kept in ["content/blobs/sha256/abc", "content/ingest/1/data", "snapshots/native/1/fs/x", "foreign"] {
            let (_dir, fresh) = store();
            let file = fresh.root.join(kept);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "x").unwrap();
            fresh.remove().unwrap();
            assert!(file.exists() && fresh.root.join("meta.db").exists(), "{kept}");
        }
        let (_dir, fresh) = store();
        fs::write(fresh.root.join("history.log"), "a change").unwrap();
        fresh.remove().unwrap();
        assert!(fresh.root.join("meta.db").exists());
    }

    #[test]
    fn what_somebody_else_has_open_stays() {
        let (_dir, fresh) = store();
        let other = File::open(fresh.root.join("lock")).unwrap();
        flock(&other, FlockOperation::LockShared).unwrap();
        fresh.remove().unwrap();
        assert!(fresh.root.join("meta.db").exists());
    }
}
