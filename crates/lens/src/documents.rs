//! Manifests, indexes and configs, each read once.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use orlop_api::containerd::services::content::v1::ReadContentRequest;
use orlop_oci::Digest;
use tonic::Code;

use crate::read::AT_ONCE;
use crate::{Error, Reader};

/// A document larger than this is none: containerd's own bound for manifests.
pub(crate) const LARGEST: u64 = 4 * 1048 * 1048;

/// Documents that were read.
#[derive(Debug, Clone, Default)]
pub struct Documents(HashMap<Digest, Option<Bytes>>);

impl Documents {
    /// The bytes of a document, if it was asked for and is there.
    pub fn get(&self, digest: &Digest) -> Option<&Bytes> {
        self.0.get(digest)?.as_ref()
    }

    /// Takes in what another has.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether a document was asked for, and was there or not.
    pub fn was_asked_for(&self, digest: &Digest) -> bool {
        self.0.contains_key(digest)
    }

    pub(crate) fn answer(&mut self, digest: Digest, bytes: Option<Bytes>) {
        self.0.insert(digest, bytes);
    }

    /// Takes in one that is known already.
    pub fn insert(&mut self, digest: Digest, bytes: Bytes) {
        self.0.insert(digest, Some(bytes));
    }
}

impl Reader {
    /// Reads documents that have not been read; each is checked against its digest, and one that differs from it, is too
    /// large or is not there counts as absent.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn documents(
        &self,
        documents: &mut Documents,
        wanted: impl IntoIterator<Item = (Arc<str>, Digest, u64)>,
    ) -> Result<(), Error> {
        let mut unknown: Vec<(Arc<str>, Digest, u64)> =
            wanted.into_iter().filter(|w| !documents.0.contains_key(&w.1)).collect();
        unknown.sort_by(|a, b| a.1.cmp(&b.1));
        unknown.dedup_by(|a, b| a.1 == b.1);
        let reads = unknown.into_iter().map(|(namespace, digest, size)| async move {
            let bytes = if size > LARGEST { None } else { self.blob(&namespace, &digest, size).await? };
            Ok::<_, Error>((digest, bytes))
        });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await?;
        documents.0.extend(read);
        Ok(())
    }

    async fn blob(&self, namespace: &str, digest: &Digest, size: u64) -> Result<Option<Bytes>, Error> {
        let failed = || Error::call("content.Read", namespace);
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut stream = match self.content(namespace)?.read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed()(status)),
        };
        let mut bytes = BytesMut::with_capacity(size as usize);
        loop {
            match stream.message().await {
                Ok(Some(part)) if (bytes.len() + part.data.len()) as u64 <= LARGEST => {
                    bytes.extend_from_slice(&part.data)
                }
                Ok(Some(_)) => return Ok(None),
                Ok(None) => break,
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed()(status)),
            }
        }
        Ok(checked(digest, bytes.freeze()))
    }
}

/// The bytes, if they hash to the digest.
pub(crate) fn checked(digest: &Digest, bytes: Bytes) -> Option<Bytes> {
    let mut digester = orlop_oci::Digester::new(digest.algorithm());
    digester.update(&bytes);
    (digester.finish() == *digest).then_some(bytes)
}
