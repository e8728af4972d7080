//! Linking an inventory's rows.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use orlop_oci::condition::{self, Conditional};
use orlop_oci::{DigestTable, owner};

use super::nodes::{Edges, Stated};
use super::{
    Collector, Inventory, Labels, Missing, Model, NamespaceId, NodeId, NodeKind, RecordRow, Resource, Root, SnapshotRow,
};
use crate::intern::{Bits, FastMap};

const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";
const ROOT: &str = "containerd.io/gc.root";
const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";

/// How long a write that no lease lists is kept after it began (containerd, `core/metadata/content.go`).
const INGEST_AGE: SignedDuration = SignedDuration::from_hours(24);

/// From so many rows on a second thread is worth its start.
const MANY: usize = 20_000;

/// Rows while their edges are found.
struct Linker<'i> {
    rows: &'i Inventory,
    firsts: [u32; 8],
    digests: DigestTable,
    numbers: Vec<u32>,
    blobs: FastMap<(u32, u32), NodeId>,
    names: Names,
    missing: Vec<Missing>,
    absent: HashMap<Missing, NodeId>,
    /// What a label keeps, in the order of the nodes.
    rooted: Vec<(NodeId, Root)>,
    /// Every edge once: from, to, what states it.
    edges: Vec<(NodeId, NodeId, Stated)>,
}

/// Nodes by their names.
#[derive(Default)]
struct Names {
    records: HashMap<(NamespaceId, Arc<str>), NodeId>,
    snapshots: HashMap<super::nodes::Place, NodeId>,
    ingests: HashMap<(NamespaceId, Arc<str>), NodeId>,
    containers: HashMap<(NamespaceId, Arc<str>), NodeId>,
}

impl Names {
    fn of(rows: &Inventory, firsts: [u32; 8]) -> Self {
        let node = |kind: NodeKind, at: usize| NodeId(firsts[kind as usize] + at as u32);
        let records = rows.records.iter().enumerate();
        let snapshots = rows.snapshots.iter().enumerate();
        let ingests = rows.ingests.iter().enumerate();
        let containers = rows.containers.iter().enumerate();
        let place = |row: &SnapshotRow| (row.namespace, row.snapshotter.clone(), row.key.clone());
        Self {
            records: records.map(|(at, r)| ((r.namespace, r.name.clone()), node(NodeKind::Record, at))).collect(),
            snapshots: snapshots.map(|(at, row)| (place(row), node(NodeKind::Snapshot, at))).collect(),
            ingests: ingests.map(|(at, r)| ((r.namespace, r.reference.clone()), node(NodeKind::Ingest, at))).collect(),
            containers: containers
                .map(|(at, r)| ((r.namespace, r.id.clone()), node(NodeKind::Container, at)))
                .collect(),
        }
    }
}

/// Does two things, of so many rows at the same time if those are many.
fn beside<A: Send, B>(rows: usize, one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    if rows < MANY {
        return (one(), other());
    }
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        (one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), other)
    })
}

impl Model {
    /// Links what was read.
    pub fn new(inventory: Inventory) -> Self {
        let mut linker = Linker::new(&inventory);
        linker.link();
        let Linker { mut firsts, digests, numbers, blobs, names, missing, rooted, edges, .. } = linker;
        let Names { records, snapshots, .. } = names;
        firsts[7] = firsts[6] + missing.len() as u32;
        let count = firsts[7] as usize;
        let (first_copy, next_copy) = copies(&numbers, digests.len(), firsts[NodeKind::Blob as usize]);
        let (out, back) = beside(
            edges.len(),
            || sorted(count, edges.iter().copied()),
            || sorted(count, edges.iter().map(|(from, to, stated)| (*to, *from, *stated))),
        );
        let mut model = Self {
            missing,
            firsts,
            out,
            back,
            roots: Vec::new(),
            flat: Bits::default(),
            digests,
            numbers,
            blobs,
            first_copy,
            next_copy,
            records,
            snapshots,
            inventory,
        };
        model.find_roots(&rooted);
        model
    }

