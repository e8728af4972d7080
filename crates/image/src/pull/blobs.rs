//! Bringing blobs into the store: resume, verify, hand the bytes on while they pass.
//!
//! An ingest's name is `<kind>-<digest>`, as containerd's client writes it, so two pulls of one blob meet: the second
//! waits until the first is done and finds the blob there.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use orlop_content::{self as content, IngestManager, IngestOptions, Provider, Writer};
use orlop_metadata::{Brought, ScopedWriter};
use orlop_oci::{Descriptor, Document, MAX_MANIFEST_BYTES, MediaKind};
use orlop_remote::BlobStream;
use tracing::field::Empty;

use super::Session;
use super::origin::too_long;
use super::pipe::{PIECE, PipeWriter};
use crate::near::Relaying;
use crate::span::within;
use crate::walk::{Documents, kind_word};
use crate::{BlobEvent, Error, Event, Limit, Result, Stage};

/// How long another writer of the same blob may stand still before it is given up.
const PATIENCE: Duration = Duration::from_secs(600);
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Waiting while somebody else writes the same blob.
struct Turn<'a> {
    reference: &'a str,
    wait: Duration,
    seen: Option<u64>,
    since: Instant,
}

impl<'a> Turn<'a> {
    fn new(reference: &'a str) -> Self {
        Self { reference, wait: FIRST_WAIT, seen: None, since: Instant::now() }
    }

    /// Waits a little longer each time; fails when the other, by its `offset`, has stood still for too long.
    async fn wait(&mut self, offset: Option<u64>) -> Result<()> {
        if offset != self.seen {
            (self.seen, self.since) = (offset, Instant::now());
        } else if self.since.elapsed() > PATIENCE {
            return Err(Error::Busy { what: self.reference.to_owned(), seconds: PATIENCE.as_secs() });
        }
        tokio::time::sleep(self.wait).await;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }
}

