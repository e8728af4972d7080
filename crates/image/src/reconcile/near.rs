//! What has to do with some records and digests, found without going through everything there is.
//!
//! # Invariants
//! - What [`changes`](super::changes) makes of [`Images::groups_of`] is what it makes of the same records among all: every
//!   name that may need one of their hash references is among them. Where only a look at all records can tell, there are none.
//!
//! # Concurrency
//! As in [`super`]: what happened after the records were read outdates what is decided on them.

use std::collections::{BTreeMap, BTreeSet};

use orlop_metadata::{HistoryEntry, Image, Scope};
use orlop_oci::{Digest, Reference};

use super::{RECONCILER, ROUNDS, Reconciled, digest_of, strands};
use crate::catalog::Catalog;
use crate::{Images, Result};

/// What changes of records may concern.
#[derive(Debug, Clone, Default)]
pub(super) struct Near {
    pub(super) names: BTreeSet<String>,
    pub(super) targets: BTreeSet<Digest>,
}

impl Near {
    pub(super) fn new(changes: &[HistoryEntry]) -> Self {
        let names = changes.iter().map(|change| change.name.clone()).collect();
        // Also what a record pointed at in between: its hash references may be left from then.
        let targets = changes.iter().filter_map(|change| change.old.clone()).collect();
        Self { names, targets }
    }

    pub(super) fn and(mut self, name: &str) -> Self {
        self.names.insert(name.to_owned());
        self
    }
}

impl Images {
    pub(super) async fn reconcile_near(&self, namespace: &str, near: Near) -> Result<Reconciled> {
        let scope = Scope::new(namespace, RECONCILER);
        let mut done = Reconciled::default();
        for _ in 0..ROUNDS {
            let mut catalog = self.neighbours(&scope, near.clone()).await?;
            let mut changes = self.wanted_changes(namespace, &catalog).await?;
            // Whether a hash reference is stranded, only all that may need it can tell.
            if changes.iter().any(strands) {
                let mut concerned: BTreeSet<Digest> = near.targets.clone();
                concerned.extend(catalog.records.iter().map(|record| record.target.digest.clone()));
                let Some(whole) = self.groups_of(&scope, concerned.clone()).await? else {
                    let more = self.pass(&scope, Some(&concerned)).await?;
                    done.created.extend(more.created);
                    done.updated.extend(more.updated);
                    done.removed.extend(more.removed);
                    break;
                };
                changes = self.wanted_changes(namespace, &whole).await?;
                catalog = whole;
            }
            if changes.is_empty() || self.carry_out(&scope, catalog, changes, &mut done).await? {
                break;
            }
        }
        Ok(done)
    }

    /// The records that share a target with what changed, as it is or as it was.
    async fn neighbours(&self, scope: &Scope, near: Near) -> Result<Catalog> {
        let namespace = scope.namespace.clone();
        let (seen, records) = self
            .blocking(move |store| {
                let seen = store.last_change()?;
                let mut targets = near.targets;
                let named = store.images_named(&namespace, &near.names)?;
                targets.extend(named.into_iter().map(|image| image.target.digest));
                Ok((seen, store.images_of(&namespace, &targets)?))
            })
            .await?;
        Ok(Catalog { seen, ..self.partial_catalog(scope, records).await? })
    }

    /// All records of the images that have to do with these digests; `None` if only all records can tell.
    async fn groups_of(&self, scope: &Scope, mut digests: BTreeSet<Digest>) -> Result<Option<Catalog>> {
        loop {
            let seen = self.blocking(|store| Ok(store.last_change()?)).await?;
            let Some(records) = self.kin_records(scope, digests.clone()).await? else { return Ok(None) };
            let records = self.with_hashes(scope, records, &digests).await?;
            let mut catalog = Catalog { seen, ..self.partial_catalog(scope, records).await? };
            let known = digests.len();
            let mut ours = vec![false; catalog.records.len()];
            for (record, ours) in catalog.records.iter().zip(&mut ours) {
                let own = self.own_digests(&catalog, record);
                *ours = own.iter().any(|digest| digests.contains(digest));
                digests.extend(own.into_iter().filter(|_| *ours));
            }
            if digests.len() == known {
                // An index that has one of these manifests for another platform leads here too, and is another image's.
                let mut ours = ours.into_iter();
                catalog.records.retain(|_| ours.next().unwrap_or_default());
                return Ok(Some(catalog));
            }
        }
    }

    /// What makes a record one of an image's: its target, that image's ID, and the digest in its name.
    pub(crate) fn own_digests(&self, catalog: &Catalog, record: &Image) -> Vec<Digest> {
        let target = &record.target.digest;
        let id = catalog.image_id(target, self.platform()).map(|id| id.digest().clone());
        [Some(target.clone()), id, digest_of(&record.name)].into_iter().flatten().collect()
    }

    /// Adds records that have the name of a hash reference of these, wherever they point; by name.
    pub(crate) async fn with_hashes(
        &self,
        scope: &Scope,
        records: Vec<Image>,
        near: &BTreeSet<Digest>,
    ) -> Result<Vec<Image>> {
        let mut names: BTreeSet<String> = near.iter().map(ToString::to_string).collect();
        for record in records.iter().filter(|record| near.contains(&record.target.digest)) {
            if let Ok(Reference::Tag { repository, .. }) = record.name.parse::<Reference>() {
                names.insert(repository.with_digest(&record.target.digest).to_string());
            }
        }
        let namespace = scope.namespace.clone();
        self.blocking(move |store| {
            let mut by_name: BTreeMap<String, Image> = records.into_iter().map(|r| (r.name.clone(), r)).collect();
            let named = store.images_named(&namespace, &names)?;
            by_name.extend(named.into_iter().map(|record| (record.name.clone(), record)));
            Ok(by_name.into_values().collect())
        })
        .await
    }
}
