//! Facts about nodes, in the shape that documents have.

use orlop_graph::model::{Chain, Cost, Model, Node, NodeId, Weight};
use serde::Serialize;

use super::words;

/// A thing by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Named {
    pub(crate) kind: &'static str,
    /// Of a record what its name is, of a blob what it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    pub(crate) name: String,
    pub(crate) namespace: String,
}

impl Named {
    pub(crate) fn of(model: &Model, node: NodeId) -> Self {
        let role = match model.node(node) {
            Node::Record(_) => Some(model.record_kind(node).as_str()),
            Node::Blob(_) => Some(words::role(model.role(node))),
            _ => None,
        };
        let namespace = model.namespace(model.node(node).namespace()).to_owned();
        Self { kind: words::kind(model, node), role, name: words::name(model, node), namespace }
    }
}

/// What keeps a thing, and by which way.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Keeper {
    #[serde(flatten)]
    pub(crate) root: Named,
    /// Why the root is one.
    pub(crate) reason: &'static str,
    /// From below the root down to the thing; empty if it is the root.
    pub(crate) chain: Vec<Step>,
}

/// A step down.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Step {
    /// What the one above says of this one.
    pub(crate) because: String,
    #[serde(flatten)]
    pub(crate) node: Named,
}

impl Keeper {
    pub(crate) fn of(model: &Model, chain: &Chain<'_>) -> Self {
        let step = |link: &orlop_graph::model::Link<'_>| Step {
            because: words::reason(link.why),
            node: Named::of(model, link.node),
        };
        Self {
            root: Named::of(model, chain.root),
            reason: model.root(chain.root).map_or("", words::root),
            chain: chain.links.iter().map(step).collect(),
        }
    }
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bytes {
    pub(crate) bytes: u64,
    pub(crate) blobs: u64,
    pub(crate) blob_bytes: u64,
    pub(crate) snapshots: u64,
    pub(crate) snapshot_bytes: u64,
    /// Snapshots whose size is not known.
    pub(crate) unmeasured: u64,
}

impl From<Weight> for Bytes {
    fn from(weight: Weight) -> Self {
        Self {
            bytes: weight.bytes(),
            blobs: weight.blobs,
            blob_bytes: weight.blob_bytes,
            snapshots: weight.snapshots,
            snapshot_bytes: weight.snapshot_bytes,
            unmeasured: weight.unmeasured,
        }
    }
}

/// What a thing costs.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Costs {
    /// Everything it keeps.
    pub(crate) all: Bytes,
    /// Of that, what nothing else keeps.
    pub(crate) alone: Bytes,
}

impl From<Cost> for Costs {
    fn from(cost: Cost) -> Self {
        Self { all: cost.all.into(), alone: cost.alone.into() }
    }
}

/// A node's times, RFC 3339 in UTC.
pub(crate) fn times(model: &Model, node: NodeId) -> (Option<String>, Option<String>) {
    let (created, updated) = match model.node(node) {
        Node::Record(row) => (row.created, row.updated),
        Node::Blob(row) => (row.created, row.updated),
        Node::Snapshot(row) => (row.created, row.updated),
        Node::Lease(row) => (row.created, None),
        Node::Ingest(row) => (row.started, row.updated),
        Node::Container(row) => (row.created, None),
        Node::Missing(_) => (None, None),
    };
    let text = |time: jiff::Timestamp| jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string();
    (created.map(text), updated.map(text))
}
