//! Where the services are offered: in process, or on a socket.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use futures::StreamExt;
use orlop_api::channel;
use orlop_image::Images;
use orlop_metadata::{Store, Watcher};
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server as Transport};

use crate::AnswerStream;
use crate::collector::Collector;
use crate::events::Exchange;
use crate::services;

/// All services over one root. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    images: Images,
    collector: Collector,
    exchange: Exchange,
    /// Cancelled when the server is to end: what would go on for ever ends then.
    ending: CancellationToken,
    /// Keeps the exchange listening to the store.
    _watcher: Arc<Watcher>,
}

impl Server {
    /// Serves these images and their store.
    pub fn new(images: Images) -> Self {
        let exchange = Exchange::default();
        let _watcher = exchange.listen(images.store());
        Self { images, collector: Collector::default(), exchange, ending: CancellationToken::new(), _watcher }
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

    /// The services on a Unix socket, with garbage collected in the background, until `shutdown` is done; calls that
    /// run then are finished first.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn serve_unix(
        &self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let collecting = tokio::spawn(self.collector.clone().run(self.store().clone()));
        let following = tokio::spawn(Exchange::follow(self.store().clone()));
        let ending = self.ending.clone();
        let shutdown = async move {
            shutdown.await;
            ending.cancel();
        };
        let incoming = UnixListenerStream::new(listener);
        let served = transport().add_routes(services::all(self)).serve_with_incoming_shutdown(incoming, shutdown).await;
        collecting.abort();
        following.abort();
        served
    }

    pub(crate) fn store(&self) -> &Store {
        self.images.store()
    }

    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// A stream that would go on for ever, until the server is to end.
    pub(crate) fn until_shutdown<T: Send + 'static>(&self, stream: AnswerStream<T>) -> AnswerStream<T> {
        Box::pin(stream.take_until(self.ending.clone().cancelled_owned()))
    }

    pub(crate) fn collector(&self) -> &Collector {
        &self.collector
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

fn transport() -> Transport {
    Transport::builder()
        .initial_stream_window_size(channel::WINDOW_BYTES)
        .initial_connection_window_size(channel::WINDOW_BYTES)
        .max_frame_size(channel::FRAME_BYTES)
}
