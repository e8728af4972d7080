//! Traces for a receiver that speaks OTLP, if the configuration or the environment names one.
//!
//! ```text
//! spans of all crates (tracing) ──▶ layer ──▶ sampler ──▶ Queue (bounded, never waits) ──▶ Sending ──▶ receiver
//! ```
//!
//! # Invariants
//! - Nobody waits for a receiver but [`Sending`], one task; and the end of the daemon, for [`FLUSH`] at most.
//! - Spans of Orlop's own crates leave, at level `info`; no log line does. Their names become OpenTelemetry's in
//!   [`convention`] alone.

mod convention;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _};
use orlop_remote::TraceHeaders;
use orlop_server::SpanCounts;
use queue::{Queue, Sending};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::ClientTlsConfig;
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use crate::config::{Protocol, SamplerKind, Traces as Config};

/// How long the end of the daemon waits for the last spans to be taken.
const FLUSH: Duration = Duration::from_secs(3);

/// Receivers that keep `tracestate` keep as much (W3C Trace Context, section 3.3.1.5); what is longer is left out.
const MAX_STATE_BYTES: usize = 512;

/// Traces that are being sent.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    counts: SpanCounts,
    stop: oneshot::Sender<()>,
    sending: JoinHandle<()>,
}

impl Traces {
    /// Starts sending, if a receiver is named. Whether it is there shows only later.
    ///
    /// # Errors
    /// What cannot be used of the configuration or of OpenTelemetry's variables.
    pub(super) fn start(config: &Config) -> Result<Option<Self>, String> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let resource = resource(config);
        let mut exporter = exporter(config).map_err(|error| error.to_string())?;
        exporter.set_resource(&resource);
        let (counts, (sender, spans)) = (SpanCounts::default(), mpsc::channel(config.queue));
        let (stop, stopped) = oneshot::channel();
        let sending = tokio::spawn(Sending::new(exporter, spans, counts.clone()).run(stopped));
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler(config))
            .with_resource(resource)
            .with_span_processor(Queue::new(sender, counts.clone()))
            .build();
        Ok(Some(Self { provider, counts, stop, sending }))
    }

    /// What takes the spans of the process.
    pub(super) fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("orlop"))
            .with_context_activation(false)
            .with_error_fields_to_exceptions(false)
            .with_error_records_to_exceptions(false)
            .with_level(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        layer.with_filter(filter_fn(is_ours)).boxed()
    }

    /// What the server has to know of them.
    pub(super) fn for_server(&self) -> orlop_server::Traces {
        orlop_server::Traces { receive: Arc::new(receive), send: TraceHeaders::new(send), counts: self.counts.clone() }
    }

    /// Sends what waits, and ends.
    pub(super) async fn finish(self) {
        drop(self.stop);
        if tokio::time::timeout(FLUSH, self.sending).await.is_err() {
            tracing::warn!(limit = ?FLUSH, "the receiver of traces did not take the last spans in time");
        }
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && metadata.target().starts_with("orlop")
}

/// Goes on with the trace that the headers of a call name (W3C Trace Context).
fn receive(headers: &HeaderMap, span: &Span) {
    let context = TraceContextPropagator::new().extract(&Received(headers));
    if context.span().span_context().is_valid() {
        // A span that nobody collects has no parent either.
        let _ = span.set_parent(context);
    }
}

/// Names the trace of the current span.
fn send(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut Sent(headers));
}

struct Received<'a>(&'a HeaderMap);

impl Extractor for Received<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok().filter(|value| value.len() <= MAX_STATE_BYTES)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Sent<'a>(&'a mut HeaderMap);

impl Injector for Sent<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = http::HeaderName::try_from(key);
        if let (Ok(name), Ok(value), false) = (name, http::HeaderValue::try_from(&value), value.is_empty()) {
            self.0.insert(name, value);
        }
    }
}

fn sampler(config: &Config) -> Sampler {
    let parent = |root| Sampler::ParentBased(Box::new(root));
    match config.sampler {
        SamplerKind::AlwaysOn => Sampler::AlwaysOn,
        SamplerKind::AlwaysOff => Sampler::AlwaysOff,
        SamplerKind::Ratio => Sampler::TraceIdRatioBased(config.ratio),
        SamplerKind::ParentAlwaysOn => parent(Sampler::AlwaysOn),
        SamplerKind::ParentAlwaysOff => parent(Sampler::AlwaysOff),
        SamplerKind::ParentRatio => parent(Sampler::TraceIdRatioBased(config.ratio)),
    }
}

/// What sends: this program on this machine, and what `OTEL_RESOURCE_ATTRIBUTES` says of it.
fn resource(config: &Config) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host =
        Some(host.trim()).filter(|host| !host.is_empty()).map(|host| KeyValue::new("host.name", host.to_owned()));
    Resource::builder_empty()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .with_attributes(host)
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_service_name(config.service_name.clone())
        .build()
}

/// Headers, time limit and compression come from the exporter's own variables; whom `https:` trusts, from the system.
fn exporter(config: &Config) -> Result<SpanExporter, ExporterBuildError> {
    match config.protocol {
        Protocol::Grpc => {
            let builder = SpanExporter::builder().with_tonic().with_endpoint(&config.endpoint);
            let builder = match config.endpoint.starts_with("https:") {
                true => builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots()),
                false => builder,
            };
            builder.build()
        }
        Protocol::HttpProtobuf => {
            let builder = SpanExporter::builder().with_http().with_protocol(opentelemetry_otlp::Protocol::HttpBinary);
            builder.with_endpoint(&config.endpoint).build()
        }
    }
}
