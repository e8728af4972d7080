//! OCI and Docker image vocabulary: digests, references, hash references, descriptors, manifests, platforms; and how
//! containerd writes that a reference holds at times ([`condition`]).
//!
//! Everything here is parsing and arithmetic; there is no I/O. The invariants:
//!
//! - A digest of a document is computed over the bytes that were received, never over re-serialised JSON:
//!   [`Document`] keeps its raw bytes beside the parsed form.
//! - What people confuse are different types: [`ManifestDigest`] (what a name points at), [`ImageId`] (the digest
//!   of the config), [`DiffId`] (the digest of an uncompressed layer), [`ChainId`] (of a stack of layers).
//! - Parsing is strict and total: hostile input gives an error, never a panic.

pub mod condition;
mod digest;
mod document;
mod duration;
pub mod media_type;
mod numbers;
pub mod owner;
mod platform;
mod reference;
mod shape;

pub use digest::{Algorithm, ChainId, DiffId, Digest, DigestError, Digester, ImageId, ManifestDigest, chain_ids};
pub use document::{
    Descriptor, Document, DocumentError, ImageConfig, ImageManifest, Index, MAX_MANIFEST_BYTES, RootFs,
};
pub use duration::go_duration;
pub use media_type::{Compression, MediaKind};
pub use numbers::{DigestNumber, DigestTable};
pub use platform::{Platform, PlatformError, PlatformMatcher};
pub use reference::{Kind, Reference, ReferenceError, RepositoryName, classify};
