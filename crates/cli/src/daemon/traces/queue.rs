//! From spans that end to messages for the receiver.
//!
//! # Invariants
//! - Ending a span never waits: where [`Queue`] is full the span is dropped and counted.
//! - What waits is bounded: the queue, and the message that is on its way.
//! - A receiver that fails is told of once, until it works again.

use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use orlop_server::SpanCounts;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::convention;

/// Spans in one message.
const BATCH: usize = 512;

/// How long spans wait for others to go with.
const GATHER: Duration = Duration::from_secs(1);

/// How long a message may take, with all that the exporter tries. Its own limit is 10 seconds by default.
const EXPORT: Duration = Duration::from_secs(30);

/// Takes ended spans.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<SpanData>,
    counts: SpanCounts,
}

impl Queue {
    pub(super) const fn new(sender: mpsc::Sender<SpanData>, counts: SpanCounts) -> Self {
        Self { sender, counts }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.sender.try_reserve() {
            Ok(place) => {
                convention::apply(&mut span);
                place.send(span);
            }
            Err(_) => self.counts.dropped(1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what is in the queue.
pub(super) struct Sending<E> {
    exporter: E,
    spans: mpsc::Receiver<SpanData>,
    counts: SpanCounts,
    failing: bool,
}

impl<E: SpanExporter> Sending<E> {
    pub(super) const fn new(exporter: E, spans: mpsc::Receiver<SpanData>, counts: SpanCounts) -> Self {
        Self { exporter, spans, counts, failing: false }
    }

    /// Sends until it is stopped, then what is left.
    pub(super) async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let mut batch = Vec::new();
            let ends = tokio::select! {
                _ = &mut stopped => true,
                () = gather(&mut self.spans, &mut batch) => self.spans.is_closed(),
            };
            if ends {
                self.spans.close();
                while self.spans.recv_many(&mut batch, BATCH).await > 0 {
                    self.export(std::mem::take(&mut batch)).await;
                }
            }
            if !batch.is_empty() {
                self.export(batch).await;
            }
            if ends {
                return;
            }
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len();
        let failure = match tokio::time::timeout(EXPORT, self.exporter.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {EXPORT:?}")),
        };
        match failure {
            None => {
                self.counts.exported(spans);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the receiver of traces takes spans again");
                }
            }
            Some(error) => {
                self.counts.failed(spans);
                if std::mem::replace(&mut self.failing, true) {
                    tracing::debug!(error, spans, "the receiver of traces took no spans");
                } else {
                    tracing::warn!(
                        error,
                        spans,
                        "the receiver of traces took no spans; they are lost, as all until it does"
                    );
                }
            }
        }
    }
}

/// Waits for a span, and a little for others. What was taken is in `batch` even if this is dropped.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, BATCH).await == 0 {
        return;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        match tokio::time::timeout_at(until, spans.recv_many(batch, BATCH - batch.len())).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
