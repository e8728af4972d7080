//! What images consist of, as their documents say: manifests, configs, layers, and the snapshots these are unpacked to.
//!
//! Labels say what a collector follows. They neither tell a layer's diff ID before it is unpacked, nor a platform, nor the
//! size of what is not here: documents do, so they are read here, each once.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_graph::model::{Model, Node, NodeId, NodeKind, UNCOMPRESSED};
use orlop_lens::Documents;
use orlop_oci::{ChainId, Descriptor, DiffId, Digest, Document, ImageConfig, ImageManifest, MediaKind, chain_ids};
use serde::Serialize;

use super::Look;
use super::groups::{Group, target};
use crate::error::Result;

/// Indexes lie in indexes at most so deep.
const DEPTH: usize = 8;

/// A document with what it names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    /// `index`, `manifest`, `attestation`, `artifact`; `blob` if it is none of these.
    pub(crate) kind: &'static str,
    #[serde(flatten)]
    pub(crate) blob: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    /// The manifest that an attestation or a referrer is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) about: Option<String>,
    /// It is here, and its bytes are not what they should be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unreadable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) manifests: Vec<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Blob>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<Layer>,
}

/// A blob that a document names.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Blob {
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) size: u64,
    pub(crate) here: bool,
    /// How many other images reach it.
    pub(crate) shared_with: u64,
}

/// A layer, or an artifact's blob.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    /// From 1, the lowest.
    pub(crate) position: usize,
    #[serde(flatten)]
    pub(crate) blob: Blob,
    pub(crate) diff_id: Option<String>,
    pub(crate) chain_id: Option<String>,
    pub(crate) snapshots: Vec<Snapshot>,
}

/// What a layer is unpacked to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Snapshot {
    #[serde(skip)]
    pub(crate) node: NodeId,
    pub(crate) namespace: String,
    pub(crate) snapshotter: String,
    pub(crate) key: String,
    /// What it takes itself; absent if nobody asked or its snapshotter did not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    pub(crate) shared_with: u64,
}

impl Part {
    /// Itself and everything below it that is a document.
    pub(crate) fn all(&self) -> Vec<&Self> {
        std::iter::once(self).chain(self.manifests.iter().flat_map(Self::all)).collect()
    }

    /// The snapshots of all layers below.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.all().into_iter().flat_map(|part| &part.layers).flat_map(|layer| &layer.snapshots)
    }
}

/// Reads the targets of records, the manifests below them that are here, and the configs of these.
pub(crate) async fn read(look: &Look, records: impl IntoIterator<Item = NodeId>) -> Result<Documents> {
    let mut documents = Documents::default();
    let mut level: Vec<Digest> = records.into_iter().filter_map(|record| target(&look.model, record)).collect();
    for _ in 0..DEPTH {
        level.sort();
        level.dedup();
        if level.is_empty() {
            break;
        }
        look.reader.documents(&mut documents, level.iter().filter_map(|digest| place(&look.model, digest))).await?;
        level = level.iter().filter_map(|digest| parsed(&documents, digest)).flat_map(|d| below(&d)).collect();
        level.retain(|digest| documents.get(digest).is_none());
    }
    Ok(documents)
}

fn place(model: &Model, digest: &Digest) -> Option<(Arc<str>, Digest, u64)> {
    match model.node(model.copies(digest).next()?) {
        Node::Blob(row) => Some((Arc::from(model.namespace(row.namespace)), row.digest.clone(), row.size)),
        _ => None,
    }
}

fn parsed(documents: &Documents, digest: &Digest) -> Option<Document> {
    Document::parse_as(documents.get(digest)?.clone(), None, digest.algorithm()).ok()
}

/// The documents that one names. Of an artifact's config nothing is known: it may be anything.
fn below(document: &Document) -> Vec<Digest> {
    let is_document = |d: &&Descriptor| matches!(d.kind(), MediaKind::Manifest | MediaKind::Index | MediaKind::Config);
    document.children().into_iter().filter(is_document).map(|d| d.digest.clone()).collect()
}

/// Makes parts of images from documents that were [read].
pub(crate) struct Parts<'l> {
    model: &'l Model,
    documents: &'l Documents,
    snapshots: HashMap<&'l str, Vec<NodeId>>,
    /// By blob (the first copy of its digest) or snapshot: the images that reach it, by their position.
    uses: HashMap<NodeId, Vec<usize>>,
}

impl<'l> Parts<'l> {
    pub(crate) fn new(model: &'l Model, documents: &'l Documents, groups: &[Group]) -> Self {
        let mut snapshots: HashMap<&str, Vec<NodeId>> = HashMap::new();
        for node in model.nodes(NodeKind::Snapshot) {
            if let Node::Snapshot(row) = model.node(node) {
                snapshots.entry(&row.key).or_default().push(node);
            }
        }
        let mut uses: HashMap<NodeId, Vec<usize>> = HashMap::new();
        for (at, group) in groups.iter().enumerate() {
            model.items_of(&group.records).into_iter().for_each(|item| uses.entry(item).or_default().push(at));
        }
        uses.values_mut().for_each(Vec::dedup);
        Self { model, documents, snapshots, uses }
    }

