//! Records with what their documents say, and which blobs are there.
//!
//! Manifests are read once: their gist is kept as a summary. Records that another program wrote have none yet; then the
//! stored documents are walked, and what was learnt is remembered.

use std::collections::{BTreeSet, HashMap};

use orlop_metadata::{self as metadata, Image, Look, ManifestSummary, Scope};
use orlop_oci::{Descriptor, Digest, DigestTable, ImageId, Platform, PlatformMatcher};

use crate::pull::Stored;
use crate::walk::{self, Select};
use crate::{Images, Result};

/// Records of one namespace with what is known of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalog {
    /// A change of the history before which nothing happened that the records do not show.
    pub(crate) seen: i64,
    pub(crate) records: Vec<Image>,
    pub(crate) summaries: HashMap<Digest, ManifestSummary>,
    /// Blobs that are there, with their sizes; of a partial catalog: those that its records need.
    pub(crate) content: HashMap<Digest, u64>,
}

/// A manifest that a target stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leaf<'a> {
    pub(crate) digest: &'a Digest,
    /// The platform, from the config or else from the index.
    pub(crate) platform: Option<&'a Platform>,
    /// `None` if the manifest was never here.
    pub(crate) summary: Option<&'a ManifestSummary>,
}

impl Catalog {
    /// The manifests of a target, in document order; nested indexes are followed.
    pub(crate) fn leaves<'a>(&'a self, target: &'a Digest) -> Vec<Leaf<'a>> {
        let mut leaves = Vec::new();
        let mut visited = BTreeSet::new();
        let mut open = vec![(target, None)];
        while let Some((digest, platform)) = open.pop() {
            if !visited.insert(digest) {
                continue;
            }
            match self.summaries.get(digest) {
                Some(summary) if is_index(summary) => {
                    open.extend(summary.manifests.iter().rev().map(|(d, _, p)| (d, p.as_ref())));
                }
                summary => {
                    let own = summary.and_then(|s| s.platform.as_ref());
                    leaves.push(Leaf { digest, platform: own.or(platform), summary });
                }
            }
        }
        leaves
    }

    /// The best manifest of a target for a platform, there or not.
    pub(crate) fn best<'a>(&'a self, target: &'a Digest, platform: &Platform) -> Option<Leaf<'a>> {
        let matcher = PlatformMatcher::only(platform);
        let rank = |leaf: &Leaf<'_>| leaf.platform.and_then(|p| matcher.rank(p));
        self.leaves(target).into_iter().filter(|l| rank(l).is_some()).min_by_key(rank)
    }

    /// Whether a manifest with its config and all its layers is there.
    pub(crate) fn is_complete(&self, leaf: &Leaf<'_>) -> bool {
        let Some(summary) = leaf.summary else { return false };
        let there = |digest: &Digest| self.content.contains_key(digest);
        there(leaf.digest)
            && summary.image_id.as_ref().is_none_or(|id| there(id.digest()))
            && summary.layers.iter().all(|(digest, _)| there(digest))
    }

    /// The image ID of a target for a platform, if that image is complete.
    pub(crate) fn complete_image(&self, target: &Digest, platform: &Platform) -> Option<ImageId> {
        let leaf = self.best(target, platform).filter(|leaf| self.is_complete(leaf))?;
        leaf.summary?.image_id.clone()
    }

    /// Whether a target has documents here that nobody has read yet.
    pub(crate) fn has_unread(&self, target: &Digest) -> bool {
        self.leaves(target).iter().any(|leaf| leaf.summary.is_none() && self.content.contains_key(leaf.digest))
    }

    /// What people call the image of a target: its image ID for the platform, else that of the first image known.
    pub(crate) fn image_id(&self, target: &Digest, platform: &Platform) -> Option<ImageId> {
        let best = self.best(target, platform).and_then(|l| l.summary?.image_id.clone());
        best.or_else(|| self.leaves(target).into_iter().find_map(|l| l.summary?.image_id.clone()))
    }