    fn find_roots(&mut self, rooted: &[(NodeId, Root)]) {
        let (rows, now) = (&self.inventory, self.inventory.taken);
        let live = |labels: &Labels| expiry(labels).is_none_or(|at| at >= now);
        let mut roots = Vec::new();
        let mut add = |kind, at, root| roots.push((self.number(kind, at), root));
        let positions = |kept: &mut dyn Iterator<Item = (usize, bool)>| -> Vec<usize> {
            kept.filter(|(_, is_root)| *is_root).map(|(at, _)| at).collect()
        };
        let stays = |record: &RecordRow| rows.collector < Collector::V2 || live(&record.labels);
        for at in positions(&mut rows.records.iter().map(stays).enumerate()) {
            add(NodeKind::Record, at, Root::Record);
        }
        roots.extend(rooted.iter().copied());
        let mut add = |kind, at, root| roots.push((self.number(kind, at), root));
        for at in positions(&mut rows.leases.iter().map(|r| live(&r.labels)).enumerate()) {
            add(NodeKind::Lease, at, Root::Lease);
        }
        let young = |started: Option<Timestamp>| started.is_none_or(|at| now.duration_since(at) < INGEST_AGE);
        for at in positions(&mut rows.ingests.iter().map(|r| young(r.started)).enumerate()) {
            add(NodeKind::Ingest, at, Root::Ingest);
        }
        for at in 0..rows.containers.len() {
            add(NodeKind::Container, at, Root::Container);
        }
        for (at, lease) in rows.leases.iter().enumerate() {
            if lease.labels.get(FLAT).is_some() {
                self.flat.insert(self.firsts[NodeKind::Lease as usize] + at as u32);
            }
        }
        self.roots = roots;
    }
}

/// When an object expires. A text that is no time counts for nothing.
pub(super) fn expiry(labels: &Labels) -> Option<Timestamp> {
    labels.get(EXPIRE)?.parse().ok()
}

fn nanoseconds(time: Timestamp) -> Option<i64> {
    time.as_nanosecond().try_into().ok()
}

impl<'i> Linker<'i> {
    fn new(rows: &'i Inventory) -> Self {
        let counts = [
            rows.records.len(),
            rows.blobs.len(),
            rows.snapshots.len(),
            rows.leases.len(),
            rows.ingests.len(),
            rows.containers.len(),
        ];
        let mut firsts = [0; 8];
        for (at, count) in counts.iter().enumerate() {
            firsts[at + 1] = firsts[at] + *count as u32;
        }
        let mut linker = Self {
            rows,
            firsts,
            digests: DigestTable::with_capacity(rows.blobs.len()),
            numbers: Vec::with_capacity(rows.blobs.len()),
            blobs: FastMap::default(),
            names: Names::default(),
            missing: Vec::new(),
            absent: HashMap::new(),
            rooted: Vec::new(),
            edges: Vec::with_capacity(2 * rows.blobs.len() + rows.records.len() + rows.snapshots.len()),
        };
        linker.number();
        linker
    }

    /// Numbers the rows: of a large store blobs on one thread and everything else on another.
    fn number(&mut self) {
        let (rows, firsts) = (self.rows, self.firsts);
        self.names = beside(
            rows.records.len() + rows.snapshots.len(),
            || Names::of(rows, firsts),
            || {
                self.blobs.reserve(rows.blobs.len());
                for (at, row) in rows.blobs.iter().enumerate() {
                    let number = self.digests.add(&row.digest);
                    self.numbers.push(number);
                    let node = NodeId(firsts[NodeKind::Blob as usize] + at as u32);
                    self.blobs.insert((u32::from(row.namespace), number), node);
                }
            },
        )
        .0;
    }

