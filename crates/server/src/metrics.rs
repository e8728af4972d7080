//! What a server counts, for Prometheus.
//!
//! # Invariants
//! - The number of time series is bounded by what Orlop serves: a method that no service has is counted as `unknown`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orlop_image::{End, Repaired, Scrubbing};
use orlop_metadata::Counts;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

use crate::traces::SpanCounts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: Arc<str>,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    result: &'static str,
}

/// All counters of a server. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    calls: Family<Call, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    /// Calls that are answered now.
    pub(crate) running: Gauge,
    /// Connections that are open now.
    pub(crate) connections: Gauge,
    /// Bytes of answers that no client has taken yet.
    pub(crate) waiting: Gauge,
    /// Bytes of requests that clients have begun and not finished.
    pub(crate) unfinished: Gauge,
    /// Bytes that came from registries, as they were last looked up.
    pulled: Counter,
    collections: Family<Kind, Counter>,
    collected: Counter,
    /// Objects that the incremental collection had missed: always 0, unless Orlop has a fault.
    pub(crate) missed: Counter,
    /// Passes of the reconciler that changed something.
    pub(crate) reconciled: Counter,
    scrubbed: Counter,
    /// Scrubs that came to their end.
    pub(crate) scrubs: Counter,
    repairs: Family<Fate, Counter>,
    stored: Family<Kind, Gauge>,
    /// 1 if the store takes no changes.
    read_only: Gauge,
    /// Spans, as they were last looked up.
    spans: Family<Fate, Counter>,
}

fn latencies() -> Histogram {
    // 0.5 ms to 4.5 minutes.
    Histogram::new(exponential_buckets(0.0005, 3.0, 13))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("orlop");
        let new = Self {
            registry: Arc::default(),
            calls: Family::default(),
            seconds: Family::new_with_constructor(latencies),
            running: Gauge::default(),
            connections: Gauge::default(),
            waiting: Gauge::default(),
            unfinished: Gauge::default(),
            pulled: Counter::default(),
            collections: Family::default(),
            collected: Counter::default(),
            missed: Counter::default(),
            reconciled: Counter::default(),
            scrubbed: Counter::default(),
            scrubs: Counter::default(),
            repairs: Family::default(),
            stored: Family::default(),
            read_only: Gauge::default(),
            spans: Family::default(),
        };
        registry.register("calls", "gRPC calls by method and status code", new.calls.clone());
        registry.register_with_unit(
            "call",
            "Time from a call's first byte to its end",
            Unit::Seconds,
            new.seconds.clone(),
        );
        registry.register("calls_running", "Calls that are answered now", new.running.clone());
        registry.register("connections", "Connections that are open", new.connections.clone());
        registry.register_with_unit(
            "waiting",
            "Answers that clients have not taken yet",
            Unit::Bytes,
            new.waiting.clone(),
        );
        registry.register_with_unit(
            "unfinished",
            "Messages that clients have begun",
            Unit::Bytes,
            new.unfinished.clone(),
        );
        registry.register_with_unit("pulled", "Bytes that came from registries", Unit::Bytes, new.pulled.clone());
        registry.register("collections", "Runs of the garbage collector", new.collections.clone());
        registry.register_with_unit("collected", "Bytes given back", Unit::Bytes, new.collected.clone());
        registry.register("missed", "Garbage that the incremental collection had missed", new.missed.clone());
        registry.register("reconciled", "Passes that changed hash references", new.reconciled.clone());
        registry.register_with_unit("scrubbed", "Bytes read again", Unit::Bytes, new.scrubbed.clone());
        registry.register("scrubs", "Passes over all blobs and trees", new.scrubs.clone());
        registry.register("repairs", "What was found damaged, by what became of it", new.repairs.clone());
        registry.register("stored", "What is in the store", new.stored.clone());
        registry.register("read_only", "1 while the store takes no changes", new.read_only.clone());
        registry.register("spans", "Spans of traces by what became of them", new.spans.clone());
        Self { registry: Arc::new(registry), ..new }
    }
}

