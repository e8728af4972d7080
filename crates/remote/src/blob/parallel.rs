//! Large blobs: one connection where it is fast enough, several closed ranges at once where it is not.
//!
//! The first [`Tuning::probe_bytes`] come by one range and are measured: only the time spent waiting for the network counts,
//! so a slow reader does not make a fast sender look slow. Then the rest comes by one request, or by
//! [`Tuning::ranges`] at once if the sender was slower than [`Tuning::parallel_below`].
//!
//! At most that many ranges are on their way or waiting to be delivered: that bounds the memory, whatever the blob's size.
//! Nothing moves unless the stream is polled, so a slow reader slows the sender.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use http::StatusCode;
use tokio::sync::Notify;

use crate::error::Result;
use crate::{BlobStream, Tuning};

use super::download::Download;
use super::source::Source;

/// A range that keeps the reader waiting gets a new connection at most so often.
const MAX_REPLACEMENTS: u32 = 2;

/// Opens the stream; a host that answers a range with the whole blob is read by that one connection.
pub(super) async fn open(source: Arc<Source>, offset: u64, tuning: &Tuning) -> Result<BlobStream> {
    let size = source.size();
    let probe = offset..size.min(offset.saturating_add(tuning.probe_bytes.max(1)));
    let opened = source.open(&probe).await?;
    if opened.answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(Download::new(source, offset..size).opened(opened).into_stream());
    }
    let phase = Phase::Probe {
        download: Download::new(source.clone(), probe.clone()).opened(opened),
        waited: Duration::ZERO,
        range: probe,
    };
    let adaptive = Adaptive { source, tuning: tuning.clone(), phase };
    Ok(Box::pin(futures::stream::unfold(Some(adaptive), |state| async move {
        let mut adaptive = state?;
        match adaptive.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(adaptive))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

struct Adaptive {
    source: Arc<Source>,
    tuning: Tuning,
    phase: Phase,
}

enum Phase {
    Probe { download: Download, waited: Duration, range: Range<u64> },
    One(Download),
    Several(Ranges),
}

impl Adaptive {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if let Phase::Probe { download, waited, range } = &mut self.phase {
            let asked = Instant::now();
            let bytes = download.next().await?;
            *waited += asked.elapsed();
            if bytes.is_some() {
                return Ok(bytes);
            }
            let rest = range.end..self.source.size();
            let speed = (range.end - range.start) as f64 / waited.as_secs_f64().max(1e-6);
            let several = speed < self.tuning.parallel_below as f64;
            tracing::debug!(speed, several, "measured the sender");
            self.phase = if several {
                Phase::Several(Ranges::new(self.source.clone(), rest.start, &self.tuning))
            } else {
                Phase::One(Download::new(self.source.clone(), rest))
            };
        }
        match &mut self.phase {
            Phase::Probe { .. } => Ok(None),
            Phase::One(download) => download.next().await,
            Phase::Several(ranges) => ranges.next().await,
        }
    }
}

/// Ranges on their way, in order.
struct Ranges {
    source: Arc<Source>,
    pending: FuturesOrdered<BoxFuture<'static, Result<Vec<Bytes>>>>,
    /// For each pending range: tells it to take a new connection.
    hurry: VecDeque<Arc<Notify>>,
    /// What has come and is to be delivered next.
    ready: VecDeque<Bytes>,
    next: u64,
    step: u64,
    width: usize,
    patience: Duration,
}

impl Ranges {
    fn new(source: Arc<Source>, start: u64, tuning: &Tuning) -> Self {
        Self {
            source,
            pending: FuturesOrdered::new(),
            hurry: VecDeque::new(),
            ready: VecDeque::new(),
            next: start,
            step: tuning.range_bytes.max(1),
            width: tuning.ranges.max(1),
            patience: tuning.slow_range,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            self.fill();
            match self.head().await {
                Some(pieces) => self.ready.extend(pieces?),
                None => return Ok(None),
            }
            self.hurry.pop_front();
        }
    }

    fn fill(&mut self) {
        while self.pending.len() < self.width && self.next < self.source.size() {
            let range = self.next..self.source.size().min(self.next + self.step);
            self.next = range.end;
            let hurry = Arc::new(Notify::new());
            self.hurry.push_back(hurry.clone());
            self.pending.push_back(Box::pin(collect(Download::new(self.source.clone(), range), hurry)));
        }
    }

    /// Waits for the first range; one that takes long, perhaps on a bad path, gets a new connection.
    async fn head(&mut self) -> Option<Result<Vec<Bytes>>> {
        for replaced in 0..MAX_REPLACEMENTS {
            let patience = self.patience.saturating_mul(1 << replaced);
            match tokio::time::timeout(patience, self.pending.next()).await {
                Ok(pieces) => return pieces,
                Err(_) => {
                    if let Some(hurry) = self.hurry.front() {
                        hurry.notify_one();
                    }
                }
            }
        }
        self.pending.next().await
    }
}

/// Reads a range. Its pieces are kept as they came: copying them would double the memory.
async fn collect(mut download: Download, hurry: Arc<Notify>) -> Result<Vec<Bytes>> {
    let mut pieces = Vec::new();
    loop {
        tokio::select! {
            biased;
            piece = download.next() => match piece? {
                Some(piece) => pieces.push(piece),
                None => return Ok(pieces),
            },
            () = hurry.notified() => download.disconnect(),
        }
    }
}