    fn link(&mut self) {
        let rows = self.rows;
        for (at, row) in rows.records.iter().enumerate() {
            let from = self.node(NodeKind::Record, at);
            let target = self.find(row.namespace, Resource::Content(row.target.clone()));
            self.edges.push((from, target, Stated::Target));
            self.labels(row.namespace, from, &row.labels);
        }
        for (at, row) in rows.blobs.iter().enumerate() {
            self.labels(row.namespace, self.node(NodeKind::Blob, at), &row.labels);
        }
        for (at, row) in rows.snapshots.iter().enumerate() {
            let from = self.node(NodeKind::Snapshot, at);
            if let Some(parent) = row.parent.clone() {
                let (snapshotter, key) = (row.snapshotter.clone(), parent);
                let parent = self.find(row.namespace, Resource::Snapshot { snapshotter, key });
                self.edges.push((from, parent, Stated::Parent));
            }
            self.labels(row.namespace, from, &row.labels);
        }
        for (at, row) in rows.leases.iter().enumerate() {
            let from = self.node(NodeKind::Lease, at);
            for resource in row.resources.iter().filter(|r| !matches!(r, Resource::Other { .. })) {
                let to = self.find(row.namespace, resource.clone());
                self.edges.push((from, to, Stated::Resource));
            }
        }
        for (at, row) in rows.ingests.iter().enumerate() {
            if let Some(expected) = row.expected.clone() {
                let to = self.find(row.namespace, Resource::Content(expected));
                self.edges.push((self.node(NodeKind::Ingest, at), to, Stated::Expected));
            }
        }
        self.link_containers();
    }

    fn link_containers(&mut self) {
        for (at, row) in self.rows.containers.iter().enumerate() {
            let from = self.node(NodeKind::Container, at);
            if !row.snapshot_key.is_empty() {
                let (snapshotter, key) = (row.snapshotter.clone(), row.snapshot_key.clone());
                let to = self.find(row.namespace, Resource::Snapshot { snapshotter, key });
                self.edges.push((from, to, Stated::RootFs));
            }
            self.labels(row.namespace, from, &row.labels);
        }
    }

    fn node(&self, kind: NodeKind, at: usize) -> NodeId {
        NodeId(self.firsts[kind as usize] + at as u32)
    }

    /// The edges that labels state.
    fn labels(&mut self, namespace: NamespaceId, node: NodeId, labels: &Labels) {
        for (at, key, value) in labels.placed("containerd.io/gc.") {
            if let Some(kind) = key.strip_prefix(REF) {
                self.stated(namespace, kind, value, |edges, other| edges.push((node, other, Stated::Label(at))));
            } else if let (Some(kind), true) = (key.strip_prefix(BACK_REF), self.rows.collector >= Collector::V2_2) {
                self.stated(namespace, kind, value, |edges, other| edges.push((other, node, Stated::BackLabel(at))));
            } else if key.starts_with(condition::LABEL) {
                let other = self.conditional(namespace, node, key, value);
                self.edges.extend(other.map(|other| (node, other, Stated::Condition(at))));
            } else if key == ROOT && (self.firsts[1]..self.firsts[3]).contains(&node.0) {
                // Blobs and snapshots.
                let is_owners = owner::is_claim(&self.rows.namespaces[namespace as usize].name, value);
                self.rooted.push((node, if is_owners { Root::Owner } else { Root::Label }));
            }
        }
    }

    fn stated(
        &mut self,
        namespace: NamespaceId,
        kind: &str,
        value: &str,
        push: impl FnOnce(&mut Vec<(NodeId, NodeId, Stated)>, NodeId),
    ) {
        let Some(other) = self.named(namespace, kind, value) else { return };
        push(&mut self.edges, other);
    }

