//! Traces, as far as a server has to do with them.
//!
//! Every part makes its spans by `tracing`; what becomes of them is decided by whoever collects them. The server has only
//! to join them to what clients and registries do, and to show what became of them among its metrics.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use orlop_remote::TraceHeaders;
use tracing::Span;

/// Reads the headers of a call for its span.
pub type Receive = Arc<dyn Fn(&HeaderMap, &Span) + Send + Sync>;

/// How a server's spans become parts of traces.
#[derive(Clone)]
pub struct Traces {
    /// Lets the span of a call go on with the trace that the headers of the call name, if they do. Called before the span
    /// is entered.
    pub receive: Receive,
    /// Lets registries go on with it.
    pub send: TraceHeaders,
    /// What became of spans.
    pub counts: SpanCounts,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// Spans by what became of them. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct SpanCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl SpanCounts {
    /// The receiver took some.
    pub fn exported(&self, spans: usize) {
        self.0.exported.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Some were lost since the receiver did not take them.
    pub fn failed(&self, spans: usize) {
        self.0.failed.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Some were not kept, since too many were waiting.
    pub fn dropped(&self, spans: usize) {
        self.0.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// Each word with its count.
    pub(crate) fn all(&self) -> [(&'static str, u64); 3] {
        let Counts { exported, failed, dropped } = &*self.0;
        [("exported", exported), ("failed", failed), ("dropped", dropped)]
            .map(|(result, count)| (result, count.load(Ordering::Relaxed)))
    }
}
