//! A writer in one namespace.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use orlop_content as content;
use orlop_content::{BlobReader, IngestOptions, Status, Writer};
use orlop_oci::Digest;

use super::ScopedContent;
use super::ingests::{self, Finished};
use super::roles::renamed;
use super::several::Brought;
use crate::{Asking, Labels, Result, labels};

/// How much is copied at a time when adopted content is written on.
const COPY: usize = 1 << 20;

/// How often a commit starts again when other openers of its ref interfere.
const ROUNDS: usize = 16;

/// Where the bytes are.
pub(super) enum Source {
    /// In a write of the raw store.
    Raw(Box<dyn Writer>),
    /// In a blob that another namespace has: commit needs nothing more.
    Adopted(Adopted),
}

/// A blob that is there and becomes this namespace's at commit.
pub(super) struct Adopted {
    digest: Digest,
    size: u64,
    since: Timestamp,
}

impl Adopted {
    pub(super) fn new(digest: Digest, size: u64) -> Self {
        Self { digest, size, since: Timestamp::now() }
    }
}

/// How far a commit came.
enum Stored {
    /// The blob is visible.
    Shown(Digest),
    /// The bytes are in the raw store, `brought` there by this write or not, and the write's row is still there.
    Here { digest: Digest, size: u64, brought: bool },
}

/// Writes one blob into a namespace. The lease and the labels that it is to have come with the row: there is no moment
/// in which a collection could take the blob before them.
pub struct ScopedWriter {
    content: ScopedContent,
    reference: String,
    backend: String,
    /// What this writer expects; what an earlier one did is told by the status and binds nobody.
    expected: Option<Digest>,
    source: Source,
    labels: Labels,
    /// The namespace has the blob, and its bytes are lost: this write brings them back.
    refill: bool,
    done: bool,
}

impl ScopedWriter {
    pub(super) fn new(
        content: ScopedContent,
        options: IngestOptions,
        backend: String,
        source: Source,
        refill: bool,
    ) -> Self {
        let IngestOptions { reference, expected, .. } = options;
        Self { content, reference, backend, expected, source, labels: Labels::new(), refill, done: false }
    }

    /// Sets the labels that the blob gets when this writer makes it visible. A blob that is there keeps its own.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if a label is too long.
    pub fn set_labels(&mut self, labels: Labels) -> Result<()> {
        let labels = labels::without_empty(labels);
        labels::validate(&labels)?;
        self.labels = labels;
        Ok(())
    }

    /// Whether another namespace has the bytes, so that a commit needs none.
    pub const fn has_all(&self) -> bool {
        matches!(self.source, Source::Adopted(_))
    }

    /// Takes over the bytes of a file without copying them; see [`content::Taking`].
    ///
    /// # Errors
    /// As there; [`content::Error::Invalid`] where the raw store's blobs are no files.
    pub async fn take(&mut self, file: std::fs::File) -> content::Result<content::Shared> {
        let reference = self.reference.clone();
        let writer = self.raw(0).await?;
        let taking = writer.taking().ok_or(content::Error::Invalid("this store's blobs are no files"))?;
        taking.take(file).await.map_err(|e| renamed(e, &reference))
    }

    /// The raw writer; adopted content is first copied into a new one, up to `size`.
    async fn raw(&mut self, size: u64) -> content::Result<&mut Box<dyn Writer>> {
        if self.done {
            return Err(content::Error::NotFound { kind: "ingest", name: self.reference.clone() });
        }
        if let Source::Adopted(adopted) = &self.source {
            let raw = self.content.store.raw_content();
            let options = IngestOptions { reference: self.backend.clone(), ..IngestOptions::default() };
            let mut writer = raw.writer(options).await.map_err(|e| renamed(e, &self.reference))?;
            writer.truncate(0).await?;
            let reader = raw.open(&adopted.digest).await?;
            let mut at = 0;
            while at < size {
                let part = reader.read_at(at, COPY.min(usize::try_from(size - at).unwrap_or(COPY))).await?;
                if part.is_empty() {
                    break;
                }
                at += part.len() as u64;
                writer.write(part).await?;
            }
            // It is to be something else than what was adopted.
            self.expected = None;
            self.source = Source::Raw(writer);
        }
        match &mut self.source {
            Source::Raw(writer) => Ok(writer),
            Source::Adopted(_) => unreachable!("replaced above"),
        }
    }

