//! Whether a blob's bytes are those of its digest.

use orlop_api::containerd::services::content::v1::{InfoRequest, ReadContentRequest};
use orlop_oci::{Digest, Digester};
use tonic::Code;

use crate::{Error, Reader};

/// What a store gave when a blob was read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bytes {
    /// These are they.
    Sound,
    /// Others, with this digest.
    Other(Digest),
    /// It has the blob and cannot read it, and says this.
    Unreadable(String),
    /// It went meanwhile.
    Gone,
}

impl Reader {
    /// Reads a blob whole and computes its digest; `read` is told of the bytes as they come.
    ///
    /// # Errors
    /// If the store cannot be asked. That it cannot read the blob is an answer.
    pub async fn hash(&self, namespace: &str, digest: &Digest, read: impl Fn(u64)) -> Result<Bytes, Error> {
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut stream = match self.content(namespace)?.read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return self.failed(namespace, digest, status).await,
        };
        let mut digester = Digester::new(digest.algorithm());
        loop {
            match stream.message().await {
                Ok(Some(part)) => {
                    digester.update(&part.data);
                    read(part.data.len() as u64);
                }
                Ok(None) => break,
                Err(status) => return self.failed(namespace, digest, status).await,
            }
        }
        let found = digester.finish();
        Ok(if found == *digest { Bytes::Sound } else { Bytes::Other(found) })
    }

    /// What it means that a blob cannot be read: a store lists what its database has, whether the file is there or not.
    async fn failed(&self, namespace: &str, digest: &Digest, status: tonic::Status) -> Result<Bytes, Error> {
        if matches!(status.code(), Code::Unavailable | Code::PermissionDenied | Code::Cancelled) {
            return Err(Error::call("content.Read", namespace)(status));
        }
        match self.content(namespace)?.info(InfoRequest { digest: digest.to_string() }).await {
            Ok(_) => Ok(Bytes::Unreadable(status.message().to_owned())),
            Err(info) if info.code() == Code::NotFound => Ok(Bytes::Gone),
            Err(info) => Err(Error::call("content.Info", namespace)(info)),
        }
    }
}
