//! Giving blobs to peers.
//!
//! # Invariants
//! - Digests only: a tag is answered with 404, for what a tag means only a registry may say.
//! - Only what [`Shelf`] gives, which is verified and not withheld, and what comes to this node, as [`Relays`] has it. What is not here is answered with 404 and not asked for elsewhere.
//! - Bounded: connections in all and of each address, blobs at once, bytes a second, time for a request's head, and time
//!   in which nobody takes a blob's next piece.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use orlop_oci::{Digest, RepositoryName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::pulse::{Beating, Pulse};
use super::source::{Bytestream, Taker, Takers};
use super::tls::Ends;
use super::{COMING, DIGEST, GIVE, HAS, LOAD, MAX_TRY, NAMESPACE, TRY};
use crate::net::{Net, id_document};
use crate::pace::Pace;
use crate::relay::{Relays, Stand};
use crate::shelf::Shelf;

/// How much is read from the store at once.
const PIECE: u64 = 256 << 10;
/// How long a peer may take to send a request's head, or to shake hands.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Connections of one address.
const MAX_OF_ADDRESS: usize = 32;
/// When a busy node may be asked again, in seconds: the header has no smaller unit.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How blobs are given.
pub(crate) struct ServerSettings {
    pub(crate) shelf: Shelf,
    pub(crate) relays: Relays,
    pub(crate) tls: Option<Ends>,
    /// Nodes that are given one blob at once and can give it on.
    pub(crate) fan_out: usize,
    /// Bytes a second; 0: no limit.
    pub(crate) rate: u64,
    /// Blobs at once.
    pub(crate) uploads: usize,
    /// Connections at once.
    pub(crate) connections: usize,
    /// How long a blob may rest since nobody takes from it.
    pub(crate) patience: Duration,
}

/// Counts and limits of a server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    shelf: Shelf,
    relays: Relays,
    takers: Takers,
    net: Net,
    tls: Option<TlsAcceptor>,
    pace: Pace,
    uploads: Arc<Semaphore>,
    most: usize,
    patience: Duration,
    connections: Arc<Semaphore>,
    of_address: Mutex<HashMap<IpAddr, usize>>,
    sent: AtomicU64,
    given: AtomicU64,
    relayed: AtomicU64,
    missing: AtomicU64,
    busy: AtomicU64,
}

/// A connection of an address, as long as this lives.
struct Place(Arc<Inner>, IpAddr);

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.0.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

