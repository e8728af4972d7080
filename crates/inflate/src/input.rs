//! The packed bytes: what the reader gives, and the bits at hand.

use std::io::{self, Read};

/// Bytes asked for at a time.
const BYTES: usize = 64 << 10;

/// The bytes from `at` to `end` are to come; before them come the lowest `count` bits of `bits`.
///
/// Bits above those are zero, except within [`crate::block`]'s loop.
pub(crate) struct Input<R> {
    pub(crate) reader: R,
    pub(crate) buffer: Box<[u8]>,
    pub(crate) at: usize,
    pub(crate) end: usize,
    pub(crate) bits: u64,
    pub(crate) count: u32,
    ended: bool,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R) -> Self {
        let buffer = vec![0; BYTES].into_boxed_slice();
        Self { reader, buffer, at: 0, end: 0, bits: 0, count: 0, ended: false }
    }

    /// Sees to it that at least `wanted` bytes are in the buffer, unless there are no more.
    pub(crate) fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.end - self.at < wanted && !self.ended {
            if self.at > 0 {
                self.buffer.copy_within(self.at..self.end, 0);
                (self.end, self.at) = (self.end - self.at, 0);
            }
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes whole bytes to hand, so that there are at least 56 bits, and never 64, unless the stream ends.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        self.fill(8)?;
        while self.count < 56 && self.at < self.end {
            self.bits |= u64::from(self.buffer[self.at]) << self.count;
            self.at += 1;
            self.count += 8;
        }
        Ok(())
    }

    /// Drops bits that are at hand.
    ///
    /// # Errors
    /// If there are not so many: then the stream has ended.
    pub(crate) fn drop_bits(&mut self, count: u32) -> io::Result<()> {
        self.count = self.count.checked_sub(count).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.bits >>= count;
        Ok(())
    }

    /// The next bits, at most 32.
    pub(crate) fn take_bits(&mut self, count: u32) -> io::Result<u32> {
        self.refill()?;
        let bits = self.bits & ((1 << count) - 1);
        self.drop_bits(count)?;
        Ok(bits as u32)
    }

    pub(crate) fn take_byte(&mut self) -> io::Result<u8> {
        self.take_bits(8).map(|bits| bits as u8)
    }

    /// Drops what is left of a byte of which bits were taken.
    pub(crate) fn align(&mut self) {
        self.bits >>= self.count % 8;
        self.count -= self.count % 8;
    }

    /// Whether nothing is left.
    pub(crate) fn is_at_end(&mut self) -> io::Result<bool> {
        self.fill(1)?;
        Ok(self.count == 0 && self.at == self.end)
    }

    /// Copies whole bytes, as many as there are and as fit, for a reader that stands between two bytes; none only at the end.
    pub(crate) fn copy(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut copied = 0;
        while self.count >= 8 && copied < out.len() {
            out[copied] = self.bits as u8;
            self.bits >>= 8;
            self.count -= 8;
            copied += 1;
        }
        if copied == 0 {
            self.fill(1)?;
            copied = out.len().min(self.end - self.at);
            out[..copied].copy_from_slice(&self.buffer[self.at..self.at + copied]);
            self.at += copied;
        }
        Ok(copied)
    }
}
