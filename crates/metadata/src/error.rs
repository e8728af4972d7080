//! What can go wrong with metadata.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;
use rusqlite::ffi;

/// What SQLite says when the index of its write-ahead log cannot grow: it calls that an I/O error.
const NO_ROOM: [i32; 1] = [ffi::SQLITE_IOERR_SHMSIZE];

/// Result of a metadata operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// An image record.
    Image,
    /// A blob in a namespace.
    Content,
    /// A write in progress.
    Ingest,
    /// A container.
    Container,
    /// A lease.
    Lease,
    /// Mounts made for a client.
    Mount,
    /// A namespace.
    Namespace,
    /// A snapshot.
    Snapshot,
    /// A snapshot driver.
    Snapshotter,
    /// An entry of the trash.
    Trash,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Content => "content",
            Self::Ingest => "ingest",
            Self::Container => "container",
            Self::Lease => "lease",
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Snapshot => "snapshot",
            Self::Snapshotter => "snapshotter",
            Self::Trash => "trash entry",
        })
    }
}

/// Why a metadata operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such object.
    #[error("{kind} {name:?}: not found")]
    NotFound {
        /// What it would be.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("{kind} {name:?}: already exists")]
    AlreadyExists {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        name: String,
    },
    /// Its state does not allow that.
    #[error("{kind} {name:?}: {reason}")]
    FailedPrecondition {
        /// What it is.
        kind: ObjectKind,
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A request that makes no sense.
    #[error("invalid {what}: {reason}")]
    Invalid {
        /// What was given.
        what: &'static str,
        /// Why it is wrong.
        reason: String,
    },
    /// A filter expression that does not parse.
    #[error(transparent)]
    Filter(#[from] crate::FilterError),
    /// The root was written by a newer Orlop.
    #[error("{} has format {found}; this orlop reads up to format {supported}: use a newer orlop", path.display())]
    NewerFormat {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest known.
        supported: i64,
    },
    /// The root may not be written.
    #[error("{} is read-only: {reason}", path.display())]
    ReadOnly {
        /// The root.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk failed beneath the metadata, and this process writes no more.
    #[error("{} takes no changes any more, since its disk failed: {reason}", path.display())]
    Stopped {
        /// The root.
        path: PathBuf,
        /// The error that came first, and when.
        reason: String,
    },
    /// A directory that is something else than a root.
    #[error("{} is no Orlop store: expected a new or empty directory, or one with meta.db; found {found}", path.display())]
    ForeignRoot {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// `meta.db` is gone or empty, and what it knew of is still there.
    #[error("{}: {loss}", path.display())]
    Lost {
        /// The root.
        path: PathBuf,
        /// What is there.
        loss: crate::Loss,
    },
    /// Somebody has the root open.
    #[error("{} is in use by another process, its daemon or a command: expected that nobody has it open", path.display())]
    Opened {
        /// The root.
        path: PathBuf,
    },
    /// Something was committed since the state that the request was made for.
    #[error("the store has changed meanwhile: look at its state and try again")]
    Moved,
    /// There is nothing to undo.
    #[error("the trash is empty: there is no removal to undo")]
    TrashEmpty,
    /// Another process has the root for itself.
    #[error("{} is being rebuilt or moved by another process: try again when it is done", path.display())]
    InUse {
        /// The root.
        path: PathBuf,
    },
    /// The database said no.
    #[error("database: {operation}: {source}")]
    Database {
        /// What was tried.
        operation: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Content said no.
    #[error(transparent)]
    Content(orlop_content::Error),
    /// A tree said no.
    #[error(transparent)]
    Snapshot(#[from] orlop_snapshot::Error),
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

/// What a failure of the database comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No space is left.
    Full,
    /// It may not be written.
    ReadOnly,
    /// Another process holds it for too long.
    Busy,
    /// The file is not a sound database.
    Damaged,
    /// Anything else.
    Other,
}

impl Error {
    /// What a failure of the database comes to, by SQLite's own codes; [`Fault::Other`] for every other error.
    pub fn fault(&self) -> Fault {
        let Self::Database { source, .. } = self else { return Fault::Other };
        match source.sqlite_error() {
            Some(error) if NO_ROOM.contains(&error.extended_code) => Fault::Full,
            Some(error) => match error.code {
                ErrorCode::DiskFull => Fault::Full,
                ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Fault::ReadOnly,
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Fault::Busy,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Fault::Damaged,
                _ => Fault::Other,
            },
            None => Fault::Other,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Self {
        Self::Database { operation: "query", source }
    }
}
