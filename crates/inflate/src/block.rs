//! The decoder: blocks one after the other, into the caller's room.
//!
//! A match may reach back into what was given out before; of that the last 32 KiB are kept. Matches that do not fit into the room
//! go on in the next.

use std::io::{self, Read};

use crate::codes::{
    Codes, DISTANCE_BITS, DISTANCE_ENTRIES, END, LITERAL, LITERAL_BITS, LITERAL_ENTRIES, LONGER, LengthCode, SPECIAL,
    code_bits, invalid, taken, value,
};
use crate::input::Input;

/// How far back a match reaches at most.
const WINDOW: usize = 32 << 10;
/// Bytes that one round of the loop may read: twice what fills 64 bits, less what must be left of them.
const ROUND_INPUT: usize = 16;
/// Bytes that one round of the loop may write: three literals, the longest match, and what copying by words writes beyond its end.
const ROUND_OUTPUT: usize = 3 + 258 + WORD;
/// Bytes copied at once.
const WORD: usize = 16;

/// The order in which the lengths of the length code come (RFC 1951, 3.2.7).
const LENGTH_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Where a stream is.
#[derive(Clone, Copy)]
enum State {
    /// Before a block.
    Between,
    /// In a block without codes, of which so many bytes are to come.
    Stored(usize),
    /// In a block with codes.
    Coded,
    /// Behind the last block.
    Ended,
}

/// One deflate stream.
pub(crate) struct Block {
    state: State,
    is_last: bool,
    codes: Codes,
    /// A match that did not fit: how much is left of it, and from how far back.
    rest: (usize, usize),
    /// What was given out last, at its end.
    window: Box<[u8; WINDOW]>,
    /// How much of it is there.
    known: usize,
}

/// Why the loop ended.
enum Stop {
    /// Input or room do not suffice for another round.
    Edge,
    EndOfBlock,
}

impl Block {
    pub(crate) fn new() -> Self {
        let window = Box::new([0; WINDOW]);
        Self { state: State::Between, is_last: false, codes: Codes::new(), rest: (0, 0), window, known: 0 }
    }