    /// The targets of an image's records, each once; `at` is the image's position.
    pub(crate) fn of(&self, at: usize, group: &Group) -> Vec<Part> {
        let mut targets: Vec<Descriptor> = Vec::new();
        for record in &group.records {
            if let Node::Record(row) = self.model.node(*record)
                && targets.iter().all(|known| known.digest != row.target)
            {
                targets.push(Descriptor::new(&*row.media_type, row.target.clone(), row.size));
            }
        }
        targets.iter().map(|target| self.part(at, target, DEPTH)).collect()
    }

    fn shared(&self, at: usize, node: NodeId) -> u64 {
        self.uses.get(&node).map_or(0, |users| users.iter().filter(|user| **user != at).count() as u64)
    }

    fn blob(&self, at: usize, named: &Descriptor) -> Blob {
        let node = self.model.copies(&named.digest).next();
        let size = match node.map(|node| self.model.node(node)) {
            Some(Node::Blob(row)) => row.size,
            _ => named.size,
        };
        Blob {
            digest: named.digest.to_string(),
            media_type: named.media_type.clone(),
            size,
            here: node.is_some(),
            shared_with: node.map_or(0, |node| self.shared(at, node)),
        }
    }

    fn part(&self, at: usize, named: &Descriptor, depth: usize) -> Part {
        let blob = self.blob(at, named);
        let kind = match named.kind() {
            _ if named.is_attestation() => "attestation",
            MediaKind::Index => "index",
            MediaKind::Manifest if named.artifact_type.is_some() => "artifact",
            MediaKind::Manifest => "manifest",
            _ => "blob",
        };
        let mut part = Part {
            kind,
            unreadable: false,
            platform: named.platform.as_ref().map(ToString::to_string).filter(|_| kind != "attestation"),
            artifact_type: named.artifact_type.clone(),
            about: named.annotations.get("vnd.docker.reference.digest").cloned(),
            manifests: Vec::new(),
            config: None,
            layers: Vec::new(),
            blob,
        };
        let document = parsed(self.documents, &named.digest);
        match document.as_ref().map(|document| (document.index(), document.manifest())) {
            Some((Some(index), _)) if depth > 0 => {
                part.kind = "index";
                part.manifests = index.manifests.iter().map(|child| self.part(at, child, depth - 1)).collect();
            }
            Some((_, Some(manifest))) => self.manifest(at, manifest, &mut part),
            _ => part.unreadable = part.blob.here && kind != "blob",
        }
        part
    }

    fn manifest(&self, at: usize, manifest: &ImageManifest, part: &mut Part) {
        let config = self.documents.get(&manifest.config.digest).and_then(|raw| ImageConfig::parse(raw).ok());
        let is_artifact = manifest.artifact_type.is_some() || manifest.config.kind() != MediaKind::Config;
        if part.kind != "attestation" {
            part.kind = if is_artifact { "artifact" } else { "manifest" };
        }
        part.artifact_type = manifest.artifact_type.clone().or_else(|| part.artifact_type.take());
        part.about = part.about.take().or_else(|| manifest.subject.as_ref().map(|about| about.digest.to_string()));
        part.config = Some(self.blob(at, &manifest.config));
        let is_image = part.kind == "manifest";
        if is_image {
            let said = config.as_ref().map(|config| config.platform.to_string());
            part.platform = part.platform.take().or(said);
        }
        let known = if is_image { self.diff_ids(manifest, config.as_ref()) } else { Vec::new() };
        let chain = chain_ids(&known);
        part.layers = (manifest.layers.iter().enumerate())
            .map(|(i, named)| Layer {
                position: i + 1,
                blob: self.blob(at, named),
                diff_id: known.get(i).map(ToString::to_string),
                chain_id: chain.get(i).map(ToString::to_string),
                snapshots: chain.get(i).map(|chain| self.unpacked(at, chain)).unwrap_or_default(),
            })
            .collect();
    }

    /// The diff IDs of a manifest's layers from the lowest as far as they are known: as the config says, else as the blobs'
    /// labels do.
    fn diff_ids(&self, manifest: &ImageManifest, config: Option<&ImageConfig>) -> Vec<DiffId> {
        if let Some(config) = config
            && config.rootfs.diff_ids.len() == manifest.layers.len()
        {
            return config.rootfs.diff_ids.clone();
        }
        let label = |layer: &Descriptor| {
            self.model.copies(&layer.digest).find_map(|blob| self.model.labels(blob).get(UNCOMPRESSED)?.parse().ok())
        };
        manifest.layers.iter().map_while(label).map(DiffId::new).collect()
    }

    fn unpacked(&self, at: usize, chain: &ChainId) -> Vec<Snapshot> {
        let nodes = self.snapshots.get(chain.to_string().as_str()).map(Vec::as_slice).unwrap_or_default();
        let snapshot = |node: &NodeId| match self.model.node(*node) {
            Node::Snapshot(row) => Some(Snapshot {
                node: *node,
                namespace: self.model.namespace(row.namespace).to_owned(),
                snapshotter: row.snapshotter.to_string(),
                key: row.key.to_string(),
                size: row.usage.map(|usage| usage.bytes),
                shared_with: self.shared(at, *node),
            }),
            _ => None,
        };
        nodes.iter().filter_map(snapshot).collect()
    }
}
