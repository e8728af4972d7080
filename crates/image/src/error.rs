//! What can go wrong with images.

use std::fmt;
use std::io;
use std::path::PathBuf;

use orlop_content::{self as content, Trouble};
use orlop_metadata::{self as metadata, Fault};
use orlop_oci::{Digest, DocumentError, Platform, PlatformError, ReferenceError};
use orlop_remote as remote;
use orlop_snapshot as snapshot;

use crate::Refusal;

/// Result of an operation on images.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something that an image needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The blob.
    pub digest: Digest,
    /// `manifest`, `index`, `config`, `layer`.
    pub kind: &'static str,
    /// The platform that needs it, if it is known.
    pub platform: Option<Platform>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.digest)?;
        match &self.platform {
            Some(platform) => write!(f, " of {platform}"),
            None => Ok(()),
        }
    }
}

/// What an error comes to, for exit codes and status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense.
    Invalid,
    /// Something named is not there.
    NotFound,
    /// Something is there already, or the state has moved.
    Conflict,
    /// Bytes are not what they should be, or something is missing.
    Verification,
    /// No space is left.
    NoSpace,
    /// Not allowed.
    Permission,
    /// Network, registry or a lock; trying again may help.
    Unavailable,
    /// Not possible here.
    Unsupported,
    /// The disk fails.
    Disk,
    /// No more files can be opened.
    Files,
    /// Anything else.
    Failed,
}

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Not a platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Nothing has that name.
    #[error("no image {0:?} in this namespace; `orlop images --all` lists what is there")]
    NotFound(String),
    /// Several images match.
    #[error("{text:?} is ambiguous: it may be {}; give more digits", candidates.join(", "))]
    Ambiguous {
        /// What was given.
        text: String,
        /// All that match.
        candidates: Vec<String>,
    },
    /// The name points elsewhere.
    #[error("{name} exists and points at {found}, not at {given}; use --force to move it")]
    Exists {
        /// The name.
        name: String,
        /// Where it points.
        found: Digest,
        /// Where it should point.
        given: Digest,
    },
    /// The image is pinned.
    #[error("{0} is pinned: unpin it first, or use --force")]
    Pinned(String),
    /// The state has moved since the plan was made.
    #[error("the plan {given} is stale: executing now would be {current}; look at the plan again")]
    StalePlan {
        /// What was asked for.
        given: String,
        /// What it is now.
        current: String,
    },
    /// An index has no manifest for what is wanted.
    #[error("{name}: no manifest for {wanted}; it has {available}")]
    NoPlatform {
        /// The image.
        name: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// None of what was to be unpacked can be unpacked here.
    #[error("no unpack platforms defined: none of {} can be unpacked here", tried.join(", "))]
    CannotUnpack {
        /// Platforms and snapshotters.
        tried: Vec<String>,
    },
    /// Something of the image is missing.
    #[error("{name} is incomplete: missing {}", list(missing))]
    Incomplete {
        /// The image, or the archive.
        name: String,
        /// What is missing.
        missing: Vec<Missing>,
    },
    /// A document is not what it should be.
    #[error("{digest}: {source}")]
    Document {
        /// Which.
        digest: Digest,
        /// Why.
        source: DocumentError,
    },
    /// Two documents contradict each other, or one breaks a rule.
    #[error("{digest}: {reason}")]
    Inconsistent {
        /// Which.
        digest: Digest,
        /// How.
        reason: String,
    },
    /// Indexes nest too deeply, or one contains itself.
    #[error("{digest}: indexes are nested more than {limit} deep (limits.index_depth in the configuration)")]
    TooDeep {
        /// The index at which it was given up.
        digest: Digest,
        /// The bound.
        limit: usize,
    },
    /// A manifest, index or config that is larger than is allowed.
    #[error(
        "{digest}: {size} bytes, more than the {limit} that a document may have (limits.manifest_bytes in the configuration)"
    )]
    TooLarge {
        /// The document.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// An index names more documents than are sane.
    #[error("{digest}: more than {limit} documents (limits.index_documents in the configuration)")]
    TooMany {
        /// The target.
        digest: Digest,
        /// The bound.
        limit: usize,
    },
    /// A layer unpacks to something else than the config says.
    #[error("layer {layer}: expected diff ID {expected}, it unpacks to {actual}")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// From the config.
        expected: Digest,
        /// Computed.
        actual: Digest,
    },
    /// A layer cannot be unpacked.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Which.
        layer: Digest,
        /// Why.
        source: snapshot::Error,
    },
    /// Policy does not let an image in under a name.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// An archive is not one that is understood.
    #[error("archive refused: {0}")]
    Archive(ArchiveError),
    /// The name is not one that can be used here.
    #[error("{name:?}: {reason}")]
    Name {
        /// What was given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The operation was stopped.
    #[error("interrupted")]
    Interrupted,
    /// Somebody else works on the same thing and does not finish.
    #[error("{what} is being written by another process for more than {seconds} s; try again later")]
    Busy {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// One scrub at a time.
    #[error("this store is being scrubbed already, by its daemon or another command")]
    Scrubbing,
    /// The registry said no.
    #[error(transparent)]
    Remote(#[from] remote::Error),
    /// Metadata said no.
    #[error(transparent)]
    Metadata(metadata::Error),
    /// Content said no.
    #[error(transparent)]
    Content(#[from] content::Error),
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
    /// The reader or writer of an archive said no.
    #[error("{operation}: {source}")]
    Stream {
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It ends too early.
    #[error("it is truncated: {0}")]
    Truncated(String),
    /// Its bytes make no sense.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It does not begin as a tar does.
    #[error("it is no tar archive: expected a tar, plain or packed with gzip or zstd")]
    NoTar,
    /// It is neither an OCI layout nor a docker-archive.
    #[error("it has neither index.json nor manifest.json: it is no OCI layout and no docker-archive")]
    Unknown,
    /// An entry may not be there.
    #[error("entry {name:?}: {reason}")]
    Entry {
        /// The entry.
        name: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// It has no images.
    #[error("it holds no image")]
    Empty,
    /// It has no end.
    #[error("it has more than {limit} entries (limits.archive_entries in the configuration)")]
    Entries {
        /// The bound.
        limit: u64,
    },
    /// A file that another file of the archive needs.
    #[error("{needed_by} names {name:?}, which is not in it")]
    Lacks {
        /// The file.
        name: String,
        /// Who needs it.
        needed_by: &'static str,
    },
    /// A JSON file that does not parse.
    #[error("{name}: {source}")]
    Json {
        /// The file.
        name: String,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
}

impl From<metadata::Error> for Error {
    fn from(error: metadata::Error) -> Self {
        match error {
            metadata::Error::Content(inner) => Self::Content(inner),
            other => Self::Metadata(other),
        }
    }
}

impl Error {
    /// What the error comes to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_)
            | Self::Platform(_)
            | Self::Name { .. }
            | Self::Ambiguous { .. }
            | Self::CannotUnpack { .. } => ErrorKind::Invalid,
            Self::NotFound(_) | Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::Exists { .. } | Self::Pinned(_) | Self::StalePlan { .. } => ErrorKind::Conflict,
            Self::Incomplete { .. }
            | Self::Document { .. }
            | Self::Inconsistent { .. }
            | Self::TooDeep { .. }
            | Self::TooLarge { .. }
            | Self::TooMany { .. }
            | Self::DiffId { .. }
            | Self::Refused(_)
            | Self::Archive(_) => ErrorKind::Verification,
            Self::Layer { source, .. } => snapshot_kind(source),
            Self::Interrupted => ErrorKind::Failed,
            Self::Busy { .. } | Self::Scrubbing => ErrorKind::Unavailable,
            Self::Remote(inner) => remote_kind(inner),
            Self::Metadata(inner) => metadata_kind(inner),
            Self::Content(inner) => content_kind(inner),
            Self::Io { source, .. } | Self::Stream { source, .. } => io_kind(source),
        }
    }
}

fn remote_kind(error: &remote::Error) -> ErrorKind {
    match error.principal() {
        remote::Error::NotFound { .. } => ErrorKind::NotFound,
        remote::Error::Unauthorized { .. } | remote::Error::Denied { .. } => ErrorKind::Permission,
        remote::Error::DigestMismatch { .. }
        | remote::Error::SizeMismatch { .. }
        | remote::Error::TooLarge { .. }
        | remote::Error::Document { .. } => ErrorKind::Verification,
        remote::Error::Config { .. } | remote::Error::ImageId(_) => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    }
}

fn metadata_kind(error: &metadata::Error) -> ErrorKind {
    match error {
        metadata::Error::NotFound { .. } | metadata::Error::TrashEmpty => ErrorKind::NotFound,
        metadata::Error::AlreadyExists { .. } | metadata::Error::FailedPrecondition { .. } => ErrorKind::Conflict,
        metadata::Error::ForeignRoot { .. } | metadata::Error::Opened { .. } => ErrorKind::Conflict,
        metadata::Error::Lost { .. } => ErrorKind::Verification,
        metadata::Error::Invalid { .. } | metadata::Error::Filter(_) => ErrorKind::Invalid,
        metadata::Error::NewerFormat { .. } => ErrorKind::Unsupported,
        metadata::Error::ReadOnly { .. } => ErrorKind::Permission,
        metadata::Error::Stopped { .. } => ErrorKind::Unavailable,
        metadata::Error::Content(inner) => content_kind(inner),
        metadata::Error::Snapshot(inner) => snapshot_kind(inner),
        metadata::Error::Io { source, .. } => io_kind(source),
        metadata::Error::InUse { .. } | metadata::Error::Moved => ErrorKind::Unavailable,
        metadata::Error::Database { .. } => match error.fault() {
            Fault::Full => ErrorKind::NoSpace,
            Fault::ReadOnly => ErrorKind::Permission,
            Fault::Busy => ErrorKind::Unavailable,
            Fault::Damaged => ErrorKind::Verification,
            Fault::Other => ErrorKind::Failed,
        },
        _ => ErrorKind::Failed,
    }
}

fn content_kind(error: &content::Error) -> ErrorKind {
    match error {
        content::Error::NotFound { .. } => ErrorKind::NotFound,
        content::Error::AlreadyExists(_) => ErrorKind::Conflict,
        content::Error::Locked(_) => ErrorKind::Unavailable,
        content::Error::Offset { .. } | content::Error::Invalid(_) => ErrorKind::Invalid,
        content::Error::DigestMismatch { .. }
        | content::Error::SizeMismatch { .. }
        | content::Error::TooLarge { .. }
        | content::Error::Damaged { .. }
        | content::Error::Resized { .. }
        | content::Error::Shrunk { .. } => ErrorKind::Verification,
        content::Error::Io { source, .. } => io_kind(source),
        content::Error::Metadata(inner) => inner.downcast_ref().map_or(ErrorKind::Failed, metadata_kind),
        _ => ErrorKind::Failed,
    }
}

fn snapshot_kind(error: &snapshot::Error) -> ErrorKind {
    match error {
        snapshot::Error::Hostile { .. }
        | snapshot::Error::LinkTarget { .. }
        | snapshot::Error::Limit { .. }
        | snapshot::Error::Damaged { .. } => ErrorKind::Verification,
        snapshot::Error::Unsupported { .. } => ErrorKind::Unsupported,
        snapshot::Error::Io { source, .. } => match io_kind(source) {
            // A file within the store, and nothing that was asked for.
            ErrorKind::NotFound => ErrorKind::Failed,
            kind => kind,
        },
        _ => ErrorKind::Failed,
    }
}

fn io_kind(error: &io::Error) -> ErrorKind {
    match Trouble::of(error) {
        Trouble::Full => ErrorKind::NoSpace,
        Trouble::Denied | Trouble::ReadOnly => ErrorKind::Permission,
        Trouble::Disk => ErrorKind::Disk,
        Trouble::Files => ErrorKind::Files,
        Trouble::Other if error.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
        Trouble::Other => ErrorKind::Failed,
    }
}

fn list(missing: &[Missing]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<String> = missing.iter().take(SHOWN).map(Missing::to_string).collect();
    if missing.len() > SHOWN {
        text.push(format!("and {} more", missing.len() - SHOWN));
    }
    text.join(", ")
}