    /// The snapshot to which a label of an image or a blob refers, if its condition holds now.
    fn conditional(&self, namespace: NamespaceId, node: NodeId, key: &str, value: &str) -> Option<NodeId> {
        if node.0 >= self.firsts[NodeKind::Snapshot as usize] || self.rows.collector < Collector::V2_3 {
            return None;
        }
        let label = Conditional::parse(key, value)?;
        let other = *self.names.snapshots.get(&(namespace, label.snapshotter.into(), label.key.into()))?;
        let row = &self.rows.snapshots[(other.0 - self.firsts[NodeKind::Snapshot as usize]) as usize];
        let uses = row.labels.starting(condition::USED_AT).filter_map(|(_, time)| nanoseconds(time.parse().ok()?));
        label.holds(uses, nanoseconds(self.rows.taken)?).then_some(other)
    }

    /// The node that a label names: `kind` is what follows `gc.ref.` in its key.
    fn named(&mut self, namespace: NamespaceId, kind: &str, value: &str) -> Option<NodeId> {
        let is = |what: &str| {
            kind.strip_prefix(what).is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b'.' | b'/')))
        };
        if is("content") {
            // Most labels name a blob that is there: no digest is made for these.
            let number = self.digests.add_text(value).ok()?;
            if let Some(blob) = self.blobs.get(&(u32::from(namespace), number)) {
                return Some(*blob);
            }
            return Some(self.absent(namespace, Resource::Content(self.digests.digest(number))));
        }
        if is("image") {
            if self.rows.collector < Collector::V2 {
                return None;
            }
            return Some(self.find(namespace, Resource::Image(value.into())));
        }
        if is("container") {
            return self.names.containers.get(&(namespace, value.into())).copied();
        }
        let snapshotter = kind.strip_prefix("snapshot.")?.split('/').next()?;
        Some(self.find(namespace, Resource::Snapshot { snapshotter: snapshotter.into(), key: value.into() }))
    }

    fn find(&mut self, namespace: NamespaceId, resource: Resource) -> NodeId {
        let found = match &resource {
            Resource::Content(digest) => {
                let number = self.digests.add(digest);
                self.blobs.get(&(u32::from(namespace), number))
            }
            Resource::Image(name) => self.names.records.get(&(namespace, name.clone())),
            Resource::Ingest(reference) => self.names.ingests.get(&(namespace, reference.clone())),
            Resource::Snapshot { snapshotter, key } => {
                self.names.snapshots.get(&(namespace, snapshotter.clone(), key.clone()))
            }
            Resource::Other { .. } => None,
        };
        found.copied().unwrap_or_else(|| self.absent(namespace, resource))
    }

    fn absent(&mut self, namespace: NamespaceId, resource: Resource) -> NodeId {
        let missing = Missing { namespace, resource };
        if let Some(known) = self.absent.get(&missing) {
            return *known;
        }
        let node = NodeId(self.firsts[NodeKind::Missing as usize] + self.missing.len() as u32);
        self.missing.push(missing.clone());
        self.absent.insert(missing, node);
        node
    }
}

/// Edges by their first end.
fn sorted(nodes: usize, edges: impl Iterator<Item = (NodeId, NodeId, Stated)> + Clone) -> Edges {
    let mut starts = vec![0u32; nodes + 1];
    for (near, ..) in edges.clone() {
        starts[near.0 as usize + 1] += 1;
    }
    for at in 0..nodes {
        starts[at + 1] += starts[at];
    }
    let mut next = starts.clone();
    let mut ends = vec![(NodeId(0), Stated::Target); starts[nodes] as usize];
    for (near, far, stated) in edges {
        let slot = &mut next[near.0 as usize];
        ends[*slot as usize] = (far, stated);
        *slot += 1;
    }
    Edges { starts, ends }
}

/// Which blobs are one digest: the first by number of digest, and from each the next.
fn copies(numbers: &[u32], digests: usize, first: u32) -> (Vec<Option<NodeId>>, Vec<Option<NodeId>>) {
    let mut first_copy = vec![None; digests];
    let mut next_copy = vec![None; numbers.len()];
    for (at, number) in numbers.iter().enumerate().rev() {
        next_copy[at] = first_copy[*number as usize].replace(NodeId(first + at as u32));
    }
    (first_copy, next_copy)
}
