//! A containerd beside that does not fit, or is no containerd: stand-ins, since real ones that are too old are not to be had. What a real
//! one does is tested in `crates/cli/tests/beneath`.

use std::path::{Path, PathBuf};

use crate::common::Node;
use orlop_api::channel;
use orlop_api::containerd::services::version::v1 as version;
use orlop_api::containerd::services::version::v1::version_server::{Version, VersionServer};
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_api::runtime::v1::runtime_service_client::RuntimeServiceClient;
use orlop_api::runtime::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest, VersionRequest};
use orlop_server::{BesideMode, BesideSettings, Owner};
use tokio::net::UnixListener;
use tonic::transport::{Channel, Server as Transport};
use tonic::{Code, Request, Response, Status};

/// Says a version, and has nothing else.
struct Says(&'static str);

#[tonic::async_trait]
impl Version for Says {
    async fn version(&self, _: Request<()>) -> Result<Response<version::VersionResponse>, Status> {
        Ok(Response::new(version::VersionResponse { version: self.0.to_owned(), revision: String::new() }))
    }
}

/// Answers as containerd does where a service is not there.
fn unknown<B>(request: &http::Request<B>) -> http::Response<tonic::body::Body> {
    let path = request.uri().path();
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    Status::unimplemented(format!("unknown service {service}")).into_http()
}

fn start(socket: &Path, says: &'static str) {
    let listener = UnixListener::bind(socket).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let lacking =
        tower::service_fn(
            |request: http::Request<_>| async move { Ok::<_, std::convert::Infallible>(unknown(&request)) },
        );
    let mut routes = tonic::service::Routes::new(VersionServer::new(Says(says)));
    routes = routes.into_axum_router().fallback_service(lacking).into();
    tokio::spawn(Transport::builder().add_routes(routes).serve_with_incoming(incoming));
}

fn node(socket: &Path, mode: BesideMode) -> (Node, Channel) {
    let node = Node::new();
    let settings = BesideSettings {
        socket: socket.to_owned(),
        mode,
        snapshotter: "overlayfs".to_owned(),
        owner: Owner::default(),
    };
    let channel = node.server.clone().with_beside(settings).in_process();
    (node, channel)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::Builder::new().prefix("beside").tempdir_in("/tmp").unwrap();
    let socket = directory.path().join("s");
    (directory, socket)
}

#[tokio::test]
async fn a_containerd_without_cri_v1_is_refused_and_it_is_said_what_is_expected() {
    for mode in [BesideMode::Share, BesideMode::Pass] {
        let (_directory, socket) = place();
        start(&socket, "v1.5.18");
        let (_node, channel) = node(&socket, mode);
        let asked =
            RuntimeServiceClient::new(channel.clone()).version(VersionRequest { version: "0.1.0".to_owned() }).await;
        let status = asked.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        let expected =
            "does not speak CRI v1 (unknown service runtime.v1.RuntimeService): expected containerd 1.6 or later";
        assert!(status.message().contains(expected), "{}", status.message());
        let listed = ImageServiceClient::new(channel.clone()).list_images(ListImagesRequest::default()).await;
        assert!(listed.unwrap_err().message().contains("does not speak CRI v1"));
        let image = Some(ImageSpec { image: "app:1".to_owned(), ..ImageSpec::default() });
        let removed = ImageServiceClient::new(channel).remove_image(RemoveImageRequest { image }).await;
        assert!(removed.unwrap_err().message().contains("does not speak CRI v1"), "{mode:?}");
    }
}

#[tokio::test]
async fn nobody_at_the_socket_is_told_as_such_and_whoever_comes_is_found() {
    let (_directory, socket) = place();
    let (_node, channel) = node(&socket, BesideMode::Share);
    let mut runtime = RuntimeServiceClient::new(channel);
    let away = runtime.version(VersionRequest::default()).await.unwrap_err();
    assert_eq!(away.code(), Code::Unavailable);
    let named = format!("containerd at {} does not answer: ", socket.display());
    assert!(away.message().starts_with(&named), "{}", away.message());
    // Another Orlop is as good a runtime as any, to be passed on to.
    let other = Node::new();
    let listener = UnixListener::bind(&socket).unwrap();
    let server = other.server.clone();
    let serving = tokio::spawn(async move { server.serve_unix(listener, std::future::pending()).await });
    let version = runtime.version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version.runtime_name, "orlop");
    let direct = channel::unix(&socket).await.unwrap();
    let expected = RuntimeServiceClient::new(direct).version(VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!(version, expected);
    serving.abort();
}
