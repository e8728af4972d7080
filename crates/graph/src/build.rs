//! Taking in the data.

use orlop_oci::{ChainId, Digest, ImageId, Platform, PlatformMatcher};

use crate::Graph;
use crate::intern::{Digests, FastMap, Number};
use crate::reach::Store;

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
    /// Layers (or an artifact's blobs, its config too) with their sizes.
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

/// Something other than a record that keeps an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// For people: `lease pull-1`, `container web`.
    pub name: String,
    /// The namespace of the object.
    pub namespace: String,
    /// What it keeps.
    pub held: Held,
}

/// What a [`Holder`] keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// A blob and all it refers to.
    Blob(Digest),
    /// The snapshots of a chain, e.g. since a container's own snapshot lies on them.
    Chain(ChainId),
    /// The image that a record names.
    Record(String),
}

/// Collects a store's state.
#[derive(Debug)]
pub struct Builder {
    pub(crate) wanted: PlatformMatcher,
    pub(crate) digests: Digests,
    /// By number of digest: its size if the blob is there.
    pub(crate) sizes: Vec<Option<u64>>,
    pub(crate) namespaces: Vec<String>,
    pub(crate) snapshots: Vec<(Place, u64)>,
    pub(crate) manifests: FastMap<Number, Manifest>,
    pub(crate) records: Vec<Record>,
    pub(crate) requested: Vec<usize>,
    pub(crate) links: Vec<(Number, Number)>,
    pub(crate) holders: Vec<Holder>,
}

/// A namespace and a chain ID, as numbers.
pub(crate) type Place = (u32, Number);

impl Builder {
    /// Starts empty; `wanted` says which manifest of an index is the image.
    pub fn new(wanted: PlatformMatcher) -> Self {
        Self {
            wanted,
            digests: Digests::default(),
            sizes: Vec::new(),
            namespaces: Vec::new(),
            snapshots: Vec::new(),
            manifests: FastMap::default(),
            records: Vec::new(),
            requested: Vec::new(),
            links: Vec::new(),
            holders: Vec::new(),
        }
    }

    /// A blob that is present, in any namespace; its size in bytes.
    pub fn blob(&mut self, digest: Digest, size: u64) {
        let number = self.digests.add(&digest) as usize;
        if self.sizes.len() <= number {
            self.sizes.resize(number + 1, None);
        }
        self.sizes[number] = Some(size);
    }

    /// A committed snapshot; the same chain may be there once for each driver.
    pub fn snapshot(&mut self, namespace: &str, chain: Digest, bytes: u64) {
        let place = (self.namespace(namespace), self.digests.add(&chain));
        self.snapshots.push((place, bytes));
    }

    /// What is known of a manifest or index.
    pub fn manifest(&mut self, digest: Digest, manifest: Manifest) {
        let number = self.digests.add(&digest);
        self.manifests.insert(number, manifest);
    }

    /// An image record.
    pub fn record(&mut self, record: Record) {
        self.records.push(record);
    }

    /// The record given last, a hash reference, was asked for by digest: it is a reason to keep its image, as a tag is.
    pub fn requested(&mut self) {
        self.requested.extend(self.records.len().checked_sub(1));
    }

    /// A blob keeps another one for another reason than its content: a referrer, a foreign label.
    pub fn link(&mut self, from: &Digest, to: &Digest) {
        let link = (self.digests.add(from), self.digests.add(to));
        self.links.push(link);
    }

    /// Something other than a record keeps an object.
    pub fn holder(&mut self, holder: Holder) {
        self.holders.push(holder);
    }

    /// Answers from here on.
    pub fn build(self) -> Graph {
        Graph::new(Store::new(self))
    }

    /// There are few namespaces.
    pub(crate) fn namespace(&mut self, name: &str) -> u32 {
        let known = self.namespaces.iter().position(|n| n == name);
        known.unwrap_or_else(|| {
            self.namespaces.push(name.to_owned());
            self.namespaces.len() - 1
        }) as u32
    }
}
