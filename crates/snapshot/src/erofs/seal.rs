//! The end of an image: every inode that is not in it yet, directories, the table of attributes, and the superblock.
//!
//! ```text
//! inodes, in the order of a walk, each with what is behind it: attributes, a link's target, a map of chunks, the end of a
//!   directory; none across two blocks that fits into one
//! full blocks of directories, and targets of links that were too long
//! the table of attributes
//! ```
//! A layer that was applied and may have to be settled is left *unsealed*: all this is in a file of its own, from which the tree is
//! read again at the commit, and the image has but the content of files.
//!
//! ```text
//! unsealed file = first block, what would follow in the image, JSON, length of the JSON (32 bits)
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::build::{Builder, file_inode};
use super::format::{self, BLOCK, INODE, Layout, ROOT_AT, RawInode, SLOT, Super, entry_type, xattr_bytes};
use super::plan::Plan;
use super::stream::Part;
use super::table::Table;
use super::tree::{Content, Kind, Node, Place, ROOT, Tree};
use crate::Result;
use crate::error::At as _;

/// What is known of an unsealed image besides its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unsealed {
    /// What the image has from its second block on.
    pub(super) parts: Vec<Part>,
    /// The BLAKE3, in hex, of what is before this in the unsealed file.
    pub(super) blake3: String,
}

impl Builder {
    /// Completes the image; gives its parts.
    ///
    /// # Durability
    /// None: the commit syncs.
    pub(super) fn seal(mut self) -> Result<Vec<Part>> {
        self.settle_slots()?;
        let Self { tree, table, mut stream, .. } = self;
        let plan = Plan::of(&tree, &table, stream.at())?;
        let last = Last { tree: &tree, table: &table, plan: &plan };
        let path = stream.path().to_owned();
        last.write(stream.at(), &mut stream).at("write", &path)?;
        let named: Vec<u8> = stream.end_part()?.iter().flat_map(|part| part.blake3.bytes()).collect();
        let mut head = last.first_block();
        Super { uuid: uuid(&named), ..plan.superblock() }.write(&mut head);
        stream.head(&head)
    }

    /// Leaves the image for a later commit, which reads the tree from `path`.
    ///
    /// # Durability
    /// None.
    pub(crate) fn leave(mut self, path: &Path) -> Result<()> {
        self.settle_slots()?;
        let Self { tree, table, mut stream, .. } = self;
        let plan = Plan::of(&tree, &table, stream.at())?;
        let last = Last { tree: &tree, table: &table, plan: &plan };
        let mut head = last.first_block();
        plan.superblock().write(&mut head);
        let file = File::create(path).at("create", path)?;
        let mut out = Hashed { out: BufWriter::new(file), hasher: blake3::Hasher::new() };
        out.write_all(&head).at("write", path)?;
        last.write(stream.at(), &mut out).at("write", path)?;
        let Hashed { mut out, hasher } = out;
        let blake3 = hasher.finalize().to_hex().to_string();
        let unsealed = Unsealed { parts: stream.end_part()?.to_vec(), blake3 };
        let json = serde_json::to_vec(&unsealed).map_err(io::Error::other).at("encode", path)?;
        out.write_all(&json).at("write", path)?;
        out.write_all(&(json.len() as u32).to_le_bytes()).at("write", path)?;
        out.flush().at("write", path)
    }
}

