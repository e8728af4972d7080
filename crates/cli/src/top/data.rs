//! What the view shows of a store, made once from a model: rows and sums. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_graph::model::{ImageNames, ImageSize, Model, Node, NodeId, NodeKind, SnapshotKind, Weight};
use orlop_oci::Digest;

/// A store at one moment.
#[derive(Debug)]
pub(crate) struct Data {
    pub(crate) model: Model,
    pub(crate) images: Vec<ImageRow>,
    pub(crate) layers: Vec<LayerRow>,
    pub(crate) disk: Vec<DiskRow>,
    /// What could not be read, in words.
    pub(crate) gaps: Vec<String>,
}

/// An image.
#[derive(Debug, Clone)]
pub(crate) struct ImageRow {
    pub(crate) namespace: Arc<str>,
    /// The name that it is shown under: what was asked for, else a hash reference.
    pub(crate) name: String,
    /// All its names in the namespace, hash references too.
    pub(crate) names: Vec<String>,
    pub(crate) records: Vec<NodeId>,
    pub(crate) size: ImageSize,
    /// Containers that stand on it.
    pub(crate) containers: usize,
    pub(crate) created: Option<Timestamp>,
    pub(crate) pinned: bool,
}

/// A layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerRow {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    /// Names of the images that have it, of all namespaces.
    pub(crate) images: Vec<String>,
    pub(crate) blob: NodeId,
}

/// Something that takes disk.
#[derive(Debug, Clone)]
pub(crate) struct DiskRow {
    pub(crate) what: String,
    pub(crate) bytes: u64,
    /// What is not known of it, or known besides.
    pub(crate) note: String,
}

impl DiskRow {
    pub(crate) fn new(what: impl Into<String>, bytes: u64, note: impl Into<String>) -> Self {
        Self { what: what.into(), bytes, note: note.into() }
    }
}

impl Data {
    /// Computes all rows. `namespace`: only images of that one are shown; sums are of the whole store. `more`: rows of
    /// disk that the model does not know.
    pub(crate) fn new(model: Model, namespace: Option<&str>, more: Vec<DiskRow>) -> Self {
        let images = model.images();
        let sizes = model.sizes(&images);
        let layers = layers(&model, &images);
        let shown = |image: &ImageNames| namespace.is_none_or(|only| model.namespace(image.namespace) == only);
        let rows = images.iter().zip(sizes).filter(|(image, _)| shown(image));
        let users = model.all_users();
        let rows = rows.map(|(image, size)| row(&model, image, size, &users)).collect();
        let mut disk = disk(&model);
        disk.extend(more);
        let gaps = model.inventory().gaps.iter().map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
        Self { images: rows, layers, disk, gaps, model }
    }
}

/// A name as it may stand on a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// What was asked for, else a hash reference.
fn shown_name(model: &Model, records: &[NodeId]) -> String {
    let asked = records.iter().find(|record| !model.record_kind(**record).is_hash_reference());
    match asked.or(records.first()).map(|record| model.node(*record)) {
        Some(Node::Record(row)) => clean(&row.name),
        _ => String::new(),
    }
}

fn row(model: &Model, image: &ImageNames, size: ImageSize, users: &BTreeMap<NodeId, Vec<NodeId>>) -> ImageRow {
    let containers: BTreeSet<&NodeId> = image.records.iter().filter_map(|record| users.get(record)).flatten().collect();
    let mut row = ImageRow {
        namespace: model.namespace(image.namespace).into(),
        name: shown_name(model, &image.records),
        names: Vec::new(),
        records: image.records.clone(),
        size,
        containers: containers.len(),
        created: None,
        pinned: false,
    };
    for record in &image.records {
        let Node::Record(record_row) = model.node(*record) else { continue };
        row.names.push(clean(&record_row.name));
        row.created = row.created.into_iter().chain(record_row.created).min();
        row.pinned |= model.is_pinned(*record);
    }
    row
}

fn layers(model: &Model, images: &[ImageNames]) -> Vec<LayerRow> {
    let mut found: BTreeMap<Digest, (u64, BTreeSet<String>, NodeId)> = BTreeMap::new();
    for image in images {
        let name = shown_name(model, &image.records);
        for blob in layers_of(model, &image.records) {
            if let Node::Blob(row) = model.node(blob) {
                let (_, names, _) = found.entry(row.digest.clone()).or_insert((row.size, BTreeSet::new(), blob));
                names.insert(name.clone());
            }
        }
    }
    let row = |(digest, (bytes, images, blob))| LayerRow { digest, bytes, images: Vec::from_iter(images), blob };
    found.into_iter().map(row).collect()
}

/// The layers that records lead to, as far as they are here.
pub(crate) fn layers_of(model: &Model, records: &[NodeId]) -> BTreeSet<NodeId> {
    let targets: BTreeSet<NodeId> =
        records.iter().flat_map(|record| model.references(*record).map(|edge| edge.node)).collect();
    let manifests = targets.iter().flat_map(|target| [vec![*target], model.manifests(*target)].concat());
    manifests.flat_map(|manifest| model.layers(manifest)).collect()
}

fn disk(model: &Model) -> Vec<DiskRow> {
    let all = model.weigh(model.items());
    let kept = model.kept();
    let garbage = model.weigh_gone(model.items().filter(|node| !kept.contains(*node)), &kept);
    let active = |node: &NodeId| matches!(model.node(*node), Node::Snapshot(row) if row.kind == SnapshotKind::Active);
    let written = model.nodes(NodeKind::Snapshot).filter(active).count();
    let hashes = model.nodes(NodeKind::Record).filter(|r| model.record_kind(*r).is_hash_reference()).count();
    let unmeasured = |weight: &Weight| match weight.unmeasured {
        0 => String::new(),
        number => format!("{number} not measured"),
    };
    let mut rows = vec![
        DiskRow::new("content (compressed layers, manifests)", all.blob_bytes, format!("{} blobs", all.blobs)),
        DiskRow::new("snapshots (unpacked layers)", all.snapshot_bytes, unmeasured(&all)),
        DiskRow::new("  written to by containers", 0, format!("{written}, not measured")),
        DiskRow::new("writes in progress", all.ingest_bytes, format!("{}", all.ingests)),
        DiskRow::new("together", all.bytes(), String::new()),
        DiskRow::new("kept by nothing: the next collection's", garbage.bytes(), unmeasured(&garbage)),
        DiskRow::new("hash references", 0, format!("{hashes} names, no content")),
    ];
    for (number, namespace) in model.inventory().namespaces.iter().enumerate() {
        let own = model.items().filter(|node| usize::from(model.node(*node).namespace()) == number);
        let weight = model.weigh(own);
        rows.push(DiskRow::new(format!("namespace {}", clean(&namespace.name)), weight.bytes(), unmeasured(&weight)));
    }
    rows
}
