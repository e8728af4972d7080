//! What a trash entry is, beside its bytes: `trash/<id>/entry`, JSON. `meta.db` is rebuilt from it; nothing else reads it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::SavedRows;
use crate::gc::{self, io_error};
use crate::{Result, Store};

const FILE: &str = "entry";

/// A row of `trash`, but for its ID.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Described {
    created: i64,
    reason: String,
    bytes: i64,
    rows: SavedRows,
}

/// Writes what an entry is, unless that is there. That it cannot be written keeps no deletion from being done.
///
/// # Durability
/// It is on disk, before any byte is moved into the entry.
pub(crate) fn describe(store: &Store, id: &str) {
    if let Err(error) = try_to_describe(store, id) {
        tracing::warn!(%error, entry = id, "this removal could not be undone if meta.db were lost");
    }
}

fn try_to_describe(store: &Store, id: &str) -> Result<()> {
    let directory = gc::directory(store, id);
    let path = directory.join(FILE);
    if path.exists() {
        return Ok(());
    }
    let Some(described) = store.read(|conn| read(conn, id))? else { return Ok(()) };
    gc::make_private(&directory)?;
    let new = directory.join("entry.new");
    let bytes = serde_json::to_vec(&described).expect("strings and numbers are JSON");
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    written.map_err(io_error("write", &new))?;
    fs::rename(&new, &path).map_err(io_error("rename", &new))?;
    File::open(&directory).and_then(|opened| opened.sync_all()).map_err(io_error("sync", &directory))
}

fn read(conn: &Connection, id: &str) -> Result<Option<Described>> {
    let mut query = conn.prepare_cached("SELECT created, reason, bytes, rows FROM trash WHERE id = ?1")?;
    let found = query.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?)));
    let Some((created, reason, bytes, rows)) = found.optional()? else { return Ok(None) };
    Ok(Some(Described { created, reason, bytes, rows: SavedRows::from_json(&rows)? }))
}

/// Reads what an entry is from its directory, or says why that cannot be done.
pub(crate) fn described(directory: &Path) -> Result<Described, String> {
    let bytes = fs::read(directory.join(FILE)).map_err(|error| format!("read {FILE}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{FILE}: {error}"))
}

/// Makes the row of an entry again.
pub(crate) fn insert(conn: &Connection, id: &str, entry: &Described) -> Result<()> {
    let rows = serde_json::to_string(&entry.rows).expect("strings and numbers are JSON");
    conn.execute(
        "INSERT INTO trash VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, entry.created, entry.reason, entry.bytes, rows],
    )?;
    Ok(())
}
