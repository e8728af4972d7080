//! The files of a rebuild: who has the root, the new database, and the old one's second name.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use orlop_oci::Digest;
use rusqlite::Connection;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rustix::fs::FlockOperation;

use crate::{Error, Result};

/// What the names of old databases begin with.
pub(super) const DAMAGED: &str = "meta.db.damaged-";

/// The name that the new database is written under.
const NEW: &str = "meta.db.new";

/// What belongs to a database, by the ends of its names; its log goes with it wherever it goes.
const ENDS: [&str; 3] = ["", "-wal", "-journal"];

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

/// Takes a root alone.
pub(super) fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Opened { path: root.to_owned() }),
        Err(errno) => Err(failed("lock", &path)(errno.into())),
    }
}

/// Blobs that were set aside, with the entry of the quarantine that they are in.
pub(super) fn quarantined(root: &Path) -> Result<BTreeMap<Digest, String>> {
    let mut found = BTreeMap::new();
    for (entry, path) in directory(&root.join("quarantine"))? {
        for (algorithm, blobs) in directory(&path.join("blobs"))? {
            let digests =
                directory(&blobs)?.into_iter().filter_map(|(hex, _)| format!("{algorithm}:{hex}").parse().ok());
            found.extend(digests.map(|digest| (digest, entry.clone())));
        }
    }
    Ok(found)
}

/// What is in a directory, by name; nothing if it is not there.
pub(super) fn directory(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        other => other.map_err(failed("list", path))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", path))?;
        found.extend(entry.file_name().into_string().ok().map(|name| (name, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// Writes a database whole to `meta.db.new`, and to the disk.
pub(super) fn write(connection: &Connection, root: &Path) -> Result<PathBuf> {
    let new = root.join(NEW);
    for end in ENDS {
        remove(&with_end(&new, end))?;
    }
    let name = ToSqlOutput::Borrowed(ValueRef::Text(new.as_os_str().as_bytes()));
    connection
        .execute("VACUUM INTO ?1", [name])
        .map_err(|source| Error::Database { operation: "write meta.db", source })?;
    let file = File::open(&new).and_then(|file| file.sync_all());
    file.map_err(failed("sync", &new))?;
    Ok(new)
}

/// Gives the old database another name, if there is one, and the new one its name. Returns the other name.
pub(super) fn replace(root: &Path, new: &Path, stamp: &str) -> Result<Option<String>> {
    let old = root.join("meta.db");
    let kept = unused(root, stamp);
    let mut any = false;
    for end in ENDS {
        match fs::hard_link(with_end(&old, end), with_end(&root.join(&kept), end)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => {
                other.map_err(failed("keep a copy of", &with_end(&old, end)))?;
                any = true;
            }
        }
    }
    sync(root)?;
    // The database goes before its log: without that it would be an older one, which opens. And the log goes before
    // the new one comes, or it would be taken for that one's.
    for end in ENDS.into_iter().chain(["-shm"]) {
        remove(&with_end(&old, end))?;
    }
    sync(root)?;
    fs::rename(new, &old).map_err(failed("rename", new))?;
    sync(root)?;
    Ok(any.then_some(kept))
}

/// A name that no old database has: one may have been rebuilt within the same second.
fn unused(root: &Path, stamp: &str) -> String {
    let names = std::iter::once(format!("{DAMAGED}{stamp}")).chain((2..).map(|n| format!("{DAMAGED}{stamp}-{n}")));
    let is_free = |name: &String| ENDS.iter().all(|end| with_end(&root.join(name), end).symlink_metadata().is_err());
    names.into_iter().find(is_free).expect("names do not end")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

fn sync(root: &Path) -> Result<()> {
    File::open(root).and_then(|directory| directory.sync_all()).map_err(failed("sync", root))
}
