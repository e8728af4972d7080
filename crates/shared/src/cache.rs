//! Small blobs on the gateway's own disk, so that the bucket is asked for each once.
//!
//! The cache is a local content store: a blob is in it when its bytes were hashed. What an earlier process left is hashed
//! again before it is used for the first time. It holds at most as many bytes as it is told to; what was not used for the
//! longest goes first. Whether a blob may be read is never asked here: the database says so each time.
//!
//! A cache that cannot be written to costs speed and nothing else.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt as _;
use orlop_content::{
    BlobReader, Error as ContentError, IngestOptions, Ingester as _, LocalStore, Manager as _, Provider as _, examine,
};
use orlop_oci::Digest;

use crate::Result;
use crate::bucket::Pieces;

/// A gateway's cache.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Its directory, which is nobody else's.
    pub directory: PathBuf,
    /// How many bytes it may hold.
    pub bytes: u64,
    /// Larger blobs are not cached.
    pub largest: u64,
}

pub(crate) struct Cache {
    store: LocalStore,
    options: CacheOptions,
    entries: Mutex<Entries>,
    /// Blobs that somebody is fetching: others wait for him.
    fetching: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Entries {
    all: HashMap<Digest, Entry>,
    bytes: u64,
    /// Counts uses.
    clock: u64,
}

struct Entry {
    size: u64,
    used: u64,
    /// Whether this process has hashed it.
    verified: bool,
}

impl Cache {
    /// Opens a cache with what is in it.
    pub(crate) async fn open(options: CacheOptions) -> Result<Self, ContentError> {
        let store = LocalStore::open(&options.directory)?;
        let mut entries = Entries::default();
        let mut found = store.list().await?;
        found.sort_by_key(|info| info.created_at);
        for info in found {
            entries.add(info.digest, info.size, false);
        }
        // What a killed process was fetching.
        for status in orlop_content::IngestManager::statuses(&store).await? {
            let _ = orlop_content::IngestManager::abort(&store, &status.reference).await;
        }
        let cache = Self { store, options, entries: Mutex::new(entries), fetching: Mutex::default() };
        cache.shrink().await;
        Ok(cache)
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader of a blob: from the cache, where it is put first if `fetch` gives the right bytes. `None` if it is too large
    /// for a cache, or the cache does not work.
    ///
    /// # Errors
    /// What `fetch` says, and that the bytes are not the blob's.
    pub(crate) async fn read<F>(
        &self,
        digest: &Digest,
        size: u64,
        fetch: impl FnOnce() -> F + Send,
    ) -> Result<Option<Arc<dyn BlobReader>>, ContentError>
    where
        F: Future<Output = Result<Pieces>> + Send,
    {
        if size > self.options.largest {
            return Ok(None);
        }
        if let Some(reader) = self.find(digest, size).await {
            return Ok(Some(reader));
        }
        let turn =
            self.fetching.lock().unwrap_or_else(PoisonError::into_inner).entry(digest.clone()).or_default().clone();
        let held = turn.lock().await;
        let result = match self.find(digest, size).await {
            Some(reader) => Ok(Some(reader)),
            None => self.fetch(digest, size, fetch).await,
        };
        drop(held);
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::strong_count(&turn) <= 2 {
            fetching.remove(digest);
        }
        drop(fetching);
        result
    }

    async fn find(&self, digest: &Digest, size: u64) -> Option<Arc<dyn BlobReader>> {
        let verified = self.lock().touch(digest)?;
        if !verified {
            let flaw = examine(&self.store, digest, Some(size), &()).await;
            if !matches!(flaw, Ok(None)) {
                tracing::warn!(%digest, ?flaw, "a blob in the cache is damaged and is fetched again");
                self.forget(digest).await;
                return None;
            }
            self.lock().verified(digest);
        }
        match self.store.open(digest).await {
            Ok(reader) => Some(reader),
            Err(_) => {
                self.forget(digest).await;
                None
            }
        }
    }

    async fn fetch<F>(
        &self,
        digest: &Digest,
        size: u64,
        fetch: impl FnOnce() -> F + Send,
    ) -> Result<Option<Arc<dyn BlobReader>>, ContentError>
    where
        F: Future<Output = Result<Pieces>> + Send,
    {
        let mut pieces = fetch().await?;
        let reference = format!("cache {digest}");
        let options = IngestOptions { reference: reference.clone(), total: size, expected: Some(digest.clone()) };
        let mut writer = match self.store.writer(options).await {
            Ok(writer) => writer,
            // A file that is there and was not known to be.
            Err(ContentError::AlreadyExists(_)) => {
                self.lock().add(digest.clone(), size, false);
                return Ok(self.find(digest, size).await);
            }
            Err(error) => return Ok(not_cached(digest, &error)),
        };
        let mut written = writer.truncate(0).await;
        while let Some(piece) = pieces.next().await {
            if written.is_ok() {
                written = writer.write(piece?).await;
            }
        }
        match written {
            Ok(()) => match writer.commit(size, Some(digest)).await {
                Ok(_) | Err(ContentError::AlreadyExists(_)) => {}
                Err(error @ (ContentError::DigestMismatch { .. } | ContentError::SizeMismatch { .. })) => {
                    drop(writer);
                    let _ = orlop_content::IngestManager::abort(&self.store, &reference).await;
                    return Err(error);
                }
                Err(error) => return Ok(not_cached(digest, &error)),
            },
            Err(error) => return Ok(not_cached(digest, &error)),
        }
        self.lock().add(digest.clone(), size, true);
        let reader = self.store.open(digest).await?;
        self.shrink().await;
        Ok(Some(reader))
    }

    /// Takes out what was not used for the longest, until the rest is as small as it must be. Open readers go on.
    async fn shrink(&self) {
        loop {
            let oldest = self.lock().excess(self.options.bytes);
            let Some(digest) = oldest else { return };
            self.forget(&digest).await;
        }
    }

    async fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
        let _ = self.store.delete(digest).await;
    }
}

fn not_cached(digest: &Digest, error: &ContentError) -> Option<Arc<dyn BlobReader>> {
    tracing::warn!(%digest, %error, "a blob cannot be cached");
    None
}

impl Entries {
    fn add(&mut self, digest: Digest, size: u64, verified: bool) {
        self.remove(&digest);
        self.clock += 1;
        self.bytes += size;
        self.all.insert(digest, Entry { size, used: self.clock, verified });
    }

    /// Says that it is used; returns whether it was verified.
    fn touch(&mut self, digest: &Digest) -> Option<bool> {
        self.clock += 1;
        let entry = self.all.get_mut(digest)?;
        entry.used = self.clock;
        Some(entry.verified)
    }

    fn verified(&mut self, digest: &Digest) {
        if let Some(entry) = self.all.get_mut(digest) {
            entry.verified = true;
        }
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(entry) = self.all.remove(digest) {
            self.bytes -= entry.size;
        }
    }

    fn excess(&self, limit: u64) -> Option<Digest> {
        let oldest = || self.all.iter().min_by_key(|(_, entry)| entry.used).map(|(digest, _)| digest.clone());
        (self.bytes > limit).then(oldest).flatten()
    }
}
