//! Deleted but not yet reclaimed: what [`Store::undo`] brings back.
//!
//! `ROOT/trash/<id>/` holds the blobs (`blobs/<algorithm>/<hex>`) and trees (`snapshots/<driver>/<id>/`) of one deletion;
//! the `trash` row holds every row it removed, and `entry` beside the bytes holds it once more, for the day on which
//! `meta.db` is lost.
//!
//! # Invariants
//! - The `trash` row is written in the transaction that removes the rows; the bytes follow. What was still in its place
//!   when the process died is moved by the next collection, or undo.
//! - Undo moves bytes back first and then restores the rows and drops the `trash` row in one transaction; so it can be
//!   repeated if it was killed. A full collection leaves alone what a `trash` row names.
//!
//! # Concurrency
//! Everything that touches an entry holds the collector's lock.

mod described;
mod undo;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub(crate) use described::{describe, described, insert};
use jiff::Timestamp;
use orlop_content as content;
use orlop_oci::Digest;
use rand::RngExt;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use undo::Undo;

use crate::db::from_nanos;
use crate::edges::CONTENT;
use crate::gc::{self, Bin, BlobRow, Disposal, ImageRow, Marking, Removal, SnapshotRow};
use crate::transact::Tx;
use crate::{Error, HistoryEntry, ImageChange, ObjectKind, Result, Scope, Store, damage, history, images};

/// One deletion that can be undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashEntry {
    /// Names it.
    pub id: String,
    /// When.
    pub created_at: Timestamp,
    /// The command.
    pub reason: String,
    /// Bytes it holds.
    pub bytes: u64,
    /// (namespace, name) of the image records it would bring back.
    pub images: Vec<(String, String)>,
}

/// What an undo brought back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UndoReport {
    /// The entry it was.
    pub id: String,
    /// (namespace, name) of records restored.
    pub images: Vec<(String, String)>,
    /// (namespace, name) of records left as they are, since they exist again.
    pub kept: Vec<(String, String)>,
    /// Blobs restored.
    pub blobs: usize,
    /// Snapshots restored.
    pub snapshots: usize,
    /// Blobs of the entry that are nowhere on disk any more.
    pub missing: Vec<Digest>,
}

/// The rows that a deletion removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedRows {
    pub(crate) images: Vec<ImageRow>,
    pub(crate) blobs: Vec<BlobRow>,
    pub(crate) snapshots: Vec<SnapshotRow>,
    /// What the deleted records reached and something else kept. By the time of the undo that may be gone, too.
    shared: Shared,
}

/// Rows that a deletion left where they were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Shared {
    blobs: Vec<BlobRow>,
    snapshots: Vec<SnapshotRow>,
}

impl SavedRows {
    pub(crate) fn all_blobs(&self) -> impl Iterator<Item = &BlobRow> {
        self.blobs.iter().chain(&self.shared.blobs)
    }

    pub(crate) fn all_snapshots(&self) -> impl Iterator<Item = &SnapshotRow> {
        self.snapshots.iter().chain(&self.shared.snapshots)
    }

    pub(crate) fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|e| Error::Invalid { what: "trash row in meta.db", reason: e.to_string() })
    }
}

impl Store {
    /// Deletes image records and collects what only they kept, into one trash entry or for good, in one transaction of
    /// rows. What was garbage before is reclaimed.
    ///
    /// # Errors
    /// [`Error::Moved`] if [`Store::version`] is not `at` any more; then nothing was done.
    pub fn delete_images(
        &self,
        scope: &Scope,
        changes: &[ImageChange],
        disposal: &Disposal,
        at: Option<i64>,
    ) -> Result<gc::Report> {
        self.delete_unless(scope, changes, disposal, at, |_| Ok(()))
    }

    /// The same, decided on records that were read after the change `seen` of the history, whatever else was committed since: what
    /// the namespace's history has had may make it `outdated`. It is asked while nobody else can write.
    ///
    /// # Errors
    /// [`Error::Moved`] if it is outdated; then nothing was done.
    pub fn delete_images_decided_at(
        &self,
        scope: &Scope,
        changes: &[ImageChange],
        disposal: &Disposal,
        seen: i64,
        outdated: impl Fn(&[HistoryEntry]) -> bool,
    ) -> Result<gc::Report> {
        self.delete_unless(scope, changes, disposal, None, |tx| {
            match outdated(&history::since(tx, &scope.namespace, seen)?) {
                true => Err(Error::Moved),
                false => Ok(()),
            }
        })
    }

