//! What each of several removals gives back if they are done one after the other: what several images share goes with the last
//! of them.
//!
//! The removals are taken back in the opposite order, and each marks what is reached again by it for the first time: so every
//! node is visited once, however many removals there are.

use super::{Model, Node, NodeId, NodeKind};

/// Kept without any of the groups, or by none of them.
const STAYS: u32 = u32::MAX;

/// What groups of records give back, in the order in which they are removed.
#[derive(Debug)]
pub(super) struct Gains {
    /// By group: bytes that go with it, when those before it have gone.
    pub(super) bytes: Vec<u64>,
    /// By snapshot: the group with which it goes.
    snapshots: Vec<u32>,
    /// By number of digest: the group with which its last copy goes.
    digests: Vec<u32>,
}

impl Model {
    /// What the groups give back; blobs in whole blocks of `block` bytes.
    pub(super) fn gains(&self, groups: &[Vec<NodeId>], block: u64) -> Gains {
        let goes_with = self.goes_with(groups);
        let before = self.kept();
        let mut gains = Gains {
            bytes: vec![0; groups.len()],
            snapshots: vec![STAYS; self.nodes(NodeKind::Snapshot).count()],
            digests: vec![0; self.digests.len()],
        };
        let mut live = vec![false; self.digests.len()];
        for blob in self.nodes(NodeKind::Blob).filter(|blob| before.contains(*blob)) {
            let number = self.digest_number(blob) as usize;
            live[number] = true;
            gains.digests[number] = gains.digests[number].max(goes_with[blob.0 as usize]);
        }
        for (number, is_live) in live.into_iter().enumerate() {
            if !is_live {
                gains.digests[number] = STAYS;
            }
        }
        let mut counted = vec![false; self.digests.len()];
        for blob in self.nodes(NodeKind::Blob) {
            let number = self.digest_number(blob) as usize;
            if let (Node::Blob(row), false) = (self.node(blob), std::mem::replace(&mut counted[number], true)) {
                gains.add(gains.digests[number], row.size.next_multiple_of(block.max(1)));
            }
        }
        for (at, snapshot) in self.nodes(NodeKind::Snapshot).enumerate().filter(|(_, node)| before.contains(*node)) {
            if let Node::Snapshot(row) = self.node(snapshot) {
                gains.snapshots[at] = goes_with[snapshot.0 as usize];
                gains.add(gains.snapshots[at], row.usage.unwrap_or_default().bytes);
            }
        }
        gains
    }

    /// By node: the group with whose removal the last way to it goes.
    fn goes_with(&self, groups: &[Vec<NodeId>]) -> Vec<u32> {
        let all = groups.concat();
        let stays = self.kept_without(&all);
        let mut followed = self.followed_without(&all);
        let mut removed_with = vec![STAYS; self.len()];
        for (at, group) in groups.iter().enumerate() {
            group.iter().for_each(|record| removed_with[record.0 as usize] = at as u32);
        }
        let mut goes_with = vec![STAYS; self.len()];
        let mut stack = Vec::new();
        for at in (0..groups.len() as u32).rev() {
            for record in &groups[at as usize] {
                let is_reached = self.back.of(*record).iter().any(|(from, _)| followed.contains(*from));
                if (self.root(*record).is_some() || is_reached) && followed.insert(*record) {
                    stack.push(*record);
                }
            }
            while let Some(node) = stack.pop() {
                if !stays.contains(node) {
                    goes_with[node.0 as usize] = at;
                }
                // What is removed earlier is still away.
                let is_there = |to: &NodeId| removed_with[to.0 as usize] >= at;
                let next = self.out.of(node).iter().map(|(to, _)| *to).filter(is_there);
                stack.extend(next.filter(|to| followed.insert(*to)));
            }
        }
        goes_with
    }

    /// Whether something goes with the first `groups` groups that these records keep.
    pub(super) fn takes_part(&self, records: &[NodeId], gains: &Gains, groups: usize) -> bool {
        let first = self.firsts[NodeKind::Snapshot as usize];
        self.items_of(records).into_iter().any(|item| match self.kind(item) {
            NodeKind::Blob => (gains.digests[self.digest_number(item) as usize] as usize) < groups,
            NodeKind::Snapshot => (gains.snapshots[(item.0 - first) as usize] as usize) < groups,
            _ => false,
        })
    }
}

impl Gains {
    fn add(&mut self, group: u32, bytes: u64) {
        if let Some(sum) = self.bytes.get_mut(group as usize) {
            *sum += bytes;
        }
    }
}
