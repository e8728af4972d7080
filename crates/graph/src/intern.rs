//! Numbers: maps by them, sets of them.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A digest's number.
pub(crate) type Number = orlop_oci::DigestNumber;

/// Hashes numbers from a start that differs from process to process.
#[derive(Debug, Clone)]
pub(crate) struct Fast(u64);

impl Default for Fast {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for Fast {
    type Hasher = FastHasher;

    fn build_hasher(&self) -> FastHasher {
        FastHasher(self.0)
    }
}

pub(crate) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, value: u32) {
        // A folded multiplication: both halves of the product reach the state.
        let product = u128::from(self.0 ^ u64::from(value)) * 0x9E37_79B9_7F4A_7C15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) type FastMap<K, V> = HashMap<K, V, Fast>;

/// A set of numbers that is emptied in constant time.
#[derive(Debug)]
pub(crate) struct Marks {
    round: u32,
    seen: Vec<u32>,
}

impl Marks {
    pub(crate) fn new(length: usize) -> Self {
        Self { round: 1, seen: vec![0; length] }
    }

    pub(crate) fn clear(&mut self) {
        self.round += 1;
    }

    /// Adds a number; says whether it is new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        let slot = &mut self.seen[number as usize];
        let new = *slot != self.round;
        *slot = self.round;
        new
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.seen[number as usize] == self.round
    }
}

/// A set of numbers, a bit each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    /// An empty set that needs no more memory for numbers below `length`.
    pub(crate) fn with_length(length: usize) -> Self {
        Self(vec![0; length.div_ceil(64)])
    }

    pub(crate) fn insert(&mut self, number: Number) {
        let word = number as usize / 64;
        if self.0.len() <= word {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    pub(crate) fn contains(&self, number: Number) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }
}
