//! The content store: immutable blobs named by their digest, and the writes in progress ("ingests") that become blobs.
//!
//! ```text
//! ROOT/content/
//!   blobs/<algorithm>/<hex>          immutable, mode 0444; the bytes hash to the name
//!   ingest/<sha256 of ref>/          one write in progress
//!     data                           the bytes so far
//!     ref, startedat, updatedat, total, expected
//! ```
//!
//! # Roles
//! [`Provider`] reads, [`Ingester`] opens writers, [`IngestManager`] looks after writes in progress, [`Manager`] lists
//! and deletes. A backend that plays all four is a [`Store`]. Names, namespaces, labels and garbage collection are not
//! here: `metadata` lays them over a store.
//!
//! # Invariants
//! - A blob is visible if and only if its bytes were hashed by this program and matched its name, and its size the
//!   size that was asked for.
//! - Durability order of a commit: data, fsync, rename, fsync of the directory; the caller writes metadata after that.
//! - One writer per `ref` at a time, over all processes ([`Error::Locked`]); any number of refs may write one digest,
//!   and the last to commit learns [`Error::AlreadyExists`].
//! - Only [`Manager::delete`] removes a blob; only `metadata`'s collector calls it. A blob that is not what its name says may
//!   be set aside ([`Quarantine`]); sound ones never are.
//!
//! # Concurrency
//! Everything is `Send + Sync`; methods may be called from any task. Local files block a thread of the runtime's
//! blocking pool, never a worker.

mod blocking;
mod error;
mod examine;
mod local;
mod memory;
#[cfg(feature = "suite")]
pub mod suite;
mod trouble;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
pub use blocking::{BlockingReader, BlockingWriter};
use bytes::Bytes;
pub use error::{Error, Result};
pub use examine::{Flaw, Pace, examine};
use jiff::Timestamp;
pub use local::LocalStore;
pub use memory::{MemoryStore, verify};
use orlop_oci::Digest;
pub use trouble::Trouble;

/// A blob's name, size and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// When it was committed.
    pub created_at: Timestamp,
    /// When its metadata last changed.
    pub updated_at: Timestamp,
}

/// A write in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The name the writer gave it.
    pub reference: String,
    /// Bytes written so far.
    pub offset: u64,
    /// Bytes expected in all; 0 if not known.
    pub total: u64,
    /// The digest expected, if known.
    pub expected: Option<Digest>,
    /// When it was opened first.
    pub started_at: Timestamp,
    /// When it was last written to.
    pub updated_at: Timestamp,
}

impl Status {
    /// Whether who opens a write with this total means something else than what is begun. Zero says nothing.
    pub const fn is_of_another_total(&self, total: u64) -> bool {
        self.total != 0 && total != 0 && self.total != total
    }
}

/// What a writer is opened for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngestOptions {
    /// Names this write; opening it again resumes.
    pub reference: String,
    /// Bytes expected in all; 0 if not known.
    pub total: u64,
    /// The digest expected. If it is there already, opening fails with [`Error::AlreadyExists`].
    pub expected: Option<Digest>,
}

/// Reads one blob by ranges.
#[async_trait]
pub trait BlobReader: Send + Sync {
    /// Bytes in all.
    fn size(&self) -> u64;

    /// Up to `length` bytes from `offset`; shorter only at the end of the blob.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// A URL from which anybody may read the blob for some minutes, where the backend would rather have it read there.
    async fn redirect(&self) -> Result<Option<String>> {
        Ok(None)
    }
}

/// Gives blobs to read.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Opens a blob. A reader that is open goes on working when the blob is deleted.
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>>;

    /// Name, size and times of a blob.
    async fn info(&self, digest: &Digest) -> Result<Info>;
}

/// Opens writers.
#[async_trait]
pub trait Ingester: Send + Sync {
    /// Opens a new write or resumes one; the bytes that are there are hashed again.
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>>;
}

/// Writes one blob. Dropping it keeps what was written, for resume, and frees the ref.
#[async_trait]
pub trait Writer: Send {
    /// What was written so far.
    fn status(&self) -> Status;

    /// Appends at the current offset.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Drops everything from `size` on. Only 0 and the current offset are sure to be supported.
    async fn truncate(&mut self, size: u64) -> Result<()>;

    /// Verifies and makes the blob visible.
    ///
    /// Where `size` is 0 or `expected` `None`, what the writer was opened with is checked instead; what was not given
    /// there either is not checked. The algorithm is that of the digest expected, else SHA-256. On a mismatch the ingest stays, so that the writer may go on
    /// or abort. [`Error::AlreadyExists`] frees the ref and the bytes: the blob is there.
    ///
    /// # Durability
    /// When this returns `Ok`, the blob survives a power cut.
    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest>;

    /// The digest of the bytes so far.
    fn digest(&self) -> Digest;

    /// Lets any process go on with this write, where several share a store: what was written survives this process, the ref
    /// is free, and this writer is finished. `false` where a ref belongs to one machine: nothing was done.
    async fn release(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Reads what was written, while more is, where the backend can. Reading where nothing was written yet gives nothing; what was
    /// written can be read after the commit too, and after an abort.
    fn written(&self) -> Option<Arc<dyn BlobReader>> {
        None
    }

    /// The ability to take a file's bytes over, where the backend has it.
    fn taking(&mut self) -> Option<&mut dyn Taking> {
        None
    }
}

/// How bytes came to be in a second place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// How many, all of which were hashed.
    pub size: u64,
    /// Whether the second place is a file of its own whose extents are shared (a reflink), and not a second name of one file.
    pub cloned: bool,
}

