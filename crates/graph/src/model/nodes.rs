//! Nodes and edges.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_oci::{Digest, DigestTable};

use super::{
    BlobRow, ContainerRow, IngestRow, Inventory, Labels, LeaseRow, NamespaceId, RecordRow, Resource, SnapshotRow, Usage,
};
use crate::intern::{Bits, FastMap, Number};

/// A node of one [`Model`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeKind {
    /// An image record.
    Record,
    /// A blob in a namespace.
    Blob,
    /// A snapshot.
    Snapshot,
    /// A lease.
    Lease,
    /// A write in progress.
    Ingest,
    /// A container.
    Container,
    /// Something that is named and not there.
    Missing,
}

/// A node's row.
#[derive(Debug, Clone, Copy)]
pub enum Node<'m> {
    /// An image record.
    Record(&'m RecordRow),
    /// A blob in a namespace.
    Blob(&'m BlobRow),
    /// A snapshot.
    Snapshot(&'m SnapshotRow),
    /// A lease.
    Lease(&'m LeaseRow),
    /// A write in progress.
    Ingest(&'m IngestRow),
    /// A container.
    Container(&'m ContainerRow),
    /// Something that is named and not there.
    Missing(&'m Missing),
}

impl Node<'_> {
    /// Its namespace.
    pub fn namespace(&self) -> NamespaceId {
        match self {
            Self::Record(row) => row.namespace,
            Self::Blob(row) => row.namespace,
            Self::Snapshot(row) => row.namespace,
            Self::Lease(row) => row.namespace,
            Self::Ingest(row) => row.namespace,
            Self::Container(row) => row.namespace,
            Self::Missing(missing) => missing.namespace,
        }
    }
}

/// Something that a row names and that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Missing {
    /// The namespace of the row.
    pub namespace: NamespaceId,
    /// What it names.
    pub resource: Resource,
}

/// Why a node is a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Root {
    /// An image record that has not expired.
    Record,
    /// A container.
    Container,
    /// A lease that has not expired.
    Lease,
    /// A blob or snapshot with the label `containerd.io/gc.root`.
    Label,
    /// The same, set by Orlop for a containerd above it, which owns the blob or snapshot.
    Owner,
    /// A write in progress.
    Ingest,
}

/// An edge to or from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge<'m> {
    /// The other end.
    pub node: NodeId,
    /// What states it.
    pub why: Why<'m>,
}

/// What states an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why<'m> {
    /// A record points at its target.
    Target,
    /// A snapshot lies on its parent.
    Parent,
    /// A lease lists it.
    Resource,
    /// A container's file system.
    RootFs,
    /// What a write is to become.
    Expected,
    /// A label of the referring end.
    Label(&'m str),
    /// A label of the end that is referred to.
    BackLabel(&'m str),
    /// A label of the referring end that counts while its condition holds.
    Condition(&'m str),
}

/// The same without the label's text: its position among the labels of its end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stated {
    Target,
    Parent,
    Resource,
    RootFs,
    Expected,
    Label(u32),
    BackLabel(u32),
    Condition(u32),
}

/// One direction of all edges: those of a node stand together.
#[derive(Debug, Default)]
pub(super) struct Edges {
    /// By node: where its edges begin; one more for the end.
    pub(super) starts: Vec<u32>,
    pub(super) ends: Vec<(NodeId, Stated)>,
}

impl Edges {
    pub(super) fn of(&self, node: NodeId) -> &[(NodeId, Stated)] {
        let at = node.0 as usize;
        &self.ends[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

/// A snapshot's place: namespace, snapshotter, key.
pub(super) type Place = (NamespaceId, Arc<str>, Arc<str>);

/// A store's inventory with its edges. See the [module](super).
#[derive(Debug)]
pub struct Model {
    pub(super) inventory: Inventory,
    pub(super) missing: Vec<Missing>,
    /// First number of each kind, in the order of [`NodeKind`]; the last is the number of nodes.
    pub(super) firsts: [u32; 8],
    pub(super) out: Edges,
    pub(super) back: Edges,
    pub(super) roots: Vec<(NodeId, Root)>,
    /// Leases that hold what they list and follow no label.
    pub(super) flat: Bits,
    pub(super) digests: DigestTable,
    /// By blob: the number of its digest.
    pub(super) numbers: Vec<Number>,
    pub(super) blobs: FastMap<(u32, Number), NodeId>,
    /// By number of digest: its first blob.
    pub(super) first_copy: Vec<Option<NodeId>>,
    /// By blob: the next one of the same digest.
    pub(super) next_copy: Vec<Option<NodeId>>,
    pub(super) records: HashMap<(NamespaceId, Arc<str>), NodeId>,
    pub(super) snapshots: HashMap<Place, NodeId>,
}

impl Model {
    /// The rows it was made of.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// A namespace's name.
    pub fn namespace(&self, namespace: NamespaceId) -> &str {
        &self.inventory.namespaces[usize::from(namespace)].name
    }

    /// Takes in what snapshots take, by their positions in the inventory's list, once somebody has asked.
    pub fn take_usage(&mut self, measured: impl IntoIterator<Item = (usize, Usage)>) {
        for (at, usage) in measured {
            self.inventory.snapshots[at].usage = Some(usage);
        }
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.firsts[7] as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes of a kind, in the order of their rows.
    pub fn nodes(&self, kind: NodeKind) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (self.firsts[kind as usize]..self.firsts[kind as usize + 1]).map(NodeId)
    }

    /// The node of a row, by its position in the inventory's list.
    pub(super) fn number(&self, kind: NodeKind, at: usize) -> NodeId {
        NodeId(self.firsts[kind as usize] + at as u32)
    }

    /// What a node is.
    pub fn kind(&self, node: NodeId) -> NodeKind {
        const KINDS: [NodeKind; 7] = [
            NodeKind::Record,
            NodeKind::Blob,
            NodeKind::Snapshot,
            NodeKind::Lease,
            NodeKind::Ingest,
            NodeKind::Container,
            NodeKind::Missing,
        ];
        KINDS[self.firsts[1..7].partition_point(|first| *first <= node.0)]
    }

    /// A node's row.
    pub fn node(&self, node: NodeId) -> Node<'_> {
        let kind = self.kind(node);
        let at = (node.0 - self.firsts[kind as usize]) as usize;
        let rows = &self.inventory;
        match kind {
            NodeKind::Record => Node::Record(&rows.records[at]),
            NodeKind::Blob => Node::Blob(&rows.blobs[at]),
            NodeKind::Snapshot => Node::Snapshot(&rows.snapshots[at]),
            NodeKind::Lease => Node::Lease(&rows.leases[at]),
            NodeKind::Ingest => Node::Ingest(&rows.ingests[at]),
            NodeKind::Container => Node::Container(&rows.containers[at]),
            NodeKind::Missing => Node::Missing(&self.missing[at]),
        }
    }

    /// A node's labels; what has none has an empty list.
    pub fn labels(&self, node: NodeId) -> &Labels {
        static NONE: std::sync::LazyLock<Labels> = std::sync::LazyLock::new(Labels::default);
        match self.node(node) {
            Node::Record(row) => &row.labels,
            Node::Blob(row) => &row.labels,
            Node::Snapshot(row) => &row.labels,
            Node::Lease(row) => &row.labels,
            Node::Container(row) => &row.labels,
            Node::Ingest(_) | Node::Missing(_) => &NONE,
        }
    }

    /// What a node refers to.
    pub fn references(&self, node: NodeId) -> impl ExactSizeIterator<Item = Edge<'_>> {
        self.out.of(node).iter().map(move |(to, stated)| self.edge(node, *to, *to, *stated))
    }

    /// What refers to a node.
    pub fn referrers(&self, node: NodeId) -> impl ExactSizeIterator<Item = Edge<'_>> {
        self.back.of(node).iter().map(move |(from, stated)| self.edge(*from, node, *from, *stated))
    }

    fn edge(&self, from: NodeId, to: NodeId, other: NodeId, stated: Stated) -> Edge<'_> {
        Edge { node: other, why: self.why(from, to, stated) }
    }

    pub(super) fn why(&self, from: NodeId, to: NodeId, stated: Stated) -> Why<'_> {
        match stated {
            Stated::Target => Why::Target,
            Stated::Parent => Why::Parent,
            Stated::Resource => Why::Resource,
            Stated::RootFs => Why::RootFs,
            Stated::Expected => Why::Expected,
            Stated::Label(at) => Why::Label(self.labels(from).at(at).0),
            Stated::BackLabel(at) => Why::BackLabel(self.labels(to).at(at).0),
            Stated::Condition(at) => Why::Condition(self.labels(from).at(at).0),
        }
    }

    /// All roots, in the order of the nodes.
    pub fn roots(&self) -> &[(NodeId, Root)] {
        &self.roots
    }

    /// Why a node is a root, if it is one.
    pub fn root(&self, node: NodeId) -> Option<Root> {
        self.roots.binary_search_by_key(&node, |(root, _)| *root).ok().map(|at| self.roots[at].1)
    }

    /// A record by its name.
    pub fn record(&self, namespace: NamespaceId, name: &str) -> Option<NodeId> {
        self.records.get(&(namespace, name.into())).copied()
    }

    /// A blob of a namespace.
    pub fn blob(&self, namespace: NamespaceId, digest: &Digest) -> Option<NodeId> {
        let number = self.digests.get(digest)?;
        self.blobs.get(&(u32::from(namespace), number)).copied()
    }

    /// The number of a blob's digest.
    pub(super) fn digest_number(&self, blob: NodeId) -> Number {
        self.numbers[(blob.0 - self.firsts[NodeKind::Blob as usize]) as usize]
    }

    /// A digest's blobs, one for each namespace that has it.
    pub fn copies(&self, digest: &Digest) -> impl Iterator<Item = NodeId> {
        self.copies_of(self.digests.get(digest))
    }

    /// The same of a digest's number.
    pub(super) fn copies_of(&self, number: Option<Number>) -> impl Iterator<Item = NodeId> {
        let first = number.and_then(|number| *self.first_copy.get(number as usize)?);
        std::iter::successors(first, |blob| self.next_copy[(blob.0 - self.firsts[NodeKind::Blob as usize]) as usize])
    }

    /// A snapshot by its key.
    pub fn snapshot(&self, namespace: NamespaceId, snapshotter: &str, key: &str) -> Option<NodeId> {
        self.snapshots.get(&(namespace, snapshotter.into(), key.into())).copied()
    }
}