    /// Every blob that the target needs and that was ever known here: documents, configs, layers, with sizes.
    pub(crate) fn blobs(&self, target: &Descriptor) -> HashMap<Digest, u64> {
        let mut blobs = HashMap::from([(target.digest.clone(), target.size)]);
        let mut open = vec![&target.digest];
        let mut visited = BTreeSet::new();
        while let Some(digest) = open.pop() {
            let Some(summary) = self.summaries.get(digest).filter(|_| visited.insert(digest)) else { continue };
            blobs.insert(digest.clone(), summary.size);
            if let Some(id) = &summary.image_id {
                blobs.insert(id.digest().clone(), summary.config_size);
            }
            blobs.extend(summary.layers.iter().cloned());
            open.extend(summary.manifests.iter().map(|(d, _, _)| d));
        }
        blobs
    }
}

pub(crate) fn is_index(summary: &ManifestSummary) -> bool {
    orlop_oci::MediaKind::of(&summary.media_type) == orlop_oci::MediaKind::Index
}

impl Images {
    /// Everything of a namespace.
    pub(crate) async fn catalog(&self, scope: &Scope) -> Result<Catalog> {
        let owned = scope.clone();
        let mut catalog = self
            .blocking(move |store| {
                Ok(Catalog {
                    seen: store.last_change()?,
                    records: store.images(&owned.namespace, &[])?,
                    summaries: store.summaries()?,
                    content: store.content(&owned).sizes()?,
                })
            })
            .await?;
        self.complete(scope, &mut catalog).await?;
        Ok(catalog)
    }

    /// Only what these records need.
    pub(crate) async fn partial_catalog(&self, scope: &Scope, records: Vec<Image>) -> Result<Catalog> {
        let mut catalog = Catalog { records, ..Catalog::default() };
        let (mut known, owned) = (catalog.clone(), scope.clone());
        catalog = self
            .blocking(move |store| {
                known.fill(store, &owned)?;
                Ok(known)
            })
            .await?;
        if self.complete(scope, &mut catalog).await? {
            let (mut known, owned) = (catalog, scope.clone());
            catalog = self
                .blocking(move |store| {
                    known.fill(store, &owned)?;
                    Ok(known)
                })
                .await?;
        }
        Ok(catalog)
    }

    /// The records that have to do with these digests: of targets, manifests, configs or layers; `None` if only all records
    /// can tell, for what nobody has read may have any of them.
    pub(crate) async fn kin_records(&self, scope: &Scope, digests: BTreeSet<Digest>) -> Result<Option<Vec<Image>>> {
        let namespace = scope.namespace.clone();
        self.blocking(move |store| match store.has_loose_targets(&namespace)? {
            true => Ok(None),
            false => Ok(Some(store.images_leading_to(&namespace, &digests)?)),
        })
        .await
    }

    /// The same with what is known of them; perhaps of more than those.
    pub(crate) async fn kin(&self, scope: &Scope, digests: BTreeSet<Digest>) -> Result<Catalog> {
        match self.kin_records(scope, digests).await? {
            Some(records) => self.partial_catalog(scope, records).await,
            None => self.catalog(scope).await,
        }
    }

    /// The same for the records of the image of a target, and that image's ID.
    pub(crate) async fn kin_of(&self, scope: &Scope, target: &Descriptor) -> Result<Catalog> {
        let own = self.target_catalog(scope, target).await?;
        let mut digests = BTreeSet::from([target.digest.clone()]);
        digests.extend(own.image_id(&target.digest, self.platform()).map(|id| id.digest().clone()));
        self.kin(scope, digests).await
    }

    /// Only what a target needs, whether or not a record names it.
    pub(crate) async fn target_catalog(&self, scope: &Scope, target: &Descriptor) -> Result<Catalog> {
        let now = jiff::Timestamp::now();
        let (name, labels) = (String::new(), metadata::Labels::new());
        let record = Image { name, target: target.clone(), labels, created_at: now, updated_at: now };
        self.partial_catalog(scope, vec![record]).await
    }

