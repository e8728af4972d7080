//! The parts of an upload on their way to the bucket, and the object `data` that they are put together to.
//!
//! # Invariants
//! - Whoever is dropped in the midst of sending leaves every byte where it is counted: in the buffer, or in a part.
//! - `data` is taken for complete when the bucket has put these very parts together, or when it was read and hashed: a writer
//!   that was taken for dead may have put others together.

use futures::StreamExt as _;
use orlop_content::{Error, Result};
use orlop_oci::{Algorithm, Digest, Digester};

use crate::writer::State;

/// A part, of which S3 takes 10,000; from [`MANY_PARTS`] on they are larger, so that a blob may have 300 GB.
const PART: usize = 8 << 20;
const MANY_PARTS: usize = 1_000;
const LARGE_PART: usize = 32 << 20;

/// Parts of one upload on their way at once.
const IN_FLIGHT: usize = 2;

impl State {
    pub(crate) fn part_size(&self) -> usize {
        if self.counted() < MANY_PARTS { PART } else { LARGE_PART }
    }

    /// How many parts have left the buffer.
    fn counted(&self) -> usize {
        self.ingest.parts.len() + self.in_flight.len()
    }

    /// Sends the first bytes of the buffer as the next part.
    pub(crate) async fn send(&mut self, size: usize) -> Result<()> {
        let key = self.inner.bucket.data(&self.ingest.id);
        let upload = match &self.ingest.upload {
            Some(upload) => upload.clone(),
            None => self.begin().await?,
        };
        while self.in_flight.len() >= IN_FLIGHT {
            self.arrive().await?;
        }
        let slot = self.inner.slots.clone().acquire_owned().await.map_err(|_| Error::Stopped)?;
        // Nothing is waited for from here on.
        let (number, part) = (self.counted(), self.buffer.split_to(size).freeze());
        let bucket = self.inner.bucket.clone();
        self.in_flight.push_back(tokio::spawn(async move {
            let _slot = slot;
            bucket.part(&key, &upload, number, part).await
        }));
        Ok(())
    }

    async fn begin(&mut self) -> Result<String> {
        let key = self.inner.bucket.data(&self.ingest.id);
        let upload = self.inner.bucket.begin(&key).await?;
        if !self.inner.ingests.begin(&self.ingest.id, &self.open.token, &upload).await? {
            drop(self.inner.bucket.abort(&key, &upload).await);
            return Err(self.gone());
        }
        self.ingest.upload = Some(upload.clone());
        self.saved.upload = Some(upload.clone());
        Ok(upload)
    }

    /// Waits for the oldest part that is on its way.
    async fn arrive(&mut self) -> Result<()> {
        let Some(oldest) = self.in_flight.front_mut() else { return Ok(()) };
        let arrived = oldest.await;
        self.in_flight.pop_front();
        self.ingest.parts.push(arrived.map_err(|_| Error::Stopped)??);
        Ok(())
    }

    pub(crate) async fn all_arrive(&mut self) -> Result<()> {
        while !self.in_flight.is_empty() {
            let arrived = self.arrive().await;
            self.spent |= arrived.is_err();
            arrived?;
        }
        Ok(())
    }

    /// Waits until nothing is on its way any more, whatever becomes of it: a part that comes late would take the place of one
    /// that is still to be sent.
    pub(crate) async fn give_up_parts(&mut self) {
        while let Some(part) = self.in_flight.pop_front() {
            drop(part.await);
        }
    }

    /// Puts the parts together. May be repeated, also by another gateway.
    pub(crate) async fn complete(&mut self) -> Result<()> {
        let Some(upload) = self.ingest.upload.clone().filter(|_| !self.whole) else { return Ok(()) };
        let data = self.inner.bucket.data(&self.ingest.id);
        let (counted, rest) = (self.counted(), self.buffer.clone());
        // Dropped while the rest is both a part and the buffer's, it goes on from what was written down last.
        self.spent = true;
        let arrived = self.send_rest().await;
        self.spent = arrived.is_err();
        let completed = match arrived {
            Ok(()) => self.inner.bucket.complete(&data, &upload, &self.ingest.parts).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        // Until it is known to be complete the rest is the buffer's: it may be sent again.
        self.ingest.parts.truncate(counted);
        self.buffer = rest;
        if let Err(error) = completed
            && !self.is_complete().await?
        {
            return Err(error);
        }
        (self.whole, self.spent) = (true, false);
        Ok(())
    }

    async fn send_rest(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.send(self.buffer.len()).await?;
        }
        self.all_arrive().await
    }

    /// Whether `data` has all bytes although the bucket did not say so to this writer: its answer was lost, or it said so to
    /// an earlier one.
    async fn is_complete(&self) -> Result<bool> {
        let size = self.inner.bucket.size(&self.inner.bucket.data(&self.ingest.id)).await?;
        Ok(size == Some(self.ingest.status.offset)
            && self.hash_data(self.ingest.algorithm).await? == self.digester.clone().finish())
    }

    /// By another algorithm than bytes were hashed with as they came.
    pub(crate) async fn hash_again(&mut self, algorithm: Algorithm) -> Result<Digest> {
        if self.ingest.upload.is_none() {
            let mut digester = Digester::new(algorithm);
            digester.update(&self.buffer);
            return Ok(digester.finish());
        }
        self.complete().await?;
        self.hash_data(algorithm).await
    }

    async fn hash_data(&self, algorithm: Algorithm) -> Result<Digest> {
        let mut digester = Digester::new(algorithm);
        let mut pieces = self.inner.bucket.stream(&self.inner.bucket.data(&self.ingest.id), 0).await?;
        let mut actual = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            actual += piece.len() as u64;
            digester.update(&piece);
        }
        let (reference, expected) = (self.reference().to_owned(), self.ingest.status.offset);
        if actual == expected {
            Ok(digester.finish())
        } else {
            Err(Error::SizeMismatch { reference, expected, actual })
        }
    }
}
