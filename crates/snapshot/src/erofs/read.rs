//! Reads images that this crate made: a lower layer's when another is settled on it, and an unsealed one's.
//!
//! Bytes on a disk may be others than were written: whatever they are, the answer is an error at worst.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::format::{self, BLOCK, HOLE, INODE, Layout, ROOT_AT, RawInode, SLOT, Super, broken, decode_entries};
use super::seal::Unsealed;
use super::table::{self, Table};
use crate::error::At as _;
use crate::{Error, Result};

/// Bytes of content read at a time.
const PIECE: usize = 128 << 10;
/// The longest target of a link.
const MOST_TARGET: u64 = BLOCK as u64;

/// An image, opened.
#[derive(Debug)]
pub(super) struct Image {
    path: PathBuf,
    file: File,
    /// Where the first block and what is from an offset on are instead.
    unsealed: Option<(File, u64)>,
    superblock: Super,
}

/// An inode and its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) nid: u64,
    pub(super) raw: RawInode,
}

impl Found {
    pub(super) fn kind(&self) -> u32 {
        u32::from(self.raw.mode) & libc::S_IFMT
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    pub(super) fn is_whiteout(&self) -> bool {
        self.kind() == libc::S_IFCHR && self.raw.place == 0
    }
}

impl Image {
    /// Opens a sealed image.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Self::with(path, File::open(path).at("open", path)?, None)
    }

    /// Opens an image whose tree is at `beside`; says what else is known of it.
    pub(super) fn open_unsealed(path: &Path, beside: &Path) -> Result<(Self, Unsealed)> {
        let region = File::open(beside).at("open", beside)?;
        let unsealed = unsealed(&region, beside)?;
        let base = BLOCK as u64 + unsealed.parts.iter().map(|part| part.length).sum::<u64>();
        let image = Self::with(path, File::open(path).at("open", path)?, Some((region, base)))?;
        Ok((image, unsealed))
    }

    fn with(path: &Path, file: File, unsealed: Option<(File, u64)>) -> Result<Self> {
        let mut image = Self { path: path.to_owned(), file, unsealed, superblock: Super::default() };
        let mut block = [0; BLOCK];
        image.read(0, &mut block)?;
        image.superblock = Super::read(&block)?;
        Ok(image)
    }

    /// Where what is not content begins, in an unsealed image.
    pub(super) fn base(&self) -> Option<u64> {
        self.unsealed.as_ref().map(|(_, base)| *base)
    }

