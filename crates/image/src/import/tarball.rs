//! Reads a tar from front to back, plain or packed, without ever going back.

use std::io::{self, BufReader, Cursor, Read};

use bytes::{Buf, Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use crate::error::ArchiveError;
use crate::{Error, Result};

const BLOCK: usize = 512;
/// Bytes read at a time.
const INPUT: usize = 256 * 1024;
/// Headers of one entry, extensions included.
const MAX_HEADERS: usize = 2 << 20;
/// Window of a zstd frame: what `zstd -d` accepts without being asked.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A regular file of so many bytes, which follow.
    File(u64),
    /// A symbolic or hard link to a path of the archive.
    Link(String),
    /// Anything without content: directories.
    Other,
}

/// A tar being read.
pub(super) struct Tarball<R: Read> {
    reader: R,
    buffer: BytesMut,
    ended: bool,
    parser: Parser,
    /// Bytes of the current entry's content not read yet, and of its padding.
    content: u64,
    padding: u64,
    entries: u64,
    most_entries: u64,
}

/// Unpacks gzip and zstd, told by their first bytes.
pub(super) fn unpacked(mut source: impl Read + 'static) -> Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    source.by_ref().take(4).read_to_end(&mut magic).map_err(stream_error)?;
    let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
    let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    let whole = BufReader::with_capacity(INPUT, Read::chain(Cursor::new(magic), source));
    if is_gzip {
        return Ok(Box::new(MultiGzDecoder::new(whole)));
    }
    if is_zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(stream_error)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(stream_error)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(whole))
}

fn stream_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => truncated("its compressed stream stops early"),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            Error::Archive(ArchiveError::Damaged(error.to_string()))
        }
        _ => Error::Stream { operation: "read archive", source: error },
    }
}

fn truncated(reason: &str) -> Error {
    Error::Archive(ArchiveError::Truncated(reason.to_owned()))
}

impl<R: Read> Tarball<R> {
    pub(super) fn new(reader: R, limits: &crate::Limits) -> Self {
        let parser = Parser::new(Limits { max_metadata_size: 1 << 20, max_path_len: Some(4096), ..Limits::default() });
        Self {
            reader,
            buffer: BytesMut::new(),
            ended: false,
            parser,
            content: 0,
            padding: 0,
            entries: 0,
            most_entries: limits.archive_entries,
        }
    }

    /// The next entry's normal path and kind; `None` at the end.
    pub(super) fn next_entry(&mut self) -> Result<Option<(String, Kind)>> {
        self.skip()?;
        let mut wanted = BLOCK;
        loop {
            self.fill(wanted)?;
            let blank = self.buffer.iter().all(|b| *b == 0);
            let event = self.parser.parse(&self.buffer);
            let event = event.map_err(|error| {
                let first = self.entries == 0;
                Error::Archive(if first { ArchiveError::NoTar } else { ArchiveError::Damaged(error.to_string()) })
            })?;
            match event {
                ParseEvent::NeedData { .. } if self.ended && blank && self.buffer.len() <= BLOCK => return self.end(),
                ParseEvent::NeedData { .. } if self.ended => return Err(truncated("it stops within a header")),
                ParseEvent::NeedData { min_bytes } => {
                    wanted = min_bytes.max(self.buffer.len() + BLOCK);
                    if wanted > MAX_HEADERS {
                        return Err(Error::Archive(ArchiveError::Damaged("an entry's headers do not end".to_owned())));
                    }
                }
                ParseEvent::Entry { consumed, entry } => {
                    let (path, kind) = describe(&entry)?;
                    (self.content, self.padding) = match kind {
                        Kind::File(size) => (size, padding(size)),
                        _ => (entry.size, padding(entry.size)),
                    };
                    self.buffer.advance(consumed);
                    self.count()?;
                    return Ok(Some((path, kind)));
                }
                ParseEvent::SparseEntry { entry, .. } => return Err(refused(&entry, "it is sparse")),
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.buffer.advance(consumed);
                    wanted = BLOCK;
                }
                ParseEvent::End { .. } => return self.end(),
            }
        }
    }

    /// Reads what follows the end, so that whoever writes the archive is not cut off, and its checksums count.
    fn end(&mut self) -> Result<Option<(String, Kind)>> {
        self.buffer.clear();
        io::copy(&mut self.reader, &mut io::sink()).map_err(stream_error)?;
        Ok(None)
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.most_entries {
            return Err(Error::Archive(ArchiveError::Entries { limit: self.most_entries }));
        }
        Ok(())
    }

    /// The next piece of the current entry's content; empty at its end.
    pub(super) fn piece(&mut self) -> Result<Bytes> {
        if self.content == 0 {
            return Ok(Bytes::new());
        }
        if self.buffer.is_empty() {
            self.fill(1)?;
        }
        if self.buffer.is_empty() {
            return Err(truncated("it stops within a file"));
        }
        let length = self.buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        self.content -= length as u64;
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Passes over what is left of the current entry.
    pub(super) fn skip(&mut self) -> Result<()> {
        while !self.piece()?.is_empty() {}
        self.content = std::mem::take(&mut self.padding);
        while !self.piece()?.is_empty() {}
        Ok(())
    }

    /// Makes the buffer hold `wanted` bytes, or all that are left.
    fn fill(&mut self, wanted: usize) -> Result<()> {
        while self.buffer.len() < wanted && !self.ended {
            let filled = self.buffer.len();
            let room = INPUT.max(wanted - filled);
            self.buffer.resize(filled + room, 0);
            let read = loop {
                match self.reader.read(&mut self.buffer[filled..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            let count = *read.as_ref().unwrap_or(&0);
            self.buffer.truncate(filled + count);
            self.ended = read.map_err(stream_error)? == 0;
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn refused(entry: &ParsedEntry<'_>, reason: &str) -> Error {
    let name = entry.path_lossy().into_owned();
    Error::Archive(ArchiveError::Entry { name, reason: reason.to_owned() })
}

fn describe(entry: &ParsedEntry<'_>) -> Result<(String, Kind)> {
    let path = normal(&entry.path_lossy()).ok_or_else(|| refused(entry, "its path leads out of the archive"))?;
    let link = entry.link_target_lossy().unwrap_or_default();
    let kind = if entry.is_file() {
        if entry.size.checked_next_multiple_of(BLOCK as u64).is_none() {
            return Err(refused(entry, "its size is not possible"));
        }
        Kind::File(entry.size)
    } else if entry.is_symlink() {
        Kind::Link(follow(&path, &link).ok_or_else(|| refused(entry, "it links out of the archive"))?)
    } else if entry.is_hard_link() {
        Kind::Link(normal(&link).ok_or_else(|| refused(entry, "it links out of the archive"))?)
    } else if entry.size == 0 || entry.is_dir() {
        Kind::Other
    } else {
        return Err(refused(entry, "it is neither file, directory nor link"));
    };
    Ok((path, kind))
}

/// A path without `.` and `..`; `None` if it is absolute or leads above its start.
pub(super) fn normal(path: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where a symbolic link at `path` leads.
fn follow(path: &str, link: &str) -> Option<String> {
    if link.starts_with('/') {
        return None;
    }
    match path.rsplit_once('/') {
        Some((parent, _)) => normal(&format!("{parent}/{link}")),
        None => normal(link),
    }
}
