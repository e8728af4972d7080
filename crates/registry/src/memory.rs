//! An index in memory, for `orlop demo` and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use orlop_oci::Digest;

use crate::{BlobIndex, IndexError, IndexResult, ManifestIndex, ManifestKey, ManifestRecord, TagIndex};

/// An index in memory.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    repositories: Mutex<BTreeMap<String, Repository>>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: BTreeSet<Digest>,
    manifests: BTreeMap<Digest, ManifestRecord>,
    tags: BTreeMap<String, Digest>,
}

impl MemoryIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Repository>> {
        self.repositories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Repository {
    fn digest_of<'a>(&'a self, key: &'a ManifestKey) -> IndexResult<&'a Digest> {
        match key {
            ManifestKey::Digest(digest) => Ok(digest),
            ManifestKey::Tag(tag) => self.tags.get(tag).ok_or(IndexError::NoManifest),
        }
    }
}

#[async_trait]
impl BlobIndex for MemoryIndex {
    async fn link_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        self.lock().entry(repository.to_owned()).or_default().blobs.insert(digest.clone());
        Ok(())
    }

    async fn has_blob(&self, repository: &str, digest: &Digest) -> IndexResult<bool> {
        Ok(self.lock().get(repository).is_some_and(|r| r.blobs.contains(digest)))
    }

    async fn unlink_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        let found = self.lock().get_mut(repository).is_some_and(|r| r.blobs.remove(digest));
        if found { Ok(()) } else { Err(IndexError::NoBlob) }
    }
}

#[async_trait]
impl ManifestIndex for MemoryIndex {
    async fn put_manifest(&self, repository: &str, record: ManifestRecord, tags: &[String]) -> IndexResult<()> {
        let mut repositories = self.lock();
        let repository = repositories.entry(repository.to_owned()).or_default();
        for tag in tags {
            repository.tags.insert(tag.clone(), record.digest.clone());
        }
        repository.manifests.insert(record.digest.clone(), record);
        Ok(())
    }

    async fn manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<ManifestRecord> {
        let repositories = self.lock();
        let repository = repositories.get(repository).ok_or(IndexError::NoRepository)?;
        let digest = repository.digest_of(key)?;
        repository.manifests.get(digest).cloned().ok_or(IndexError::NoManifest)
    }

    async fn delete_manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<()> {
        let mut repositories = self.lock();
        let repository = repositories.get_mut(repository).ok_or(IndexError::NoRepository)?;
        let found = match key {
            ManifestKey::Tag(tag) => repository.tags.remove(tag).is_some(),
            ManifestKey::Digest(digest) => {
                repository.tags.retain(|_, target| target != digest);
                repository.manifests.remove(digest).is_some()
            }
        };
        if found { Ok(()) } else { Err(IndexError::NoManifest) }
    }

    async fn referrers(&self, repository: &str, subject: &Digest) -> IndexResult<Vec<ManifestRecord>> {
        let repositories = self.lock();
        let Some(repository) = repositories.get(repository) else { return Ok(Vec::new()) };
        Ok(repository.manifests.values().filter(|m| m.subject.as_ref() == Some(subject)).cloned().collect())
    }
}

#[async_trait]
impl TagIndex for MemoryIndex {
    async fn tags(&self, repository: &str, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        let repositories = self.lock();
        let repository = repositories.get(repository).ok_or(IndexError::NoRepository)?;
        Ok(page(&repository.tags, after, limit))
    }

    async fn repositories(&self, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        Ok(page(&self.lock(), after, limit))
    }
}

fn page<V>(map: &BTreeMap<String, V>, after: Option<&str>, limit: usize) -> Vec<String> {
    let start = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<str, _>((start, Bound::Unbounded)).take(limit).map(|(name, _)| name.clone()).collect()
}
