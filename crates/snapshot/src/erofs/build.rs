//! Makes an image: content goes into its file as it comes, everything else waits in memory until the image is sealed.
//!
//! ```text
//! first block   superblock, the root's inode                      written last
//! then          blocks of files' content as they come, and between them blocks of small inodes, each with the end of its
//!               file's content that fills no block
//! then          the inodes of all else, directories, the table of attributes: see `seal`
//! ```
//! The same calls give the same bytes.

use std::io::Write as _;

use super::format::{self, BLOCK, HOLE, INODE, Layout, MOST_XATTRS, RawInode, SLOT, xattr_bytes};
use super::stream::Stream;
use super::table::Table;
use super::tree::{Content, Inode, Kind, Node, Place, Slot, Tree};
use crate::error::At as _;
use crate::{Error, Result};

/// Names, targets of links and maps of chunks that are held in memory until the image is sealed, in bytes. The largest known
/// layers have some ten megabytes.
const MOST_TEXT: u64 = 512 << 20;
/// Chunks of one sparse file: of larger files they have more blocks.
const MOST_CHUNKS: u64 = 1 << 20;

/// The attribute by which a directory hides what is below it.
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// An image that is being made.
#[derive(Debug)]
pub(crate) struct Builder {
    pub(crate) tree: Tree,
    pub(super) table: Table,
    pub(super) stream: Stream,
    open: OpenBlock,
    text: u64,
}

/// A block of inodes with tails that is not full yet, and has no place yet.
#[derive(Debug, Default)]
struct OpenBlock {
    bytes: Vec<u8>,
    slots: Vec<OpenSlot>,
}

#[derive(Debug)]
struct OpenSlot {
    node: Node,
    at: usize,
    xattrs: usize,
}

/// The content of a file while it comes.
#[derive(Debug)]
pub(crate) struct Filling {
    size: u64,
    block: u32,
    /// Bytes that go into blocks, still to come.
    full: u64,
    tail: Vec<u8>,
    inline: bool,
}

/// The content of a sparse file while it comes.
#[derive(Debug)]
pub(crate) struct Sparse {
    size: u64,
    bits: u8,
    map: Vec<u32>,
    /// The chunk that is being written, and the next byte's offset in the file.
    current: Option<(usize, u64)>,
}

impl Builder {
    pub(super) fn new(stream: Stream, tree: Tree, table: Table) -> Self {
        Self { tree, table, stream, open: OpenBlock::default(), text: 0 }
    }

