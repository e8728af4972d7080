//! One host and the exchanges with it: redirects, authentication, the step down to HTTP, repeated attempts.
//!
//! # Invariants
//! - `Authorization` and the headers of hosts.toml are attached only where the URL has the scheme, host and port of the
//!   endpoint; client certificates likewise, since redirects elsewhere use a client that has none.
//! - A redirect from HTTPS to HTTP is not followed. No cookies are kept.
//! - Which trace a request belongs to is told to the endpoint, not to where it redirects.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tracing::Instrument;
use tracing::field::{Empty, display};
use url::Url;

use crate::answer::Answer;
use crate::auth::{Authenticator, Scheme};
use crate::challenge;
use crate::clients::Clients;
use crate::error::{Error, Result};
use crate::failure;
use crate::hosts::{HostConfig, authority, is_loopback};
use crate::hosts_toml::Capability;
use crate::rates::{Pause, RateLimit, Rates};
use crate::scope::Scopes;
use crate::{ClientOptions, TraceHeaders, Tuning, retry};

/// Redirects in a row that are followed.
const MAX_REDIRECTS: usize = 10;
/// Without credentials, with a token, with a token for more scopes.
const MAX_AUTH_ROUNDS: usize = 3;
/// More remembered scopes than this are forgotten.
const MAX_LEARNED: usize = 1024;

/// Where a request goes.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Below the endpoint's `/v2`, without a slash in front.
    Path(String),
    /// A place the host named: an upload's `Location`, a next page.
    Url(Url),
}

/// What a request carries.
pub(crate) enum Body {
    /// Nothing.
    Empty,
    /// A document.
    Bytes(Bytes),
    /// A stream that can be sent once; taken by the first exchange.
    Once(Mutex<Option<reqwest::Body>>),
}

/// A request, before it is known how it must be authenticated.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) target: Target,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// The repository's path, for credentials and scopes.
    pub(crate) repository: String,
    pub(crate) scopes: Scopes,
    /// What people call it.
    pub(crate) what: String,
}

impl Request {
    /// A request that reads.
    pub(crate) fn new(method: Method, target: Target, repository: &str, what: impl Into<String>) -> Self {
        Self {
            method,
            target,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Body::Empty,
            repository: repository.to_owned(),
            scopes: Scopes::pull(repository),
            what: what.into(),
        }
    }

    /// The same for one that writes.
    pub(crate) fn writing(mut self) -> Self {
        self.scopes = Scopes::push(&self.repository);
        self
    }

    /// With one more parameter.
    pub(crate) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// With one more header; a value that no header can hold is left out.
    pub(crate) fn header(mut self, name: http::HeaderName, value: impl AsRef<str>) -> Self {
        if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
            self.headers.append(name, value);
        }
        self
    }

    /// Whether it is about a manifest: hosts count those apart.
    fn is_manifest(&self) -> bool {
        matches!(&self.target, Target::Path(path) if path.contains("/manifests/"))
    }

    /// With a body.
    pub(crate) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// How often a host is asked before the next one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// There are other hosts: one attempt, and a second where a connection broke.
    Hasty,
    /// Nobody else can be asked: all attempts.
    Patient,
}

/// A host with its connections and what was learned about it.
pub(crate) struct Endpoint {
    config: HostConfig,
    registry: String,
    host: String,
    mirror: bool,
    tuning: Tuning,
    trace: Option<TraceHeaders>,
    rates: Rates,
    pause: Pause,
    clients: Clients,
    plain: AtomicBool,
    scheme: Mutex<Option<Scheme>>,
    learned: Mutex<HashMap<Scopes, Scopes>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("host", &self.host).field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// A host of `registry`; `mirror` says that others come after it.
    pub(crate) fn new(
        config: HostConfig,
        registry: &str,
        mirror: bool,
        tuning: &Tuning,
        options: &ClientOptions,
    ) -> Result<Self> {
        let host = config.authority();
        let connect =
            config.dial_timeout.unwrap_or(if mirror { tuning.mirror_connect_timeout } else { tuning.connect_timeout });
        Ok(Self {
            clients: Clients::new(&config, &host, connect, tuning)?,
            registry: registry.to_owned(),
            mirror,
            tuning: tuning.clone(),
            trace: options.trace.clone(),
            rates: options.rates.clone(),
            pause: Pause::default(),
            plain: AtomicBool::new(false),
            scheme: Mutex::default(),
            learned: Mutex::default(),
            host,
            config,
        })
    }

