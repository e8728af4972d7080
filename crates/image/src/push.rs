//! Pushing: blobs first, then documents from the leaves up, the name last.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::TryStreamExt;
use orlop_metadata::{Scope, ScopedContent};
use orlop_oci::{Descriptor, Platform, Reference, RepositoryName};
use orlop_remote::{BlobStream, Client, Uploaded};
use tracing::field::Empty;

use crate::span::within;
use crate::transfer::{Transfer, Wanted, stream};
use crate::walk::kind_word;
use crate::{BlobEvent, Error, Event, Images, Limit, Outcome, Result, Sink, Stage, labels};

/// What to push.
#[derive(Debug, Clone, Default)]
pub struct PushRequest {
    /// Anything [`Images::resolve_name`] finds.
    pub source: String,
    /// Where to; empty: the source.
    pub destination: String,
    /// Platforms; none: everything that is here.
    pub platforms: Vec<Platform>,
    /// Blobs at once; 0: the default.
    pub concurrency: usize,
}

struct Upload<'a> {
    client: &'a Client,
    content: ScopedContent,
    repository: RepositoryName,
    sink: Sink<'a>,
    sent: AtomicU64,
    present: AtomicU64,
}

impl Images {
    /// Pushes one image.
    ///
    /// An index of which only some platforms are here is pushed as what is here: one manifest by itself, or several
    /// under an index of their own; an event says so.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if something that was asked for is missing in this store.
    pub async fn push(&self, scope: &Scope, client: &Client, request: &PushRequest, sink: Sink<'_>) -> Result<Outcome> {
        let span = tracing::info_span!("push", image = request.source, to = request.destination, error = Empty);
        let pushed = self.under_lease(scope, async |scope| self.push_held(&scope, client, request, sink).await);
        within(span, pushed).await
    }

    async fn push_held(
        &self,
        scope: &Scope,
        client: &Client,
        request: &PushRequest,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let found = self.resolve_name(scope, &request.source).await?;
        let destination = destination(request, &found.names)?;
        let repository = destination.repository().ok_or_else(|| no_repository(&destination.to_string()))?.clone();
        let wanted = if request.platforms.is_empty() { Wanted::Present } else { Wanted::Platforms(&request.platforms) };
        let transfer = self.transfer(scope, &found, wanted).await?;
        sink(Event::Target(transfer.target().descriptor()));
        for document in transfer.documents.iter().rev() {
            let children = document.children().into_iter().cloned().collect();
            sink(Event::Document(document.descriptor(), children));
        }
        if let Some(note) = &transfer.note {
            sink(Event::Message(note.clone()));
        }
        let content = self.store().content(scope);
        let upload = Upload { client, content, repository, sink, sent: AtomicU64::new(0), present: AtomicU64::new(0) };
        let at_once = if request.concurrency == 0 { self.settings().concurrency } else { request.concurrency };
        let blobs = futures::stream::iter(transfer.blobs.iter().map(Ok));
        blobs.try_for_each_concurrent(at_once, |(blob, kind)| upload.blob(blob, kind)).await?;
        upload.documents(&transfer, &destination).await?;
        Ok(Outcome {
            verified_by: Vec::new(),
            names: vec![destination.to_string()],
            target: transfer.target().descriptor(),
            image_ids: transfer.images.iter().map(|(_, image)| image.id.clone()).collect(),
            bytes_transferred: upload.sent.load(Ordering::Relaxed),
            bytes_present: upload.present.load(Ordering::Relaxed),
        })
    }
}

fn destination(request: &PushRequest, names: &[String]) -> Result<Reference> {
    let text = match (request.destination.as_str(), names) {
        ("", [name]) => name.as_str(),
        ("", _) => request.source.as_str(),
        (given, _) => given,
    };
    match text.parse::<Reference>()? {
        Reference::Id(_) => Err(no_repository(text)),
        reference => Ok(reference),
    }
}

fn no_repository(name: &str) -> Error {
    Error::Name { name: name.to_owned(), reason: "it names no registry; say where to push it: orlop push SRC DEST" }
}

impl Upload<'_> {
    async fn blob(&self, descriptor: &Descriptor, kind: &'static str) -> Result<()> {
        self.tell(descriptor, kind, Stage::Waiting, 0);
        let sources = self.sources(descriptor).await?;
        let digest = &descriptor.digest;
        let open = |offset| -> BlobStream {
            let pieces = stream(self.content.clone(), digest.clone(), offset);
            Box::pin(pieces.map_err(|e| orlop_remote::Error::Source(Box::new(e))))
        };
        let progress = |sent| self.tell(descriptor, kind, Stage::Pushing, sent);
        let uploaded = self.client.push_blob(&self.repository, descriptor, &sources, &open, &progress).await?;
        let (stage, total) = match uploaded {
            Uploaded::Present => (Stage::Present, &self.present),
            Uploaded::Mounted => (Stage::Mounted, &self.present),
            Uploaded::Sent => (Stage::Complete, &self.sent),
        };
        total.fetch_add(descriptor.size, Ordering::Relaxed);
        self.tell(descriptor, kind, stage, descriptor.size);
        Ok(())
    }

    /// Other repositories of the same registry that had the blob when it came from there.
    async fn sources(&self, descriptor: &Descriptor) -> Result<Vec<RepositoryName>> {
        let (content, digest) = (self.content.clone(), descriptor.digest.clone());
        let host = self.repository.domain().to_owned();
        let stat =
            tokio::task::spawn_blocking(move || content.stat(&digest)).await.map_err(|_| Error::Interrupted)??;
        let key = labels::at_host(labels::SOURCE, &self.repository);
        let label = stat.labels.get(&key).cloned().unwrap_or_default();
        let names = label.split(',').filter_map(|path| RepositoryName::parse(&format!("{host}/{path}")).ok());
        Ok(names.filter(|name| *name != self.repository).collect())
    }

    async fn documents(&self, transfer: &Transfer, destination: &Reference) -> Result<()> {
        let (target, children) = transfer.documents.split_last().expect("a transfer has its target at least");
        for document in children {
            let by_digest = self.repository.with_digest(document.digest().digest());
            self.client.push_document(&by_digest, document).await?;
            self.document_done(document);
        }
        // A digest reference cannot name anything but its own document.
        let name = match destination {
            Reference::Digest { .. } => self.repository.with_digest(target.digest().digest()),
            other => other.clone(),
        };
        self.client.push_document(&name, target).await?;
        self.document_done(target);
        Ok(())
    }

    fn document_done(&self, document: &orlop_oci::Document) {
        let descriptor = document.descriptor();
        self.sent.fetch_add(descriptor.size, Ordering::Relaxed);
        self.tell(&descriptor, kind_word(&descriptor), Stage::Complete, descriptor.size);
    }

    fn tell(&self, descriptor: &Descriptor, kind: &'static str, stage: Stage, offset: u64) {
        (self.sink)(Event::Blob(BlobEvent {
            digest: descriptor.digest.clone(),
            kind,
            stage,
            offset,
            total: descriptor.size,
            unpacked: 0,
            limit: if stage == Stage::Pushing { Limit::Network } else { Limit::Unknown },
        }));
    }
}
