//! The uncompressed stream as the tar parser needs it: contiguous for headers, piecemeal for content.

use std::sync::mpsc::{Receiver, Sender};

use crate::{Error, Result};

/// Buffers that arrive from the other thread, read in order.
pub(super) struct Source {
    arriving: Receiver<Vec<u8>>,
    recycle: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    /// Bytes taken out of several buffers to make them contiguous; they come before `chunk`.
    joined: Vec<u8>,
    joined_at: usize,
}

impl Source {
    pub(super) fn new(arriving: Receiver<Vec<u8>>, recycle: Sender<Vec<u8>>) -> Self {
        Self { arriving, recycle, chunk: Vec::new(), at: 0, joined: Vec::new(), joined_at: 0 }
    }

    /// The next bytes, as many as are contiguous; empty only at the end.
    pub(super) fn peek(&mut self) -> &[u8] {
        if self.joined_at < self.joined.len() {
            return &self.joined[self.joined_at..];
        }
        self.refill();
        &self.chunk[self.at..]
    }

    /// Drops the first `count` bytes of what [`Self::peek`] gave.
    pub(super) fn consume(&mut self, count: usize) {
        if self.joined_at < self.joined.len() {
            self.joined_at += count;
            debug_assert!(self.joined_at <= self.joined.len());
        } else {
            self.at += count;
            debug_assert!(self.at <= self.chunk.len());
        }
    }

    /// Makes [`Self::peek`] give at least `count` bytes; false if the stream has not that many.
    pub(super) fn join(&mut self, count: usize) -> bool {
        if self.joined_at == self.joined.len() {
            self.refill();
            if self.chunk.len() - self.at >= count {
                return true;
            }
        }
        self.joined.drain(..self.joined_at);
        self.joined_at = 0;
        while self.joined.len() < count {
            self.refill();
            let more = (self.chunk.len() - self.at).min(count - self.joined.len());
            if more == 0 {
                return false;
            }
            self.joined.extend_from_slice(&self.chunk[self.at..self.at + more]);
            self.at += more;
        }
        true
    }

    /// Drops `count` bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<()> {
        while count > 0 {
            let here = self.next_slice(count)?.len();
            self.consume(here);
            count -= here as u64;
        }
        Ok(())
    }

    /// Drops `count` bytes, or what is left: some programs (umoci among them) end a tar without padding its last file.
    pub(super) fn skip_padding(&mut self, count: u64) {
        let mut left = count as usize;
        while left > 0 {
            let here = self.peek().len().min(left);
            if here == 0 {
                return;
            }
            self.consume(here);
            left -= here;
        }
    }

    /// The next bytes, at most `most`.
    ///
    /// # Errors
    /// If there are none left.
    pub(super) fn next_slice(&mut self, most: u64) -> Result<&[u8]> {
        let bytes = self.peek();
        if bytes.is_empty() {
            return Err(Error::Damaged { reason: "the tar ends within a file's content".into() });
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(&bytes[..bytes.len().min(most)])
    }

    /// Reads what is left, so that the other thread hashes all of it.
    pub(super) fn drain(mut self) {
        self.joined.clear();
        self.at = self.chunk.len();
        while let Ok(chunk) = self.arriving.recv() {
            let _ = self.recycle.send(chunk);
        }
    }

    fn refill(&mut self) {
        if self.at < self.chunk.len() {
            return;
        }
        if let Ok(next) = self.arriving.recv() {
            let spent = std::mem::replace(&mut self.chunk, next);
            if spent.capacity() > 0 {
                // The other side may have ended already; then nobody needs the buffer.
                let _ = self.recycle.send(spent);
            }
            self.at = 0;
        }
    }
}
