//! Writing a blob: parts go to the bucket while bytes come, and any gateway may go on where a request ended.
//!
//! ```text
//! write ──► buffer ──8 MiB──► part of uploads/<id>/data        (in flight: two of each upload)
//! let go ─► the rest of the buffer: into the row, or the object tail-<n>; the hash's state into the row
//! commit ─► verify ─► reserve ─► put the buffer under the blob's key, if that is all,
//!                                else complete `data` and copy it there ─► its size ─► publish ─► drop the row
//! ```
//!
//! # Invariants
//! - The row says nothing that is not in the bucket; what it says is enough to go on.
//! - Bytes that are acknowledged to a client are in the row's account: the registry lets go before it answers.
//! - A writer that failed half-way is spent: its upload goes on from what was written down last. Half-way is also where a
//!   call is dropped, as a request is whose client is gone.
//! - Who was taken for dead, and is not, changes nothing for who took his upload over: every object that a row names has a
//!   key of its own, or is looked at once more (`parts`).
//! - Nothing is copied to a blob's key that was not hashed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use orlop_content::{Error, Result, Status, Writer, verify};
use orlop_oci::{Algorithm, Digest, Digester};
use tokio::task::JoinHandle;

use crate::blobs::Published;
use crate::ingests::{Ingest, Tail, WRITER_LIFE};
use crate::store::{Inner, Open};

/// A rest up to this is kept in the row, so that small blobs ask nothing of the bucket before they are whole.
const IN_ROW: usize = 32 << 10;

/// How often a writer says that it lives.
const SAY: Duration = Duration::from_secs(WRITER_LIFE.as_secs() / 3);

/// Writes one blob; its state goes to a task when it is dropped.
pub(crate) struct SharedWriter {
    state: Option<State>,
    reference: String,
    /// What is said when the state is gone.
    last: Status,
}

/// What a writer has.
pub(crate) struct State {
    pub(crate) inner: Arc<Inner>,
    pub(crate) open: Arc<Open>,
    /// As it will be in the row, but for hash and tail.
    pub(crate) ingest: Ingest,
    /// As it is in the row.
    pub(crate) saved: Ingest,
    /// What this writer expects; what an earlier one did is told by the status and binds nobody.
    expected: Option<Digest>,
    pub(crate) digester: Digester,
    pub(crate) buffer: BytesMut,
    /// The buffer and the hash as they were written down, while the bytes so far begin with those.
    mark: Option<(Bytes, Digester)>,
    pub(crate) in_flight: VecDeque<JoinHandle<crate::Result<String>>>,
    /// `data` is complete, and has all bytes.
    pub(crate) whole: bool,
    /// Something failed half-way, or is half-way.
    pub(crate) spent: bool,
    said: Instant,
}

impl State {
    /// Not yet resumed.
    fn new(inner: Arc<Inner>, open: Arc<Open>, ingest: Ingest, expected: Option<Digest>) -> Self {
        let digester = Digester::new(ingest.algorithm);
        let (saved, buffer, mark, in_flight) = (ingest.clone(), BytesMut::new(), None, VecDeque::new());
        let (whole, spent, said) = (false, true, Instant::now());
        Self { inner, open, ingest, saved, expected, digester, buffer, mark, in_flight, whole, spent, said }
    }

    /// Goes on with what is there, or begins anew.
    async fn resume(&mut self, restart: bool) -> Result<()> {
        let ingest = &self.ingest;
        let tail: Bytes = match &ingest.tail {
            Tail::Here(bytes) => bytes.clone().into(),
            Tail::There(number) => self.inner.bucket.get(&self.inner.bucket.tail(&ingest.id, *number)).await?,
        };
        let known = match &ingest.hash {
            Some(hash) => Digester::resume(ingest.algorithm, hash),
            None => (ingest.status.offset == 0).then(|| Digester::new(ingest.algorithm)),
        };
        match known {
            Some(digester) if !restart => {
                self.digester = digester;
                self.buffer = tail.as_ref().into();
                self.mark = Some((tail, self.digester.clone()));
            }
            _ => self.restart().await?,
        }
        if self.ingest.status.offset == 0 {
            let algorithm = self.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
            self.ingest.algorithm = algorithm;
            self.digester = Digester::new(algorithm);
            self.mark = Some((Bytes::new(), self.digester.clone()));
        }
        self.spent = false;
        self.tell();
        Ok(())
    }

    pub(crate) fn reference(&self) -> &str {
        &self.ingest.status.reference
    }

    fn tell(&self) {
        *self.open.status.lock().unwrap_or_else(PoisonError::into_inner) = self.ingest.status.clone();
    }

    pub(crate) fn gone(&self) -> Error {
        Error::no_ingest(self.reference())
    }