    /// Counts what is held in memory.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<()> {
        self.text += bytes as u64;
        if self.text <= MOST_TEXT {
            return Ok(());
        }
        Err(Error::Unsupported {
            what: "an image of this layer",
            reason: format!("its names have more than {MOST_TEXT} bytes; use the overlayfs snapshotter"),
        })
    }

    /// Begins the content of a file that will have so many attributes.
    pub(crate) fn begin(&mut self, size: u64, xattrs: usize) -> Result<Filling> {
        let tail = (size % BLOCK as u64) as usize;
        let inline = tail > 0 && INODE + xattr_bytes(xattrs) + tail <= BLOCK;
        let full = if inline { size - tail as u64 } else { size };
        Ok(Filling { size, block: self.stream.block()?, full, tail: Vec::new(), inline })
    }

    /// More of it.
    pub(crate) fn push(&mut self, filling: &mut Filling, bytes: &[u8]) -> Result<()> {
        let full = bytes.len().min(usize::try_from(filling.full).unwrap_or(usize::MAX));
        self.stream.write_all(&bytes[..full]).at("write", self.stream.path())?;
        filling.full -= full as u64;
        filling.tail.extend_from_slice(&bytes[full..]);
        Ok(())
    }

    /// All of it has come: gives the inode its content.
    pub(crate) fn end(&mut self, filling: Filling, mut inode: Inode) -> Result<Node> {
        let Filling { size, block, inline, tail, .. } = filling;
        self.stream.pad().at("write", self.stream.path())?;
        let place = if inline { Place::Tailed(block) } else { Place::Blocks(block) };
        inode.kind = Kind::File(Content { size, place });
        let node = self.tree.add(inode);
        if inline {
            self.put_slot(node, &tail)?;
        }
        Ok(node)
    }

    /// Begins the content of a sparse file.
    pub(crate) fn begin_sparse(&mut self, size: u64) -> Result<Sparse> {
        let blocks = size.div_ceil(BLOCK as u64);
        let bits = (0..=31).find(|bits| blocks >> bits < MOST_CHUNKS).unwrap_or(31);
        let chunks = blocks.div_ceil(1 << bits) as usize;
        self.hold(chunks * 4)?;
        Ok(Sparse { size, bits, map: vec![HOLE; chunks], current: None })
    }

    /// A part of it, behind those before.
    pub(crate) fn push_at(&mut self, sparse: &mut Sparse, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        let chunk = (BLOCK as u64) << sparse.bits;
        while !bytes.is_empty() {
            let at = (offset / chunk) as usize;
            if sparse.current.is_none_or(|(current, _)| current != at) {
                self.end_chunk(sparse)?;
                sparse.map[at] = self.stream.block()?;
                sparse.current = Some((at, at as u64 * chunk));
            }
            let written = sparse.current.map_or(0, |(_, written)| written);
            self.stream.zeros(offset - written).at("write", self.stream.path())?;
            let now = bytes.len().min((chunk - offset % chunk) as usize);
            self.stream.write_all(&bytes[..now]).at("write", self.stream.path())?;
            (offset, bytes) = (offset + now as u64, &bytes[now..]);
            sparse.current = Some((at, offset));
        }
        Ok(())
    }

    fn end_chunk(&mut self, sparse: &mut Sparse) -> Result<()> {
        let Some((at, written)) = sparse.current.take() else { return Ok(()) };
        let chunk = (BLOCK as u64) << sparse.bits;
        let end = ((at as u64 + 1) * chunk).min(sparse.size.next_multiple_of(BLOCK as u64));
        self.stream.zeros(end - written).at("write", self.stream.path())
    }

    /// All of it has come.
    pub(crate) fn end_sparse(&mut self, mut sparse: Sparse, mut inode: Inode) -> Result<Node> {
        self.end_chunk(&mut sparse)?;
        let Sparse { size, bits, map, .. } = sparse;
        inode.kind = Kind::File(Content { size, place: Place::Chunks(bits, map.into()) });
        Ok(self.tree.add(inode))
    }

    /// Makes a directory hide what lower layers have there.
    pub(crate) fn hide_below(&mut self, node: Node) -> Result<()> {
        let mark = self.table.place(OPAQUE, b"y")?;
        let inode = self.tree.change(node);
        inode.opaque = true;
        let mut xattrs = inode.xattrs.to_vec();
        xattrs.extend(mark.filter(|mark| !inode.xattrs.contains(mark)));
        xattrs.sort_unstable();
        inode.xattrs = xattrs.into();
        check_xattrs(&inode.xattrs)
    }

    /// Places of attributes, of which those that no image can have are left out.
    pub(crate) fn xattrs<'a>(&mut self, xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Result<Box<[u32]>> {
        let mut places = Vec::new();
        for (name, value) in xattrs {
            places.extend(self.table.place(name, value)?);
        }
        places.sort_unstable();
        check_xattrs(&places)?;
        Ok(places.into())
    }

    /// Names and values of an inode's attributes.
    pub(crate) fn xattrs_of(&self, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        inode.xattrs.iter().map(|place| self.table.get(*place)).collect()
    }

    /// Puts an inode with its tail into the open block.
    fn put_slot(&mut self, node: Node, tail: &[u8]) -> Result<()> {
        let xattrs = self.tree.get(node).xattrs.len();
        let needed = INODE + xattr_bytes(xattrs) + tail.len();
        if self.open.bytes.len() + needed > BLOCK {
            self.flush_open()?;
        }
        let at = self.open.bytes.len();
        self.open.slots.push(OpenSlot { node, at, xattrs });
        self.open.bytes.resize(at + INODE + xattr_bytes(xattrs), 0);
        self.open.bytes.extend_from_slice(tail);
        self.open.bytes.resize(self.open.bytes.len().next_multiple_of(SLOT as usize), 0);
        Ok(())
    }

    /// Gives the open block a place. What its inodes are by now is written; they may still change.
    fn flush_open(&mut self) -> Result<()> {
        let OpenBlock { mut bytes, slots } = std::mem::take(&mut self.open);
        if bytes.is_empty() {
            return Ok(());
        }
        let block = self.stream.at();
        for OpenSlot { node, at, xattrs } in slots {
            let inode = self.tree.get(node);
            let fits = inode.xattrs.len() == xattrs;
            if fits {
                let raw = file_inode(node, inode);
                bytes[at..at + INODE].copy_from_slice(&raw.encode());
                let behind = format::encode_xattrs(&inode.xattrs);
                bytes[at + INODE..at + INODE + behind.len()].copy_from_slice(&behind);
            }
            let inode = self.tree.place(node);
            (inode.slot, inode.written) = (Some(Slot { at: block + at as u64, xattrs: xattrs as u8 }), fits);
        }
        bytes.resize(BLOCK, 0);
        self.stream.write_all(&bytes).at("write", self.stream.path())
    }

    /// Lets every inode that has a tail be in the image as it is: those that changed get another place.
    pub(super) fn settle_slots(&mut self) -> Result<()> {
        self.flush_open()?;
        let mut changed = std::collections::BTreeSet::new();
        let tree = &self.tree;
        tree.walk(|_, _, node| {
            let inode = tree.get(node);
            if is_tailed(inode) && !inode.written {
                changed.insert(node);
            }
        });
        let mut tail = vec![0; BLOCK];
        for node in changed {
            let inode = self.tree.get(node);
            let (Some(slot), Kind::File(content)) = (inode.slot, &inode.kind) else { continue };
            let length = (content.size % BLOCK as u64) as usize;
            let at = slot.at + (INODE + xattr_bytes(slot.xattrs.into())) as u64;
            self.stream.read(at, &mut tail[..length])?;
            self.replace_slot(node, &tail[..length])?;
        }
        self.flush_open()
    }

    /// Another place for an inode with its tail, or for the tail alone where its attributes leave no room.
    fn replace_slot(&mut self, node: Node, tail: &[u8]) -> Result<()> {
        let inode = self.tree.get(node);
        if INODE + xattr_bytes(inode.xattrs.len()) + tail.len() <= BLOCK {
            return self.put_slot(node, tail);
        }
        let size = match &inode.kind {
            Kind::File(content) => content.size,
            _ => return Ok(()),
        };
        let block = self.stream.block()?;
        let full = size / BLOCK as u64;
        // A file of blocks is in one stretch: those that are there already are copied.
        let from = match &inode.kind {
            Kind::File(Content { place: Place::Tailed(from), .. }) => u64::from(*from),
            _ => return Ok(()),
        };
        let mut bytes = vec![0; BLOCK];
        for number in 0..full {
            self.stream.read((from + number) * BLOCK as u64, &mut bytes)?;
            self.stream.write_all(&bytes).at("write", self.stream.path())?;
        }
        self.stream.write_all(tail).at("write", self.stream.path())?;
        self.stream.pad().at("write", self.stream.path())?;
        let inode = self.tree.place(node);
        inode.kind = Kind::File(Content { size, place: Place::Blocks(block) });
        inode.slot = None;
        Ok(())
    }
}

