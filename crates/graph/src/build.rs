//! Taking in the data: interning, and choosing the manifest of a platform.

use std::collections::HashMap;

use orlop_oci::{ChainId, Digest, ImageId, Kind, Platform, PlatformMatcher, classify};

use crate::Graph;

/// Indexes deeper than this are not followed; real ones have one level.
const MAX_INDEX_DEPTH: usize = 8;

/// What is known of a manifest or an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The document's own size in bytes.
    pub size: u64,
    /// The config's digest, if this is an image.
    pub image_id: Option<ImageId>,
    /// The config's size in bytes.
    pub config_size: u64,
    /// The platform, if known.
    pub platform: Option<Platform>,
    /// Chain IDs, lowest first: the keys of its snapshots.
    pub chain: Vec<ChainId>,
    /// Layers (or an artifact's blobs) with their sizes.
    pub layers: Vec<(Digest, u64)>,
    /// An index's manifests with sizes and platforms.
    pub manifests: Vec<(Digest, u64, Option<Platform>)>,
}

/// An image record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// What it points at.
    pub target: Digest,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// An item's number.
pub(crate) type Item = u32;

/// What a manifest resolves to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resolved {
    /// The image ID on the wanted platform.
    pub(crate) image_id: Option<ImageId>,
    /// Platforms whose config and layers are all here.
    pub(crate) platforms: Vec<Platform>,
    /// Blobs that are here, of every platform.
    pub(crate) blobs: Vec<Item>,
    /// The chain of every platform.
    pub(crate) chains: Vec<Digest>,
    /// Bytes of target, manifest, config and layers of the wanted platform, as the documents say.
    pub(crate) listed_size: u64,
    /// The wanted platform is not complete.
    pub(crate) incomplete: bool,
}

/// Collects a store's state.
#[derive(Debug)]
pub struct Builder {
    wanted: PlatformMatcher,
    blobs: HashMap<Digest, Item>,
    pub(crate) sizes: Vec<u64>,
    pub(crate) snapshots: HashMap<(String, Digest), Vec<Item>>,
    manifests: HashMap<Digest, Manifest>,
    pub(crate) records: Vec<Record>,
}

impl Builder {
    /// Starts empty; `wanted` says which manifest of an index is the image.
    pub fn new(wanted: PlatformMatcher) -> Self {
        Self {
            wanted,
            blobs: HashMap::new(),
            sizes: Vec::new(),
            snapshots: HashMap::new(),
            manifests: HashMap::new(),
            records: Vec::new(),
        }
    }

    /// A blob that is present, in any namespace; its size in bytes.
    pub fn blob(&mut self, digest: Digest, size: u64) {
        let next = self.sizes.len() as Item;
        if *self.blobs.entry(digest).or_insert(next) == next {
            self.sizes.push(size);
        }
    }

    /// A committed snapshot; the same chain may be there once for each driver.
    pub fn snapshot(&mut self, namespace: &str, chain: Digest, bytes: u64) {
        let item = self.sizes.len() as Item;
        self.sizes.push(bytes);
        self.snapshots.entry((namespace.to_owned(), chain)).or_default().push(item);
    }

    /// What is known of a manifest or index.
    pub fn manifest(&mut self, digest: Digest, manifest: Manifest) {
        self.manifests.insert(digest, manifest);
    }

    /// An image record.
    pub fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// Answers from here on.
    pub fn build(self) -> Graph {
        Graph::new(self)
    }

    /// Follows a target to its items; each target once, however many records name it.
    pub(crate) fn resolve(&self, target: &Digest) -> Resolved {
        let mut resolved = Resolved::default();
        let Some(&item) = self.blobs.get(target) else {
            resolved.incomplete = true;
            return resolved;
        };
        resolved.blobs.push(item);
        let Some(manifest) = self.manifests.get(target) else {
            resolved.incomplete = true;
            return resolved;
        };
        let mut best = Best::default();
        self.walk(target, manifest, None, &mut resolved, &mut best, 0);
        match best.found {
            Some(image) => {
                resolved.image_id = image.image_id;
                resolved.incomplete = !image.complete;
                let own = if image.nested { self.size_of(target) } else { 0 };
                resolved.listed_size = own + image.listed_size;
            }
            None => resolved.listed_size = self.size_of(target),
        }
        resolved.blobs.sort_unstable();
        resolved.blobs.dedup();
        resolved
    }

    fn size_of(&self, digest: &Digest) -> u64 {
        self.blobs.get(digest).map_or(0, |&item| self.sizes[item as usize])
    }

    fn walk(
        &self,
        digest: &Digest,
        manifest: &Manifest,
        declared: Option<&Platform>,
        resolved: &mut Resolved,
        best: &mut Best,
        depth: usize,
    ) {
        if manifest.manifests.is_empty() {
            let leaf = self.leaf(digest, manifest, resolved);
            let platform = manifest.platform.as_ref().filter(|p| !p.is_unknown()).or(declared);
            best.offer(&self.wanted, platform, Leaf { nested: depth > 0, ..leaf });
            return;
        }
        for (child, _, platform) in &manifest.manifests {
            let Some(&item) = self.blobs.get(child) else { continue };
            let seen = resolved.blobs.contains(&item);
            resolved.blobs.push(item);
            // A document cannot contain its own digest, but rows may come from anywhere: bound both ways.
            if seen || depth >= MAX_INDEX_DEPTH {
                continue;
            }
            if let Some(manifest) = self.manifests.get(child) {
                self.walk(child, manifest, platform.as_ref(), resolved, best, depth + 1);
            }
        }
    }

    fn leaf(&self, digest: &Digest, manifest: &Manifest, resolved: &mut Resolved) -> Leaf {
        let mut leaf = Leaf {
            image_id: manifest.image_id.clone(),
            complete: true,
            listed_size: self.size_of(digest) + manifest.config_size,
            nested: false,
        };
        let config = manifest.image_id.iter().map(ImageId::digest);
        for digest in config.chain(manifest.layers.iter().map(|(layer, _)| layer)) {
            match self.blobs.get(digest) {
                Some(&item) => resolved.blobs.push(item),
                None => leaf.complete = false,
            }
        }
        leaf.listed_size += manifest.layers.iter().map(|(_, size)| size).sum::<u64>();
        resolved.chains.extend(manifest.chain.iter().map(|c| c.digest().clone()));
        if let Some(platform) = manifest.platform.as_ref().filter(|p| leaf.complete && !p.is_unknown()) {
            resolved.platforms.push(platform.clone());
        }
        leaf
    }
}

/// One platform's image.
#[derive(Debug)]
struct Leaf {
    image_id: Option<ImageId>,
    complete: bool,
    listed_size: u64,
    nested: bool,
}

/// The manifest that stands for an index: complete before incomplete, the wanted platform before others, then order.
#[derive(Debug, Default)]
struct Best {
    rank: Option<(bool, usize)>,
    found: Option<Leaf>,
}

impl Best {
    fn offer(&mut self, wanted: &PlatformMatcher, platform: Option<&Platform>, leaf: Leaf) {
        if leaf.image_id.is_none() && leaf.nested {
            return;
        }
        let accepted = match platform {
            Some(platform) => wanted.rank(platform),
            None if leaf.nested => None,
            None => Some(0),
        };
        let rank = (!leaf.complete, accepted.unwrap_or(usize::MAX));
        if self.rank.is_none_or(|best| rank < best) {
            self.rank = Some(rank);
            self.found = Some(leaf);
        }
    }
}

/// The kind of a record's name.
pub(crate) fn kind(record: &Record) -> Kind {
    classify(&record.name)
}
