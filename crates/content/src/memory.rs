//! A content store in memory, for tests and for registries that live as long as their process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use orlop_oci::{Algorithm, Digest, Digester};

use crate::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Manager, Provider, Result, Status, Trash, Writer,
};

/// A content store in memory; clones share it.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Blob>,
    ingests: HashMap<String, Ingest>,
    bins: HashMap<(PathBuf, Digest), Blob>,
    /// Counts ingests, so that a writer knows its own from a later one of the same ref.
    next_id: u64,
}

#[derive(Clone)]
struct Blob {
    bytes: Bytes,
    created_at: Timestamp,
}

struct Ingest {
    id: u64,
    locked: bool,
    status: Status,
    bytes: BytesMut,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves no half-made state: every change below is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct MemoryReader(Bytes);

#[async_trait]
impl BlobReader for MemoryReader {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let end = start.saturating_add(length).min(self.0.len());
        Ok(self.0.slice(start..end))
    }
}

#[async_trait]
impl Provider for MemoryStore {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        match self.lock().blobs.get(digest) {
            Some(blob) => Ok(Arc::new(MemoryReader(blob.bytes.clone()))),
            None => Err(Error::no_blob(digest)),
        }
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.lock().blobs.get(digest).map(|blob| blob.info(digest)).ok_or_else(|| Error::no_blob(digest))
    }
}

impl Blob {
    fn info(&self, digest: &Digest) -> Info {
        Info {
            digest: digest.clone(),
            size: self.bytes.len() as u64,
            created_at: self.created_at,
            updated_at: self.created_at,
        }
    }
}

#[async_trait]
impl Ingester for MemoryStore {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        if options.reference.is_empty() {
            return Err(Error::Invalid("an ingest needs a ref that is not empty"));
        }
        let mut state = self.lock();
        let locked = state.ingests.get(&options.reference).is_some_and(|ingest| ingest.locked);
        if let Some(digest) = options.expected.as_ref().filter(|d| state.blobs.contains_key(d)) {
            let error = Error::AlreadyExists(digest.clone());
            if !locked {
                state.ingests.remove(&options.reference);
            }
            return Err(error);
        }
        if locked {
            return Err(Error::Locked(options.reference));
        }
        state.next_id += 1;
        let id = state.next_id;
        let ingest = state.ingests.entry(options.reference.clone()).or_insert_with(|| Ingest::new(&options.reference));
        ingest.id = id;
        ingest.locked = true;
        if ingest.status.is_of_another_total(options.total) {
            // It is to be something else: what is there belongs to no part of it.
            ingest.bytes.clear();
            ingest.status.offset = 0;
        }
        ingest.status.total = if options.total == 0 { ingest.status.total } else { options.total };
        ingest.status.expected = options.expected.clone().or(ingest.status.expected.take());
        let algorithm = ingest.status.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let mut digester = Digester::new(algorithm);
        digester.update(&ingest.bytes);
        let (store, last, expected) = (self.clone(), ingest.status.clone(), options.expected);
        Ok(Box::new(MemoryWriter { store, id, digester, algorithm, last, expected }))
    }
}

impl Ingest {
    fn new(reference: &str) -> Self {
        let now = Timestamp::now();
        let status = Status {
            reference: reference.to_owned(),
            offset: 0,
            total: 0,
            expected: None,
            started_at: now,
            updated_at: now,
        };
        Self { id: 0, locked: false, status, bytes: BytesMut::new() }
    }
}

struct MemoryWriter {
    store: MemoryStore,
    id: u64,
    digester: Digester,
    algorithm: Algorithm,
    last: Status,
    /// What this writer expects; what an earlier one did is told by the status and binds nobody.
    expected: Option<Digest>,
}

impl MemoryWriter {
    /// Works on the ingest, if it is still this writer's.
    fn with<T>(&mut self, work: impl FnOnce(&mut Ingest, &mut Digester) -> T) -> Result<T> {
        let mut state = self.store.lock();
        let ingest = state.ingests.get_mut(&self.last.reference).filter(|ingest| ingest.id == self.id);
        let ingest = ingest.ok_or_else(|| Error::no_ingest(&self.last.reference))?;
        let result = work(ingest, &mut self.digester);
        ingest.status.offset = ingest.bytes.len() as u64;
        ingest.status.updated_at = Timestamp::now();
        self.last = ingest.status.clone();
        Ok(result)
    }
}

