//! An OCI layout in a directory as an origin: blobs are taken straight from its files.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use orlop_oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, RepositoryName};
use orlop_remote::BlobStream;

use crate::pull::{Origin, PIECE, lacking};
use crate::{Error, Result};

/// An OCI layout in a directory.
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// One of the layout's own files; `None` if there is none.
    pub(super) async fn document(&self, name: &str) -> Result<Option<Bytes>> {
        read_small(self.root.join(name)).await
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }
}

async fn read_small(path: PathBuf) -> Result<Option<Bytes>> {
    let failed = |source| Error::Io { operation: "read", path: path.clone(), source };
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there is more.
    let mut limited = tokio::io::AsyncReadExt::take(file, MAX_MANIFEST_BYTES + 1);
    tokio::io::AsyncReadExt::read_to_end(&mut limited, &mut bytes).await.map_err(failed)?;
    Ok(Some(bytes.into()))
}

#[async_trait]
impl Origin for Layout {
    async fn small(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        read_small(self.path(&descriptor.digest)).await
    }

    async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        let path = self.path(&descriptor.digest);
        let opened = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || {
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset)).map(|_| file)
            })
        };
        let file = match opened.await.map_err(|_| Error::Interrupted)? {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(lacking(descriptor)),
            Err(source) => return Err(Error::Io { operation: "open", path, source }),
        };
        Ok(Box::pin(futures::stream::try_unfold(file, |file| async move {
            let read = tokio::task::spawn_blocking(move || read_piece(file)).await;
            read.map_err(|_| std::io::Error::other("the program is shutting down"))
                .flatten()
                .map_err(|error| orlop_remote::Error::Source(error.into()))
        })))
    }

    fn may_have(&self, descriptor: &Descriptor) -> bool {
        self.path(&descriptor.digest).is_file()
    }

    fn repository(&self) -> Option<&RepositoryName> {
        None
    }
}

type Piece = Option<(Bytes, std::fs::File)>;

fn read_piece(mut file: std::fs::File) -> std::io::Result<Piece> {
    let mut buffer = BytesMut::zeroed(PIECE);
    let count = file.read(&mut buffer)?;
    buffer.truncate(count);
    Ok((count > 0).then(|| (buffer.freeze(), file)))
}
