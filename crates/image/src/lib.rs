//! What users mean: pull, push, import, export, tag, remove, pin, check; and the reconciler of hash references.
//!
//! Everything is composed from `metadata` (rows), its scoped content and snapshots (bytes and trees) and `remote` (the
//! registry). Nothing here knows protobuf, HTTP or a terminal.
//!
//! # Invariants
//! - Complete or refuse: a name becomes visible only when every document, config and layer of the wanted platforms is
//!   there and verified.
//! - Everything fetched is held by a lease until the records are written; the three records are written in one
//!   transaction.
//! - In CRI-managed namespaces the records converge to design's §7 whatever was created, changed or lost.

mod event;

pub use event::{BlobEvent, Event, Limit, Outcome, Sink, Stage};