#[async_trait]
impl Writer for MemoryWriter {
    fn status(&self) -> Status {
        self.last.clone()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.with(|ingest, digester| {
            ingest.bytes.extend_from_slice(&bytes);
            digester.update(&bytes);
        })
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        let algorithm = self.algorithm;
        self.with(|ingest, digester| {
            let size = usize::try_from(size).ok().filter(|size| *size <= ingest.bytes.len());
            let size = size.ok_or(Error::Invalid("an ingest cannot be truncated to more than it has"))?;
            ingest.bytes.truncate(size);
            *digester = Digester::new(algorithm);
            digester.update(&ingest.bytes);
            Ok(())
        })?
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let wanted = expected.cloned().or_else(|| self.expected.clone());
        let algorithm = wanted.as_ref().map_or(self.algorithm, Digest::algorithm);
        let own = self.algorithm;
        let (bytes, total, actual) = self.with(|ingest, digester| {
            let bytes = ingest.bytes.clone();
            let mut other = Digester::new(algorithm);
            let actual = if algorithm == own {
                digester.clone().finish()
            } else {
                other.update(&bytes);
                other.finish()
            };
            (bytes, ingest.status.total, actual)
        })?;
        verify(&self.last, if size == 0 { total } else { size }, wanted.as_ref(), &actual)?;
        let mut state = self.store.lock();
        state.ingests.remove(&self.last.reference);
        if state.blobs.contains_key(&actual) {
            return Err(Error::AlreadyExists(actual));
        }
        state.blobs.insert(actual.clone(), Blob { bytes: bytes.freeze(), created_at: Timestamp::now() });
        Ok(actual)
    }

    fn digest(&self) -> Digest {
        self.digester.clone().finish()
    }
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        if let Some(ingest) = self.store.lock().ingests.get_mut(&self.last.reference)
            && ingest.id == self.id
        {
            ingest.locked = false;
        }
    }
}

/// What every commit checks before a blob may be seen: a size of 0 and no digest are not checked.
///
/// # Errors
/// [`Error::SizeMismatch`], [`Error::DigestMismatch`].
pub fn verify(status: &Status, size: u64, expected: Option<&Digest>, actual: &Digest) -> Result<()> {
    if size != 0 && size != status.offset {
        let reference = status.reference.clone();
        return Err(Error::SizeMismatch { reference, expected: size, actual: status.offset });
    }
    match expected {
        Some(expected) if expected != actual => Err(Error::DigestMismatch {
            reference: status.reference.clone(),
            expected: expected.clone(),
            actual: actual.clone(),
        }),
        _ => Ok(()),
    }
}

#[async_trait]
impl IngestManager for MemoryStore {
    async fn status(&self, reference: &str) -> Result<Status> {
        let state = self.lock();
        state.ingests.get(reference).map(|ingest| ingest.status.clone()).ok_or_else(|| Error::no_ingest(reference))
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        Ok(self.lock().ingests.values().map(|ingest| ingest.status.clone()).collect())
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        match self.lock().ingests.remove(reference) {
            Some(_) => Ok(()),
            None => Err(Error::no_ingest(reference)),
        }
    }
}

#[async_trait]
impl Manager for MemoryStore {
    async fn list(&self) -> Result<Vec<Info>> {
        Ok(self.lock().blobs.iter().map(|(digest, blob)| blob.info(digest)).collect())
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        match self.lock().blobs.remove(digest) {
            Some(_) => Ok(()),
            None => Err(Error::no_blob(digest)),
        }
    }

    fn trash(&self) -> Option<&dyn Trash> {
        Some(self)
    }
}

#[async_trait]
impl Trash for MemoryStore {
    async fn discard(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        let mut state = self.lock();
        let key = (bin.to_owned(), digest.clone());
        if let Some(blob) = state.blobs.remove(digest) {
            state.bins.insert(key.clone(), blob);
        }
        state.bins.get(&key).map(|blob| blob.bytes.len() as u64).ok_or_else(|| Error::no_blob(digest))
    }

    async fn restore(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        let mut state = self.lock();
        if let Some(blob) = state.bins.remove(&(bin.to_owned(), digest.clone())) {
            state.blobs.entry(digest.clone()).or_insert(blob);
        }
        state.blobs.get(digest).map(|blob| blob.bytes.len() as u64).ok_or_else(|| Error::no_blob(digest))
    }
}
