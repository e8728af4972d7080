//! The channel to a store: a daemon's socket, or the same services in this process.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::containerd::services::version::v1::version_client::VersionClient;
use orlop_content::LocalStore;
use orlop_image::{Gate, Images};
use orlop_metadata::{OpenOptions, Rebuild};
use orlop_server::Server;
use orlop_snapshot::{Driver, ErofsDriver, NativeDriver, OverlayDriver};
use tonic::transport::Channel;

use crate::config::Config;
use crate::error::{self, Class, CliError, Result, causes};
use crate::find::places::{KUBERNETES, Product, at_host};
use crate::find::{self, At, Reach, Store, probe};
use crate::holder;
use crate::policy;
use crate::settings::Settings;

/// How long a daemon may take to end; by default it lets calls go on for ten seconds.
const ENDING: Duration = Duration::from_secs(30);
/// How long a server may take to say who it is: one that a socket has just started opens its store first.
const ANSWER: Duration = Duration::from_secs(30);

const STEP: Duration = Duration::from_millis(50);

/// Connects to where the settings point: an address that was given, else the daemon that serves the root, else the
/// daemon at the default place unless a root was asked for, else the store in this process; and where there is none, a
/// command that is for any store to the first one that answers.
///
/// # Errors
/// [`Class::Usage`] if the store is not Orlop's and the command needs `orlop.v1`.
pub(crate) async fn connect(settings: &Settings, reach: Reach) -> Result<(Channel, Store)> {
    let (channel, store) = connect_any(settings, reach).await?;
    if matches!(reach, Reach::Own | Reach::Make) && !store.is_own() {
        let message = format!("this command works on Orlop's own store only, and {store} ({}) is not", store.why);
        return Err(CliError::new(Class::Usage, message)
            .hint("without an address it uses Orlop's own store, or --root DIR; `orlop stores` shows what is here"));
    }
    Ok((channel, store))
}

async fn connect_any(settings: &Settings, reach: Reach) -> Result<(Channel, Store)> {
    let namespace = || settings.namespace.clone().unwrap_or_else(|| KUBERNETES.to_owned());
    if let Some(socket) = &settings.address {
        let server = answering(socket).await?;
        let product = find::product_of(&server, socket, settings);
        return described(settings, product, server, socket, "its address was given").await;
    }
    if let Some((channel, socket)) = join(settings).await? {
        let why = format!("it serves {}", settings.root.display());
        let store = Store::own(At::Socket(socket), namespace(), why);
        return Ok((channel, Store { root: Some(settings.root.clone()), ..store }));
    }
    if let Some(socket) = settings.default_socket.as_deref().filter(|_| !settings.root_given)
        && UnixStream::connect(socket).is_ok()
    {
        let store = Store::own(At::Socket(socket.to_owned()), namespace(), "Orlop's daemon listens there");
        return Ok((dial_taken(socket).await?, store));
    }
    if matches!(reach, Reach::Any | Reach::Live)
        && !settings.root_given
        && let Some(foreign) = another(settings).await?
    {
        return Ok(foreign);
    }
    if find::foreign_root(&settings.root).is_some() {
        return files(settings, reach);
    }
    if reach == Reach::Own && !settings.root_given && !find::is_root(Product::Orlop, &settings.root) {
        // A store that nobody asked for would hide from looking commands what else is on this machine.
        let message = format!("no Orlop store at {}", settings.root.display());
        return Err(CliError::new(Class::NotFound, message).hint(
            "`orlop pull` and `orlop import` make one, --root DIR names one; `orlop stores` shows what is here",
        ));
    }
    let server = Server::new(images(&settings.root, &settings.config).await?);
    if reach == Reach::Live {
        server.follow_others();
    }
    Ok((server.in_process(), Store::own(At::Directory(settings.root.clone()), namespace(), "Orlop's own")))
}

