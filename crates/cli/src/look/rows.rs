//! Rows of image lists for a store without `orlop.v1`: the same rows, from what the store's own lists and labels say.
//!
//! Platforms and the sizes of what is not here stand in documents only. They are read where a column shows them; without
//! them an index's image is the first that is here.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_graph::model::{Inventory, Model, Node, NodeId, NodeKind, PINNED, RecordRow, Role};
use orlop_graph::{Builder, Graph, Image, Manifest, Record};
use orlop_lens::Documents;
use orlop_oci::{ChainId, Digest, Document, ImageConfig, ImageId, PlatformMatcher};

use super::Look;
use crate::client::pb;
use crate::commands::Context;
use crate::error::Result;

/// Snapshots of more than this are not asked one by one what they take where a list is all that is wanted: each is a call.
const ASKED: usize = 1_000;

/// Which rows are wanted.
pub(crate) struct Wanted<'a> {
    /// containerd's filters on records.
    pub(crate) filters: &'a [String],
    pub(crate) all_namespaces: bool,
    /// Read what only documents say.
    pub(crate) documents: bool,
}

/// One row an image, and whether snapshots were asked what they take.
pub(crate) async fn images(context: &Context, wanted: &Wanted<'_>) -> Result<(Vec<pb::ImageRow>, bool)> {
    let (look, is_measured) = Look::listing(context, ASKED).await?;
    if !is_measured {
        context
            .say(format!("there are more than {ASKED} snapshots: they are not asked what they take; `orlop df` asks"));
    }
    Ok((of_images(context, &look, wanted).await?, is_measured))
}

/// The same of a store that was read already.
pub(crate) async fn of_images(context: &Context, look: &Look, wanted: &Wanted<'_>) -> Result<Vec<pb::ImageRow>> {
    let (graph, passes) = graph(context, look, wanted).await?;
    let rows = look.model.inventory();
    let passing = graph.images().iter().filter(|image| image.records.iter().any(|at| passes.contains(at)));
    Ok(passing.map(|image| image_row(&graph, image, rows)).collect())
}

/// One row a record.
pub(crate) async fn records(context: &Context, wanted: &Wanted<'_>) -> Result<Vec<pb::RecordRow>> {
    let (look, _) = Look::listing(context, 0).await?;
    let (graph, passes) = graph(context, &look, wanted).await?;
    let rows = &look.model.inventory().records;
    let mut passing: Vec<usize> = passes.into_iter().collect();
    passing.sort_by(|a, b| (rows[*a].namespace, &rows[*a].name).cmp(&(rows[*b].namespace, &rows[*b].name)));
    Ok(passing.into_iter().map(|at| record_row(&graph, at, &rows[at])).collect())
}

/// Everything linked, and the positions of records that pass.
async fn graph(context: &Context, look: &Look, wanted: &Wanted<'_>) -> Result<(Graph, HashSet<usize>)> {
    let rows = look.model.inventory();
    let namespace = rows.namespaces.iter().position(|n| *n.name == *context.store.namespace);
    let here = |row: &RecordRow| wanted.all_namespaces || Some(usize::from(row.namespace)) == namespace;
    let mut passes: HashSet<usize> = (0..rows.records.len()).filter(|at| here(&rows.records[*at])).collect();
    if !wanted.filters.is_empty() {
        let mut named = HashSet::new();
        for (at, namespace) in rows.namespaces.iter().enumerate() {
            let names = look.reader.matching(&namespace.name, wanted.filters).await?;
            named.extend(names.into_iter().map(|name| (at, name)));
        }
        passes.retain(|at| {
            named.contains(&(usize::from(rows.records[*at].namespace), rows.records[*at].name.to_string()))
        });
    }
    let mut documents = Documents::default();
    if wanted.documents {
        read_documents(look, &passes, &mut documents).await?;
    }
    Ok((fed(&look.model, &documents).build(), passes))
}

/// Reads the targets of records, their manifests, and the configs of these.
async fn read_documents(look: &Look, passes: &HashSet<usize>, documents: &mut Documents) -> Result<()> {
    let model = &look.model;
    let wanted = |nodes: &[NodeId]| -> Vec<(Arc<str>, Digest, u64)> {
        let row = |node: &NodeId| match model.node(*node) {
            Node::Blob(row) => Some((Arc::from(model.namespace(row.namespace)), row.digest.clone(), row.size)),
            _ => None,
        };
        nodes.iter().filter_map(row).collect()
    };
    let records: Vec<NodeId> =
        model.nodes(NodeKind::Record).enumerate().filter(|(at, _)| passes.contains(at)).map(|(_, node)| node).collect();
    let targets: Vec<NodeId> =
        records.iter().filter_map(|record| model.references(*record).next()).map(|e| e.node).collect();
    let manifests: Vec<NodeId> = targets.iter().flat_map(|target| model.manifests(*target)).collect();
    let configs = targets.iter().chain(&manifests).filter_map(|manifest| model.config(*manifest)).collect::<Vec<_>>();
    look.reader.documents(documents, wanted(&[targets, manifests, configs].concat())).await?;
    Ok(())
}

