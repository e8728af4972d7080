//! Asking a place whether a store is there.
//!
//! # Invariants
//! - Nothing is written, neither on disk nor through an API.
//! - A server that takes the connection and is silent holds nobody up for longer than [`PATIENCE`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::images::v1::ListImagesRequest;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::introspection::v1::PluginsRequest;
use orlop_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use orlop_api::containerd::services::namespaces::v1::ListNamespacesRequest;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::version::v1::version_client::VersionClient;
use orlop_api::runtime::v1::StatusRequest;
use orlop_api::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::places::{Home, KUBERNETES, Place, Product, at_host, product_at};
use crate::error::{self, causes};

/// How long a server may take for an answer that costs it nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server that answers.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) channel: Channel,
    /// As the server says it; none if it does not.
    pub(crate) version: Option<String>,
    /// Its root, as the server names it.
    pub(crate) root: Option<PathBuf>,
}

impl Server {
    /// Whether it is Orlop's daemon.
    pub(crate) fn is_orlop(&self) -> bool {
        self.version.as_deref().is_some_and(|version| version.contains("+orlop."))
    }

    /// Why Orlop's daemon takes no changes, if it says so.
    pub(crate) async fn read_only(&self) -> Option<String> {
        if !self.is_orlop() {
            return None;
        }
        let asked = RuntimeServiceClient::new(self.channel.clone()).status(StatusRequest { verbose: true }).await;
        let told: serde_json::Value = serde_json::from_str(asked.ok()?.get_ref().info.get("orlop")?).ok()?;
        told["readOnly"].as_str().map(str::to_owned)
    }
}

/// What is at a place.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// A server answers.
    Running(Server),
    /// This user may not know.
    NotPermitted(String),
    /// There is a socket, and no server that answers.
    NoAnswer(String),
    /// Only the files of a store.
    Files,
    /// Nothing.
    Absent,
}

/// A place and what is there.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) product: Product,
    /// The socket, as this process reaches it.
    pub(crate) socket: PathBuf,
    /// The root, as this process reaches it; none if nobody knows.
    pub(crate) root: Option<PathBuf>,
    pub(crate) state: State,
}

/// Asks at a place's socket, and looks for files if nobody answers.
pub(crate) async fn look(place: Place, host: Option<&Path>) -> Found {
    let socket = at_host(host, &place.socket);
    let files = place.root.as_deref().map(|root| at_host(host, root));
    // An empty path is a socket that nobody has.
    let mut state = if socket.as_os_str().is_empty() { State::Absent } else { dial(&socket).await };
    if matches!(state, State::Absent | State::NoAnswer(_))
        && let Some(root) = &files
    {
        state = match std::fs::metadata(root.join(place.product.database())) {
            Ok(_) => State::Files,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused(root, &error),
            Err(_) => state,
        };
    }
    let (product, root) = match &state {
        State::Running(server) if server.is_orlop() => (Product::Orlop, server.root.clone()),
        State::Running(Server { root: Some(root), .. }) => {
            let seen = if place.root.as_ref() == Some(root) { files } else { Some(at_host(host, root)) };
            (product_at(place.product, root), seen)
        }
        _ => (place.product, files),
    };
    Found { product, socket, root, state }
}

fn refused(path: &Path, error: &io::Error) -> State {
    State::NotPermitted(format!("{}: {error}", path.display()))
}

/// Whether a server answers at a socket.
async fn dial(socket: &Path) -> State {
    let silent = |why: String| State::NoAnswer(format!("{}: {why}", socket.display()));
    let asked = tokio::time::timeout(PATIENCE, async {
        let channel = orlop_api::channel::unix(socket).await.map_err(|e| not_connected(socket, &e))?;
        let broken = |status| silent(format!("what listens there does not speak gRPC: {}", causes(&status)));
        server(channel).await.map_err(broken)
    });
    match asked.await {
        Ok(Ok(server)) => State::Running(server),
        Ok(Err(state)) => state,
        Err(_) => silent(format!("it takes connections and has not answered within {} s", PATIENCE.as_secs())),
    }
}

