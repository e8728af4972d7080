//! Images over all namespaces: records that name the same one, and the images that a thing belongs to.

use std::collections::{BTreeSet, HashMap, HashSet};

use orlop_graph::model::{Found, Matched, Model, Node, NodeId, NodeKind, Resource, SnapshotKind, UNCOMPRESSED, Why};
use orlop_oci::{Digest, ImageId};
use serde::Serialize;

use super::{find, words};
use crate::error::{Class, Result};
use crate::paint::plain;

/// An image with all its names, whatever their namespace.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) image_id: Option<ImageId>,
    pub(crate) records: Vec<NodeId>,
}

/// A name in a namespace.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Name {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

impl Name {
    pub(crate) fn of(model: &Model, node: NodeId) -> Self {
        let namespace = model.namespace(model.node(node).namespace()).to_owned();
        Self { name: words::name(model, node), namespace }
    }

    /// The name, with its namespace if that is another than `here`.
    pub(crate) fn seen_from(&self, here: &str) -> String {
        let name = plain(&self.name);
        if self.namespace == here { name.into_owned() } else { format!("{name}  (namespace {})", self.namespace) }
    }
}

impl Group {
    /// Its names, and its hash references.
    pub(crate) fn names(&self, model: &Model) -> (Vec<Name>, Vec<Name>) {
        let (hashes, names): (Vec<NodeId>, Vec<NodeId>) =
            self.records.iter().partition(|record| model.record_kind(**record).is_hash_reference());
        let named = |records: Vec<NodeId>| records.into_iter().map(|record| Name::of(model, record)).collect();
        (named(names), named(hashes))
    }
}

/// What a record points at.
pub(crate) fn target(model: &Model, record: NodeId) -> Option<Digest> {
    match model.node(record) {
        Node::Record(row) => Some(row.target.clone()),
        _ => None,
    }
}

/// All images: records are of one if they have the same target or lead to the same image ID.
pub(crate) fn groups(model: &Model) -> Vec<Group> {
    let mut known: HashMap<Digest, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for image in model.images() {
        let mut keys: Vec<Digest> = image.records.iter().filter_map(|record| target(model, *record)).collect();
        keys.extend(image.image_id.iter().map(|id| id.digest().clone()));
        let at = keys.iter().find_map(|key| known.get(key).copied()).unwrap_or_else(|| {
            groups.push(Group { image_id: None, records: Vec::new() });
            groups.len() - 1
        });
        groups[at].image_id = groups[at].image_id.take().or(image.image_id);
        groups[at].records.extend(image.records);
        known.extend(keys.into_iter().map(|key| (key, at)));
    }
    groups
}

/// The positions of images that some things are a part of, or stand on.
pub(crate) fn concerned(model: &Model, groups: &[Group], nodes: &[NodeId]) -> BTreeSet<usize> {
    let mut seen: HashSet<NodeId> = HashSet::new();
    let mut stack: Vec<NodeId> = nodes.iter().flat_map(|node| seeds(model, *node)).collect();
    while let Some(node) = stack.pop() {
        if !matches!(model.kind(node), NodeKind::Lease | NodeKind::Container) && seen.insert(node) {
            stack.extend(model.referrers(node).map(|edge| edge.node));
        }
    }
    let is_concerned = |group: &Group| group.records.iter().any(|record| seen.contains(record));
    (0..groups.len()).filter(|at| is_concerned(&groups[*at])).collect()
}

/// Where the way up from a thing to its images begins.
fn seeds(model: &Model, node: NodeId) -> Vec<NodeId> {
    match model.node(node) {
        Node::Blob(row) => {
            let is_same = |other: &NodeId| matches!(model.node(*other), Node::Missing(m) if m.resource == Resource::Content(row.digest.clone()));
            model.copies(&row.digest).chain(model.nodes(NodeKind::Missing).filter(is_same)).collect()
        }
        Node::Container(row) => match model.image_top(node) {
            Some(top) => vec![top],
            None => model.record(row.namespace, &row.image).into_iter().collect(),
        },
        Node::Snapshot(row) if row.kind != SnapshotKind::Committed => {
            model.image_top(node).into_iter().chain([node]).collect()
        }
        Node::Lease(_) | Node::Ingest(_) => {
            let named = model.references(node).filter(|e| matches!(e.why, Why::Resource | Why::Expected));
            named.flat_map(|edge| seeds(model, edge.node)).collect()
        }
        _ => vec![node],
    }
}

/// What a text means, as [`find`]; the beginning of a digest that is both a layer's diff ID and the key of what it is unpacked
/// to is the beginning of one.
pub(crate) fn search(model: &Model, text: &str, here: &str) -> Result<Vec<Found>> {
    match find(model, text, here) {
        Err(error) if error.class == Class::Conflict => {
            let found = model.find(text);
            let meant: HashSet<String> = found.iter().map(|found| meant(model, found, text)).collect();
            if meant.len() == 1 { Ok(found) } else { Err(error) }
        }
        found => found,
    }
}

/// The identifier that a text means of what it found: the name, or of a blob the diff ID.
pub(crate) fn meant(model: &Model, found: &Found, text: &str) -> String {
    diff_id(model, found, text).map_or_else(|| words::name(model, found.node), str::to_owned)
}

/// The diff ID by which a blob was found.
pub(crate) fn diff_id<'m>(model: &'m Model, found: &Found, text: &str) -> Option<&'m str> {
    let Node::Blob(row) = model.node(found.node) else { return None };
    let hex = text.trim().trim_start_matches("sha256:").to_ascii_lowercase();
    let is_digest = row.digest.hex().starts_with(&hex);
    (found.matched == Matched::DiffId || !is_digest).then(|| row.labels.get(UNCOMPRESSED)).flatten()
}