/// Takes in everything; what a document says goes before what labels say.
fn fed(model: &Model, documents: &Documents) -> Builder {
    let mut builder = Builder::new(PlatformMatcher::host());
    let rows = model.inventory();
    for blob in model.nodes(NodeKind::Blob) {
        let Node::Blob(row) = model.node(blob) else { continue };
        builder.blob(model.namespace(row.namespace), &row.digest, row.size);
        let manifest = documents
            .get(&row.digest)
            .and_then(|raw| Document::parse_as(raw.clone(), None, row.digest.algorithm()).ok())
            .and_then(|document| said(model, blob, &document, documents))
            .or_else(|| labelled(model, blob, row.size));
        if let Some(manifest) = manifest {
            builder.manifest(&row.digest, &manifest);
        }
    }
    for row in &rows.snapshots {
        if let Ok(chain) = row.key.parse::<Digest>() {
            builder.snapshot(model.namespace(row.namespace), &chain, row.usage.unwrap_or_default().bytes);
        }
    }
    for row in &rows.records {
        builder.record(Record {
            namespace: model.namespace(row.namespace).to_owned(),
            name: row.name.to_string(),
            target: row.target.clone(),
            pinned: row.labels.get(PINNED) == Some("pinned"),
        });
    }
    builder
}

/// A manifest or index as its bytes say.
fn said(model: &Model, blob: NodeId, document: &Document, documents: &Documents) -> Option<Manifest> {
    let size = document.raw().len() as u64;
    if let Some(index) = document.index() {
        let listed = index.manifests.iter().filter(|m| !m.is_attestation());
        let manifests = listed.map(|m| (m.digest.clone(), m.size, m.platform.clone())).collect();
        return Some(Manifest { size, manifests, ..Manifest::default() });
    }
    let manifest = document.manifest()?;
    let config = documents.get(&manifest.config.digest).and_then(|raw| ImageConfig::parse(raw).ok());
    Some(Manifest {
        size,
        image_id: Some(ImageId::new(manifest.config.digest.clone())),
        config_size: manifest.config.size,
        platform: config.map(|config| config.platform),
        chain: chain(model, blob),
        layers: manifest.layers.iter().map(|l| (l.digest.clone(), l.size)).collect(),
        manifests: Vec::new(),
    })
}

/// The same as labels say: sizes of what is not here are unknown, platforms too.
fn labelled(model: &Model, blob: NodeId, size: u64) -> Option<Manifest> {
    let part = |node: &NodeId| match model.node(*node) {
        Node::Blob(row) => Some((row.digest.clone(), row.size)),
        Node::Missing(_) => super::words::name(model, *node).parse().ok().map(|digest| (digest, 0)),
        _ => None,
    };
    match model.role(blob) {
        Role::Index => {
            let manifests = model.manifests(blob);
            let manifests = manifests.iter().filter_map(part).map(|(digest, size)| (digest, size, None)).collect();
            Some(Manifest { size, manifests, ..Manifest::default() })
        }
        Role::Manifest => {
            let (config, config_size) = model.config(blob).as_ref().and_then(part)?;
            let layers = model.layers(blob).iter().filter_map(part).collect();
            let image_id = Some(ImageId::new(config));
            Some(Manifest { size, image_id, config_size, chain: chain(model, blob), layers, ..Manifest::default() })
        }
        Role::Config | Role::Layer | Role::Other => None,
    }
}

fn chain(model: &Model, manifest: NodeId) -> Vec<ChainId> {
    let snapshots = model.config(manifest).map(|config| model.snapshots_of(config)).unwrap_or_default();
    let keys = snapshots.into_iter().map(|node| super::words::name(model, node));
    keys.filter_map(|key| key.parse().ok().map(ChainId::new)).collect()
}

fn stamp(time: Option<Timestamp>) -> Option<prost_types::Timestamp> {
    time.map(|t| prost_types::Timestamp { seconds: t.as_second(), nanos: t.subsec_nanosecond() })
}

fn image_row(graph: &Graph, image: &Image, rows: &Inventory) -> pb::ImageRow {
    let records = || image.records.iter().map(|at| &rows.records[*at]);
    pb::ImageRow {
        image_id: image.image_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        namespace: image.namespace.to_string(),
        names: graph.names(image).map(str::to_owned).collect(),
        hash_references: graph.hash_references(image).map(str::to_owned).collect(),
        targets: image.targets.iter().map(ToString::to_string).collect(),
        platforms: image.platforms.iter().map(ToString::to_string).collect(),
        pinned: image.pinned,
        size: Some(pb::Sizes {
            compressed: image.sizes.compressed,
            unpacked: image.sizes.unpacked,
            shared: image.sizes.shared,
            unique: image.sizes.unique,
        }),
        created_at: stamp(records().filter_map(|r| r.created).min()),
        updated_at: stamp(records().filter_map(|r| r.updated).max()),
        incomplete: image.incomplete,
    }
}

fn record_row(graph: &Graph, at: usize, row: &RecordRow) -> pb::RecordRow {
    let view = graph.records().get(at);
    pb::RecordRow {
        name: row.name.to_string(),
        namespace: view.namespace.to_owned(),
        kind: view.kind.as_str().to_owned(),
        target: Some(pb::Descriptor {
            media_type: row.media_type.to_string(),
            digest: row.target.to_string(),
            size: row.size,
        }),
        image_id: view.image_id.map(ToString::to_string).unwrap_or_default(),
        labels: row.labels.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>(),
        created_at: stamp(row.created),
        updated_at: stamp(row.updated),
        size: view.listed_size,
        platforms: view.platforms.iter().map(ToString::to_string).collect(),
    }
}
