//! Taking connections and driving them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use orlop_api::channel;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ServeOptions;
use super::bound::{Bound, Place};
use super::calls::Calls;
use super::flow::Flow;
use super::greeting::{Greeted, Greeting};
use super::peer::Peer;
use crate::Server;

/// Headers of one request. Namespaces, leases and actors are a few hundred bytes.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// Streams that a client may have reset before the server has seen them. Clients that give up many calls at once are
/// no attackers.
const MAX_RESET_STREAMS: usize = 1024;

/// How long to wait when there are no more file descriptors, or accepting fails otherwise.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How long a client may take to end its side after everything was said.
const LINGER: Duration = Duration::from_secs(1);

/// A socket, and what answers on it.
pub(super) struct Door {
    pub(super) listener: UnixListener,
    pub(super) calls: Arc<Calls>,
}

/// Takes connections and keeps them.
pub(super) struct Accepting {
    stop: CancellationToken,
    flow: Flow,
    /// Connections at once.
    places: Arc<Bound>,
    options: Receiver<ServeOptions>,
}

impl Accepting {
    pub(super) fn new(server: &Server, places: Arc<Bound>, options: Receiver<ServeOptions>) -> Self {
        let flow = Flow::new(server.metrics().waiting.clone());
        Self { stop: server.ending().clone(), flow, places, options }
    }

    /// Takes connections until the server is asked to end, and waits for the last one to end.
    pub(super) async fn run(self, doors: Vec<Door>) -> io::Result<()> {
        if doors.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is nothing to listen on"));
        }
        let mut connections = JoinSet::new();
        let mut number = 0;
        loop {
            let taken = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                taken = self.next(&doors) => taken,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            match taken {
                Ok((stream, calls, place)) => {
                    number += 1;
                    connections.spawn(self.connection(stream, calls, number, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
        // New clients must not wait for an answer that nobody will give.
        drop(doors);
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    async fn next(&self, doors: &[Door]) -> io::Result<(UnixStream, Arc<Calls>, Place)> {
        let place = self.places.take().await;
        let accepts = doors.iter().map(|door| Box::pin(door.listener.accept()));
        let (accepted, at, _) = futures::future::select_all(accepts).await;
        Ok((accepted?.0, doors[at].calls.clone(), place))
    }

    /// One connection until it ends.
    fn connection(
        &self,
        stream: UnixStream,
        calls: Arc<Calls>,
        number: u64,
        place: Place,
    ) -> impl Future<Output = ()> + Send + use<> {
        let peer = Arc::new(Peer::of(&stream, number));
        let flow = self.flow.connection();
        tracing::debug!(
            connection = number,
            pid = peer.pid,
            uid = peer.uid,
            gid = peer.gid,
            program = peer.program,
            "connected"
        );
        calls.metrics.connections.inc();
        let service = {
            let calls = calls.clone();
            service_fn(move |request| calls.clone().answer(peer.clone(), flow.clone(), request))
        };
        let options = self.options.borrow().clone();
        // How long a client may be silent at first.
        let (greeting, patience) = (Greeting::default(), options.keepalive + options.keepalive_timeout);
        let stream = Greeted::new(stream, greeting.clone());
        let serving = builder(&options).serve_connection(TokioIo::new(stream), service);
        async move {
            let _place = place;
            tokio::pin!(serving);
            tokio::select! {
                ended = &mut serving => finished(number, ended),
                () = silence(greeting, patience) => tracing::debug!(connection = number, "no greeting came"),
                () = calls.stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = &mut serving => finished(number, ended),
                        () = cut(&calls) => tracing::debug!(connection = number, "cut"),
                    }
                }
            }
            calls.metrics.connections.dec();
        }
    }
}

/// HTTP/2 as these options want it.
fn builder(options: &ServeOptions) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(channel::WINDOW_BYTES)
        .initial_connection_window_size(channel::WINDOW_BYTES)
        .max_frame_size(channel::FRAME_BYTES)
        .max_concurrent_streams(u32::try_from(options.max_calls).unwrap_or(u32::MAX))
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .keep_alive_interval(options.keepalive)
        .keep_alive_timeout(options.keepalive_timeout);
    builder
}

/// Comes if a client has not greeted for too long.
async fn silence(greeting: Greeting, patience: Duration) {
    tokio::time::sleep(patience).await;
    if greeting.is_complete() {
        std::future::pending::<()>().await;
    }
}

/// The end, and a moment for what is said last.
async fn cut(calls: &Calls) {
    calls.end.cancelled().await;
    tokio::time::sleep(LINGER).await;
}

fn finished(number: u64, ended: hyper::Result<()>) {
    match ended {
        Ok(()) => tracing::debug!(connection = number, "disconnected"),
        Err(error) => tracing::debug!(connection = number, %error, "disconnected"),
    }
}
