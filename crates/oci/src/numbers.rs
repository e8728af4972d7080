//! Digests as small numbers, for whoever must look at hundreds of thousands of them.
//!
//! A [`DigestTable`] gives each digest the number of its first sight, counting from 0. It keeps the raw bytes of a
//! hash, a third of its text, and makes a [`Digest`] again only when asked. It never forgets a digest.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::digest::decode_hex;
use crate::{Algorithm, Digest, DigestError};

/// The number of a digest in a [`DigestTable`].
pub type DigestNumber = u32;

const EMPTY: DigestNumber = DigestNumber::MAX;
const BYTES: usize = 32;

/// Numbers digests in the order of their first sight.
///
/// A table of numbers with linear probing, hashed from a start that differs from process to process: somebody who
/// chooses digests cannot choose where they land. Digests of other algorithms than SHA-256 are rare and kept as they are.
#[derive(Debug, Clone)]
pub struct DigestTable {
    seed: u64,
    /// A power of two long, at most half full; `EMPTY` where there is nothing.
    slots: Vec<DigestNumber>,
    /// By number: the hash; zeros for what is in `others`.
    hashes: Vec<[u8; BYTES]>,
    others: HashMap<Digest, DigestNumber>,
    others_back: HashMap<DigestNumber, Digest>,
}

impl Default for DigestTable {
    fn default() -> Self {
        Self {
            seed: RandomState::new().hash_one(0u8),
            slots: Vec::new(),
            hashes: Vec::new(),
            others: HashMap::new(),
            others_back: HashMap::new(),
        }
    }
}

impl DigestTable {
    /// An empty table with room for that many digests.
    pub fn with_capacity(digests: usize) -> Self {
        let mut table = Self { hashes: Vec::with_capacity(digests), ..Self::default() };
        table.grow((2 * digests).next_power_of_two());
        table
    }

    /// How many digests have a number.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// The number of a digest, a new one if it has none yet.
    pub fn add(&mut self, digest: &Digest) -> DigestNumber {
        match raw(digest) {
            Some(hash) => self.add_sha256(&hash),
            None => self.add_other(digest),
        }
    }

    /// The same for a text.
    ///
    /// # Errors
    /// As for a [`Digest`] that is parsed.
    pub fn add_text(&mut self, text: &str) -> Result<DigestNumber, DigestError> {
        match text.strip_prefix("sha256:").and_then(|hex| decode_hex(hex.as_bytes())) {
            Some(hash) => Ok(self.add_sha256(&hash)),
            None => Ok(self.add(&text.parse()?)),
        }
    }

    /// The same for the bytes of a hash; `None` if they are not as many as the algorithm makes.
    pub fn add_bytes(&mut self, algorithm: Algorithm, hash: &[u8]) -> Option<DigestNumber> {
        match (algorithm, <&[u8; BYTES]>::try_from(hash)) {
            (Algorithm::Sha256, Ok(hash)) => Some(self.add_sha256(hash)),
            _ => Some(self.add_other(&Digest::from_bytes(algorithm, hash)?)),
        }
    }

    /// The number of a digest, if it has one.
    pub fn get(&self, digest: &Digest) -> Option<DigestNumber> {
        let Some(hash) = raw(digest) else { return self.others.get(digest).copied() };
        let number = *self.slots.get(self.slot(&hash)?)?;
        (number != EMPTY).then_some(number)
    }

    /// The number of a digest given as text, if it has one. `guesses` are compared first: who reads again what he has read
    /// before knows most numbers, and looking at them in their order costs less than searching.
    ///
    /// # Panics
    /// If a guess is no number of this table.
    pub fn get_text(&self, text: &str, guesses: impl IntoIterator<Item = DigestNumber>) -> Option<DigestNumber> {
        let Some(hash) = text.strip_prefix("sha256:").and_then(|hex| decode_hex::<BYTES>(hex.as_bytes())) else {
            return self.get(&text.parse().ok()?);
        };
        let is_it = |guess: &DigestNumber| {
            self.hashes[*guess as usize] == hash && (hash != [0; BYTES] || !self.others_back.contains_key(guess))
        };
        guesses.into_iter().find(is_it).or_else(|| {
            let number = *self.slots.get(self.slot(&hash)?)?;
            (number != EMPTY).then_some(number)
        })
    }

    /// The digest with a number that this table gave.
    ///
    /// # Panics
    /// If it did not.
    pub fn digest(&self, number: DigestNumber) -> Digest {
        match self.others_back.get(&number) {
            Some(digest) => digest.clone(),
            None => Digest::from_hash(Algorithm::Sha256, &self.hashes[number as usize]),
        }
    }

    fn add_sha256(&mut self, hash: &[u8; BYTES]) -> DigestNumber {
        if self.slots.len() <= 2 * self.hashes.len() {
            self.grow(self.slots.len() * 4);
        }
        // There are slots now.
        let slot = self.slot(hash).unwrap_or_default();
        if self.slots[slot] == EMPTY {
            self.slots[slot] = self.next();
            self.hashes.push(*hash);
        }
        self.slots[slot]
    }

