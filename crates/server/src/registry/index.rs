//! The index of a registry over image records.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use orlop_content::{self as content, read_verified};
use orlop_image::{self as image, Accepted, ErrorKind, Images, PushedManifest, RemoveRequest};
use orlop_metadata::{self as metadata, ManifestRow, Repositories, Scope};
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, RepositoryName};
use orlop_registry::{
    BlobIndex, Caller, Held, IndexError, IndexResult, ManifestIndex, ManifestKey, ManifestRecord, TagIndex,
};

use super::NodeRegistry;
use super::holding::{Holding, LINKED, blocking};

/// The repositories of the node.
pub struct NodeIndex {
    images: Images,
    registry: NodeRegistry,
    holding: Arc<Holding>,
}

/// What a key leads to.
struct Found {
    digest: Digest,
    /// Of the record that points at it, if one does.
    media_type: Option<String>,
}

impl NodeIndex {
    pub(super) fn new(images: &Images, registry: &NodeRegistry, holding: Arc<Holding>) -> Self {
        Self { images: images.clone(), registry: registry.clone(), holding }
    }

    /// The whole name of a repository.
    fn name(&self, repository: &str) -> IndexResult<RepositoryName> {
        let name = RepositoryName::parse(&format!("{}/{repository}", self.registry.host));
        name.map_err(|_| IndexError::NoRepository)
    }

