//! Several closed ranges at once, delivered in order.
//!
//! At most [`crate::Tuning::ranges`] ranges are on their way or waiting to be delivered, each held in one buffer: that
//! bounds the memory, whatever the blob's size. Nothing moves unless the stream is polled, so a slow reader slows the sender.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use http::StatusCode;

use crate::error::Result;
use crate::{BlobStream, Tuning};

use super::download::Download;
use super::source::{Opened, Source};

struct Ranges {
    source: Arc<Source>,
    pending: FuturesOrdered<BoxFuture<'static, Result<Bytes>>>,
    next: u64,
    step: u64,
    width: usize,
}

/// Opens the first range; a host that answers it with the whole blob is read by that one connection.
pub(super) async fn open(source: Arc<Source>, offset: u64, tuning: &Tuning) -> Result<BlobStream> {
    let size = source.size();
    let first = offset..size.min(offset + tuning.range_bytes);
    let opened = source.open(&first).await?;
    if opened.answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(Download::new(source, offset..size).opened(opened).into_stream());
    }
    let mut ranges = Ranges {
        next: first.end,
        step: tuning.range_bytes,
        width: tuning.ranges,
        source,
        pending: FuturesOrdered::new(),
    };
    ranges.push(first, Some(opened));
    Ok(ranges.into_stream())
}

impl Ranges {
    fn push(&mut self, range: Range<u64>, opened: Option<Opened>) {
        let download = Download::new(self.source.clone(), range.clone());
        let download = match opened {
            Some(opened) => download.opened(opened),
            None => download,
        };
        self.pending.push_back(Box::pin(collect(download, range.end - range.start)));
    }

    fn into_stream(self) -> BlobStream {
        Box::pin(futures::stream::unfold(Some(self), |state| async move {
            let mut ranges = state?;
            while ranges.pending.len() < ranges.width && ranges.next < ranges.source.size() {
                let range = ranges.next..ranges.source.size().min(ranges.next + ranges.step);
                ranges.next = range.end;
                ranges.push(range, None);
            }
            match ranges.pending.next().await? {
                Ok(bytes) => Some((Ok(bytes), Some(ranges))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }
}

async fn collect(mut download: Download, length: u64) -> Result<Bytes> {
    let mut buffer = BytesMut::with_capacity(usize::try_from(length).unwrap_or(0));
    while let Some(bytes) = download.next().await? {
        buffer.extend_from_slice(&bytes);
    }
    Ok(buffer.freeze())
}
