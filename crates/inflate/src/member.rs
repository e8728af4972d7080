//! gzip's members: headers, trailers and checksums around deflate streams.

use std::io::{self, Read};

use crate::block::Block;
use crate::codes::invalid;
use crate::input::Input;

/// Flags of a header (RFC 1952, 2.3.1).
const HEADER_CHECK: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
/// Whoever sets one of these means something that is not known.
const RESERVED: u8 = 0b1110_0000;

/// Unpacks a gzip stream of any number of members while it is read.
///
/// Each `read` fills the whole buffer unless the stream ends; it is fastest with buffers of 64 KiB to 1 MiB. What was read of a stream
/// counts only when its end was read without an error.
///
/// # Errors
/// `UnexpectedEof` if the stream is cut, `InvalidData` with the reason if it is not gzip, or has other bytes than its checksums say; the
/// reader's own errors as they are.
pub struct Gunzip<R> {
    input: Input<R>,
    block: Block,
    sum: crc32fast::Hasher,
    /// Within a member: what came out of it so far, modulo 2^32. `None` between two.
    length: Option<u32>,
    /// A member was there: others may follow, or the end.
    begun: bool,
}

impl<R: Read> Gunzip<R> {
    /// Unpacks what `reader` gives.
    pub fn new(reader: R) -> Self {
        Self {
            input: Input::new(reader),
            block: Block::new(),
            sum: crc32fast::Hasher::new(),
            length: None,
            begun: false,
        }
    }

    /// The reader, of which more may have been read than was unpacked.
    pub fn get_ref(&self) -> &R {
        &self.input.reader
    }

    /// The same, to change it.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.input.reader
    }

    /// Reads a header.
    fn begin(&mut self) -> io::Result<()> {
        let mut header = Header { input: &mut self.input, sum: crc32fast::Hasher::new() };
        let [one, two, method, flags] = [header.byte()?, header.byte()?, header.byte()?, header.byte()?];
        if [one, two] != [0x1f, 0x8b] {
            return Err(invalid(if self.begun { "what follows a member is none" } else { "it is not gzip" }));
        }
        if method != 8 {
            return Err(invalid("it is packed by another method than deflate"));
        }
        if flags & RESERVED != 0 {
            return Err(invalid("a header has flags that there are not"));
        }
        header.skip(6)?;
        if flags & EXTRA != 0 {
            let length = u16::from_le_bytes([header.byte()?, header.byte()?]);
            header.skip(length.into())?;
        }
        for field in [NAME, COMMENT] {
            while flags & field != 0 && header.byte()? != 0 {}
        }
        if flags & HEADER_CHECK != 0 {
            let sum = header.sum.clone().finalize() as u16;
            if u16::from_le_bytes([header.byte()?, header.byte()?]) != sum {
                return Err(invalid("a header does not match its checksum"));
            }
        }
        self.begun = true;
        self.length = Some(0);
        self.sum.reset();
        self.block.restart();
        Ok(())
    }

    /// Reads a trailer.
    fn end(&mut self, length: u32) -> io::Result<()> {
        self.input.align();
        let sum = word(&mut self.input)?;
        if sum != self.sum.clone().finalize() {
            return Err(invalid("what was unpacked does not match its checksum"));
        }
        if word(&mut self.input)? != length {
            return Err(invalid("what was unpacked does not match its length"));
        }
        self.length = None;
        Ok(())
    }
}

/// A number of four bytes.
fn word<R: Read>(input: &mut Input<R>) -> io::Result<u32> {
    Ok(input.take_bits(16)? | input.take_bits(16)? << 16)
}

struct Header<'a, R> {
    input: &'a mut Input<R>,
    sum: crc32fast::Hasher,
}

impl<R: Read> Header<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = self.input.take_byte()?;
        self.sum.update(&[byte]);
        Ok(byte)
    }

    fn skip(&mut self, count: u32) -> io::Result<()> {
        (0..count).try_for_each(|_| self.byte().map(drop))
    }
}

impl<R: Read> Read for Gunzip<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let Some(length) = self.length else {
                if self.begun && self.input.is_at_end()? {
                    break;
                }
                self.begin()?;
                continue;
            };
            let count = self.block.fill(&mut self.input, &mut out[filled..])?;
            self.sum.update(&out[filled..filled + count]);
            let length = length.wrapping_add(count as u32);
            self.length = Some(length);
            filled += count;
            if self.block.has_ended() {
                self.end(length)?;
            }
        }
        Ok(filled)
    }
}
