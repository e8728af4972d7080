//! `orlop serve`: the daemon as a process. It opens the root, takes or makes its socket, serves until it is told to end.
//!
//! # Invariants
//! - Nobody can know of the daemon before it hears signals: the signals come first, the socket after the root.
//! - One daemon a root ([`crate::holder`]), one a socket ([`socket`]).

mod registry;
mod reload;
pub(crate) mod signals;
mod socket;
mod systemd;
mod traces;

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use orlop_image::{Images, Mirror};
use orlop_peer::{Peers, StartError};
use orlop_remote::{ClientOptions, TraceHeaders};
use orlop_server::{Listening, Owner, ServeOptions, Server, Surface};
use rustix::process::Resource;
use signals::Signals;
use socket::{Access, Socket};
use tokio::signal::unix::Signal;
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::args::Global;
use crate::config::Config;
use crate::error::{Class, CliError, Result};
use crate::holder::Held;
use crate::output::LogLevel;
use crate::settings::Settings;
use crate::{credentials, embed, output};

/// Options of `serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM and SIGINT let calls finish for a while (serve.shutdown_seconds); a second one ends at once.
SIGHUP reads the configuration and the policy anew. Under systemd it takes sockets (LISTEN_FDS) and
tells when it is ready. All options but these are in the configuration: orlop config default.

Examples:
  orlop serve
  orlop serve --root /data/orlop --socket /run/orlop/orlop.sock --group orlop
  ctr --address /run/orlop/orlop.sock images ls      containerd's own client, unchanged")]
pub(crate) struct Args {
    /// Where to listen [default: /run/orlop/orlop.sock, or $XDG_RUNTIME_DIR/orlop/orlop.sock when not root]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Serve content, snapshots and diff, without namespaces and leases, for the proxy_plugins of a containerd
    #[arg(long, value_name = "PATH")]
    raw_socket: Option<PathBuf>,
    /// The socket's group, by name or number: its members may do everything
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Be a registry at this host and port: its repositories are the image records HOST:PORT/… of the store
    #[arg(long, value_name = "ADDR")]
    registry: Option<String>,
    /// Offer Prometheus metrics at http://ADDR/metrics
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// containerd's certs.d directory, with a hosts.toml for each registry [default: hosts_dir in the configuration]
    #[arg(long, value_name = "DIR")]
    hosts_dir: Option<String>,
}

/// What options say that the configuration says too: they win, also when that is read anew.
#[derive(Debug, Clone)]
struct Overrides {
    hosts_dir: Option<String>,
    registry: Option<String>,
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if let Some(directories) = &self.hosts_dir {
            config.hosts_dir.clone_from(directories);
        }
        if self.registry.is_some() {
            config.registry.address.clone_from(&self.registry);
        }
    }
}

/// Runs `serve`.
pub(crate) async fn run(global: &Global, args: &Args) -> Result<ExitCode> {
    let signals = Signals::listen()?;
    let hangups = signals::hangups()?;
    let mut settings = Settings::load(global)?;
    let overrides = Overrides { hosts_dir: args.hosts_dir.clone(), registry: args.registry.clone() };
    overrides.apply(&mut settings.config);
    settings.config.check_registry()?;
    let traces = traces::Traces::start(&settings.config.traces);
    let layer = traces.as_ref().ok().and_then(Option::as_ref).map(traces::Traces::layer);
    let log = output::set_up_daemon_logging(global, &settings.config.log, layer);
    settings.left_out.iter().for_each(|why| tracing::warn!("left out: {why}"));
    // A node without traces is better than one without images.
    let traces = traces.unwrap_or_else(|why| {
        tracing::warn!(why, "no traces are sent");
        None
    });
    let reloading = Reloading { global, overrides, hangups, log };
    let served = run_traced(args, &settings, signals, reloading, traces.as_ref()).await;
    if let Some(traces) = traces {
        traces.finish().await;
    }
    served
}

/// What a reload needs, from the start on.
struct Reloading<'a> {
    global: &'a Global,
    overrides: Overrides,
    hangups: Signal,
    log: LogLevel,
}

