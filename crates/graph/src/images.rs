//! The answers: rows of images and records, sizes, and what a removal frees.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use orlop_oci::{Digest, ImageId, Kind, Platform, Reference};

use crate::Record;
use crate::intern::FastMap;
use crate::reach::{Store, Target};

/// What an image takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Its blobs that are present.
    pub compressed: u64,
    /// Its snapshots.
    pub unpacked: u64,
    /// Of both, what other images use too.
    pub shared: u64,
    /// Of both, what only it uses.
    pub unique: u64,
}

/// One image: all records that lead to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// The namespace.
    pub namespace: String,
    /// The image ID on the wanted platform.
    pub image_id: Option<ImageId>,
    /// Its records as positions in [`Graph::records`], by name.
    pub records: Vec<usize>,
    /// Tags and other names.
    pub names: Vec<String>,
    /// Hash references.
    pub hash_references: Vec<String>,
    /// What its records point at.
    pub targets: Vec<Digest>,
    /// Platforms that are complete.
    pub platforms: Vec<Platform>,
    /// Whether a record is pinned.
    pub pinned: bool,
    /// The wanted platform lacks something.
    pub incomplete: bool,
    /// What it takes.
    pub sizes: Sizes,
}

/// One record with what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView {
    /// The record.
    pub record: Record,
    /// The kind of its name.
    pub kind: Kind,
    /// The image ID on the wanted platform.
    pub image_id: Option<ImageId>,
    /// Platforms that are complete.
    pub platforms: Vec<Platform>,
    /// Bytes of target, manifest, config and layers of the wanted platform, as `ctr` counts them.
    pub listed_size: u64,
    /// The wanted platform lacks something.
    pub incomplete: bool,
}

/// What nothing would use any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Blobs and snapshots.
    pub items: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A blob or snapshot: snapshots are numbered after the digests.
type Item = u32;

/// A store's state, resolved.
#[derive(Debug)]
pub struct Graph {
    pub(crate) store: Store,
    /// One for each namespace and target that records have.
    pub(crate) targets: Vec<Target>,
    /// By record: its target.
    pub(crate) target_of: Vec<usize>,
    records: Vec<RecordView>,
    images: Vec<Image>,
    /// By image: its blobs and snapshots, each once.
    items: Vec<Vec<Item>>,
    uses: Vec<u32>,
}

impl Graph {
    pub(crate) fn new(store: Store) -> Self {
        let mut graph = Self {
            targets: Vec::new(),
            target_of: Vec::with_capacity(store.records.len()),
            records: Vec::with_capacity(store.records.len()),
            images: Vec::new(),
            items: Vec::new(),
            uses: vec![0; store.digests.len() + store.snapshots.len()],
            store,
        };
        graph.resolve();
        graph.view();
        graph.collapse();
        graph.measure();
        graph
    }

    /// Every record, in the order it was given.
    pub fn records(&self) -> &[RecordView] {
        &self.records
    }

    /// One row an image, by namespace, then by first name; images known only by hash references come last.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// The images that use a blob, as positions in [`Graph::images`].
    pub fn users(&self, blob: &Digest) -> Vec<usize> {
        let Some(number) = self.store.digests.get(blob) else { return Vec::new() };
        (0..self.images.len()).filter(|at| self.items[*at].contains(&number)).collect()
    }

    /// Bytes of all items that images use, each once.
    pub fn total_bytes(&self) -> u64 {
        (0..self.uses.len() as Item).filter(|item| self.uses[*item as usize] > 0).map(|item| self.bytes(item)).sum()
    }

    /// What no image would use any more without these images (positions in [`Graph::images`]). Holders do not count:
    /// [`Graph::plan`] knows them.
    pub fn freed_by(&self, images: &[usize]) -> Freed {
        let once: HashSet<usize> = images.iter().copied().collect();
        let mut dropped: HashMap<Item, u32> = HashMap::new();
        for item in once.iter().flat_map(|image| &self.items[*image]) {
            *dropped.entry(*item).or_default() += 1;
        }
        let gone = dropped.into_iter().filter(|(item, count)| self.uses[*item as usize] == *count);
        gone.fold(Freed::default(), |freed, (item, _)| Freed {
            items: freed.items + 1,
            bytes: freed.bytes + self.bytes(item),
        })
    }

    fn bytes(&self, item: Item) -> u64 {
        match (item as usize).checked_sub(self.store.digests.len()) {
            Some(snapshot) => self.store.snapshots[snapshot].1,
            None => self.store.blob_size(item),
        }
    }

