//! The append-only history of image records, in the database and in `history.log`.
//!
//! A line of `history.log` is `<crc32 of the rest, 8 hex digits> <JSON>\n`. Lines are appended and synced inside the
//! transaction, before it commits; so the log may end with lines of a transaction that never committed. A line whose
//! `seq` is not above the last one's voids all earlier lines from that `seq` on.

use jiff::Timestamp;
use orlop_oci::Digest;

use crate::{Result, Store};

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryAction {
    /// It was made.
    Create,
    /// It changed.
    Update,
    /// It was deleted.
    Delete,
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Counts up over the whole root.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What.
    pub action: HistoryAction,
    /// Where.
    pub namespace: String,
    /// Which record.
    pub name: String,
    /// The target before.
    pub old: Option<Digest>,
    /// The target after.
    pub new: Option<Digest>,
}

impl Store {
    /// Changes of one record, or of all if `name` is `None`; newest first, at most `limit`.
    pub fn history(&self, namespace: &str, name: Option<&str>, limit: usize) -> Result<Vec<HistoryEntry>> {
        let _ = (namespace, name, limit);
        todo!()
    }

    /// What `name` pointed at `back` changes of target ago: 0 is now, 1 before the last change.
    pub fn earlier_target(&self, namespace: &str, name: &str, back: usize) -> Result<orlop_oci::Descriptor> {
        let _ = (namespace, name, back);
        todo!()
    }
}
