//! Where what is missing comes from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use orlop_content::{self as content, BlobReader};
use orlop_oci::{Descriptor, MediaKind, RepositoryName};
use orlop_remote::{BlobStream, Client};

use crate::{Error, Images, Missing, Result, near, walk};

/// Gives what the store does not have.
#[async_trait]
pub(crate) trait Origin: Send + Sync {
    /// A document or config; `None` if there is none.
    async fn small(&self, descriptor: &Descriptor) -> Result<Option<Bytes>>;

    /// A blob's bytes from `offset` on.
    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream>;

    /// Tells others that may be given a blob while it comes that its bytes are in `bytes`, those before `offset` already.
    fn relay(&self, _descriptor: &Descriptor, _offset: u64, _bytes: Arc<dyn BlobReader>) -> Option<near::Relaying> {
        None
    }

    /// Whether a blob can be had; asked only where it costs nothing.
    fn may_have(&self, descriptor: &Descriptor) -> bool;

    /// The repository, for `containerd.io/distribution.source` labels.
    fn repository(&self) -> Option<&RepositoryName>;

    /// What came of a blob is wrong. Tells whether asking again may give better bytes.
    fn disproved(&self, _descriptor: &Descriptor) -> bool {
        false
    }
}

/// A repository of a registry, and whoever has what it has nearby.
pub(crate) struct Registry<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: RepositoryName,
    /// Counts what the registry gives.
    pulled: Arc<AtomicU64>,
    near: Arc<near::Part>,
    ledger: near::Ledger,
}

impl<'a> Registry<'a> {
    pub(crate) fn new(images: &Images, client: &'a Client, repository: RepositoryName) -> Self {
        let (pulled, near) = (Arc::clone(&images.inner.pulled), Arc::new(near::Part::new(images)));
        Self { client, repository, pulled, near, ledger: images.ledger().clone() }
    }

    /// A document from the registry.
    async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let mut entry = self.ledger.begin(&self.repository, &descriptor.digest, descriptor.size);
        let asking = entry.ask(near::Source::Registry, self.repository.domain());
        match self.client.document(&self.repository, descriptor).await {
            Ok(document) => {
                let bytes = document.raw().clone();
                self.pulled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                entry.end(asking, bytes.len() as u64, "gave it");
                Ok(bytes)
            }
            Err(error) => {
                entry.end(asking, 0, &error.to_string());
                Err(error.into())
            }
        }
    }
}

#[async_trait]
impl Origin for Registry<'_> {
    async fn small(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        let is_document = matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index | MediaKind::Schema1);
        let (digest, size) = (&descriptor.digest, Some(descriptor.size));
        let wanted = near::Wanted { repository: &self.repository, digest, size, offset: 0, is_document };
        match near::small(&self.near, &self.ledger, wanted).await {
            // Of another size than its descriptor says: the registry says so too, as an error.
            Some((bytes, _)) if bytes.len() as u64 == descriptor.size => return Ok(Some(bytes)),
            _ if is_document => return self.document(descriptor).await.map(Some),
            _ => {}
        }
        // Nearby was asked already.
        let nobody = Arc::default();
        let Self { client, repository, pulled, ledger, .. } = self;
        let ways = near::Ways { part: &nobody, ledger, client, repository, pulled };
        collect(near::blob(ways, descriptor, 0).await?, descriptor).await.map(Some)
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let Self { client, repository, pulled, near, ledger } = self;
        let ways = near::Ways { part: near, ledger, client, repository, pulled };
        Ok(near::blob(ways, descriptor, offset).await?)
    }

    fn relay(&self, descriptor: &Descriptor, offset: u64, bytes: Arc<dyn BlobReader>) -> Option<near::Relaying> {
        let (digest, size) = (&descriptor.digest, Some(descriptor.size));
        let wanted = near::Wanted { repository: &self.repository, digest, size, offset, is_document: false };
        self.near.relay(wanted, bytes)
    }

    fn may_have(&self, _descriptor: &Descriptor) -> bool {
        true
    }

    fn repository(&self) -> Option<&RepositoryName> {
        Some(&self.repository)
    }

    fn disproved(&self, descriptor: &Descriptor) -> bool {
        self.near.disproved(&descriptor.digest)
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