    /// Checks what was asked for; says under which name the bytes will be visible, and how many they are.
    fn check(&self, size: u64, expected: Option<&Digest>) -> content::Result<(Digest, u64)> {
        let status = self.status();
        let size = if size == 0 { status.total } else { size };
        if size != 0 && size != status.offset {
            let reference = self.reference.clone();
            return Err(content::Error::SizeMismatch { reference, expected: size, actual: status.offset });
        }
        let actual = self.digest();
        let name = expected.or(self.expected.as_ref()).cloned().unwrap_or_else(|| actual.clone());
        if name != actual && (name.algorithm() == actual.algorithm() || matches!(self.source, Source::Adopted(_))) {
            return Err(content::Error::DigestMismatch { reference: self.reference.clone(), expected: name, actual });
        }
        Ok((name, status.offset))
    }

    /// Lets the raw store verify and show the bytes. While the disk is full and something gives way, it is tried again.
    async fn commit_raw(&mut self, size: u64, digest: &Digest) -> content::Result<Digest> {
        let (content, mut asking) = (self.content.clone(), Asking::default());
        let mut met = None;
        loop {
            let error = match self.raw(size).await?.commit(size, Some(digest)).await {
                Err(error) => error,
                committed => return committed,
            };
            match met {
                // Where bytes could not be synced they are gone: they have to come again.
                Some(full) if matches!(error, content::Error::NotFound { .. }) => return Err(full),
                _ if content.makes_room(&error, &mut asking).await? => met = Some(error),
                _ => return Err(error),
            }
        }
    }

    /// Makes the row name the digest, before the bytes become visible under it.
    async fn protect(&mut self, digest: &Digest) -> content::Result<bool> {
        let (reference, backend, digest) = (self.reference.clone(), self.backend.clone(), digest.clone());
        self.content
            .blocking(move |this| {
                let (scope, reference, backend) = (&this.scope, &reference, &backend);
                match this.store.read(|conn| ingests::protects(conn, scope, reference, backend, &digest))? {
                    Some(protected) => Ok(protected),
                    None => this
                        .store
                        .bring_together("commit ingest", |tx| ingests::protect(tx, scope, reference, backend, &digest)),
                }
            })
            .await
    }

    /// The same for a blob that the namespace has, and whose bytes are lost.
    async fn protect_refill(&mut self, digest: &Digest) -> content::Result<()> {
        let (reference, backend, digest) = (self.reference.clone(), self.backend.clone(), digest.clone());
        self.refill = true;
        self.content
            .blocking(move |this| {
                this.store.bring_together("commit ingest", |tx| {
                    ingests::protect_refill(tx, &this.scope, &reference, &backend, &digest)
                })
            })
            .await
    }

    async fn finish(&mut self, digest: &Digest, size: u64, brought: bool) -> content::Result<Finished> {
        let write = self.brought(digest, size, brought);
        self.content
            .blocking(move |this| this.store.bring_together("commit content", |tx| write.finish(tx, &this.scope)))
            .await
    }

    fn brought(&self, digest: &Digest, size: u64, brought: bool) -> Brought {
        Brought {
            reference: self.reference.clone(),
            backend: self.backend.clone(),
            digest: digest.clone(),
            size,
            labels: self.labels.clone(),
            brought,
            adopted: matches!(self.source, Source::Adopted(_)),
            refill: self.refill,
        }
    }

    /// Has the raw store verify and keep the bytes, and leaves the row as it is: until [`ScopedContent::show_all`] the write protects
    /// them, in whatever process goes on with it. After that this writer only tells. `None`: the blob is visible.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    ///
    /// # Durability
    /// The bytes survive a power cut when this returns.
    pub async fn bring(&mut self, size: u64, expected: Option<&Digest>) -> content::Result<Option<Brought>> {
        let Stored::Here { digest, size, brought } = self.store_bytes(size, expected).await? else { return Ok(None) };
        self.done = true;
        Ok(Some(self.brought(&digest, size, brought)))
    }