    /// Fails if the upload is not this writer's any more.
    async fn check(&mut self) -> Result<()> {
        if self.open.gone.load(Ordering::SeqCst) || self.spent {
            return Err(self.gone());
        }
        if self.said.elapsed() >= SAY {
            self.live().await?;
        }
        Ok(())
    }

    async fn live(&mut self) -> Result<()> {
        if !self.inner.ingests.live(&self.ingest.id, &self.open.token).await? {
            return Err(self.gone());
        }
        self.said = Instant::now();
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.check().await?;
        if self.whole {
            return Err(Error::Invalid("an upload that was complete once can only be committed or begun anew"));
        }
        self.digester.update(&bytes);
        self.buffer.extend_from_slice(&bytes);
        self.ingest.status.offset += bytes.len() as u64;
        self.ingest.status.updated_at = Timestamp::now();
        while self.buffer.len() >= self.part_size() {
            let sent = self.send(self.part_size()).await;
            self.spent |= sent.is_err();
            sent?;
        }
        self.tell();
        Ok(())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.check().await?;
        let offset = self.ingest.status.offset;
        match size {
            _ if size > offset => return Err(Error::Invalid("an ingest cannot be truncated to more than it has")),
            _ if size == offset => return Ok(()),
            0 => self.restart().await?,
            _ if size == self.saved.status.offset && self.mark.is_some() && !self.whole => self.back().await,
            _ if self.ingest.parts.is_empty() && self.in_flight.is_empty() && !self.whole => {
                if size < self.saved.status.offset {
                    self.mark = None;
                }
                self.buffer.truncate(usize::try_from(size).unwrap_or(usize::MAX));
                self.digester = Digester::new(self.ingest.algorithm);
                self.digester.update(&self.buffer);
            }
            _ => {
                return Err(Error::Invalid(
                    "this upload can only be truncated to where its request began, or to nothing",
                ));
            }
        }
        self.ingest.status.offset = size;
        self.tell();
        Ok(())
    }

    /// Back to what was written down last.
    async fn back(&mut self) {
        let Some((buffer, digester)) = self.mark.clone() else { return };
        self.spent = true;
        self.give_up_parts().await;
        self.ingest.parts.clone_from(&self.saved.parts);
        self.buffer = buffer.as_ref().into();
        self.digester = digester;
        self.spent = false;
    }

    /// Back to nothing.
    async fn restart(&mut self) -> Result<()> {
        self.spent = true;
        self.give_up_parts().await;
        let old = self.ingest.clone();
        self.ingest.upload = None;
        self.ingest.parts.clear();
        self.ingest.tail = Tail::Here(Vec::new());
        self.ingest.hash = None;
        self.ingest.status.offset = 0;
        self.buffer.clear();
        self.whole = false;
        self.digester = Digester::new(self.ingest.algorithm);
        self.mark = Some((Bytes::new(), self.digester.clone()));
        if !self.inner.ingests.save(&self.ingest, &self.open.token, false).await? {
            return Err(self.gone());
        }
        self.saved = self.ingest.clone();
        self.spent = false;
        self.inner.clean(&old).await;
        Ok(())
    }

    /// Writes down how far it has come and frees the ref.
    pub(crate) async fn let_go(&mut self) -> Result<()> {
        if self.open.gone.load(Ordering::SeqCst) {
            return Err(self.gone());
        }
        let noted = if self.spent { Err(self.gone()) } else { self.note().await };
        let ingest = if noted.is_ok() { &self.ingest } else { &self.saved };
        let freed = self.inner.ingests.save(ingest, &self.open.token, true).await;
        self.inner.close(self.reference(), &self.open);
        noted?;
        // The one of the two that no row names.
        let is_saved = freed?;
        self.drop_tail(if is_saved { &self.saved } else { &self.ingest }).await;
        if is_saved { Ok(()) } else { Err(self.gone()) }
    }

    /// Brings all bytes to the bucket, or into what will be the row.
    async fn note(&mut self) -> Result<()> {
        self.all_arrive().await?;
        self.ingest.hash = Some(self.digester.state());
        self.ingest.tail = if self.buffer.len() <= IN_ROW {
            Tail::Here(self.buffer.to_vec())
        } else {
            // Nobody else has this number, whatever he takes himself for.
            let number = rand::random_range(1..=i64::MAX);
            let key = self.inner.bucket.tail(&self.ingest.id, number);
            self.inner.bucket.put(&key, self.buffer.clone().freeze()).await?;
            Tail::There(number)
        };
        Ok(())
    }

