//! What keeps what.

use std::collections::VecDeque;

use super::{Model, NodeId, NodeKind, Why};
use crate::intern::{Bits, Marks};

/// The nodes that some roots reach.
#[derive(Debug, Clone, Default)]
pub struct Kept(Bits);

impl Kept {
    /// Whether a node is among them.
    pub fn contains(&self, node: NodeId) -> bool {
        self.0.contains(node.0)
    }

    /// Adds a node; says whether it is new.
    pub(super) fn insert(&mut self, node: NodeId) -> bool {
        let is_new = !self.contains(node);
        self.0.insert(node.0);
        is_new
    }
}

/// A chain of references from a root down to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain<'m> {
    /// The root.
    pub root: NodeId,
    /// The nodes below, down to the one that was asked for; none if that is the root itself.
    pub links: Vec<Link<'m>>,
}

/// A step of a [`Chain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'m> {
    /// Why the node above refers to this one.
    pub why: Why<'m>,
    /// The node.
    pub node: NodeId,
}

impl Model {
    /// What garbage collection would keep now.
    pub fn kept(&self) -> Kept {
        self.kept_without(&[])
    }

    /// What it would keep if these were gone: neither roots any more nor a way to anything.
    pub fn kept_without(&self, gone: &[NodeId]) -> Kept {
        self.reach(self.roots().iter().map(|(root, _)| *root), gone)
    }

    /// The same without what only flat leases keep: those follow nothing.
    pub(super) fn followed_without(&self, gone: &[NodeId]) -> Kept {
        let roots = self.roots().iter().map(|(root, _)| *root);
        self.reach(roots.filter(|root| !self.flat.contains(root.0)), gone)
    }

    /// What some nodes keep, themselves included.
    pub fn reached(&self, nodes: &[NodeId]) -> Kept {
        self.reach(nodes.iter().copied(), &[])
    }

    fn reach(&self, from: impl IntoIterator<Item = NodeId>, gone: &[NodeId]) -> Kept {
        let mut kept = Bits::with_length(self.len());
        let mut barred = Bits::default();
        gone.iter().for_each(|node| barred.insert(node.0));
        let (mut stack, mut flat) = (Vec::new(), Vec::new());
        for node in from {
            if barred.contains(node.0) || kept.contains(node.0) {
                continue;
            }
            kept.insert(node.0);
            if self.flat.contains(node.0) { flat.push(node) } else { stack.push(node) }
        }
        while let Some(node) = stack.pop() {
            for (to, _) in self.out.of(node) {
                if !kept.contains(to.0) && !barred.contains(to.0) {
                    kept.insert(to.0);
                    stack.push(*to);
                }
            }
        }
        // Last: what only a flat lease keeps must not count as followed.
        flat.into_iter().for_each(|lease| self.reach_flat(lease, &barred, &mut kept));
        Kept(kept)
    }

    /// What a flat lease lists, of a snapshot also those below, of a record its target.
    fn reach_flat(&self, lease: NodeId, barred: &Bits, kept: &mut Bits) {
        for listed in self.out.of(lease).iter().map(|(to, _)| *to) {
            let mut next = Some(listed).filter(|node| !barred.contains(node.0));
            while let Some(node) = next {
                kept.insert(node.0);
                next = self.followed_flat(node).filter(|node| !barred.contains(node.0));
            }
        }
    }

    fn followed_flat(&self, node: NodeId) -> Option<NodeId> {
        self.references(node).find(|edge| matches!(edge.why, Why::Parent | Why::Target | Why::Expected)).map(|e| e.node)
    }

    /// The roots that keep a node. Only if all of them go is it garbage: the smallest set of removals is this one.
    pub fn keepers(&self, node: NodeId) -> Vec<NodeId> {
        self.chains(node).into_iter().map(|chain| chain.root).collect()
    }

    /// A shortest chain from each root that keeps a node; short ones first.
    pub fn chains(&self, node: NodeId) -> Vec<Chain<'_>> {
        let mut seen = Marks::new(self.len());
        // By node: the next one on a shortest way down, and what states the step.
        let mut down = vec![None; self.len()];
        let mut queue = VecDeque::from([node]);
        let mut chains = Vec::new();
        seen.insert(node.0);
        while let Some(near) = queue.pop_front() {
            if self.root(near).is_some() && (!self.flat.contains(near.0) || self.reached(&[near]).contains(node)) {
                chains.push(self.chain(near, node, &down));
            }
            for (far, stated) in self.back.of(near) {
                if seen.insert(far.0) {
                    down[far.0 as usize] = Some((near, *stated));
                    queue.push_back(*far);
                }
            }
        }
        chains
    }

    fn chain(&self, root: NodeId, node: NodeId, down: &[Option<(NodeId, super::nodes::Stated)>]) -> Chain<'_> {
        let mut links = Vec::new();
        let mut at = root;
        while at != node {
            let Some((next, stated)) = down[at.0 as usize] else { break };
            links.push(Link { why: self.why(at, next, stated), node: next });
            at = next;
        }
        Chain { root, links }
    }

    /// Blobs, snapshots, records and writes that nothing keeps: the next collection takes them.
    pub fn garbage(&self) -> Vec<NodeId> {
        let kept = self.kept();
        let kinds = [NodeKind::Record, NodeKind::Blob, NodeKind::Snapshot, NodeKind::Lease, NodeKind::Ingest];
        kinds.into_iter().flat_map(|kind| self.nodes(kind)).filter(|node| !kept.contains(*node)).collect()
    }
}