/// The server at an address that was given.
pub(crate) async fn answering(socket: &Path) -> Result<probe::Server> {
    let asked = async {
        let channel = dial(socket).await.map_err(|failed| match failed.class {
            Class::NotPermitted => {
                failed.hint("run as root (usually with sudo), or as a user to whom the socket is open")
            }
            _ => failed.hint("is the daemon running? Without an address the store at --root is used"),
        })?;
        let server = probe::server(channel).await?;
        server.version.as_deref().into_iter().for_each(error::heard_version);
        Ok(server)
    };
    tokio::time::timeout(ANSWER, asked).await.unwrap_or_else(|_| {
        let (socket, seconds) = (socket.display(), ANSWER.as_secs());
        let message = format!("{socket} takes connections, and nobody has answered within {seconds} s");
        Err(CliError::new(Class::Unavailable, message)
            .hint("is it a containerd's socket? `orlop stores` shows what is here"))
    })
}

/// The first other store that answers, if there is none of Orlop's, or nothing in it.
async fn another(settings: &Settings) -> Result<Option<(Channel, Store)>> {
    let is_there = find::is_root(Product::Orlop, &settings.root);
    if is_there && !find::holds_nothing(&settings.root) {
        return Ok(None);
    }
    let (found, server) = match find::first(settings).await {
        Ok(first) => first,
        // An empty store is better than none.
        Err(_) if is_there => return Ok(None),
        Err(nothing) => return Err(nothing),
    };
    let why = match &settings.around.host {
        _ if is_there => format!("Orlop's own store at {} is empty", settings.root.display()),
        Some(host) => format!("no Orlop store below {}", host.display()),
        None => "no Orlop store on this machine".to_owned(),
    };
    described(settings, found.product, server, &found.socket, &why).await.map(Some)
}

/// The files of a containerd's root: for commands that look; calls find nobody.
fn files(settings: &Settings, reach: Reach) -> Result<(Channel, Store)> {
    let root = settings.root.clone();
    if reach != Reach::Any {
        let message = format!("{} is a containerd's root: its files are only read", root.display());
        return Err(CliError::new(Class::Usage, message).hint("start that containerd and give its --address"));
    }
    let namespace = settings.namespace.clone().unwrap_or_else(|| KUBERNETES.to_owned());
    let why = "only its files are read".to_owned();
    let at = At::Directory(root.clone());
    let store = Store { product: Product::Containerd, at, version: None, root: Some(root), namespace, why };
    let (channel, _nobody) = orlop_api::channel::memory();
    Ok((channel, store))
}

/// A server that answers, with the namespace that a command means there.
async fn described(
    settings: &Settings,
    product: Product,
    server: probe::Server,
    socket: &Path,
    why: &str,
) -> Result<(Channel, Store)> {
    let namespace = match &settings.namespace {
        Some(namespace) => namespace.clone(),
        None => probe::home(product, &server.channel).await?,
    };
    let version = server.version.filter(|_| product != Product::Orlop);
    let root = server.root.map(|root| at_host(settings.around.host.as_deref(), &root));
    let store = Store { product, at: At::Socket(socket.to_owned()), version, root, namespace, why: why.to_owned() };
    Ok((server.channel, store))
}

/// Dials the daemon that serves the root, if there is one, and says where it listens. One that is just ending takes no
/// calls and has the root still: it is waited for.
async fn join(settings: &Settings) -> Result<Option<(Channel, PathBuf)>> {
    let root = &settings.root;
    let deadline = Instant::now() + ENDING;
    loop {
        let looked = root.clone();
        let Some(holder) = blocking(move || holder::find(&looked)).await? else { return Ok(None) };
        let host = settings.around.host.as_deref().filter(|_| !settings.root_given);
        let socket = at_host(host, &holder.socket);
        let failed = match dial_taken(&socket).await {
            Ok(channel) => return Ok(Some((channel, socket))),
            Err(failed) => failed,
        };
        if failed.class == Class::NotPermitted || Instant::now() >= deadline {
            let (pid, root) = (holder.pid, root.display());
            let hint = match failed.class {
                Class::NotPermitted => format!("process {pid} serves {root}: is your user in the group of its socket?"),
                _ => format!("process {pid} serves {root} and takes no calls: look at its log"),
            };
            return Err(failed.hint(hint));
        }
        tokio::time::sleep(STEP).await;
    }
}

