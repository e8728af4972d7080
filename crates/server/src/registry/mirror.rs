//! The node's mirror, as its registry gives it to clients.

use std::sync::Arc;

use async_trait::async_trait;
use orlop_content::{self as content, BlobReader};
use orlop_image::{Error, Mirror, MirrorKey, Via};
use orlop_oci::{Digest, RepositoryName};
use orlop_registry::{self as registry, IndexError, IndexResult, ManifestKey, MirroredManifest};
use orlop_remote as remote;

use super::index::refused;

/// What a node gives of other registries.
pub struct NodeMirror {
    mirror: Mirror,
    /// What its own registry is called: nobody's mirror.
    own: String,
}

impl NodeMirror {
    /// The mirror for clients of the registry that is called `own`.
    pub fn new(mirror: Mirror, own: &str) -> Self {
        Self { mirror, own: own.to_owned() }
    }
}

#[async_trait]
impl registry::Mirror for NodeMirror {
    fn repository(&self, registry: &str, path: &str) -> Option<String> {
        if registry == self.own {
            return None;
        }
        self.mirror.repository(registry, path).map(|name| name.to_string())
    }

    async fn manifest(&self, repository: &str, key: &ManifestKey, via: &str) -> IndexResult<MirroredManifest> {
        let key = match key {
            ManifestKey::Tag(tag) => MirrorKey::Tag(tag.clone()),
            ManifestKey::Digest(digest) => MirrorKey::Digest(digest.clone()),
        };
        let found = self.mirror.manifest(&name(repository)?, &key, &Via::parse(via)).await;
        let found = found.map_err(|error| failed(error, IndexError::NoManifest))?;
        Ok(MirroredManifest {
            digest: found.document.digest().digest().clone(),
            media_type: found.document.media_type().to_owned(),
            bytes: found.document.raw().clone(),
            is_stale: found.stale.is_some(),
        })
    }

    async fn blob(
        &self,
        repository: &str,
        digest: &Digest,
        via: &str,
        is_read: bool,
    ) -> IndexResult<Arc<dyn BlobReader>> {
        let found = self.mirror.blob(&name(repository)?, digest, &Via::parse(via), is_read).await;
        found.map_err(|error| failed(error, IndexError::NoBlob))
    }
}

fn name(repository: &str) -> IndexResult<RepositoryName> {
    RepositoryName::parse(repository).map_err(|_| IndexError::NoRepository)
}

/// What a client hears of it.
fn failed(error: Error, missing: IndexError) -> IndexError {
    match error {
        Error::NotFound(_) | Error::Name { .. } => missing,
        Error::Content(error @ content::Error::Unavailable { .. }) => IndexError::Upstream(error.to_string()),
        Error::Remote(error) => match error.principal() {
            remote::Error::NotFound { .. } => missing,
            limited @ remote::Error::TooManyRequests { retry_after, .. } => {
                IndexError::Limited { reason: limited.to_string(), retry_after: *retry_after }
            }
            _ => IndexError::Upstream(error.to_string()),
        },
        other => refused(other),
    }
}
