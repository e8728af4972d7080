//! A server that answers as a test says, and remembers what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode, Uri};
use orlop_oci::{Reference, RepositoryName};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    /// `Range: bytes=start-[last]` as start and end.
    pub(crate) fn range(&self) -> Option<(usize, Option<usize>)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().unwrap(), last.parse::<usize>().ok().map(|last| last + 1)))
    }

    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let url = url::Url::parse(&format!("http://h{}", self.uri)).unwrap();
        url.query_pairs().find(|(n, _)| n == name).map(|(_, v)| v.into_owned())
    }
}

type Handler = dyn Fn(Seen) -> BoxFuture<'static, Response> + Send + Sync;

/// The server; it ends with the test's runtime.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        Self::serve(None, move |seen| Box::pin(std::future::ready(handler(&seen)))).await
    }

    /// With a handler that may wait.
    pub(crate) async fn start_waiting(
        handler: impl Fn(Seen) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self {
        Self::serve(None, handler).await
    }

    pub(crate) async fn tls(
        config: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(config.into()), move |seen| Box::pin(std::future::ready(handler(&seen)))).await
    }

    async fn serve(
        tls: Option<TlsAcceptor>,
        handler: impl Fn(Seen) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let log = seen.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, handler, log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, handler, log).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had this method and this in their path.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|s| s.method.as_str() == method && s.path().contains(part)).count()
    }

    pub(crate) fn repository(&self, path: &str) -> RepositoryName {
        RepositoryName::parse(&format!("{}/{path}", self.address)).unwrap()
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }
}

async fn connection<S>(stream: S, handler: Arc<Handler>, log: Arc<Mutex<Vec<Seen>>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper_util::service::TowerToHyperService::new(axum::Router::new().fallback(
        move |request: Request| async move {
            let (parts, body) = request.into_parts();
            // A client that stops sending is an answer of its own: nobody reads it.
            let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
                return Ok::<_, Infallible>(status(400));
            };
            let seen = Seen { method: parts.method, uri: parts.uri, headers: parts.headers, body };
            log.lock().unwrap().push(seen.clone());
            Ok(handler(seen).await)
        },
    ));
    let io = hyper_util::rt::TokioIo::new(stream);
    let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
    // Clients break connections off; the tests look at what the client says of it.
    let _ = builder.serve_connection(io, service).await;
}

pub(crate) fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

/// A status with headers and a body of known length.
pub(crate) fn reply(code: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut builder = Response::builder().status(code);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

/// What a body does after its bytes.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// The connection breaks.
    Break,
    /// Nothing comes any more.
    Stall,
    /// It ends well.
    End,
}

/// A body that gives these bytes, then does something.
pub(crate) fn body(bytes: Bytes, then: Then) -> Body {
    let first: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(16 * 1024).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let first = futures::stream::iter(first);
    match then {
        Then::End => Body::from_stream(first),
        Then::Stall => Body::from_stream(first.chain(futures::stream::pending())),
        Then::Break => {
            let broken = futures::stream::once(async {
                // A body that has to wait makes the server send what it has.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut by the test"))
            });
            Body::from_stream(first.chain(broken))
        }
    }
}

/// A correct answer to a GET of a blob, with or without a range, whose body does something after `most` bytes.
pub(crate) fn serve_blob(seen: &Seen, bytes: &Bytes, most: usize, then: Then) -> Response {
    let (start, end) = seen.range().map_or((0, None), |r| r);
    let end = end.unwrap_or(bytes.len()).min(bytes.len());
    let part = bytes.slice(start..end);
    let length = part.len().to_string();
    let (sent, then) = if part.len() > most { (part.slice(..most), then) } else { (part, Then::End) };
    match seen.range() {
        Some(_) => {
            let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
            reply(206, &[("content-length", &length), ("content-range", &range)], body(sent, then))
        }
        None => reply(200, &[("content-length", &length)], body(sent, then)),
    }
}

/// A registry of one blob and one manifest under any name, both correct.
pub(crate) fn good(seen: &Seen, document: &orlop_oci::Document, blob: &Bytes) -> Response {
    if seen.path().contains("/manifests/") {
        let digest = document.digest().to_string();
        let headers = [("content-type", document.media_type()), ("docker-content-digest", digest.as_str())];
        return reply(200, &headers, document.raw().clone());
    }
    if seen.path().contains("/blobs/") {
        return serve_blob(seen, blob, usize::MAX, Then::End);
    }
    status(404)
}
