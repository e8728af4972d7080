//! Blobs of a mirror: flights, and readers that follow them.
//!
//! ```text
//! registry ──▶ ingest (hash) ──▶ blob
//!                 ╰──▶ any number of readers, each behind the ingest's offset, from the disk
//! ```
//! A flight is a task that brings one blob, whoever asked first. It says how far it is; readers wait for that and read the ingest's
//! file, so that a slow one holds no memory and stops nobody.
//!
//! # Invariants
//! - There is one flight for a digest, and none for a blob that is here.
//! - The last byte is given when the blob was hashed and is right. If it is wrong nothing of it is kept, and readers end with an error
//!   there: the client sees a connection that breaks before the end. If part of it came from an earlier try or a peer it is fetched
//!   anew by the same flight; who was given bytes of the first round ends all the same.
//! - A flight that nobody reads from for [`PARKED_AFTER`] ends. Its ingest stays for a day, and the next one goes on with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use orlop_content::{self as content, BlobReader, Provider, read_verified};
use orlop_metadata::{ScopedContent, Store};
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, MediaKind, RepositoryName};
use orlop_remote::Client;
use tokio::sync::{Semaphore, watch};

use super::{Mirror, Via, lock};
use crate::pull::{Registry, add_source};
use crate::{Error, Event, Result, Stage};

/// For how long a flight goes on that nobody reads from.
const PARKED_AFTER: Duration = Duration::from_secs(10);
/// Flights that transfer at once: each may have several connections and their buffers. Others wait.
const MAX_FLIGHTS: usize = 32;

/// How far a flight is.
#[derive(Clone, Default)]
struct State {
    /// Counts the beginnings: what was read in an earlier round may have been wrong.
    round: u32,
    /// Bytes that are there to be read.
    offset: u64,
    behind: Option<Arc<dyn BlobReader>>,
    end: Option<Result<(), Arc<Error>>>,
}

impl State {
    /// Bytes that a reader may have of a blob of this size.
    fn readable(&self, size: u64) -> u64 {
        match self.end {
            Some(Ok(())) => size,
            _ if self.behind.is_some() => self.offset.min(size.saturating_sub(1)),
            _ => 0,
        }
    }
}

/// The flights of a mirror.
pub(super) struct Flights {
    running: Mutex<HashMap<Digest, Arc<watch::Sender<State>>>>,
    permits: Semaphore,
}

impl Default for Flights {
    fn default() -> Self {
        Self { running: Mutex::default(), permits: Semaphore::new(MAX_FLIGHTS) }
    }
}

impl Flights {
    pub(super) fn count(&self) -> u64 {
        lock(&self.running).len() as u64
    }

    /// Comes when nobody has read from a flight for a while. It is out of the list then.
    async fn abandoned(&self, digest: &Digest, state: &watch::Sender<State>) {
        loop {
            state.closed().await;
            tokio::time::sleep(PARKED_AFTER).await;
            // Who joins does so under the same lock.
            let mut running = lock(&self.running);
            if state.receiver_count() == 0 {
                running.remove(digest);
                return;
            }
        }
    }
}

