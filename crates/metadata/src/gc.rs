//! Garbage collection: the set containerd would keep, found incrementally.
//!
//! Objects are (namespace, kind, name). Roots: unexpired image records; unexpired leases, which hold their resources;
//! blobs and snapshots labelled `containerd.io/gc.root`; unexpired ingests, which hold their expected digest. Edges:
//! an image's target, `gc.ref.*` labels, `gc.bref.*` labels (reversed), snapshot parents. A flat lease holds what it
//! lists and, of snapshots, their parents, but follows no label.
//!
//! Incremental: every garbage object is reachable from `suspect`. Let S be what is reachable from the suspects, from
//! what just expired, and from what flat leases hold. An object of S lives if it is a root, if something alive outside
//! S has an edge to it, or if something alive within S has. Everything outside S is alive. What of S does not live is
//! deleted; then `suspect` is emptied. The cost follows S. [`Store::collect_full`] marks everything from the roots
//! instead and is the oracle.

use std::collections::BTreeSet;

use crate::{Result, Store};

/// Where what is collected goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposal {
    /// The space is given back at once.
    Reclaim,
    /// Into a trash entry, from which [`Store::undo`] brings it back.
    Trash {
        /// The command, for people.
        reason: String,
    },
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// (namespace, digest) of blob rows removed.
    pub content: BTreeSet<(String, String)>,
    /// (namespace, driver, key) of snapshots removed.
    pub snapshots: BTreeSet<(String, String, String)>,
    /// (namespace, id) of leases that had expired.
    pub leases: BTreeSet<(String, String)>,
    /// (namespace, ref) of writes that had expired.
    pub ingests: BTreeSet<(String, String)>,
    /// (namespace, name) of image records that had expired.
    pub images: BTreeSet<(String, String)>,
    /// Bytes of blobs that no namespace has any more.
    pub blob_bytes: u64,
    /// Bytes of snapshot trees removed.
    pub snapshot_bytes: u64,
    /// The trash entry, if one was made.
    pub trash: Option<String>,
}

impl Store {
    /// Collects incrementally and finishes what an earlier, killed collection left.
    ///
    /// # Durability
    /// When this returns, the space is free (or in the trash) and the rows are gone.
    pub fn collect(&self, disposal: Disposal) -> Result<Report> {
        let _ = disposal;
        todo!()
    }

    /// Marks from the roots over everything, then sweeps: the oracle, and `orlop gc --full`.
    pub fn collect_full(&self, disposal: Disposal) -> Result<Report> {
        let _ = disposal;
        todo!()
    }

    /// What [`Store::collect`] would remove if these image records `(namespace, name)` were deleted first. Changes
    /// nothing.
    pub fn plan_collection(&self, without: &[(String, String)]) -> Result<Report> {
        let _ = without;
        todo!()
    }
}
