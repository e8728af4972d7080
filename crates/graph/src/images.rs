//! The answers: rows of images and records, sizes, and what a removal frees.

use std::collections::{BTreeMap, HashMap, HashSet};

use orlop_oci::{Digest, ImageId, Kind, Platform};

use crate::build::{Item, Resolved, kind};
use crate::{Builder, Record};

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

/// A store's state, resolved.
#[derive(Debug)]
pub struct Graph {
    records: Vec<RecordView>,
    images: Vec<Image>,
    /// The items of each image, sorted.
    items: Vec<Vec<Item>>,
    sizes: Vec<u64>,
    uses: Vec<u32>,
}

type Key = (String, Result<ImageId, Digest>);

impl Graph {
    pub(crate) fn new(builder: Builder) -> Self {
        let mut resolved: HashMap<Digest, Resolved> = HashMap::new();
        for record in &builder.records {
            if !resolved.contains_key(&record.target) {
                resolved.insert(record.target.clone(), builder.resolve(&record.target));
            }
        }
        name_by_id_records(&builder.records, &mut resolved);
        let records: Vec<RecordView> =
            builder.records.iter().map(|record| view(record, &resolved[&record.target])).collect();
        let mut groups: BTreeMap<Key, Vec<usize>> = BTreeMap::new();
        for (n, view) in records.iter().enumerate() {
            let key = view.image_id.clone().ok_or_else(|| view.record.target.clone());
            groups.entry((view.record.namespace.clone(), key)).or_default().push(n);
        }
        let mut graph = Self { records, images: Vec::new(), items: Vec::new(), sizes: Vec::new(), uses: Vec::new() };
        let mut is_blob = vec![true; builder.sizes.len()];
        for item in builder.snapshots.values().flatten() {
            is_blob[*item as usize] = false;
        }
        for ((namespace, key), members) in groups {
            graph.group(&builder, &resolved, namespace, key.ok(), members);
        }
        graph.sizes = builder.sizes;
        graph.measure(&is_blob);
        graph
    }

    /// Every record, in the order it was given.
    pub fn records(&self) -> &[RecordView] {
        &self.records
    }

    /// One row an image.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Bytes of all items that images use, each once.
    pub fn total_bytes(&self) -> u64 {
        self.uses.iter().zip(&self.sizes).filter(|(uses, _)| **uses > 0).map(|(_, size)| size).sum()
    }

    /// What no image would use any more without these images (positions in [`Graph::images`]).
    pub fn freed_by(&self, images: &[usize]) -> Freed {
        let mut dropped: HashMap<Item, u32> = HashMap::new();
        let once: HashSet<usize> = images.iter().copied().collect();
        for &image in &once {
            for &item in &self.items[image] {
                *dropped.entry(item).or_default() += 1;
            }
        }
        let gone = dropped.into_iter().filter(|(item, count)| self.uses[*item as usize] == *count);
        gone.fold(Freed::default(), |freed, (item, _)| Freed {
            items: freed.items + 1,
            bytes: freed.bytes + self.sizes[item as usize],
        })
    }

    fn group(
        &mut self,
        builder: &Builder,
        resolved: &HashMap<Digest, Resolved>,
        namespace: String,
        image_id: Option<ImageId>,
        mut members: Vec<usize>,
    ) {
        members.sort_by(|a, b| self.records[*a].record.name.cmp(&self.records[*b].record.name));
        let mut image = Image {
            namespace,
            image_id,
            records: Vec::new(),
            names: Vec::new(),
            hash_references: Vec::new(),
            targets: Vec::new(),
            platforms: Vec::new(),
            pinned: false,
            incomplete: false,
            sizes: Sizes::default(),
        };
        let mut items = Vec::new();
        for &n in &members {
            let view = &self.records[n];
            let list = if view.kind.is_hash_reference() { &mut image.hash_references } else { &mut image.names };
            list.push(view.record.name.clone());
            image.pinned |= view.record.pinned;
            image.incomplete |= view.incomplete;
            if image.targets.contains(&view.record.target) {
                continue;
            }
            image.targets.push(view.record.target.clone());
            let target = &resolved[&view.record.target];
            items.extend_from_slice(&target.blobs);
            for chain in &target.chains {
                // One look-up for each chain; the key's namespace is cloned only here.
                items.extend(builder.snapshots.get(&(image.namespace.clone(), chain.clone())).into_iter().flatten());
            }
            for platform in &target.platforms {
                if !image.platforms.contains(platform) {
                    image.platforms.push(platform.clone());
                }
            }
        }
        image.records = members;
        items.sort_unstable();
        items.dedup();
        self.images.push(image);
        self.items.push(items);
    }

    fn measure(&mut self, is_blob: &[bool]) {
        self.uses = vec![0; self.sizes.len()];
        for item in self.items.iter().flatten() {
            self.uses[*item as usize] += 1;
        }
        for (image, items) in self.images.iter_mut().zip(&self.items) {
            for &item in items {
                let item = item as usize;
                let bytes = self.sizes[item];
                let form = if is_blob[item] { &mut image.sizes.compressed } else { &mut image.sizes.unpacked };
                *form += bytes;
                let use_ = if self.uses[item] > 1 { &mut image.sizes.shared } else { &mut image.sizes.unique };
                *use_ += bytes;
            }
        }
    }
}

/// Where content is missing, an id record still tells the image ID of its target.
fn name_by_id_records(records: &[Record], resolved: &mut HashMap<Digest, Resolved>) {
    for record in records.iter().filter(|r| kind(r) == Kind::Id) {
        if let (Some(target), Ok(id)) = (resolved.get_mut(&record.target), record.name.parse()) {
            target.image_id.get_or_insert_with(|| ImageId::new(id));
        }
    }
}

fn view(record: &Record, target: &Resolved) -> RecordView {
    RecordView {
        kind: kind(record),
        image_id: target.image_id.clone(),
        platforms: target.platforms.clone(),
        listed_size: target.listed_size,
        incomplete: target.incomplete,
        record: record.clone(),
    }
}
