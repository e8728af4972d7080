//! Taking in the data.

use std::sync::Arc;

use orlop_oci::{ChainId, Digest, DigestNumber, DigestTable, ImageId, Kind, Platform, PlatformMatcher, classify};

use crate::intern::{Bits, FastMap, Number};
use crate::reach::{Base, Store};
use crate::{Graph, Records};

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

/// A [`Manifest`] whose digests have numbers already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberedManifest {
    /// The document's own size in bytes.
    pub size: u64,
    /// The config's digest, if this is an image.
    pub image_id: Option<DigestNumber>,
    /// The config's size in bytes.
    pub config_size: u64,
    /// The platform, if known.
    pub platform: Option<Arc<Platform>>,
    /// Chain IDs, lowest first; none where snapshots do not matter.
    pub chain: Vec<DigestNumber>,
    /// Layers (or an artifact's blobs, its config too) with their sizes.
    pub layers: Vec<(DigestNumber, u64)>,
    /// An index's manifests with sizes and platforms.
    pub manifests: Vec<(DigestNumber, u64, Option<Arc<Platform>>)>,
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

/// A namespace, as [`Builder::namespace`] numbers it.
pub type NamespaceNumber = u32;

/// A record as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    pub(crate) namespace: NamespaceNumber,
    pub(crate) name: Arc<str>,
    pub(crate) target: Number,
    pub(crate) kind: Kind,
    pub(crate) pinned: bool,
    /// Whether it is a reason to keep its image.
    pub(crate) is_name: bool,
}

impl Numbered {
    fn new(namespace: NamespaceNumber, name: Arc<str>, target: Number, pinned: bool) -> Self {
        let kind = classify(&name);
        Self { namespace, name, target, kind, pinned, is_name: !kind.is_hash_reference() }
    }
}

/// Collects other records over blobs, snapshots and manifests that were taken in before, with the numbers of then.
#[derive(Debug, Clone)]
pub struct Retelling {
    base: Arc<Base>,
    records: Vec<Numbered>,
}

impl Records {
    /// Starts with all that these were built over, and no record.
    pub fn retelling(&self) -> Retelling {
        Retelling { base: self.store.base().clone(), records: Vec::new() }
    }
}

impl Retelling {
    /// As [`Builder::record_at`].
    pub fn record_at(&mut self, namespace: NamespaceNumber, name: Arc<str>, target: DigestNumber, pinned: bool) {
        self.records.push(Numbered::new(namespace, name, target, pinned));
    }

    /// As [`Builder::build`].
    pub fn build(self) -> Graph {
        Graph::new(Store::over(self.base, self.records))
    }

    /// As [`Builder::build_records`].
    pub fn build_records(self) -> Records {
        Records::new(Store::over(self.base, self.records))
    }
}

/// Collects a store's state.
#[derive(Debug)]
pub struct Builder {
    pub(crate) wanted: PlatformMatcher,
    pub(crate) digests: Arc<DigestTable>,
    /// By number of digest: its size if the blob is there.
    pub(crate) sizes: Vec<u64>,
    /// By namespace: the blobs it has.
    pub(crate) here: Vec<Bits>,
    pub(crate) namespaces: Vec<Arc<str>>,
    pub(crate) snapshots: Vec<(Place, u64)>,
    pub(crate) manifests: FastMap<Number, NumberedManifest>,
    pub(crate) records: Vec<Numbered>,
    pub(crate) links: Vec<(Number, Number)>,
    pub(crate) holders: Vec<Holder>,
}

/// A namespace and a chain ID, as numbers.
pub(crate) type Place = (NamespaceNumber, Number);

impl Builder {
    /// Starts empty; `wanted` says which manifest of an index is the image.
    pub fn new(wanted: PlatformMatcher) -> Self {
        Self::over(wanted, Arc::default())
    }

    /// Starts with digests that have numbers: the methods that end in `_at` take them. Others may have the same table; it is
    /// copied if a digest comes that has none.
    pub fn over(wanted: PlatformMatcher, digests: Arc<DigestTable>) -> Self {
        Self {
            wanted,
            sizes: Vec::with_capacity(digests.len()),
            digests,
            here: Vec::new(),
            namespaces: Vec::new(),
            snapshots: Vec::new(),
            manifests: FastMap::default(),
            records: Vec::new(),
            links: Vec::new(),
            holders: Vec::new(),
        }
    }