impl Mirror {
    /// A blob of a repository that [`Mirror::repository`] gave. With `is_read` it is fetched if it is not here, and this returns when
    /// its first bytes are; otherwise only its size counts.
    ///
    /// # Errors
    /// As [`Mirror::manifest`].
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        via: &Via,
        is_read: bool,
    ) -> Result<Arc<dyn BlobReader>> {
        let found = self.find_blob(repository, digest, via, is_read).await;
        if found.is_err() {
            self.count(&self.inner.failures);
        }
        found
    }

    async fn find_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        via: &Via,
        is_read: bool,
    ) -> Result<Arc<dyn BlobReader>> {
        let images = &self.inner.images;
        let here = images.store().content(&self.scope());
        let name = self.leading_to(repository, digest).await?;
        if let Some(name) = &name {
            self.touch(name).await;
            match here.open(digest).await {
                Err(content::Error::NotFound { .. }) => {}
                opened => {
                    self.count(&self.inner.hits);
                    return Ok(opened?);
                }
            }
        }
        let what = || Error::NotFound(repository.with_digest(digest).to_string());
        let client = self.client(repository, via).ok_or_else(what)?;
        let descriptor = match self.described(repository, digest).await? {
            Some(descriptor) => descriptor,
            // Nothing is known that has it and was let in.
            None if !images.settings().gate.is_open() => return Err(what()),
            None => {
                let size = client.blob_size(repository, digest).await?;
                Descriptor::new("application/octet-stream", digest.clone(), size)
            }
        };
        self.count(&self.inner.misses);
        if let Ok(opened) = here.open(digest).await {
            return Ok(opened);
        }
        let state = is_read.then(|| self.join(repository, &descriptor, &client, name));
        let reader = Reader::new(&descriptor, state, here);
        reader.begun().await?;
        Ok(Arc::new(reader))
    }

    /// What the documents of the repository say of a blob of theirs.
    async fn described(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<Descriptor>> {
        let wanted = digest.clone();
        let content = self.inner.images.store().content(&self.scope());
        for above in self.remembered(move |mirrored| mirrored.above(&wanted)).await? {
            if self.leading_to(repository, &above).await?.is_none() {
                continue;
            }
            let raw = match read_verified(&content, &above, MAX_MANIFEST_BYTES).await {
                Ok(raw) => raw,
                Err(content::Error::NotFound { .. } | content::Error::TooLarge { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let Ok(document) = Document::parse_as(raw, None, above.algorithm()) else { continue };
            if let Some(child) = document.children().into_iter().find(|child| child.digest == *digest) {
                return Ok(Some(child.clone()));
            }
        }
        Ok(None)
    }

    /// Takes part in the flight of a blob, which begins now if there is none.
    fn join(
        &self,
        repository: &RepositoryName,
        blob: &Descriptor,
        client: &Client,
        record: Option<String>,
    ) -> watch::Receiver<State> {
        let mut running = lock(&self.inner.flights.running);
        if let Some(state) = running.get(&blob.digest) {
            return state.subscribe();
        }
        let (state, receiver) = watch::channel(State::default());
        let state = Arc::new(state);
        running.insert(blob.digest.clone(), Arc::clone(&state));
        let (this, repository, blob, client) = (self.clone(), repository.clone(), blob.clone(), client.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = this.fly(&repository, &blob, &client, &state) => ended,
                () = this.inner.flights.abandoned(&blob.digest, &state) => {
                    tracing::debug!(digest = %blob.digest, "nobody wants it any more: it is gone on with when somebody does");
                    return;
                }
            };
            if let Err(error) = &ended {
                tracing::warn!(%error, digest = %blob.digest, %repository, "a blob could not be fetched");
            }
            if let Some(record) = record.filter(|_| ended.is_ok()) {
                // With this blob the image may be complete: then it is, for whoever has the last byte.
                let reconciled = this.inner.images.reconcile_image(&this.inner.settings.namespace, &record).await;
                reconciled.map_or_else(|error| tracing::warn!(%error, record, "not reconciled"), drop);
            }
            lock(&this.inner.flights.running).remove(&blob.digest);
            state.send_modify(|state| state.end = Some(ended.map_err(Arc::new)));
        });
        receiver
    }

    async fn fly(
        &self,
        repository: &RepositoryName,
        blob: &Descriptor,
        client: &Client,
        state: &watch::Sender<State>,
    ) -> Result<()> {
        let images = &self.inner.images;
        let _permit = self.inner.flights.permits.acquire().await.map_err(|_| Error::Interrupted)?;
        let origin = Registry::new(images, client, repository.clone());
        let sink = |event: Event| {
            if let Event::Blob(blob) = event
                && blob.stage == Stage::Fetching
            {
                state.send_modify(|state| state.offset = blob.offset);
            }
        };
        let follow = |behind: Option<Arc<dyn BlobReader>>| {
            state.send_modify(|state| {
                *state = State { round: state.round + 1, offset: 0, behind, end: None };
            });
        };
        images
            .under_lease(&self.scope(), async |scope| {
                let session = images.session(scope, &origin, &sink).followed(&follow);
                session.blob(blob).await?;
                let (content, source) = (session.content.clone(), repository.clone());
                let mut all = [(blob.digest.clone(), orlop_metadata::Labels::new())].into();
                images
                    .blocking(move |_: &Store| {
                        add_source(&content, &source, &mut all)?;
                        Ok(content.label_all(&all.into_iter().collect::<Vec<_>>())?)
                    })
                    .await
            })
            .await
    }
}

/// Reads a blob of which a flight brings the bytes.
struct Reader {
    digest: Digest,
    size: u64,
    /// None: only the size is wanted.
    state: Option<watch::Receiver<State>>,
    /// The round of what was given; 0: nothing was.
    round: AtomicU32,
    here: ScopedContent,
}

impl Reader {
    fn new(blob: &Descriptor, state: Option<watch::Receiver<State>>, here: ScopedContent) -> Self {
        debug_assert!(!matches!(blob.kind(), MediaKind::Index), "documents come another way");
        let round = AtomicU32::new(0);
        Self { digest: blob.digest.clone(), size: blob.size, state, round, here }
    }

    /// Waits until there is something to read, or it is known why there is not.
    async fn begun(&self) -> Result<()> {
        let Some(mut state) = self.state.clone() else { return Ok(()) };
        let has_begun = |state: &State| state.end.is_some() || state.readable(self.size) > 0;
        let state = state.wait_for(has_begun).await.map_err(|_| Error::Interrupted)?;
        match &state.end {
            Some(Err(error)) => Err(again(error)),
            _ => Ok(()),
        }
    }

    /// Whether what is read now goes with what was given before.
    fn is_of_one_round(&self, round: u32) -> bool {
        match self.round.compare_exchange(0, round, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => true,
            Err(before) => before == round,
        }
    }
}

#[async_trait]
impl BlobReader for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> content::Result<Bytes> {
        let Some(mut receiver) = self.state.clone().filter(|_| offset < self.size) else { return Ok(Bytes::new()) };
        let is_there = |state: &State| state.end.is_some() || state.readable(self.size) > offset;
        let state = receiver.wait_for(is_there).await.map_err(|_| content::Error::Stopped)?.clone();
        if let Some(Err(error)) = &state.end {
            return Err(broken(Arc::clone(error)));
        }
        let room = usize::try_from(state.readable(self.size) - offset).unwrap_or(usize::MAX);
        let bytes = match &state.behind {
            Some(behind) => behind.read_at(offset, length.min(room)).await?,
            // Somebody else brought it.
            None => return self.here.open(&self.digest).await?.read_at(offset, length).await,
        };
        // It may have been begun anew while this was read.
        let round = receiver.borrow().round;
        if round != state.round || !self.is_of_one_round(round) {
            return Err(broken("what came first was wrong, and it is fetched anew"));
        }
        Ok(bytes)
    }
}

fn broken(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> content::Error {
    content::Error::Unavailable { what: "the registry that is mirrored", source: source.into() }
}

/// The error of a flight, for one of those who waited for it.
fn again(error: &Arc<Error>) -> Error {
    use orlop_remote::Error as E;
    let Error::Remote(remote) = &**error else { return Error::Content(broken(Arc::clone(error))) };
    match remote.principal() {
        E::NotFound { what, host } => Error::Remote(E::NotFound { what: what.clone(), host: host.clone() }),
        E::TooManyRequests { what, host, reason, retry_after } => {
            let (what, host, reason) = (what.clone(), host.clone(), reason.clone());
            Error::Remote(E::TooManyRequests { what, host, reason, retry_after: *retry_after })
        }
        _ => Error::Content(broken(Arc::clone(error))),
    }
}