/// Takes over bytes that lie in a file of the same file system, without copying any.
#[async_trait]
pub trait Taking: Send {
    /// Makes the bytes of `file` those of this write, instead of all that was written. They are hashed now; [`Writer::commit`]
    /// compares. Where the file system can, the blob gets extents of its own that are shared; elsewhere the file gets a second
    /// name, and nothing of it is ever changed here: neither bytes nor mode nor times.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no regular file. At the commit [`Error::Io`]: `NotFound` if the file has lost its last name
    /// meanwhile, `CrossesDevices` if it is on another file system or mount.
    async fn take(&mut self, file: File) -> Result<Shared>;
}

/// Gives blobs a second place, without copying any byte.
#[async_trait]
pub trait Linking: Send + Sync {
    /// Hashes a blob and lets its bytes be at `to` too, in the way of [`Taking::take`]. The directory is there.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if something is at `to`; [`Error::Damaged`].
    ///
    /// # Durability
    /// When this returns `Ok`, `to` survives a power cut. It never has a part of the bytes.
    async fn give(&self, digest: &Digest, to: &Path) -> Result<Shared>;

    /// The file of a blob, to be asked what it shares; never to be written.
    async fn file(&self, digest: &Digest) -> Result<File>;
}

/// Looks after writes in progress.
#[async_trait]
pub trait IngestManager: Send + Sync {
    /// One write in progress.
    async fn status(&self, reference: &str) -> Result<Status>;

    /// All writes in progress.
    async fn statuses(&self) -> Result<Vec<Status>>;

    /// Drops a write and its bytes. A writer that is still open fails at its next call.
    async fn abort(&self, reference: &str) -> Result<()>;

    /// Removes what killed processes left of writes that nobody can name any more, if it was last touched before
    /// `limit`. Returns how many.
    async fn remove_debris(&self, limit: Timestamp) -> Result<usize> {
        let _ = limit;
        Ok(0)
    }
}

/// Lists and deletes blobs.
#[async_trait]
pub trait Manager: Send + Sync {
    /// Every blob that is there, in no order.
    async fn list(&self) -> Result<Vec<Info>>;

    /// Deletes a blob; only the garbage collector may. It need not be durable: a blob may be back after a power cut.
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// The ability to set blobs aside instead of deleting them, where the backend has it.
    fn trash(&self) -> Option<&dyn Trash> {
        None
    }

    /// The ability to set damaged blobs aside, where the backend has it.
    fn quarantine(&self) -> Option<&dyn Quarantine> {
        None
    }

    /// The ability to share bytes with other places, where the backend has it.
    fn linking(&self) -> Option<&dyn Linking> {
        None
    }
}

/// Takes damaged blobs out of the store, so that sound bytes can take their place.
#[async_trait]
pub trait Quarantine: Send + Sync {
    /// Reads a blob anew. If it is sound nothing happens, and there is no flaw; else whatever is in its place goes into
    /// `bin/blobs/<algorithm>/<hex>`, and the store has no such blob any more. A blob that somebody writes meanwhile stays.
    ///
    /// # Durability
    /// When this returns a flaw, the blob is out of the store after a power cut too.
    async fn set_aside(&self, digest: &Digest, size: Option<u64>, bin: &Path) -> Result<Option<Flaw>>;
}

/// Sets blobs aside and brings them back. A *bin* is one place of deleted blobs, named by a directory of the same file
/// system; a backend without files uses the path as a mere name.
///
/// Both methods may be repeated after a crash: what is done already is not an error.
#[async_trait]
pub trait Trash: Send + Sync {
    /// Moves a blob into `bin/blobs/<algorithm>/<hex>`; returns its bytes. Only the garbage collector may.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the blob is neither in the store nor in the bin.
    async fn discard(&self, digest: &Digest, bin: &Path) -> Result<u64>;

    /// Moves a blob back; returns its bytes. If the store has it again, the copy in the bin goes.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the blob is neither in the bin nor in the store.
    ///
    /// # Durability
    /// When this returns `Ok`, the blob survives a power cut.
    async fn restore(&self, digest: &Digest, bin: &Path) -> Result<u64>;
}

/// Everything a backend must do.
pub trait Store: Provider + Ingester + IngestManager + Manager {}

impl<T: Provider + Ingester + IngestManager + Manager> Store for T {}

/// Aborts every write that was last written to before `limit`, and returns their refs.
pub async fn abort_stale(manager: &(impl IngestManager + ?Sized), limit: Timestamp) -> Result<Vec<String>> {
    let mut aborted = Vec::new();
    for status in manager.statuses().await? {
        if status.updated_at >= limit {
            continue;
        }
        match manager.abort(&status.reference).await {
            Ok(()) => aborted.push(status.reference),
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(aborted)
}

/// Labels of any object.
pub type Labels = BTreeMap<String, String>;

/// Reads a whole blob of at most `limit` bytes, and checks that its bytes hash to its name.
pub async fn read_verified(provider: &(impl Provider + ?Sized), digest: &Digest, limit: u64) -> Result<Bytes> {
    let reader = provider.open(digest).await?;
    if reader.size() > limit {
        return Err(Error::TooLarge { digest: digest.clone(), size: reader.size(), limit });
    }
    let mut bytes = Vec::with_capacity(reader.size() as usize);
    while (bytes.len() as u64) < reader.size() {
        let part = reader.read_at(bytes.len() as u64, 1 << 20).await?;
        if part.is_empty() {
            break;
        }
        bytes.extend_from_slice(&part);
    }
    let mut digester = orlop_oci::Digester::new(digest.algorithm());
    digester.update(&bytes);
    let actual = digester.finish();
    if actual != *digest {
        return Err(Error::Damaged { digest: digest.clone(), actual });
    }
    Ok(bytes.into())
}