    /// Begins another stream.
    pub(crate) fn restart(&mut self) {
        (self.state, self.is_last, self.rest, self.known) = (State::Between, false, (0, 0), 0);
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Fills the room, unless the stream ends before.
    pub(crate) fn fill<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> io::Result<usize> {
        let mut at = 0;
        loop {
            at = self.copy_rest(out, at)?;
            if at == out.len() && !out.is_empty() {
                break;
            }
            match self.state {
                State::Between => self.begin(input)?,
                State::Stored(0) => self.end(),
                State::Stored(left) => {
                    let room = left.min(out.len() - at);
                    match input.copy(&mut out[at..at + room])? {
                        0 if room > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        copied => {
                            at += copied;
                            self.state = State::Stored(left - copied);
                        }
                    }
                    if room == 0 {
                        break;
                    }
                }
                State::Coded => {
                    input.fill(ROUND_INPUT)?;
                    let (now, stop) = self.rounds(input, out, at)?;
                    at = now;
                    match stop {
                        Stop::EndOfBlock => self.end(),
                        Stop::Edge if at == out.len() => break,
                        Stop::Edge => at = self.step(input, out, at)?,
                    }
                }
                State::Ended => break,
            }
        }
        self.keep(&out[..at]);
        Ok(at)
    }

    fn end(&mut self) {
        self.state = if self.is_last { State::Ended } else { State::Between };
    }

    /// Reads what a block begins with.
    fn begin<R: Read>(&mut self, input: &mut Input<R>) -> io::Result<()> {
        self.is_last = input.take_bits(1)? == 1;
        self.state = State::Coded;
        match input.take_bits(2)? {
            0 => {
                input.align();
                let (length, check) = (input.take_bits(16)?, input.take_bits(16)?);
                if length != !check & 0xffff {
                    return Err(invalid("a block's length does not match its check"));
                }
                self.state = State::Stored(length as usize);
                Ok(())
            }
            1 => self.codes.set_fixed(),
            2 => self.read_codes(input),
            _ => Err(invalid("a block is of a kind that there is not")),
        }
    }

    fn read_codes<R: Read>(&mut self, input: &mut Input<R>) -> io::Result<()> {
        let literals = input.take_bits(5)? as usize + 257;
        let distances = input.take_bits(5)? as usize + 1;
        let described = input.take_bits(4)? as usize + 4;
        if literals > 286 || distances > 30 {
            return Err(invalid("a block has more symbols than there are"));
        }
        let mut lengths = [0; 19];
        for at in &LENGTH_ORDER[..described] {
            lengths[*at] = input.take_bits(3)? as u8;
        }
        let code = LengthCode::new(&lengths)?;
        let (mut lengths, mut at) = ([0_u8; 286 + 30], 0);
        while at < literals + distances {
            input.refill()?;
            let entry = code.look(input.bits);
            if entry & SPECIAL != 0 {
                return Err(invalid("bits are no code"));
            }
            input.drop_bits(taken(entry))?;
            let (length, count) = match value(entry) {
                16 if at == 0 => return Err(invalid("a length repeats none")),
                16 => (lengths[at - 1], 3 + input.take_bits(2)?),
                17 => (0, 3 + input.take_bits(3)?),
                18 => (0, 11 + input.take_bits(7)?),
                length => (length as u8, 1),
            };
            let end = at + count as usize;
            if end > literals + distances {
                return Err(invalid("there are more lengths than symbols"));
            }
            lengths[at..end].fill(length);
            at = end;
        }
        if lengths[256] == 0 {
            return Err(invalid("a block has no code for its end"));
        }
        self.codes.set(&lengths[..literals], &lengths[literals..at])
    }

    /// One symbol, at an edge; with its distance, if it has one.
    fn step<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8], at: usize) -> io::Result<usize> {
        input.refill()?;
        let entry = look(&self.codes.literals[..], LITERAL_BITS, input)?;
        if entry & LITERAL != 0 {
            out[at] = value(entry) as u8;
            return Ok(at + 1);
        }
        if entry & SPECIAL != 0 {
            self.end();
            return Ok(at);
        }
        let length = value(entry) + input.take_bits(taken(entry) - code_bits(entry))? as usize;
        input.refill()?;
        let entry = look(&self.codes.distances[..], DISTANCE_BITS, input)?;
        let distance = value(entry) + input.take_bits(taken(entry) - code_bits(entry))? as usize;
        self.rest = (length, distance);
        self.check(distance, at)?;
        Ok(at)
    }

    fn check(&self, distance: usize, at: usize) -> io::Result<()> {
        if distance > at + self.known { Err(invalid("a match reaches back before the beginning")) } else { Ok(()) }
    }

    /// Copies what is left of a match, as far as it fits.
    fn copy_rest(&mut self, out: &mut [u8], mut at: usize) -> io::Result<usize> {
        let (mut length, distance) = self.rest;
        while length > 0 && at < out.len() {
            out[at] = if distance > at { self.window[WINDOW + at - distance] } else { out[at - distance] };
            (at, length) = (at + 1, length - 1);
        }
        self.rest.0 = length;
        Ok(at)
    }

    /// Keeps the end of what is given out.
    fn keep(&mut self, out: &[u8]) {
        let count = out.len().min(WINDOW);
        if count < WINDOW {
            self.window.copy_within(count.., 0);
        }
        self.window[WINDOW - count..].copy_from_slice(&out[out.len() - count..]);
        self.known = (self.known + count).min(WINDOW);
    }

    /// Decodes for as long as no edge is near.
    fn rounds<R: Read>(&self, input: &mut Input<R>, out: &mut [u8], at: usize) -> io::Result<(usize, Stop)> {
        let rounds = Rounds {
            input: &input.buffer[..input.end],
            literals: &self.codes.literals,
            distances: &self.codes.distances,
            window: &self.window,
            known: self.known,
        };
        let (hand, at, stop) = run(&rounds, Hand { at: input.at, bits: input.bits, count: input.count }, out, at)?;
        // Bits above those that count are the next bytes', which come again.
        (input.at, input.count, input.bits) = (hand.at, hand.count, hand.bits & ((1 << hand.count) - 1));
        Ok((at, stop))
    }
}

