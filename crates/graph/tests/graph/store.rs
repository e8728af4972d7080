//! A small store to make inputs from.

use std::collections::{BTreeMap, BTreeSet};

use orlop_graph::{Builder, Graph, Held, Holder, Manifest, Record};
use orlop_oci::{ChainId, DiffId, Digest, ImageId, PlatformMatcher, chain_ids};

pub(crate) fn digest(seed: &str) -> Digest {
    Digest::of(seed.as_bytes())
}

pub(crate) const NS: &str = "k8s.io";

pub(crate) const NAMESPACES: [&str; 2] = [NS, "moby"];

/// A committed snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) namespace: String,
    pub(crate) chain: ChainId,
    pub(crate) below: Option<ChainId>,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) records: Vec<(String, String, Digest)>,
    pub(crate) wanted: Vec<String>,
    pub(crate) pinned: Vec<String>,
    pub(crate) summaries: BTreeMap<Digest, Manifest>,
    /// Each is in every namespace,
    pub(crate) blobs: BTreeMap<Digest, u64>,
    /// except in these.
    pub(crate) hidden: BTreeSet<(String, Digest)>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) links: Vec<(Digest, Digest)>,
    pub(crate) holders: Vec<Holder>,
}

impl Store {
    /// Adds a manifest named by its seed, with layers `(seed, size)`; its document has 10 bytes, its config 5.
    pub(crate) fn manifest(&mut self, seed: &str, platform: &str, layers: &[(&str, u64)]) -> Digest {
        let config = digest(&format!("config of {seed}"));
        let diffs: Vec<DiffId> = layers.iter().map(|(l, _)| DiffId::new(digest(&format!("diff of {l}")))).collect();
        let layers: Vec<(Digest, u64)> = layers.iter().map(|(l, size)| (digest(l), *size)).collect();
        self.blobs.insert(config.clone(), 5);
        self.blobs.extend(layers.iter().cloned());
        let summary = Manifest {
            size: 10,
            image_id: Some(ImageId::new(config)),
            config_size: 5,
            platform: platform.parse().ok(),
            chain: chain_ids(&diffs),
            layers,
            manifests: Vec::new(),
        };
        self.document(seed, summary)
    }

    /// Adds a document named by its seed.
    pub(crate) fn document(&mut self, seed: &str, summary: Manifest) -> Digest {
        let d = digest(seed);
        self.blobs.insert(d.clone(), summary.size);
        self.summaries.insert(d.clone(), summary);
        d
    }

    /// Adds an index of 20 bytes; children have the platform their summary says.
    pub(crate) fn index(&mut self, seed: &str, children: &[&Digest]) -> Digest {
        let child = |d: &Digest| {
            let known = self.summaries.get(d);
            (d.clone(), known.map_or(1, |s| s.size), known.and_then(|s| s.platform.clone()))
        };
        let manifests = children.iter().map(|d| child(d)).collect();
        self.document(seed, Manifest { size: 20, manifests, ..Manifest::default() })
    }

    /// Unpacks a manifest in a namespace: 100 bytes a layer.
    pub(crate) fn unpack(&mut self, namespace: &str, manifest: &Digest) {
        let mut below = None;
        for chain in self.summaries[manifest].chain.clone() {
            if !self.snapshots.iter().any(|s| s.namespace == namespace && s.chain == chain) {
                let (namespace, chain) = (namespace.to_owned(), chain.clone());
                self.snapshots.push(Snapshot { namespace, chain, below, bytes: 100 });
            }
            below = Some(chain);
        }
    }

    pub(crate) fn hold(&mut self, name: &str, namespace: &str, held: Held) {
        self.holders.push(Holder { name: name.to_owned(), namespace: namespace.to_owned(), held });
    }

    pub(crate) fn record(&mut self, namespace: &str, name: &str, target: &Digest) {
        self.records.push((namespace.to_owned(), name.to_owned(), target.clone()));
    }

    /// The three records that CRI writes for a name.
    pub(crate) fn pulled(&mut self, namespace: &str, name: &str, target: &Digest, image: &Digest) {
        let repository = name.rsplit_once(':').expect("a tag").0.to_owned();
        let id = self.id(image);
        for name in [name.to_owned(), format!("{repository}@{target}"), id] {
            if !self.records.iter().any(|r| r.0 == namespace && r.1 == name) {
                self.record(namespace, &name, target);
            }
        }
    }

    /// Whether a namespace has a blob.
    pub(crate) fn has(&self, namespace: &str, digest: &Digest) -> bool {
        self.blobs.contains_key(digest) && !self.hidden.contains(&(namespace.to_owned(), digest.clone()))
    }

    pub(crate) fn id(&self, image: &Digest) -> String {
        self.summaries[image].image_id.as_ref().expect("an image").to_string()
    }

    pub(crate) fn graph(&self, wanted: PlatformMatcher) -> Graph {
        self.builder(wanted).build()
    }

    pub(crate) fn builder(&self, wanted: PlatformMatcher) -> Builder {
        let mut builder = Builder::new(wanted);
        for (namespace, name, target) in &self.records {
            let (namespace, name, target) = (namespace.clone(), name.clone(), target.clone());
            let requested = self.wanted.contains(&name);
            let pinned = self.pinned.contains(&name);
            builder.record(Record { namespace, name, target, pinned });
            if requested {
                builder.requested();
            }
        }
        self.summaries.iter().for_each(|(digest, m)| builder.manifest(digest, m));
        self.snapshots.iter().for_each(|s| builder.snapshot(&s.namespace, s.chain.digest(), s.bytes));
        for (digest, size) in &self.blobs {
            let has = NAMESPACES.into_iter().filter(|namespace| self.has(namespace, digest));
            has.for_each(|namespace| builder.blob(namespace, digest, *size));
        }
        self.links.iter().for_each(|(from, to)| builder.link(from, to));
        self.holders.iter().for_each(|h| builder.holder(h.clone()));
        builder
    }
}

/// Two images that share the lowest layer: 10 + 5 + 1000 + 50 and 10 + 5 + 1000 + 7 bytes.
pub(crate) fn two_images() -> Store {
    let mut store = Store::default();
    let a = store.manifest("a", "linux/amd64", &[("base", 1000), ("a1", 50)]);
    let b = store.manifest("b", "linux/amd64", &[("base", 1000), ("b1", 7)]);
    store.pulled(NS, "docker.io/library/a:1", &a, &a);
    store.pulled(NS, "docker.io/library/b:1", &b, &b);
    store.unpack(NS, &a);
    store.unpack(NS, &b);
    store
}
