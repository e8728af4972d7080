//! Small stores.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use orlop_graph::model::{
    BlobRow, ContainerRow, IngestRow, Inventory, Labels, LeaseRow, Model, NodeId, RecordRow, Resource, SnapshotKind,
    SnapshotRow, Usage,
};
use orlop_oci::Digest;

pub(crate) const NOW: &str = "2026-03-01T12:00:00Z";

pub(crate) fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

pub(crate) fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter().copied().collect()
}

/// An inventory that is filled row by row; blobs and layers are named, their digests follow from the name.
pub(crate) struct Store(pub(crate) Inventory);

impl Store {
    pub(crate) fn new() -> Self {
        Self(Inventory { taken: NOW.parse().unwrap(), ..Inventory::default() })
    }

    pub(crate) fn record(&mut self, namespace: &str, name: &str, target: &str, labels: Labels) -> &mut Self {
        let namespace = self.0.namespace(namespace);
        self.0.records.push(RecordRow {
            namespace,
            name: name.into(),
            target: digest(target),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            size: 10,
            labels,
            created: None,
            updated: None,
        });
        self
    }

    pub(crate) fn blob(&mut self, namespace: &str, name: &str, size: u64, labels: Labels) -> &mut Self {
        let namespace = self.0.namespace(namespace);
        let digest = digest(name);
        self.0.blobs.push(BlobRow { namespace, digest, size, labels, created: None, updated: None });
        self
    }

    pub(crate) fn snapshot(&mut self, key: &str, parent: Option<&str>, bytes: u64, labels: Labels) -> &mut Self {
        let namespace = self.0.namespace("k8s.io");
        self.0.snapshots.push(SnapshotRow {
            namespace,
            snapshotter: "overlayfs".into(),
            key: key.into(),
            kind: SnapshotKind::Committed,
            parent: parent.map(Arc::from),
            labels,
            created: None,
            updated: None,
            usage: Some(Usage { bytes, inodes: 1 }),
        });
        self
    }

    pub(crate) fn lease(&mut self, id: &str, labels: Labels, resources: Vec<Resource>) -> &mut Self {
        let namespace = self.0.namespace("k8s.io");
        self.0.leases.push(LeaseRow { namespace, id: id.into(), labels, created: None, resources });
        self
    }

    pub(crate) fn container(&mut self, id: &str, image: &str, snapshot: &str) -> &mut Self {
        let namespace = self.0.namespace("k8s.io");
        self.0.containers.push(ContainerRow {
            namespace,
            id: id.into(),
            image: image.into(),
            snapshotter: "overlayfs".into(),
            snapshot_key: snapshot.into(),
            labels: Labels::default(),
            created: None,
        });
        self
    }

    pub(crate) fn ingest(&mut self, reference: &str, bytes: u64, hours: i64, expected: Option<&str>) -> &mut Self {
        let namespace = self.0.namespace("k8s.io");
        let started: Timestamp = self.0.taken - SignedDuration::from_hours(hours);
        self.0.ingests.push(IngestRow {
            namespace,
            reference: reference.into(),
            offset: bytes,
            total: 0,
            expected: expected.map(digest),
            started: Some(started),
            updated: Some(started),
        });
        self
    }

    /// An image of one platform: manifest `NAME`, config `NAME.config`, layers of 100 bytes with a chain of snapshots of
    /// 1,000 that is named after the layers (`a`, `a/b`).
    pub(crate) fn image(&mut self, name: &str, layers: &[&str]) -> &mut Self {
        let (mut chain, mut refs) = (String::new(), Vec::new());
        for layer in layers {
            let below = Some(chain.clone()).filter(|chain| !chain.is_empty());
            chain = below.iter().map(|b| format!("{b}/")).collect::<String>() + layer;
            if !self.0.snapshots.iter().any(|s| *s.key == *chain) {
                self.snapshot(&chain, below.as_deref(), 1_000, Labels::default());
            }
            if !self.0.blobs.iter().any(|b| b.digest == digest(layer)) {
                self.blob("k8s.io", layer, 100, Labels::default());
            }
            refs.push((format!("containerd.io/gc.ref.content.l.{}", refs.len()), digest(layer).to_string()));
        }
        let config = format!("{name}.config");
        refs.push(("containerd.io/gc.ref.content.config".into(), digest(&config).to_string()));
        self.blob("k8s.io", name, 10, refs.into_iter().collect());
        self.blob("k8s.io", &config, 5, labels(&[("containerd.io/gc.ref.snapshot.overlayfs", &chain)]))
    }

    pub(crate) fn model(&self) -> Model {
        Model::new(self.0.clone())
    }
}

/// Everything that answers to a name, as numbers of its kind: for comparisons.
pub(crate) fn only(model: &Model, text: &str) -> NodeId {
    let found = model.find(text);
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found[0].node
}
