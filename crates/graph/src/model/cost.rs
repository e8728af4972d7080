//! What things take, and what would be given back.

use super::{Kept, Model, Node, NodeId, NodeKind};
use crate::intern::Marks;

/// Bytes of some nodes; each digest once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Their bytes, as far as they are known.
    pub snapshot_bytes: u64,
    /// Snapshots of which nobody has asked what they take.
    pub unmeasured: u64,
    /// Writes in progress.
    pub ingests: u64,
    /// Their bytes.
    pub ingest_bytes: u64,
}

impl Weight {
    /// All bytes that are known.
    pub const fn bytes(&self) -> u64 {
        self.blob_bytes.saturating_add(self.snapshot_bytes).saturating_add(self.ingest_bytes)
    }
}

/// What a node costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Everything it keeps, itself included.
    pub all: Weight,
    /// Of that, what nothing else keeps: it would be given back if the node went.
    pub alone: Weight,
}

impl Cost {
    /// Bytes that others keep too.
    pub const fn shared_bytes(&self) -> u64 {
        self.all.bytes().saturating_sub(self.alone.bytes())
    }
}

impl Model {
    /// What some nodes together cost.
    pub fn cost(&self, nodes: &[NodeId]) -> Cost {
        let reached = self.reached(nodes);
        let stays = self.kept_without(nodes);
        let everything = self.items().filter(|node| reached.contains(*node));
        let gone = self.items().filter(|node| reached.contains(*node) && !stays.contains(*node));
        Cost { all: self.weigh(everything), alone: self.weigh_gone(gone, &stays) }
    }

    /// Blobs, snapshots and writes in progress: what takes space.
    pub fn items(&self) -> impl Iterator<Item = NodeId> + use<> {
        let kinds = [NodeKind::Blob, NodeKind::Snapshot, NodeKind::Ingest];
        let ranges = kinds.map(|kind| self.nodes(kind));
        ranges.into_iter().flatten()
    }

    /// What nodes take; each digest counts once.
    pub fn weigh(&self, nodes: impl IntoIterator<Item = NodeId>) -> Weight {
        let mut counted = Marks::new(self.digests.len());
        let mut weight = Weight::default();
        for node in nodes {
            self.add(node, &mut counted, &mut weight);
        }
        weight
    }

    /// What the store gives back if these nodes go: a blob only if no copy of it stays.
    pub fn weigh_gone(&self, gone: impl IntoIterator<Item = NodeId>, stays: &Kept) -> Weight {
        let last = |node: &NodeId| match self.node(*node) {
            Node::Blob(_) => !self.copies_of(Some(self.digest_number(*node))).any(|copy| stays.contains(copy)),
            _ => true,
        };
        self.weigh(gone.into_iter().filter(last))
    }

    fn add(&self, node: NodeId, counted: &mut Marks, weight: &mut Weight) {
        match self.node(node) {
            Node::Blob(row) => {
                if counted.insert(self.digest_number(node)) {
                    weight.blobs += 1;
                    weight.blob_bytes += row.size;
                }
            }
            Node::Snapshot(row) => {
                weight.snapshots += 1;
                match row.usage {
                    Some(usage) => weight.snapshot_bytes += usage.bytes,
                    None => weight.unmeasured += 1,
                }
            }
            Node::Ingest(row) => {
                weight.ingests += 1;
                weight.ingest_bytes += row.offset;
            }
            Node::Record(_) | Node::Lease(_) | Node::Container(_) | Node::Missing(_) => {}
        }
    }
}
