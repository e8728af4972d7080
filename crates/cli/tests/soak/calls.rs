//! The calls of one client on its own connection. What must not fail panics with the call's name.

use std::path::Path;

use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::services::transfer::v1::TransferRequest;
use orlop_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use orlop_api::containerd::types;
use orlop_api::containerd::types::transfer;
use orlop_api::runtime::v1 as cri;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_api::{LEASE_HEADER, NAMESPACE_HEADER};
use orlop_oci::{Digest, Platform};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::shelf::Shelved;

/// The snapshotter that images are unpacked with.
pub(crate) const SNAPSHOTTER: &str = "overlayfs";

/// A connection, and the namespace that its client works in.
pub(crate) struct Calls {
    channel: Channel,
    pub(crate) namespace: &'static str,
    /// Whether pulled images are unpacked, too.
    pub(crate) unpacks: bool,
}

/// A write that is open.
pub(crate) struct Writing {
    sender: mpsc::Sender<content::WriteContentRequest>,
    answers: Streaming<content::WriteContentResponse>,
}

impl Writing {
    /// Sends a message and waits for its answer.
    pub(crate) async fn ask(
        &mut self,
        message: content::WriteContentRequest,
    ) -> Result<content::WriteContentResponse, Status> {
        // If the call has ended, its answer says why.
        let _ = self.sender.send(message).await;
        Ok(self.answers.message().await?.expect("an answer for each message"))
    }
}

impl Calls {
    pub(crate) async fn new(socket: &Path, namespace: &'static str, unpacks: bool) -> Self {
        let channel = orlop_api::channel::unix(socket).await.expect("a connection");
        Self { channel, namespace, unpacks }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(NAMESPACE_HEADER, self.namespace.parse().unwrap());
        request
    }

    pub(crate) fn leased<T>(&self, lease: &str, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.metadata_mut().insert(LEASE_HEADER, lease.parse().unwrap());
        request
    }

