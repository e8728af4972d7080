//! What can go wrong with trees.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a snapshot operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a tree failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer wants to do what no layer may.
    #[error("layer refused: entry {entry:?}: {reason}")]
    Hostile {
        /// The entry's name, lossy.
        entry: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A hard link whose target is in neither its own layer nor one below.
    #[error("layer refused: entry {entry:?} is a hard link to {target:?}, which no layer has")]
    LinkTarget {
        /// The entry's name, lossy.
        entry: String,
        /// What it links to, lossy.
        target: String,
    },
    /// A layer is more than the limits allow.
    #[error("layer refused: more than {limit} {what} (limits.{key} in the configuration)")]
    Limit {
        /// What is bounded.
        what: &'static str,
        /// The bound's name: as in [`crate::apply::Limits`], and in the configuration.
        key: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The compressed stream or the tar is damaged or cut short.
    #[error("layer is damaged: {reason}")]
    Damaged {
        /// Where it broke.
        reason: String,
    },
    /// Whoever hands over the layer's bytes failed.
    #[error("the layer's bytes stopped coming: {source}")]
    Source {
        /// What the reader said.
        source: io::Error,
    },
    /// The kernel or its settings do not allow it.
    #[error("{what} is not possible here: {reason}")]
    Unsupported {
        /// What was tried.
        what: &'static str,
        /// Why not, and what to do.
        reason: String,
    },
    /// A mount that nothing can be made of.
    #[error("cannot be mounted: {reason}")]
    BadMount {
        /// What is wrong with it.
        reason: String,
    },
    /// A mount that somebody else has to make.
    #[error("{reason}")]
    NotMountedHere {
        /// Why, and who.
        reason: String,
    },
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

/// Gives a system error its operation and path.
pub(crate) trait At<T> {
    /// Says what was tried and on what.
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| Error::Io { operation, path: path.as_ref().to_owned(), source: source.into() })
    }
}
