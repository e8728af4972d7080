//! Where what is missing comes from.

use async_trait::async_trait;
use orlop_oci::{Descriptor, Document, RepositoryName};
use orlop_remote::{BlobStream, Client};

use crate::{Error, Missing, Result, walk};

/// Gives what the store does not have.
#[async_trait]
pub(crate) trait Origin: Send + Sync {
    /// A manifest or index.
    async fn document(&self, descriptor: &Descriptor) -> Result<Document>;

    /// A blob's bytes from `offset` on.
    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream>;

    /// The repository, for `containerd.io/distribution.source` labels.
    fn repository(&self) -> Option<&RepositoryName>;
}

/// A repository of a registry.
pub(crate) struct Registry<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: RepositoryName,
}

#[async_trait]
impl Origin for Registry<'_> {
    async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        Ok(self.client.document(&self.repository, descriptor).await?)
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        Ok(self.client.blob(&self.repository, descriptor, offset).await?)
    }

    fn repository(&self) -> Option<&RepositoryName> {
        Some(&self.repository)
    }
}

/// Nowhere: everything must be in the store already, as after an import.
pub(crate) struct Nowhere {
    /// What is worked on, for errors.
    pub(crate) name: String,
}

impl Nowhere {
    fn missing(&self, descriptor: &Descriptor) -> Error {
        let missing = Missing {
            digest: descriptor.digest.clone(),
            kind: walk::kind_word(descriptor),
            platform: descriptor.platform.clone(),
        };
        Error::Incomplete { name: self.name.clone(), missing: vec![missing] }
    }
}

#[async_trait]
impl Origin for Nowhere {
    async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        Err(self.missing(descriptor))
    }

    async fn blob(&self, descriptor: &Descriptor, _offset: u64) -> Result<BlobStream> {
        Err(self.missing(descriptor))
    }

    fn repository(&self) -> Option<&RepositoryName> {
        None
    }
}
