//! Images: all records that lead to one, and what it takes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use orlop_oci::{Digest, ImageId, Platform};

use crate::intern::{FastMap, Number};
use crate::reach::Store;
use crate::records::{Part, RecordView, Records};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The image ID on the wanted platform.
    pub image_id: Option<ImageId>,
    /// Its records as positions in [`Graph::records`], by name.
    pub records: Vec<usize>,
    /// What its records point at.
    pub targets: Vec<Digest>,
    /// Platforms that are complete.
    pub platforms: Vec<Arc<Platform>>,
    /// Whether a record is pinned.
    pub pinned: bool,
    /// The wanted platform lacks something.
    pub incomplete: bool,
    /// What it takes.
    pub sizes: Sizes,
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
    pub(crate) all: Records,
    /// What targets reach, one after the other: blobs, then snapshots, each once.
    reached: Vec<Item>,
    /// By target: its part of `reached`.
    reached_by: Vec<Part>,
    images: Vec<Image>,
    /// What images use, one after the other, each once.
    items: Vec<Item>,
    /// By image: its part of `items`.
    items_of: Vec<Part>,
    uses: Vec<u32>,
}

impl Graph {
    pub(crate) fn new(store: Store) -> Self {
        let all = Records::new(store);
        let uses = vec![0; all.store.digests.len() + all.store.snapshots.len()];
        let mut graph = Self {
            reached: Vec::new(),
            reached_by: vec![0..0; all.targets.len()],
            images: Vec::new(),
            items: Vec::new(),
            items_of: Vec::new(),
            all,
            uses,
        };
        graph.reach();
        graph.collapse();
        graph.measure();
        graph
    }

    /// Every record, in the order it was given.
    pub fn records(&self) -> &Records {
        &self.all
    }

    /// One row an image, by namespace, then by first name; images known only by hash references come last.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Tags and other names of an image, sorted.
    pub fn names<'g>(&'g self, image: &'g Image) -> impl Iterator<Item = &'g str> {
        self.views(image).filter(|view| !view.kind.is_hash_reference()).map(|view| view.name)
    }

    /// Hash references of an image, sorted.
    pub fn hash_references<'g>(&'g self, image: &'g Image) -> impl Iterator<Item = &'g str> {
        self.views(image).filter(|view| view.kind.is_hash_reference()).map(|view| view.name)
    }

    fn views<'g>(&'g self, image: &'g Image) -> impl Iterator<Item = RecordView<'g>> {
        image.records.iter().map(|at| self.all.get(*at))
    }

    /// The images that use a blob, as positions in [`Graph::images`].
    pub fn users(&self, blob: &Digest) -> Vec<usize> {
        let Some(number) = self.all.store.digests.get(blob) else { return Vec::new() };
        (0..self.images.len()).filter(|at| self.items(*at).contains(&number)).collect()
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
        for item in once.iter().flat_map(|image| self.items(*image)) {
            *dropped.entry(*item).or_default() += 1;
        }
        let gone = dropped.into_iter().filter(|(item, count)| self.uses[*item as usize] == *count);
        gone.fold(Freed::default(), |freed, (item, _)| Freed {
            items: freed.items + 1,
            bytes: freed.bytes + self.bytes(item),
        })
    }

    /// Blobs and snapshots that a record reaches: the numbers of blobs, and positions of snapshots.
    pub(crate) fn reached_by(&self, record: usize) -> (impl Iterator<Item = Number>, impl Iterator<Item = u32>) {
        let items = &self.reached[self.reached_by[self.all.target_of[record] as usize].clone()];
        let first_snapshot = self.first_snapshot();
        let (blobs, snapshots) = items.split_at(items.partition_point(|item| *item < first_snapshot));
        (blobs.iter().copied(), snapshots.iter().map(move |item| item - first_snapshot))
    }

    fn items(&self, image: usize) -> &[Item] {
        &self.items[self.items_of[image].clone()]
    }

    fn first_snapshot(&self) -> Item {
        self.all.store.digests.len() as Item
    }