    /// Everything before the row of the blob.
    async fn store_bytes(&mut self, size: u64, expected: Option<&Digest>) -> content::Result<Stored> {
        if self.done {
            return Err(content::Error::NotFound { kind: "ingest", name: self.reference.clone() });
        }
        let (digest, size) = self.check(size, expected)?;
        if matches!(self.source, Source::Adopted(_)) {
            // The bytes are there, and this write protects them.
            return Ok(Stored::Here { digest, size, brought: false });
        }
        if self.refill {
            self.protect_refill(&digest).await?;
        } else if !self.protect(&digest).await? {
            // This namespace has them, unless they were lost, or a collection took them since: then the write protects them now,
            // and has them.
            if self.content.is_lost(&digest).await? {
                self.protect_refill(&digest).await?;
            } else if let Some(ended) = self.try_finish(&digest, size, false).await? {
                return ended.map(Stored::Shown);
            }
        }
        match self.commit_raw(size, &digest).await {
            Ok(_) => Ok(Stored::Here { digest, size, brought: true }),
            Err(content::Error::AlreadyExists(_)) => Ok(Stored::Here { digest, size, brought: false }),
            Err(error) => Err(renamed(error, &self.reference)),
        }
    }

    /// Lets the blob take the place of the write; the bytes are visible in the raw store, `brought` there by this write or not.
    async fn publish(&mut self, digest: &Digest, size: u64, brought: bool) -> content::Result<Digest> {
        for _ in 0..ROUNDS {
            if let Some(ended) = self.try_finish(digest, size, brought).await? {
                return ended;
            }
            self.content.store.raw_content().info(digest).await?;
        }
        Err(content::Error::Locked(self.reference.clone()))
    }

    /// How the write ended; `None` if it did not protect the bytes until now, so that they may be gone.
    async fn try_finish(
        &mut self,
        digest: &Digest,
        size: u64,
        brought: bool,
    ) -> content::Result<Option<content::Result<Digest>>> {
        Ok(match self.finish(digest, size, brought).await? {
            Finished::Exists if brought && self.refill => {
                self.done = true;
                Some(Ok(digest.clone()))
            }
            Finished::Committed => {
                self.done = true;
                Some(Ok(digest.clone()))
            }
            Finished::Exists => Some(Err(self.exists(digest).await)),
            Finished::Aborted => Some(Err(content::Error::NotFound { kind: "ingest", name: self.reference.clone() })),
            Finished::Unprotected => None,
        })
    }

    /// Frees the ref and its bytes: the blob is there.
    async fn exists(&mut self, digest: &Digest) -> content::Error {
        self.done = true;
        match self.content.store.raw_content().abort(&self.backend).await {
            Ok(()) | Err(content::Error::NotFound { .. }) => content::Error::AlreadyExists(digest.clone()),
            Err(error) => renamed(error, &self.reference),
        }
    }
}

#[async_trait]
impl Writer for ScopedWriter {
    fn status(&self) -> Status {
        match &self.source {
            Source::Raw(writer) => Status { reference: self.reference.clone(), ..writer.status() },
            Source::Adopted(adopted) => Status {
                reference: self.reference.clone(),
                offset: adopted.size,
                total: adopted.size,
                expected: Some(adopted.digest.clone()),
                started_at: adopted.since,
                updated_at: adopted.since,
            },
        }
    }

    async fn write(&mut self, bytes: Bytes) -> content::Result<()> {
        if bytes.is_empty() && matches!(self.source, Source::Adopted(_)) {
            return Ok(());
        }
        let (content, mut asking) = (self.content.clone(), Asking::for_bytes(bytes.len() as u64));
        loop {
            let writing = async {
                content.admit(bytes.len())?;
                self.raw(self.status().offset).await?.write(bytes.clone()).await
            };
            match writing.await {
                // What was written of a piece that failed does not count.
                Err(error) if content.makes_room(&error, &mut asking).await? => {}
                other => return other.map_err(|e| renamed(e, &self.reference)),
            }
        }
    }

    async fn truncate(&mut self, size: u64) -> content::Result<()> {
        if size > self.status().offset {
            return Err(content::Error::Invalid("a write cannot be truncated to more than it has"));
        }
        let result = self.raw(size).await?.truncate(size).await;
        result.map_err(|e| renamed(e, &self.reference))
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> content::Result<Digest> {
        match self.store_bytes(size, expected).await? {
            Stored::Shown(digest) => Ok(digest),
            Stored::Here { digest, size, brought } => self.publish(&digest, size, brought).await,
        }
    }

    fn written(&self) -> Option<Arc<dyn BlobReader>> {
        match &self.source {
            Source::Raw(writer) => writer.written(),
            // It is whole, and whoever wants it finds it under its name.
            Source::Adopted(_) => None,
        }
    }

    fn digest(&self) -> Digest {
        match &self.source {
            Source::Raw(writer) => writer.digest(),
            Source::Adopted(adopted) => adopted.digest.clone(),
        }
    }
}
