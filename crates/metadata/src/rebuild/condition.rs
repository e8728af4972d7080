//! How it is with a root's `meta.db`: there, gone, damaged, or behind the history.

use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::db::read_only_uri;
use crate::{Error, Fault, ParsedLog, Result, format, index};

/// What became of a database whose log was lost before any of it was written back.
const UNMADE: &str = "has no tables";

/// How it is with `meta.db`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is wrong with it.
    #[default]
    Sound,
    /// It is not there, or has no byte or no table.
    Lost(Loss),
    /// It is no sound database: what SQLite says.
    Damaged(String),
    /// It is a sound database that lacks so many changes which `history.log` has at its end: of a write that a crash cut off, or it
    /// lost its log, `meta.db-wal`.
    Behind(usize),
}

/// What a root has although its `meta.db` is gone, or as if it had just been made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// What became of it: it is gone, is empty, or has no tables.
    pub how: &'static str,
    /// What is there all the same.
    pub found: Vec<&'static str>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = self.how;
        if self.found.is_empty() {
            return write!(f, "meta.db {how}");
        }
        write!(f, "meta.db {how}, although there are {}", self.found.join(", "))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound => f.write_str("meta.db is sound"),
            Self::Lost(loss) => loss.fmt(f),
            Self::Damaged(why) => write!(f, "meta.db is damaged: {why}"),
            Self::Behind(changes) => write!(
                f,
                "meta.db is sound, and lacks {changes} changes at the end of history.log: a crash cut them off before \
                 they were committed, or meta.db-wal was lost"
            ),
        }
    }
}

/// What a root has although its `meta.db` is gone or empty; `None` if it is there, or there is nothing.
pub(crate) fn lost(root: &Path) -> Option<Loss> {
    let path = root.join("meta.db");
    let how = gone(&path)?;
    let found = holdings(root);
    // Somebody who makes a root has made its database before anything else: then it is there by now.
    gone(&path).filter(|_| !found.is_empty()).map(|_| Loss { how, found })
}

/// The same of a database without a table: its log, which had them, was lost before it was written back.
pub(crate) fn unmade(root: &Path, connection: &Connection) -> Result<Option<Loss>> {
    let path = root.join("meta.db");
    if format::format_of(connection, &path)? > 0 {
        return Ok(None);
    }
    let found = holdings(root);
    let is_unmade = !found.is_empty() && format::format_of(connection, &path)? == 0;
    Ok(is_unmade.then_some(Loss { how: UNMADE, found }))
}

/// What became of a file that SQLite would take for a new one; what else is wrong with it, opening tells.
fn gone(path: &Path) -> Option<&'static str> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() == 0 => Some("is empty"),
        Err(error) if error.kind() == ErrorKind::NotFound => Some("is gone"),
        _ => None,
    }
}

/// What no root has that is only begun.
fn holdings(root: &Path) -> Vec<&'static str> {
    let is_within = |directory: &Path| {
        let inside = std::fs::read_dir(directory).into_iter().flatten().flatten();
        inside.into_iter().any(|entry| std::fs::read_dir(entry.path()).is_ok_and(|mut names| names.next().is_some()))
    };
    let names = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_renamed = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(super::files::DAMAGED.as_bytes());
    let renamed = names.into_iter().any(|entry| is_renamed(&entry.file_name()));
    let has_log = std::fs::metadata(root.join("history.log")).is_ok_and(|meta| meta.len() > 0);
    let held = [
        (is_within(&root.join("content/blobs")), "blobs"),
        (is_within(&root.join("snapshots")), "snapshots"),
        (is_within(&root.join("trash")), "trash"),
        (has_log, "history.log"),
        (renamed, "an older meta.db under another name"),
    ];
    held.into_iter().filter_map(|(is_there, what)| is_there.then_some(what)).collect()
}

/// Looks at the database, without changing it.
pub(super) fn of(root: &Path, log: &ParsedLog) -> Result<Condition> {
    let path = root.join("meta.db");
    // SQLite would take an empty one for new, and remove its log.
    if let Some(how) = gone(&path) {
        return Ok(Condition::Lost(Loss { how, found: holdings(root) }));
    }
    match examine(root, &path, log) {
        Err(error) if error.fault() == Fault::Damaged => Ok(Condition::Damaged(said(&error))),
        other => other,
    }
}

fn said(error: &Error) -> String {
    match error {
        Error::Database { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

fn examine(root: &Path, path: &Path, log: &ParsedLog) -> Result<Condition> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_EXRESCODE
        | OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI;
    // Nobody else has it open. Without a log the file is the whole truth, and no index of a log need be made.
    let alone = std::fs::metadata(path.with_extension("db-wal")).map_or(0, |log| log.len()) == 0;
    index::guard();
    let connection = Connection::open_with_flags(read_only_uri(path, alone), flags)?;
    if format::format_of(&connection, path)? == 0 {
        return Ok(Condition::Lost(Loss { how: UNMADE, found: holdings(root) }));
    }
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Condition::Damaged(found));
    }
    let last: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM history", [], |row| row.get(0))?;
    Ok(match log.lines.iter().filter(|line| line.seq > last).count() {
        0 => Condition::Sound,
        changes => Condition::Behind(changes),
    })
}
