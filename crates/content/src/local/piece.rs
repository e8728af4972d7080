//! Buffers for pieces of blobs, used again and again: one that was just read from is in the processor's cache, and a new one has to be
//! asked of the kernel page by page.
//!
//! At most [`KEPT`] wait for their next use, whoever reads.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Bytes of a buffer that is used again: what is read of large blobs at a time.
const LENGTH: usize = 1 << 20;
/// How many are kept: one for each of a few readers at once.
const KEPT: usize = 4;

static FREE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Box<[u8]>>> {
    // Buffers are pushed and popped whole.
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer to read into; what it had before is still in it.
pub(super) struct Piece {
    buffer: Box<[u8]>,
    /// How much of it is wanted.
    length: usize,
}

impl Piece {
    /// Room for so many bytes.
    pub(super) fn new(length: usize) -> Self {
        let used = if is_kept(length) { free().pop() } else { None };
        let room = if is_kept(length) { LENGTH } else { length };
        Self { buffer: used.unwrap_or_else(|| vec![0; room].into_boxed_slice()), length }
    }

    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.length]
    }

    /// The first `count` bytes, without a copy; the buffer is free when the last of them are dropped.
    pub(super) fn into_bytes(mut self, count: usize) -> Bytes {
        self.length = self.length.min(count);
        Bytes::from_owner(self)
    }
}

/// Small ones are not worth a whole buffer.
fn is_kept(length: usize) -> bool {
    length > LENGTH / 2 && length <= LENGTH
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut free = free();
        if self.buffer.len() == LENGTH && free.len() < KEPT {
            free.push(std::mem::take(&mut self.buffer));
        }
    }
}