impl Metrics {
    /// A call has ended.
    pub(crate) fn call(&self, method: &Arc<str>, code: Code, took: Duration) {
        self.calls.get_or_create(&Call { method: method.clone(), code: name(code) }).inc();
        self.seconds.get_or_create(&Method { method: method.clone() }).observe(took.as_secs_f64());
    }

    /// The collector has run.
    pub(crate) fn collection(&self, kind: &'static str, bytes: u64) {
        self.collections.get_or_create(&Kind { kind }).inc();
        self.collected.inc_by(bytes);
    }

    /// A scrub goes on.
    pub(crate) fn scrubbing(&self, event: &Scrubbing<'_>) {
        match event {
            Scrubbing::Read(bytes) => {
                self.scrubbed.inc_by(*bytes);
            }
            Scrubbing::Found(damage) => {
                let what = damage.what.to_string();
                let (detail, aside) = (&damage.detail, damage.quarantine.as_deref().unwrap_or("nothing"));
                tracing::error!(what, detail, aside, "damaged");
            }
        }
    }

    /// Something damaged was mended, or could not be.
    pub(crate) fn repaired(&self, repaired: &Repaired) {
        for mending in &repaired.mendings {
            let result = match mending.end {
                End::Planned => continue,
                End::Mended { .. } => "mended",
                End::Left { .. } => "left",
            };
            self.repairs.get_or_create(&Fate { result }).inc();
        }
    }

    /// Everything as text, with what the store has, what was pulled, what became of spans and what the process takes.
    pub(crate) fn text(
        &self,
        stored: Option<Counts>,
        pulled: u64,
        spans: Option<&SpanCounts>,
        read_only: bool,
    ) -> String {
        self.read_only.set(i64::from(read_only));
        self.pulled.inner().store(pulled, Ordering::Relaxed);
        for (result, count) in spans.into_iter().flat_map(SpanCounts::all) {
            self.spans.get_or_create(&Fate { result }).inner().store(count, Ordering::Relaxed);
        }
        let stored = stored.map(|stored| {
            [
                ("images", stored.images),
                ("blobs", stored.blobs),
                ("ingests", stored.ingests),
                ("snapshots", stored.snapshots),
                ("leases", stored.leases),
                ("damage", stored.damage),
            ]
        });
        for (kind, count) in stored.into_iter().flatten() {
            self.stored.get_or_create(&Kind { kind }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = text::encode(&mut text, &self.registry);
        process(&mut text);
        text
    }
}

/// The process' own numbers, under the names that every Prometheus client library gives them, before the end mark.
fn process(text: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let end = text.trim_end().trim_end_matches("# EOF").len();
    text.truncate(end);
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Resident memory", kib("VmRSS:").unwrap_or_default() * 1024),
        ("process_virtual_memory_bytes", "Virtual memory", kib("VmSize:").unwrap_or_default() * 1024),
        ("process_open_fds", "Open files", files as u64),
    ] {
        text.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}\n"));
    }
    text.push_str("# EOF\n");
}

/// A code under the name that gRPC gives it.
pub(crate) const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::default();
        let method: Arc<str> = "/a.B/C".into();
        metrics.call(&method, Code::Ok, Duration::from_millis(2));
        metrics.collection("incremental", 7);
        let spans = SpanCounts::default();
        spans.dropped(4);
        let text = metrics.text(Some(Counts { blobs: 3, ..Counts::default() }), 9, Some(&spans), true);
        for line in [
            r#"orlop_calls_total{method="/a.B/C",code="OK"} 1"#,
            r#"orlop_call_seconds_count{method="/a.B/C"} 1"#,
            r#"orlop_stored{kind="blobs"} 3"#,
            "orlop_collected_bytes_total 7",
            "orlop_read_only 1",
            "orlop_pulled_bytes_total 9",
            r#"orlop_spans_total{result="dropped"} 4"#,
            r#"orlop_spans_total{result="exported"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }
}
