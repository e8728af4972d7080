//! The bytes of `digests`.
//!
//! ```text
//! file   = magic entry* sha256            of all before it
//! entry  = shared length bytes            the path: so many bytes of the one before, then so many of its own
//!          kind mode uid gid              kind is one byte
//!          size (0 | 1 blake3)            of a file
//!          length bytes                   of a symbolic link: its target
//!          device                         of a device
//! ```
//! The magic ends with the version's number; what another version wrote has the same checksum, and is left alone.
//! Numbers are LEB128; an owner of 2^32-1 is not known.
//! Entries are in the order of a walk: the root, then depth first, names by their bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use rustix::fs::Stat;
use sha2::{Digest as _, Sha256};

use super::Hash;
use crate::Result;
use crate::error::At as _;

const MAGIC: &[u8] = b"orlop tree 2\n";
/// What a record of any version begins with.
const ANY_MAGIC: &[u8] = b"orlop tree ";

/// An owner that is not known; no file can have it.
pub(super) const UNKNOWN_ID: u32 = u32::MAX;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// `hash` is `None` where the content was not recorded.
    File {
        size: u64,
        hash: Option<Hash>,
    },
    Directory,
    Symlink(Vec<u8>),
    Character(u64),
    Block(u64),
    Fifo,
    Socket,
}

impl Kind {
    fn byte(&self) -> u8 {
        match self {
            Self::File { .. } => b'f',
            Self::Directory => b'd',
            Self::Symlink(_) => b'l',
            Self::Character(_) => b'c',
            Self::Block(_) => b'b',
            Self::Fifo => b'p',
            Self::Socket => b's',
        }
    }
}

/// An entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the root; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Entry {
    pub(super) fn new(path: Vec<u8>, stat: &Stat, kind: Kind, owners: bool) -> Self {
        let (uid, gid) = if owners { (stat.st_uid, stat.st_gid) } else { (UNKNOWN_ID, UNKNOWN_ID) };
        Self { path, kind, mode: stat.st_mode & 0o7777, uid, gid }
    }
}

/// Writes entries.
pub(super) struct RecordWriter {
    out: BufWriter<File>,
    hasher: Sha256,
    last: Vec<u8>,
    buffer: Vec<u8>,
}

