//! Everything that is not bytes: image records, namespaces, labels, leases, snapshot names, history; and the garbage
//! collector, the only code that deletes content or snapshots.
//!
//! One SQLite database, `ROOT/meta.db` (WAL, `synchronous=FULL`), with `ROOT/history.log` beside it. [`Store`] joins the
//! database with a raw content store and the snapshot drivers and offers what containerd's metadata plugin offers:
//! namespaced content, snapshots, images and leases.
//!
//! # Invariants
//! - **Bytes first.** A row that names bytes is committed only after the bytes are durable.
//! - **Roots before renames.** An `ingest` row that names its digest exists before the blob is renamed into `blobs/`;
//!   the collector removes a file only inside a write transaction that saw neither a blob row nor an ingest row for it.
//! - **Suspects.** Every object that nothing keeps is reachable from a row of `suspect`. Whoever removes a root or an
//!   edge, or makes an object, adds its target to `suspect` in the same transaction. That is what makes collection
//!   incremental; see [`gc`].
//! - **Damage.** What is found not to be what it was is a row of `damage` before its bytes are set aside, and until sound
//!   ones have taken their place.
//! - **History.** Each change of an image record appends one row to `history` and one line to `history.log`, in the
//!   transaction that makes the change.
//! - **A lost database is never made anew.** Where `meta.db` is gone and what it knew of is not, nobody opens the root
//!   before it was rebuilt ([`Rebuild`]).
//!
//! - **The first error of the disk stops writes.** After it, on a file of the metadata, this process only reads
//!   ([`Store::stopped`]).
//!
//! # Concurrency
//! Any number of processes may open one root. Readers never block (WAL); writers queue on SQLite's write lock with a busy
//! timeout, and those of one process may share a transaction; one process at a time collects (`ROOT/gc.lock`, flock). All methods block and belong on a blocking pool;
//! the exception is [`ScopedContent`], which plays the async roles of `orlop-content`.

#![cfg_attr(test, allow(clippy::duplicate_mod, reason = "a test compiles a core once more, on a scheduler of its own"))]

mod around;
mod changes;
mod check;
mod conditions;
mod containers;
mod content;
mod damage;
mod db;
mod edges;
mod error;
mod fault;
mod filter;
mod format;
pub mod gc;
mod history;
mod images;
mod index;
mod kin;
mod labels;
mod leases;
mod listing;
mod look;
mod mirrored;
mod mounts;
mod namespaces;
mod progress;
mod quarantine;
mod readers;
mod rebuild;
mod repositories;
mod reserve;
mod room;
mod scrub;
mod snapshots;
mod store;
mod summary;
mod sync;
mod transact;
#[cfg(test)]
mod transact_orders_tests;
#[cfg(test)]
mod transact_tests;
mod trash;
mod trees;
mod watch;

pub use around::Surroundings;
pub use changes::{Change, Follower, Notice, Watcher};
pub use check::MetadataProblem;
pub use containers::{Container, ContainerBase, TypedBytes};
pub use content::{Brought, ContentInfo, ScopedContent, ScopedWriter};
pub use damage::{Affected, Damage, Damaged};
pub use db::Clock;
pub use error::{Error, Fault, ObjectKind, Result};
pub use filter::{Filter, FilterError};
pub use history::{HistoryAction, HistoryEntry, LogLine, ParsedLog, RecordState, parse_log};
pub use images::{Image, ImageChange, Replacement};
pub use leases::{Lease, Resource, ResourceKind};
pub use listing::{ListedImage, ListedManifest, Listing, ListingRequest};
pub use look::{Glance, Look, Mark};
pub use mirrored::Mirrored;
pub use mounts::Activation;
pub use namespaces::{NamespaceInfo, validate_identifier, validate_namespace};
pub use progress::Progress;
pub use rebuild::{Condition, Held, Loss, NeededBlob, Rebuild, Rebuilt};
pub use repositories::{ManifestRow, Repositories};
pub use reserve::Gate;
pub use room::Asking;
pub use scrub::{Scrub, ScrubLock};
pub use snapshots::{Commit, Healing, ScopedSnapshots, SnapshotInfo, SnapshotKind, SnapshotTotals};
pub use store::{OpenOptions, Scope, Store};
pub use summary::ManifestSummary;
pub use trash::{TrashEntry, UndoReport};
pub use trees::Tree;
pub use watch::Counts;

/// Labels of any object; a value may not be empty, key and value together have at most 4096 bytes.
pub type Labels = std::collections::BTreeMap<String, String>;
