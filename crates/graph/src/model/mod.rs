//! A whole store as plain data: records, blobs, snapshots, leases, writes in progress and containers of all namespaces.
//!
//! An [`Inventory`] holds the rows as whoever read them found them: over containerd's API, or in the files of a store.

mod inventory;
mod labels;

pub use inventory::{
    BlobRow, ContainerRow, Gap, IngestRow, Inventory, LeaseRow, NamespaceId, NamespaceRow, RecordRow, Resource,
    SnapshotKind, SnapshotRow, Usage,
};
pub use labels::Labels;
