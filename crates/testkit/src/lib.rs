//! What tests need and nothing else may use: image makers, awkward and hostile layers, real peers, fault injection.
//!
//! - [`image`] makes images, indexes, attestations and artifacts; [`archive`] puts them on disk and into archives.
//! - [`tar`] writes tar streams entry by entry, the broken ones too; [`compress`] packs them.
//! - [`corpus`] names layers that must apply, must be refused, or must at least stay inside their root.
//! - [`from_dir`] reads tar entries off a real directory; [`fingerprint`] says what a tree is, so that two can be compared.
//! - [`process`] runs programs; [`registry`] and [`containerd`] are real peers started for one test, [`postgres`] and `s3` (a feature) for all
//!   tests of a program; [`busy`] stands before an HTTP server and answers 503 for a while.
//! - [`go`] builds the clients and suites that are written in Go.
//! - [`served`] is `orlop serve` itself on a socket of its own.
//! - [`tier`] says how much a test tries; [`dripping`] reads a few bytes at a time.
//! - [`disk`] is a small file system to be filled, remounted, or cut off from power.
//! - [`power`] records what a program writes and makes every state that a power cut may leave of it.
//! - [`faults`] lets system calls of a program fail, or kills it at one.
//! - [`liar`] is a registry that serves what it is told; [`proxy`] breaks connections, [`token`] hands out tokens, [`tls`] makes certificates.
//!
//! What is made here is deterministic: the same call gives the same bytes, so digests can be compared across runs.

pub mod archive;
pub mod busy;
pub mod compress;
pub mod containerd;
pub mod corpus;
pub mod disk;
pub mod dripping;
pub mod faults;
pub mod fingerprint;
pub mod from_dir;
pub mod go;
pub mod image;
pub mod liar;
pub mod mounts;
pub mod postgres;
pub mod power;
pub mod process;
pub mod proxy;
pub mod registry;
#[cfg(feature = "s3")]
pub mod s3;
pub mod served;
pub mod tar;
pub mod tier;
pub mod tls;
pub mod token;
