//! The image's file while it is written: from its second block on, in one go, and nothing twice.
//!
//! # Invariants
//! - What was written is never written again, so that it is hashed as it goes by. Only the first block comes at the end.
//! - The file is described by *parts*, which follow each other and each have a hash.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::BLOCK;
use crate::error::At as _;
use crate::{Error, Result};

/// Bytes handed to the kernel at once.
const BUFFER: usize = 256 << 10;
/// Zeros from this many on are not written: the file system knows them as a hole.
const HOLE: u64 = 64 << 10;

/// So many bytes, and what they hash to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) length: u64,
    /// Their BLAKE3, in hex.
    pub(super) blake3: String,
}

impl Part {
    pub(super) fn of(length: u64, hash: blake3::Hash) -> Self {
        Self { length, blake3: hash.to_hex().to_string() }
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    out: BufWriter<File>,
    at: u64,
    hasher: blake3::Hasher,
    begun: u64,
    parts: Vec<Part>,
}

impl Stream {
    /// Begins a new file.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(path).at("create", path)?;
        // The first block is a hole until the end.
        file.set_len(BLOCK as u64).at("extend", path)?;
        Self::on(path, file, BLOCK as u64, Vec::new())
    }

    /// Goes on where parts end; what is behind goes.
    pub(super) fn resume(path: &Path, parts: Vec<Part>) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path).at("open", path)?;
        let at = BLOCK as u64 + parts.iter().map(|part| part.length).sum::<u64>();
        if file.metadata().at("stat", path)?.len() < at {
            return Err(Error::Damaged { reason: format!("{} is shorter than it was", path.display()) });
        }
        file.set_len(at).at("shorten", path)?;
        Self::on(path, file, at, parts)
    }

    fn on(path: &Path, mut file: File, at: u64, parts: Vec<Part>) -> Result<Self> {
        file.seek(SeekFrom::Start(at)).at("seek in", path)?;
        let out = BufWriter::with_capacity(BUFFER, file);
        Ok(Self { path: path.to_owned(), out, at, hasher: blake3::Hasher::new(), begun: at, parts })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next byte goes.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The number of the block that begins here.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the image would be larger than one can be.
    pub(super) fn block(&self) -> Result<u32> {
        block(self.at)
    }

    /// So many zeros.
    pub(super) fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        static ZEROS: [u8; BUFFER] = [0; BUFFER];
        if count < HOLE {
            return self.write_all(&ZEROS[..count as usize]);
        }
        self.out.flush()?;
        self.at += count;
        self.out.get_mut().set_len(self.at)?;
        self.out.get_mut().seek(SeekFrom::Start(self.at))?;
        while count > 0 {
            let now = count.min(BUFFER as u64);
            self.hasher.update(&ZEROS[..now as usize]);
            count -= now;
        }
        Ok(())
    }

    /// Zeros up to the end of the block.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.zeros(self.at.next_multiple_of(BLOCK as u64) - self.at)
    }

    /// Reads what was written before.
    pub(super) fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.out.flush().at("write", &self.path)?;
        self.out.get_ref().read_exact_at(bytes, at).at("read", &self.path)
    }

    /// Ends a part; gives all of them.
    pub(super) fn end_part(&mut self) -> Result<&[Part]> {
        self.out.flush().at("write", &self.path)?;
        if self.at > self.begun {
            self.parts.push(Part::of(self.at - self.begun, self.hasher.finalize()));
            self.hasher.reset();
            self.begun = self.at;
        }
        Ok(&self.parts)
    }

    /// Writes the first block, with which the image is one.
    pub(super) fn head(mut self, block: &[u8; BLOCK]) -> Result<Vec<Part>> {
        self.end_part()?;
        self.out.get_ref().write_all_at(block, 0).at("write", &self.path)?;
        let first = Part::of(BLOCK as u64, blake3::hash(block));
        Ok(std::iter::once(first).chain(self.parts).collect())
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The number of the block at an offset.
pub(super) fn block(at: u64) -> Result<u32> {
    debug_assert!(at.is_multiple_of(BLOCK as u64));
    u32::try_from(at / BLOCK as u64).ok().filter(|block| *block < u32::MAX).ok_or_else(|| Error::Unsupported {
        what: "an image of a layer this large",
        reason: "EROFS holds 16 TiB; use the overlayfs snapshotter".into(),
    })
}