    /// The number of a namespace. There are few.
    pub fn namespace(&mut self, name: &str) -> NamespaceNumber {
        let known = self.namespaces.iter().position(|n| **n == *name);
        known.unwrap_or_else(|| {
            self.namespaces.push(name.into());
            self.here.push(Bits::default());
            self.namespaces.len() - 1
        }) as NamespaceNumber
    }

    fn number(&mut self, digest: &Digest) -> Number {
        Arc::make_mut(&mut self.digests).add(digest)
    }

    /// A blob that a namespace has; its size in bytes.
    pub fn blob(&mut self, namespace: &str, digest: &Digest, size: u64) {
        let (namespace, number) = (self.namespace(namespace), self.number(digest));
        self.blob_at(namespace, number, size);
    }

    /// The same by number.
    pub fn blob_at(&mut self, namespace: NamespaceNumber, digest: DigestNumber, size: u64) {
        let number = digest as usize;
        if self.sizes.len() <= number {
            self.sizes.resize(self.digests.len().max(number + 1), 0);
        }
        self.sizes[number] = size;
        self.here[namespace as usize].insert(digest);
    }

    /// A committed snapshot; the same chain may be there once for each driver.
    pub fn snapshot(&mut self, namespace: &str, chain: &Digest, bytes: u64) {
        let (namespace, number) = (self.namespace(namespace), self.number(chain));
        self.snapshot_at(namespace, number, bytes);
    }

    /// The same by number.
    pub fn snapshot_at(&mut self, namespace: NamespaceNumber, chain: DigestNumber, bytes: u64) {
        self.snapshots.push(((namespace, chain), bytes));
    }

    /// What is known of a manifest or index.
    pub fn manifest(&mut self, digest: &Digest, manifest: &Manifest) {
        let digests = Arc::make_mut(&mut self.digests);
        let number = digests.add(digest);
        let platform = |p: &Option<Platform>| p.clone().map(Arc::new);
        let numbered = NumberedManifest {
            size: manifest.size,
            image_id: manifest.image_id.as_ref().map(|id| digests.add(id.digest())),
            config_size: manifest.config_size,
            platform: platform(&manifest.platform),
            chain: manifest.chain.iter().map(|id| digests.add(id.digest())).collect(),
            layers: manifest.layers.iter().map(|(d, size)| (digests.add(d), *size)).collect(),
            manifests: manifest.manifests.iter().map(|(d, size, p)| (digests.add(d), *size, platform(p))).collect(),
        };
        self.manifest_at(number, numbered);
    }

    /// The same by number.
    pub fn manifest_at(&mut self, digest: DigestNumber, manifest: NumberedManifest) {
        self.manifests.insert(digest, manifest);
    }

    /// An image record.
    pub fn record(&mut self, record: Record) {
        let (namespace, target) = (self.namespace(&record.namespace), self.number(&record.target));
        self.record_at(namespace, record.name.into(), target, record.pinned);
    }

    /// The same by number.
    pub fn record_at(&mut self, namespace: NamespaceNumber, name: Arc<str>, target: DigestNumber, pinned: bool) {
        self.records.push(Numbered::new(namespace, name, target, pinned));
    }

    /// The record given last, a hash reference, was asked for by digest: it is a reason to keep its image, as a tag is.
    pub fn requested(&mut self) {
        self.records.last_mut().into_iter().for_each(|record| record.is_name = true);
    }

    /// A blob keeps another one for another reason than its content: a referrer, a foreign label.
    pub fn link(&mut self, from: &Digest, to: &Digest) {
        let link = (self.number(from), self.number(to));
        self.links.push(link);
    }

    /// Something other than a record keeps an object.
    pub fn holder(&mut self, holder: Holder) {
        self.holders.push(holder);
    }

    /// Answers all from here on.
    pub fn build(self) -> Graph {
        Graph::new(Store::new(self))
    }

    /// Answers only what each record alone leads to: no images, no sizes on disk. Chains and snapshots need not have
    /// been given.
    pub fn build_records(self) -> Records {
        Records::new(Store::new(self))
    }
}