    /// Host and port as people write them.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Whether others come after it.
    pub(crate) const fn is_mirror(&self) -> bool {
        self.mirror
    }

    /// Whether it is the registry that references name, or stands for it.
    pub(crate) const fn is_upstream(&self) -> bool {
        self.config.upstream
    }

    pub(crate) fn can(&self, capability: Capability) -> bool {
        self.config.capabilities.contains(&capability)
    }

    /// How long to wait for the head of an answer.
    pub(crate) const fn response_timeout(&self) -> Duration {
        if self.mirror { self.tuning.mirror_response_timeout } else { self.tuning.response_timeout }
    }

    pub(crate) fn scheme(&self) -> Option<Scheme> {
        self.scheme.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The URL that paths are below, by HTTP once it is known that the host does not speak TLS.
    pub(crate) fn base(&self) -> Url {
        let mut base = self.config.base.clone();
        if self.plain.load(Ordering::Relaxed) {
            to_plain(&mut base);
        }
        base
    }

    /// Whether a URL is this very host: its name, its port, and its scheme or the one it may be asked by instead.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        let base = &self.config.base;
        let scheme = url.scheme() == base.scheme() || (self.config.http_fallback && url.scheme() == "http");
        scheme && url.host() == base.host() && url.port_or_known_default() == base.port_or_known_default()
    }

    /// A request to any URL, with this host's headers and identity only if it is this host.
    pub(crate) fn request_to(&self, method: Method, url: &Url) -> Result<reqwest::RequestBuilder> {
        if self.is_own(url) {
            return Ok(self.clients.own().request(method, url.clone()).headers(self.config.headers.clone()));
        }
        Ok(self.clients.other(&self.config, is_loopback(&authority(url)))?.request(method, url.clone()))
    }

