//! What can go wrong with content.

use std::io;
use std::path::PathBuf;

use orlop_oci::Digest;
use rustix::io::Errno;

/// Result of a content operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a content operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such blob or ingest.
    #[error("{kind} {name}: not found")]
    NotFound {
        /// `blob` or `ingest`.
        kind: &'static str,
        /// Digest or ref.
        name: String,
    },
    /// The blob is there already; the ref is free again.
    #[error("blob {0}: already exists")]
    AlreadyExists(Digest),
    /// Somebody else writes this ref now; try again.
    #[error("ingest {0:?} is being written by another writer; try again when it is done")]
    Locked(String),
    /// The write does not continue where the ingest ends.
    #[error("ingest {reference:?}: offset {given} does not continue at {current}")]
    Offset {
        /// Which ingest.
        reference: String,
        /// Where it ends.
        current: u64,
        /// What was asked for.
        given: u64,
    },
    /// The bytes do not hash to what was expected.
    #[error("ingest {reference:?}: digest mismatch: expected {expected}, the bytes hash to {actual}")]
    DigestMismatch {
        /// Which ingest.
        reference: String,
        /// What was asked for.
        expected: Digest,
        /// What was found.
        actual: Digest,
    },
    /// The number of bytes is not what was expected.
    #[error("ingest {reference:?}: size mismatch: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// Which ingest.
        reference: String,
        /// What was asked for.
        expected: u64,
        /// What was found.
        actual: u64,
    },
    /// A stored blob no longer hashes to its name.
    #[error("blob {digest} is damaged: its bytes hash to {actual}; `orlop repair` fetches it again")]
    Damaged {
        /// Its name.
        digest: Digest,
        /// What its bytes hash to.
        actual: Digest,
    },
    /// A stored blob has another size than it had when it was verified.
    #[error("blob {digest} is damaged: expected {expected} bytes, found {actual}; `orlop repair` fetches it again")]
    Resized {
        /// Its name.
        digest: Digest,
        /// The bytes it had.
        expected: u64,
        /// The bytes it has.
        actual: u64,
    },
    /// A document is larger than its reader allows.
    #[error("blob {digest} has {size} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// Its name.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A blob gave fewer bytes than its size.
    #[error(
        "a blob ended before its {size} bytes were read: it was cut short on disk; `orlop repair` fetches it again"
    )]
    Shrunk {
        /// The size it had.
        size: u64,
    },
    /// The runtime is being shut down.
    #[error("the program is shutting down")]
    Stopped,
    /// A request that makes no sense.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// What the bytes or their names are kept in does not answer now; nothing was done that was not said.
    #[error("{what} is not available: {source}")]
    Unavailable {
        /// `the database`, `the bucket`, …
        what: &'static str,
        /// What it said, or what the network did.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The names over the bytes said no: what a store with namespaces or leases has beyond this contract.
    #[error(transparent)]
    Metadata(Box<dyn std::error::Error + Send + Sync>),
    /// The operating system said no.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// No such blob.
    pub fn no_blob(digest: &Digest) -> Self {
        Self::NotFound { kind: "blob", name: digest.to_string() }
    }

    /// No such ingest.
    pub fn no_ingest(reference: &str) -> Self {
        Self::NotFound { kind: "ingest", name: reference.to_owned() }
    }

    /// What the operating system said, if it was the operating system.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::Metadata(inner) => inner.source()?.downcast_ref::<io::Error>().map(io::Error::kind),
            _ => None,
        }
    }

    /// Whether the medium failed: what was asked for was allowed and is there, and cannot be read. Narrower than
    /// [`Trouble::Disk`](crate::Trouble::Disk): a disk that has gone, or a share, has damaged no blob.
    pub fn is_bad_medium(&self) -> bool {
        let Self::Io { source, .. } = self else { return false };
        let known = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::REMOTEIO];
        known.iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Locked(_) | Self::Unavailable { .. })
    }
}
