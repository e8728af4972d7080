//! Manifests that clients push to the registry which this store itself is.
//!
//! A repository's tags are records `HOST/path:tag`, written as a pull writes them, with their hash references. A manifest is kept by
//! its record `HOST/path@digest`, which says that it was pushed (`io.orlop.pushed`): tags come and go, and it stays until somebody
//! deletes it. To the reconciler such a record is a hash reference that needs no name.
//!
//! # Invariants
//! - No record is written without asking the gate. A manifest without a tag that nobody has vouched for yet (the manifests of a
//!   signed index come before it, and nobody signs them) gets none: it is no image of the node, and its caller keeps it for a while.
//! - A manifest that an index of the same repository has needs no record of its own: the index keeps it. One that is about
//!   another manifest, has a tag, or is pinned keeps its own.
//! - The bytes of the manifest are in the store, and whoever calls holds them and all that the manifest has until this returns.

use std::collections::BTreeSet;

use bytes::Bytes;
use orlop_content::{self as content, read_verified};
use orlop_metadata::{Image, ImageChange, Labels, Scope};
use orlop_oci::{Descriptor, Digest, Document, ImageId, MAX_MANIFEST_BYTES, RepositoryName};

use crate::gate::Cause;
use crate::pull::{Naming, document_labels, record_labels};
use crate::reconcile::is_pinned;
use crate::{Error, Images, Result, labels};

/// A manifest that was pushed.
#[derive(Debug, Clone)]
pub struct PushedManifest {
    /// Where to.
    pub repository: RepositoryName,
    /// The manifest.
    pub target: Descriptor,
    /// Tags that are to mean it.
    pub tags: Vec<String>,
    /// Whether it is about another manifest.
    pub is_referrer: bool,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Records name it and keep it.
    Named,
    /// Nothing keeps it: it may come in as a part of something that is vouched for.
    Unnamed,
}

impl Images {
    /// Gives a manifest that was pushed its records.
    ///
    /// # Errors
    /// [`Error::Refused`] if policy keeps it out, [`Error::TooLarge`] if it is larger than a document may be.
    ///
    /// # Durability
    /// The records survive a power cut when this returns.
    pub async fn accept(&self, scope: &Scope, pushed: &PushedManifest) -> Result<Accepted> {
        let (digest, size) = (&pushed.target.digest, pushed.target.size);
        let limit = self.settings().limits.manifest_bytes;
        if size > limit {
            return Err(Error::TooLarge { digest: digest.clone(), size, limit });
        }
        let document = self.pushed_document(scope, &pushed.target).await?;
        if let Some(document) = &document {
            let (owned, labels) = (scope.clone(), vec![(pushed.target.digest.clone(), document_labels(document))]);
            self.blocking(move |store| Ok(store.content(&owned).label_all(&labels)?)).await?;
        }
        let Some(namings) = self.admit_pushed(scope, pushed).await? else { return Ok(Accepted::Unnamed) };
        let managed = self.managed_id(scope, &pushed.target).await?;
        let mut changes: Vec<ImageChange> =
            namings.iter().flat_map(|naming| naming.changes(&pushed.target, managed.as_ref())).collect();
        keep(pushed, managed.as_ref(), &mut changes);
        changes.extend(self.absorbed(scope, pushed, document.as_ref()).await?);
        let owned = scope.clone();
        self.blocking(move |store| Ok(store.write_images(&owned, &changes)?)).await?;
        for naming in &namings {
            self.reconcile_image(&scope.namespace, &naming.name).await?;
        }
        Ok(Accepted::Named)
    }

    /// The document; none if its bytes are not here.
    async fn pushed_document(&self, scope: &Scope, target: &Descriptor) -> Result<Option<Document>> {
        let raw: Bytes = match read_verified(&self.store().content(scope), &target.digest, MAX_MANIFEST_BYTES).await {
            Ok(raw) => raw,
            Err(content::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let parsed = Document::parse_as(raw, Some(&target.media_type), target.digest.algorithm());
        let wrong = |source| Error::Document { digest: target.digest.clone(), source };
        parsed.map(Some).map_err(wrong)
    }

    /// What its tags are to be called; none if it has no tag and nobody vouches for it.
    async fn admit_pushed(&self, scope: &Scope, pushed: &PushedManifest) -> Result<Option<Vec<Naming>>> {
        let PushedManifest { repository, target, tags, .. } = pushed;
        if tags.is_empty() {
            let name = repository.with_digest(&target.digest).to_string();
            return match self.admit(scope, &name, target).await {
                Ok(_) => Ok(Some(Vec::new())),
                Err(Error::Refused(refusal)) if !matches!(refusal.cause, Cause::Rejected { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let mut namings = Vec::new();
        for tag in tags {
            let naming = Naming::new(&repository.with_tag(tag)?.to_string());
            let by = self.admit(scope, &naming.name, target).await?;
            namings.push(Naming { verified: crate::gate::label(&target.digest, &by), ..naming });
        }
        Ok(Some(namings))
    }

    /// The deletions of records that an index makes superfluous: those of its manifests in the same repository, but for what a tag,
    /// a pin or a pull by digest needs.
    async fn absorbed(
        &self,
        scope: &Scope,
        pushed: &PushedManifest,
        document: Option<&Document>,
    ) -> Result<Vec<ImageChange>> {
        let Some(index) = document.and_then(Document::index) else { return Ok(Vec::new()) };
        let mut children: BTreeSet<Digest> = index.manifests.iter().map(|child| child.digest.clone()).collect();
        children.remove(&pushed.target.digest);
        let namespace = scope.namespace.clone();
        let records = self.blocking(move |store| Ok(store.images_of(&namespace, &children)?)).await?;
        let tag = format!("{}:", pushed.repository);
        let tagged: BTreeSet<&Digest> =
            records.iter().filter(|record| record.name.starts_with(&tag)).map(|record| &record.target.digest).collect();
        let is_superfluous = |record: &&Image| {
            record.name == pushed.repository.with_digest(&record.target.digest).to_string()
                && record.labels.get(labels::PUSHED).is_some_and(|as_what| as_what == labels::PUSHED_MANIFEST)
                && !record.labels.contains_key(labels::REQUESTED)
                && !is_pinned(&record.labels)
                && !tagged.contains(&record.target.digest)
        };
        let delete = |record: &Image| ImageChange::Delete { name: record.name.clone() };
        Ok(records.iter().filter(is_superfluous).map(delete).collect())
    }
}

/// Adds the record that keeps the manifest, or marks it where it is written already.
fn keep(pushed: &PushedManifest, managed: Option<&ImageId>, changes: &mut Vec<ImageChange>) {
    let own = pushed.repository.with_digest(&pushed.target.digest).to_string();
    let as_what = if pushed.is_referrer { labels::PUSHED_REFERRER } else { labels::PUSHED_MANIFEST };
    // What was pushed is no mirror's.
    let marks = [(labels::PUSHED.to_owned(), as_what.to_owned()), (labels::CACHED.to_owned(), String::new())];
    for change in changes.iter_mut() {
        if let ImageChange::Upsert { name, labels, .. } = change
            && *name == own
        {
            labels.extend(marks);
            return;
        }
    }
    let target = Descriptor { platform: None, data: None, urls: Vec::new(), ..pushed.target.clone() };
    let mut labels: Labels = record_labels(managed.is_some(), false);
    labels.extend(marks);
    changes.push(ImageChange::Upsert { name: own, target, labels });
}