    /// Asks, and asks again where that may help.
    pub(crate) async fn call(&self, auth: &Authenticator, request: &Request, patience: Patience) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            self.await_pause(request, patience).await?;
            let error = match self.send(auth, request).await {
                Ok(answer) if !is_retryable(answer.status()) => return Ok(answer),
                Ok(answer) => answer.failure(&request.what).await,
                Err(error) => error,
            };
            self.heed(request, &error);
            let once_more = match patience {
                Patience::Patient => true,
                Patience::Hasty => attempt == 1 && matches!(error, Error::Broken { .. }),
            };
            let pause = retry::pause(&self.tuning, attempt, &error).filter(|_| once_more);
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(host = %self.host, attempt, ?pause, %error, "asking again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Leaves the host alone for as long as it wants.
    ///
    /// # Errors
    /// At once, if that is too long.
    async fn await_pause(&self, request: &Request, patience: Patience) -> Result<()> {
        let Some((left, reason)) = self.pause.left(request.is_manifest()) else { return Ok(()) };
        if patience == Patience::Patient && left <= self.tuning.retry_after_limit {
            tokio::time::sleep(left).await;
            return Ok(());
        }
        let (what, host) = (request.what.clone(), self.host.clone());
        Err(Error::TooManyRequests { what, host, reason, retry_after: Some(left) })
    }

    /// Remembers for how long the host wants to be left alone.
    fn heed(&self, request: &Request, error: &Error) {
        if let Error::TooManyRequests { host, reason, retry_after: Some(wait), .. } = error
            && *host == self.host
        {
            self.pause.set(request.is_manifest(), *wait, reason);
        }
    }

    /// Asks once, as far as authentication lets it be once.
    pub(crate) async fn send(&self, auth: &Authenticator, request: &Request) -> Result<Answer> {
        let mut scopes = self.learned(&request.scopes);
        let mut refused: Option<HeaderValue> = None;
        for _ in 1..MAX_AUTH_ROUNDS {
            // Taken first: another request may learn the scheme while this one is on its way.
            let known = self.scheme();
            let header = auth.header(self, &request.repository, &scopes, refused.as_ref()).await?;
            let answer = self.exchange(request, header.as_ref()).await?;
            let Some(wider) = self.challenged(&answer, &request.scopes, &scopes) else { return Ok(answer) };
            let nothing_new = wider == scopes && self.scheme() == known;
            if nothing_new && (header.is_none() || refused.is_some()) {
                return Ok(answer);
            }
            answer.drain().await;
            scopes = wider;
            refused = header;
        }
        let header = auth.header(self, &request.repository, &scopes, refused.as_ref()).await?;
        self.exchange(request, header.as_ref()).await
    }

    /// Asks once with what is known by now, for a body that can be sent only once.
    pub(crate) async fn send_once(&self, auth: &Authenticator, request: &Request) -> Result<Answer> {
        let scopes = self.learned(&request.scopes);
        let header = auth.header(self, &request.repository, &scopes, None).await?;
        self.exchange(request, header.as_ref()).await
    }

    fn learned(&self, scopes: &Scopes) -> Scopes {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        learned.get(scopes).unwrap_or(scopes).clone()
    }

    /// Remembers what the host wants to see; answers with the scopes to come back with, if coming back makes sense.
    fn challenged(&self, answer: &Answer, asked: &Scopes, current: &Scopes) -> Option<Scopes> {
        if !self.is_own(answer.url()) || !matches!(answer.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return None;
        }
        let values = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<_> =
            values.iter().filter_map(|v| v.to_str().ok()).take(16).flat_map(challenge::parse).collect();
        let insufficient = challenges.iter().any(|c| c.get("error") == Some("insufficient_scope"));
        if answer.status() == StatusCode::FORBIDDEN && !insufficient {
            return None;
        }
        let (scheme, scope) = Scheme::choose(&challenges)?;
        *self.scheme.lock().unwrap_or_else(PoisonError::into_inner) = Some(scheme);
        let mut wider = current.clone();
        wider.add(scope.as_deref().unwrap_or_default());
        if wider != *current {
            let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
            if learned.len() >= MAX_LEARNED {
                learned.clear();
            }
            learned.insert(asked.clone(), wider.clone());
        }
        Some(wider)
    }

    /// One request and its redirects.
    async fn exchange(&self, request: &Request, authorization: Option<&HeaderValue>) -> Result<Answer> {
        let mut url = self.url(request);
        let mut hops = 0;
        loop {
            let answer = match self.exchange_at(request, &url, authorization).await? {
                Some(answer) => answer,
                None => {
                    to_plain(&mut url);
                    continue;
                }
            };
            let reading = matches!(request.method, Method::GET | Method::HEAD);
            if !reading || !is_redirect(answer.status()) {
                return Ok(answer);
            }
            url = next_url(&answer, &url, &request.what)?;
            hops += 1;
            if hops > MAX_REDIRECTS {
                return Err(redirect_error(&answer, &url, &request.what, "more than 10 redirects in a row"));
            }
            answer.drain().await;
        }
    }

    /// [`Self::ask_at`] in a span that ends with the head of the answer.
    async fn exchange_at(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Option<Answer>> {
        let (method, host, what) = (request.method.as_str(), authority(url), request.what.as_str());
        let span = tracing::info_span!("request", method, host, what, status = Empty, error = Empty);
        let asked = self.ask_at(request, url, authorization).instrument(span.clone()).await;
        match &asked {
            Ok(Some(answer)) => span.record("status", answer.status().as_u16()),
            Ok(None) => span.record("error", "it does not speak TLS"),
            Err(error) => span.record("error", display(error)),
        };
        asked
    }

    /// One request at one place; `None` if the host turned out not to speak TLS and is to be asked by HTTP.
    async fn ask_at(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Option<Answer>> {
        let own = self.is_own(url);
        let mut builder = self.request_to(request.method.clone(), url)?.headers(request.headers.clone());
        builder = builder.header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = authorization.filter(|_| own) {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(trace) = self.trace.as_ref().filter(|_| own) {
            let mut headers = HeaderMap::new();
            trace.add(&mut headers);
            builder = builder.headers(headers);
        }
        let (host, limit) = (authority(url), self.response_timeout());
        let sent = match &request.body {
            Body::Empty => tokio::time::timeout(limit, builder.send()).await,
            Body::Bytes(bytes) => tokio::time::timeout(limit, builder.body(bytes.clone()).send()).await,
            // Who feeds it watches that it moves.
            Body::Once(body) => {
                let body = body.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(builder.body(body.unwrap_or_default()).send().await)
            }
        };
        let sent = sent.map_err(|_| Error::Timeout { what: request.what.clone(), host: host.clone(), after: limit })?;
        match sent {
            Ok(response) => {
                if let Some(said) = RateLimit::read(response.headers(), jiff::Timestamp::now()).filter(|_| own) {
                    self.rates.note(&host, said);
                }
                Ok(Some(Answer::new(response, url.clone(), self.tuning.idle_timeout)))
            }
            Err(error) if own && self.may_step_down(url, &error) => {
                tracing::debug!(host = %self.host, "does not speak TLS, going on by HTTP");
                self.plain.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => {
                if own {
                    // Perhaps it speaks TLS by now.
                    self.plain.store(false, Ordering::Relaxed);
                }
                Err(failure::of_exchange(error, &host, &request.what, limit))
            }
        }
    }

    fn may_step_down(&self, url: &Url, error: &reqwest::Error) -> bool {
        self.config.http_fallback && url.scheme() == "https" && failure::is_not_tls(error)
    }

    fn url(&self, request: &Request) -> Url {
        let mut url = match &request.target {
            Target::Path(path) => {
                let mut url = self.base();
                let full = format!("{}/{path}", url.path().trim_end_matches('/'));
                url.set_path(&full);
                url
            }
            Target::Url(url) => url.clone(),
        };
        let namespace = matches!(request.target, Target::Path(_)) && self.is_proxy();
        if namespace || !request.query.is_empty() {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(request.query.iter().map(|(name, value)| (*name, value)));
            if namespace {
                pairs.append_pair("ns", &self.registry);
            }
        }
        url
    }

    /// Whether it must be told which registry is meant (containerd's `ns` parameter).
    fn is_proxy(&self) -> bool {
        self.host != self.registry && !(self.registry == "docker.io" && self.host == "registry-1.docker.io")
    }
}

/// The same place by HTTP; the port stays what it was.
fn to_plain(url: &mut Url) {
    let port = url.port_or_known_default();
    // Cannot fail: both are special schemes and the host is there.
    let _ = url.set_scheme("http");
    let _ = url.set_port(port);
}

fn is_retryable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn next_url(answer: &Answer, from: &Url, what: &str) -> Result<Url> {
    let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let next = location.and_then(|l| from.join(l).ok()).ok_or_else(|| Error::Protocol {
        what: what.to_owned(),
        host: authority(from),
        expected: "a redirect with a Location",
        found: location.unwrap_or("none").to_owned(),
    })?;
    if !matches!(next.scheme(), "http" | "https") {
        return Err(redirect_error(answer, &next, what, "only http and https are"));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err(redirect_error(answer, &next, what, "it would leave HTTPS for HTTP"));
    }
    Ok(next)
}

fn redirect_error(answer: &Answer, to: &Url, what: &str, reason: &'static str) -> Error {
    // A signature may stand in the query.
    let mut location = to.clone();
    location.set_query(None);
    Error::Redirect { what: what.to_owned(), host: authority(answer.url()), location: location.to_string(), reason }
}