async fn run_traced(
    args: &Args,
    settings: &Settings,
    signals: Signals,
    reloading: Reloading<'_>,
    traces: Option<&traces::Traces>,
) -> Result<ExitCode> {
    allow_many_files();
    tell_confinement();
    let mut passed = systemd::passed()?;
    let bound = registry::Bound::new(&settings.config.registry, passed.registry.take()).await?;
    let images = embed::images(&settings.root, &settings.config).await?;
    let own = bound.as_ref().map(|bound| bound.host().to_owned());
    images.set_settings(orlop_image::Settings {
        own_registries: own.iter().cloned().collect(),
        ..(*images.settings()).clone()
    });
    let (store, brought_by) = (images.store().clone(), images.clone());
    let traces = traces.map(traces::Traces::for_server);
    let trace = traces.as_ref().map(|traces| traces.send.clone());
    let providers = credentials::providers(&settings.config.credentials)?;
    let server = Server::new(images.clone()).with_cri(reload::cri(&settings.config, providers, trace.as_ref()));
    let server = with_beside(server, settings, args)?;
    let server = traces.into_iter().fold(server, Server::with_traces);
    let mirror = open_mirror(&images, settings, &server, trace.as_ref(), bound.is_some()).await?;
    let server = mirror.iter().cloned().fold(server, Server::with_mirror);
    let mut held = Held::take(&settings.root)?;
    join_peers(&brought_by, settings).await?;
    let mut beside = JoinSet::new();
    let metrics = metrics_listener(settings, args, passed.metrics.take()).await?;
    let (sockets, listeners) = listen(settings, args, passed)?;
    if let Some(path) = listeners.iter().find_map(whole) {
        tracing::info!(socket = %path.display(), root = %settings.root.display(), "serving");
        held.announce(&path)?;
    }
    if let Some(listener) = metrics {
        let server = server.clone();
        let render = move || {
            let server = server.clone();
            async move { Ok(server.metrics_text().await) }
        };
        beside.spawn(orlop_registry::metrics::serve(listener, render));
    }
    let (registry, live) = match bound {
        Some(bound) => bound.serve(&images, mirror).await.map(|(server, live)| (Some(server), Some(live)))?,
        None => (None, None),
    };
    beside.spawn(systemd::watchdog(store.clone()));
    beside.spawn(crate::memory::give_back());
    systemd::ready();
    let (options, watched) = watch::channel(settings.config.serve());
    let Reloading { global, overrides, hangups, log } = reloading;
    let (global, config) = (global.clone(), settings.config.clone());
    let reload =
        reload::Reload { global, overrides, config, server: server.clone(), options, log, trace, registry: live };
    let reload = beside.spawn(reload.run(hangups));
    let served = serve(&server, registry, listeners, watched, signals, &sockets, &reload).await;
    brought_by.set_nearby(None);
    // Nobody can ask for mounts now.
    drop(tokio::task::spawn_blocking(move || release(&store)).await);
    served
}

/// Lets go of what was mounted for clients; what they made of it goes on.
fn release(store: &orlop_metadata::Store) {
    for driver in store.drivers() {
        if let Err(error) = driver.release() {
            tracing::warn!(driver = driver.name(), %error, "what was mounted for clients stays mounted");
        }
    }
}

/// The server with the containerd that the configuration names.
fn with_beside(server: Server, settings: &Settings, args: &Args) -> Result<Server> {
    let beside = settings.config.beside().map_err(|error| CliError::new(Class::Usage, error.to_string()))?;
    let Some(beside) = beside else { return Ok(server) };
    if own_socket(settings, args).is_ok_and(|own| own == beside.socket) {
        let message = format!("containerd.socket {}: it is this daemon's own", beside.socket.display());
        return Err(CliError::new(Class::Usage, message).hint("name the socket of a containerd"));
    }
    tracing::info!(socket = %beside.socket.display(), mode = ?beside.mode, "a containerd is beside");
    Ok(server.with_beside(beside))
}

/// The mirror that the configuration wants, for the clients of the daemon's registry.
async fn open_mirror(
    images: &Images,
    settings: &Settings,
    server: &Server,
    trace: Option<&TraceHeaders>,
    is_served: bool,
) -> Result<Option<Mirror>> {
    let config = &settings.config;
    let registry = ClientOptions {
        rates: server.rates().clone(),
        ..reload::cri(config, credentials::providers(&config.credentials)?, trace).registry
    };
    let Some(wanted) = config.mirror.settings(&config.registry.namespace, registry) else { return Ok(None) };
    if !is_served {
        tracing::warn!("[mirror] has repositories, and nobody can ask: there is no registry (registry.address)");
        return Ok(None);
    }
    let images = images.clone();
    let opened = tokio::task::spawn_blocking(move || Mirror::open(&images, wanted)).await;
    let opened = opened.map_err(|e| CliError::new(Class::Failed, format!("open the mirror: {e}")))?;
    opened.map(Some).map_err(|e| CliError::from(orlop_server::status_of(&e.into())))
}

/// Has blobs asked for among peers, and given to them, if the configuration says so.
async fn join_peers(images: &Images, settings: &Settings) -> Result<()> {
    let Some(peers) = settings.config.peers.settings(&settings.root)? else { return Ok(()) };
    let peers = Peers::start(images, peers).await.map_err(|error| {
        let class = if matches!(error, StartError::Identity { .. } | StartError::Tls(_)) {
            Class::Usage
        } else {
            Class::Failed
        };
        CliError::new(class, format!("[peers] {error}"))
    })?;
    images.set_nearby(Some(peers));
    Ok(())
}

