//! Huffman codes as tables (RFC 1951, 3.2).
//!
//! An entry says everything about the symbol that the next bits begin with:
//! ```text
//! bits 0..6    how many bits the symbol takes, its extra bits included
//! bits 8..12   how many of them are the code
//! bit  13      the end of the block
//! bit  14      the code is longer than the table's bits: `value` is where its second table begins, bits 8..12 that one's bits
//! bit  15      none of what it stands for can be written: the end, a second table, or no code at all
//! bits 16..31  value: a literal, or what extra bits are added to
//! bit  31      a literal
//! ```

use std::io;

/// A literal.
pub(crate) const LITERAL: u32 = 1 << 31;
/// Not a literal, a length or a distance.
pub(crate) const SPECIAL: u32 = 1 << 15;
/// The code goes on in a second table.
pub(crate) const LONGER: u32 = 1 << 14;
/// The end of the block.
pub(crate) const END: u32 = 1 << 13;

/// Bits of the first table of literals and lengths: nearly all codes, in 8 KiB.
pub(crate) const LITERAL_BITS: u32 = 11;
/// Bits of the first table of distances.
pub(crate) const DISTANCE_BITS: u32 = 8;
/// Bits of the one table of code lengths, whose codes are no longer.
const LENGTH_BITS: u32 = 7;
/// Bits of the longest code.
const LONGEST: usize = 15;

/// Entries of both tables of literals and lengths: no code needs more than 2,342.
pub(crate) const LITERAL_ENTRIES: usize = 4096;
/// Entries of both tables of distances: no code needs more than 402.
pub(crate) const DISTANCE_ENTRIES: usize = 512;

/// Symbols of literals and lengths, the two included that only the fixed code has.
const LITERALS: usize = 288;
/// Symbols of distances, the same.
const DISTANCES: usize = 32;

/// How many bits an entry takes.
pub(crate) const fn taken(entry: u32) -> u32 {
    entry & 0x3f
}

/// How many bits of an entry are its code, or how many its second table has.
pub(crate) const fn code_bits(entry: u32) -> u32 {
    (entry >> 8) & 0xf
}

/// What an entry stands for.
pub(crate) const fn value(entry: u32) -> usize {
    ((entry >> 16) & 0x7fff) as usize
}

/// The codes of one block.
pub(crate) struct Codes {
    pub(crate) literals: Box<[u32; LITERAL_ENTRIES]>,
    pub(crate) distances: Box<[u32; DISTANCE_ENTRIES]>,
    /// The fixed code is in the tables.
    is_fixed: bool,
}

impl Codes {
    pub(crate) fn new() -> Self {
        Self {
            literals: Box::new([SPECIAL; LITERAL_ENTRIES]),
            distances: Box::new([SPECIAL; DISTANCE_ENTRIES]),
            is_fixed: false,
        }
    }

    /// The code that needs no description.
    pub(crate) fn set_fixed(&mut self) -> io::Result<()> {
        if self.is_fixed {
            return Ok(());
        }
        let mut lengths = [8; LITERALS];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        self.set(&lengths, &[5; DISTANCES])?;
        self.is_fixed = true;
        Ok(())
    }

    /// Codes by the lengths of their symbols.
    pub(crate) fn set(&mut self, literals: &[u8], distances: &[u8]) -> io::Result<()> {
        self.is_fixed = false;
        build(&mut self.literals[..], LITERAL_BITS, literals, literal, Lone::Allowed)?;
        build(&mut self.distances[..], DISTANCE_BITS, distances, distance, Lone::Allowed)
    }
}

/// The code by which the lengths of a block's codes are written.
pub(crate) struct LengthCode([u32; 1 << LENGTH_BITS]);

impl LengthCode {
    pub(crate) fn new(lengths: &[u8; 19]) -> io::Result<Self> {
        let mut table = [SPECIAL; 1 << LENGTH_BITS];
        build(&mut table, LENGTH_BITS, lengths, |symbol| (symbol as u32) << 16, Lone::Refused)?;
        Ok(Self(table))
    }

    pub(crate) fn look(&self, bits: u64) -> u32 {
        self.0[bits as usize & ((1 << LENGTH_BITS) - 1)]
    }
}

/// Whether a code may have one symbol, of one bit, and leave the other bit without meaning: encoders write that where a block has one
/// distance.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lone {
    Allowed,
    Refused,
}

