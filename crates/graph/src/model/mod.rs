//! A whole store as one graph: records, blobs, snapshots, leases, writes in progress and containers of all namespaces, and
//! who keeps what. It answers what a thing is, what keeps it and what it costs, for any containerd.
//!
//! An [`Inventory`] holds the rows as they were read; [`Model::new`] links them once. Edges are those that garbage
//! collection follows (docs/garbage-collection.md): what the store would keep is what the model says is kept.
//!
//! # Words
//! - A *node* is a row, or a thing that some row names and that is not there ([`Node::Missing`]): it costs nothing and
//!   passes life on.
//! - A *root* keeps itself: a record or lease that has not expired, a container, what has the label
//!   `containerd.io/gc.root`, a write in progress.
//! - A *copy* of a blob is another namespace's row of the same digest: the bytes are there once.
//!
//! # Invariants
//! - No edge leaves its namespace.
//! - A node is kept if, and only if, a root reaches it.
//! - Each digest counts once in any sum of bytes, and counts only if no copy stays.
//!
//! - A conditional reference ([`orlop_oci::condition`]) is an edge if its condition held when the rows were read.
//!
//! - An edge or an expiry that the store's collector does not know ([`Collector`]) counts for nothing.

mod build;
mod collector;
mod cost;
mod find;
mod findings;
mod gains;
mod images;
mod inventory;
mod keep;
mod labels;
mod nodes;
mod pattern;
mod plan;
mod prune;
mod well_known;

pub use collector::Collector;
pub use cost::{Cost, Weight};
pub use find::{Found, Matched, SHORTEST};
pub use findings::{Class, Facts, Finding, Mend};
pub use images::{ImageNames, ImageSize, Role};
pub use inventory::{
    BlobRow, ContainerRow, Gap, IngestRow, Inventory, LeaseRow, NamespaceId, NamespaceRow, RecordRow, Resource,
    SnapshotKind, SnapshotRow, Usage,
};
pub use keep::{Chain, Kept, Link};
pub use labels::Labels;
pub use nodes::{Edge, Missing, Model, Node, NodeId, NodeKind, Root, Why};
pub use pattern::Pattern;
pub use plan::Removal;
pub use prune::{Chosen, LabelRule, Policy, Selection, Sign, Spare, Spared, Use};
pub use well_known::{CACHED, GONE, MANAGED, PINNED, PUSHED, SOURCE, UNCOMPRESSED};
