//! The registry client: resolve, fetch, push; hosts.toml, credentials, mirrors.
//!
//! Source of the protocol: the OCI distribution specification 1.1 and Docker's token authentication. Configuration is
//! containerd's `certs.d/<host>/hosts.toml`. The library reads no environment and no home directory: paths come in
//! [`ClientOptions`].
//!
//! # Invariants
//! - A credential is sent only to the host it belongs to, or to the token realm that host named; never after a redirect
//!   to another host.
//! - Everything read from a registry is bounded: documents by `MAX_MANIFEST_BYTES`, blobs by their descriptor's size.
//! - A document is checked against its digest before it is returned. Blob streams are not: the writer hashes them.
//!
//! # Concurrency
//! [`Client`] is cheap to clone; tokens, connections and the knowledge that a mirror is dead are shared by all clones.

use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use orlop_oci::{Descriptor, Digest, Document, Reference, RepositoryName};

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// containerd's `certs.d` directories, first match wins (CRI's `config_path` is a colon-separated list).
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json`, for credentials and credential helpers.
    pub docker_config: Option<PathBuf>,
    /// User and password for every registry, instead of what the files say.
    pub credentials: Option<(String, String)>,
    /// HTTP instead of HTTPS where no hosts.toml says otherwise. Loopback hosts fall back to HTTP by themselves.
    pub plain_http: bool,
}

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

/// Why the registry did not give what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not have it.
    #[error("{what} not found at {host}")]
    NotFound {
        /// Reference or digest.
        what: String,
        /// Who was asked.
        host: String,
    },
}

/// Result of a registry operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

/// Talks to registries.
#[derive(Debug, Clone)]
pub struct Client {
    options: std::sync::Arc<ClientOptions>,
}

impl Client {
    /// A client; configuration files are read when a host is first needed.
    pub fn new(options: ClientOptions) -> Self {
        Self { options: std::sync::Arc::new(options) }
    }

    /// Asks what a tag or digest reference means: HEAD, then GET where the answer lacks digest or length.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let _ = (&self.options, reference);
        todo!()
    }

    /// Fetches a manifest or index and checks its digest.
    pub async fn document(&self, repository: &RepositoryName, descriptor: &Descriptor) -> Result<Document> {
        let _ = (repository, descriptor);
        todo!()
    }

    /// Streams a blob from `offset` to its end; for non-distributable layers `descriptor.urls` are tried too.
    /// Large blobs may be fetched by several ranges at once, still delivered in order.
    pub async fn blob(&self, repository: &RepositoryName, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let _ = (repository, descriptor, offset);
        todo!()
    }

    /// Whether the registry has a blob in this repository.
    pub async fn has_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        let _ = (repository, digest);
        todo!()
    }

    /// Makes a blob present: HEAD, mount from one of `mount_from` (same host), else upload.
    pub async fn push_blob(
        &self,
        repository: &RepositoryName,
        descriptor: &Descriptor,
        mount_from: &[RepositoryName],
        source: BlobSource<'_>,
        progress: UploadProgress<'_>,
    ) -> Result<Uploaded> {
        let _ = (repository, descriptor, mount_from, source, progress);
        todo!()
    }

    /// Pushes a manifest or index under a tag or its digest.
    pub async fn push_document(&self, reference: &Reference, document: &Document) -> Result<()> {
        let _ = (reference, document);
        todo!()
    }

    /// Manifests whose subject is `digest`: referrers API, else the tag fallback.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let _ = (repository, digest, artifact_type);
        todo!()
    }
}