    async fn drop_tail(&self, of: &Ingest) {
        if let Tail::There(number) = of.tail {
            drop(self.inner.bucket.delete(&self.inner.bucket.tail(&of.id, number)).await);
        }
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        self.check().await?;
        self.live().await?;
        let wanted = expected.cloned().or_else(|| self.expected.clone());
        let algorithm = wanted.as_ref().map_or(self.ingest.algorithm, Digest::algorithm);
        let actual = if algorithm == self.ingest.algorithm {
            self.digester.clone().finish()
        } else {
            self.hash_again(algorithm).await?
        };
        let size = if size == 0 { self.ingest.status.total } else { size };
        verify(&self.ingest.status, size, wanted.as_ref(), &actual)?;
        let is_new = !self.inner.blobs.hold(&actual).await? && self.publish(&actual).await?;
        self.finish().await;
        if is_new { Ok(actual) } else { Err(Error::AlreadyExists(actual)) }
    }

    /// Reserves, uploads, publishes; whether it was this writer's generation that won.
    async fn publish(&mut self, digest: &Digest) -> Result<bool> {
        let inner = self.inner.clone();
        let size = self.ingest.status.offset;
        let generation = inner.blobs.reserve(digest, size).await?;
        let key = inner.bucket.blob(digest, generation);
        if self.ingest.upload.is_none() {
            inner.bucket.put(&key, self.buffer.clone().freeze()).await?;
        } else {
            self.complete().await?;
            inner.bucket.copy(&inner.bucket.data(&self.ingest.id), &key, size).await?;
            // Who took the upload over meanwhile may have put other bytes there.
            self.live().await?;
        }
        let found = inner.bucket.size(&key).await?;
        if found != Some(size) {
            // What nobody holds any more the collector deletes.
            if !inner.blobs.is_reserved(digest, generation).await? {
                return Err(too_late());
            }
            let why = format!("expected {size} bytes, the bucket has {found:?} just after it took them");
            return Err(crate::Error::Damaged { digest: digest.clone(), key: key.to_string(), why }.into());
        }
        match inner.blobs.publish(digest, generation).await? {
            Published::Live => Ok(true),
            Published::Other => Ok(false),
            Published::Gone => Err(too_late()),
        }
    }

    /// The blob is there: the upload goes.
    async fn finish(&mut self) {
        self.spent = true;
        let removed = self.inner.ingests.remove(&self.ingest.id, Some(&self.open.token)).await;
        self.inner.close(self.reference(), &self.open);
        match removed {
            Ok(true) => {}
            // Somebody else has it, and what it has in the bucket.
            Ok(false) => return,
            // Its row is left for who drops idle uploads.
            Err(error) => return tracing::debug!(%error, "the row of a finished upload stays for a while"),
        }
        let (inner, mut ingest) = (self.inner.clone(), self.ingest.clone());
        ingest.tail = self.saved.tail.clone();
        if ingest.upload.is_some() || matches!(ingest.tail, Tail::There(_)) {
            tokio::spawn(async move { inner.clean(&ingest).await });
        }
    }
}

/// The collector took the reservation: the same upload may be committed again.
fn too_late() -> Error {
    Error::Unavailable {
        what: "the reservation of this blob",
        source: "it took longer to upload than a lease lasts".into(),
    }
}

impl SharedWriter {
    /// Goes on with an upload, or begins it anew. Whatever becomes of this, its ref is free when the writer is dropped.
    pub(crate) async fn open(
        inner: Arc<Inner>,
        open: Arc<Open>,
        ingest: Ingest,
        expected: Option<Digest>,
        restart: bool,
    ) -> Result<Self> {
        let (last, reference) = (ingest.status.clone(), ingest.status.reference.clone());
        let mut writer = Self { state: Some(State::new(inner, open, ingest, expected)), reference, last };
        writer.state()?.resume(restart).await?;
        Ok(writer)
    }

    fn state(&mut self) -> Result<&mut State> {
        self.state.as_mut().ok_or_else(|| Error::no_ingest(&self.reference))
    }
}

#[async_trait]
impl Writer for SharedWriter {
    fn status(&self) -> Status {
        self.state.as_ref().map_or_else(|| self.last.clone(), |state| state.ingest.status.clone())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.state()?.write(bytes).await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.state()?.truncate(size).await
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let committed = self.state()?.commit(size, expected).await;
        if matches!(committed, Ok(_) | Err(Error::AlreadyExists(_))) {
            self.last = self.status();
            self.state = None;
        }
        committed
    }

    fn digest(&self) -> Digest {
        let digester = self.state.as_ref().map_or_else(|| Digester::new(Algorithm::Sha256), |s| s.digester.clone());
        digester.finish()
    }

    async fn release(&mut self) -> Result<bool> {
        let let_go = self.state()?.let_go().await;
        self.last = self.status();
        self.state = None;
        let_go.map(|()| true)
    }
}

impl Drop for SharedWriter {
    fn drop(&mut self) {
        if let Some(state) = self.state.take() {
            state.inner.clone().settle(state);
        }
    }
}