/// Fills a table of `bits` bits, and the second tables behind it, with the code whose symbols have these lengths.
fn build(table: &mut [u32], bits: u32, lengths: &[u8], entry: impl Fn(usize) -> u32, lone: Lone) -> io::Result<()> {
    let mut counts = [0_u32; LONGEST + 1];
    lengths.iter().for_each(|length| counts[usize::from(*length)] += 1);
    counts[0] = 0;
    let longest = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    // Codes of each length begin where those of the lengths before end (3.2.2).
    let (mut first, mut code, mut left) = ([0_u32; LONGEST + 1], 0, 1_i32);
    for length in 1..=LONGEST {
        first[length] = code;
        left = (left << 1) - counts[length] as i32;
        if left < 0 {
            return Err(invalid("a code has more symbols than its lengths allow"));
        }
        code = (code + counts[length]) << 1;
    }
    let is_whole = left == 0 || longest == 0 || (longest == 1 && lone == Lone::Allowed);
    if !is_whole || (longest == 0 && lone == Lone::Refused) {
        return Err(invalid("a code has fewer symbols than its lengths allow"));
    }
    table[..1 << bits].fill(SPECIAL);
    let order = by_length(lengths, &counts);
    let mut next = 1 << bits;
    for symbol in &order[..counts.iter().sum::<u32>() as usize] {
        let symbol = usize::from(*symbol);
        let length = u32::from(lengths[symbol]);
        let code = first[length as usize];
        first[length as usize] += 1;
        let reversed = code.reverse_bits() >> (32 - length);
        if length <= bits {
            spread(&mut table[..1 << bits], reversed, length, with_code(entry(symbol), length));
        } else {
            let (low, high) = ((reversed & ((1 << bits) - 1)) as usize, reversed >> bits);
            if table[low] & LONGER == 0 {
                let width = width(&counts, length, bits);
                table[low] = SPECIAL | LONGER | (next as u32) << 16 | width << 8 | bits;
                next += 1 << width;
            }
            let (start, end) = (value(table[low]), value(table[low]) + (1 << code_bits(table[low])));
            spread(&mut table[start..end], high, length - bits, with_code(entry(symbol), length - bits));
        }
        counts[length as usize] -= 1;
    }
    Ok(())
}

/// The symbols that have codes, by the lengths of those and by their values: so the codes come in order.
fn by_length(lengths: &[u8], counts: &[u32; LONGEST + 1]) -> [u16; LITERALS] {
    let (mut order, mut at) = ([0; LITERALS], [0; LONGEST + 2]);
    for length in 1..=LONGEST {
        at[length + 1] = at[length] + counts[length] as usize;
    }
    for (symbol, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        let slot = &mut at[usize::from(*length)];
        order[*slot] = symbol as u16;
        *slot += 1;
    }
    order
}

/// The bits of a second table that begins with a code of `length` bits: as many as make room for what is to come of the same beginning.
fn width(counts: &[u32; LONGEST + 1], length: u32, bits: u32) -> u32 {
    let (mut width, mut filled) = (length - bits, counts[length as usize]);
    while filled < 1 << width && ((bits + width) as usize) < LONGEST {
        width += 1;
        filled = (filled << 1) + counts[(bits + width) as usize];
    }
    width
}

/// Writes an entry wherever its code is what the index begins with.
fn spread(table: &mut [u32], code: u32, length: u32, entry: u32) {
    table.iter_mut().skip(code as usize).step_by(1 << length).for_each(|slot| *slot = entry);
}

/// The entry of a symbol whose code has so many bits.
const fn with_code(entry: u32, length: u32) -> u32 {
    entry + (length << 8) + length
}

/// A literal, the end, or a length from 3 on (3.2.5).
fn literal(symbol: usize) -> u32 {
    const BASES: [u16; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227,
        258,
    ];
    match symbol {
        0..256 => LITERAL | (symbol as u32) << 16,
        256 => SPECIAL | END,
        257..286 => {
            let index = symbol as u32 - 257;
            let extra = if (8..28).contains(&index) { index / 4 - 1 } else { 0 };
            u32::from(BASES[index as usize]) << 16 | extra
        }
        _ => SPECIAL,
    }
}

/// A distance from 1 on.
fn distance(symbol: usize) -> u32 {
    let symbol = symbol as u32;
    match symbol {
        0..4 => (symbol + 1) << 16,
        4..30 => {
            let extra = symbol / 2 - 1;
            (((2 + symbol % 2) << extra) + 1) << 16 | extra
        }
        _ => SPECIAL,
    }
}

pub(crate) fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
