//! Disk usage of any containerd, of what its lists say: blobs by their sizes or, where the files are reached, by their
//! allocated blocks; snapshots by what the snapshotter says, which containerd measures in allocated blocks.

use std::collections::BTreeMap;
use std::path::Path;

use orlop_graph::model::{ImageNames, ImageSize, Model, Node, NodeId, NodeKind, Role};
use orlop_lens::offline::places::{CONTENT, METADATA, SNAPSHOTTER};
use orlop_oci::Reference;
use serde::Serialize;

use crate::commands::Context;
use crate::error::{Class, CliError, Result};
use crate::look::words::name;
use crate::look::{Look, Measured, disk};

/// Files are allocated in blocks of this size where nobody can look: nearly all file systems have it.
const BLOCK: u64 = 4096;

/// Directories of an overlayfs snapshot that its own usage leaves out: its directory and `work`.
const BESIDE: u64 = 2 * BLOCK;

/// Sums of a store.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Usage {
    pub(crate) total: u64,
    pub(crate) content: u64,
    pub(crate) snapshots: u64,
    pub(crate) ingests: u64,
    /// What no trash can hold here: containerd has none.
    pub(crate) trash: u64,
    pub(crate) metadata: Option<u64>,
    pub(crate) hash_references: HashReferences,
    pub(crate) reclaimable: Reclaimable,
    pub(crate) by_namespace: Vec<Part>,
    pub(crate) by_repository: Vec<Part>,
    /// Whether content and metadata were measured at the files.
    pub(crate) measured: bool,
}

/// What hash references cost.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HashReferences {
    pub(crate) records: u64,
    /// What would be given back if only they went.
    pub(crate) content_bytes: u64,
    pub(crate) metadata_bytes: Option<u64>,
}

/// What could be given back without losing an image that has a name or a user.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reclaimable {
    /// Nothing keeps it: the next collection takes it.
    pub(crate) garbage: u64,
    /// Only hash references of images without a tag keep it, and no container.
    pub(crate) untagged: u64,
    /// Images that no container uses, untagged ones included.
    pub(crate) unused: u64,
}

/// A namespace's or repository's part.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) images: u64,
    /// Everything that its images keep.
    pub(crate) bytes: u64,
    /// Of that, what no image of another one keeps.
    pub(crate) unique: u64,
}

/// A layer, and who has it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) bytes: u64,
    /// Images that have it, by their first name.
    pub(crate) images: Vec<String>,
}

/// Reads and measures a store.
pub(crate) async fn usage(context: &Context) -> Result<(Look, Usage)> {
    let root = context.store.root.clone().filter(|root| root.join(CONTENT).is_dir());
    // While the store answers.
    let files = tokio::task::spawn_blocking(move || root.as_deref().map(files).transpose());
    let look = Look::at(context, Measured::All).await?;
    let files = files.await.map_err(|e| CliError::new(Class::Failed, format!("measure files: {e}")))??;
    let usage = sums(&look.model, files.as_ref());
    Ok((look, usage))
}

fn sums(model: &Model, files: Option<&Files>) -> Usage {
    let snapshots = model.weigh(model.nodes(NodeKind::Snapshot));
    let ingests = model.weigh(model.nodes(NodeKind::Ingest));
    let content = files.map_or_else(|| rounded(model), |files| files.content);
    let beside = if files.is_some() { snapshots.snapshots * BESIDE } else { 0 };
    let metadata = files.map(|files| files.metadata + beside);
    let ingests = files.map_or(ingests.ingest_bytes, |files| files.ingests);
    let images = model.images();
    Usage {
        total: content + snapshots.snapshot_bytes + ingests + metadata.unwrap_or_default(),
        content,
        snapshots: snapshots.snapshot_bytes,
        ingests,
        trash: 0,
        metadata,
        hash_references: hash_references(model),
        reclaimable: reclaimable(model, &images),
        by_namespace: parts(model, &images, |image| Some(model.namespace(image.namespace).to_owned())),
        by_repository: parts(model, &images, |image| repository(model, image)),
        measured: files.is_some(),
    }
}

struct Files {
    content: u64,
    ingests: u64,
    metadata: u64,
}

