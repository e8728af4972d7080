//! What can go wrong with the database and the bucket.

use orlop_content as content;
use orlop_oci::Digest;
use orlop_registry::IndexError;
use tokio_postgres::error::SqlState;

/// Result of an operation on what gateways share.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on what gateways share failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection of the pool became free, or none could be made.
    #[error("the database is not available: {0}")]
    Pool(String),
    /// PostgreSQL said no.
    #[error("the database: {}", explained(.0))]
    Database(#[from] tokio_postgres::Error),
    /// The bucket said no, or nothing.
    #[error("the bucket: {0}")]
    Bucket(#[from] object_store::Error),
    /// An option that makes no sense.
    #[error("{option}: {why}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The database was made by a later version.
    #[error(
        "the database has schema {found}, this version of Orlop knows schemas up to {known}: use the version that made it"
    )]
    Schema {
        /// What it has.
        found: i32,
        /// What is known.
        known: i32,
    },
    /// The bucket belongs to another database.
    #[error(
        "the bucket belongs to the database with the identity {bucket}, this one is {database}: name the right pair; after a \
         database was lost for good, delete the object {marker:?} to let another have what is left"
    )]
    Foreign {
        /// The identity in the bucket.
        bucket: String,
        /// That of the database.
        database: String,
        /// Where the bucket says so.
        marker: String,
    },
    /// The system's certificate authorities, or a file of them, cannot be used.
    #[error("certificate authorities: {0}")]
    Authorities(String),
    /// A row says what no version of Orlop writes.
    #[error("the database has {what} that makes no sense: {value:?}")]
    Nonsense {
        /// What it is.
        what: &'static str,
        /// What is there.
        value: String,
    },
    /// A blob of the bucket is not what its row says.
    #[error("the object {key} of blob {digest} is damaged: {why}")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// PostgreSQL's own message, which the type alone does not show.
fn explained(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(inner) => format!("{}: {} ({})", inner.severity(), inner.message(), inner.code().code()),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

impl Error {
    pub(crate) fn code(&self) -> Option<&SqlState> {
        match self {
            Self::Database(error) => error.code(),
            _ => None,
        }
    }

    /// Whether other transactions were in the way and the same one may be tried again at once.
    pub(crate) fn is_conflict(&self) -> bool {
        let conflicts =
            [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::UNIQUE_VIOLATION];
        self.code().is_some_and(|code| conflicts.contains(code))
    }

    /// Whether the connection was lost before the statement was acknowledged.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Database(error) if error.is_closed())
    }

    /// Whether the same call may succeed later without anybody changing anything here.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Pool(_) => true,
            Self::Database(error) => match error.code() {
                None => is_of_the_network(error),
                Some(code) => is_away(code) || self.is_conflict(),
            },
            Self::Bucket(error) => !matches!(
                error,
                object_store::Error::NotFound { .. }
                    | object_store::Error::InvalidPath { .. }
                    | object_store::Error::NotSupported { .. }
                    | object_store::Error::NotImplemented { .. }
                    | object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
                    | object_store::Error::UnknownConfigurationKey { .. }
            ),
            _ => false,
        }
    }

    /// Which of the two is away.
    fn what(&self) -> &'static str {
        if matches!(self, Self::Bucket(_)) { "the bucket" } else { "the database" }
    }
}

/// Without a code it is the connection that failed, or a value that does not fit. tokio-postgres tells them apart by text alone.
fn is_of_the_network(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    let is_io = source.is_some_and(|source| source.is::<std::io::Error>());
    let text = error.to_string();
    error.is_closed() || is_io || text.contains("connecting to server") || text.contains("timeout waiting for server")
}

/// Codes of a server that goes, comes, is full, was asked for too long, or is a standby just now (PostgreSQL, appendix A).
fn is_away(code: &SqlState) -> bool {
    let class = &code.code()[..2];
    matches!(class, "08" | "53" | "57")
        || *code == SqlState::LOCK_NOT_AVAILABLE
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
}

impl From<deadpool_postgres::PoolError> for Error {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => Self::Database(error),
            other => Self::Pool(other.to_string()),
        }
    }
}

impl From<Error> for content::Error {
    fn from(error: Error) -> Self {
        if error.is_temporary() {
            return Self::Unavailable { what: error.what(), source: Box::new(error) };
        }
        Self::Metadata(Box::new(error))
    }
}

impl From<Error> for IndexError {
    fn from(error: Error) -> Self {
        if error.is_temporary() { Self::Unavailable(Box::new(error)) } else { Self::Backend(Box::new(error)) }
    }
}