/// Whether the end of a file's content is behind its inode.
pub(super) fn is_tailed(inode: &Inode) -> bool {
    matches!(&inode.kind, Kind::File(Content { place: Place::Tailed(_), .. }))
}

fn check_xattrs(xattrs: &[u32]) -> Result<()> {
    if xattrs.len() <= MOST_XATTRS {
        return Ok(());
    }
    let reason = format!("it has {}; EROFS holds {MOST_XATTRS} at most", xattrs.len());
    Err(Error::Unsupported { what: "giving a file all the extended attributes that the layer names", reason })
}

/// An inode as it is written, but for where its content is.
pub(super) fn raw_inode(node: Node, inode: &Inode) -> RawInode {
    RawInode {
        layout: Layout::Plain,
        xattr_bytes: xattr_bytes(inode.xattrs.len()),
        mode: inode.full_mode(),
        size: 0,
        place: 0,
        number: (node + 1) as u32,
        uid: inode.uid,
        gid: inode.gid,
        // Before 1970 too: the kernel reads it as signed.
        seconds: inode.mtime.seconds as u64,
        nanos: inode.mtime.nanos,
        links: inode.links,
    }
}

/// The inode of a file.
pub(super) fn file_inode(node: Node, inode: &Inode) -> RawInode {
    let raw = raw_inode(node, inode);
    let Kind::File(Content { size, place }) = &inode.kind else { return raw };
    let (layout, place) = match place {
        Place::Blocks(block) => (Layout::Plain, *block),
        Place::Tailed(block) => (Layout::Inline, *block),
        Place::Chunks(bits, _) => (Layout::Chunks, u32::from(*bits)),
    };
    RawInode { layout, place, size: *size, ..raw }
}
