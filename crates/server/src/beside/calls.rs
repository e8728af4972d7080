//! The calls of containerd's API that are made to the one beside, in kubelet's namespace.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{Stream, TryStreamExt as _, stream};
use jiff::Timestamp;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::events::v1::SubscribeRequest;
use orlop_api::containerd::services::events::v1::events_client::EventsClient;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::images::v1::{self as images, ListImagesRequest};
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::leases::v1::{CreateRequest, DeleteRequest, ListRequest};
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::services::version::v1::version_client::VersionClient;
use orlop_api::containerd::types::Envelope;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_api::version::numbers;
use orlop_api::{LEASE_HEADER, MAX_MESSAGE_BYTES, NAMESPACE_HEADER};
use orlop_image::GC_EXPIRE;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Beside;
use crate::cri::NAMESPACE;

/// A containerd older than this has no CRI v1.
const OLDEST: (u64, u64) = (1, 6);

/// On leases there: whose work they hold.
const MARK: &str = "io.orlop/beside";
/// A lease whose work was killed lets go after this.
const LEASE_LIFE: Duration = Duration::from_secs(3600);

/// Adds the headers for the namespace and a lease.
#[derive(Debug, Clone)]
pub(super) struct Headers {
    lease: Option<MetadataValue<Ascii>>,
}

impl tonic::service::Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NAMESPACE_HEADER, MetadataValue::from_static(NAMESPACE));
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE_HEADER, lease.clone());
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Headers>;

/// The clients, whose work a lease may hold.
#[derive(Clone)]
pub(super) struct Calls {
    channel: Channel,
    headers: Headers,
}

macro_rules! clients {
    ($($name:ident $client:ident;)*) => {
        $(
            pub(super) fn $name(&self) -> $client<Service> {
                $client::with_interceptor(self.channel.clone(), self.headers.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES)
            }
        )*
    };
}

impl Calls {
    clients! {
        content ContentClient;
        events EventsClient;
        images ImagesClient;
        leases LeasesClient;
        snapshots SnapshotsClient;
        version VersionClient;
        cri ImageServiceClient;
    }

    /// The target of a record; `None`: there is none.
    pub(super) async fn target(&self, name: &str) -> Result<Option<String>, Status> {
        match self.images().get(images::GetImageRequest { name: name.to_owned() }).await {
            Ok(found) => Ok(found.into_inner().image.and_then(|image| image.target).map(|target| target.digest)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// The targets of all records, by name.
    pub(super) async fn targets(&self) -> Result<BTreeMap<String, String>, Status> {
        let listed = self.images().list(ListImagesRequest::default()).await?.into_inner();
        let row = |image: images::Image| Some((image.name, image.target?.digest));
        Ok(listed.images.into_iter().filter_map(row).collect())
    }

    /// Makes a record be there.
    pub(super) async fn put(&self, image: images::Image) -> Result<(), Status> {
        let create = images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
        match self.images().create(create).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => return other.map(drop),
        }
        let labels = image.labels.keys().map(|key| format!("labels.{key}"));
        let paths = std::iter::once("target".to_owned()).chain(labels).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let update = images::UpdateImageRequest { image: Some(image), update_mask, source_date_epoch: None };
        self.images().update(update).await.map(drop)
    }

    /// What happens to records, from a moment after this is first polled: containerd says nothing before the first event, not even
    /// that it listens.
    pub(super) fn record_events(&self) -> impl Stream<Item = Result<Envelope, Status>> + Send + use<> {
        let filters = vec![format!("topic~=\"^/images/\",namespace=={NAMESPACE}")];
        let mut events = self.events();
        let subscribed = async move { events.subscribe(SubscribeRequest { filters }).await };
        stream::once(subscribed).map_ok(tonic::Response::into_inner).try_flatten()
    }
}

impl Beside {
    /// Calls that no lease holds.
    pub(super) fn calls(&self) -> Calls {
        Calls { channel: self.inner.channel.clone(), headers: Headers { lease: None } }
    }

    /// Whether it answers, and is one that Orlop can work with.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it does not answer, `FAILED_PRECONDITION` if it is too old or no containerd.
    pub(super) async fn reach(&self) -> Result<(), Status> {
        let version = match self.calls().version().version(()).await {
            Ok(version) => version.into_inner().version,
            Err(status) => return Err(self.told(&status)),
        };
        match numbers(&version) {
            Some(found) if found < OLDEST => Err(Status::failed_precondition(format!(
                "containerd at {} is {version}: expected 1.6 or later, for CRI v1",
                self.inner.settings.socket.display()
            ))),
            _ => Ok(()),
        }
    }

    /// A failure there, in words of somebody who has not made the call himself.
    pub(super) fn told(&self, status: &Status) -> Status {
        if let Some(explained) = self.explained(status) {
            return explained;
        }
        // What the connection says has a source, what the server says has none.
        if let Some(source) = std::error::Error::source(status) {
            return self.away(source);
        }
        let socket = self.inner.settings.socket.display();
        let code = match status.code() {
            Code::Unimplemented => Code::FailedPrecondition,
            code => code,
        };
        Status::new(code, format!("containerd at {socket}: {}", status.message()))
    }

    /// A lease there, and the calls whose work it holds.
    pub(super) async fn lease(&self) -> Result<(String, Calls), Status> {
        let expire = Timestamp::now() + LEASE_LIFE;
        let owner = self.inner.settings.owner.to_string();
        let labels = [(GC_EXPIRE.to_owned(), expire.to_string()), (MARK.to_owned(), owner)].into();
        let id = format!("orlop-{:016x}", rand::random::<u64>());
        self.leases_held().insert(id.clone());
        let made = self.calls().leases().create(CreateRequest { id: id.clone(), labels }).await;
        if let Err(status) = made {
            self.leases_held().remove(&id);
            return Err(self.told(&status));
        }
        let value = id.parse().map_err(|_| Status::internal("a lease's name is no header"))?;
        Ok((id, Calls { channel: self.inner.channel.clone(), headers: Headers { lease: Some(value) } }))
    }

    /// Lets go of what a lease holds. One that cannot be ended now ends by itself.
    pub(super) async fn end_lease(&self, id: String) {
        let ended = self.calls().leases().delete(DeleteRequest { id: id.clone(), sync: false }).await;
        if let Err(status) = ended {
            tracing::debug!(
                error = status.message(),
                "a lease of containerd's could not be ended; it ends within the hour"
            );
        }
        self.leases_held().remove(&id);
    }

    /// Ends what a killed Orlop has left.
    pub(super) async fn end_old_leases(&self) -> Result<(), Status> {
        let filters = vec![format!("labels.\"{MARK}\"=={}", self.inner.settings.owner)];
        let listed = self.calls().leases().list(ListRequest { filters }).await.map_err(|status| self.told(&status))?;
        for lease in listed.into_inner().leases {
            if !self.leases_held().contains(&lease.id) {
                self.end_lease(lease.id).await;
            }
        }
        Ok(())
    }

    fn leases_held(&self) -> std::sync::MutexGuard<'_, std::collections::HashSet<String>> {
        self.inner.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_first_two_numbers() {
        for (version, old) in
            [("1.5.18", true), ("v1.5.0-rc.1", true), ("1.6.20~ds1", false), ("v2.4.0", false), ("2.0", false)]
        {
            assert_eq!(numbers(version).is_some_and(|found| found < OLDEST), old, "{version}");
        }
    }
}