/// Serves until a signal, and a little longer.
async fn serve(
    server: &Server,
    registry: Option<orlop_registry::Server>,
    listeners: Listeners,
    options: watch::Receiver<ServeOptions>,
    mut signals: Signals,
    sockets: &[Socket],
    reload: &AbortHandle,
) -> Result<ExitCode> {
    let listeners = listeners.into_iter().map(for_runtime).collect::<std::io::Result<Vec<_>>>();
    let listeners = listeners.map_err(|e| CliError::io("listen", None, e))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server.serve_by(listeners, options.clone(), async { drop(stopped.await) });
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        signal = signals.next() => {
            reload.abort();
            let limit = options.borrow().shutdown_limit;
            tracing::info!(signal, ?limit, "finishing what runs");
            systemd::stopping();
            drop(stop);
            let registry = async {
                if let Some(registry) = registry {
                    registry.shutdown().await;
                }
            };
            tokio::select! {
                (served, ()) = async { tokio::join!(serving, registry) } => served,
                signal = signals.next() => {
                    tracing::warn!(signal, "ended at once");
                    sockets.iter().for_each(Socket::remove);
                    // Nothing is lost: what is acknowledged is on disk, and writes in progress can be resumed.
                    std::process::exit(crate::error::INTERRUPTED.into());
                }
            }
        }
    };
    sockets.iter().for_each(Socket::remove);
    served.map_err(|e| CliError::io("serve", None, e))?;
    Ok(ExitCode::SUCCESS)
}

/// Where commands are to find the daemon.
fn whole((listener, surface): &(UnixListener, Surface)) -> Option<PathBuf> {
    if *surface == Surface::Whole { systemd::path(listener) } else { None }
}

/// Sockets with what is offered on each.
type Listeners = Vec<(UnixListener, Surface)>;

/// The sockets that were handed over, and those of our own that were not.
fn listen(settings: &Settings, args: &Args, passed: systemd::Passed) -> Result<(Vec<Socket>, Listeners)> {
    let group = args.group.as_deref().or(settings.config.serve.group.as_deref());
    let access = Access::new(&settings.config.serve.socket_mode, group)?;
    let (mut sockets, mut listeners) = (Vec::new(), passed.listeners);
    let mut bind = |path: &Path, surface| {
        let (socket, listener) = Socket::bind(path, &access)?;
        sockets.push(socket);
        listeners.push((listener, surface));
        Ok::<_, CliError>(())
    };
    if !passed.has_whole {
        bind(&own_socket(settings, args)?, Surface::Whole)?;
    }
    for (owner, path) in raw_sockets(settings, args)? {
        if !passed.owners.contains(&owner) {
            tracing::info!(socket = %path.display(), %owner, "serving a containerd above");
            bind(&path, Surface::Raw(owner))?;
        }
    }
    Ok((sockets, listeners))
}

/// The raw sockets of the configuration; the option is of the default owner.
fn raw_sockets(settings: &Settings, args: &Args) -> Result<Vec<(Owner, PathBuf)>> {
    let mut paths = settings.config.serve.raw_sockets.clone();
    paths.extend(args.raw_socket.clone().map(|path| (Owner::default().to_string(), path)));
    let owner = |(name, path): (String, PathBuf)| match Owner::new(&name) {
        Ok(owner) => Ok((owner, path)),
        Err(error) => Err(CliError::new(Class::Usage, error.to_string())),
    };
    paths.into_iter().map(owner).collect()
}

fn own_socket(settings: &Settings, args: &Args) -> Result<PathBuf> {
    args.socket.clone().or_else(|| settings.default_socket.clone()).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the socket: XDG_RUNTIME_DIR is not set").hint("give --socket PATH")
    })
}

async fn metrics_listener(
    settings: &Settings,
    args: &Args,
    passed: Option<std::net::TcpListener>,
) -> Result<Option<tokio::net::TcpListener>> {
    if let Some(listener) = passed {
        let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
        return listener.map(Some).map_err(|e| CliError::io("listen for metrics", None, e));
    }
    let Some(address) = args.metrics.or(settings.config.serve.metrics) else { return Ok(None) };
    let listener = tokio::net::TcpListener::bind(address).await;
    let listener = listener.map_err(|e| CliError::io("listen on", Some(Path::new(&address.to_string())), e))?;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "metrics");
    }
    Ok(Some(listener))
}

/// The only handle to the socket: once it is dropped, nobody waits in its queue for an answer that will not come.
fn for_runtime((listener, surface): (UnixListener, Surface)) -> std::io::Result<Listening> {
    listener.set_nonblocking(true)?;
    Ok(Listening { listener: tokio::net::UnixListener::from_std(listener)?, surface })
}

/// What is missing is said by whoever finds out first.
fn tell_confinement() {
    let found = orlop_snapshot::confinement();
    if found.is_whole() {
        tracing::debug!(confinement = %found, "threads that unpack layers are confined");
    }
}

/// Connections and writes are open files: as many as the system allows, not as many as a shell starts with.
fn allow_many_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the number of open files stays limited");
    }
}
