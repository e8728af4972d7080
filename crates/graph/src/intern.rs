//! Digests as small numbers.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use orlop_oci::Digest;

/// A digest's number.
pub(crate) type Number = u32;

/// Hashes eight bytes at a time, from a start that differs from process to process: digests are spread evenly already.
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

impl FastHasher {
    fn add(&mut self, word: u64) {
        // A folded multiplication: both halves of the product reach the state.
        let product = u128::from(self.0 ^ word) * 0x9E37_79B9_7F4A_7C15_u128;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.add(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.add(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, value: u8) {
        self.0 ^= u64::from(value);
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) type FastMap<K, V> = HashMap<K, V, Fast>;

/// Numbers digests in the order of their first sight.
///
/// A table of numbers with linear probing. The hashes are kept, so that growing looks at no digest, and comparing
/// looks at few.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    hasher: Fast,
    /// A power of two long, at most half full; `EMPTY` where there is nothing.
    slots: Vec<Number>,
    hashes: Vec<u64>,
    digests: Vec<Digest>,
}

const EMPTY: Number = Number::MAX;

impl Digests {
    pub(crate) fn add(&mut self, digest: &Digest) -> Number {
        if self.slots.len() <= 2 * self.digests.len() {
            self.grow();
        }
        let hash = self.hasher.hash_one(digest);
        let slot = self.slot(hash, digest);
        if self.slots[slot] == EMPTY {
            self.slots[slot] = self.digests.len() as Number;
            self.hashes.push(hash);
            self.digests.push(digest.clone());
        }
        self.slots[slot]
    }

    pub(crate) fn get(&self, digest: &Digest) -> Option<Number> {
        if self.slots.is_empty() {
            return None;
        }
        let number = self.slots[self.slot(self.hasher.hash_one(digest), digest)];
        (number != EMPTY).then_some(number)
    }

    /// Where a digest is, or would be.
    fn slot(&self, hash: u64, digest: &Digest) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let number = self.slots[slot];
            let known = number as usize;
            if number == EMPTY || (self.hashes[known] == hash && self.digests[known] == *digest) {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let length = (self.slots.len() * 4).max(1 << 10);
        self.slots = vec![EMPTY; length];
        for (number, hash) in self.hashes.iter().enumerate() {
            let mut slot = *hash as usize & (length - 1);
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & (length - 1);
            }
            self.slots[slot] = number as Number;
        }
    }

    pub(crate) fn digest(&self, number: Number) -> &Digest {
        &self.digests[number as usize]
    }

    pub(crate) fn len(&self) -> usize {
        self.digests.len()
    }
}

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
