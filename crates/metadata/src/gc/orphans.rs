//! Bytes on disk that no row knows: what a crash between the bytes and the row leaves.
//!
//! They are looked for by a full collection only, since that takes a walk over the directories. Whatever is younger than
//! [`SAFE_AGE`] is left alone: its row may be about to be written. (For blobs that alone would not do, nor is it needed:
//! an ingest row comes before every rename, and the deletion looks for one.)

use std::collections::{BTreeSet, HashSet};
use std::time::UNIX_EPOCH;

use orlop_snapshot::Driver;
use rusqlite::Connection;

use super::bytes::{INGEST, TRASH, block_on, io_error};
use super::removal::doom;
use crate::db::{from_nanos, to_nanos};
use crate::edges::{self, CONTENT};
use crate::trash::SavedRows;
use crate::{Result, Store};

/// Seconds after which bytes without a row are taken for forgotten: longer than any command takes between the two.
const SAFE_AGE: i64 = 3600;

/// Something on disk: the kind and name it has among the doomed.
type Found = (String, String);

/// Dooms what is on disk, is old, and has no row. Returns what it was, as `<kind> <name>`.
pub(super) fn doom_orphans(store: &Store) -> Result<BTreeSet<String>> {
    let limit = store.now().saturating_sub(SAFE_AGE * 1_000_000_000);
    block_on(store.raw_content().remove_debris(from_nanos(limit)))?;
    let mut found = blobs(store, limit)?;
    found.extend(ingests(store, limit)?);
    for driver in store.drivers() {
        found.extend(trees(driver.as_ref(), limit)?);
    }
    found.extend(bins(store)?);
    if found.is_empty() {
        return Ok(BTreeSet::new());
    }
    store.write("look for orphans", |tx| {
        let trashed = in_trash(tx)?;
        let mut orphans = BTreeSet::new();
        for (kind, name) in found {
            if !trashed.contains(&(kind.clone(), name.clone())) && !known(tx, &kind, &name)? {
                doom(tx, &kind, &name, None)?;
                orphans.insert(format!("{kind} {name}"));
            }
        }
        Ok(orphans)
    })
}

fn blobs(store: &Store, limit: i64) -> Result<Vec<Found>> {
    let blobs = block_on(store.raw_content().list())?;
    let old = blobs.into_iter().filter(|blob| to_nanos(blob.created_at) < limit);
    Ok(old.map(|blob| (CONTENT.to_owned(), blob.digest.to_string())).collect())
}

fn ingests(store: &Store, limit: i64) -> Result<Vec<Found>> {
    let writes = block_on(store.raw_content().statuses())?;
    let old = writes.into_iter().filter(|write| to_nanos(write.updated_at) < limit);
    Ok(old.map(|write| (INGEST.to_owned(), write.reference)).collect())
}

fn trees(driver: &dyn Driver, limit: i64) -> Result<Vec<Found>> {
    let kind = edges::snapshots(driver.name());
    let mut found = Vec::new();
    for (id, _) in driver.list()? {
        let path = driver.root().join(id.0.to_string());
        let modified = std::fs::symlink_metadata(path).and_then(|meta| meta.modified());
        // What has no time there is kept by other means than a directory, or went meanwhile.
        let Ok(age) = modified.map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default()) else { continue };
        if i64::try_from(age.as_nanos()).is_ok_and(|nanos| nanos < limit) {
            found.push((kind.clone(), id.0.to_string()));
        }
    }
    Ok(found)
}

/// Directories of trash entries; one without a row is not young, for the row comes first.
fn bins(store: &Store) -> Result<Vec<Found>> {
    let directory = store.root().join("trash");
    let entries = match std::fs::read_dir(&directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io_error("list", &directory))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("list", &directory))?.file_name();
        found.extend(name.into_string().ok().map(|name| (TRASH.to_owned(), name)));
    }
    Ok(found)
}

/// What the rows in the trash name. An undo that was killed has moved some of it back already.
fn in_trash(conn: &Connection) -> Result<HashSet<Found>> {
    let mut query = conn.prepare_cached("SELECT rows FROM trash")?;
    let mut rows = query.query([])?;
    let mut names = HashSet::new();
    while let Some(row) = rows.next()? {
        let saved = SavedRows::from_json(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?;
        names.extend(saved.all_blobs().map(|blob| (CONTENT.to_owned(), blob.digest.clone())));
        names.extend(saved.all_snapshots().map(|s| (edges::snapshots(&s.driver), s.id.to_string())));
    }
    Ok(names)
}

fn known(conn: &Connection, kind: &str, name: &str) -> Result<bool> {
    let doomed = conn.prepare_cached("SELECT 1 FROM doomed WHERE kind = ?1 AND name = ?2")?.exists([kind, name])?;
    Ok(doomed
        || match kind {
            CONTENT => super::graph::blob_needed(conn, name)?.is_some(),
            INGEST => conn.prepare_cached("SELECT 1 FROM ingest WHERE backend = ?1")?.exists([name])?,
            TRASH => conn.prepare_cached("SELECT 1 FROM trash WHERE id = ?1")?.exists([name])?,
            _ => conn.prepare_cached("SELECT 1 FROM snapshot WHERE id = ?1")?.exists([name.parse::<i64>().ok()])?,
        })
}
