//! Reads bbolt database files: buckets of sorted keys, with values or further buckets. It never writes, takes no lock,
//! and knows nothing of what a database is about.
//!
//! A [`Db`] stands on a [`Source`] of bytes: a slice, or anything that reads at an offset. Pages are read when they are
//! needed, so a file of hundreds of megabytes costs the pages that are on the way to what is asked for, and one that is
//! damaged gives all that can still be reached.
//!
//! # What is checked
//! bbolt checksums its two meta pages and nothing else. Each page that is read must say of itself that it is the one that was
//! asked for, have its elements within itself and its keys in order and between those that its parent promises. A flipped bit
//! in a key or value that breaks none of this cannot be seen.
//!
//! # Invariants
//! - A page belongs to one place: one that is reached from a second place, or overlaps another, is an error. So no cycle is
//!   followed twice, and what a walk over everything costs is bounded by the size of the file, whatever is in it.
//! - Nothing panics on any bytes. No more memory is taken than the pages on the way to an entry have, at most
//!   [`MAX_RUN_BYTES`] each.
//!
//! # A file that is being written
//! bbolt writes the pages of a transaction to where no page of the transaction before it is, then its meta page; pages that a
//! transaction gave up are written over by the one after it at the earliest. So whatever was read is of one state if the
//! newest meta page is still the same afterwards: [`Db::is_current`] says so. It does not say that a difference did harm.
//! [`copy`] does this for the whole file: one sequential read, which is the shortest time in which a writer can come
//! between, and afterwards none can. It takes as much memory as the file has pages in use or free.

mod bucket;
mod claims;
mod db;
mod error;
mod iter;
mod leaf;
mod meta;
mod page;
mod source;

pub use bucket::{Bucket, Entry};
pub use db::{Db, MAX_NESTING, MAX_RUN_BYTES, MAX_TREE_DEPTH};
pub use error::{Error, Place, Result};
pub use iter::Iter;
pub use leaf::{Inner, Leaf, Pair};
pub use meta::{DamagedMeta, Meta, MetaDamage};
pub use source::{Source, copy};
