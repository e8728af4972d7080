//! What a client is given: paths, credentials, times and sizes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;

use crate::error::BoxError;
use crate::providers::Providers;
use crate::rates::Rates;

/// What proves who we are to a registry.
pub use crate::credentials::Credential;

/// Somebody who can be asked for credentials.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// The credential for a host; `None` if there is none. Asked for mirrors too, by their own names.
    async fn credential(&self, host: &str) -> Result<Option<Credential>, BoxError>;
}

/// A secret that somebody brought for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Login {
    /// The secret.
    pub credential: Credential,
    /// The host it is for, as a host name or a URL, mirrors included; `None`: the registry that the reference names, as
    /// for [`ClientOptions::credentials`].
    pub server: Option<String>,
}

/// How to reach registries.
#[derive(Clone, Default)]
pub struct ClientOptions {
    /// containerd's `certs.d` directories, first match wins (CRI's `config_path` is a colon-separated list).
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json`, for credentials and credential helpers.
    pub docker_config: Option<PathBuf>,
    /// Programs that are asked for credentials of every host, mirrors included, before `docker_config`.
    pub providers: Providers,
    /// User and password for every registry, instead of what the files say. Mirrors, which are other hosts than the
    /// one the reference names, never see them: theirs come from `providers` and `docker_config`.
    pub credentials: Option<(String, String)>,
    /// Asked for credentials of every host, instead of `login`, `credentials`, `providers` and `docker_config`; answers count for a
    /// minute.
    pub source: Option<Arc<dyn CredentialSource>>,
    /// Sent with every request to the registry and its mirrors, beside those of hosts.toml.
    pub headers: HeaderMap,
    /// A secret in any form, for one host or for every registry; it goes before `credentials`.
    pub login: Option<Login>,
    /// HTTP instead of HTTPS where no hosts.toml says otherwise. Loopback hosts fall back to HTTP by themselves.
    pub plain_http: bool,
    /// Tells the registry and its mirrors which trace their requests belong to.
    pub trace: Option<TraceHeaders>,
    /// Tells the registry and its mirrors through which mirrors the requests come, by commas; empty: nobody's.
    pub via: String,
    /// Learns what hosts say of their limits on requests.
    pub rates: Rates,
}

/// Adds headers that let a host go on with the trace of the current span.
#[derive(Clone)]
pub struct TraceHeaders(Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl TraceHeaders {
    /// `add` is called within the span of each request.
    pub fn new(add: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(add))
    }

    pub(crate) fn add(&self, headers: &mut HeaderMap) {
        (self.0)(headers);
    }
}

impl ClientOptions {
    /// Whether nobody is asked for credentials that are not brought: such a client learns no secret, and may be kept for all.
    pub fn asks_nobody(&self) -> bool {
        self.docker_config.is_none() && self.providers.is_empty() && self.source.is_none()
    }

    /// What the operation brings itself.
    pub(crate) fn explicit(&self) -> Option<Login> {
        let plain = self.credentials.clone();
        let plain =
            plain.map(|(user, password)| Login { credential: Credential::Basic { user, password }, server: None });
        self.login.clone().or(plain)
    }
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("hosts_dirs", &self.hosts_dirs)
            .field("docker_config", &self.docker_config)
            .field("providers", &self.providers)
            .field("credentials", &self.credentials.as_ref().map(|_| "…"))
            .field("source", &self.source.as_ref().map(|_| "…"))
            .field("headers", &self.headers.keys())
            .field("login", &self.login)
            .field("plain_http", &self.plain_http)
            .field("trace", &self.trace.is_some())
            .finish_non_exhaustive()
    }
}

/// Times, counts and sizes of the client; the defaults are right for nodes and registries anywhere.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Attempts at one request before its error is given back.
    pub attempts: u32,
    /// The longest pause before the second attempt; it doubles from one to the next.
    pub backoff: Duration,
    /// No pause is longer.
    pub backoff_limit: Duration,
    /// A host that asks for more patience (`Retry-After`) is given up at once.
    pub retry_after_limit: Duration,
    /// How long to try to connect, TLS included.
    pub connect_timeout: Duration,
    /// The same for hosts after which others come: a dead mirror costs no more than this, once in `dead_time`.
    pub mirror_connect_timeout: Duration,
    /// How long to wait for the head of an answer.
    pub response_timeout: Duration,
    /// The same for hosts after which others come: a mirror may have to fetch what it is asked for.
    pub mirror_response_timeout: Duration,
    /// A connection on which no byte has moved for so long is given up.
    pub idle_timeout: Duration,
    /// A mirror that could not be reached is not asked again for so long.
    pub dead_time: Duration,
    /// Unused connections are closed after this.
    pub pool_idle_timeout: Duration,
    /// Blobs with at least this many bytes to come may be fetched by several ranges at once.
    pub parallel_from: u64,
    /// That is done only if a sender gives fewer bytes a second than this by one connection: a fast one would lose by it.
    pub parallel_below: u64,
    /// How many bytes are read to find that out.
    pub probe_bytes: u64,
    /// Bytes in one range.
    pub range_bytes: u64,
    /// Ranges at once; `ranges * range_bytes`, and some buffers of the connections, is the memory a blob takes.
    pub ranges: usize,
    /// A range that keeps the reader waiting for so long gets another connection.
    pub slow_range: Duration,
    /// Blobs with more bytes are pushed in chunks of this size, so that a broken connection costs no more than one.
    pub upload_chunk_bytes: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(200),
            backoff_limit: Duration::from_secs(10),
            retry_after_limit: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            mirror_connect_timeout: Duration::from_millis(900),
            response_timeout: Duration::from_secs(30),
            mirror_response_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            dead_time: Duration::from_secs(60),
            pool_idle_timeout: Duration::from_secs(30),
            parallel_from: 32 << 20,
            parallel_below: 64 << 20,
            probe_bytes: 4 << 20,
            range_bytes: 768 << 10,
            ranges: 5,
            slow_range: Duration::from_secs(10),
            upload_chunk_bytes: 64 << 20,
        }
    }
}
