//! The body of an answer: bounded, counted, and ended when its time is up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use tonic::{Code, Status};
use tracing::Span;

use super::bound::Place;
use super::calls::{Limit, log};
use super::flow::Flow;
use crate::metrics::Metrics;

/// Counts and logs a call when it is dropped. Until the server has said how the call ended, it counts as cancelled by
/// the client.
pub(super) struct Record {
    metrics: Metrics,
    method: Arc<str>,
    span: Span,
    started: Instant,
    code: Code,
}

impl Record {
    pub(super) fn new(metrics: Metrics, method: Arc<str>, span: Span) -> Self {
        metrics.running.inc();
        Self { metrics, method, span, started: Instant::now(), code: Code::Cancelled }
    }

    pub(super) const fn ended(&mut self, code: Code) {
        self.code = code;
    }

    /// Looks for a status in headers or trailers.
    pub(super) fn headers(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get(Status::GRPC_STATUS) {
            self.code = Code::from_bytes(code.as_bytes());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.running.dec();
        self.metrics.call(&self.method, self.code, self.started.elapsed());
        self.span.in_scope(|| log(self.code, self.started));
        self.span.record("code", crate::metrics::name(self.code));
    }
}

/// An answer on its way.
#[derive(Default)]
pub(super) struct Answer {
    /// None once it has ended.
    running: Option<Running>,
}

struct Running {
    body: tonic::body::Body,
    record: Record,
    limit: Limit,
    flow: Flow,
    _place: Place,
}

impl Answer {
    pub(super) fn new(body: tonic::body::Body, record: Record, limit: Limit, flow: Flow, place: Place) -> Self {
        Self { running: Some(Running { body, record, limit, flow, _place: place }) }
    }

    /// Ends with a status.
    fn cut(&mut self, status: &Status) -> Frame<Bytes> {
        if let Some(mut running) = self.running.take() {
            running.record.ended(status.code());
        }
        let mut trailers = HeaderMap::new();
        // A status of plain text always fits into headers.
        let _ = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(running) = &mut self.running else { return Poll::Ready(None) };
        if let Poll::Ready(status) = running.limit.as_mut().poll(cx) {
            return Poll::Ready(Some(Ok(self.cut(&status))));
        }
        let Running { body, record, flow, .. } = running;
        let span = record.span.clone();
        let _entered = span.enter();
        match flow.produce(|| Pin::new(body).poll_frame(cx)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.running = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    record.headers(trailers);
                }
                Poll::Ready(Some(Ok(frame.map_data(|bytes| flow.count(bytes)))))
            }
            Poll::Ready(Some(Err(status))) => {
                record.ended(status.code());
                self.running = None;
                Poll::Ready(Some(Err(status)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // The limit may cut the body short: no length is promised.
        SizeHint::default()
    }
}
