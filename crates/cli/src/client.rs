//! The gRPC clients of every service, over one channel, with containerd's headers.

use std::collections::BTreeMap;

use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::diff::v1::diff_client::DiffClient;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::leases::v1::CreateRequest;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::services::tasks::v1::tasks_client::TasksClient;
pub(crate) use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::error::{Class, CliError, Result};

/// Adds the headers for namespace, lease and actor to every call.
#[derive(Debug, Clone)]
pub(crate) struct Headers {
    namespace: MetadataValue<Ascii>,
    actor: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl tonic::service::Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, self.namespace.clone());
        request.metadata_mut().insert(orlop_api::ACTOR_HEADER, self.actor.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(orlop_api::LEASE_HEADER, lease.clone());
        }
        Ok(request)
    }
}

/// A client with containerd's message bound of 16 MiB.
macro_rules! sized {
    ($client:ident, $self:ident) => {
        $client::with_interceptor($self.channel.clone(), $self.headers.clone())
            .max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(orlop_api::MAX_MESSAGE_BYTES)
    };
}

type Service = InterceptedService<Channel, Headers>;

/// One connection to a store, in one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    channel: Channel,
    headers: Headers,
}

impl Clients {
    /// `actor` is what the history says of who made a change.
    pub(crate) fn new(channel: Channel, namespace: &str, actor: &str) -> Result<Self> {
        let headers = Headers { namespace: header(namespace)?, actor: header(actor)?, lease: None };
        Ok(Self { channel, headers })
    }

    /// Makes a lease that ends by itself after an hour, should this process be killed before it ends it.
    pub(crate) async fn lease_for_an_hour(&self, id: &str) -> std::result::Result<(), Status> {
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let labels = BTreeMap::from([(orlop_image::GC_EXPIRE.to_owned(), end.to_string())]);
        self.leases().create(CreateRequest { id: id.to_owned(), labels }).await.map(drop)
    }

    /// The same, with everything that is made held by a lease.
    pub(crate) fn with_lease(&self, lease: &str) -> Result<Self> {
        let mut copy = self.clone();
        copy.headers.lease = Some(header(lease)?);
        Ok(copy)
    }

    /// Reads the whole store, in all namespaces.
    pub(crate) fn reader(&self) -> orlop_lens::Reader {
        orlop_lens::Reader::new(self.channel.clone())
    }

    /// The same in another namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Result<Self> {
        let mut copy = self.clone();
        copy.headers.namespace = header(namespace)?;
        Ok(copy)
    }

    pub(crate) fn orlop(&self) -> OrlopClient<Service> {
        sized!(OrlopClient, self)
    }

    pub(crate) fn content(&self) -> ContentClient<Service> {
        sized!(ContentClient, self)
    }

    pub(crate) fn events(&self) -> EventsClient<Service> {
        sized!(EventsClient, self)
    }

    pub(crate) fn images(&self) -> ImagesClient<Service> {
        sized!(ImagesClient, self)
    }

    pub(crate) fn leases(&self) -> LeasesClient<Service> {
        sized!(LeasesClient, self)
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Service> {
        sized!(NamespacesClient, self)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Service> {
        sized!(SnapshotsClient, self)
    }

    pub(crate) fn containers(&self) -> ContainersClient<Service> {
        sized!(ContainersClient, self)
    }

    pub(crate) fn diff(&self) -> DiffClient<Service> {
        sized!(DiffClient, self)
    }

    pub(crate) fn tasks(&self) -> TasksClient<Service> {
        sized!(TasksClient, self)
    }
}

fn header(value: &str) -> Result<MetadataValue<Ascii>> {
    value.parse().map_err(|_| {
        CliError::new(Class::Usage, format!("{value:?} cannot be sent as a header: expected printable ASCII"))
    })
}
