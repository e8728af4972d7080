//! Deleted but not yet reclaimed: what [`Store::undo`] brings back.
//!
//! `ROOT/trash/<id>/` holds the blobs (`blobs/<algorithm>/<hex>`) and trees (`snapshots/<driver>/<id>/`) of one deletion;
//! the `trash` row holds every row it removed.

use jiff::Timestamp;

use crate::{ImageChange, Result, Scope, Store, gc};

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
    /// (namespace, name) of records restored.
    pub images: Vec<(String, String)>,
    /// (namespace, name) of records left as they are, since they exist again.
    pub kept: Vec<(String, String)>,
    /// Blobs restored.
    pub blobs: usize,
    /// Snapshots restored.
    pub snapshots: usize,
}

impl Store {
    /// Deletes image records and collects what only they kept into one trash entry, in one transaction of rows.
    pub fn delete_to_trash(&self, scope: &Scope, changes: &[ImageChange], reason: &str) -> Result<gc::Report> {
        let _ = (scope, changes, reason);
        todo!()
    }

    /// What can be undone, newest first.
    pub fn trash(&self) -> Result<Vec<TrashEntry>> {
        todo!()
    }

    /// Brings back rows, blobs and trees of one entry; `None`: of the newest.
    pub fn undo(&self, scope: &Scope, id: Option<&str>) -> Result<UndoReport> {
        let _ = (scope, id);
        todo!()
    }

    /// Reclaims entries older than `max_age_seconds`, and the oldest ones until at most `max_bytes` stay. Returns bytes
    /// reclaimed.
    pub fn empty_trash(&self, max_age_seconds: u64, max_bytes: u64) -> Result<u64> {
        let _ = (max_age_seconds, max_bytes);
        todo!()
    }
}
