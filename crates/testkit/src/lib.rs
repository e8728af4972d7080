//! What tests need and nothing else may use: image makers, awkward and hostile layers, real peers, fault injection.
//!
//! - [`tar`] writes tar streams entry by entry, the broken ones too; [`compress`] packs them.
//! - [`corpus`] names layers that must apply, must be refused, or must at least stay inside their root.
//!
//! Everything is deterministic: the same call gives the same bytes, so digests can be compared across runs.

pub mod compress;
pub mod corpus;
pub mod tar;