fn not_connected(socket: &Path, error: &(dyn std::error::Error + 'static)) -> State {
    let io = std::iter::successors(Some(error), |e| e.source()).find_map(|e| e.downcast_ref::<io::Error>());
    match io.map(io::Error::kind) {
        Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => State::Absent,
        Some(io::ErrorKind::PermissionDenied) => {
            State::NotPermitted(format!("{}: {}", socket.display(), causes(error)))
        }
        _ => State::NoAnswer(format!("{}: {}", socket.display(), causes(error))),
    }
}

/// Who answers on a channel.
///
/// # Errors
/// If nobody does.
pub(crate) async fn server(channel: Channel) -> Result<Server, Status> {
    let version = match VersionClient::new(channel.clone()).version(()).await {
        Ok(answer) => Some(answer.into_inner().version),
        Err(status) if error::is_broken(&status) => return Err(status),
        // It answers; that it has no such service is another matter.
        Err(_) => None,
    };
    Ok(Server { version, root: root(channel.clone()).await, channel })
}

/// The root that a server says its content store is in.
async fn root(channel: Channel) -> Option<PathBuf> {
    let filters = vec!["type==io.containerd.content.v1".to_owned()];
    let answer = IntrospectionClient::new(channel).plugins(PluginsRequest { filters }).await.ok()?;
    let content = answer.into_inner().plugins.into_iter().find_map(|mut plugin| plugin.exports.remove("root"))?;
    // ROOT/io.containerd.content.v1.content; Orlop's is ROOT/content.
    Path::new(&content).parent().map(Path::to_owned)
}

/// The namespace that a command without `--namespace` means on a server.
///
/// # Errors
/// If the server does not say.
pub(crate) async fn home(product: Product, channel: &Channel) -> Result<String, Status> {
    let candidates = match product.home() {
        Home::Fixed(namespace) => return Ok(namespace.to_owned()),
        Home::FirstWithContent(candidates) => candidates,
    };
    let there = namespaces(channel).await?;
    let there: Vec<&str> = candidates.iter().copied().filter(|name| there.iter().any(|n| n == name)).collect();
    // Where there is no choice nothing is asked: a containerd reads all its blobs before it sends the first page.
    if let [only] = there[..] {
        return Ok(only.to_owned());
    }
    for name in &there {
        if has_content(channel, name).await? {
            return Ok((*name).to_owned());
        }
    }
    Ok(there.first().copied().unwrap_or(KUBERNETES).to_owned())
}

/// Whether a namespace has a blob: the first page of its list tells, whatever the namespace's size.
async fn has_content(channel: &Channel, namespace: &str) -> Result<bool, Status> {
    let request = content::ListContentRequest::default();
    let mut pages = ContentClient::new(channel.clone()).list(in_namespace(request, namespace)?).await?.into_inner();
    while let Some(page) = pages.message().await? {
        if !page.info.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The namespaces of a server, sorted.
pub(crate) async fn namespaces(channel: &Channel) -> Result<Vec<String>, Status> {
    let request = ListNamespacesRequest { filter: String::new() };
    let answer = NamespacesClient::new(channel.clone()).list(request).await?.into_inner();
    let mut names: Vec<String> = answer.namespaces.into_iter().map(|namespace| namespace.name).collect();
    names.sort_unstable();
    Ok(names)
}

/// How many image records a namespace has.
pub(crate) async fn image_records(channel: &Channel, namespace: &str) -> Result<u64, Status> {
    let client = ImagesClient::new(channel.clone()).max_decoding_message_size(orlop_api::MAX_MESSAGE_BYTES);
    let request = ListImagesRequest { filters: Vec::new() };
    let answer = { client }.list(in_namespace(request, namespace)?).await?.into_inner();
    Ok(answer.images.len() as u64)
}

fn in_namespace<T>(message: T, namespace: &str) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = namespace.parse().map_err(|_| Status::invalid_argument(format!("namespace {namespace:?}")))?;
    request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, value);
    Ok(request)
}
