//! A pass over the records of a namespace that holds little of them at a time.
//!
//! First everything is looked at once, of which names, targets and image IDs are kept: enough to put the records in
//! [`Groups`]. Then some groups at a time are read whole, and only where something has to change are documents and
//! blobs of theirs asked for.
//!
//! # Concurrency
//! Whatever happened after the first look outdates what is decided here ([`Since`](super::Since)); then the pass is
//! made again.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use orlop_metadata::{Image, Labels, Look, Scope, Store};
use orlop_oci::{Descriptor, Digest, ImageId, Platform};

use super::groups::Groups;
use super::{Facts, ROUNDS, Reconciled, changes};
use crate::catalog::Catalog;
use crate::{Images, Result, labels};

/// Records that are read at a time, and at most one group more.
const BATCH: usize = 500;

/// A namespace at the moment it was looked at.
struct Outline {
    /// The last change that it shows.
    seen: i64,
    /// By record.
    names: Vec<Box<str>>,
    groups: Groups,
    /// By target: its image for the host, if that is complete.
    images: HashMap<Digest, Option<ImageId>>,
    /// Targets with documents that nobody has read yet.
    unread: Vec<Image>,
}

impl Images {
    /// Brings in order what has to do with these digests; without them, everything.
    pub(super) async fn pass(&self, scope: &Scope, near: Option<&BTreeSet<Digest>>) -> Result<Reconciled> {
        let near: Option<Vec<Digest>> = near.map(|digests| digests.iter().cloned().collect());
        let mut done = Reconciled::default();
        for _ in 0..ROUNDS {
            let outline = self.outline(scope).await?;
            let mut all = true;
            let mut batch: Vec<usize> = Vec::new();
            let mut groups = outline.groups.of(near.as_deref()).into_iter().peekable();
            while let Some(group) = groups.next() {
                batch.extend(group);
                if batch.len() >= BATCH || groups.peek().is_none() {
                    all &= self.bring_in_order(scope, &outline, &std::mem::take(&mut batch), &mut done).await?;
                }
            }
            if all {
                break;
            }
        }
        Ok(done)
    }

    /// Some groups; returns whether nothing came in between.
    async fn bring_in_order(
        &self,
        scope: &Scope,
        outline: &Outline,
        batch: &[usize],
        done: &mut Reconciled,
    ) -> Result<bool> {
        let names: Vec<Box<str>> = batch.iter().map(|at| outline.names[*at].clone()).collect();
        let namespace = scope.namespace.clone();
        let records = self.blocking(move |store| Ok(store.images_named(&namespace, &names)?)).await?;
        if !self.may_change(outline, &records) {
            return Ok(true);
        }
        let catalog = Catalog { seen: outline.seen, ..self.partial_catalog(scope, records).await? };
        let changes = self.wanted_changes(&scope.namespace, &catalog).await?;
        if changes.is_empty() {
            return Ok(true);
        }
        self.carry_out(scope, catalog, changes, done).await
    }

    /// Whether anything may have to change: what containers stand on and how names ended is not known here.
    fn may_change(&self, outline: &Outline, records: &[Image]) -> bool {
        let settings = self.settings();
        let facts = Facts {
            image: &|target| outline.images.get(target).cloned().flatten(),
            deleted: &|_| false,
            used: &|_| false,
            pins: &settings.pins(),
            now: Timestamp::now(),
            grace_seconds: settings.grace_seconds,
        };
        let stranded = records.iter().any(|record| record.labels.contains_key(labels::STRANDED));
        let moved = records.iter().any(|record| !outline.images.contains_key(&record.target.digest));
        stranded || moved || !changes(records, &facts).is_empty()
    }

    async fn outline(&self, scope: &Scope) -> Result<Outline> {
        let mut outline = self.looked_at(scope).await?;
        if !outline.unread.is_empty() {
            self.partial_catalog(scope, std::mem::take(&mut outline.unread)).await?;
            outline = self.looked_at(scope).await?;
        }
        Ok(outline)
    }

    async fn looked_at(&self, scope: &Scope) -> Result<Outline> {
        let (namespace, platform) = (scope.namespace.clone(), self.platform().clone());
        self.blocking(move |store| Outline::read(store, &namespace, &platform)).await
    }
}

impl Outline {
    fn read(store: &Store, namespace: &str, platform: &Platform) -> Result<Self> {
        let outline = store.look(namespace, |look| {
            let mut outline = Self {
                seen: look.mark()?.change(),
                names: Vec::new(),
                groups: Groups::default(),
                images: HashMap::new(),
                unread: Vec::new(),
            };
            let mut targets = Vec::new();
            look.each_image(|glance| {
                outline.names.push(glance.name.into());
                outline.groups.add(glance.name, &glance.digest);
                if !outline.images.contains_key(&glance.digest) {
                    outline.images.insert(glance.digest.clone(), None);
                    targets.push(Descriptor::new(glance.media_type, glance.digest.clone(), glance.size));
                }
            })?;
            outline.read_targets(look, targets, platform)?;
            Ok(outline)
        })?;
        Ok(outline)
    }

    fn read_targets(
        &mut self,
        look: &Look<'_>,
        mut targets: Vec<Descriptor>,
        platform: &Platform,
    ) -> orlop_metadata::Result<()> {
        // In the order of the tables: a page of them is read once.
        targets.sort_unstable_by(|a, b| a.digest.cmp(&b.digest));
        let blobs = look.blobs()?;
        for target in targets {
            let catalog = Catalog::at_a_look(look, &blobs, &target.digest)?;
            if catalog.has_unread(&target.digest) {
                self.unread.push(Image {
                    name: String::new(),
                    target: target.clone(),
                    labels: Labels::new(),
                    created_at: Timestamp::UNIX_EPOCH,
                    updated_at: Timestamp::UNIX_EPOCH,
                });
            }
            let image = catalog.complete_image(&target.digest, platform);
            if let Some(id) = &image {
                self.groups.same_image(&target.digest, id.digest());
            }
            self.images.insert(target.digest, image);
        }
        Ok(())
    }
}
