//! Tags and manifests of a mirror.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_content::{self as content, read_verified};
use orlop_metadata::{ImageChange, Labels, Scope};
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, Reference, RepositoryName};
use orlop_remote::Client;

use super::{Asked, MAX_KNOWN, Mirror, MirrorKey, MirroredManifest, Via, lock};
use crate::pull::{Registry, Session, add_source, document_labels, signatures};
use crate::walk::{Documents, kind_word};
use crate::{Error, Images, Result, labels};

/// For how long a registry that could not be asked is not asked again, where there is something else to give.
const FAILED_FOR: Duration = Duration::from_secs(10);
/// How long a registry may take where there is something else to give.
const PATIENCE: Duration = Duration::from_secs(10);

impl Mirror {
    /// A manifest of a repository that [`Mirror::repository`] gave.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not here and may not be fetched, or its registry does not have it; what the registry says;
    /// [`Error::Refused`].
    ///
    /// # Durability
    /// What was fetched survives a power cut when this returns.
    pub async fn manifest(&self, repository: &RepositoryName, key: &MirrorKey, via: &Via) -> Result<MirroredManifest> {
        let found = match key {
            MirrorKey::Tag(tag) => self.by_tag(repository, tag, via).await,
            MirrorKey::Digest(digest) => self.by_digest(repository, digest, via).await,
        };
        match &found {
            Ok(MirroredManifest { stale: Some(_), .. }) => self.count(&self.inner.stale),
            Err(_) => self.count(&self.inner.failures),
            Ok(_) => {}
        }
        found
    }

    async fn by_digest(&self, repository: &RepositoryName, digest: &Digest, via: &Via) -> Result<MirroredManifest> {
        let given = |document| MirroredManifest { document, stale: None };
        if let Some(document) = self.held(repository, digest).await? {
            self.count(&self.inner.hits);
            return Ok(given(document));
        }
        let name = repository.with_digest(digest);
        let Some(client) = self.client(repository, via) else { return Err(Error::NotFound(name.to_string())) };
        let turn = self.inner.turns.of(&name.to_string());
        let _mine = turn.lock().await;
        if let Some(document) = self.held(repository, digest).await? {
            self.count(&self.inner.hits);
            return Ok(given(document));
        }
        self.count(&self.inner.misses);
        let target = client.resolve(&name).await?.descriptor;
        self.fetch(repository, &name, &target, &client).await.map(given)
    }

    async fn by_tag(&self, repository: &RepositoryName, tag: &str, via: &Via) -> Result<MirroredManifest> {
        let name = repository.with_tag(tag)?;
        let Some(client) = self.client(repository, via) else {
            let last = self.last(repository, tag, &name).await?.ok_or_else(|| Error::NotFound(name.to_string()))?;
            self.count(&self.inner.hits);
            return Ok(MirroredManifest { document: last, stale: None });
        };
        if let Some(known) = self.known(repository, tag, &name).await? {
            return Ok(known);
        }
        let turn = self.inner.turns.of(&name.to_string());
        let _mine = turn.lock().await;
        if let Some(known) = self.known(repository, tag, &name).await? {
            return Ok(known);
        }
        self.ask(repository, tag, &name, &client).await
    }

    /// What is known of a tag from a moment ago.
    async fn known(
        &self,
        repository: &RepositoryName,
        tag: &str,
        name: &Reference,
    ) -> Result<Option<MirroredManifest>> {
        let asked = lock(&self.inner.asked).get(&name.to_string()).cloned();
        let Some(Asked { at, failed: stale }) = asked else { return Ok(None) };
        let age = if stale.is_some() { FAILED_FOR } else { self.inner.settings.fresh };
        if at.elapsed() >= age {
            return Ok(None);
        }
        let found = self.last(repository, tag, name).await?;
        if found.is_some() && stale.is_none() {
            self.count(&self.inner.hits);
        }
        Ok(found.map(|document| MirroredManifest { document, stale }))
    }

