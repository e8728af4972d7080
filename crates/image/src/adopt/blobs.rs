//! Blobs: opened where they are, hashed, and given a second place.
//!
//! Many share the transactions that begin and end their writes; several are hashed at once. A blob that another namespace has here is
//! not read.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use orlop_content::{self as content, IngestManager, IngestOptions, Shared};
use orlop_metadata::{Brought, Scope, ScopedContent};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::choose::Blob;
use super::{Adoption, Foreign};
use crate::{Error, Images, Result};

/// So many begin and end together.
const TOGETHER: usize = 64;
/// So many are hashed at once: more wait for the same disk.
const AT_ONCE: usize = 4;
/// Tries to open a write that another adoption has open, and how long between them.
const TRIES: u32 = 1200;
const WAIT: Duration = Duration::from_millis(50);

/// How a blob ended.
enum Ended {
    /// It was here.
    Present,
    /// Its bytes are here; how they came, unless another namespace had them.
    Here(Option<Brought>, Option<Shared>),
    Left(String),
}

impl Images {
    /// Takes blobs over into a namespace, with their labels.
    pub(super) async fn take_blobs(
        &self,
        scope: &Scope,
        foreign: &Arc<dyn Foreign>,
        blobs: &[Blob],
        done: &mut Adoption,
    ) -> Result<()> {
        let content = self.store().content(scope);
        for some in blobs.chunks(TOGETHER) {
            let (known, names) = (content.clone(), some.iter().map(reference).collect::<Vec<_>>());
            let wanted = some.iter().zip(names).map(|(blob, name)| (name, blob.digest.clone())).collect::<Vec<_>>();
            self.blocking(move |_| Ok(known.announce(&wanted)?)).await?;
            let ended: Vec<(&Blob, Ended)> = stream::iter(some)
                .map(async |blob| Ok::<_, Error>((blob, self.take_blob(&content, foreign, blob).await?)))
                .buffer_unordered(AT_ONCE)
                .try_collect()
                .await?;
            self.show_blobs(&content, ended, done).await?;
        }
        Ok(())
    }

    /// Makes visible what is here, and counts.
    async fn show_blobs(&self, content: &ScopedContent, ended: Vec<(&Blob, Ended)>, done: &mut Adoption) -> Result<()> {
        let (mut brought, mut present, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for (blob, ended) in ended {
            match ended {
                Ended::Present => {
                    done.blobs_present += 1;
                    present.push((blob.digest.clone(), blob.labels.clone()));
                }
                Ended::Left(why) => {
                    done.leave(blob.digest.to_string(), why);
                    left.push(reference(blob));
                }
                Ended::Here(write, shared) => {
                    match shared {
                        Some(shared) => {
                            done.blobs += 1;
                            done.blob_bytes += shared.size;
                            done.hashed_bytes += shared.size;
                            done.file(shared);
                        }
                        None => done.blobs_present += 1,
                    }
                    brought.extend(write);
                }
            }
        }
        for shown in content.show_all(brought).await? {
            shown?;
        }
        for reference in left {
            match content.abort(&reference).await {
                Ok(()) | Err(content::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What somebody else brought has the labels of that way in; those that are had here as well are added.
        let content = content.clone();
        self.blocking(move |_| Ok(content.label_all(&present)?)).await
    }

    async fn take_blob(&self, content: &ScopedContent, foreign: &Arc<dyn Foreign>, blob: &Blob) -> Result<Ended> {
        let options = IngestOptions { reference: reference(blob), total: 0, expected: Some(blob.digest.clone()) };
        let mut writer = match open_write(content, options).await? {
            Some(writer) => writer,
            None => return Ok(Ended::Present),
        };
        writer.set_labels(blob.labels.clone())?;
        if writer.has_all() {
            return Ok(Ended::Here(writer.bring(0, Some(&blob.digest)).await?, None));
        }
        let path = foreign.blob(&blob.digest);
        let opened = self.blocking(move |_| Ok(open(&path))).await?;
        let file = match opened {
            Ok(file) => file,
            Err(why) => return Ok(Ended::Left(why)),
        };
        let taken = match writer.take(file).await {
            Ok(shared) => writer.bring(shared.size, Some(&blob.digest)).await.map(|brought| (brought, shared)),
            Err(error) => Err(error),
        };
        match taken {
            Ok((brought, shared)) => Ok(Ended::Here(brought, Some(shared))),
            Err(content::Error::DigestMismatch { actual, .. }) => {
                Ok(Ended::Left(format!("it is damaged there: its bytes hash to {actual}")))
            }
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(Ended::Left(GONE.to_owned())),
            Err(error) if error.is_bad_medium() => Ok(Ended::Left(format!("it cannot be read there: {error}"))),
            Err(error) => Err(error.into()),
        }
    }
}

const GONE: &str = "its file is not there: containerd has removed it since it was listed, or lost it";

/// Names the write of a blob: one for each, so that an adoption that was stopped goes on with it.
fn reference(blob: &Blob) -> String {
    format!("adopt-{}", blob.digest)
}

/// Opens a write, waiting for another adoption; `None`: the blob is there.
async fn open_write(content: &ScopedContent, options: IngestOptions) -> Result<Option<orlop_metadata::ScopedWriter>> {
    for _ in 0..TRIES {
        match content.scoped_writer(options.clone()).await {
            Ok(writer) => return Ok(Some(writer)),
            Err(content::Error::AlreadyExists(_)) => return Ok(None),
            Err(content::Error::Locked(_)) => tokio::time::sleep(WAIT).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Busy { what: options.reference, seconds: (WAIT * TRIES).as_secs() })
}

/// Opens a blob's file where it is, whatever somebody has put there, and leaves its access time alone.
fn open(path: &Path) -> Result<File, String> {
    // Something else than a file must not make this wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::open(path, flags, Mode::empty()),
        opened => opened,
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Err(GONE.to_owned()),
        Err(Errno::LOOP) => return Err("a symbolic link is in its place".to_owned()),
        Err(error) => return Err(format!("open {}: {error}", path.display())),
    };
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err("what is in its place is no regular file".to_owned()),
        Err(error) => Err(format!("stat {}: {error}", path.display())),
    }
}
