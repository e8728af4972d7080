//! The roles of `orlop-content`, in one namespace.

use std::sync::Arc;

use async_trait::async_trait;
use orlop_content as content;
use orlop_content::{BlobReader, Info, IngestManager, IngestOptions, Ingester, Manager, Provider, Status, Trouble};
use orlop_oci::Digest;

use super::ingests::{self, Opened};
use super::writer::{Adopted, ScopedWriter, Source};
use super::{ContentInfo, ScopedContent};
use crate::{Asking, Error, ObjectKind, Result};

/// How often opening starts again because another has just ended the write under that ref.
const ROUNDS: usize = 16;

impl From<Error> for content::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Content(error) => error,
            Error::NotFound { kind: ObjectKind::Content, name } => Self::NotFound { kind: "blob", name },
            Error::NotFound { kind: ObjectKind::Ingest, name } => Self::NotFound { kind: "ingest", name },
            other => Self::Metadata(Box::new(other)),
        }
    }
}

impl From<content::Error> for Error {
    fn from(error: content::Error) -> Self {
        match error {
            content::Error::Metadata(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(inner) => Self::Content(content::Error::Metadata(inner)),
            },
            other => Self::Content(other),
        }
    }
}

impl ScopedContent {
    /// Runs a call that blocks where it may.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> content::Result<T> {
        let this = self.clone();
        let result = tokio::task::spawn_blocking(move || f(&this)).await;
        result.map_err(|_| content::Error::Stopped)?.map_err(content::Error::from)
    }

    /// Refuses so many bytes where they would be the reserve's.
    pub(super) fn admit(&self, bytes: usize) -> content::Result<()> {
        // One look at a file, as a rule.
        Ok(self.store.admit(bytes as u64)?)
    }

    /// Whether an error says that no space is left, and something gave way since.
    pub(super) async fn makes_room(&self, error: &content::Error, asking: &mut Asking) -> content::Result<bool> {
        if Trouble::beneath(error) != Trouble::Full {
            return Ok(false);
        }
        let mut asked = std::mem::take(asking);
        let (made, asked) = self
            .blocking(move |this| {
                let made = this.store.make_room(&mut asked);
                Ok((made, asked))
            })
            .await?;
        *asking = asked;
        Ok(made)
    }

    async fn backend(&self, reference: &str) -> content::Result<String> {
        let name = reference.to_owned();
        let found = self
            .blocking(move |this| this.store.read(|conn| ingests::backend(conn, &this.scope.namespace, &name)))
            .await?;
        found.ok_or_else(|| content::Error::NotFound { kind: "ingest", name: reference.to_owned() })
    }

    /// As [`Ingester::writer`], for who gives the blob labels with the commit.
    pub async fn scoped_writer(&self, options: IngestOptions) -> content::Result<ScopedWriter> {
        if options.reference.is_empty() {
            return Err(content::Error::Invalid("an ingest needs a ref that is not empty"));
        }
        for _ in 0..ROUNDS {
            if let Some(writer) = self.try_to_open(options.clone()).await? {
                return Ok(writer);
            }
        }
        Err(content::Error::Locked(options.reference))
    }

    /// Opens the row and then the bytes; `None` if the row went in between.
    async fn try_to_open(&self, options: IngestOptions) -> content::Result<Option<ScopedWriter>> {
        let (mut opened, mut refill) = (self.open_row(&options, false).await?, false);
        if let (Opened::Exists { .. }, Some(digest)) = (&opened, &options.expected)
            && self.is_lost(digest).await?
        {
            (opened, refill) = (self.open_row(&options, true).await?, true);
        }
        let backend = match (opened, &options.expected) {
            (Opened::Ready { backend }, _) => backend,
            (Opened::Exists { stale }, Some(digest)) => {
                if let Some(backend) = stale {
                    self.free(&options.reference, backend, digest).await?;
                }
                return Err(content::Error::AlreadyExists(digest.clone()));
            }
            (Opened::Exists { .. }, None) => unreachable!("only an expected digest exists"),
        };
        let source = self.source_with_room(&options, &backend).await.map_err(|e| renamed(e, &options.reference))?;
        let is_raw = matches!(source, Source::Raw(_));
        if is_raw && !self.is_of(&options.reference, &backend).await? {
            // It was another's write, which has ended since: what was opened now has no row, and nobody would remove it.
            drop(source);
            return match self.store.raw_content().abort(&backend).await {
                Ok(()) | Err(content::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(renamed(error, &options.reference)),
            };
        }
        Ok(Some(ScopedWriter::new(self.clone(), options, backend, source, refill)))
    }

    /// Whether the raw store's write `backend` has a row.
    async fn is_of(&self, reference: &str, backend: &str) -> content::Result<bool> {
        match self.backend(reference).await {
            Ok(found) => Ok(found == backend),
            Err(content::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn open_row(&self, options: &IngestOptions, refill: bool) -> content::Result<Opened> {
        let (reference, expected) = (options.reference.clone(), options.expected.clone());
        self.blocking(move |this| {
            this.store.bring_together("open ingest", |tx| {
                ingests::open(tx, &this.scope, &reference, expected.as_ref(), refill)
            })
        })
        .await
    }

    /// Whether the raw store has lost the bytes of a blob that there is a row of: they were set aside, or are gone otherwise.
    pub(super) async fn is_lost(&self, digest: &Digest) -> content::Result<bool> {
        match self.store.raw_content().info(digest).await {
            Ok(_) => Ok(false),
            Err(content::Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Frees a ref whose blob is there, unless somebody is writing it.
    async fn free(&self, reference: &str, backend: String, digest: &Digest) -> content::Result<()> {
        let raw = self.store.raw_content();
        let probe = IngestOptions { reference: backend.clone(), total: 0, expected: Some(digest.clone()) };
        match raw.writer(probe).await {
            Err(content::Error::Locked(_)) => return Ok(()),
            // The bytes are gone from under the row: whoever reads them will find out.
            Ok(writer) => {
                drop(writer);
                raw.abort(&backend).await?;
            }
            Err(content::Error::AlreadyExists(_)) if raw.status(&backend).await.is_ok() => return Ok(()),
            Err(content::Error::AlreadyExists(_)) => {}
            Err(error) => return Err(error),
        }
        let reference = reference.to_owned();
        self.blocking(move |this| {
            this.store.lent_together("free ref", |tx| ingests::remove_if(tx, &this.scope, &reference, &backend))
        })
        .await
    }

    /// Where a write gets its bytes. While the disk is full and something gives way, it is tried again.
    async fn source_with_room(&self, options: &IngestOptions, backend: &str) -> content::Result<Source> {
        let mut asking = Asking::default();
        loop {
            match self.source(options, backend).await {
                Err(error) if self.makes_room(&error, &mut asking).await? => {}
                other => return other,
            }
        }
    }

    /// Finds where a write gets its bytes: from the writer, or from what another namespace has.
    async fn source(&self, options: &IngestOptions, backend: &str) -> content::Result<Source> {
        let raw = self.store.raw_content();
        let inner = IngestOptions { reference: backend.to_owned(), ..options.clone() };
        let digest = match raw.writer(inner.clone()).await {
            Err(content::Error::AlreadyExists(digest)) => digest,
            other => return other.map(Source::Raw),
        };
        let size = raw.info(&digest).await.ok().map(|info| info.size);
        match size {
            Some(size) if options.total == 0 || options.total == size => {
                Ok(Source::Adopted(Adopted::new(digest, size)))
            }
            // The size is wrong, or the blob went meanwhile. The writer shall bring the bytes, and commit will tell.
            _ => raw.writer(IngestOptions { expected: None, ..inner }).await.map(Source::Raw),
        }
    }
}

#[async_trait]
impl Provider for ScopedContent {
    async fn open(&self, digest: &Digest) -> content::Result<Arc<dyn BlobReader>> {
        let name = digest.clone();
        let expected = self.blocking(move |this| this.stat(&name)).await?.size;
        let reader = self.store.raw_content().open(digest).await?;
        // What was cut short or grew is not given to anybody; other damage only reading tells.
        match reader.size() {
            actual if actual == expected => Ok(reader),
            actual => Err(content::Error::Resized { digest: digest.clone(), expected, actual }),
        }
    }

    async fn info(&self, digest: &Digest) -> content::Result<Info> {
        let digest = digest.clone();
        self.blocking(move |this| this.stat(&digest)).await.map(Info::from)
    }
}

#[async_trait]
impl Ingester for ScopedContent {
    async fn writer(&self, options: IngestOptions) -> content::Result<Box<dyn content::Writer>> {
        Ok(Box::new(self.scoped_writer(options).await?))
    }
}

#[async_trait]
impl IngestManager for ScopedContent {
    async fn status(&self, reference: &str) -> content::Result<Status> {
        let backend = self.backend(reference).await?;
        let status = self.store.raw_content().status(&backend).await.map_err(|e| renamed(e, reference))?;
        Ok(Status { reference: reference.to_owned(), ..status })
    }

    async fn statuses(&self) -> content::Result<Vec<Status>> {
        let all = self.blocking(|this| this.store.read(|conn| ingests::all(conn, &this.scope.namespace))).await?;
        let mut statuses = Vec::with_capacity(all.len());
        for (reference, backend) in all {
            match self.store.raw_content().status(&backend).await {
                Ok(status) => statuses.push(Status { reference, ..status }),
                Err(content::Error::NotFound { .. }) => {}
                Err(error) => return Err(renamed(error, &reference)),
            }
        }
        Ok(statuses)
    }

    async fn abort(&self, reference: &str) -> content::Result<()> {
        let name = reference.to_owned();
        let backend = self
            .blocking(move |this| this.store.lent_together("abort ingest", |tx| ingests::abort(tx, &this.scope, &name)))
            .await?;
        match self.store.raw_content().abort(&backend).await {
            Err(content::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(|e| renamed(e, reference)),
        }
    }
}

#[async_trait]
impl Manager for ScopedContent {
    async fn list(&self) -> content::Result<Vec<Info>> {
        let found = self.blocking(|this| this.find(&[])).await?;
        Ok(found.into_iter().map(Info::from).collect())
    }

    async fn delete(&self, digest: &Digest) -> content::Result<()> {
        let digest = digest.clone();
        self.blocking(move |this| this.forget(&digest)).await
    }
}

impl From<ContentInfo> for Info {
    fn from(info: ContentInfo) -> Self {
        Self { digest: info.digest, size: info.size, created_at: info.created_at, updated_at: info.updated_at }
    }
}

/// The raw store's error, about the ref that the client knows.
pub(super) fn renamed(error: content::Error, reference: &str) -> content::Error {
    use content::Error as E;
    let reference = reference.to_owned();
    match error {
        E::NotFound { kind: "ingest", .. } => E::NotFound { kind: "ingest", name: reference },
        E::Locked(_) => E::Locked(reference),
        E::Offset { current, given, .. } => E::Offset { reference, current, given },
        E::DigestMismatch { expected, actual, .. } => E::DigestMismatch { reference, expected, actual },
        E::SizeMismatch { expected, actual, .. } => E::SizeMismatch { reference, expected, actual },
        other => other,
    }
}