    fn delete_unless(
        &self,
        scope: &Scope,
        changes: &[ImageChange],
        disposal: &Disposal,
        at: Option<i64>,
        refused: impl FnOnce(&Tx<'_>) -> Result<()>,
    ) -> Result<gc::Report> {
        let _lock = gc::lock(self)?;
        let _loan = self.lend();
        let (trees, mut report) = self.write_at(at, "delete", |tx| {
            refused(tx)?;
            let (before, _) = gc::remove_garbage(tx, Marking::Incremental, None)?;
            let mut deleted = Vec::new();
            for change in changes {
                if let ImageChange::Delete { name } = change {
                    deleted.extend(gc::image(tx, &scope.namespace, name)?);
                }
            }
            let reached = gc::reached(tx, tx.now(), &deleted)?;
            images::apply(tx, scope, changes)?;
            let bin = match disposal {
                Disposal::Reclaim => None,
                Disposal::Trash { reason } => Some(Bin { reason, deleted, reached }),
            };
            let (removal, report) = gc::remove_garbage(tx, Marking::Incremental, bin)?;
            let mut trees = removal.snapshots;
            trees.extend(before.snapshots);
            Ok((trees, report))
        })?;
        if let Some(entry) = &report.trash {
            describe(self, entry);
        }
        let finished = gc::finish(self, &trees)?;
        report.snapshot_bytes += finished.measured;
        report.elsewhere_bytes += finished.elsewhere;
        Ok(report)
    }

    /// What can be undone, newest first.
    pub fn trash(&self) -> Result<Vec<TrashEntry>> {
        self.read(|conn| {
            let mut query = conn
                .prepare_cached("SELECT id, created, reason, bytes, rows FROM trash ORDER BY created DESC, id DESC")?;
            let mut rows = query.query([])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(entry(row)?);
            }
            Ok(entries)
        })
    }

    /// Brings back rows, blobs and trees of one entry; `None`: of the newest. Records and snapshots that exist again are
    /// left as they are. What the records shared with others, and went to the trash with those, comes back too.
    pub fn undo(&self, scope: &Scope, id: Option<&str>) -> Result<UndoReport> {
        let _lock = gc::lock(self)?;
        let _loan = self.lend();
        gc::finish(self, &[])?;
        let (id, saved) = self.read(|conn| find(conn, id))?;
        let mut report = UndoReport { id: id.clone(), ..UndoReport::default() };
        let bins = self.bins(&id)?;
        self.restore_blobs(&bins, &saved, &mut report)?;
        let sound = self.sound_again(&saved)?;
        self.write("undo", |tx| {
            let mut undo = Undo { store: self, tx, bins: &bins, report: &mut report };
            undo.blobs(&saved)?;
            sound.iter().try_for_each(|digest| damage::mended(tx, CONTENT, digest.as_str()))?;
            undo.snapshots(&saved)?;
            undo.images(scope, &saved)?;
            drop_entry(tx, &id)
        })?;
        gc::finish(self, &[])?;
        Ok(report)
    }

    /// Reclaims entries older than `max_age_seconds`, and the oldest ones until at most `max_bytes` stay. Returns bytes
    /// reclaimed.
    pub fn empty_trash(&self, max_age_seconds: u64, max_bytes: u64) -> Result<u64> {
        let _lock = gc::lock(self)?;
        let _loan = self.lend();
        let oldest = self.now().saturating_sub(nanos(max_age_seconds));
        let mut kept = 0;
        let mut reclaimed = 0;
        let entries = self.trash()?;
        self.write("empty trash", |tx| {
            for entry in &entries {
                let fits = entry.bytes.saturating_add(kept) <= max_bytes;
                if crate::db::to_nanos(entry.created_at) >= oldest && fits {
                    kept += entry.bytes;
                } else {
                    // What is older than one that does not fit does not stay either.
                    kept = u64::MAX;
                    reclaimed += entry.bytes;
                    drop_entry(tx, &entry.id)?;
                }
            }
            Ok(())
        })?;
        gc::finish(self, &[])?;
        Ok(reclaimed)
    }

    /// Moves the blobs of an entry back, and notes which cannot be.
    fn restore_blobs(&self, bins: &[PathBuf], saved: &SavedRows, report: &mut UndoReport) -> Result<()> {
        let digests: BTreeSet<&str> = saved.all_blobs().map(|b| b.digest.as_str()).collect();
        for digest in digests.into_iter().filter_map(|d| d.parse::<Digest>().ok()) {
            if !self.restore_blob(&digest, bins)? {
                report.missing.push(digest);
            }
        }
        Ok(())
    }

