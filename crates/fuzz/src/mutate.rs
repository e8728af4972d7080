//! Makes inputs from inputs: what a fuzzer without coverage can do, the same for the same seed.

/// A small generator (SplitMix64): its numbers must not change with a library's version, or a seed would mean nothing.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }
}

/// Numbers at which arithmetic breaks.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX - 511, u64::MAX];
/// Mutations on top of each other, at most.
const MOST: usize = 6;

/// A mutation of one of `inputs`, of at most `limit` bytes; `words` are put in here and there.
pub fn mutate(random: &mut Random, inputs: &[Vec<u8>], words: &[&[u8]], limit: usize) -> Vec<u8> {
    let mut bytes = inputs.get(random.below(inputs.len())).cloned().unwrap_or_default();
    for _ in 0..=random.below(MOST) {
        step(random, &mut bytes, inputs, words);
    }
    bytes.truncate(limit);
    bytes
}

fn step(random: &mut Random, bytes: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&[u8]]) {
    let at = random.below(bytes.len() + 1);
    match random.below(10) {
        0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        2 if at < bytes.len() => bytes[at] = random.next() as u8,
        3 => insert(bytes, at, &random.next().to_le_bytes()[..1 + random.clone().below(8)]),
        4 => {
            let end = at + random.below((bytes.len() - at).min(64) + 1);
            bytes.drain(at..end);
        }
        5 => {
            let end = at + random.below((bytes.len() - at).min(512) + 1);
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len() + 1);
            insert(bytes, to, &piece);
        }
        6 => edge(random, bytes, at),
        7 if !words.is_empty() => {
            let word = words[random.below(words.len())];
            if random.below(2) == 0 { insert(bytes, at, word) } else { overwrite(bytes, at, word) }
        }
        8 => splice(random, bytes, inputs, at),
        _ if random.below(4) == 0 => bytes.truncate(at),
        _ if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(random.below(35) as u8).wrapping_sub(17),
        _ => bytes.push(random.next() as u8),
    }
}

/// Writes a number at which arithmetic breaks, as bytes in either order, or in digits.
fn edge(random: &mut Random, bytes: &mut Vec<u8>, at: usize) {
    let number = EDGES[random.below(EDGES.len())];
    let width = [1, 2, 4, 8][random.below(4)];
    match random.below(4) {
        0 => overwrite(bytes, at, &number.to_le_bytes()[..width]),
        1 => overwrite(bytes, at, &number.to_be_bytes()[8 - width..]),
        2 => overwrite(bytes, at, number.to_string().as_bytes()),
        _ => overwrite(bytes, at, format!("{number:o}").as_bytes()),
    }
}

/// Goes on as another input does.
fn splice(random: &mut Random, bytes: &mut Vec<u8>, inputs: &[Vec<u8>], at: usize) {
    let Some(other) = inputs.get(random.below(inputs.len())) else { return };
    let from = random.below(other.len() + 1);
    if random.below(2) == 0 {
        bytes.truncate(at);
        bytes.extend_from_slice(&other[from..]);
    } else {
        let end = from + random.below((other.len() - from).min(1024) + 1);
        insert(bytes, at, &other[from..end]);
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

fn overwrite(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = (at + piece.len()).min(bytes.len());
    bytes.splice(at..end, piece.iter().copied());
}
