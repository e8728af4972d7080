//! From messages to rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_api::containerd::services::{containers, content, images, leases, snapshots};
use orlop_graph::model::{
    BlobRow, ContainerRow, IngestRow, Labels, LeaseRow, NamespaceId, RecordRow, Resource, SnapshotKind, SnapshotRow,
};
use orlop_oci::Digest;

use crate::Error;

/// Texts that many rows have: each is kept once.
#[derive(Debug, Default)]
pub(crate) struct Interned(HashMap<String, Arc<str>>);

impl Interned {
    pub(crate) fn get(&mut self, text: String) -> Arc<str> {
        if let Some(known) = self.0.get(&text) {
            return known.clone();
        }
        let shared: Arc<str> = text.as_str().into();
        self.0.insert(text, shared.clone());
        shared
    }
}

pub(crate) fn time(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time?;
    // Go's zero time, the first second of the year 1, stands for none.
    let found = Timestamp::new(time.seconds, time.nanos).ok()?;
    (time.seconds > GO_ZERO).then_some(found)
}

const GO_ZERO: i64 = -62_135_596_800;

pub(crate) fn labels(labels: BTreeMap<String, String>) -> Labels {
    labels.into_iter().collect()
}

fn digest(call: &'static str, text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|_| Error::Answer { call, what: format!("{text:?}"), expected: "a digest" })
}

fn bytes(size: i64) -> u64 {
    size.try_into().unwrap_or(0)
}

pub(crate) fn record(
    namespace: NamespaceId,
    image: images::v1::Image,
    types: &mut Interned,
) -> Result<RecordRow, Error> {
    let target = image.target.unwrap_or_default();
    Ok(RecordRow {
        namespace,
        name: image.name.into(),
        target: digest("images.List", &target.digest)?,
        media_type: types.get(target.media_type),
        size: bytes(target.size),
        labels: labels(image.labels),
        created: time(image.created_at),
        updated: time(image.updated_at),
    })
}

pub(crate) fn blob(namespace: NamespaceId, info: content::v1::Info) -> Result<BlobRow, Error> {
    Ok(BlobRow {
        namespace,
        digest: digest("content.List", &info.digest)?,
        size: bytes(info.size),
        labels: labels(info.labels),
        created: time(info.created_at),
        updated: time(info.updated_at),
    })
}

pub(crate) fn snapshot(namespace: NamespaceId, snapshotter: &Arc<str>, info: snapshots::v1::Info) -> SnapshotRow {
    let kind = match info.kind() {
        snapshots::v1::Kind::Active => SnapshotKind::Active,
        snapshots::v1::Kind::View => SnapshotKind::View,
        snapshots::v1::Kind::Committed => SnapshotKind::Committed,
        snapshots::v1::Kind::Unknown => SnapshotKind::Unknown,
    };
    SnapshotRow {
        namespace,
        snapshotter: snapshotter.clone(),
        key: info.name.into(),
        kind,
        parent: Some(info.parent).filter(|parent| !parent.is_empty()).map(Arc::from),
        labels: labels(info.labels),
        created: time(info.created_at),
        updated: time(info.updated_at),
        usage: None,
    }
}

pub(crate) fn ingest(namespace: NamespaceId, status: content::v1::Status) -> IngestRow {
    IngestRow {
        namespace,
        reference: status.r#ref.into(),
        offset: bytes(status.offset),
        total: bytes(status.total),
        expected: status.expected.parse().ok(),
        started: time(status.started_at),
        updated: time(status.updated_at),
    }
}

pub(crate) fn lease(namespace: NamespaceId, lease: leases::v1::Lease) -> LeaseRow {
    LeaseRow {
        namespace,
        id: lease.id.into(),
        labels: labels(lease.labels),
        created: time(lease.created_at),
        resources: Vec::new(),
    }
}

pub(crate) fn resource(resource: leases::v1::Resource) -> Resource {
    let other =
        |resource: leases::v1::Resource| Resource::Other { kind: resource.r#type.into(), id: resource.id.into() };
    match resource.r#type.split_once('/') {
        Some(("snapshots", snapshotter)) => {
            Resource::Snapshot { snapshotter: snapshotter.into(), key: resource.id.into() }
        }
        None if resource.r#type == "content" => match resource.id.parse() {
            Ok(digest) => Resource::Content(digest),
            Err(_) => other(resource),
        },
        None if resource.r#type == "ingests" => Resource::Ingest(resource.id.into()),
        None if resource.r#type == "images" => Resource::Image(resource.id.into()),
        _ => other(resource),
    }
}

pub(crate) fn container(
    namespace: NamespaceId,
    container: containers::v1::Container,
    texts: &mut Interned,
) -> ContainerRow {
    ContainerRow {
        namespace,
        id: container.id.into(),
        image: texts.get(container.image),
        snapshotter: texts.get(container.snapshotter),
        snapshot_key: container.snapshot_key.into(),
        labels: labels(container.labels),
        created: time(container.created_at),
    }
}