/// The entry of the next symbol, of which the code is dropped, at an edge.
fn look<R: Read>(table: &[u32], bits: u32, input: &mut Input<R>) -> io::Result<u32> {
    let mut entry = table[input.bits as usize & ((1 << bits) - 1)];
    if entry & LONGER != 0 {
        input.drop_bits(bits)?;
        entry = table[value(entry) + (input.bits as usize & ((1 << code_bits(entry)) - 1))];
    }
    if entry & SPECIAL != 0 && entry & END == 0 {
        return Err(if input.count < 15 { io::ErrorKind::UnexpectedEof.into() } else { invalid("bits are no code") });
    }
    input.drop_bits(code_bits(entry))?;
    Ok(entry)
}

/// What the loop reads.
struct Rounds<'a> {
    input: &'a [u8],
    literals: &'a [u32; LITERAL_ENTRIES],
    distances: &'a [u32; DISTANCE_ENTRIES],
    window: &'a [u8; WINDOW],
    known: usize,
}

/// The bits at hand, as [`Input`] has them; a copy of its own, that the loop keeps in registers.
#[derive(Clone, Copy)]
struct Hand {
    at: usize,
    bits: u64,
    count: u32,
}

impl Hand {
    /// Takes whole bytes to hand, so that there are at least 56 bits.
    #[inline(always)]
    fn refill(&mut self, input: &[u8]) {
        let Some(next) = input.get(self.at..self.at + 8).and_then(|next| next.first_chunk::<8>()) else { return };
        self.bits |= u64::from_le_bytes(*next) << self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[inline(always)]
    fn drop(&mut self, count: u32) {
        self.bits >>= count;
        self.count -= count;
    }

    /// Writes a literal.
    #[inline(always)]
    fn put(&mut self, entry: u32, out: &mut [u8], at: usize) -> usize {
        self.drop(taken(entry));
        out[at] = (entry >> 16) as u8;
        at + 1
    }

    /// What an entry stands for, its extra bits included.
    #[inline(always)]
    fn amount(&mut self, entry: u32) -> usize {
        let extra = (self.bits & ((1 << taken(entry)) - 1)) >> code_bits(entry);
        self.drop(taken(entry));
        value(entry) + extra as usize
    }
}

type Ran = io::Result<(Hand, usize, Stop)>;

fn run(rounds: &Rounds<'_>, hand: Hand, out: &mut [u8], at: usize) -> Ran {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { run_bmi2(rounds, hand, out, at) };
    }
    rounds.run(hand, out, at)
}

/// The loop with shifts that leave the flags alone.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi2")]
fn run_bmi2(rounds: &Rounds<'_>, hand: Hand, out: &mut [u8], at: usize) -> Ran {
    rounds.run(hand, out, at)
}

