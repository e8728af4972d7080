//! Feeding a request's body from a borrowed source while the request runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::mpsc;

use crate::error::{BoxError, Error};
use crate::{BlobSource, UploadProgress};

type Piece = Result<Bytes, BoxError>;

/// A piece of a blob to be sent: `length` bytes from `start` on.
pub(super) struct Feed<'a> {
    pub(super) source: BlobSource<'a>,
    pub(super) progress: UploadProgress<'a>,
    pub(super) start: u64,
    pub(super) length: u64,
    /// Counts what was handed over, so that a standstill can be seen.
    pub(super) moved: AtomicU64,
}

/// A body and the channel that fills it; one piece at a time waits in it.
pub(super) fn channel() -> (mpsc::Sender<Piece>, reqwest::Body) {
    let (sender, receiver) = mpsc::channel::<Piece>(1);
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    (sender, reqwest::Body::wrap_stream(stream))
}

impl Feed<'_> {
    /// Reads the source and fills the channel. Ends early without an error when nobody receives any more: the request's
    /// own result then says why.
    pub(super) async fn run(&self, sender: mpsc::Sender<Piece>) -> Result<(), Error> {
        let mut stream = (self.source)(self.start);
        let mut sent = 0;
        while sent < self.length {
            let mut bytes = match stream.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Err(abort(&sender, Error::source(error)).await),
                None => return Err(abort(&sender, self.short(sent)).await),
            };
            let room = self.length - sent;
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len()));
            sent += bytes.len() as u64;
            if sender.send(Ok(bytes)).await.is_err() {
                return Ok(());
            }
            self.moved.store(sent, Ordering::Relaxed);
            (self.progress)(self.start + sent);
        }
        Ok(())
    }

    fn short(&self, sent: u64) -> Error {
        Error::source(format!(
            "it ended after {} bytes, expected at least {}",
            self.start + sent,
            self.start + self.length
        ))
    }

    /// Ends with nothing when no byte has moved for `idle`.
    pub(super) async fn standstill(&self, idle: Duration) {
        let mut last = None;
        loop {
            let now = self.moved.load(Ordering::Relaxed);
            if last == Some(now) {
                return;
            }
            last = Some(now);
            tokio::time::sleep(idle).await;
        }
    }
}

/// Breaks the request off: a body that ended early must not look complete.
async fn abort(sender: &mpsc::Sender<Piece>, error: Error) -> Error {
    // The receiver may be gone already, which is as good.
    let _ = sender.send(Err(error.to_string().into())).await;
    error
}