    /// Adds summaries of targets that have none. Returns whether there were any.
    async fn complete(&self, scope: &Scope, catalog: &mut Catalog) -> Result<bool> {
        let mut unknown: HashMap<Digest, Descriptor> = HashMap::new();
        for record in &catalog.records {
            if catalog.has_unread(&record.target.digest) {
                unknown.insert(record.target.digest.clone(), record.target.clone());
            }
        }
        let unknown: Vec<_> = unknown.into_values().map(|target| (scope.clone(), target)).collect();
        let learnt = self.learn(&unknown).await?;
        let any = !learnt.is_empty();
        catalog.summaries.extend(learnt);
        Ok(any)
    }

    /// Walks targets of which nothing is known and remembers what their documents say.
    pub(crate) async fn learn(&self, unknown: &[(Scope, Descriptor)]) -> Result<Vec<(Digest, ManifestSummary)>> {
        let mut learnt = Vec::new();
        for (scope, target) in unknown {
            let documents = Stored(self.store().content(scope));
            match walk::walk(&documents, target.digest.as_str(), target, &Select::Present).await {
                Ok(tree) => learnt.extend(tree.summaries()),
                // A document that makes no sense has no gist; `check` reports it.
                Err(error) => tracing::debug!(%error, digest = %target.digest, "not an image"),
            }
        }
        if !learnt.is_empty() && self.store().read_only_reason().is_none() {
            let remembered = learnt.clone();
            self.blocking(move |store| Ok(store.put_summaries(&remembered)?)).await?;
        }
        Ok(learnt)
    }
}

impl Catalog {
    /// What is known of a target, without reading documents. Blocks.
    pub(crate) fn of_target(store: &metadata::Store, scope: &Scope, target: &Digest) -> Result<Self> {
        let mut catalog = Self::default();
        catalog.look_up(vec![target.clone()], store, scope)?;
        Ok(catalog)
    }

    /// The same at a look at the store, whose blobs are known: only whether they are there, not their sizes.
    pub(crate) fn at_a_look(look: &Look<'_>, blobs: &DigestTable, target: &Digest) -> metadata::Result<Self> {
        let mut catalog = Self::default();
        let mut open = vec![target.clone()];
        while let Some(digest) = open.pop() {
            if catalog.summaries.contains_key(&digest) {
                continue;
            }
            let mut there = |digest: &Digest| {
                if blobs.get(digest).is_some() {
                    catalog.content.insert(digest.clone(), 0);
                }
            };
            there(&digest);
            let Some(summary) = look.summary(&digest)? else { continue };
            summary.image_id.iter().for_each(|id| there(id.digest()));
            summary.layers.iter().for_each(|(layer, _)| there(layer));
            open.extend(summary.manifests.iter().map(|(manifest, _, _)| manifest.clone()));
            catalog.summaries.insert(digest, summary);
        }
        Ok(catalog)
    }

    /// Adds what is known of these blobs by themselves.
    pub(crate) fn describe(&mut self, digests: BTreeSet<Digest>, store: &metadata::Store, scope: &Scope) -> Result<()> {
        let unknown = digests.into_iter().filter(|digest| !self.content.contains_key(digest)).collect();
        self.look_up(unknown, store, scope)
    }

    /// Looks up the summaries and blobs that the records need.
    fn fill(&mut self, store: &metadata::Store, scope: &Scope) -> Result<()> {
        let targets = self.records.iter().map(|r| r.target.digest.clone()).collect();
        self.look_up(targets, store, scope)
    }

    fn look_up(&mut self, mut open: Vec<Digest>, store: &metadata::Store, scope: &Scope) -> Result<()> {
        let mut visited = BTreeSet::new();
        let mut needed: BTreeSet<Digest> = BTreeSet::new();
        while let Some(digest) = open.pop() {
            if !visited.insert(digest.clone()) {
                continue;
            }
            needed.insert(digest.clone());
            let Some(summary) = store.summary(&digest)? else { continue };
            needed.extend(summary.image_id.iter().map(|id| id.digest().clone()));
            needed.extend(summary.layers.iter().map(|(d, _)| d.clone()));
            open.extend(summary.manifests.iter().map(|(d, _, _)| d.clone()));
            self.summaries.insert(digest, summary);
        }
        let content = store.content(scope);
        for digest in needed {
            match content.stat(&digest) {
                Ok(info) => drop(self.content.insert(digest, info.size)),
                Err(metadata::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