async fn dial(socket: &Path) -> Result<Channel> {
    orlop_api::channel::unix(socket).await.map_err(|source| {
        let message = format!("no server answers on {}: {}", socket.display(), causes(&source));
        let class = match class_beneath(&source) {
            Class::NotPermitted => Class::NotPermitted,
            _ => Class::Unavailable,
        };
        CliError::new(class, message)
    })
}

/// Dials, and sees that the connection is taken: one that only waits in the socket's queue breaks when the daemon ends,
/// and then nobody could say what became of the call that was sent on it.
async fn dial_taken(socket: &Path) -> Result<Channel> {
    let channel = dial(socket).await?;
    match VersionClient::new(channel.clone()).version(()).await {
        Err(status) if error::is_broken(&status) => Err(status.into()),
        Ok(said) => {
            error::heard_version(&said.get_ref().version);
            Ok(channel)
        }
        Err(_) => Ok(channel),
    }
}

pub(crate) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let stopped = |e| CliError::new(Class::Failed, format!("open the store: {e}"));
    tokio::task::spawn_blocking(call).await.map_err(stopped)?
}

/// Opens the store at `root` with the defaults, letting everything in, and serves it in this process.
pub(crate) async fn open(root: &Path) -> Result<Channel> {
    let images = with_gate(root, &Config::default(), Gate::default()).await?;
    Ok(Server::new(images).in_process())
}

/// Opens the store at `root`. The policy is read first: with a mistake in it nothing is opened.
pub(crate) async fn images(root: &Path, config: &Config) -> Result<Images> {
    with_gate(root, config, policy::gate(&config.verify)?).await
}

async fn with_gate(root: &Path, config: &Config, gate: Gate) -> Result<Images> {
    let root = root.to_owned();
    let store = blocking(move || open_store(&root)).await?;
    Ok(Images::new(store, orlop_image::Settings { gate, ..config.images() }))
}

fn open_store(root: &Path) -> Result<orlop_metadata::Store> {
    let options = options(root)?;
    orlop_metadata::Store::open(root, options).map_err(|e| classify(root, e))
}

/// What the store at `root` is opened with.
fn options(root: &Path) -> Result<OpenOptions> {
    orlop_metadata::Store::check_root(root).map_err(|e| classify(root, e))?;
    let content = LocalStore::open(root.join("content")).map_err(|e| classify(root, e))?;
    let snapshots = root.join("snapshots");
    let tree = |e| classify(root, orlop_metadata::Error::Snapshot(e));
    let drivers: Vec<Arc<dyn Driver>> = vec![
        Arc::new(OverlayDriver::open(snapshots.join("overlayfs")).map_err(tree)?),
        Arc::new(NativeDriver::open(snapshots.join("native")).map_err(tree)?),
        Arc::new(ErofsDriver::open(snapshots.join("erofs")).map_err(tree)?),
    ];
    Ok(OpenOptions { content: Arc::new(content), drivers, read_only: false })
}

/// Begins to rebuild the database of the store at `root`, which nobody may have open. Blocks.
pub(crate) fn begin_rebuild(root: &Path) -> Result<Rebuild> {
    Rebuild::begin(root, options(root)?).map_err(|e| classify(root, e))
}

/// The class of the system error beneath, wherever it is.
fn class_beneath(error: &(dyn std::error::Error + 'static)) -> Class {
    let io =
        std::iter::successors(Some(error), |e| e.source()).filter_map(|e| e.downcast_ref::<std::io::Error>()).last();
    io.map_or(Class::Failed, crate::error::class_of_io)
}

pub(crate) fn classify(root: &Path, error: impl Into<orlop_image::Error>) -> CliError {
    let failed = CliError::from(orlop_server::status_of(&error.into()));
    CliError { message: format!("open the store at {}: {}", root.display(), failed.message), ..failed }
}