    fn add_other(&mut self, digest: &Digest) -> DigestNumber {
        if let Some(number) = self.others.get(digest) {
            return *number;
        }
        let number = self.next();
        self.hashes.push([0; BYTES]);
        self.others.insert(digest.clone(), number);
        self.others_back.insert(number, digest.clone());
        number
    }

    /// Four thousand million digests are more than a machine holds.
    fn next(&self) -> DigestNumber {
        DigestNumber::try_from(self.hashes.len()).ok().filter(|n| *n != EMPTY).expect("fewer than 2^32 - 1 digests")
    }

    /// Where a hash is, or would be; `None` in a table without slots.
    fn slot(&self, hash: &[u8; BYTES]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = self.spread(hash) & mask;
        loop {
            let number = self.slots[slot];
            if number == EMPTY || self.hashes[number as usize] == *hash {
                return Some(slot);
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self, length: usize) {
        let length = length.max(1 << 10);
        let mask = length - 1;
        self.slots = vec![EMPTY; length];
        for (number, hash) in self.hashes.iter().enumerate() {
            if !self.others_back.is_empty() && self.others_back.contains_key(&(number as DigestNumber)) {
                continue;
            }
            let mut slot = self.spread(hash) & mask;
            while self.slots[slot] != EMPTY {
                slot = (slot + 1) & mask;
            }
            self.slots[slot] = number as DigestNumber;
        }
    }

    /// Folds the hash by multiplication, eight bytes at a time: both halves of each product reach the result.
    fn spread(&self, hash: &[u8; BYTES]) -> usize {
        let mut state = self.seed;
        for word in hash.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
            let product = u128::from(state ^ word) * 0x9E37_79B9_7F4A_7C15_u128;
            state = (product as u64) ^ ((product >> 64) as u64);
        }
        state as usize
    }
}

/// The bytes of a SHA-256 digest.
fn raw(digest: &Digest) -> Option<[u8; BYTES]> {
    match digest.algorithm() {
        Algorithm::Sha256 => decode_hex(digest.hex().as_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u16) -> Digest {
        let algorithm =
            [Algorithm::Sha256, Algorithm::Sha256, Algorithm::Sha512, Algorithm::Sha384][usize::from(n % 4)];
        let mut digester = crate::Digester::new(algorithm);
        digester.update(&n.to_le_bytes());
        digester.finish()
    }

    proptest! {
        #[test]
        fn numbers_are_those_of_first_sight(picks in proptest::collection::vec(0u16..3000, 0..1200)) {
            let mut table = DigestTable::default();
            let mut seen: Vec<Digest> = Vec::new();
            let mut numbers: HashMap<u16, usize> = HashMap::new();
            for pick in picks {
                let digest = digest(pick);
                let known = numbers.get(&pick).copied();
                prop_assert_eq!(table.get(&digest), known.map(|n| n as DigestNumber));
                let guesses = [pick.into(), known.unwrap_or_default() as DigestNumber];
                let guesses = guesses.into_iter().filter(|guess| (*guess as usize) < table.len());
                prop_assert_eq!(table.get_text(digest.as_str(), guesses), known.map(|n| n as DigestNumber));
                let number = match pick % 3 {
                    0 => table.add(&digest),
                    1 => table.add_text(digest.as_str()).unwrap(),
                    _ => table.add_bytes(digest.algorithm(), &digest.to_bytes()).unwrap(),
                };
                prop_assert_eq!(number as usize, known.unwrap_or(seen.len()));
                if known.is_none() {
                    numbers.insert(pick, seen.len());
                    seen.push(digest);
                }
            }
            prop_assert_eq!(table.len(), seen.len());
            for (number, digest) in seen.iter().enumerate() {
                prop_assert_eq!(&table.digest(number as DigestNumber), digest);
            }
        }
    }

    #[test]
    fn what_is_no_digest_gets_no_number() {
        let mut table = DigestTable::with_capacity(3);
        let upper = digest(0).as_str().to_uppercase().replace("SHA256", "sha256");
        for text in ["", "sha256:", "sha256:00", "md5:d41d8cd98f00b204e9800998ecf8427e", upper.as_str()] {
            assert!(table.add_text(text).is_err(), "{text}");
        }
        assert_eq!(table.add_bytes(Algorithm::Sha256, &[0; 31]), None);
        assert_eq!(table.add_bytes(Algorithm::Sha512, &[0; 32]), None);
        assert!(table.is_empty());
        // A hash of zeros is a hash like any other, though others leave zeros behind.
        table.add(&digest(2));
        let zeros = Digest::from_bytes(Algorithm::Sha256, &[0; 32]).unwrap();
        assert_eq!((table.get(&zeros), table.get_text(zeros.as_str(), [0])), (None, None));
        assert_eq!(
            (table.add(&zeros), table.get(&zeros), table.get_text(zeros.as_str(), [0, 1])),
            (1, Some(1), Some(1))
        );
    }
}
