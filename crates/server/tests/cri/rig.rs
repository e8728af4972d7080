//! A node that serves CRI on a socket, and a registry with images for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::runtime::v1 as pb;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_api::runtime::v1::runtime_service_client::RuntimeServiceClient;
use orlop_image::{Images, ImportRequest, PushRequest, Settings};
use orlop_metadata::{Scope, Store};
use orlop_remote::{Client, ClientOptions};
use orlop_server::{CriSettings, Server};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{Options, PASSWORD, Registry, USER};
use orlop_testkit::tar::Entry;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::open;

/// A root that is served on a socket until dropped.
pub(crate) struct Node {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
    pub(crate) server: Server,
    pub(crate) channel: Channel,
    pub(crate) images: ImageServiceClient<Channel>,
    _stop: oneshot::Sender<()>,
}

impl Node {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default(), CriSettings::default()).await
    }

    pub(crate) async fn with(settings: Settings, cri: CriSettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("root"));
        let server = Server::new(Images::new(store.clone(), settings)).with_cri(cri);
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = server.clone();
        tokio::spawn(async move {
            served.serve_unix(listener, async { drop(stopped.await) }).await.unwrap();
        });
        let channel = orlop_api::channel::unix(&socket).await.unwrap();
        let images = client(&channel);
        Self { directory, store, server, channel, images, _stop: stop }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn list(&self) -> Vec<pb::Image> {
        list(&self.images).await
    }

    pub(crate) async fn status(&self, name: &str) -> Result<pb::ImageStatusResponse, Status> {
        status(&self.images, name).await
    }

    pub(crate) async fn pull(&self, name: &str) -> Result<String, Status> {
        pull(&self.images, request(name)).await
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), Status> {
        self.images.clone().remove_image(pb::RemoveImageRequest { image: spec(name) }).await.map(drop)
    }

    pub(crate) async fn filesystems(&self) -> pb::ImageFsInfoResponse {
        self.images.clone().image_fs_info(pb::ImageFsInfoRequest {}).await.unwrap().into_inner()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.store.images("k8s.io", &[]).unwrap().into_iter().map(|image| image.name).collect()
    }

    pub(crate) fn snapshots(&self, driver: &str) -> usize {
        self.store.snapshots(&scope(), driver).unwrap().list(&[]).unwrap().len()
    }

    pub(crate) fn blobs(&self) -> usize {
        self.store.content(&scope()).find(&[]).unwrap().len()
    }
}

pub(crate) fn client(channel: &Channel) -> ImageServiceClient<Channel> {
    let limit = orlop_api::MAX_MESSAGE_BYTES;
    ImageServiceClient::new(channel.clone()).max_decoding_message_size(limit)
}

pub(crate) fn scope() -> Scope {
    Scope::new("k8s.io", "test")
}

pub(crate) fn spec(name: &str) -> Option<pb::ImageSpec> {
    Some(pb::ImageSpec { image: name.to_owned(), ..pb::ImageSpec::default() })
}

pub(crate) fn request(name: &str) -> pb::PullImageRequest {
    pb::PullImageRequest { image: spec(name), ..pb::PullImageRequest::default() }
}

pub(crate) async fn pull(
    client: &ImageServiceClient<Channel>,
    request: pb::PullImageRequest,
) -> Result<String, Status> {
    Ok(client.clone().pull_image(request).await?.into_inner().image_ref)
}

pub(crate) async fn list(client: &ImageServiceClient<Channel>) -> Vec<pb::Image> {
    client.clone().list_images(pb::ListImagesRequest::default()).await.unwrap().into_inner().images
}

pub(crate) async fn status(
    client: &ImageServiceClient<Channel>,
    name: &str,
) -> Result<pb::ImageStatusResponse, Status> {
    let request = pb::ImageStatusRequest { image: spec(name), verbose: true };
    Ok(client.clone().image_status(request).await?.into_inner())
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// A registry, and a store in which images for it are made.
pub(crate) struct Shelf {
    pub(crate) registry: Registry,
    maker: Images,
    _directory: TempDir,
}

impl Shelf {
    /// `None` where there is no docker-registry.
    pub(crate) fn start(options: &Options) -> Option<Self> {
        let registry = Registry::start(options)?;
        let directory = tempfile::tempdir().unwrap();
        let maker = Images::new(open(&directory.path().join("maker")), Settings::default());
        Some(Self { registry, maker, _directory: directory })
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    /// Puts content under a name; returns the name.
    pub(crate) async fn put(&self, rest: &str, content: &Content) -> String {
        let scope = Scope::new("maker", "test");
        let archive = oci_archive(&[("example.org/made:1", content)]);
        let request = ImportRequest { no_unpack: true, ..ImportRequest::default() };
        self.maker.import(&scope, &mut archive.as_slice(), &request, &|_| {}).await.unwrap();
        let destination = self.name(rest);
        let request = PushRequest {
            source: "example.org/made:1".to_owned(),
            destination: destination.clone(),
            ..Default::default()
        };
        let login = Some((USER.to_owned(), PASSWORD.to_owned()));
        let client = Client::new(ClientOptions { credentials: login, ..ClientOptions::default() });
        self.maker.push(&scope, &client, &request, &|_| {}).await.unwrap();
        destination
    }
}

/// An image of two layers; `seed` tells images apart.
pub(crate) fn image(seed: u64) -> Image {
    let base = Layer::new([Entry::dir("etc"), Entry::file("etc/kept", "kept")]);
    Image::host().layer(base).layer(Layer::noise("noise", seed, 300_000)).config("User", "65532:65532".into())
}

pub(crate) fn made(seed: u64) -> Content {
    Content::image(&image(seed))
}

/// The image ID of a manifest made here.
pub(crate) fn id(content: &Content) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&content.blobs[&content.root.digest].bytes).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

/// Waits for a condition.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it did not come to pass within a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}