/// What the files themselves take, all but the trees of snapshots.
fn files(root: &Path) -> Result<Files> {
    let failed = |path: &Path, error| CliError::io("measure", Some(path), error);
    let measure = |path: &Path| if path.exists() { disk::allocated(path).map_err(|e| failed(path, e)) } else { Ok(0) };
    let mut metadata = measure(&root.join(METADATA))?;
    for entry in std::fs::read_dir(root).map_err(|e| failed(root, e))? {
        let path = entry.map_err(|e| failed(root, e))?.path();
        let is_snapshotter = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(SNAPSHOTTER));
        if is_snapshotter {
            metadata += measure(&path.join("metadata.db"))?;
        }
    }
    let content = root.join(CONTENT);
    Ok(Files { content: measure(&content.join("blobs"))?, ingests: measure(&content.join("ingest"))?, metadata })
}

/// Blobs in whole blocks, each digest once.
fn rounded(model: &Model) -> u64 {
    let is_first = |blob: &NodeId, digest| model.copies(digest).next() == Some(*blob);
    let size = |blob: NodeId| match model.node(blob) {
        Node::Blob(row) if is_first(&blob, &row.digest) => row.size.next_multiple_of(BLOCK),
        _ => 0,
    };
    model.nodes(NodeKind::Blob).map(size).sum()
}

fn hash_references(model: &Model) -> HashReferences {
    let all: Vec<NodeId> =
        model.nodes(NodeKind::Record).filter(|record| model.record_kind(*record).is_hash_reference()).collect();
    let cost = model.cost(&all);
    HashReferences { records: all.len() as u64, content_bytes: cost.alone.bytes(), metadata_bytes: None }
}

fn reclaimable(model: &Model, images: &[ImageNames]) -> Reclaimable {
    let users = model.all_users();
    let is_unused = |image: &&ImageNames| !image.records.iter().any(|record| users.contains_key(record));
    let is_untagged = |image: &&ImageNames| image.records.iter().all(|r| model.record_kind(*r).is_hash_reference());
    let records =
        |images: Vec<&ImageNames>| images.into_iter().flat_map(|i| i.records.clone()).collect::<Vec<NodeId>>();
    let unused: Vec<&ImageNames> = images.iter().filter(is_unused).collect();
    let untagged: Vec<&ImageNames> = unused.iter().copied().filter(|image| is_untagged(image)).collect();
    Reclaimable {
        garbage: model.weigh_gone(model.garbage(), &model.kept()).bytes(),
        untagged: model.cost(&records(untagged)).alone.bytes(),
        unused: model.cost(&records(unused)).alone.bytes(),
    }
}

fn repository(model: &Model, image: &ImageNames) -> Option<String> {
    let named = |record: &NodeId| name(model, *record).parse::<Reference>().ok()?.repository().map(ToString::to_string);
    image.records.iter().find_map(named)
}

/// What the images of each name take; the largest first.
fn parts(model: &Model, images: &[ImageNames], of: impl Fn(&ImageNames) -> Option<String>) -> Vec<Part> {
    let mut groups: BTreeMap<String, Vec<&ImageNames>> = BTreeMap::new();
    for image in images {
        groups.entry(of(image).unwrap_or_else(|| "<none>".into())).or_default().push(image);
    }
    let records: Vec<Vec<NodeId>> =
        groups.values().map(|images| images.iter().flat_map(|image| image.records.clone()).collect()).collect();
    let part = |((name, images), size): ((String, Vec<&ImageNames>), ImageSize)| Part {
        name,
        images: images.len() as u64,
        bytes: size.shared + size.unique,
        unique: size.unique,
    };
    let sizes = model.sizes_of(&records);
    let mut parts: Vec<Part> = groups.into_iter().zip(sizes).map(part).collect();
    parts.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    parts
}

/// Layers that several images have, the largest first.
pub(crate) fn layers(model: &Model) -> Vec<Layer> {
    let mut having: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
    for image in model.images() {
        let called = name(model, image.records[0]);
        let is_layer = |item: &NodeId| model.kind(*item) == NodeKind::Blob && model.role(*item) == Role::Layer;
        for layer in model.items_of(&image.records).into_iter().filter(is_layer) {
            having.entry(layer).or_default().push(called.clone());
        }
    }
    let mut layers: Vec<Layer> = having
        .into_iter()
        .filter_map(|(blob, mut images)| {
            let Node::Blob(row) = model.node(blob) else { return None };
            images.sort();
            images.dedup();
            Some(Layer { digest: row.digest.to_string(), bytes: row.size, images })
        })
        .collect();
    layers.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.digest.cmp(&b.digest)));
    layers
}
