//! What registry gateways share: bytes in a bucket of S3's protocol, and everything that changes in PostgreSQL.
//!
//! A gateway keeps nothing of its own but a cache: any number of them may serve one database and one bucket, come and go,
//! or be killed. [`Shared`] is the way in; it gives a content store and an index to an `orlop_registry::Registry`, and
//! has the collector, which any one of the gateways runs at a time.
//!
//! ```text
//! bucket                                      PostgreSQL
//!   orlop-registry                             identity       whose bucket this is
//!   blobs/sha256/<hh>/<hex>/<generation>  ◄──  blobs          digest, generation, state, held until
//!   uploads/<id>/data, tail-<n>           ◄──  ingests        uploads between two requests
//!                                              links          repository has blob
//!                                              manifests, manifest_blobs, tags, repositories
//! ```
//!
//! # Invariants
//! - An object under `blobs/` is written whole, once, under a key that no other write ever has; its bytes hash to the digest
//!   in the key before its row is live. Nothing relies on conditional writes, locks or listings of the bucket being current.
//! - [`protocol`] says in which order rows and objects change. Only [`Collector`] deletes objects under `blobs/`.
//! - No statement is put together from text: functions that run one take a `&'static str`.
//! - What was acknowledged is committed in PostgreSQL, with `synchronous_commit` as the server has it, after its bytes were.
//! - A database or a bucket that does not answer is an error that says so, and is temporary.
//!
//! # Concurrency
//! Everything is cheap to clone and may be used from any task. Transactions that PostgreSQL breaks off because of others
//! are tried again, a bounded number of times.

mod blobs;
mod bucket;
mod cache;
mod collect;
mod database;
mod error;
mod health;
mod index;
mod ingests;
mod migrate;
mod parts;
pub mod protocol;
mod reader;
mod shared;
mod store;
mod tls;
mod writer;

pub use bucket::BucketOptions;
pub use cache::CacheOptions;
pub use collect::{Collected, Collector, Swept};
pub use database::DatabaseOptions;
pub use error::{Error, Result};
pub use index::SharedIndex;
pub use shared::{Options, Shared};
pub use store::SharedStore;
