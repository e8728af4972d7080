//! What takes how much disk, measured from the file system; and giving it back.

use orlop_metadata::Scope;

use crate::{ImageRow, Images, Result};

/// What to collect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcRequest {
    /// Mark everything instead of what changed.
    pub full: bool,
    /// Empty the trash too.
    pub trash: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// What a collection gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOutcome {
    /// Blobs removed.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Snapshots removed.
    pub snapshots: u64,
    /// Their bytes.
    pub snapshot_bytes: u64,
    /// Bytes of the trash reclaimed.
    pub trash_bytes: u64,
    /// Expired leases removed.
    pub leases: u64,
    /// Expired writes removed.
    pub ingests: u64,
}

/// What the hash references cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HashReferenceUsage {
    /// How many there are.
    pub records: u64,
    /// What the file system would get back if only they went.
    pub content_bytes: u64,
    /// Their rows in the database.
    pub metadata_bytes: u64,
}

/// What takes how much disk, in allocated bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// The whole root.
    pub total: u64,
    /// Blobs.
    pub content: u64,
    /// Trees.
    pub snapshots: u64,
    /// Writes in progress.
    pub ingests: u64,
    /// What can be undone.
    pub trash: u64,
    /// Database and history.
    pub metadata: u64,
    /// What the hash references cost.
    pub hash_references: HashReferenceUsage,
    /// Each image.
    pub images: Vec<ImageRow>,
}

impl Images {
    /// Reconciles every CRI-managed namespace, then collects garbage.
    pub async fn gc(&self, scope: &Scope, request: GcRequest) -> Result<GcOutcome> {
        let _ = (scope, request);
        todo!()
    }

    /// Measures the root.
    pub async fn disk_usage(&self, scope: &Scope) -> Result<DiskUsage> {
        let _ = scope;
        todo!()
    }
}
