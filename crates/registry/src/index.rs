//! What a registry knows beside bytes: which repository has what, and what its tags mean.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use orlop_oci::{Descriptor, Digest, Document, MediaKind};
use serde::{Deserialize, Serialize};

/// Result of an index operation.
pub type IndexResult<T> = std::result::Result<T, IndexError>;

/// Why an index did not do as it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The repository has nothing.
    #[error("no such repository")]
    NoRepository,
    /// No manifest under this tag or digest.
    #[error("no such manifest")]
    NoManifest,
    /// The repository does not have this blob.
    #[error("no such blob")]
    NoBlob,
    /// What decides about what may come in, or go, says no; for the client to read.
    #[error("{0}")]
    Denied(String),
    /// A manifest is larger than what is taken; for the client to read.
    #[error("{0}")]
    TooLarge(String),
    /// Something else in the repository needs it; for the client to read.
    #[error("{0}")]
    InUse(String),
    /// Nothing more can be written.
    #[error("no space left")]
    NoSpace,
    /// A manifest refers to something that the repository does not have, or has no more.
    #[error("the repository does not have {0}")]
    NoChild(Digest),
    /// Another registry, which is mirrored, wants fewer requests; for the client to read.
    #[error("{reason}")]
    Limited {
        /// What it said.
        reason: String,
        /// After how long it may be asked again.
        retry_after: Option<Duration>,
    },
    /// Another registry, which is mirrored, does not give what it should; for the client to read.
    #[error("{0}")]
    Upstream(String),
    /// The database does not answer now; nothing was done.
    #[error("the registry's database is not available: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database failed.
    #[error("{0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What an index keeps of a manifest; its bytes are a blob of the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub size: u64,
    /// The manifest it is about.
    pub subject: Option<Digest>,
    /// What `referrers` lists as its type: its `artifactType`, else its config's media type.
    pub artifact_type: Option<String>,
    /// Its annotations, which `referrers` repeats.
    pub annotations: BTreeMap<String, String>,
    /// Blobs and manifests it refers to, in document order.
    pub children: Vec<Digest>,
    /// Those of `children` that may be elsewhere: layers that are not distributed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<Digest>,
}

impl ManifestRecord {
    /// What a document says of itself.
    pub fn of(document: &Document) -> Self {
        let (subject, artifact_type, annotations) = match (document.manifest(), document.index()) {
            (Some(m), _) => {
                let own = m.artifact_type.clone().filter(|t| !t.is_empty());
                (m.subject.as_ref(), own.or_else(|| Some(m.config.media_type.clone())), m.annotations.clone())
            }
            (None, Some(i)) => (i.subject.as_ref(), i.artifact_type.clone(), i.annotations.clone()),
            (None, None) => (None, None, BTreeMap::new()),
        };
        Self {
            digest: document.digest().digest().clone(),
            media_type: document.media_type().to_owned(),
            size: document.raw().len() as u64,
            subject: subject.map(|s| s.digest.clone()),
            artifact_type,
            annotations,
            children: document.children().into_iter().map(|child| child.digest.clone()).collect(),
            elsewhere: document
                .children()
                .into_iter()
                .filter(|child| may_be_elsewhere(document, child))
                .map(|child| child.digest.clone())
                .collect(),
        }
    }
}

/// Layers that are not distributed come from where their makers have them.
pub(crate) fn may_be_elsewhere(document: &Document, child: &Descriptor) -> bool {
    document.index().is_none() && matches!(child.kind(), MediaKind::Layer { foreign: true, .. })
}

/// How a manifest is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestKey {
    /// By tag.
    Tag(String),
    /// By digest.
    Digest(Digest),
}

/// What a request counts on, until this is dropped: see [`BlobIndex::hold`].
#[derive(Default)]
#[must_use = "what is held may be let go of as soon as this is dropped"]
pub struct Held {
    _counted: Option<Box<dyn Any + Send + Sync>>,
}

impl Held {
    /// Drops this with it.
    pub fn with(counted: impl Any + Send + Sync) -> Self {
        Self { _counted: Some(Box::new(counted)) }
    }
}

/// Which repository has which blob.
#[async_trait]
pub trait BlobIndex: Send + Sync {
    /// Keeps these blobs from being collected, those of them that are in the content store, long enough for a link or a
    /// manifest to follow. The registry asks for it before it looks whether they are there, so that what it saw stays true;
    /// and it drops what it gets when the link or the manifest is there, or does not come. What another request does meanwhile
    /// lets go of none of them. An index over a store that nobody collects has nothing to do.
    async fn hold(&self, digests: &[Digest]) -> IndexResult<Held> {
        let _ = digests;
        Ok(Held::default())
    }

    /// Says that a repository has a blob whose bytes are in the content store. Where they are not, or not any more, an index
    /// that can know says [`IndexError::NoBlob`].
    async fn link_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()>;

    /// Whether a repository has a blob.
    async fn has_blob(&self, repository: &str, digest: &Digest) -> IndexResult<bool>;

    /// Says that a repository has a blob no more.
    async fn unlink_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()>;
}

/// Which repository has which manifest.
#[async_trait]
pub trait ManifestIndex: Send + Sync {
    /// Adds a manifest and, in the same step, points tags at it. An index that several processes share looks in that step
    /// once more whether its bytes and those of its children are there: a collector may have come since they were seen.
    async fn put_manifest(&self, repository: &str, record: ManifestRecord, tags: &[String]) -> IndexResult<()>;

    /// Hears that a manifest was put whose children and self were held so far. An index that keeps them by the manifest from now
    /// on may let go of them; it cannot fail.
    async fn settle(&self, repository: &str, record: ManifestRecord, held: Held) {
        let _ = (repository, record, held);
    }

    /// Finds a manifest.
    async fn manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<ManifestRecord>;

    /// By digest: drops the manifest and every tag that points at it. By tag: drops the tag.
    async fn delete_manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<()>;

    /// The manifests whose subject is `subject`, by digest; none if there is no such repository.
    async fn referrers(&self, repository: &str, subject: &Digest) -> IndexResult<Vec<ManifestRecord>>;
}

/// Lists names, in lexical order, at most `limit` of those after `after`.
#[async_trait]
pub trait TagIndex: Send + Sync {
    /// The tags of a repository.
    async fn tags(&self, repository: &str, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>>;

    /// The repositories.
    async fn repositories(&self, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>>;
}

/// Everything a registry knows beside bytes.
pub trait RegistryIndex: BlobIndex + ManifestIndex + TagIndex {}

impl<T: BlobIndex + ManifestIndex + TagIndex> RegistryIndex for T {}
