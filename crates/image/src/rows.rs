//! Listing: one row an image, or one row a record.

use std::collections::BTreeMap;

use jiff::Timestamp;
use orlop_metadata::Scope;
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Platform};

use crate::{Images, Result};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// containerd's filters over records; none: all.
    pub filters: Vec<String>,
    /// Every namespace instead of the scope's.
    pub all_namespaces: bool,
}

/// What an image takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Its blobs in this store.
    pub compressed: u64,
    /// Its snapshots.
    pub unpacked: u64,
    /// Blobs and snapshots that other images use too.
    pub shared: u64,
    /// Blobs and snapshots that only it uses.
    pub unique: u64,
}

/// One image with all its names.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    /// The image ID of the host's platform, or of the first that is there; none for artifacts.
    pub image_id: Option<ImageId>,
    /// The namespace.
    pub namespace: String,
    /// Tags and other names.
    pub names: Vec<String>,
    /// Records that are hash references.
    pub hash_references: Vec<String>,
    /// What the records point at.
    pub targets: Vec<Digest>,
    /// Platforms that are complete in this store.
    pub platforms: Vec<Platform>,
    /// Whether any record is pinned.
    pub pinned: bool,
    /// What it takes.
    pub size: Sizes,
    /// When the first record was made.
    pub created_at: Timestamp,
    /// When a record last changed.
    pub updated_at: Timestamp,
    /// Something of it is missing.
    pub incomplete: bool,
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// The name.
    pub name: String,
    /// The namespace.
    pub namespace: String,
    /// Which kind of name it is.
    pub kind: Kind,
    /// What it points at.
    pub target: Descriptor,
    /// The image ID of the host's platform, if known.
    pub image_id: Option<ImageId>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Target, config and layers of the host's platform, as `ctr` counts.
    pub size: u64,
    /// Platforms that are complete in this store.
    pub platforms: Vec<Platform>,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SnapshotRow {
    /// Its key.
    pub chain_id: String,
    /// Its driver.
    pub snapshotter: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl Images {
    /// One row an image, by first name.
    pub async fn images(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<ImageRow>> {
        let _ = (scope, request);
        todo!()
    }

    /// One row a record, by namespace and name.
    pub async fn records(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<RecordRow>> {
        let _ = (scope, request);
        todo!()
    }
}
