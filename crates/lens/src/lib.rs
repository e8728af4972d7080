//! Looks into a containerd, or whatever speaks its API, and gives what it finds to `graph`. Read-only: no call that it
//! makes changes anything.
//!
//! [`Reader::inventory`] reads the lists of every service once, all namespaces, nothing item by item but what leases hold.
//! [`Reader::measure`] asks what snapshots take, [`Documents`] reads manifests and configs, each once, and only where a
//! question needs it, [`Reader::hash`] every byte of a blob. Of Orlop's own store [`Reader::surroundings`] reads instead what one
//! thing has to do with. [`offline`] fills the same rows from a root's
//! files, where no containerd answers or its store is large, and [`trees`] tells which snapshot a path belongs to.
//!
//! # Invariants
//! - Lists of one store are not of one moment: names, leases and containers are read before content and snapshots, so that what
//!   is being pulled meanwhile may look unreferenced, but nothing that is referenced looks absent for long. Who acts on what was
//!   read, reads again before.
//! - What cannot be read (a service that is not there, a snapshotter that fails) is a [`Gap`](orlop_graph::model::Gap),
//!   never an empty list without a word.

mod convert;
mod documents;
mod error;
mod hash;
pub mod offline;
mod read;
mod surroundings;
pub mod trees;
mod usage;

pub use documents::Documents;
pub use error::Error;
pub use hash::Bytes;
pub use read::{Listing, Reader};