    /// On whose behalf records are written.
    fn scope(&self) -> Scope {
        let actor = Caller::current().map_or_else(|| "registry".to_owned(), |caller| format!("registry ({caller})"));
        Scope::new(&*self.registry.namespace, actor)
    }

    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Repositories) -> metadata::Result<T> + Send + 'static,
    ) -> IndexResult<T> {
        blocking(&self.holding, move |holding| call(holding.repositories())).await.map_err(failed)
    }

    /// What to say of something that a repository does not have.
    async fn missing(&self, repository: &str, what: IndexError) -> IndexError {
        let name = self.full(repository);
        match self.ask(move |known| known.exists(&name)).await {
            Ok(true) => what,
            Ok(false) => IndexError::NoRepository,
            Err(error) => error,
        }
    }

    fn full(&self, repository: &str) -> String {
        format!("{}/{repository}", self.registry.host)
    }

    /// The record of this name.
    async fn record(&self, name: String) -> IndexResult<Option<metadata::Image>> {
        let (store, namespace) = (self.images.store().clone(), self.registry.namespace.clone());
        let found = blocking(&self.holding, move |_| match store.image(&namespace, &name) {
            Ok(record) => Ok(Some(record)),
            Err(metadata::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        });
        found.await.map_err(failed)
    }

    async fn find(&self, repository: &str, key: &ManifestKey) -> IndexResult<Found> {
        let name = self.name(repository)?;
        let own = match key {
            ManifestKey::Tag(tag) => format!("{name}:{tag}"),
            ManifestKey::Digest(digest) => name.with_digest(digest).to_string(),
        };
        if let Some(record) = self.record(own).await? {
            return Ok(Found { digest: record.target.digest, media_type: Some(record.target.media_type) });
        }
        if let ManifestKey::Digest(digest) = key {
            let (full, wanted) = (self.full(repository), digest.clone());
            let visible = self.ask(move |known| {
                let waits = known.manifest(&full, &wanted)?.and_then(|row| row.until);
                Ok(waits.is_some_and(|until| until > Timestamp::now()) || known.leading_to(&full, &wanted)?.is_some())
            });
            if visible.await? {
                return Ok(Found { digest: digest.clone(), media_type: None });
            }
        }
        Err(self.missing(repository, IndexError::NoManifest).await)
    }

    /// What is known of a manifest that the repository has; it is read and noted if nothing is.
    async fn describe(&self, repository: &str, found: Found) -> IndexResult<ManifestRecord> {
        let (full, digest) = (self.full(repository), found.digest.clone());
        if let Some(row) = self.ask(move |known| known.manifest(&full, &digest)).await?
            && let Ok(record) = serde_json::from_str(&row.body)
        {
            return Ok(record);
        }
        let record = self.read(&found).await?;
        // Whoever may only read has it read anew each time.
        if let Err(error) = self.note(repository, &record, None).await {
            tracing::debug!(%error, repository, "a manifest could not be noted");
        }
        Ok(record)
    }

    async fn read(&self, found: &Found) -> IndexResult<ManifestRecord> {
        let content = self.images.store().content(&self.scope());
        let raw = match read_verified(&content, &found.digest, MAX_MANIFEST_BYTES).await {
            Ok(raw) => raw,
            // Larger than any manifest.
            Err(content::Error::NotFound { .. } | content::Error::TooLarge { .. }) => {
                return Err(IndexError::NoManifest);
            }
            Err(error) => return Err(IndexError::Backend(Box::new(error))),
        };
        let document = Document::parse_as(raw, found.media_type.as_deref(), found.digest.algorithm());
        // A layer, most likely: the repository has it, and not as a manifest.
        document.map(|document| ManifestRecord::of(&document)).map_err(|_| IndexError::NoManifest)
    }

    async fn note(&self, repository: &str, record: &ManifestRecord, until: Option<Timestamp>) -> IndexResult<()> {
        let body = serde_json::to_string(record).map_err(|error| IndexError::Backend(Box::new(error)))?;
        let (full, record) = (self.full(repository), record.clone());
        self.ask(move |known| {
            known.put_manifest(&full, &record.digest, record.subject.as_ref(), &ManifestRow { body, until })
        })
        .await
    }

    /// Notes what other programs than the registry have brought under this repository's names.
    async fn note_all(&self, repository: &str) -> IndexResult<()> {
        let full = self.full(repository);
        for (name, digest) in self.ask(move |known| known.unnoted(&full)).await? {
            match self.read(&Found { digest, media_type: None }).await {
                Ok(record) => self.note(repository, &record, None).await?,
                Err(IndexError::NoManifest) => tracing::debug!(name, "not a manifest"),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes records as `orlop rm` does.
    async fn remove(&self, names: Vec<String>) -> IndexResult<()> {
        let reason = Some(format!("registry: delete {}", names.join(" ")));
        let request = RemoveRequest { names, keep_pushed: true, reason, ..RemoveRequest::default() };
        match self.images.remove(&self.scope(), &request).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(IndexError::NoManifest),
            Err(error) => Err(refused(error)),
        }
    }

    /// The records of a manifest in a repository: its tags, and the one that keeps it.
    async fn records_of(&self, repository: &str, digest: &Digest) -> IndexResult<Vec<String>> {
        let (name, full, wanted) = (self.name(repository)?, self.full(repository), digest.clone());
        let tags = self.ask(move |known| known.tags_of(&full, &wanted)).await?;
        let mut names: Vec<String> = tags.iter().map(|tag| format!("{name}:{tag}")).collect();
        let own = name.with_digest(digest).to_string();
        names.extend(self.record(own).await?.map(|record| record.name));
        Ok(names)
    }

    /// Drops a manifest that no record of its own keeps.
    async fn drop_unnamed(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        let (full, wanted) = (self.full(repository), digest.clone());
        if let Some(by) = self.ask(move |known| known.leading_to(&full, &wanted)).await? {
            return Err(IndexError::InUse(format!("{by} has {digest}: delete that first")));
        }
        let (full, wanted) = (self.full(repository), digest.clone());
        match self.ask(move |known| known.forget_manifest(&full, &wanted)).await? {
            true => Ok(()),
            false => Err(self.missing(repository, IndexError::NoManifest).await),
        }
    }
}

#[async_trait]
impl BlobIndex for NodeIndex {
    async fn hold(&self, digests: &[Digest]) -> IndexResult<Held> {
        let digests = digests.to_vec();
        blocking(&self.holding, move |holding| holding.hold(&digests)).await.map(Held::with).map_err(failed)
    }

    async fn link_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        let (full, digest) = (self.name(repository)?.to_string(), digest.clone());
        let until = Timestamp::now().saturating_add(LINKED).unwrap_or(Timestamp::MAX);
        self.ask(move |known| known.link(&full, &digest, until)).await
    }

    async fn has_blob(&self, repository: &str, digest: &Digest) -> IndexResult<bool> {
        let (full, digest) = (self.full(repository), digest.clone());
        let has = move |known: &Repositories| {
            Ok(known.is_linked(&full, &digest)? || known.leading_to(&full, &digest)?.is_some())
        };
        self.ask(has).await
    }

    async fn unlink_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        let (full, wanted) = (self.full(repository), digest.clone());
        if let Some(by) = self.ask(move |known| known.leading_to(&full, &wanted)).await? {
            return Err(IndexError::InUse(format!("{by} has {digest}: delete that first")));
        }
        let (full, wanted) = (self.full(repository), digest.clone());
        let unlinked = self.ask(move |known| known.unlink(&full, &wanted)).await?;
        if unlinked { Ok(()) } else { Err(IndexError::NoBlob) }
    }
}

