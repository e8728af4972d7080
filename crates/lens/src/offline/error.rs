//! Why a root could not be read at all.

use std::io;
use std::path::{Path, PathBuf};

/// A root could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not a containerd's.
    #[error(
        "{} is not the root of a containerd: expected directories like {} in it{}",
        .path.display(), super::places::METADATA, hint(.inside.as_deref())
    )]
    NotRoot {
        /// What was given.
        path: PathBuf,
        /// A root that is inside it.
        inside: Option<PathBuf>,
    },
    /// A file or directory could not be read.
    #[error("{doing} {}: {source}{}", .path.display(), advice(.source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn hint(inside: Option<&Path>) -> String {
    inside.map(|inside| format!("; did you mean {}?", inside.display())).unwrap_or_default()
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; a containerd's root is readable for root only" } else { "" }
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
