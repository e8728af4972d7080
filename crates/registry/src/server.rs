//! Listening, connections, TLS, an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::health::answer;
use crate::{Health, Origin, Registry};

/// Connections at once; further ones wait in the listener's queue. With the blobs and uploads they have open they stay
/// below the 1,024 file descriptors that a process usually may have.
const MAX_CONNECTIONS: usize = 384;

/// How long a client may take to send its request line and headers, or to shake hands.
const HEADER_TIME: Duration = Duration::from_secs(30);

/// How long a shutdown waits for requests in progress.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);

/// How long an upload may rest before it is dropped.
const UPLOAD_LIFE: SignedDuration = SignedDuration::from_hours(24);

/// How often uploads are looked through.
const UPLOAD_CHECK: Duration = Duration::from_secs(3600);

/// How a registry is served.
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// TLS with this configuration; without one, plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// What `GET /readyz` asks; without one, a registry that answers is ready.
    pub health: Option<Arc<dyn Health>>,
}

/// A registry that is listening. Dropping it closes the listener and every connection at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    idle: JoinHandle<()>,
}

impl Registry {
    /// Serves on a listener, in a task of the current runtime.
    pub fn serve(self, listener: TcpListener, options: ServeOptions) -> io::Result<Server> {
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let idle = tokio::spawn(drop_idle_uploads(self.clone()));
        let served = Served { registry: self, health: options.health };
        let task = tokio::spawn(accept(served, listener, options.tls.map(TlsAcceptor::from), stopped));
        Ok(Server { address, stop: Some(stop), task, idle })
    }
}

impl Server {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, lets requests in progress finish for at most ten seconds, and ends.
    pub async fn shutdown(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.idle.abort();
    }
}

/// What each connection speaks to.
#[derive(Clone)]
struct Served {
    registry: Registry,
    health: Option<Arc<dyn Health>>,
}

impl Served {
    async fn handle(&self, request: http::Request<Body>, from: Origin) -> http::Response<Body> {
        match answer(self.health.as_deref(), request.method().clone(), request.uri().clone()).await {
            Some(response) => response,
            None => self.registry.handle_from(request, from).await,
        }
    }
}

async fn drop_idle_uploads(registry: Registry) {
    let mut ticks = tokio::time::interval(UPLOAD_CHECK);
    loop {
        ticks.tick().await;
        match registry.drop_idle_uploads(Timestamp::now() - UPLOAD_LIFE).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(dropped, "dropped idle uploads"),
            Err(error) => tracing::warn!(%error, "cannot look through uploads"),
        }
    }
}

async fn accept(served: Served, listener: TcpListener, tls: Option<TlsAcceptor>, mut stopped: oneshot::Receiver<()>) {
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // A JoinSet, so that connections end when this task is aborted.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (served, tls, watcher) = (served.clone(), tls.clone(), graceful.watcher());
                connections.spawn(async move {
                    let _permit = permit;
                    connection(served, (stream, peer), tls, watcher).await;
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(SHUTDOWN_TIME, graceful.shutdown()).await;
}

async fn connection(
    served: Served,
    (stream, peer): (TcpStream, SocketAddr),
    tls: Option<TlsAcceptor>,
    watcher: Watcher,
) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return requests(served, stream, Origin { address: Some(peer), secure: false }, watcher).await;
    };
    match tokio::time::timeout(HEADER_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(served, stream, Origin { address: Some(peer), secure: true }, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn requests(
    served: Served,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    origin: Origin,
    watcher: Watcher,
) {
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let served = served.clone();
        async move { Ok::<_, std::convert::Infallible>(served.handle(request.map(Body::new), origin).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
    builder.http2().timer(TokioTimer::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error, "connection ended");
    }
}