impl Rounds<'_> {
    #[inline(always)]
    fn run(&self, mut hand: Hand, out: &mut [u8], mut at: usize) -> Ran {
        let last_input = self.input.len().saturating_sub(ROUND_INPUT);
        let last_room = out.len().saturating_sub(ROUND_OUTPUT);
        if self.input.len() < ROUND_INPUT || out.len() < ROUND_OUTPUT || hand.at > last_input || at > last_room {
            return Ok((hand, at, Stop::Edge));
        }
        hand.refill(self.input);
        let mut entry = self.literal(hand.bits);
        'rounds: loop {
            // Three codes of the first table and what a length takes are at hand: 3 * 11 + 15 + 5 bits.
            'literal: {
                if entry & LITERAL != 0 {
                    at = hand.put(entry, out, at);
                    entry = self.literal(hand.bits);
                    if entry & LITERAL != 0 {
                        at = hand.put(entry, out, at);
                        entry = self.literal(hand.bits);
                        if entry & LITERAL != 0 {
                            break 'literal;
                        }
                    }
                }
                if entry & SPECIAL != 0 {
                    entry = self.special(&mut hand, entry)?;
                    if entry & LITERAL != 0 {
                        break 'literal;
                    }
                    if entry & SPECIAL != 0 {
                        hand.drop(taken(entry));
                        return Ok((hand, at, Stop::EndOfBlock));
                    }
                }
                let length = hand.amount(entry);
                hand.refill(self.input);
                let distance = self.distance(&mut hand)?;
                let goes_on = hand.at <= last_input;
                // The next symbol is looked for before the match is copied: neither waits for the other.
                hand.refill(self.input);
                entry = self.literal(hand.bits);
                at = self.copy(out, at, length, distance)?;
                if !goes_on || at > last_room {
                    break 'rounds;
                }
                continue 'rounds;
            }
            at = hand.put(entry, out, at);
            if hand.at > last_input || at > last_room {
                break;
            }
            entry = self.literal(hand.bits);
            hand.refill(self.input);
        }
        Ok((hand, at, Stop::Edge))
    }

    #[inline(always)]
    fn literal(&self, bits: u64) -> u32 {
        self.literals[bits as usize & ((1 << LITERAL_BITS) - 1)]
    }

    /// What stands in a second table, or ends the block.
    #[inline(always)]
    fn special(&self, hand: &mut Hand, mut entry: u32) -> io::Result<u32> {
        if entry & LONGER != 0 {
            hand.drop(LITERAL_BITS);
            let index = value(entry) + (hand.bits as usize & ((1 << code_bits(entry)) - 1));
            entry = self.literals[index % LITERAL_ENTRIES];
        }
        if entry & SPECIAL != 0 && entry & END == 0 { Err(invalid("bits are no code")) } else { Ok(entry) }
    }

    #[inline(always)]
    fn distance(&self, hand: &mut Hand) -> io::Result<usize> {
        let mut entry = self.distances[hand.bits as usize & ((1 << DISTANCE_BITS) - 1)];
        if entry & SPECIAL != 0 {
            if entry & LONGER != 0 {
                hand.drop(DISTANCE_BITS);
                let index = value(entry) + (hand.bits as usize & ((1 << code_bits(entry)) - 1));
                entry = self.distances[index % DISTANCE_ENTRIES];
            }
            if entry & SPECIAL != 0 {
                return Err(invalid("bits are no code"));
            }
        }
        Ok(hand.amount(entry))
    }

    /// Copies a match, by words where they do not overlap; what is written behind it is overwritten by what comes.
    #[inline(always)]
    fn copy(&self, out: &mut [u8], at: usize, length: usize, distance: usize) -> io::Result<usize> {
        if distance > at {
            return self.copy_from_before(out, at, length, distance);
        }
        if distance >= WORD {
            copy_words::<WORD>(out, at, length, distance);
        } else if distance >= 8 {
            copy_words::<8>(out, at, length, distance);
        } else if distance == 1 {
            let byte = out[at - 1];
            out[at..at + length].fill(byte);
        } else {
            copy_pattern(out, at, length, distance);
        }
        Ok(at + length)
    }

    /// Copies a match that begins in what was given out before.
    #[cold]
    fn copy_from_before(&self, out: &mut [u8], at: usize, length: usize, distance: usize) -> io::Result<usize> {
        let back = distance - at;
        if back > self.known {
            return Err(invalid("a match reaches back before the beginning"));
        }
        let count = length.min(back);
        out[at..at + count].copy_from_slice(&self.window[WINDOW - back..WINDOW - back + count]);
        for offset in count..length {
            out[at + offset] = out[at + offset - distance];
        }
        Ok(at + length)
    }
}

/// Copies words that lie at least their length apart.
#[inline(always)]
fn copy_words<const N: usize>(out: &mut [u8], at: usize, length: usize, distance: usize) {
    let (before, room) = out.split_at_mut(at);
    let source = &before[at - distance..];
    if length <= N {
        room[..N].copy_from_slice(&source[..N]);
        return;
    }
    let (mut from, mut to, end) = (at - distance, at, at + length);
    while to < end {
        let word: [u8; N] = *out[from..].first_chunk().expect("before the end");
        out[to..to + N].copy_from_slice(&word);
        (from, to) = (from + N, to + N);
    }
}

/// Copies a match that overlaps with itself: its beginning first, then what is there again and again, twice as much each time.
#[inline(never)]
fn copy_pattern(out: &mut [u8], at: usize, length: usize, distance: usize) {
    let end = at + length;
    let (start, mut to) = (at - distance, at);
    while to < end {
        let count = (to - start).min(end - to);
        out.copy_within(start..start + count, to);
        to += count;
    }
}