impl Server {
    pub(crate) fn new(settings: ServerSettings, net: Net) -> Self {
        let inner = Inner {
            shelf: settings.shelf,
            relays: settings.relays,
            takers: Takers::new(settings.fan_out),
            net,
            tls: settings.tls.map(|ends| TlsAcceptor::from(ends.server)),
            pace: Pace::new(settings.rate),
            uploads: Arc::new(Semaphore::new(settings.uploads)),
            most: settings.uploads,
            patience: settings.patience,
            connections: Arc::new(Semaphore::new(settings.connections)),
            of_address: Mutex::default(),
            sent: AtomicU64::new(0),
            given: AtomicU64::new(0),
            relayed: AtomicU64::new(0),
            missing: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Bytes given so far.
    pub(crate) fn sent(&self) -> u64 {
        self.inner.sent.load(Ordering::Relaxed)
    }

    /// Requests that were answered with a blob, since it is not here with 404, and since too many are given with 503.
    pub(crate) fn served(&self) -> [u64; 3] {
        [&self.inner.given, &self.inner.missing, &self.inner.busy].map(|count| count.load(Ordering::Relaxed))
    }

    /// Requests that were answered with a blob that was still coming.
    pub(crate) fn relayed(&self) -> u64 {
        self.inner.relayed.load(Ordering::Relaxed)
    }

    /// Takes connections for ever.
    pub(crate) async fn run(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&self.inner.connections).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, from)) => {
                    let Some(place) = self.inner.place(from) else { continue };
                    let inner = Arc::clone(&self.inner);
                    connections.spawn(async move {
                        let _held = (permit, place);
                        inner.connection(socket, from.ip()).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a peer's connection could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Inner {
    fn place(self: &Arc<Self>, from: SocketAddr) -> Option<Place> {
        let mut all = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(from.ip()).or_default();
        if *count >= MAX_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place(Arc::clone(self), from.ip()))
    }

    async fn connection(self: Arc<Self>, socket: TcpStream, from: IpAddr) {
        let _ = socket.set_nodelay(true);
        let Some(tls) = self.tls.clone() else { return self.requests(socket, from).await };
        match tokio::time::timeout(HEADER_TIME, tls.accept(socket)).await {
            Ok(Ok(stream)) => self.requests(stream, from).await,
            Ok(Err(error)) => tracing::debug!(%error, "a peer showed no certificate of the fleet"),
            Err(_) => tracing::debug!("a peer took too long to shake hands"),
        }
    }

    async fn requests(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send, from: IpAddr) {
        let (pulse, patience) = (Pulse::default(), self.patience);
        let beats = pulse.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (inner, pulse) = (Arc::clone(&self), beats.clone());
            async move { Ok::<_, Infallible>(inner.answer(&request, &Asker { from, pulse }).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(64 << 10);
        tokio::select! {
            ended = builder.serve_connection(TokioIo::new(stream), service) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a peer's connection ended");
                }
            }
            () = pulse.stops(patience) => tracing::debug!("a peer took nothing more of a blob; its connection is closed"),
        }
    }

    async fn answer(self: &Arc<Self>, request: &Request<Incoming>, asker: &Asker) -> Response<Body> {
        let method = request.method();
        if method != Method::GET && method != Method::HEAD {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "peers only give");
        }
        match Asked::parse(request.uri().path()) {
            Asked::Root => respond(StatusCode::OK, "application/json", Bytes::from_static(b"{}"), method),
            Asked::Id => {
                let document = id_document(self.net.id(), &self.net.state().addresses);
                respond(StatusCode::OK, "application/json", document.into(), method)
            }
            Asked::Tag => refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "peers give digests only"),
            Asked::Nothing => refusal(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is nothing of that name"),
            Asked::Blob { digest, is_document } => self.give(request, &digest, is_document, asker).await,
        }
    }

    async fn give(
        self: &Arc<Self>,
        request: &Request<Incoming>,
        digest: &Digest,
        is_document: bool,
        asker: &Asker,
    ) -> Response<Body> {
        let gives_on = !is_document && request.headers().get(COMING).is_some_and(|value| value == GIVE);
        let from = first_byte(request.headers());
        let source = match Bytestream::find((&self.shelf, &self.relays), digest, from, gives_on).await {
            Ok(source) => source,
            Err(Stand::Behind) if !gives_on => return self.lacks(is_document),
            Err(stand) => return self.stands(digest, stand),
        };
        let media_type = match self.media_type(digest, is_document).await {
            Some(media_type) => media_type,
            None => return self.lacks(is_document),
        };
        let size = source.size();
        let (status, range) = match asked_range(request.headers(), size) {
            Some(Some(range)) if !is_document => (StatusCode::PARTIAL_CONTENT, range),
            None if !is_document => {
                let mut refused = refusal(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "the blob ends before");
                set(&mut refused, header::CONTENT_RANGE, &format!("bytes */{size}"));
                return refused;
            }
            _ => (StatusCode::OK, 0..size),
        };
        let had = source.has();
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        if request.method() == Method::GET {
            // Who does not give it on takes no place from those who do.
            let taker = match gives_on.then(|| self.takers.take(digest, asker.from)).transpose() {
                Ok(taker) => taker,
                Err(others) => return self.is_full(&others),
            };
            let Ok(permit) = Arc::clone(&self.uploads).try_acquire_owned() else { return self.is_busy() };
            self.given.fetch_add(1, Ordering::Relaxed);
            self.relayed.fetch_add(u64::from(had.is_some()), Ordering::Relaxed);
            let giving = Giving {
                inner: Arc::clone(self),
                source,
                range: range.clone(),
                beating: asker.pulse.begin(),
                _held: (permit, taker),
            };
            *response.body_mut() = giving.into_body();
        }
        *response.status_mut() = status;
        set(&mut response, header::CONTENT_TYPE, &media_type);
        set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
        set(&mut response, DIGEST, digest.as_str());
        set(&mut response, NAMESPACE, &namespace(request.uri().query().unwrap_or_default()));
        set(&mut response, LOAD, &format!("{:.2}", self.load()));
        if let Some(had) = had {
            set(&mut response, HAS, &had.to_string());
        }
        if !is_document {
            set(&mut response, header::ACCEPT_RANGES, "bytes");
        }
        if status == StatusCode::PARTIAL_CONTENT {
            set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
        response
    }

    /// That a blob which is coming cannot be had by who asks.
    fn stands(&self, digest: &Digest, stand: Stand) -> Response<Body> {
        let mut refused = self.lacks(false);
        let coming = self.relays.get(digest);
        let (word, elsewhere) = match stand {
            Stand::Gives | Stand::Behind => (coming.map(|_| "behind"), None),
            Stand::Waits => (Some("waits"), None),
            Stand::Follows => (Some("follows"), coming.and_then(|coming| coming.feeder())),
        };
        word.into_iter().for_each(|word| set(&mut refused, COMING, word));
        elsewhere.into_iter().for_each(|address| set(&mut refused, TRY, &address.to_string()));
        refused
    }

    /// That as many take a blob as may.
    fn is_full(&self, others: &[IpAddr]) -> Response<Body> {
        let mut refused = self.is_busy();
        refused.headers_mut().remove(header::RETRY_AFTER);
        let others: Vec<String> = others.iter().take(MAX_TRY).map(ToString::to_string).collect();
        set(&mut refused, TRY, &others.join(","));
        refused
    }

    /// The media type; `None` if a document is asked for and this is none.
    async fn media_type(&self, digest: &Digest, is_document: bool) -> Option<String> {
        if is_document { self.shelf.document_type(digest).await } else { Some("application/octet-stream".to_owned()) }
    }

    fn load(&self) -> f64 {
        1.0 - self.uploads.available_permits() as f64 / self.most.max(1) as f64
    }

    fn lacks(&self, is_document: bool) -> Response<Body> {
        self.missing.fetch_add(1, Ordering::Relaxed);
        let code = if is_document { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" };
        refusal(StatusCode::NOT_FOUND, code, "this node does not have it")
    }

    fn is_busy(&self) -> Response<Body> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        let mut refused =
            refusal(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", "this node gives to as many as it may");
        refused.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        set(&mut refused, LOAD, "1.00");
        refused
    }
}

/// Who asks, over one connection.
struct Asker {
    from: IpAddr,
    pulse: Pulse,
}

/// A blob that is being given.
struct Giving {
    inner: Arc<Inner>,
    source: Bytestream,
    range: Range<u64>,
    beating: Beating,
    _held: (OwnedSemaphorePermit, Option<Taker>),
}

impl Giving {
    fn into_body(self) -> Body {
        let pieces = stream::try_unfold(self, |mut giving| async move {
            giving.beating.beat();
            if giving.range.is_empty() {
                return Ok(None);
            }
            let length = PIECE.min(giving.range.end - giving.range.start);
            let piece = giving.source.read(giving.range.start, length).await?;
            let bytes = piece.len() as u64;
            giving.inner.pace.take(bytes).await;
            giving.range.start += bytes;
            giving.inner.sent.fetch_add(bytes, Ordering::Relaxed);
            giving.beating.wait();
            Ok(Some((Frame::data(piece), giving)))
        });
        BodyExt::boxed_unsync(StreamBody::new(pieces))
    }
}

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// `/v2/`: does this speak the protocol?
    Root,
    /// `/id`: who is this?
    Id,
    Blob {
        digest: Digest,
        is_document: bool,
    },
    Tag,
    Nothing,
}

impl Asked {
    fn parse(path: &str) -> Self {
        match path {
            "/v2" | "/v2/" => return Self::Root,
            "/id" => return Self::Id,
            _ => {}
        }
        // Split from the end, since a repository may be called `blobs`.
        let Some((front, last)) = path.strip_prefix("/v2/").and_then(|rest| rest.rsplit_once('/')) else {
            return Self::Nothing;
        };
        let (name, is_document) = match (front.strip_suffix("/manifests"), front.strip_suffix("/blobs")) {
            (Some(name), _) => (name, true),
            (_, Some(name)) => (name, false),
            _ => return Self::Nothing,
        };
        if !is_repository(name) {
            return Self::Nothing;
        }
        // Clients may write the colon as %3A.
        match last.replacen("%3A", ":", 1).replacen("%3a", ":", 1).parse() {
            Ok(digest) => Self::Blob { digest, is_document },
            Err(_) if is_document && !last.contains([':', '%']) => Self::Tag,
            Err(_) => Self::Nothing,
        }
    }
}

fn is_repository(name: &str) -> bool {
    RepositoryName::parse(&format!("localhost/{name}")).is_ok_and(|parsed| parsed.path() == name)
}

/// The registry that a query names.
fn namespace(query: &str) -> String {
    url::form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "ns")
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// The range that is asked for: of everything, `Some(None)`; of nothing that is there, `None`. What it does not understand, and more than
/// one range, it ignores, as it may (RFC 9110, section 14.2).
fn asked_range(headers: &HeaderMap, size: u64) -> Option<Option<Range<u64>>> {
    let text = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = text.and_then(|text| text.strip_prefix("bytes=")?.trim().split_once('-')) else {
        return Some(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Some(None),
    };
    (range.start < range.end).then_some(Some(range))
}

/// Where what is asked for begins, whatever the size.
fn first_byte(headers: &HeaderMap) -> u64 {
    asked_range(headers, u64::MAX).flatten().map_or(0, |range| range.start)
}

fn set(response: &mut Response<Body>, name: impl http::header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn respond(status: StatusCode, media_type: &str, body: Bytes, method: &Method) -> Response<Body> {
    let length = body.len().to_string();
    let body = if method == Method::HEAD { Bytes::new() } else { body };
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, media_type);
    set(&mut response, header::CONTENT_LENGTH, &length);
    response
}

/// An error, as registries write them (distribution-spec, "Error Codes").
fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let document = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    respond(status, "application/json", document.to_string().into(), &Method::GET)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn paths() {
        let digest: Digest = DIGEST.parse().unwrap();
        let blob = |is_document| Asked::Blob { digest: digest.clone(), is_document };
        let escaped = DIGEST.replace(':', "%3A");
        for (path, expected) in [
            ("/v2/", Asked::Root),
            ("/v2", Asked::Root),
            ("/id", Asked::Id),
            (&format!("/v2/library/alpine/blobs/{DIGEST}"), blob(false)),
            (&format!("/v2/library/alpine/manifests/{DIGEST}"), blob(true)),
            (&format!("/v2/blobs/blobs/{escaped}"), blob(false)),
            ("/v2/library/alpine/manifests/latest", Asked::Tag),
            ("/v2/library/alpine/manifests/sha256:12", Asked::Nothing),
            ("/v2/library/alpine/blobs/latest", Asked::Nothing),
            (&format!("/v2/blobs/{DIGEST}"), Asked::Nothing),
            (&format!("/v2/../a/blobs/{DIGEST}"), Asked::Nothing),
            (&format!("/v2/a/b/{DIGEST}"), Asked::Nothing),
            ("/metrics", Asked::Nothing),
        ] {
            assert_eq!(Asked::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn ranges() {
        let asked = |value: &'static str, size| {
            asked_range(&HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(value))]), size)
        };
        assert_eq!(asked_range(&HeaderMap::new(), 10), Some(None));
        assert_eq!(asked("bytes=0-0", 10), Some(Some(0..1)));
        assert_eq!(asked("bytes=3-", 10), Some(Some(3..10)));
        assert_eq!(asked("bytes=-3", 10), Some(Some(7..10)));
        assert_eq!(asked("bytes=5-18446744073709551615", 10), Some(Some(5..10)));
        for impossible in ["bytes=10-", "bytes=10-20", "bytes=-0"] {
            assert_eq!(asked(impossible, 10), None, "{impossible}");
        }
        for ignored in ["bytes=5-3", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=-", "bytes="] {
            assert_eq!(asked(ignored, 10), Some(None), "{ignored}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_asked_panics_and_no_range_is_outside(path in "/.*", range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in any::<u64>()) {
            Asked::parse(&path);
            let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(&range).unwrap())]);
            if let Some(Some(range)) = asked_range(&headers, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
