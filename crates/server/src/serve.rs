//! A server, and its services in process.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use orlop_api::channel;
use orlop_image::{Images, Mirror};
use orlop_metadata::{Store, Watcher};
use orlop_remote::{Rates, TraceHeaders};
use tokio::sync::Notify;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server as Transport};
use tonic_health::server::HealthReporter;

use crate::AnswerStream;
use crate::background::Collector;
use crate::beside::{Beside, BesideSettings};
use crate::blocking::blocking;
use crate::cri::{Cri, CriSettings};
use crate::events::Exchange;
use crate::metrics::Metrics;
use crate::mirror_metrics;
use crate::orlop;
use crate::raw::Owner;
use crate::raw::remote::Fetches;
use crate::services;
use crate::streaming::Streams;
use crate::traces::Traces;

/// How often it is looked whether a mirror has something for too long.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// All services over one root. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    images: Images,
    collector: Collector,
    cri: Cri,
    exchange: Exchange,
    streams: Streams,
    /// Cancelled when the server is to end: what would go on for ever ends then.
    ending: CancellationToken,
    /// Keeps the exchange listening to the store.
    _watcher: Arc<Watcher>,
    metrics: Metrics,
    health: HealthReporter,
    traces: Option<Traces>,
    /// The settings were replaced: what is there has to follow.
    reconfigured: Arc<Notify>,
    /// What is being brought for each owner.
    fetches: Arc<Mutex<HashMap<Owner, Arc<Fetches>>>>,
    beside: Option<Beside>,
    /// What registries say of their limits.
    rates: Rates,
    mirror: Option<Mirror>,
}

impl Server {
    /// Serves these images and their store.
    pub fn new(images: Images) -> Self {
        let exchange = Exchange::default();
        let _watcher = exchange.listen(images.store());
        let cri = Cri::new(images.clone(), CriSettings::default());
        Self {
            images,
            cri,
            collector: Collector::default(),
            exchange,
            streams: Streams::default(),
            ending: CancellationToken::new(),
            _watcher,
            metrics: Metrics::default(),
            health: HealthReporter::new(),
            traces: None,
            reconfigured: Arc::default(),
            fetches: Arc::default(),
            beside: None,
            rates: Rates::default(),
            mirror: None,
        }
    }

    /// What registries say of their limits on requests, whoever of this server asked them.
    pub const fn rates(&self) -> &Rates {
        &self.rates
    }

    /// The same with a mirror, which it looks after and counts. Must be called within a runtime.
    #[must_use]
    pub fn with_mirror(self, mirror: Mirror) -> Self {
        tokio::spawn(tidy(mirror.clone()));
        Self { mirror: Some(mirror), ..self }
    }

    /// The same with other settings for CRI.
    #[must_use]
    pub fn with_cri(self, mut settings: CriSettings) -> Self {
        settings.registry.rates = self.rates.clone();
        Self { cri: Cri::new(self.images.clone(), settings), ..self }
    }

