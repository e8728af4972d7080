//! The bytes of an EROFS image: the part of the on-disk format that this crate writes and reads.
//!
//! Source: docs.kernel.org, filesystems/erofs, and erofs.docs.kernel.org, "Core on-disk format". Everything is little-endian.
//! Blocks have 4 KiB, inodes are extended (64 bytes), nothing is compressed, all extended attributes are shared.

use crate::Error;

/// Bytes of a block. Every kernel that has EROFS takes this size.
pub(super) const BLOCK: usize = 4096;
/// The same as a shift.
const BLOCK_BITS: u8 = 12;
/// Where the superblock is, in the first block.
pub(super) const SUPER_AT: usize = 1024;
/// Bytes of it.
const SUPER: usize = 128;
/// Where the root's inode is: behind the superblock, since its number has 16 bits only.
pub(super) const ROOT_AT: u64 = (SUPER_AT + SUPER) as u64;
/// Inodes are numbered by this many bytes.
pub(super) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(super) const INODE: usize = 64;
/// Bytes of a directory entry, without its name.
pub(super) const DIRENT: usize = 12;
/// Bytes before the list of an inode's shared attributes.
const XATTR_HEADER: usize = 12;
/// Attributes that an inode can share: their count has 8 bits.
pub(super) const MOST_XATTRS: usize = 255;
/// The longest value of an attribute: its length has 16 bits.
pub(super) const MOST_XATTR_BYTES: usize = u16::MAX as usize;
/// A hole, in a map of chunks.
pub(super) const HOLE: u32 = u32::MAX;

const MAGIC: u32 = 0xE0F5_E1E2;
const HAS_CHECKSUM: u32 = 1;
const HAS_TIMES: u32 = 2;
const HAS_CHUNKS: u32 = 4;

/// Prefixes of attributes' names, which are numbers in the image. The access lists have no more than the prefix.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Says what of an image cannot be right.
pub(super) fn broken(what: impl std::fmt::Display) -> Error {
    Error::Damaged { reason: format!("its image: {what}") }
}

/// The number and the rest of an attribute's name; `None` if an image can have no such attribute.
pub(super) fn xattr_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// An attribute's name by its number and the rest of it.
pub(super) fn xattr_name(index: u8, rest: &[u8]) -> Option<Vec<u8>> {
    PREFIXES.iter().find(|(of, _)| *of == index).map(|(_, prefix)| [prefix, rest].concat())
}

/// How an inode's content is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks that follow each other.
    Plain,
    /// The same, but for what fills no block, which is right behind the inode.
    Inline,
    /// In chunks, listed behind the inode.
    Chunks,
}

impl Layout {
    fn number(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Chunks => 4,
        }
    }
}

/// An inode as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawInode {
    pub(super) layout: Layout,
    /// Bytes of the attributes behind it.
    pub(super) xattr_bytes: usize,
    /// With the kind.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block, device or chunk format.
    pub(super) place: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) seconds: u64,
    pub(super) nanos: u32,
    pub(super) links: u32,
}

impl RawInode {
    pub(super) fn encode(&self) -> [u8; INODE] {
        let mut bytes = [0; INODE];
        put(&mut bytes, 0, &(1 | self.layout.number() << 1).to_le_bytes());
        put(&mut bytes, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.place.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.nanos.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; INODE]) -> Result<Self, Error> {
        let format = u16::from_le_bytes(take(bytes, 0));
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunks,
            other => return Err(broken(format_args!("an inode of layout {other}"))),
        };
        if format & 1 == 0 {
            return Err(broken("an inode that is not extended"));
        }
        Ok(Self {
            layout,
            xattr_bytes: match usize::from(u16::from_le_bytes(take(bytes, 2))) {
                0 => 0,
                count => XATTR_HEADER + 4 * (count - 1),
            },
            mode: u16::from_le_bytes(take(bytes, 4)),
            size: u64::from_le_bytes(take(bytes, 8)),
            place: u32::from_le_bytes(take(bytes, 16)),
            number: u32::from_le_bytes(take(bytes, 20)),
            uid: u32::from_le_bytes(take(bytes, 24)),
            gid: u32::from_le_bytes(take(bytes, 28)),
            seconds: u64::from_le_bytes(take(bytes, 32)),
            nanos: u32::from_le_bytes(take(bytes, 40)),
            links: u32::from_le_bytes(take(bytes, 44)),
        })
    }
}

