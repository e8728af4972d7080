//! Where what is missing comes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use orlop_content as content;
use orlop_oci::{Descriptor, MediaKind, RepositoryName};
use orlop_remote::{BlobStream, Client};

use crate::{Error, Images, Missing, Result, walk};

/// Gives what the store does not have.
#[async_trait]
pub(crate) trait Origin: Send + Sync {
    /// A document or config; `None` if there is none.
    async fn small(&self, descriptor: &Descriptor) -> Result<Option<Bytes>>;

    /// A blob's bytes from `offset` on.
    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream>;

    /// Whether a blob can be had; asked only where it costs nothing.
    fn may_have(&self, descriptor: &Descriptor) -> bool;

    /// The repository, for `containerd.io/distribution.source` labels.
    fn repository(&self) -> Option<&RepositoryName>;
}

/// A repository of a registry.
pub(crate) struct Registry<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: RepositoryName,
    /// Counts what comes.
    pub(crate) pulled: Arc<AtomicU64>,
}

impl<'a> Registry<'a> {
    pub(crate) fn new(images: &Images, client: &'a Client, repository: RepositoryName) -> Self {
        Self { client, repository, pulled: Arc::clone(&images.inner.pulled) }
    }
}

#[async_trait]
impl Origin for Registry<'_> {
    async fn small(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        match descriptor.kind() {
            MediaKind::Manifest | MediaKind::Index | MediaKind::Schema1 => {
                let bytes = self.client.document(&self.repository, descriptor).await?.raw().clone();
                self.pulled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(Some(bytes))
            }
            _ => collect(self.blob(descriptor, 0).await?, descriptor).await.map(Some),
        }
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let (stream, pulled) =
            (self.client.blob(&self.repository, descriptor, offset).await?, Arc::clone(&self.pulled));
        Ok(Box::pin(stream.inspect_ok(move |bytes| {
            pulled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        })))
    }

    fn may_have(&self, _descriptor: &Descriptor) -> bool {
        true
    }

    fn repository(&self) -> Option<&RepositoryName> {
        Some(&self.repository)
    }
}

/// Nowhere: everything must be in the store already, as after an import.
pub(crate) struct Nowhere;

#[async_trait]
impl Origin for Nowhere {
    async fn small(&self, _descriptor: &Descriptor) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn blob(&self, descriptor: &Descriptor, _offset: u64) -> Result<BlobStream> {
        Err(lacking(descriptor))
    }

    fn may_have(&self, _descriptor: &Descriptor) -> bool {
        false
    }

    fn repository(&self) -> Option<&RepositoryName> {
        None
    }
}

/// An origin lacks a blob that it should have.
pub(crate) fn lacking(descriptor: &Descriptor) -> Error {
    let missing = Missing {
        digest: descriptor.digest.clone(),
        kind: walk::kind_word(descriptor),
        platform: descriptor.platform.clone(),
    };
    Error::Incomplete { name: "the image".to_owned(), missing: vec![missing] }
}

/// All bytes of a small blob; they are not hashed here.
pub(crate) async fn collect(mut stream: BlobStream, descriptor: &Descriptor) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
        if bytes.len() as u64 > descriptor.size {
            return Err(too_long(descriptor, bytes.len() as u64));
        }
    }
    Ok(bytes.freeze())
}

/// More bytes came than the descriptor says.
pub(crate) fn too_long(descriptor: &Descriptor, actual: u64) -> Error {
    let reference = descriptor.digest.to_string();
    content::Error::SizeMismatch { reference, expected: descriptor.size, actual }.into()
}