#[async_trait]
impl ManifestIndex for NodeIndex {
    async fn put_manifest(&self, repository: &str, record: ManifestRecord, tags: &[String]) -> IndexResult<()> {
        let pushed = PushedManifest {
            repository: self.name(repository)?,
            target: Descriptor::new(record.media_type.clone(), record.digest.clone(), record.size),
            tags: tags.to_vec(),
            is_referrer: record.subject.is_some(),
        };
        let until = match self.images.accept(&self.scope(), &pushed).await.map_err(refused)? {
            Accepted::Named => None,
            Accepted::Unnamed => Some(Timestamp::now().saturating_add(LINKED).unwrap_or(Timestamp::MAX)),
        };
        self.note(repository, &record, until).await
    }

    async fn settle(&self, repository: &str, record: ManifestRecord, held: Held) {
        let full = self.full(repository);
        // On its own thread it goes on when the client does not: what the caller counts on is dropped there.
        let settling = blocking(&self.holding, move |holding| {
            let settled = holding.settle(&full, &record.digest, &record.children);
            drop(held);
            settled
        });
        if let Err(error) = settling.await {
            // Nothing is lost: leases end by themselves.
            tracing::warn!(%error, repository, "what was pushed is held for a day: its removal gives no space back before");
        }
    }

    async fn manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<ManifestRecord> {
        let found = self.find(repository, key).await?;
        self.describe(repository, found).await
    }

    async fn delete_manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<()> {
        match key {
            ManifestKey::Tag(tag) => {
                let name = format!("{}:{tag}", self.name(repository)?);
                match self.record(name).await? {
                    Some(record) => self.remove(vec![record.name]).await,
                    None => Err(self.missing(repository, IndexError::NoManifest).await),
                }
            }
            ManifestKey::Digest(digest) => {
                let names = self.records_of(repository, digest).await?;
                if names.is_empty() {
                    return self.drop_unnamed(repository, digest).await;
                }
                self.remove(names).await?;
                let (full, gone) = (self.full(repository), digest.clone());
                self.ask(move |known| known.forget_manifest(&full, &gone)).await?;
                Ok(())
            }
        }
    }

    async fn referrers(&self, repository: &str, subject: &Digest) -> IndexResult<Vec<ManifestRecord>> {
        self.note_all(repository).await?;
        let (full, subject) = (self.full(repository), subject.clone());
        let bodies = self.ask(move |known| known.referrers(&full, &subject)).await?;
        Ok(bodies.iter().filter_map(|body| serde_json::from_str(body).ok()).collect())
    }
}

#[async_trait]
impl TagIndex for NodeIndex {
    async fn tags(&self, repository: &str, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        let (full, after) = (self.full(repository), after.map(str::to_owned));
        let listed = self.ask(move |known| match known.exists(&full)? {
            true => known.tags(&full, after.as_deref(), limit).map(Some),
            false => Ok(None),
        });
        listed.await?.ok_or(IndexError::NoRepository)
    }

    async fn repositories(&self, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        let host = self.registry.host.clone();
        let all: BTreeSet<String> = self.ask(move |known| known.all(&host)).await?;
        let later = all.into_iter().filter(|name| after.is_none_or(|after| name.as_str() > after));
        Ok(later.take(limit).collect())
    }
}

/// What a client may hear of a refusal; the rest is the log's.
pub(super) fn refused(error: image::Error) -> IndexError {
    match &error {
        image::Error::Refused(refusal) => IndexError::Denied(format!("{refusal}; {}", refusal.advice())),
        image::Error::Pinned(_) => IndexError::Denied(error.to_string()),
        image::Error::TooLarge { .. } => IndexError::TooLarge(error.to_string()),
        _ if error.kind() == ErrorKind::NoSpace => IndexError::NoSpace,
        _ => IndexError::Backend(Box::new(error)),
    }
}

fn failed(error: metadata::Error) -> IndexError {
    refused(image::Error::from(error))
}