/// Bytes behind an inode that has so many attributes.
pub(super) const fn xattr_bytes(count: usize) -> usize {
    if count == 0 { 0 } else { XATTR_HEADER + 4 * count }
}

fn xattr_count(bytes: usize) -> u16 {
    if bytes == 0 { 0 } else { ((bytes - XATTR_HEADER) / 4 + 1) as u16 }
}

/// What is behind an inode with these attributes, by their places among the shared ones.
pub(super) fn encode_xattrs(shared: &[u32]) -> Vec<u8> {
    if shared.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; XATTR_HEADER];
    bytes[4] = shared.len() as u8;
    shared.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
    bytes
}

/// The attributes that are listed behind an inode.
pub(super) fn decode_xattrs(bytes: &[u8]) -> Result<Vec<u32>, Error> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let count = bytes.get(4).map_or(0, |count| usize::from(*count));
    if bytes.len() != XATTR_HEADER + 4 * count {
        return Err(broken("attributes of an inode that are not shared"));
    }
    Ok(bytes[XATTR_HEADER..].chunks_exact(4).map(|id| u32::from_le_bytes(take(id, 0))).collect())
}

/// An attribute among the shared ones.
pub(super) fn encode_xattr(index: u8, rest: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![rest.len() as u8, index];
    bytes.extend_from_slice(&(value.len() as u16).to_le_bytes());
    bytes.extend_from_slice(rest);
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The superblock, as far as it differs from image to image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Super {
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// The first block of the shared attributes.
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) chunks: bool,
}

impl Super {
    /// Writes it into the first block, of which all else is there, with its checksum.
    pub(super) fn write(&self, block: &mut [u8; BLOCK]) {
        let at = SUPER_AT;
        block[at..at + SUPER].fill(0);
        put(block, at, &MAGIC.to_le_bytes());
        put(block, at + 8, &(HAS_CHECKSUM | HAS_TIMES).to_le_bytes());
        block[at + 12] = BLOCK_BITS;
        put(block, at + 14, &((ROOT_AT / SLOT) as u16).to_le_bytes());
        put(block, at + 16, &self.inodes.to_le_bytes());
        put(block, at + 36, &self.blocks.to_le_bytes());
        put(block, at + 44, &self.xattr_block.to_le_bytes());
        put(block, at + 48, &self.uuid);
        put(block, at + 80, &if self.chunks { HAS_CHUNKS } else { 0 }.to_le_bytes());
        let checksum = crc32c(&block[at..]);
        put(block, at + 4, &checksum.to_le_bytes());
    }

    /// Reads it, with its checksum.
    pub(super) fn read(block: &[u8; BLOCK]) -> Result<Self, Error> {
        let at = SUPER_AT;
        if u32::from_le_bytes(take(block, at)) != MAGIC {
            return Err(broken("it has no superblock"));
        }
        let mut summed = block[at..].to_vec();
        summed[4..8].fill(0);
        if crc32c(&summed) != u32::from_le_bytes(take(block, at + 4)) {
            return Err(broken("its superblock does not check"));
        }
        let (bits, root) = (block[at + 12], u16::from_le_bytes(take(block, at + 14)));
        let incompatible = u32::from_le_bytes(take(block, at + 80));
        if bits != BLOCK_BITS || u64::from(root) * SLOT != ROOT_AT || incompatible & !HAS_CHUNKS != 0 {
            return Err(broken("it was written by another program"));
        }
        Ok(Self {
            inodes: u64::from_le_bytes(take(block, at + 16)),
            blocks: u32::from_le_bytes(take(block, at + 36)),
            xattr_block: u32::from_le_bytes(take(block, at + 44)),
            uuid: take(block, at + 48),
            chunks: incompatible & HAS_CHUNKS != 0,
        })
    }
}

/// The number of a kind in a directory entry, by the kind in a mode.
pub(super) fn entry_type(mode: u16) -> u8 {
    match u32::from(mode) & libc::S_IFMT {
        libc::S_IFREG => 1,
        libc::S_IFDIR => 2,
        libc::S_IFCHR => 3,
        libc::S_IFBLK => 4,
        libc::S_IFIFO => 5,
        libc::S_IFSOCK => 6,
        libc::S_IFLNK => 7,
        _ => 0,
    }
}

