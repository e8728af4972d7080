//! What a store's lists say, row by row. Plain data: whoever reads a store fills it.

use std::sync::Arc;

use jiff::Timestamp;
use orlop_oci::Digest;

use super::{Collector, Labels};

/// A namespace: its position in [`Inventory::namespaces`].
pub type NamespaceId = u16;

/// Everything that one look at a store found, in all namespaces.
///
/// What could not be read is named in [`gaps`](Self::gaps): an empty list there may then only mean that nobody knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// When the lists were read; what expires is judged by it.
    pub taken: Timestamp,
    /// Which labels the store's collection follows.
    pub collector: Collector,
    /// Namespaces, by name.
    pub namespaces: Vec<NamespaceRow>,
    /// Image records.
    pub records: Vec<RecordRow>,
    /// Blobs, once for each namespace that has them.
    pub blobs: Vec<BlobRow>,
    /// Snapshots.
    pub snapshots: Vec<SnapshotRow>,
    /// Leases.
    pub leases: Vec<LeaseRow>,
    /// Writes in progress.
    pub ingests: Vec<IngestRow>,
    /// Containers.
    pub containers: Vec<ContainerRow>,
    /// What could not be read.
    pub gaps: Vec<Gap>,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceRow {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}

/// An image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRow {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: Arc<str>,
    /// What it points at.
    pub target: Digest,
    /// The target's media type, as the record says.
    pub media_type: Arc<str>,
    /// The target's own size in bytes, as the record says.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When it was changed last.
    pub updated: Option<Timestamp>,
}

/// A blob as one namespace sees it. The bytes are there once, however many namespaces have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// The namespace.
    pub namespace: NamespaceId,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
    /// When the namespace got it.
    pub created: Option<Timestamp>,
    /// When its labels changed last.
    pub updated: Option<Timestamp>,
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Somebody writes to it: a container, an unpacking.
    Active,
    /// Read-only, not part of a chain.
    View,
    /// A layer.
    Committed,
    /// Nobody could tell: its snapshotter's own records could not be read.
    Unknown,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// The snapshotter.
    pub snapshotter: Arc<str>,
    /// Its key; of an unpacked layer the chain ID.
    pub key: Arc<str>,
    /// What it is.
    pub kind: SnapshotKind,
    /// The key of the one below.
    pub parent: Option<Arc<str>>,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// When it was changed last.
    pub updated: Option<Timestamp>,
    /// What it takes itself, without those below; unknown until somebody asks.
    pub usage: Option<Usage>,
}

/// What a snapshot takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, as its snapshotter counts them.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its ID.
    pub id: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// What it lists.
    pub resources: Vec<Resource>,
}

/// What a lease lists. It need not exist.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// A blob.
    Content(Digest),
    /// A write in progress, by its reference.
    Ingest(Arc<str>),
    /// An image record.
    Image(Arc<str>),
    /// A snapshot.
    Snapshot {
        /// The snapshotter.
        snapshotter: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// Something of a kind that holds no image data.
    Other {
        /// Its kind.
        kind: Arc<str>,
        /// Its name.
        id: Arc<str>,
    },
}

/// A write in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestRow {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its reference.
    pub reference: Arc<str>,
    /// Bytes that are there.
    pub offset: u64,
    /// Bytes that are to come in all; 0: unknown.
    pub total: u64,
    /// What it is to be.
    pub expected: Option<Digest>,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it was written to last.
    pub updated: Option<Timestamp>,
}

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRow {
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Its ID.
    pub id: Arc<str>,
    /// The image it was made from, as its maker wrote it. It does not keep that image.
    pub image: Arc<str>,
    /// The snapshotter of its file system.
    pub snapshotter: Arc<str>,
    /// Its snapshot.
    pub snapshot_key: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What is missing: `leases of namespace k8s.io`.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Inventory {
    /// The number of a namespace, which is added if it is new.
    pub fn namespace(&mut self, name: &str) -> NamespaceId {
        let known = self.namespaces.iter().position(|n| *n.name == *name);
        known.unwrap_or_else(|| {
            self.namespaces.push(NamespaceRow { name: name.into(), labels: Labels::default() });
            self.namespaces.len() - 1
        }) as NamespaceId
    }
}
