//! Whether a blob is still what it was when it was verified.

use std::fmt;

use async_trait::async_trait;
use orlop_oci::{Digest, Digester};

use crate::{Error, Provider, Result};

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// Why a blob is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing is in its place, or nothing that has bytes.
    Missing,
    /// It has another size than it had.
    Size {
        /// The bytes it had.
        expected: u64,
        /// The bytes it has.
        actual: u64,
    },
    /// Its bytes are others.
    Bytes {
        /// What they hash to.
        actual: Digest,
    },
    /// The medium does not give its bytes.
    Unreadable {
        /// What the system says.
        reason: String,
    },
}

impl Flaw {
    /// `missing`, `size`, `damaged`, `unreadable`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Size { .. } => "size",
            Self::Bytes { .. } => "damaged",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("the file is gone"),
            Self::Size { expected, actual } => write!(f, "expected {expected} bytes, found {actual}"),
            Self::Bytes { actual } => write!(f, "its bytes hash to {actual}"),
            Self::Unreadable { reason } => write!(f, "it cannot be read: {reason}"),
        }
    }
}

/// Holds a reader back that has the time.
#[async_trait]
pub trait Pace: Send + Sync {
    /// So many bytes were read. Returns when more may be.
    async fn read(&self, bytes: u64);
}

/// As fast as it goes.
#[async_trait]
impl Pace for () {
    async fn read(&self, _bytes: u64) {}
}

/// Reads a whole blob. `size` is what it had, if that is known.
///
/// # Errors
/// What says nothing about the blob, such as a lack of permission.
pub async fn examine(
    provider: &(impl Provider + ?Sized),
    digest: &Digest,
    size: Option<u64>,
    pace: &dyn Pace,
) -> Result<Option<Flaw>> {
    let reader = match provider.open(digest).await {
        Ok(reader) => reader,
        Err(Error::NotFound { .. }) => return Ok(Some(Flaw::Missing)),
        Err(error) => return unreadable(error).map(Some),
    };
    let size = size.unwrap_or(reader.size());
    if reader.size() != size {
        return Ok(Some(Flaw::Size { expected: size, actual: reader.size() }));
    }
    let mut digester = Digester::new(digest.algorithm());
    let mut offset = 0;
    while offset < size {
        let piece = match reader.read_at(offset, PIECE).await {
            Ok(piece) if piece.is_empty() => return Ok(Some(Flaw::Size { expected: size, actual: offset })),
            Ok(piece) => piece,
            Err(error) => return unreadable(error).map(Some),
        };
        offset += piece.len() as u64;
        // A megabyte takes under a millisecond; worth no thread of its own.
        digester.update(&piece);
        pace.read(piece.len() as u64).await;
    }
    Ok(compare(digest, digester))
}

/// The flaw that a failure to read is, if the medium is to blame.
pub(crate) fn unreadable(error: Error) -> Result<Flaw> {
    if error.is_bad_medium() { Ok(Flaw::Unreadable { reason: error.to_string() }) } else { Err(error) }
}

pub(crate) fn compare(digest: &Digest, digester: Digester) -> Option<Flaw> {
    let actual = digester.finish();
    (actual != *digest).then_some(Flaw::Bytes { actual })
}
