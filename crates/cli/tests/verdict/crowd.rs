//! Many who are connected to a daemon while something befalls it: each on a connection of its own waits for events, as what stands above
//! a store does, and may ask what a kubelet asks.

use std::path::Path;
use std::time::Duration;

use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::events::v1::SubscribeRequest;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_api::runtime::v1::ListImagesRequest;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::Request;
use tonic::transport::Channel;

/// How many there are.
const CONNECTED: usize = 24;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// They vanish when this is dropped.
pub(crate) struct Crowd {
    runtime: Runtime,
    /// Each has its connection, and reads events until there are none any more.
    clients: Vec<(Channel, JoinHandle<()>)>,
}

impl Crowd {
    /// Connects them all.
    pub(crate) fn of(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let clients = runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..CONNECTED {
                let channel = orlop_api::channel::unix(socket).await.expect("a connection");
                let mut all = Request::new(SubscribeRequest::default());
                all.metadata_mut().insert(NAMESPACE_HEADER, "k8s.io".parse().expect("a header"));
                let events = EventsClient::new(channel.clone()).subscribe(all).await.expect("a subscription");
                let mut events = events.into_inner();
                let reads = tokio::spawn(async move { while let Ok(Some(_)) = events.message().await {} });
                clients.push((channel, reads));
            }
            clients
        });
        Self { runtime, clients }
    }

    /// Whether each is answered, and none was cut off.
    pub(crate) fn is_served(&self) -> Result<(), String> {
        self.runtime.block_on(async {
            for (number, (channel, reads)) in self.clients.iter().enumerate() {
                let mut images = ImageServiceClient::new(channel.clone());
                let listed = tokio::time::timeout(PATIENCE, images.list_images(ListImagesRequest::default())).await;
                match listed {
                    Ok(Ok(_)) if !reads.is_finished() => {}
                    Ok(Ok(_)) => return Err(format!("connected client {number} gets no events any more")),
                    Ok(Err(status)) => return Err(format!("connected client {number} is answered {status}")),
                    Err(_) => return Err(format!("connected client {number} is not answered")),
                }
            }
            Ok(())
        })
    }

    /// Waits until each has learnt that the daemon is gone.
    pub(crate) fn wait_for_the_end(self) -> Result<(), String> {
        self.runtime.block_on(async {
            for (number, (_, reads)) in self.clients.into_iter().enumerate() {
                let ended = tokio::time::timeout(PATIENCE, reads).await;
                ended
                    .map_err(|_| format!("connected client {number} waits for a daemon that is gone"))?
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }
}
