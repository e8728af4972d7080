//! Where the services are joined and offered.

use std::convert::Infallible;
use std::future::Future;

use futures::StreamExt;
use orlop_api::containerd::services::content::v1::content_server::ContentServer;
use orlop_api::containerd::services::diff::v1::diff_server::DiffServer;
use orlop_api::containerd::services::images::v1::images_server::ImagesServer;
use orlop_api::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use orlop_api::containerd::services::leases::v1::leases_server::LeasesServer;
use orlop_api::containerd::services::namespaces::v1::namespaces_server::NamespacesServer;
use orlop_api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use orlop_api::containerd::services::version::v1::version_server::VersionServer;
use orlop_api::orlop::v1::orlop_server::OrlopServer;
use orlop_api::{MAX_MESSAGE_BYTES, channel};
use orlop_image::Images;
use orlop_metadata::Store;
use tokio::net::UnixListener;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::service::Routes;
use tonic::transport::{Channel, Server as Transport};

use crate::collector::Collector;

/// All services over one root. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    images: Images,
    collector: Collector,
}

/// A service with the bound on messages.
macro_rules! bounded {
    ($service:ident, $server:expr) => {
        $service::new($server.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    };
}

impl Server {
    /// Serves these images and their store.
    pub fn new(images: Images) -> Self {
        Self { images, collector: Collector::default() }
    }

    /// The services in this process, over a pipe in memory. They end with the last clone of the channel. Must be called
    /// within a runtime.
    pub fn in_process(&self) -> Channel {
        let (channel, connections) = channel::memory();
        let routes = self.routes();
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
        let incoming = UnixListenerStream::new(listener);
        let served = transport().add_routes(self.routes()).serve_with_incoming_shutdown(incoming, shutdown).await;
        collecting.abort();
        served
    }

    fn routes(&self) -> Routes {
        Routes::new(bounded!(ContentServer, self))
            .add_service(bounded!(ImagesServer, self))
            .add_service(bounded!(LeasesServer, self))
            .add_service(bounded!(NamespacesServer, self))
            .add_service(bounded!(SnapshotsServer, self))
            .add_service(bounded!(DiffServer, self))
            .add_service(bounded!(VersionServer, self))
            .add_service(bounded!(IntrospectionServer, self))
            .add_service(bounded!(OrlopServer, self))
    }

    pub(crate) fn store(&self) -> &Store {
        self.images.store()
    }

    pub(crate) fn images(&self) -> &Images {
        &self.images
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
