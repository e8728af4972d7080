//! Blobs between nodes, over HTTP as Spegel has it.
//!
//! `GET /v2/<repository>/(blobs|manifests)/<digest>?ns=<registry>`, with ranges. A request with `X-Spegel-Mirrored: true` is
//! one of a peer, to be answered from what is here; others are answered the same way here, for containerd asks its next
//! mirror itself. The port is the same on every node of a fleet.

mod ask;
mod pulse;
mod serve;
mod tls;

pub(crate) use ask::{Answer, Asker, Question, Refusal};
pub(crate) use serve::{Server, ServerSettings};
pub use tls::{Tls, TlsError};

/// Says that who asks is a peer: he must not be sent on to others.
const MIRRORED: &str = "x-spegel-mirrored";
/// How busy a node is, 0 to 1. Orlop's own; Spegel neither sends nor reads it.
const LOAD: &str = "x-orlop-load";
/// The digest of what is given.
const DIGEST: &str = "docker-content-digest";
/// Which registry is meant, in answers.
const NAMESPACE: &str = "oci-namespace";
