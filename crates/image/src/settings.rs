//! What the operations do unless a request says otherwise.

use orlop_oci::{Platform, Reference};

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
    /// Seconds that the hash references of an image stay after its tag moved elsewhere.
    pub grace_seconds: i64,
    /// What may come in.
    pub gate: Gate,
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
            grace_seconds: 24 * 3600,
            gate: Gate::default(),
        }
    }
}

impl Settings {
    /// The pinned names, as records have them.
    pub(crate) fn pins(&self) -> Vec<String> {
        let normal = |name: &String| name.parse::<Reference>().map_or_else(|_| name.clone(), |r| r.to_string());
        self.pinned_images.iter().map(normal).collect()
    }

    /// Whether hash references are kept in this namespace.
    pub fn is_cri(&self, namespace: &str) -> bool {
        self.cri_namespaces.iter().any(|n| n == namespace)
    }
}
