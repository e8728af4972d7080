//! Who refers to what, what each image costs, and what removing records would free. Pure: plain data in, answers out,
//! so that any containerd can feed it.
//!
//! A [`Builder`] takes blobs, snapshots, manifests and records in any order; [`Builder::build`] gives a [`Graph`] that
//! answers without looking at anything again. Digests are numbered first; `benches/graph.rs` says how long 10,000
//! images of ten layers take.
//!
//! [`model`] is the other half: everything that a store's lists say, as one graph with the edges that garbage collection
//! follows, for questions about single things.
//!
//! # Words
//! - An *image* is all records of one namespace that lead to one image ID on the wanted platform (else the first
//!   platform that is there); records that lead to none (artifacts, missing content) are one image for each target.
//! - An *item* is a blob or a snapshot that is present. What is missing costs nothing.
//! - An item is *shared* if another image of the store uses it too, *unique* otherwise.
//!
//! # Invariants
//! - For each image, shared + unique = compressed + unpacked.
//! - The sum of all unique bytes and of every shared item once is the sum of all items that images use.
//! - An image uses what garbage collection keeps for it: documents, configs, layers, links, and the snapshots of each
//!   chain whose topmost snapshot is there.
//! - [`Graph::plan`] frees exactly what no record that stays and no holder reaches.

pub mod model;

mod build;
mod images;
mod intern;
mod plan;
mod reach;
mod records;

pub use build::{Builder, Held, Holder, Manifest, NamespaceNumber, NumberedManifest, Record, Retelling};
pub use images::{Freed, Graph, Image, Sizes};
pub use plan::{InUse, Plan, PlanError, PlanRequest, Return, Why};
pub use records::{RecordView, Records};
