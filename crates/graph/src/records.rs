//! What each record leads to.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use orlop_oci::{Digest, ImageId, Kind, Platform, Reference};

use crate::intern::{FastMap, Number};
use crate::reach::{Store, Target};

/// One record with what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordView<'g> {
    /// The namespace.
    pub namespace: &'g str,
    /// The name.
    pub name: &'g str,
    /// The kind of its name.
    pub kind: Kind,
    /// Whether it is pinned.
    pub pinned: bool,
    /// The image ID on the wanted platform.
    pub image_id: Option<&'g ImageId>,
    /// Platforms that are complete.
    pub platforms: &'g [Arc<Platform>],
    /// Bytes of target, manifest, config and layers of the wanted platform, as `ctr` counts them.
    pub listed_size: u64,
    /// The wanted platform lacks something.
    pub incomplete: bool,
}

/// Every record, resolved; each namespace and target once, however many records name it.
#[derive(Debug)]
pub struct Records {
    pub(crate) store: Store,
    pub(crate) targets: Vec<Target>,
    /// By record: its target.
    pub(crate) target_of: Vec<u32>,
}

impl Records {
    pub(crate) fn new(store: Store) -> Self {
        let target_of = Vec::with_capacity(store.records.len());
        let mut records = Self { store, targets: Vec::new(), target_of };
        records.resolve();
        records
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.target_of.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.target_of.is_empty()
    }

    /// One record, by its place in the order they were given.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn get(&self, at: usize) -> RecordView<'_> {
        let (record, target) = (&self.store.records[at], self.target(at));
        RecordView {
            namespace: self.store.namespace(record.namespace),
            name: &record.name,
            kind: record.kind,
            pinned: record.pinned,
            image_id: target.image_id.as_ref(),
            platforms: &target.platforms,
            listed_size: target.listed_size,
            incomplete: !target.complete,
        }
    }

    /// Every record, in the order they were given.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordView<'_>> {
        (0..self.len()).map(|at| self.get(at))
    }

    /// What a record points at.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn target_digest(&self, at: usize) -> Digest {
        self.store.digests.digest(self.store.records[at].target)
    }

    /// Records whose target leads to a document that is there but of which nothing was given; of several with one target
    /// the first.
    pub fn unknown(&self) -> Vec<usize> {
        let mut opened = self.store.marks().0;
        let mut next = 0;
        let mut unknown = Vec::new();
        for (at, record) in self.store.records.iter().enumerate() {
            // Targets were numbered in the order of the records.
            if self.target_of[at] != next {
                continue;
            }
            next += 1;
            if self.store.is_unknown(record.namespace, record.target, &mut opened) {
                unknown.push(at);
            }
        }
        unknown
    }

    pub(crate) fn target(&self, at: usize) -> &Target {
        &self.targets[self.target_of[at] as usize]
    }

    fn resolve(&mut self) {
        let mut opened = self.store.marks().0;
        let mut known: FastMap<(u32, Number), u32> = FastMap::default();
        known.reserve(self.store.records.len());
        for record in &self.store.records {
            let at = *known.entry((record.namespace, record.target)).or_insert_with(|| {
                self.targets.push(self.store.describe(record.namespace, record.target, &mut opened));
                self.targets.len() as u32 - 1
            });
            self.target_of.push(at);
        }
        // Where content is missing, an id record still tells the image ID of its target.
        for (record, at) in self.store.records.iter().zip(&self.target_of).filter(|(r, _)| r.kind == Kind::Id) {
            let target = &mut self.targets[*at as usize];
            if target.image_id.is_none()
                && let Ok(Reference::Id(id)) = record.name.parse()
            {
                target.image_id = Some(id);
            }
        }
    }

    /// Numbers by which records of one image are known, by target: that of the image ID, else that of the target.
    pub(crate) fn identities(&self) -> Vec<Number> {
        let mut identities = vec![0; self.targets.len()];
        // Image IDs that nothing but a name tells have no number: these count down from the highest.
        let mut strange: HashMap<&ImageId, Number> = HashMap::new();
        for (record, at) in self.store.records.iter().zip(&self.target_of) {
            let at = *at as usize;
            identities[at] = match &self.targets[at].image_id {
                None => record.target,
                Some(id) => self.store.digests.get(id.digest()).unwrap_or_else(|| {
                    let next = Number::MAX - 1 - strange.len() as Number;
                    *strange.entry(id).or_insert(next)
                }),
            };
        }
        identities
    }
}

/// A part of a list of numbers.
pub(crate) type Part = Range<usize>;