    /// Which blobs of an entry were found damaged since, and are sound now that their bytes are back.
    fn sound_again(&self, saved: &SavedRows) -> Result<BTreeSet<Digest>> {
        let damaged: BTreeSet<String> = self.read(|conn| {
            let mut query = conn.prepare_cached("SELECT name FROM damage WHERE kind = ?1")?;
            Ok(query.query_map([CONTENT], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
        })?;
        let mut sound = BTreeSet::new();
        for blob in saved.all_blobs().filter(|blob| damaged.contains(&blob.digest)) {
            let Ok(digest) = blob.digest.parse::<Digest>() else { continue };
            let size = u64::try_from(blob.size).ok();
            // What cannot be read now is not known to be sound.
            if matches!(gc::block_on(content::examine(&**self.raw_content(), &digest, size, &())), Ok(None)) {
                sound.insert(digest);
            }
        }
        Ok(sound)
    }

    /// Directories where an entry's bytes may be: its own, and those of entries that took later what it shared.
    fn bins(&self, id: &str) -> Result<Vec<PathBuf>> {
        let mut bins = vec![gc::directory(self, id)];
        bins.extend(self.trash()?.iter().filter(|e| e.id != id).map(|e| gc::directory(self, &e.id)));
        Ok(bins)
    }

    fn restore_blob(&self, digest: &Digest, bins: &[PathBuf]) -> Result<bool> {
        let raw = self.raw_content();
        let Some(trash) = raw.trash() else { return Ok(gc::block_on(raw.info(digest)).is_ok()) };
        for bin in bins {
            match gc::block_on(trash.restore(digest, bin)) {
                Err(content::Error::NotFound { .. }) => {}
                other => return other.map(|_| true).map_err(Error::from),
            }
        }
        Ok(false)
    }
}

/// Writes a trash entry for what is about to be removed, unless there is nothing to bring back. Returns its id.
pub(crate) fn put(tx: &Tx<'_>, bin: &Bin<'_>, removal: &Removal, report: &gc::Report) -> Result<Option<String>> {
    let rows = SavedRows {
        images: bin.deleted.iter().chain(&removal.images).cloned().collect(),
        blobs: removal.blobs.clone(),
        snapshots: removal.snapshots.clone(),
        shared: Shared {
            blobs: bin.reached.blobs.iter().filter(|blob| !removal.blobs.contains(blob)).cloned().collect(),
            snapshots: bin.reached.snapshots.iter().filter(|s| !removal.snapshots.contains(s)).cloned().collect(),
        },
    };
    if rows == SavedRows::default() {
        return Ok(None);
    }
    // Sorts by time; the random part keeps apart what one clock tick brings.
    let id = format!("{}-{:08x}", from_nanos(tx.now()).strftime("%Y%m%dT%H%M%SZ"), rand::rng().random::<u32>());
    let bytes = i64::try_from(report.blob_bytes + report.snapshot_bytes).unwrap_or(i64::MAX);
    let json = serde_json::to_string(&rows).expect("strings and numbers are JSON");
    tx.prepare_cached("INSERT INTO trash VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
        id,
        tx.now(),
        bin.reason,
        bytes,
        json
    ])?;
    Ok(Some(id))
}

/// Takes an entry off the list; the next [`gc::finish`] removes what is still on disk of it.
pub(crate) fn drop_entry(tx: &Tx<'_>, id: &str) -> Result<()> {
    tx.prepare_cached("DELETE FROM trash WHERE id = ?1")?.execute([id])?;
    tx.prepare_cached("UPDATE doomed SET trash = NULL WHERE trash = ?1")?.execute([id])?;
    tx.prepare_cached("INSERT OR IGNORE INTO doomed (kind, name) VALUES (?1, ?2)")?.execute([gc::TRASH, id])?;
    Ok(())
}

fn find(conn: &Connection, id: Option<&str>) -> Result<(String, SavedRows)> {
    let mut query = conn.prepare_cached(
        "SELECT id, rows FROM trash WHERE ?1 IS NULL OR id = ?1 ORDER BY created DESC, id DESC LIMIT 1",
    )?;
    let found: Option<(String, String)> = query.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let missing = || match id {
        Some(id) => Error::NotFound { kind: ObjectKind::Trash, name: id.to_owned() },
        None => Error::TrashEmpty,
    };
    let (id, rows) = found.ok_or_else(missing)?;
    Ok((id, SavedRows::from_json(&rows)?))
}

fn entry(row: &Row<'_>) -> Result<TrashEntry> {
    let saved = SavedRows::from_json(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?)?;
    Ok(TrashEntry {
        id: row.get(0)?,
        created_at: from_nanos(row.get(1)?),
        reason: row.get(2)?,
        bytes: u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0),
        images: saved.images.into_iter().map(|image| (image.namespace, image.name)).collect(),
    })
}

fn nanos(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000)
}
