//! A reader of which nobody knows how many bytes it gives at a time.

use std::io::{self, Read};

/// Gives one to five bytes, now more, now fewer.
#[derive(Debug)]
pub struct Dripping<'a>(pub &'a [u8]);

impl Read for Dripping<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = out.len().min(self.0.len()).min(1 + self.0.len() % 5);
        out[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}
