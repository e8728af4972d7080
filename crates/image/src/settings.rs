//! What the operations do unless a request says otherwise.

use orlop_oci::{MAX_MANIFEST_BYTES, Platform, Reference};
use orlop_snapshot::apply;

use crate::Gate;

/// How [`Images`](crate::Images) works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Layers fetched and unpacked at once.
    pub concurrency: usize,
    /// Namespaces in which the reconciler keeps hash references as CRI wants them.
    pub cri_namespaces: Vec<String>,
    /// The platform that images are unpacked for and listed by.
    pub platform: Platform,
    /// The snapshot driver; empty: the store's default.
    pub snapshotter: String,
    /// Seconds after which the lease of an operation that was killed lets go.
    pub lease_seconds: i64,
    /// Names that are pinned in CRI-managed namespaces whoever writes them.
    pub pinned_images: Vec<String>,
    /// Whether CRI is told that an image which no registry is known to supply is pinned.
    pub pin_unsupplied: bool,
    /// The hosts of registries that serve this store itself, with their ports: what is pulled from there was here, and nobody
    /// else supplies it.
    pub own_registries: Vec<String>,
    /// Seconds that the hash references of an image stay after its tag moved elsewhere.
    pub grace_seconds: i64,
    /// What may come in.
    pub gate: Gate,
    /// How much of it.
    pub limits: Limits,
}

/// Bounds on what comes in, called as the keys of the configuration. What is in the store already is read whatever they say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Of each layer.
    pub layer: apply::Limits,
    /// Bytes of a manifest, index or config; at most [`orlop_oci::MAX_MANIFEST_BYTES`].
    pub manifest_bytes: u64,
    /// Indexes within indexes.
    pub index_depth: usize,
    /// Documents of one target: indexes and manifests.
    pub index_documents: usize,
    /// Entries of an archive that is imported.
    pub archive_entries: u64,
}

impl Limits {
    /// What holds for what is in the store already, and the largest that the bounds on documents and archives may be set to;
    /// layers are not read by it.
    pub const OUTER: Self = Self {
        layer: apply::Limits::DEFAULT,
        manifest_bytes: MAX_MANIFEST_BYTES,
        index_depth: 64,
        index_documents: 65_536,
        archive_entries: 100_000_000,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer: apply::Limits::DEFAULT,
            // What registries take.
            manifest_bytes: MAX_MANIFEST_BYTES,
            // Real ones have one or two levels.
            index_depth: 8,
            // The largest public indexes have some dozens.
            index_documents: 2048,
            // An image has a few for each layer.
            archive_entries: 1_000_000,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 3,
            cri_namespaces: vec!["k8s.io".to_owned()],
            platform: Platform::host(),
            snapshotter: String::new(),
            lease_seconds: 24 * 3600,
            pinned_images: Vec::new(),
            pin_unsupplied: true,
            own_registries: Vec::new(),
            grace_seconds: 24 * 3600,
            gate: Gate::default(),
            limits: Limits::default(),
        }
    }
}

impl Settings {
    /// The pinned names, as records have them.
    pub(crate) fn pins(&self) -> Vec<String> {
        let normal = |name: &String| name.parse::<Reference>().map_or_else(|_| name.clone(), |r| r.to_string());
        self.pinned_images.iter().map(normal).collect()
    }

    /// Whether a host is this store's own registry.
    pub(crate) fn is_own(&self, host: &str) -> bool {
        self.own_registries.iter().any(|own| own == host)
    }

    /// Whether hash references are kept in this namespace.
    pub fn is_cri(&self, namespace: &str) -> bool {
        self.cri_namespaces.iter().any(|n| n == namespace)
    }
}