impl RecordWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).at("create", path)?;
        let mut new =
            Self { out: BufWriter::new(file), hasher: Sha256::new(), last: Vec::new(), buffer: MAGIC.to_vec() };
        new.flush().at("write", path)?;
        Ok(new)
    }

    pub(super) fn put(&mut self, entry: Entry) -> io::Result<()> {
        let shared = entry.path.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        self.number(shared as u64);
        self.bytes(&entry.path[shared..]);
        self.buffer.push(entry.kind.byte());
        for number in [entry.mode, entry.uid, entry.gid] {
            self.number(number.into());
        }
        match &entry.kind {
            Kind::File { size, hash } => {
                self.number(*size);
                self.buffer.push(hash.is_some().into());
                self.buffer.extend_from_slice(hash.as_ref().map_or(&[], |hash| &hash[..]));
            }
            Kind::Symlink(target) => self.bytes(target),
            Kind::Character(device) | Kind::Block(device) => self.number(*device),
            Kind::Directory | Kind::Fifo | Kind::Socket => {}
        }
        self.last = entry.path;
        self.flush()
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        let hash: Hash = std::mem::take(&mut self.hasher).finalize().into();
        self.out.write_all(&hash)?;
        self.out.flush()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.buffer.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.buffer.push(number as u8);
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads entries, from bytes whose checksum was right.
pub(super) struct RecordReader {
    bytes: Vec<u8>,
    at: usize,
    last: Vec<u8>,
}

/// That these are not the bytes that were written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl RecordReader {
    /// Begins to read; `None` if it is another version's.
    pub(super) fn new(mut bytes: Vec<u8>) -> Result<Option<Self>, Broken> {
        let end = bytes.len().checked_sub(size_of::<Hash>()).ok_or(Broken)?;
        let hash: Hash = Sha256::digest(&bytes[..end]).into();
        if hash != bytes[end..] || !bytes.starts_with(ANY_MAGIC) {
            return Err(Broken);
        }
        bytes.truncate(end);
        Ok(bytes.starts_with(MAGIC).then(|| Self { bytes, at: MAGIC.len(), last: Vec::new() }))
    }

    pub(super) fn next(&mut self) -> Result<Option<Entry>, Broken> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let parsed = self.parse();
        if parsed.is_err() {
            // Nothing behind it makes sense either.
            self.at = self.bytes.len();
        }
        parsed.map(Some)
    }

    fn parse(&mut self) -> Result<Entry, Broken> {
        let shared = self.number().and_then(|shared| usize::try_from(shared).map_err(|_| Broken))?;
        let mut path = self.last.get(..shared).ok_or(Broken)?.to_vec();
        path.extend_from_slice(self.sized()?);
        let kind = self.take(1)?[0];
        let [mode, uid, gid] = [self.small()?, self.small()?, self.small()?];
        let kind = match kind {
            b'f' => Kind::File { size: self.number()?, hash: self.hash()? },
            b'd' => Kind::Directory,
            b'l' => Kind::Symlink(self.sized()?.to_vec()),
            b'c' => Kind::Character(self.number()?),
            b'b' => Kind::Block(self.number()?),
            b'p' => Kind::Fifo,
            b's' => Kind::Socket,
            _ => return Err(Broken),
        };
        self.last.clone_from(&path);
        Ok(Entry { path, kind, mode, uid, gid })
    }

    fn hash(&mut self) -> Result<Option<Hash>, Broken> {
        match self.take(1)?[0] {
            0 => Ok(None),
            1 => self.take(size_of::<Hash>())?.try_into().map(Some).map_err(|_| Broken),
            _ => Err(Broken),
        }
    }

    fn sized(&mut self) -> Result<&[u8], Broken> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Broken)?)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Broken> {
        let end = self.at.checked_add(count).ok_or(Broken)?;
        let taken = self.bytes.get(self.at..end).ok_or(Broken)?;
        self.at = end;
        Ok(taken)
    }

    fn small(&mut self) -> Result<u32, Broken> {
        u32::try_from(self.number()?).map_err(|_| Broken)
    }

    fn number(&mut self) -> Result<u64, Broken> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |path: &str, kind| Entry { path: path.into(), kind, mode: 0o4755, uid: u32::MAX - 1, gid: 7 };
        vec![
            entry("", Kind::Directory),
            entry("a", Kind::File { size: u64::MAX, hash: Some([9; 32]) }),
            entry("a\u{e9}", Kind::File { size: 0, hash: None }),
            entry("b", Kind::Directory),
            entry("b/c", Kind::Symlink(b"../../x".to_vec())),
            entry("b/d", Kind::Character(0)),
            entry("b/e", Kind::Block(u64::MAX)),
            entry("f", Kind::Fifo),
            entry("g", Kind::Socket),
        ]
    }

    fn all(bytes: Vec<u8>) -> Result<Vec<Entry>, Broken> {
        let mut reader = RecordReader::new(bytes)?.expect("this version's");
        std::iter::from_fn(|| reader.next().transpose()).collect()
    }

    #[test]
    fn what_is_written_is_read_and_no_changed_byte_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("digests");
        let mut writer = RecordWriter::create(&path).unwrap();
        entries().into_iter().for_each(|entry| writer.put(entry).unwrap());
        writer.end().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(all(bytes.clone()).unwrap(), entries());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x20;
            assert_eq!(all(changed), Err(Broken), "byte {at}");
            assert_eq!(all(bytes[..at].to_vec()), Err(Broken), "cut at {at}");
        }
    }

    #[test]
    fn what_another_version_wrote_is_told_from_what_is_damaged() {
        let summed = |text: &[u8]| [text, &Sha256::digest(text)[..]].concat();
        assert!(RecordReader::new(summed(b"orlop tree 1\nsomething")).unwrap().is_none());
        assert!(RecordReader::new(summed(b"another thing")).is_err());
        assert!(RecordReader::new(b"orlop tree 1\nsomething, and no checksum of it that is right".to_vec()).is_err());
    }
}