    /// How many inodes it has.
    pub(super) fn inodes(&self) -> u64 {
        self.superblock.inodes
    }

    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        let (file, at) = match &self.unsealed {
            Some((region, _)) if at < BLOCK as u64 => (region, at),
            Some((region, base)) if at >= *base => (region, at - base + BLOCK as u64),
            _ => (&self.file, at),
        };
        file.read_exact_at(bytes, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => broken(format_args!("it ends before {at}")),
            _ => Error::Io { operation: "read", path: self.path.clone(), source: error },
        })
    }

    fn bytes(&self, at: u64, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The root.
    pub(super) fn root(&self) -> Result<Found> {
        self.inode(ROOT_AT / SLOT)
    }

    /// An inode by its number.
    pub(super) fn inode(&self, nid: u64) -> Result<Found> {
        let at = nid.checked_mul(SLOT).ok_or_else(|| broken(format_args!("no inode {nid}")))?;
        let mut bytes = [0; INODE];
        self.read(at, &mut bytes)?;
        Ok(Found { nid, raw: RawInode::decode(&bytes)? })
    }

    /// Places of an inode's attributes in the table.
    pub(super) fn xattr_places(&self, found: &Found) -> Result<Vec<u32>> {
        format::decode_xattrs(&self.bytes(found.nid * SLOT + INODE as u64, found.raw.xattr_bytes)?)
    }

    /// Names and values of an inode's attributes.
    pub(super) fn xattrs(&self, found: &Found) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = Vec::new();
        for place in self.xattr_places(found)? {
            let at = u64::from(self.superblock.xattr_block) * BLOCK as u64 + u64::from(place) * 4;
            let length = table::length(&self.bytes(at, 4)?);
            let bytes = self.bytes(at, length)?;
            let (name, value, _) = table::parse(&bytes, 0)?;
            xattrs.push((name, value.to_vec()));
        }
        Ok(xattrs)
    }

    /// The table of attributes.
    pub(super) fn table(&self) -> Result<Table> {
        let Super { xattr_block, blocks, .. } = self.superblock;
        let blocks = blocks.checked_sub(xattr_block).ok_or_else(|| broken("its table of attributes"))?;
        if blocks as usize > (128 << 20) / BLOCK {
            return Err(broken("its table of attributes is too long"));
        }
        Table::load(self.bytes(u64::from(xattr_block) * BLOCK as u64, blocks as usize * BLOCK)?)
    }

    /// What is behind an inode and its attributes.
    fn behind(found: &Found) -> u64 {
        found.nid * SLOT + (INODE + found.raw.xattr_bytes) as u64
    }

    /// A block of what is not in chunks.
    fn block(&self, found: &Found, number: u64) -> Result<Vec<u8>> {
        let RawInode { layout, size, place, .. } = found.raw;
        let at = number * BLOCK as u64;
        let left = size.saturating_sub(at).min(BLOCK as u64) as usize;
        let at = match layout {
            Layout::Inline if number == size / BLOCK as u64 => Self::behind(found),
            _ => (u64::from(place) + number) * BLOCK as u64,
        };
        self.bytes(at, left)
    }

    /// What a directory has under a name.
    pub(super) fn lookup(&self, dir: &Found, name: &[u8]) -> Result<Option<Found>> {
        let (mut low, mut high) = (0, dir.raw.size.div_ceil(BLOCK as u64));
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.block(dir, middle)?;
            let entries = decode_entries(&block)?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else { break };
            if name < first.0 {
                high = middle;
            } else if name > last.0 {
                low = middle + 1;
            } else {
                let found = entries.binary_search_by(|(other, _)| (*other).cmp(name));
                return found.ok().map(|at| self.inode(entries[at].1)).transpose();
            }
        }
        Ok(None)
    }

    /// All names in a directory but the two that every one has.
    pub(super) fn entries(&self, dir: &Found) -> Result<Vec<(Vec<u8>, u64)>> {
        let mut all = Vec::new();
        for number in 0..dir.raw.size.div_ceil(BLOCK as u64) {
            let block = self.block(dir, number)?;
            let entries = decode_entries(&block)?.into_iter();
            all.extend(
                entries.filter(|(name, _)| !matches!(*name, b"." | b"..")).map(|(name, nid)| (name.to_vec(), nid)),
            );
        }
        Ok(all)
    }

    /// The target of a link.
    pub(super) fn target(&self, link: &Found) -> Result<Vec<u8>> {
        if link.raw.size >= MOST_TARGET {
            return Err(broken("the target of a link"));
        }
        self.block(link, 0)
    }

    /// The blocks of a file's chunks, and how many blocks a chunk has, as a power of two.
    pub(super) fn chunks(&self, file: &Found) -> Result<(u8, Vec<u32>)> {
        let bits = file.raw.place & 0x1f;
        let count = file.raw.size.div_ceil((BLOCK as u64) << bits);
        if count > u64::from(u32::MAX) >> 8 || file.raw.place > 0x1f {
            return Err(broken("the chunks of a file"));
        }
        let map = self.bytes(Self::behind(file), count as usize * 4)?;
        Ok((bits as u8, map.chunks_exact(4).map(|block| u32::from_le_bytes(format::take(block, 0))).collect()))
    }

    /// Reads a file's content piece by piece, but for holes: each with its offset.
    pub(super) fn content(&self, file: &Found, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let RawInode { layout, size, place, .. } = file.raw;
        let full = size - size % BLOCK as u64;
        let mut buffer = vec![0; PIECE];
        let mut stretch = |offset: u64, at: u64, count: u64| -> Result<()> {
            let mut done = 0;
            while done < count {
                let now = (count - done).min(PIECE as u64) as usize;
                self.read(at + done, &mut buffer[..now])?;
                each(offset + done, &buffer[..now])?;
                done += now as u64;
            }
            Ok(())
        };
        match layout {
            Layout::Plain => stretch(0, u64::from(place) * BLOCK as u64, size),
            Layout::Inline => {
                stretch(0, u64::from(place) * BLOCK as u64, full)?;
                stretch(full, Self::behind(file), size - full)
            }
            Layout::Chunks => {
                let (bits, map) = self.chunks(file)?;
                let chunk = (BLOCK as u64) << bits;
                for (number, block) in map.into_iter().enumerate().filter(|(_, block)| *block != HOLE) {
                    let offset = number as u64 * chunk;
                    stretch(offset, u64::from(block) * BLOCK as u64, chunk.min(size - offset))?;
                }
                Ok(())
            }
        }
    }
}

/// What is behind the tree in an unsealed file, if what is before it is whole.
fn unsealed(region: &File, path: &Path) -> Result<Unsealed> {
    let wrong = || Error::Damaged { reason: format!("{} was not written to its end", path.display()) };
    let length = region.metadata().at("stat", path)?.len();
    let mut last = [0; 4];
    region.read_exact_at(&mut last, length.checked_sub(4).ok_or_else(wrong)?).at("read", path)?;
    let json_length = u64::from(u32::from_le_bytes(last));
    let end = (length - 4).checked_sub(json_length).ok_or_else(wrong)?;
    let mut json = vec![0; json_length as usize];
    region.read_exact_at(&mut json, end).at("read", path)?;
    let unsealed: Unsealed = serde_json::from_slice(&json).map_err(|_| wrong())?;
    let (mut hasher, mut at, mut buffer) = (blake3::Hasher::new(), 0, vec![0; PIECE]);
    while at < end {
        let now = (end - at).min(PIECE as u64) as usize;
        region.read_exact_at(&mut buffer[..now], at).at("read", path)?;
        hasher.update(&buffer[..now]);
        at += now as u64;
    }
    if hasher.finalize().to_hex().as_str() == unsealed.blake3 { Ok(unsealed) } else { Err(wrong()) }
}
