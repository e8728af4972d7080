//! Blobs between nodes, over HTTP as Spegel has it.
//!
//! `GET /v2/<repository>/(blobs|manifests)/<digest>?ns=<registry>`, with ranges. A request with `X-Spegel-Mirrored: true` is
//! one of a peer, to be answered from what is here; others are answered the same way here, for containerd asks its next
//! mirror itself. The port is the same on every node of a fleet.
//!
//! # A blob that is still coming (Orlop's own)
//! Anybody who asks for all of it gets 200, the length of the whole, and the bytes as they come. A node that would give it on itself says
//! so by `X-Orlop-Coming: give`, and asks for what it has not by a range. It is answered with
//! - 200 or 206, and `X-Orlop-Has`: how many bytes are here now;
//! - 404 and `X-Orlop-Coming: waits` or `follows`: no more than that is here, and somebody is looked for, or another peer gives it;
//! - 404 and `X-Orlop-Coming: behind`: less is here;
//! - 503 without `Retry-After`: as many as may take it already do.
//!
//! Of the last two kinds, answers that say where else it may be had do so by `X-Orlop-Try`, with addresses: of those who take it here, or of who
//! gives it here.

mod ask;
mod pulse;
mod serve;
mod source;
mod tls;

pub(crate) use ask::{Answer, Asker, Question, Refusal};
pub(crate) use serve::{Server, ServerSettings};
pub use tls::{Tls, TlsError};

/// Says that who asks is a peer: he must not be sent on to others.
const MIRRORED: &str = "x-spegel-mirrored";
/// How busy a node is, 0 to 1. Orlop's own; Spegel neither sends nor reads it.
const LOAD: &str = "x-orlop-load";
/// That who asks gives it on; how a blob that is coming stands to him.
const COMING: &str = "x-orlop-coming";
const GIVE: &str = "give";
/// Bytes of a blob that are here, if that is not all of it.
const HAS: &str = "x-orlop-has";
/// Where else it may be had.
const TRY: &str = "x-orlop-try";
/// Addresses in that.
const MAX_TRY: usize = 8;
/// The digest of what is given.
const DIGEST: &str = "docker-content-digest";
/// Which registry is meant, in answers.
const NAMESPACE: &str = "oci-namespace";
