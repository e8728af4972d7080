//! One range of a blob, read in order, resumed when its connection breaks, ends early or stalls.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::{BlobStream, retry};

use super::source::{Opened, Source};

/// A connection that brought at least this much was worth opening: the count of failures starts anew.
const PROGRESS_BYTES: u64 = 4096;

/// How long to wait for the end of a body of which all bytes have come.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads a range; `position` is where the next byte belongs.
pub(super) struct Download {
    source: Arc<Source>,
    position: u64,
    end: u64,
    opened: Option<Opened>,
    failures: u32,
    /// Where the reading stood at the last failure.
    mark: u64,
}

impl Download {
    pub(super) const fn new(source: Arc<Source>, range: Range<u64>) -> Self {
        Self { source, position: range.start, end: range.end, opened: None, failures: 0, mark: range.start }
    }

    /// With an answer that was opened before.
    pub(super) fn opened(mut self, opened: Opened) -> Self {
        self.opened = Some(opened);
        self
    }

    /// Opens the connection now, so that its errors come before a stream exists.
    pub(super) async fn connect(&mut self) -> Result<()> {
        if self.opened.is_none() {
            self.opened = Some(self.source.open(&(self.position..self.end)).await?);
        }
        Ok(())
    }

    /// Gives the connection up; the next read goes on by another one. Must not be called while a read is under way.
    pub(super) fn disconnect(&mut self) {
        tracing::debug!(position = self.position, "replacing a slow connection");
        self.opened = None;
    }

    pub(super) fn into_stream(self) -> BlobStream {
        Box::pin(futures::stream::unfold(Some(self), |state| async move {
            let mut download = state?;
            match download.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(download))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    /// The next bytes, or `None` at the end of the range.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.position == self.end {
                return self.finish().await.map(|()| None);
            }
            self.connect().await?;
            match self.read().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => self.failed(error).await?,
            }
        }
    }

    /// Reads once; `None` if what came was only to be thrown away.
    async fn read(&mut self) -> Result<Option<Bytes>> {
        let Some(opened) = &mut self.opened else { return Ok(None) };
        let what = self.source.what();
        let Some(mut bytes) = opened.answer.chunk(what).await? else {
            return Err(Error::SizeMismatch {
                what: what.to_owned(),
                host: opened.answer.host(),
                expected: self.source.size(),
                actual: self.position,
            });
        };
        let skipped = opened.skip.min(bytes.len() as u64);
        opened.skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        if bytes.is_empty() {
            return Ok(None);
        }
        let room = self.end - self.position;
        if bytes.len() as u64 > room {
            if self.end == self.source.size() {
                return Err(self.surplus(bytes.len() as u64 - room));
            }
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// At the end of the blob nothing more may come.
    async fn finish(&mut self) -> Result<()> {
        let Some(mut opened) = self.opened.take() else { return Ok(()) };
        if self.end != self.source.size() {
            return Ok(());
        }
        // Everything is there: an error of the connection, or silence, is nobody's business now.
        match tokio::time::timeout(END_TIMEOUT, opened.answer.chunk(self.source.what())).await {
            Ok(Ok(Some(more))) if !more.is_empty() => {
                self.opened = Some(opened);
                Err(self.surplus(more.len() as u64))
            }
            _ => Ok(()),
        }
    }

    fn surplus(&self, bytes: u64) -> Error {
        Error::SizeMismatch {
            what: self.source.what().to_owned(),
            host: self.opened.as_ref().map(|o| o.answer.host()).unwrap_or_default(),
            expected: self.source.size(),
            actual: self.source.size() + bytes,
        }
    }

    /// Decides what a failure means: go on at the same host, at the next one, or give up.
    async fn failed(&mut self, error: Error) -> Result<()> {
        self.opened = None;
        if matches!(error, Error::SizeMismatch { actual, .. } if actual > self.source.size()) {
            return Err(error);
        }
        let progress = self.position - self.mark >= PROGRESS_BYTES;
        self.mark = self.position;
        self.failures = if progress { 1 } else { self.failures + 1 };
        let tuning = self.source.client().tuning();
        tracing::debug!(position = self.position, failures = self.failures, %error, "resuming a download");
        if self.failures >= tuning.attempts {
            self.source.leave(error);
            self.failures = 0;
        } else if !progress {
            tokio::time::sleep(retry::backoff(tuning, self.failures)).await;
        }
        Ok(())
    }
}