/// How many of these names, which are in order, and their bytes fill one block of a directory.
pub(super) fn fits<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for name in names {
        if bytes + DIRENT + name.len() > BLOCK {
            break;
        }
        bytes += DIRENT + name.len();
        count += 1;
    }
    (count, bytes)
}

/// A block of a directory: entries with number and kind, then their names.
pub(super) fn encode_entries(entries: &[(&[u8], u64, u8)]) -> Vec<u8> {
    let (mut bytes, mut names) = (Vec::new(), Vec::new());
    for (name, nid, kind) in entries {
        bytes.extend_from_slice(&nid.to_le_bytes());
        bytes.extend_from_slice(&((entries.len() * DIRENT + names.len()) as u16).to_le_bytes());
        bytes.extend_from_slice(&[*kind, 0]);
        names.extend_from_slice(name);
    }
    bytes.append(&mut names);
    bytes
}

/// The entries of a block of a directory, of which all or the last is cut to `bytes`.
pub(super) fn decode_entries(bytes: &[u8]) -> Result<Vec<(&[u8], u64)>, Error> {
    let wrong = || broken("a block of a directory");
    let head = |at: usize| bytes.get(at..at + DIRENT).ok_or_else(wrong);
    let offset = |at: usize| head(at).map(|entry| usize::from(u16::from_le_bytes(take(entry, 8))));
    let first = offset(0)?;
    if first == 0 || !first.is_multiple_of(DIRENT) || first > bytes.len() {
        return Err(wrong());
    }
    let mut entries = Vec::with_capacity(first / DIRENT);
    for at in (0..first).step_by(DIRENT) {
        let start = offset(at)?;
        let end = if at + DIRENT < first { offset(at + DIRENT)? } else { bytes.len() };
        let name = bytes.get(start..end).ok_or_else(wrong)?;
        // A name ends at the next one's start, or where zeros begin.
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
        entries.push((name, u64::from_le_bytes(take(head(at)?, 0))));
    }
    Ok(entries)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Bytes at a place that the caller knows to be there.
pub(super) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}

/// CRC-32C (Castagnoli) as EROFS has it: begun with ones, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82F6_3B78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ REVERSED } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4, says what it is when it is inverted.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62A8_AB43);
    }

    #[test]
    fn what_is_written_is_read() {
        let inode = RawInode {
            layout: Layout::Inline,
            xattr_bytes: xattr_bytes(3),
            mode: 0o104_755,
            size: 1 << 40,
            place: 77,
            number: 5,
            uid: u32::MAX - 1,
            gid: 7,
            seconds: 1 << 33,
            nanos: 999_999_999,
            links: 3,
        };
        assert_eq!(RawInode::decode(&inode.encode()).unwrap(), inode);
        assert_eq!(decode_xattrs(&encode_xattrs(&[1, 2, 3])).unwrap(), [1, 2, 3]);
        assert_eq!(encode_xattrs(&[1, 2, 3]).len(), xattr_bytes(3));
        let entries = [(&b"."[..], 36, 2), (b"..", 36, 2), (b"a", 1 << 40, 1)];
        let read: Vec<_> = entries.iter().map(|(name, nid, _)| (*name, *nid)).collect();
        assert_eq!(decode_entries(&encode_entries(&entries)).unwrap(), read);
        let mut padded = encode_entries(&entries);
        padded.resize(BLOCK, 0);
        assert_eq!(decode_entries(&padded).unwrap(), read);
    }

    #[test]
    fn a_changed_superblock_is_refused() {
        let mut block = [0; BLOCK];
        let written = Super { inodes: 3, blocks: 9, xattr_block: 4, uuid: [7; 16], chunks: true };
        written.write(&mut block);
        assert_eq!(Super::read(&block).unwrap(), written);
        for at in SUPER_AT..BLOCK {
            block[at] ^= 0x10;
            assert!(Super::read(&block).is_err(), "byte {at}");
            block[at] ^= 0x10;
        }
    }

    #[test]
    fn names_of_attributes_have_known_prefixes() {
        for name in [&b"user.a"[..], b"trusted.overlay.opaque", b"security.capability", b"system.posix_acl_access"] {
            let (index, rest) = xattr_prefix(name).unwrap();
            assert_eq!(xattr_name(index, rest).unwrap(), name);
        }
        for name in [&b"user."[..], b"system.other", b"odd", b"", b"system.posix_acl_access.more"] {
            assert_eq!(xattr_prefix(name), None, "{}", String::from_utf8_lossy(name));
        }
    }
}