    /// What a tag meant when it was last asked for, and else what the node's own record of this name means.
    async fn last(&self, repository: &RepositoryName, tag: &str, name: &Reference) -> Result<Option<Document>> {
        let (full, owned) = (repository.to_string(), tag.to_owned());
        let remembered = self.remembered(move |mirrored| mirrored.tag(&full, &owned)).await?;
        for target in remembered.into_iter().chain(self.record(name).await?) {
            if let Some(document) = self.held(repository, &target.digest).await? {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    /// Asks the registry what a tag means, and fetches that.
    async fn ask(
        &self,
        repository: &RepositoryName,
        tag: &str,
        name: &Reference,
        client: &Client,
    ) -> Result<MirroredManifest> {
        let last = self.last(repository, tag, name).await?;
        let asking = self.meaning(repository, tag, name, client);
        let failed = match &last {
            None => return asking.await.map(|document| MirroredManifest { document, stale: None }),
            Some(_) => match tokio::time::timeout(PATIENCE, asking).await {
                Ok(Ok(document)) => return Ok(MirroredManifest { document, stale: None }),
                Ok(Err(error)) => error,
                Err(_) => Error::Remote(orlop_remote::Error::Timeout {
                    what: name.to_string(),
                    host: repository.domain().to_owned(),
                    after: PATIENCE,
                }),
            },
        };
        match (last, &failed) {
            (Some(document), Error::Remote(error)) if !error.is_not_found() => {
                tracing::warn!(%error, image = %name, "the registry cannot be asked: what its tag meant last is given");
                let stale = Some(failed.to_string());
                self.note(name, stale.clone());
                Ok(MirroredManifest { document, stale })
            }
            // What the node has under this very name was never there, as after an import: it is given all the same.
            (Some(_), Error::Remote(_)) => {
                let (full, owned) = (repository.to_string(), tag.to_owned());
                self.remembered(move |mirrored| mirrored.forget_tag(&full, &owned)).await?;
                let own = self.last(repository, tag, name).await?.ok_or(failed)?;
                Ok(MirroredManifest { document: own, stale: None })
            }
            _ => Err(failed),
        }
    }

    /// What a tag means at its registry.
    async fn meaning(
        &self,
        repository: &RepositoryName,
        tag: &str,
        name: &Reference,
        client: &Client,
    ) -> Result<Document> {
        self.count(&self.inner.misses);
        let target = client.resolve(name).await?.descriptor;
        let (full, owned) = (repository.to_string(), tag.to_owned());
        let remembered = self.remembered(move |mirrored| mirrored.tag(&full, &owned)).await?;
        let held = match self.held(repository, &target.digest).await? {
            // Under this name it was let in before.
            Some(document) if remembered.is_some_and(|last| last.digest == target.digest) => Some(document),
            _ => None,
        };
        let document = match held {
            Some(document) => document,
            None => {
                let document = self.fetch(repository, name, &target, client).await?;
                let (full, owned) = (repository.to_string(), tag.to_owned());
                self.remembered(move |mirrored| mirrored.put_tag(&full, &owned, &target)).await?;
                document
            }
        };
        self.note(name, None);
        Ok(document)
    }

    fn note(&self, name: &Reference, failed: Option<String>) {
        let mut asked = lock(&self.inner.asked);
        if asked.len() >= MAX_KNOWN {
            asked.clear();
        }
        asked.insert(name.to_string(), Asked { at: Instant::now(), failed });
    }

    /// A document that is here and that a record of the repository leads to.
    pub(super) async fn held(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<Document>> {
        let Some(name) = self.leading_to(repository, digest).await? else { return Ok(None) };
        let raw =
            match read_verified(&self.inner.images.store().content(&self.scope()), digest, MAX_MANIFEST_BYTES).await {
                Ok(raw) => raw,
                // A layer is no manifest.
                Err(content::Error::NotFound { .. } | content::Error::TooLarge { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let Ok(document) = Document::parse_as(raw, None, digest.algorithm()) else { return Ok(None) };
        self.touch(&name).await;
        Ok(Some(document))
    }

    /// Brings a manifest under a name, and gives it a record if none leads to it.
    async fn fetch(
        &self,
        repository: &RepositoryName,
        name: &Reference,
        target: &Descriptor,
        client: &Client,
    ) -> Result<Document> {
        let Self { inner } = self;
        let is_known = self.leading_to(repository, &target.digest).await?.is_some();
        let is_tag = name.digest().is_none();
        let origin = Registry::new(&inner.images, client, repository.clone());
        let document = inner
            .images
            .under_lease(&self.scope(), async |scope| {
                let session = inner.images.session(scope, &origin, &|_| {});
                if is_tag || !is_known {
                    let [tags, referrers] = signatures(client, repository);
                    session.admit(&name.to_string(), target, &[&tags, &referrers]).await?;
                }
                let raw = session.load(target, kind_word(target)).await?;
                let raw = raw.ok_or_else(|| Error::NotFound(name.to_string()))?;
                let parsed = Document::parse_as(raw, Some(&target.media_type), target.digest.algorithm());
                let document = parsed.map_err(|source| Error::Document { digest: target.digest.clone(), source })?;
                let record = (!is_known).then(|| repository.with_digest(&target.digest).to_string());
                write(&inner.images, &session, &document, repository, record).await?;
                Ok(document)
            })
            .await?;
        let own = repository.with_digest(&target.digest).to_string();
        if !is_known {
            inner.images.reconcile_image(&inner.settings.namespace, &own).await?;
            self.touch(&own).await;
        }
        Ok(document)
    }
}

/// Writes what a document that was brought holds and where it came from, and its record.
async fn write(
    images: &Images,
    session: &Session<'_>,
    document: &Document,
    repository: &RepositoryName,
    record: Option<String>,
) -> Result<()> {
    let digest = document.digest().digest().clone();
    let mut all: BTreeMap<Digest, Labels> = session.vouched.labels();
    all.entry(digest).or_default().extend(document_labels(document));
    let cached = Labels::from([(labels::CACHED.to_owned(), Timestamp::now().to_string())]);
    let target = document.descriptor();
    let change = record.map(|name| ImageChange::Upsert { name, target, labels: cached });
    let (content, scope, source): (_, Scope, _) = (session.content.clone(), session.scope.clone(), repository.clone());
    images
        .blocking(move |store| {
            add_source(&content, &source, &mut all)?;
            content.label_all(&all.into_iter().collect::<Vec<_>>())?;
            Ok(store.write_images(&scope, change.as_slice())?)
        })
        .await
}