    /// The same with its spans joined to the traces of clients and registries. CRI's pulls go by
    /// [`CriSettings::registry`].
    #[must_use]
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces: Some(traces), ..self }
    }

    /// The same with a containerd beside, which runs the containers of the kubelet that asks here for images. Must be called within a
    /// runtime.
    #[must_use]
    pub fn with_beside(self, settings: BesideSettings) -> Self {
        Self { beside: Some(Beside::new(settings)), ..self }
    }

    pub(crate) const fn beside(&self) -> Option<&Beside> {
        self.beside.as_ref()
    }

    /// The images that are being brought for an owner, whoever asks for them.
    pub(crate) fn fetches(&self, owner: &Owner) -> Arc<Fetches> {
        let mut all = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(owner.clone()).or_default().clone()
    }

    /// Replaces the settings while the server runs, for what begins from now on. A served store follows them.
    pub fn reconfigure(&self, images: orlop_image::Settings, mut cri: CriSettings) {
        cri.registry.rates = self.rates.clone();
        self.images.set_settings(images);
        self.cri.set(cri);
        self.reconfigured.notify_one();
    }

    /// Comes once after [`Server::reconfigure`].
    pub(crate) async fn reconfigured(&self) {
        self.reconfigured.notified().await;
    }

    /// The services in this process, over a pipe in memory. They end with the last clone of the channel. Must be called
    /// within a runtime.
    pub fn in_process(&self) -> Channel {
        let (channel, connections) = channel::memory();
        let routes = services::all(self);
        tokio::spawn(async move {
            let incoming = ReceiverStream::new(connections).map(Ok::<_, Infallible>);
            if let Err(error) = transport().add_routes(routes).serve_with_incoming(incoming).await {
                tracing::error!(%error, "the in-process server ended");
            }
        });
        channel
    }

    /// Tells subscribers in this process what other processes do to image records, until the runtime ends. A daemon does
    /// so by itself. Must be called within a runtime.
    pub fn follow_others(&self) {
        tokio::spawn(Exchange::follow(self.store().clone()));
    }

    pub(crate) fn store(&self) -> &Store {
        self.images.store()
    }

    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(crate) fn cri(&self) -> &Cri {
        &self.cri
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// A stream that would go on for ever, until the server is to end.
    pub(crate) fn until_shutdown<T: Send + 'static>(&self, stream: AnswerStream<T>) -> AnswerStream<T> {
        Box::pin(stream.take_until(self.ending.clone().cancelled_owned()))
    }

    /// What has to end when the server is asked to.
    pub(crate) const fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    pub(crate) fn collector(&self) -> &Collector {
        &self.collector
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Where it is told how the server is; it serves as long as nothing else is told.
    pub(crate) fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    pub(crate) const fn traces(&self) -> Option<&Traces> {
        self.traces.as_ref()
    }

    /// What tells registries which trace a request belongs to.
    pub(crate) fn trace_headers(&self) -> Option<TraceHeaders> {
        self.traces().map(|traces| traces.send.clone())
    }

    /// Everything that is counted, as Prometheus reads it. Of what is in the store it says the last that was known if that cannot
    /// be read.
    pub async fn metrics_text(&self) -> String {
        let store = self.store().clone();
        let stored = blocking(move || store.counts()).await;
        if let Err(status) = &stored {
            tracing::warn!(error = status.message(), "what is in the store cannot be counted");
        }
        let spans = self.traces().map(|traces| &traces.counts);
        let read_only = self.store().read_only_reason().is_some();
        let mut text = self.metrics.text(stored.ok(), self.images.pulled_bytes(), spans, read_only);
        if let Some(neighbours) = self.images.nearby() {
            orlop::peers::add_metrics(&mut text, &neighbours.report());
        }
        mirror_metrics::add(&mut text, &self.rates, self.mirror.as_ref().map(Mirror::counts));
        text
    }

    /// Brings the hash references of a changed record in order. The change itself stands, so a failure is only told to
    /// the log: the next pass mends what is left.
    pub(crate) async fn reconcile(&self, namespace: &str, name: &str) {
        if !self.images.settings().is_cri(namespace) {
            return;
        }
        if let Err(error) = self.images.reconcile_image(namespace, name).await {
            tracing::warn!(%error, namespace, name, "the hash references could not be brought in order");
        }
    }
}

/// Removes from time to time what a mirror has for too long.
async fn tidy(mirror: Mirror) {
    let mut times = tokio::time::interval(TIDY_EVERY);
    times.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        times.tick().await;
        match mirror.tidy(Timestamp::now()).await {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(images = gone.len(), "the mirror's images that nobody asked for went"),
            Err(error) => tracing::warn!(%error, "what the mirror has cannot be looked through"),
        }
    }
}

fn transport() -> Transport {
    Transport::builder()
        .initial_stream_window_size(channel::WINDOW_BYTES)
        .initial_connection_window_size(channel::WINDOW_BYTES)
        .max_frame_size(channel::FRAME_BYTES)
}