impl Session<'_> {
    /// Opens a writer, waiting for another one of the same blob. `None`: the blob is there.
    async fn writer(&self, descriptor: &Descriptor, kind: &str) -> Result<Option<ScopedWriter>> {
        let reference = ingest_name(descriptor, kind);
        let options = IngestOptions {
            reference: reference.clone(),
            total: descriptor.size,
            expected: Some(descriptor.digest.clone()),
        };
        let mut turn = Turn::new(&reference);
        loop {
            match self.content.scoped_writer(options.clone()).await {
                Ok(writer) => return Ok(Some(writer)),
                Err(content::Error::AlreadyExists(_)) => return Ok(None),
                Err(content::Error::Locked(_)) => {
                    turn.wait(self.content.status(&reference).await.ok().map(|s| s.offset)).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes a blob be there.
    pub(crate) async fn blob(&self, descriptor: &Descriptor) -> Result<()> {
        self.bring_blob(descriptor, &mut || None).await?;
        self.show_brought().await
    }

    /// Makes a blob's bytes be there; it is visible after [`Session::show_brought`]. If all of it has to come, `tee` is asked for a pipe
    /// that it goes into as well.
    pub(super) async fn bring_blob(&self, descriptor: &Descriptor, tee: &mut Tee<'_>) -> Result<()> {
        let mut tries = 1;
        loop {
            let (resumed, error) = match self.blob_once(descriptor, tee).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            let again = match &error {
                // What an earlier try left, or came from nearby, was wrong; it is dropped, and everything comes anew.
                Error::Content(content::Error::DigestMismatch { .. }) => {
                    let elsewhere = self.origin.disproved(descriptor);
                    elsewhere && tries < TRIES || resumed && tries == 1
                }
                error => was_ended(error) && tries < TRIES,
            };
            if !again {
                return Err(error);
            }
            tries += 1;
        }
    }

    /// One try; an error comes with whether the write had been resumed.
    async fn blob_once(&self, descriptor: &Descriptor, tee: &mut Tee<'_>) -> Result<(), (bool, Error)> {
        let kind = kind_word(descriptor);
        let fresh = |error: Error| (false, error);
        let Some(mut writer) = self.writer(descriptor, kind).await.map_err(fresh)? else {
            self.check_size(descriptor).await.map_err(fresh)?;
            self.present(descriptor, kind);
            return Ok(());
        };
        let offset = self.resume_at(&mut writer, descriptor).await.map_err(fresh)?;
        if let Some(follow) = self.follow {
            follow(writer.written());
        }
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let span = tracing::info_span!("fetch", %digest, kind, size, offset, error = Empty);
        let result = within(span, self.fill(&mut writer, descriptor, offset, tee)).await;
        result.map_err(|error| (offset > 0, error))
    }

    /// A blob that is there must have the size that its descriptor says, lest a wrong manifest passes by luck.
    async fn check_size(&self, descriptor: &Descriptor) -> Result<()> {
        let found = self.content.info(&descriptor.digest).await?.size;
        if found == descriptor.size {
            return Ok(());
        }
        let reason = format!("its descriptor says {} bytes, it has {found}", descriptor.size);
        Err(Error::Inconsistent { digest: descriptor.digest.clone(), reason })
    }

    async fn fill(
        &self,
        writer: &mut ScopedWriter,
        descriptor: &Descriptor,
        offset: u64,
        tee: &mut Tee<'_>,
    ) -> Result<()> {
        let kind = kind_word(descriptor);
        if offset < descriptor.size || offset == 0 {
            self.tell(descriptor, kind, Stage::Fetching, offset);
            let relay = writer.written().and_then(|bytes| self.origin.relay(descriptor, offset, bytes));
            let stream = self.origin.blob(descriptor, offset).await?;
            let tee = if offset == 0 { tee() } else { None };
            let mut copy = Copy { session: self, descriptor, kind, offset, tee, relay, waits: Waits::default() };
            copy.run(stream, writer).await?;
            // Whoever takes it from here waits for this, and not for the disk.
            if let Some(relay) = copy.relay.take().filter(|_| writer.digest() == descriptor.digest) {
                relay.is_right();
            }
            if let Some(tee) = copy.tee.take() {
                tee.finish().await;
            }
        }
        self.tell(descriptor, kind, Stage::Verifying, descriptor.size);
        if let Some(brought) = self.keep_bytes(writer, descriptor, kind).await? {
            self.show_later(descriptor, brought).await?;
        }
        self.transferred.fetch_add(descriptor.size - offset, Ordering::Relaxed);
        self.present.fetch_add(offset, Ordering::Relaxed);
        let stage = if offset == descriptor.size && offset > 0 { Stage::Present } else { Stage::Complete };
        self.tell(descriptor, kind, stage, descriptor.size);
        Ok(())
    }

    /// Where to go on; an ingest that has more than the whole starts again.
    async fn resume_at(&self, writer: &mut dyn Writer, descriptor: &Descriptor) -> Result<u64> {
        let offset = writer.status().offset;
        if offset <= descriptor.size {
            return Ok(offset);
        }
        writer.truncate(0).await?;
        Ok(0)
    }

    /// Commits; bytes that are wrong are dropped, lest the next try resumes them.
    async fn commit(&self, writer: &mut ScopedWriter, descriptor: &Descriptor, kind: &str) -> Result<()> {
        let Some(brought) = self.keep_bytes(writer, descriptor, kind).await? else { return Ok(()) };
        let shown = self.content.show_all(vec![brought]).await?;
        Ok(shown.into_iter().collect::<content::Result<()>>()?)
    }

    /// Has what was written verified and kept; wrong bytes are dropped. `None`: the blob is visible.
    async fn keep_bytes(
        &self,
        writer: &mut ScopedWriter,
        descriptor: &Descriptor,
        kind: &str,
    ) -> Result<Option<Brought>> {
        let reference = ingest_name(descriptor, kind);
        let mut turn = Turn::new(&reference);
        loop {
            match writer.bring(descriptor.size, Some(&descriptor.digest)).await {
                Ok(brought) => return Ok(brought),
                Err(content::Error::AlreadyExists(_)) => return Ok(None),
                Err(content::Error::Locked(_)) => turn.wait(None).await?,
                Err(error @ content::Error::DigestMismatch { .. }) => {
                    if let Err(second) = self.content.abort(&reference).await {
                        tracing::warn!(error = %second, "wrong bytes could not be dropped");
                    }
                    return Err(error.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Puts bytes that are at hand into the store.
    pub(crate) async fn put(&self, descriptor: &Descriptor, kind: &'static str, bytes: Bytes) -> Result<()> {
        let reference = ingest_name(descriptor, kind);
        let (mut turn, mut tries) = (Turn::new(&reference), 1);
        loop {
            match self.put_once(descriptor, kind, bytes.clone()).await {
                Err(Error::Content(content::Error::Locked(_))) => turn.wait(None).await?,
                Err(error) if was_ended(&error) && tries < TRIES => tries += 1,
                other => return other,
            }
        }
    }

    async fn put_once(&self, descriptor: &Descriptor, kind: &'static str, bytes: Bytes) -> Result<()> {
        let Some(mut writer) = self.writer(descriptor, kind).await? else { return Ok(()) };
        if writer.status().offset == descriptor.size {
            // Somebody else was faster.
            match self.commit(&mut writer, descriptor, kind).await {
                Err(Error::Content(content::Error::DigestMismatch { .. })) => {}
                other => return other,
            }
            let Some(again) = self.writer(descriptor, kind).await? else { return Ok(()) };
            writer = again;
        }
        if writer.status().offset > 0 {
            writer.truncate(0).await?;
        }
        writer.write(bytes).await?;
        self.commit(&mut writer, descriptor, kind).await
    }

    /// Tells that nothing had to be fetched for a blob.
    pub(crate) fn present(&self, descriptor: &Descriptor, kind: &'static str) {
        if self.arrived.contains(&descriptor.digest) {
            return self.tell(descriptor, kind, Stage::Complete, descriptor.size);
        }
        self.present.fetch_add(descriptor.size, Ordering::Relaxed);
        self.tell(descriptor, kind, Stage::Present, descriptor.size);
    }

    pub(crate) fn tell(&self, descriptor: &Descriptor, kind: &'static str, stage: Stage, offset: u64) {
        self.tell_all(descriptor, kind, stage, offset, Limit::Unknown);
    }

    fn tell_all(&self, descriptor: &Descriptor, kind: &'static str, stage: Stage, offset: u64, limit: Limit) {
        (self.sink)(Event::Blob(BlobEvent {
            digest: descriptor.digest.clone(),
            kind,
            stage,
            offset,
            total: descriptor.size,
            unpacked: 0,
            limit,
        }));
    }

    /// Says what a document names. One that does not parse is refused elsewhere.
    fn tell_children(&self, descriptor: &Descriptor, bytes: &Bytes) {
        if !matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index) {
            return;
        }
        if let Ok(document) = Document::parse(bytes.clone(), Some(&descriptor.media_type)) {
            let children = document.children().into_iter().cloned().collect();
            (self.sink)(Event::Document(descriptor.clone(), children));
        }
    }

    /// A small blob that is wanted in memory: documents and configs.
    async fn small(&self, descriptor: &Descriptor, kind: &'static str) -> Result<Option<Bytes>> {
        let Some(mut writer) = self.writer(descriptor, kind).await? else {
            let bytes = content::read_verified(&self.content, &descriptor.digest, MAX_MANIFEST_BYTES).await?;
            self.present(descriptor, kind);
            return Ok(Some(bytes));
        };
        if writer.status().offset == descriptor.size && descriptor.size > 0 {
            // Another namespace has it, or an earlier try was stopped before its last step.
            match self.commit(&mut writer, descriptor, kind).await {
                Ok(()) => {
                    self.present(descriptor, kind);
                    let bytes = content::read_verified(&self.content, &descriptor.digest, MAX_MANIFEST_BYTES).await?;
                    return Ok(Some(bytes));
                }
                Err(Error::Content(content::Error::DigestMismatch { .. })) => {}
                Err(error) if was_ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
        drop(writer);
        self.tell(descriptor, kind, Stage::Fetching, 0);
        let Some(bytes) = self.origin.small(descriptor).await? else {
            // Nothing was written; an empty write in progress is of no use.
            match self.content.abort(&ingest_name(descriptor, kind)).await {
                Ok(()) | Err(content::Error::NotFound { .. } | content::Error::Locked(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        self.put(descriptor, kind, bytes.clone()).await?;
        self.transferred.fetch_add(descriptor.size, Ordering::Relaxed);
        self.tell(descriptor, kind, Stage::Complete, descriptor.size);
        Ok(Some(bytes))
    }
}

/// Makes a pipe for bytes that come from the first on; `None`: nobody wants them.
pub(crate) type Tee<'a> = dyn FnMut() -> Option<PipeWriter> + Send + 'a;

#[async_trait]
impl Documents for Session<'_> {
    async fn load(&self, descriptor: &Descriptor, kind: &'static str) -> Result<Option<Bytes>> {
        let bytes = self.small(descriptor, kind).await?;
        if let Some(bytes) = &bytes {
            self.tell_children(descriptor, bytes);
        }
        Ok(bytes)
    }

    fn limits(&self) -> crate::Limits {
        self.images.settings().limits.clone()
    }
}

/// The documents that are in the store, and no others.
pub(crate) struct Stored<P>(pub(crate) P);

#[async_trait]
impl<P: Provider> Documents for Stored<P> {
    async fn load(&self, descriptor: &Descriptor, _kind: &'static str) -> Result<Option<Bytes>> {
        match content::read_verified(&self.0, &descriptor.digest, MAX_MANIFEST_BYTES).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(content::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether somebody wrote the same under the same ref, and ended that: what he wrote may be gone again.
pub(super) fn was_ended(error: &Error) -> bool {
    matches!(error, Error::Content(content::Error::NotFound { kind: "ingest", .. }))
}

pub(crate) fn ingest_name(descriptor: &Descriptor, kind: &str) -> String {
    format!("{kind}-{}", descriptor.digest)
}

/// Seconds spent waiting for each neighbour, halved now and then so that the recent past counts.
#[derive(Debug, Default)]
struct Waits {
    network: Duration,
    disk: Duration,
    unpack: Duration,
}

impl Waits {
    fn limit(&self) -> Limit {
        let most = self.network.max(self.disk).max(self.unpack);
        if most.is_zero() {
            Limit::Unknown
        } else if most == self.network {
            Limit::Network
        } else if most == self.unpack {
            Limit::Inflate
        } else {
            Limit::Disk
        }
    }

    fn fade(&mut self) {
        self.network /= 2;
        self.disk /= 2;
        self.unpack /= 2;
    }
}

/// How often a blob is fetched that others write and end at the same time.
const TRIES: usize = 4;

/// One transfer: the next piece comes in while the last is written and handed on.
struct Copy<'a, 'b> {
    session: &'a Session<'b>,
    descriptor: &'a Descriptor,
    kind: &'static str,
    offset: u64,
    tee: Option<PipeWriter>,
    /// Who is told how far it is.
    relay: Option<Relaying>,
    waits: Waits,
}

impl Copy<'_, '_> {
    async fn run(&mut self, stream: BlobStream, writer: &mut dyn Writer) -> Result<()> {
        let mut source = Pieces { stream: Some(stream), rest: Bytes::new(), failed: None };
        let mut piece = source.next().await?;
        let mut count = 0u32;
        while let Some(bytes) = piece {
            let end = self.offset + bytes.len() as u64;
            if end > self.descriptor.size {
                return Err(too_long(self.descriptor, end));
            }
            let (written, handed, next) = futures::join!(
                timed(writer.write(bytes.clone())),
                timed(hand_on(self.tee.as_ref(), bytes)),
                timed(source.next()),
            );
            self.waits.disk += written.1;
            self.waits.unpack += handed.1;
            self.waits.network += next.1;
            written.0?;
            if !handed.0 {
                // Unpacking failed. The digest decides whose fault that is, so the rest is still fetched.
                self.tee = None;
            }
            self.offset = end;
            if let Some(relay) = &self.relay {
                relay.has(end);
            }
            self.session.tell_all(self.descriptor, self.kind, Stage::Fetching, end, self.waits.limit());
            count += 1;
            if count.is_multiple_of(64) {
                self.waits.fade();
            }
            piece = next.0?;
        }
        Ok(())
    }
}

async fn hand_on(tee: Option<&PipeWriter>, bytes: Bytes) -> bool {
    match tee {
        Some(tee) => tee.send(bytes).await,
        None => true,
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = Instant::now();
    let result = work.await;
    (result, start.elapsed())
}

/// Gathers what the network gives into pieces of a size worth writing. What came before a failure is given first.
struct Pieces {
    /// `None` after its end.
    stream: Option<BlobStream>,
    rest: Bytes,
    failed: Option<Error>,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.rest.len() >= PIECE {
            return Ok(Some(self.rest.split_to(PIECE)));
        }
        let mut gathered = BytesMut::with_capacity(PIECE);
        gathered.extend_from_slice(&std::mem::take(&mut self.rest));
        while gathered.len() < PIECE && self.failed.is_none() {
            let Some(stream) = &mut self.stream else { break };
            match stream.next().await {
                Some(Ok(mut next)) => {
                    let room = next.len().min(PIECE - gathered.len());
                    gathered.extend_from_slice(&next.split_to(room));
                    self.rest = next;
                }
                Some(Err(error)) => self.failed = Some(error.into()),
                None => self.stream = None,
            }
        }
        match self.failed.take() {
            Some(error) if gathered.is_empty() => Err(error),
            failed => {
                self.failed = failed;
                Ok((!gathered.is_empty()).then(|| gathered.freeze()))
            }
        }
    }
}
