//! Layers too big for memory, made while they are read.

use std::io::{self, Read};

use orlop_oci::Compression;

use crate::compress;
use crate::tar::{BLOCK, Entry, Header, SIZE, TarBuilder};

/// How much one repeated member or frame of a [`bomb`] unpacks to, in bytes.
pub const BOMB_UNIT: u64 = 16 << 20;

/// A packed layer of one file of `size` zero bytes (rounded up to [`BOMB_UNIT`]): some 1,000 times (gzip) or 10,000
/// times (zstd) smaller than what it unpacks to. Memory use does not depend on `size`.
pub fn bomb(compression: Compression, size: u64) -> impl Read + Send + use<> {
    let units = size.div_ceil(BOMB_UNIT).max(1);
    let mut header = Header::new(b'0');
    header.name(b"bomb").number(SIZE, i128::from(units * BOMB_UNIT));
    let head = TarBuilder::new().header(&mut header).unfinished();
    let unit = compress::pack(&vec![0; BOMB_UNIT as usize], compression);
    Pieces::new(compress::pack(&head, compression), units, move |_, out| out.extend_from_slice(&unit), {
        compress::pack(&[0; 2 * BLOCK], compression)
    })
}

/// A plain tar of `count` empty files, a thousand in each directory.
pub fn many_entries(count: u64) -> impl Read + Send + use<> {
    let make = |i: u64, out: &mut Vec<u8>| {
        let mut tar = TarBuilder::new();
        if i.is_multiple_of(1000) {
            tar.push(&Entry::dir(format!("d{:06}", i / 1000)));
        }
        tar.push(&Entry::file(format!("d{:06}/f{i:09}", i / 1000), ""));
        out.extend_from_slice(&tar.unfinished());
    };
    Pieces::new(Vec::new(), count, make, vec![0; 2 * BLOCK])
}

/// Reads a head, `count` pieces made one at a time, and a tail.
struct Pieces<F> {
    next: u64,
    count: u64,
    make: F,
    tail: Option<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl<F: FnMut(u64, &mut Vec<u8>)> Pieces<F> {
    fn new(head: Vec<u8>, count: u64, make: F, tail: Vec<u8>) -> Self {
        Self { next: 0, count, make, tail: Some(tail), piece: head, at: 0 }
    }
}

impl<F: FnMut(u64, &mut Vec<u8>)> Read for Pieces<F> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            self.piece.clear();
            self.at = 0;
            if self.next < self.count {
                (self.make)(self.next, &mut self.piece);
                self.next += 1;
            } else if let Some(tail) = self.tail.take() {
                self.piece = tail;
            } else {
                return Ok(0);
            }
        }
        let length = out.len().min(self.piece.len() - self.at);
        out[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