/// A UUID that follows from what is in the image. Version 8: by one's own rule (RFC 9562 section 5.8).
fn uuid(named: &[u8]) -> [u8; 16] {
    let mut uuid: [u8; 16] = format::take(blake3::hash(named).as_bytes(), 0);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Hashes what it writes.
struct Hashed<W> {
    out: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What comes last in an image.
struct Last<'a> {
    tree: &'a Tree,
    table: &'a Table,
    plan: &'a Plan,
}

impl Last<'_> {
    /// Writes everything from the offset `at` on.
    fn write(&self, mut at: u64, out: &mut impl Write) -> io::Result<()> {
        let mut put = |place: u64, bytes: &[u8]| {
            out.write_all(&vec![0; (place - at) as usize])?;
            at = place + bytes.len() as u64;
            out.write_all(bytes)
        };
        for node in &self.plan.order {
            put(self.plan.at[*node], &self.inode(*node))?;
        }
        for (node, block) in &self.plan.outside {
            put(u64::from(*block) * BLOCK as u64, &self.outside(*node))?;
        }
        put(self.plan.table, self.table.bytes())?;
        put(self.plan.end, &[])
    }

    /// The first block, but for the superblock.
    fn first_block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let (root, at) = (self.inode(ROOT), ROOT_AT as usize);
        block[at..at + root.len()].copy_from_slice(&root);
        block
    }

    /// An inode with what is behind it.
    fn inode(&self, node: Node) -> Vec<u8> {
        let inode = self.tree.get(node);
        let raw = RawInode { place: self.plan.first_outside(node), ..file_inode(node, inode) };
        let (raw, behind) = match &inode.kind {
            Kind::Directory(children) => {
                let mut blocks = self.entries(node);
                let last = blocks.pop().unwrap_or_default();
                let directories = children.values().filter(|child| self.tree.get(**child).is_directory()).count();
                // All blocks but the last count as full.
                let size = (blocks.len() * BLOCK + last.len()) as u64;
                let raw = RawInode { size, links: 2 + directories as u32, ..raw };
                self.behind(node, raw, last)
            }
            Kind::Symlink(target) => self.behind(node, RawInode { size: target.len() as u64, ..raw }, target.to_vec()),
            Kind::Character(device) | Kind::Block(device) => (RawInode { place: *device, ..raw }, Vec::new()),
            Kind::File(content) => {
                let behind = match &content.place {
                    Place::Chunks(_, map) => map.iter().flat_map(|block| block.to_le_bytes()).collect(),
                    _ => Vec::new(),
                };
                (file_inode(node, inode), behind)
            }
            Kind::Fifo | Kind::Socket => (raw, Vec::new()),
        };
        [&raw.encode()[..], &format::encode_xattrs(&inode.xattrs), &behind].concat()
    }

    /// Lets the end of an inode's content be behind it where there is room.
    fn behind(&self, node: Node, raw: RawInode, end: Vec<u8>) -> (RawInode, Vec<u8>) {
        match is_inline(self.tree, node, end.len()) {
            true => (RawInode { layout: Layout::Inline, ..raw }, end),
            false => (raw, Vec::new()),
        }
    }

    /// What of an inode's content is in blocks of its own.
    fn outside(&self, node: Node) -> Vec<u8> {
        let mut blocks = match &self.tree.get(node).kind {
            Kind::Symlink(target) => vec![target.to_vec()],
            _ => self.entries(node),
        };
        if is_inline(self.tree, node, blocks.last().map_or(0, Vec::len)) {
            blocks.pop();
        }
        let mut bytes = Vec::with_capacity(blocks.len() * BLOCK);
        for block in blocks {
            bytes.extend_from_slice(&block);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes
    }

    /// A directory's blocks, each as long as its entries are.
    fn entries(&self, node: Node) -> Vec<Vec<u8>> {
        let names = names(self.tree, node);
        let above = self.plan.above.get(&node).copied().unwrap_or(ROOT);
        let entries: Vec<(&[u8], u64, u8)> = names
            .into_iter()
            .map(|(name, child)| {
                let named = child.unwrap_or(if name == b"." { node } else { above });
                (name, self.plan.at[named] / SLOT, entry_type(self.tree.get(named).full_mode()))
            })
            .collect();
        let (mut rest, mut blocks) = (entries.as_slice(), Vec::new());
        while !rest.is_empty() {
            let (count, _) = format::fits(rest.iter().map(|(name, ..)| *name));
            blocks.push(format::encode_entries(&rest[..count]));
            rest = &rest[count..];
        }
        blocks
    }
}

/// All names in a directory, in order; the two that every one has name no child.
pub(super) fn names(tree: &Tree, node: Node) -> Vec<(&[u8], Option<Node>)> {
    let mut names: Vec<(&[u8], Option<Node>)> = vec![(b".", None), (b"..", None)];
    let children = tree.children(node).into_iter().flatten();
    names.extend(children.map(|(name, child)| (&**name, Some(*child))));
    names.sort_unstable();
    names
}

/// Whether so many bytes have room behind an inode.
pub(super) fn is_inline(tree: &Tree, node: Node, bytes: usize) -> bool {
    let room = if node == ROOT { BLOCK - ROOT_AT as usize } else { BLOCK };
    bytes > 0 && INODE + xattr_bytes(tree.get(node).xattrs.len()) + bytes <= room
}

/// Bytes of a map of chunks.
pub(super) fn map_bytes(content: &Content) -> usize {
    match &content.place {
        Place::Chunks(_, map) => map.len() * 4,
        _ => 0,
    }
}
