//! Reading a blob from the bucket: single ranges as they are asked for, and one long answer for who reads on.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use object_store::path::Path;
use orlop_content::{BlobReader, Error, Result};
use orlop_oci::Digest;

use crate::bucket::{Bucket, Pieces};

/// How often a long answer that breaks off is asked for again, where it broke off, before a byte of it has come.
const TRIES: usize = 3;

/// Reads one object.
pub(crate) struct BucketReader {
    pub(crate) bucket: Bucket,
    pub(crate) digest: Digest,
    pub(crate) key: Path,
    pub(crate) size: u64,
    /// Whether readers are sent to the bucket.
    pub(crate) redirects: bool,
    pub(crate) sequel: Arc<tokio::sync::Mutex<Sequel>>,
}

/// Where the last read ended, and what comes after it.
#[derive(Default)]
pub(crate) struct Sequel {
    offset: u64,
    pieces: Option<Pieces>,
    left: Bytes,
}

#[async_trait]
impl BlobReader for BucketReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let length = self.size.saturating_sub(offset).min(length as u64);
        if length == 0 {
            return Ok(Bytes::new());
        }
        // Readers that share this one do not wait for each other's answers.
        if let Ok(mut sequel) = self.sequel.try_lock() {
            if offset != 0 && sequel.offset == offset {
                return self.go_on(&mut sequel, length).await;
            }
            *sequel = Sequel { offset: offset + length, ..Sequel::default() };
        }
        let bytes = self.bucket.get_range(&self.key, offset..offset + length).await.map_err(|e| self.explain(e))?;
        if bytes.len() as u64 != length {
            return Err(self.resized(offset + bytes.len() as u64));
        }
        Ok(bytes)
    }

    async fn redirect(&self) -> Result<Option<String>> {
        if !self.redirects {
            return Ok(None);
        }
        Ok(Some(self.bucket.url(&self.key).await?))
    }
}

impl BucketReader {
    async fn go_on(&self, sequel: &mut Sequel, length: u64) -> Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut read = BytesMut::new();
        let mut tries = 0;
        while read.len() < length {
            if !sequel.left.is_empty() {
                let piece = sequel.left.split_to(sequel.left.len().min(length - read.len()));
                sequel.offset += piece.len() as u64;
                if read.is_empty() && piece.len() == length {
                    return Ok(piece);
                }
                read.extend_from_slice(&piece);
                continue;
            }
            match self.next(sequel).await {
                Ok(Some(piece)) => {
                    sequel.left = piece;
                    tries = 0;
                }
                Ok(None) => return Err(self.resized(sequel.offset)),
                Err(error) if error.is_temporary() && tries < TRIES => {
                    tries += 1;
                    sequel.pieces = None;
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
        Ok(read.freeze())
    }

    async fn next(&self, sequel: &mut Sequel) -> crate::Result<Option<Bytes>> {
        if sequel.pieces.is_none() {
            sequel.pieces = Some(self.bucket.stream(&self.key, sequel.offset).await?);
        }
        let pieces = sequel.pieces.as_mut().expect("it was opened just now");
        pieces.next().await.transpose()
    }

    fn resized(&self, actual: u64) -> Error {
        Error::Resized { digest: self.digest.clone(), expected: self.size, actual }
    }

    /// A live row without an object: it was deleted by somebody else.
    fn explain(&self, error: crate::Error) -> Error {
        match error {
            crate::Error::Bucket(object_store::Error::NotFound { .. }) => crate::Error::Damaged {
                digest: self.digest.clone(),
                key: self.key.to_string(),
                why: "it is not in the bucket".to_owned(),
            }
            .into(),
            error => error.into(),
        }
    }
}
