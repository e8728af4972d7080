//! The registry client: resolve, fetch, push; hosts.toml, credentials, mirrors.
//!
//! Source of the protocol: the OCI distribution specification 1.1 and Docker's token authentication. Configuration is
//! containerd's `certs.d/<host>/hosts.toml`. Paths come in [`ClientOptions`]; the library reads no home directory, and of
//! the environment only what its TLS and HTTP libraries and credential helpers define: `SSL_CERT_FILE`, `SSL_CERT_DIR`,
//! `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY` (never for loopback hosts) and `PATH`. Credential providers are given all of it.
//!
//! # Invariants
//! - A credential is sent only to the host it belongs to, or to the token realm that host named; never after a redirect
//!   to another host.
//! - Everything read from a registry is bounded: documents by `MAX_MANIFEST_BYTES`, blobs by their descriptor's size.
//! - A document is checked against its digest before it is returned. Blob streams are not: the writer hashes them.
//! - An error says who was asked and what each of them said.
//!
//! # Concurrency
//! [`Client`] is cheap to clone; tokens, connections and the knowledge that a mirror is dead are shared by all clones.
//! Dropping a future or a [`BlobStream`] ends its connections; nothing runs on in the background.

mod answer;
mod auth;
mod blob;
mod challenge;
mod client;
mod clients;
mod credentials;
mod duration;
mod endpoint;
mod error;
mod failure;
mod hosts;
mod hosts_toml;
mod options;
mod providers;
mod push;
mod rates;
mod referrers;
mod resolve;
mod retry;
mod scope;
mod tls;
mod turns;

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use orlop_oci::Descriptor;

pub use client::Client;
pub use duration::parse_duration;
pub use error::{BoxError, ConfigError, Error, Result};
pub use hosts_toml::{NamedHost, read as read_hosts_toml};
pub use options::{ClientOptions, Credential, CredentialSource, Login, TraceHeaders, Tuning};
pub use providers::{ApiVersion, ImagePattern, ImagePatternError, Provider, Providers, read_provider_answer};
pub use rates::{RateLimit, Rates};
pub use turns::Turns;

/// How Orlop names itself to token servers.
const CLIENT_ID: &str = "orlop";
/// Says through which mirrors a request came.
const VIA: &str = "orlop-via";
/// How Orlop names itself to hosts.
const USER_AGENT: &str = concat!("orlop/", env!("CARGO_PKG_VERSION"));

/// What a reference means at a registry now.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The target.
    pub descriptor: Descriptor,
    /// The host that answered.
    pub host: String,
}

/// Bytes of a blob from an offset on; broken connections are resumed inside.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>;

/// How far an upload has come: bytes of the blob sent so far.
pub type UploadProgress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// What an upload of a blob came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was there.
    Present,
    /// Taken from another repository of the same registry.
    Mounted,
    /// Sent.
    Sent,
}

/// Opens the bytes of a blob to be pushed, from an offset on; called again when an upload is resumed.
pub type BlobSource<'a> = &'a (dyn Fn(u64) -> BlobStream + Send + Sync);