    /// Each namespace and target once, however many records name it.
    fn resolve(&mut self) {
        let mut marks = self.store.marks();
        let mut known: FastMap<(u32, u32), usize> = FastMap::default();
        let mut namespaces: Vec<&str> = Vec::new();
        for record in &self.store.records {
            let namespace = namespaces.iter().position(|n| *n == record.namespace).unwrap_or_else(|| {
                namespaces.push(&record.namespace);
                namespaces.len() - 1
            });
            // Every target has a number since the store was made.
            let Some(number) = self.store.digests.get(&record.target) else { continue };
            let at = *known.entry((namespace as u32, number)).or_insert_with(|| {
                self.targets.push(self.store.target(&record.namespace, number, &mut marks));
                self.targets.len() - 1
            });
            self.target_of.push(at);
        }
        // Where content is missing, an id record still tells the image ID of its target.
        for (at, record) in self.store.records.iter().enumerate().filter(|(at, _)| self.store.kinds[*at] == Kind::Id) {
            if let Ok(Reference::Id(id)) = record.name.parse() {
                self.targets[self.target_of[at]].image_id.get_or_insert(id);
            }
        }
    }

    fn view(&mut self) {
        for (at, record) in std::mem::take(&mut self.store.records).into_iter().enumerate() {
            let target = &self.targets[self.target_of[at]];
            self.records.push(RecordView {
                record,
                kind: self.store.kinds[at],
                image_id: target.image_id.clone(),
                platforms: target.platforms.clone(),
                listed_size: target.listed_size,
                incomplete: !target.complete,
            });
        }
    }

    fn collapse(&mut self) {
        let mut known: FastMap<(&str, &Digest), usize> = FastMap::default();
        for (at, view) in self.records.iter().enumerate() {
            let (record, target) = (&view.record, &self.targets[self.target_of[at]]);
            let identity = target.image_id.as_ref().map_or(&record.target, ImageId::digest);
            let image = match known.entry((record.namespace.as_str(), identity)) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    let (namespace, image_id) = (record.namespace.clone(), target.image_id.clone());
                    self.images.push(Image { namespace, image_id, ..Image::default() });
                    *entry.insert(self.images.len() - 1)
                }
            };
            let image = &mut self.images[image];
            image.records.push(at);
            image.pinned |= record.pinned;
            image.incomplete |= !target.complete;
            if image.targets.contains(&record.target) {
                continue;
            }
            image.targets.push(record.target.clone());
            for platform in &target.platforms {
                if !image.platforms.contains(platform) {
                    image.platforms.push(platform.clone());
                }
            }
        }
        for image in &mut self.images {
            image.records.sort_by(|a, b| self.records[*a].record.name.cmp(&self.records[*b].record.name));
            for view in image.records.iter().map(|r| &self.records[*r]) {
                let is_hash_reference = view.kind.is_hash_reference();
                let names = if is_hash_reference { &mut image.hash_references } else { &mut image.names };
                names.push(view.record.name.clone());
            }
        }
        self.images.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
    }

    fn measure(&mut self) {
        let mut marks = self.store.marks();
        let first_snapshot = self.store.digests.len() as Item;
        for image in &self.images {
            marks.0.clear();
            marks.1.clear();
            let mut items = Vec::new();
            for target in image.records.iter().map(|r| &self.targets[self.target_of[*r]]) {
                items.extend(target.blobs.iter().copied().filter(|n| marks.0.insert(*n)));
                let snapshots = target.snapshots.iter().copied().filter(|n| marks.1.insert(*n));
                items.extend(snapshots.map(|n| first_snapshot + n));
            }
            items.iter().for_each(|item| self.uses[*item as usize] += 1);
            self.items.push(items);
        }
        let sizes: Vec<Sizes> = self.items.iter().map(|items| self.sizes(items)).collect();
        for (image, sizes) in self.images.iter_mut().zip(sizes) {
            image.sizes = sizes;
        }
    }

    fn sizes(&self, items: &[Item]) -> Sizes {
        let mut sizes = Sizes::default();
        for &item in items {
            let bytes = self.bytes(item);
            let is_blob = (item as usize) < self.store.digests.len();
            *(if is_blob { &mut sizes.compressed } else { &mut sizes.unpacked }) += bytes;
            let is_shared = self.uses[item as usize] > 1;
            *(if is_shared { &mut sizes.shared } else { &mut sizes.unique }) += bytes;
        }
        sizes
    }
}

fn sort_key(image: &Image) -> (&str, bool, &[String], &[String]) {
    (&image.namespace, image.names.is_empty(), &image.names, &image.hash_references)
}
