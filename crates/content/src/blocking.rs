//! The async roles for threads that may block: layers are inflated and unpacked on such threads.
//!
//! Neither type may be used on a worker thread of the runtime, where `Handle::block_on` panics.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use orlop_oci::Digest;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::{BlobReader, Result, Status, Writer};

/// How much is read at once, and how much ahead.
const PIECE: usize = 1 << 20;

/// Reads a blob from start to end on a thread that may block, one piece of 1 MiB ahead.
pub struct BlockingReader {
    handle: Handle,
    reader: Arc<dyn BlobReader>,
    current: Bytes,
    /// Where the piece after those asked for begins.
    offset: u64,
    ahead: Option<JoinHandle<Result<Bytes>>>,
}

impl BlockingReader {
    /// Reads `reader` from `offset` on.
    pub fn new(handle: Handle, reader: Arc<dyn BlobReader>, offset: u64) -> Self {
        Self { handle, reader, current: Bytes::new(), offset, ahead: None }
    }

    /// The next piece without a copy, at most 1 MiB; empty at the end.
    pub fn next_piece(&mut self) -> Result<Bytes> {
        if !self.current.is_empty() {
            return Ok(std::mem::take(&mut self.current));
        }
        if self.offset >= self.reader.size() && self.ahead.is_none() {
            return Ok(Bytes::new());
        }
        let asked = match self.ahead.take() {
            Some(asked) => asked,
            None => self.ask(),
        };
        if self.offset < self.reader.size() {
            self.ahead = Some(self.ask());
        }
        match self.handle.block_on(asked) {
            Ok(piece) => piece,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(crate::Error::Stopped),
            },
        }
    }

    fn ask(&mut self) -> JoinHandle<Result<Bytes>> {
        let (reader, offset) = (self.reader.clone(), self.offset);
        let length = PIECE.min(usize::try_from(reader.size() - offset).unwrap_or(PIECE));
        self.offset += length as u64;
        self.handle.spawn(async move {
            let piece = reader.read_at(offset, length).await?;
            if piece.len() == length { Ok(piece) } else { Err(crate::Error::Shrunk { size: reader.size() }) }
        })
    }
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            self.current = self.next_piece().map_err(io::Error::other)?;
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Drop for BlockingReader {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.abort();
        }
    }
}

/// Writes a blob from a thread that may block.
pub struct BlockingWriter {
    handle: Handle,
    writer: Box<dyn Writer>,
}

impl BlockingWriter {
    /// Writes to `writer`.
    pub fn new(handle: Handle, writer: Box<dyn Writer>) -> Self {
        Self { handle, writer }
    }

    /// As [`Writer::status`].
    pub fn status(&self) -> Status {
        self.writer.status()
    }

    /// As [`Writer::digest`].
    pub fn digest(&self) -> Digest {
        self.writer.digest()
    }

    /// As [`Writer::write`].
    pub fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.handle.block_on(self.writer.write(bytes))
    }

    /// As [`Writer::truncate`].
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        self.handle.block_on(self.writer.truncate(size))
    }

    /// As [`Writer::commit`].
    pub fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        self.handle.block_on(self.writer.commit(size, expected))
    }

    /// The writer itself.
    pub fn into_inner(self) -> Box<dyn Writer> {
        self.writer
    }
}
