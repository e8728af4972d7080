//! What every call on a socket passes through: a request id, the caller, a deadline, the bound on calls, counting, and
//! an end when the server ends.
//!
//! # Invariants
//! - A call is counted and logged once, when its answer has ended or nobody takes it any more.
//! - A call that panics answers `INTERNAL` and harms no other.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::ServeOptions;
use super::body::{Answer, Record};
use super::bound::Bound;
use super::deadline;
use super::flow::Flow;
use super::inbound::Inbound;
use super::peer::Peer;
use crate::metrics::Metrics;
use crate::traces::Traces;
use crate::{Server, services};

/// The header of a request id, both ways.
const REQUEST_ID: &str = "x-request-id";

/// A client's own id is kept up to this length.
const MAX_ID_BYTES: usize = 64;

/// What a client says it calls, and in which namespace, is logged up to this length; nothing that exists is longer.
const MAX_NAME_BYTES: usize = 128;

/// Calls of foreign services that last until somebody ends them; they end as soon as the server is asked to. Our own
/// see to it themselves ([`Server::until_shutdown`]).
const ENDLESS: &[&str] = &[
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What ends a call before its time.
pub(super) type Limit = Pin<Box<dyn Future<Output = Status> + Send>>;

/// What all connections share.
pub(super) struct Calls {
    routes: Routes,
    pub(super) metrics: Metrics,
    methods: HashMap<String, Arc<str>>,
    unknown: Arc<str>,
    /// Calls at once.
    places: Arc<Bound>,
    options: watch::Receiver<ServeOptions>,
    /// The server was asked to end.
    pub(super) stop: CancellationToken,
    /// The server ends now.
    pub(super) end: CancellationToken,
    ids: Ids,
    traces: Option<Traces>,
}

impl Calls {
    /// Of one surface of a server; all share the bound on calls and the end.
    pub(super) fn new(
        server: &Server,
        routes: Routes,
        options: watch::Receiver<ServeOptions>,
        places: Arc<Bound>,
        end: CancellationToken,
    ) -> Self {
        let methods = services::methods().into_iter().map(|name| (name.clone(), name.into())).collect();
        Self {
            routes: routes.prepare(),
            metrics: server.metrics().clone(),
            methods,
            unknown: "unknown".into(),
            places,
            options,
            stop: server.ending().clone(),
            end,
            ids: Ids::default(),
            traces: server.traces().cloned(),
        }
    }

    /// Answers one call.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        flow: Flow,
        mut request: Request<Incoming>,
    ) -> Result<Response<Answer>, Infallible> {
        let id = self.ids.of(request.headers());
        let path = request.uri().path().to_owned();
        let method = self.methods.get(&path).unwrap_or(&self.unknown).clone();
        let span = self.span(&id, &path, request.headers(), &peer);
        let mut record = Record::new(self.metrics.clone(), method, span.clone());
        // Asked here, so that a bound holds as soon as it is said that it was changed.
        let admitted = self.places.try_take_of(self.options.borrow().max_calls);
        let outcome = match (deadline::timeout(request.headers()), admitted) {
            (_, None) => Err(Status::resource_exhausted("too many calls at once: end some, or try again")),
            (Err(bad), _) => Err(Status::internal(format!("grpc-timeout {bad}: expected digits and a unit"))),
            (Ok(timeout), Some(place)) => {
                let limit = self.limit(&path, timeout);
                request.extensions_mut().insert(peer);
                self.run(request, limit).instrument(span).await.map(|(response, limit)| (response, limit, place))
            }
        };
        let mut response = match outcome {
            Ok((response, limit, place)) => {
                record.headers(response.headers());
                response.map(|body| Answer::new(body, record, limit, flow, place))
            }
            Err(status) => {
                record.ended(status.code());
                status.into_http()
            }
        };
        explain(&path, response.headers_mut());
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        Ok(response)
    }

    /// The span of a call: it ends when nothing of the call runs any more.
    fn span(&self, id: &str, path: &str, headers: &HeaderMap, peer: &Peer) -> Span {
        let span = tracing::info_span!(
            "call",
            id,
            method = start(path),
            namespace = start(text(headers, orlop_api::NAMESPACE_HEADER)),
            pid = peer.pid,
            uid = peer.uid,
            code = Empty,
        );
        if let Some(traces) = &self.traces {
            (traces.receive)(headers, &span);
        }
        span
    }

    /// Runs the service until it answers, or until the limit is reached.
    async fn run(
        &self,
        request: Request<Incoming>,
        mut limit: Limit,
    ) -> Result<(Response<tonic::body::Body>, Limit), Status> {
        let request = request.map(|body| Inbound::new(body, self.metrics.unfinished.clone()));
        let answering = AssertUnwindSafe(self.routes.clone().call(request)).catch_unwind();
        tokio::select! {
            biased;
            status = &mut limit => Err(status),
            answered = answering => match answered {
                Ok(Ok(response)) => Ok((response, limit)),
                Ok(Err(never)) => match never {},
                Err(_) => Err(Status::internal("a fault in the server; its log tells more")),
            },
        }
    }

    fn limit(&self, path: &str, timeout: Option<Duration>) -> Limit {
        let end = if ENDLESS.contains(&path) { self.stop.clone() } else { self.end.clone() };
        let ended = end.cancelled_owned().map(|()| Status::unavailable("the server is shutting down"));
        match timeout {
            None => Box::pin(ended),
            Some(timeout) => Box::pin(async move {
                tokio::select! {
                    status = ended => status,
                    () = tokio::time::sleep(timeout) => Status::deadline_exceeded("context deadline exceeded"),
                }
            }),
        }
    }
}

/// Says what is missing where the router says nothing.
fn explain(path: &str, headers: &mut HeaderMap) {
    let unimplemented = headers.get(Status::GRPC_STATUS).is_some_and(|code| code == "12");
    if !unimplemented || headers.contains_key(Status::GRPC_MESSAGE) {
        return;
    }
    let service = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if let Ok(message) = HeaderValue::from_str(&format!("unknown service or method {service}")) {
        headers.insert(Status::GRPC_MESSAGE, message);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// As much of a name as is logged.
fn start(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

/// Gives calls their ids: the start of the process and a number.
#[derive(Debug)]
struct Ids {
    prefix: String,
    next: AtomicU64,
}

impl Default for Ids {
    fn default() -> Self {
        let now = jiff::Timestamp::now().as_millisecond();
        Self { prefix: format!("{:x}", now & 0xffff_ffff), next: AtomicU64::new(1) }
    }
}

impl Ids {
    fn of(&self, headers: &HeaderMap) -> String {
        let given = text(headers, REQUEST_ID);
        if !given.is_empty() && given.len() <= MAX_ID_BYTES {
            return given.to_owned();
        }
        format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a code is told in the log: what is the server's fault is a warning.
pub(super) fn log(code: Code, started: Instant) {
    let ms = started.elapsed().as_millis();
    match code {
        Code::Unknown | Code::Internal | Code::DataLoss => {
            tracing::warn!(code = crate::metrics::name(code), ms, "the call failed");
        }
        _ => tracing::debug!(code = crate::metrics::name(code), ms, "the call ended"),
    }
}