    pub(crate) fn plain<T>(&self, message: T) -> Request<T> {
        self.request(message)
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES)
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone())
    }

    pub(crate) fn cri(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES)
    }

    fn leases(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel.clone())
    }

    /// Pulls by the Transfer service, under the name that it has there.
    pub(crate) async fn transfer(&self, name: &str) {
        let resolver = transfer::RegistryResolver { default_scheme: "http".into(), ..Default::default() };
        let from = transfer::OciRegistry { reference: name.into(), resolver: Some(resolver) };
        let host = platform();
        let unpack =
            transfer::UnpackConfiguration { platform: Some(host.clone()), snapshotter: SNAPSHOTTER.to_owned() };
        let unpacks = if self.unpacks { vec![unpack] } else { Vec::new() };
        let to = transfer::ImageStore { name: name.into(), platforms: vec![host], unpacks, ..Default::default() };
        self.carry(any(&from), any(&to)).await;
    }

    /// Gives an image another name, as `ctr images tag` does.
    pub(crate) async fn tag(&self, source: &str, name: &str) {
        let place = |name: &str| transfer::ImageStore { name: name.into(), ..Default::default() };
        self.carry(any(&place(source)), any(&place(name))).await;
    }

    async fn carry(&self, source: Any, destination: Any) {
        let wanted = TransferRequest { source: Some(source), destination: Some(destination), options: None };
        let done = TransferClient::new(self.channel.clone()).transfer(self.request(wanted)).await;
        done.expect("a transfer");
    }

    /// Pulls as kubelet does; returns the image ID.
    pub(crate) async fn pull(&self, name: &str) -> String {
        let wanted = cri::PullImageRequest { image: spec(name), ..Default::default() };
        self.cri().pull_image(wanted).await.expect("PullImage").into_inner().image_ref
    }

    pub(crate) async fn image(&self, name: &str) -> Result<images::Image, Status> {
        let wanted = images::GetImageRequest { name: name.into() };
        Ok(self.images().get(self.request(wanted)).await?.into_inner().image.expect("an image"))
    }

    pub(crate) async fn create(&self, name: &str, image: &Shelved) -> Result<images::Image, Status> {
        let root = &image.content.root;
        let target = types::Descriptor {
            media_type: root.media_type.clone(),
            digest: root.digest.to_string(),
            size: root.size as i64,
            ..Default::default()
        };
        let record = images::Image { name: name.into(), target: Some(target), ..Default::default() };
        let wanted = images::CreateImageRequest { image: Some(record), ..Default::default() };
        Ok(self.images().create(self.request(wanted)).await?.into_inner().image.expect("an image"))
    }

    pub(crate) async fn delete(&self, name: &str, sync: bool) -> Result<(), Status> {
        let wanted = images::DeleteImageRequest { name: name.into(), sync, target: None };
        self.images().delete(self.request(wanted)).await.map(drop)
    }

    /// Records that match a filter; none: all.
    pub(crate) async fn records(&self, filter: Option<String>) -> Vec<images::Image> {
        let wanted = images::ListImagesRequest { filters: filter.into_iter().collect() };
        self.images().list(self.request(wanted)).await.expect("Images.List").into_inner().images
    }

    pub(crate) async fn info(&self, digest: &str) -> Result<content::Info, Status> {
        let wanted = content::InfoRequest { digest: digest.into() };
        Ok(self.content().info(self.request(wanted)).await?.into_inner().info.expect("info"))
    }

    /// Reads a blob, which must be what its digest says.
    pub(crate) async fn read(&self, digest: &str) {
        let wanted = content::ReadContentRequest { digest: digest.into(), ..Default::default() };
        let answers = self.content().read(self.request(wanted)).await;
        let mut answers = answers.unwrap_or_else(|status| panic!("{digest} is lost: {status:?}")).into_inner();
        let mut bytes = Vec::new();
        while let Some(piece) = answers.message().await.unwrap_or_else(|status| panic!("{digest}: {status:?}")) {
            assert_eq!(piece.offset, bytes.len() as i64, "{digest}");
            bytes.extend_from_slice(&piece.data);
        }
        assert_eq!(Digest::of(&bytes).as_str(), digest);
    }

    /// Reads everything that an image has.
    pub(crate) async fn read_all(&self, image: &Shelved) {
        for digest in image.content.blobs.keys() {
            self.read(digest.as_str()).await;
        }
    }

    /// Every blob of the namespace.
    pub(crate) async fn blobs(&self) -> Vec<String> {
        let answers = self.content().list(self.request(content::ListContentRequest::default())).await;
        let mut answers = answers.expect("Content.List").into_inner();
        let mut found = Vec::new();
        while let Some(page) = answers.message().await.expect("Content.List") {
            found.extend(page.info.into_iter().map(|info| info.digest));
        }
        found
    }

    /// Every write in progress of the namespace.
    pub(crate) async fn ingests(&self) -> Vec<content::Status> {
        let wanted = self.request(content::ListStatusesRequest::default());
        self.content().list_statuses(wanted).await.expect("Content.ListStatuses").into_inner().statuses
    }

    /// Opens a write under a lease; the first message is answered.
    pub(crate) async fn write(
        &self,
        lease: &str,
        first: content::WriteContentRequest,
    ) -> Result<(Writing, content::WriteContentResponse), Status> {
        let (sender, receiver) = mpsc::channel(2);
        sender.send(first).await.expect("room for one");
        let mut answers = self.content().write(self.leased(lease, ReceiverStream::new(receiver))).await?.into_inner();
        let answer = answers.message().await?.expect("an answer");
        Ok((Writing { sender, answers }, answer))
    }

    pub(crate) async fn lease(&self) -> String {
        let made = self.leases().create(self.request(leases::CreateRequest::default())).await;
        made.expect("Leases.Create").into_inner().lease.expect("a lease").id
    }

    /// Ends a lease; `sync` waits for a garbage collection.
    pub(crate) async fn end(&self, lease: &str, sync: bool) {
        let wanted = leases::DeleteRequest { id: lease.into(), sync };
        self.leases().delete(self.request(wanted)).await.expect("Leases.Delete");
    }

    /// Adds a blob to a lease, be it there or not.
    pub(crate) async fn hold(&self, lease: &str, digest: &str) {
        let resource = leases::Resource { id: digest.into(), r#type: "content".into() };
        let wanted = leases::AddResourceRequest { id: lease.into(), resource: Some(resource) };
        self.leases().add_resource(self.request(wanted)).await.expect("Leases.AddResource");
    }

    pub(crate) async fn lease_ids(&self) -> Vec<String> {
        let found = self.leases().list(self.request(leases::ListRequest::default())).await;
        found.expect("Leases.List").into_inner().leases.into_iter().map(|lease| lease.id).collect()
    }
}

pub(crate) fn spec(name: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: name.into(), ..Default::default() })
}

/// containerd's clients write type URLs without a host.
fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

fn platform() -> types::Platform {
    let host = Platform::host();
    types::Platform {
        os: host.os,
        architecture: host.architecture,
        variant: host.variant.unwrap_or_default(),
        ..Default::default()
    }
}
