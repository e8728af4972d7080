//! Where the end of an image has what.

use std::collections::{BTreeMap, HashSet};

use super::format::{self, BLOCK, INODE, ROOT_AT, SLOT, Super, xattr_bytes};
use super::seal::{is_inline, map_bytes, names};
use super::table::Table;
use super::tree::{Content, Kind, Node, Place, ROOT, Tree};
use super::{build, stream};
use crate::Result;

/// Where everything goes that is not in the image yet.
pub(super) struct Plan {
    /// Inodes in the order in which they are written; the root is none of them.
    pub(super) order: Vec<Node>,
    /// The offset of each inode; of the root too.
    pub(super) at: Vec<u64>,
    /// Of directories: the one above.
    pub(super) above: BTreeMap<Node, Node>,
    /// First blocks of what is not behind its inode, in order.
    pub(super) outside: Vec<(Node, u32)>,
    first_outside: BTreeMap<Node, u32>,
    /// Where the table is.
    pub(super) table: u64,
    /// Where the image ends.
    pub(super) end: u64,
    inodes: u64,
    chunks: bool,
}

/// Bytes behind an inode, and blocks elsewhere.
type Sizes = (usize, u64);

impl Plan {
    /// Plans what follows from the offset `from` on.
    pub(super) fn of(tree: &Tree, table: &Table, from: u64) -> Result<Self> {
        let mut plan = Self {
            order: Vec::new(),
            at: Vec::new(),
            above: BTreeMap::new(),
            outside: Vec::new(),
            first_outside: BTreeMap::new(),
            table: 0,
            end: from,
            inodes: 1,
            chunks: false,
        };
        let sizes = plan.walk(tree);
        let mut outside = vec![(ROOT, size(tree, ROOT).1)];
        for (node, (behind, blocks)) in sizes {
            plan.take_slot(node, INODE + xattr_bytes(tree.get(node).xattrs.len()) + behind);
            outside.push((node, blocks));
        }
        plan.end = plan.end.next_multiple_of(BLOCK as u64);
        for (node, blocks) in outside.into_iter().filter(|(_, blocks)| *blocks > 0) {
            let first = stream::block(plan.end)?;
            plan.outside.push((node, first));
            plan.first_outside.insert(node, first);
            plan.end += blocks * BLOCK as u64;
        }
        plan.table = plan.end;
        plan.end += (table.bytes().len() as u64).next_multiple_of(BLOCK as u64);
        stream::block(plan.end)?;
        Ok(plan)
    }

    /// The first block of what is not behind its inode.
    pub(super) fn first_outside(&self, node: Node) -> u32 {
        self.first_outside.get(&node).copied().unwrap_or(0)
    }

    /// The superblock, but for the image's name.
    pub(super) fn superblock(&self) -> Super {
        let block = |at: u64| (at / BLOCK as u64) as u32;
        let (blocks, xattr_block) = (block(self.end), block(self.table));
        Super { inodes: self.inodes, blocks, xattr_block, chunks: self.chunks, ..Super::default() }
    }

    /// Finds what is to be written.
    fn walk(&mut self, tree: &Tree) -> Vec<(Node, Sizes)> {
        let (mut sizes, mut there, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut last = ROOT;
        tree.walk(|dir, _, node| {
            let inode = tree.get(node);
            if inode.is_directory() {
                self.above.insert(node, dir);
            } else if inode.links > 1 && !seen.insert(node) {
                return;
            }
            last = last.max(node);
            self.inodes += 1;
            self.chunks |= matches!(&inode.kind, Kind::File(Content { place: Place::Chunks(..), .. }));
            if let (true, Some(slot)) = (build::is_tailed(inode), inode.slot) {
                there.push((node, slot.at));
                return;
            }
            self.order.push(node);
            sizes.push((node, size(tree, node)));
        });
        self.at = vec![0; last + 1];
        self.at[ROOT] = ROOT_AT;
        there.into_iter().for_each(|(node, at)| self.at[node] = at);
        sizes
    }

    fn take_slot(&mut self, node: Node, bytes: usize) {
        let left = self.end.next_multiple_of(BLOCK as u64) - self.end;
        if bytes as u64 > left {
            self.end += left;
        }
        self.at[node] = self.end;
        self.end = (self.end + bytes as u64).next_multiple_of(SLOT);
    }
}

fn size(tree: &Tree, node: Node) -> Sizes {
    match &tree.get(node).kind {
        Kind::Directory(_) => {
            let names = names(tree, node);
            let (mut rest, mut blocks, mut last) = (names.as_slice(), 0, 0);
            while !rest.is_empty() {
                let (count, bytes) = format::fits(rest.iter().map(|(name, _)| *name));
                (rest, blocks, last) = (&rest[count..], blocks + 1, bytes);
            }
            if is_inline(tree, node, last) { (last, blocks - 1) } else { (0, blocks) }
        }
        Kind::Symlink(target) if is_inline(tree, node, target.len()) => (target.len(), 0),
        Kind::Symlink(target) => (0, (target.len() as u64).div_ceil(BLOCK as u64)),
        Kind::File(content) => (map_bytes(content), 0),
        _ => (0, 0),
    }
}