    fn bytes(&self, item: Item) -> u64 {
        match item.checked_sub(self.first_snapshot()) {
            Some(snapshot) => self.all.store.snapshots[snapshot as usize].1,
            None => self.all.store.blob_size(item),
        }
    }

    fn reach(&mut self) {
        let mut marks = self.all.store.marks();
        let first_snapshot = self.first_snapshot();
        let mut snapshots = Vec::new();
        let mut done = vec![false; self.reached_by.len()];
        for (record, target) in self.all.store.records.iter().zip(&self.all.target_of) {
            let target = *target as usize;
            if std::mem::replace(&mut done[target], true) {
                continue;
            }
            marks.0.clear();
            marks.1.clear();
            let start = self.reached.len();
            let (blob, snapshot) = (&mut |n| self.reached.push(n), &mut |n| snapshots.push(n));
            self.all.store.reach(record.namespace, record.target, &mut marks, blob, snapshot);
            self.reached.extend(snapshots.drain(..).map(|n| first_snapshot + n));
            self.reached_by[target] = start..self.reached.len();
        }
    }

    fn collapse(&mut self) {
        let identities = self.all.identities();
        let mut known: FastMap<(u32, Number), usize> = FastMap::default();
        known.reserve(self.all.targets.len());
        for (at, record) in self.all.store.records.iter().enumerate() {
            let (number, target) = (self.all.target_of[at] as usize, self.all.target(at));
            let image = *known.entry((record.namespace, identities[number])).or_insert_with(|| {
                self.images.push(Image {
                    namespace: self.all.store.namespace(record.namespace).clone(),
                    image_id: target.image_id.clone(),
                    records: Vec::with_capacity(3),
                    targets: Vec::new(),
                    platforms: Vec::new(),
                    pinned: false,
                    incomplete: false,
                    sizes: Sizes::default(),
                });
                self.images.len() - 1
            });
            let image = &mut self.images[image];
            let is_new = image.records.iter().all(|other| self.all.target_of[*other] as usize != number);
            image.records.push(at);
            image.pinned |= record.pinned;
            image.incomplete |= !target.complete;
            if !is_new {
                continue;
            }
            image.targets.push(self.all.store.digests.digest(record.target));
            for platform in &target.platforms {
                if !image.platforms.contains(platform) {
                    image.platforms.push(platform.clone());
                }
            }
        }
        self.sort();
    }

    /// By namespace, then by first name. No two records of a namespace have one name, so the first one decides.
    fn sort(&mut self) {
        let records = &self.all.store.records;
        for image in &mut self.images {
            image.records.sort_by(|a, b| records[*a].name.cmp(&records[*b].name));
        }
        let key = |image: &Image| {
            let name = image.records.iter().map(|at| &records[*at]).find(|r| !r.kind.is_hash_reference());
            let first = name.unwrap_or(&records[image.records[0]]);
            (image.namespace.clone(), name.is_none(), first.name.clone())
        };
        self.images.sort_by_cached_key(key);
    }

    fn measure(&mut self) {
        let mut marks = crate::intern::Marks::new(self.uses.len());
        for image in &self.images {
            marks.clear();
            let start = self.items.len();
            let mut last = None;
            for target in image.records.iter().map(|at| self.all.target_of[*at] as usize) {
                if last.replace(target) != Some(target) {
                    let reached = &self.reached[self.reached_by[target].clone()];
                    self.items.extend(reached.iter().copied().filter(|item| marks.insert(*item)));
                }
            }
            self.items[start..].iter().for_each(|item| self.uses[*item as usize] += 1);
            self.items_of.push(start..self.items.len());
        }
        for image in 0..self.images.len() {
            self.images[image].sizes = self.sizes(self.items(image));
        }
    }

    fn sizes(&self, items: &[Item]) -> Sizes {
        let mut sizes = Sizes::default();
        let first_snapshot = self.first_snapshot();
        for &item in items {
            let bytes = self.bytes(item);
            *(if item < first_snapshot { &mut sizes.compressed } else { &mut sizes.unpacked }) += bytes;
            let is_shared = self.uses[item as usize] > 1;
            *(if is_shared { &mut sizes.shared } else { &mut sizes.unique }) += bytes;
        }
        sizes
    }
}
