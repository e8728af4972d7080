//! What can go wrong with a registry, and what it said.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use orlop_oci::{Digest, DocumentError};

/// Any error, as a cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Result of a registry operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the registry did not give or take what was asked.
///
/// `what` names the thing (a reference, a digest, an upload), `host` who was asked, `reason` what the host said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not have it.
    #[error("{what} not found at {host}")]
    NotFound {
        /// Reference or digest.
        what: String,
        /// Who was asked; several hosts are joined by a comma.
        host: String,
    },
    /// 401: no credentials, or wrong ones.
    #[error(
        "{host} refuses {what} without valid credentials ({reason}); give a user and password, or log in so that \
         the credentials are in config.json"
    )]
    Unauthorized {
        /// Reference or digest.
        what: String,
        /// Who was asked.
        host: String,
        /// What it said.
        reason: String,
    },
    /// 403: the credentials do not reach this far.
    #[error("{host} does not allow {what}: {reason}")]
    Denied {
        /// Reference or digest.
        what: String,
        /// Who was asked.
        host: String,
        /// What it said.
        reason: String,
    },
    /// 429, or the code TOOMANYREQUESTS.
    #[error("{host} limits the rate of requests ({what}): {reason}{}", retry_hint(*retry_after))]
    TooManyRequests {
        /// Reference or digest.
        what: String,
        /// Who was asked.
        host: String,
        /// What it said.
        reason: String,
        /// How long it wants us to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status that was not expected.
    #[error("{host} answered {what} with status {status}: {reason}")]
    Status {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said.
        reason: String,
        /// How long it wants us to wait.
        retry_after: Option<Duration>,
    },
    /// The host's name has no address.
    #[error("{host}: its name cannot be resolved: {source}")]
    Dns {
        /// Who was to be asked.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens there, or no way leads there.
    #[error("{host}: cannot connect: {source}")]
    Connect {
        /// Who was to be asked.
        host: String,
        /// What the system said.
        source: BoxError,
    },
    /// The TLS handshake failed.
    #[error("{host}: TLS failed: {source}; {advice}")]
    Tls {
        /// Who was to be asked.
        host: String,
        /// What the TLS library found.
        source: rustls::Error,
        /// What to do.
        advice: &'static str,
    },
    /// Too long without an answer or without a byte.
    #[error("{host}: no answer to {what} within {after:?}")]
    Timeout {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke.
    #[error("{host}: the connection broke at {what}: {source}")]
    Broken {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What the HTTP library said.
        source: BoxError,
    },
    /// This mirror failed a moment ago and was not asked again.
    #[error("{host}: not asked, since it could not be reached a moment ago")]
    Skipped {
        /// Who was left out.
        host: String,
    },
    /// The answer breaks the distribution specification.
    #[error("{host} gave a wrong answer to {what}: expected {expected}, found {found:?}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What the specification says.
        expected: &'static str,
        /// What came.
        found: String,
    },
    /// The bytes do not hash to what was asked for.
    #[error("{what} from {host}: digest mismatch: expected {expected}, found {actual}")]
    DigestMismatch {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{what} from {host}: size mismatch: expected {expected} bytes, found {actual}")]
    SizeMismatch {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What the descriptor says.
        expected: u64,
        /// What came, at least.
        actual: u64,
    },
    /// More bytes than anything of this kind may have.
    #[error("{what} from {host} has more than the {limit} bytes allowed")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// The bound.
        limit: u64,
    },
    /// Not a manifest or index.
    #[error("{what} from {host}: {source}")]
    Document {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {what} to {location:?}, which is not followed: {reason}")]
    Redirect {
        /// What was asked for.
        what: String,
        /// Who redirected.
        host: String,
        /// Where to, without its query.
        location: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A configuration file cannot be used.
    #[error("{}: {reason}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: ConfigError,
    },
    /// Whoever was to be asked for credentials could not be.
    #[error("credentials for {host}: {source}")]
    CredentialSource {
        /// Whose credentials were asked for.
        host: String,
        /// What went wrong.
        source: BoxError,
    },
    /// A credential helper failed.
    #[error("credential helper docker-credential-{helper} for {host}: {reason}")]
    CredentialHelper {
        /// Its name.
        helper: String,
        /// Whose credentials were asked for.
        host: String,
        /// What it said.
        reason: String,
    },
    /// No configured host may do this.
    #[error("no host configured for {registry} may {capability}; add {capability:?} to its capabilities in hosts.toml")]
    NoHost {
        /// The reference's host.
        registry: String,
        /// `pull`, `resolve` or `push`.
        capability: &'static str,
    },
    /// An image ID names nothing that a registry knows.
    #[error("{0} is an image ID, which no registry can look up; use name:tag or name@digest")]
    ImageId(String),
    /// Every host was asked and none gave it.
    #[error("{what}: no host gave it: {}", join(errors))]
    Hosts {
        /// Reference or digest.
        what: String,
        /// What each of them said.
        errors: Vec<Error>,
    },
    /// The bytes to be pushed could not be read.
    #[error("reading what is to be pushed: {0}")]
    Source(#[source] BoxError),
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not TOML.
    #[error("not valid TOML: {0}")]
    Toml(#[from] toml::de::Error),
    /// It is not JSON.
    #[error("not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A key has a value it cannot have.
    #[error("{key}: expected {expected}, found {found}")]
    Value {
        /// Where.
        key: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// There is no certificate or no key in it.
    #[error("no {0} in PEM form in it")]
    Pem(&'static str),
    /// TLS does not take it.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

impl Error {
    /// An error of the reader that feeds a push.
    pub fn source(error: impl Into<BoxError>) -> Self {
        Self::Source(error.into())
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::TooManyRequests { .. }
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. }
            | Self::Skipped { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            Self::Hosts { errors, .. } => errors.last().is_some_and(Self::is_temporary),
            _ => false,
        }
    }

    /// The error that counts: of several hosts' the last one's, since that is the registry itself and the others are
    /// mirrors, whose failures change nothing.
    pub fn principal(&self) -> &Self {
        match self {
            Self::Hosts { errors, .. } => errors.last().unwrap_or(self),
            _ => self,
        }
    }

    /// Whether the registry, and not only a mirror, says that it does not have it.
    pub fn is_not_found(&self) -> bool {
        matches!(self.principal(), Self::NotFound { .. })
    }

    /// How long the host wants us to wait.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether this host could not be reached at all, so that asking it again soon would only cost time.
    pub(crate) const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Dns { .. } | Self::Connect { .. } | Self::Timeout { .. } | Self::Tls { .. })
    }

    /// One error for what several hosts said.
    pub(crate) fn of_hosts(what: &str, mut errors: Vec<Self>) -> Self {
        if errors.len() == 1 {
            return errors.remove(0);
        }
        let missing: Option<Vec<&str>> = errors
            .iter()
            .map(|e| match e {
                Self::NotFound { host, .. } => Some(host.as_str()),
                _ => None,
            })
            .collect();
        match missing {
            Some(hosts) if !hosts.is_empty() => Self::NotFound { what: what.to_owned(), host: hosts.join(", ") },
            _ => Self::Hosts { what: what.to_owned(), errors },
        }
    }
}

fn retry_hint(after: Option<Duration>) -> String {
    after.map(|d| format!("; try again in {} s", d.as_secs().max(1))).unwrap_or_default()
}

fn join(errors: &[Error]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
