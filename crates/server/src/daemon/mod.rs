//! The services on Unix sockets, as a daemon offers them: with bounds, a name for every caller, and an orderly end.
//!
//! # Invariants
//! - Every resource that a client can take is bounded: connections, calls, what waits to be sent ([`flow`]),
//!   what was begun and not finished ([`inbound`]), headers.
//! - When the server is asked to end it takes no more connections, ends what would never end, lets the rest finish
//!   within the limit, and cuts what is left with `UNAVAILABLE`. A write that is cut stays as an ingest, to be resumed.
//!
//! # Concurrency
//! One task a connection, one a call.

mod accept;
mod body;
mod bound;
mod calls;
mod deadline;
pub(crate) mod flow;
mod greeting;
mod inbound;
pub(crate) mod peer;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::background::{self, Background};
use crate::raw::{Owner, Raw};
use crate::{Server, services};
use accept::Door;
use bound::Bound;
use calls::Calls;

/// How a server is offered.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Connections at once; further ones wait in the socket's queue.
    pub max_connections: usize,
    /// Calls at once on all connections; further ones are refused with `RESOURCE_EXHAUSTED`.
    pub max_calls: usize,
    /// How often a silent client is asked whether it is alive.
    pub keepalive: Duration,
    /// How long it may take to answer that.
    pub keepalive_timeout: Duration,
    /// How long calls may go on after the server was asked to end.
    pub shutdown_limit: Duration,
    /// What goes on beside the calls.
    pub background: Background,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_calls: 16_384,
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            shutdown_limit: Duration::from_secs(10),
            background: Background::default(),
        }
    }
}

/// What is offered on a socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Surface {
    /// Every service, with namespaces and leases.
    #[default]
    Whole,
    /// Content, snapshots and diff for a containerd above, which keeps namespaces and leases itself.
    Raw(Owner),
}

/// A socket to serve.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub listener: UnixListener,
    /// What is offered on it.
    pub surface: Surface,
}

impl From<UnixListener> for Listening {
    fn from(listener: UnixListener) -> Self {
        Self { listener, surface: Surface::Whole }
    }
}

impl Server {
    /// [`Server::serve`] on one socket with the default options.
    ///
    /// # Errors
    /// As there.
    pub async fn serve_unix(&self, listener: UnixListener, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        self.serve(vec![listener], &ServeOptions::default(), shutdown).await
    }

    /// The services on Unix sockets, with the store looked after in the background, until `shutdown` is done; what runs
    /// then is finished within the limit.
    ///
    /// # Errors
    /// If a listener cannot be used; a client cannot make this fail.
    pub async fn serve(
        &self,
        listeners: Vec<impl Into<Listening>>,
        options: &ServeOptions,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (_unchanged, options) = watch::channel(options.clone());
        self.serve_by(listeners, options, shutdown).await
    }

    /// [`Server::serve`] with options that may change: bounds and what goes on beside the calls follow at once, times of
    /// connections with the next connection.
    ///
    /// # Errors
    /// As there.
    pub async fn serve_by(
        &self,
        listeners: Vec<impl Into<Listening>>,
        options: watch::Receiver<ServeOptions>,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let end = CancellationToken::new();
        let doors = self.doors(listeners.into_iter().map(Into::into), &options, &end);
        let places = Bound::new(options.borrow().max_connections.max(1));
        // Dropping the set ends what goes on beside the calls.
        let mut beside = JoinSet::new();
        background::spawn(self, &options, &mut beside).await;
        beside.spawn(follow(options.clone(), places.clone()));
        let accepting = accept::Accepting::new(self, places, options.clone());
        let served = accepting.run(doors);
        tokio::pin!(served);
        tokio::select! {
            ended = &mut served => return ended,
            () = shutdown => self.ending().cancel(),
        }
        let limit = options.borrow().shutdown_limit;
        if let Ok(ended) = tokio::time::timeout(limit, &mut served).await {
            return ended;
        }
        tracing::warn!(?limit, "calls still run: they are cut");
        end.cancel();
        served.await
    }

    /// What answers on each socket. One bound on calls holds for all.
    fn doors(
        &self,
        listeners: impl Iterator<Item = Listening>,
        options: &watch::Receiver<ServeOptions>,
        end: &CancellationToken,
    ) -> Vec<Door> {
        let places = Bound::new(options.borrow().max_calls);
        let calls = |routes| Arc::new(Calls::new(self, routes, options.clone(), places.clone(), end.clone()));
        let whole = calls(services::all(self));
        let door = |Listening { listener, surface }| match surface {
            Surface::Whole => Door { listener, calls: whole.clone() },
            Surface::Raw(owner) => Door { listener, calls: calls(services::raw(&Raw::new(self, owner))) },
        };
        listeners.map(door).collect()
    }
}

/// Keeps the bound on connections as the options want it, for those that wait for a place. Calls ask when they come.
async fn follow(mut options: watch::Receiver<ServeOptions>, connections: Arc<Bound>) {
    while options.changed().await.is_ok() {
        connections.set(options.borrow_and_update().max_connections.max(1));
    }
}
