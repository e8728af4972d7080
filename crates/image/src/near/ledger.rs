//! Who was asked for each blob lately, what was answered, and how fast.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_oci::{Digest, RepositoryName};

/// Blobs that are remembered: those of some hundred pulls.
const MAX_BLOBS: usize = 4096;

/// Askings of one blob that are remembered: the first ones, for what comes after them is like them.
const MAX_ASKINGS: usize = 32;

/// What kind of place was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Another node.
    Neighbour,
    /// The registry that has it, or a mirror of it.
    Registry,
}

impl Source {
    /// `neighbour` or `registry`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Neighbour => "neighbour",
            Self::Registry => "registry",
        }
    }
}

/// One place that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    /// What kind of place.
    pub source: Source,
    /// Which one; empty if nobody could be asked.
    pub host: String,
    /// What it answered.
    pub said: String,
    /// Bytes that came from there.
    pub bytes: u64,
    /// From the question to the last byte.
    pub took: Duration,
}

/// A blob, and who was asked for it.
#[derive(Debug, Clone)]
pub struct BlobSource {
    /// When it began.
    pub at: Timestamp,
    /// Where its registry has it.
    pub repository: String,
    /// Which blob.
    pub digest: Digest,
    /// Bytes in all, as far as it was known.
    pub size: u64,
    /// Who was asked, in order.
    pub asked: Vec<Asking>,
}

/// The last blobs that anybody was asked for. Cheap to clone; bounded.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    blobs: Arc<Mutex<VecDeque<BlobSource>>>,
}

impl Ledger {
    /// What is known of these digests, newest first; of all if there are none.
    pub fn of(&self, digests: &[Digest]) -> Vec<BlobSource> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = |blob: &&BlobSource| digests.is_empty() || digests.contains(&blob.digest);
        blobs.iter().rev().filter(wanted).cloned().collect()
    }

    /// A blob is asked for from now on; it stands here when the returned value is dropped.
    pub(crate) fn begin(&self, repository: &RepositoryName, digest: &Digest, size: u64) -> Entry {
        let (at, repository, digest) = (Timestamp::now(), repository.to_string(), digest.clone());
        Entry { ledger: self.clone(), blob: Some(BlobSource { at, repository, digest, size, asked: Vec::new() }) }
    }
}

/// A blob that is asked for.
pub(crate) struct Entry {
    ledger: Ledger,
    blob: Option<BlobSource>,
}

/// A place whose answer is waited for.
pub(crate) struct Pending {
    source: Source,
    host: String,
    since: Instant,
}

impl Entry {
    /// These were asked.
    pub(crate) fn add(&mut self, asked: Vec<Asking>) {
        if let Some(blob) = &mut self.blob {
            let room = MAX_ASKINGS.saturating_sub(blob.asked.len());
            blob.asked.extend(asked.into_iter().take(room));
        }
    }

    /// Somebody is asked now.
    pub(crate) fn ask(&self, source: Source, host: &str) -> Pending {
        Pending { source, host: host.to_owned(), since: Instant::now() }
    }

    /// That is over.
    pub(crate) fn end(&mut self, pending: Pending, bytes: u64, said: &str) {
        let Pending { source, host, since } = pending;
        self.add(vec![Asking { source, host, said: said.to_owned(), bytes, took: since.elapsed() }]);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(blob) = self.blob.take().filter(|blob| !blob.asked.is_empty()) else { return };
        let mut blobs = self.ledger.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if blobs.len() >= MAX_BLOBS {
            blobs.pop_front();
        }
        blobs.push_back(blob);
    }
}
