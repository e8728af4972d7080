//! Content digests and the four kinds of thing they name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// A hash algorithm registered by the OCI image specification (descriptor.md, "Registered algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, 64 hex digits.
    Sha256,
    /// SHA-384, 96 hex digits.
    Sha384,
    /// SHA-512, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The number of hex digits after the colon.
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }

    /// Finds an algorithm by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha256" => Some(Self::Sha256),
            "sha384" => Some(Self::Sha384),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// There is no `algorithm:` in front.
    #[error("{0:?} is not a digest: expected algorithm:hex, e.g. sha256:e3b0…")]
    Shape(String),
    /// The algorithm is not one that Orlop computes.
    #[error("digest algorithm {0:?} is not supported; sha256, sha384 and sha512 are")]
    Algorithm(String),
    /// The part after the colon has the wrong length or is not lower-case hex.
    #[error("{digest:?} is not a digest: {algorithm} needs {expected} lower-case hex digits, found {found}")]
    Hex {
        /// The whole text.
        digest: String,
        /// The algorithm's name.
        algorithm: &'static str,
        /// How many digits the algorithm has.
        expected: usize,
        /// How many characters were found.
        found: usize,
    },
}

/// `algorithm:hex`, valid by construction; cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digester = Digester::new(Algorithm::Sha256);
        digester.update(bytes);
        digester.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match &self.0[..6] {
            "sha384" => Algorithm::Sha384,
            "sha512" => Algorithm::Sha512,
            _ => Algorithm::Sha256,
        }
    }

    /// The lower-case hex digits.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256:` and the first twelve digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..19]
    }

    /// Whether a text is a digest; takes no memory.
    pub(crate) fn is_valid(text: &str) -> bool {
        let Some((name, hex)) = text.split_once(':') else { return false };
        Algorithm::from_name(name).is_some_and(|a| a.hex_len() == hex.len() && is_lower_hex(hex))
    }

    /// The digest with these bytes of a hash; `None` if they are not as many as the algorithm makes.
    pub fn from_bytes(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        (2 * hash.len() == algorithm.hex_len()).then(|| Self::from_hash(algorithm, hash))
    }

    /// The bytes of the hash.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hex().as_bytes().chunks_exact(2).filter_map(decode_hex::<1>).flatten().collect()
    }

    /// As many bytes as the algorithm makes.
    pub(crate) fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Self {
        let mut text = [0; 7 + 128];
        text[..6].copy_from_slice(algorithm.as_str().as_bytes());
        text[6] = b':';
        let text = &mut text[..7 + algorithm.hex_len()];
        hex::encode_to_slice(hash, &mut text[7..]).expect("an algorithm's hashes have one length");
        Self(std::str::from_utf8(text).expect("hexadecimal digits are ASCII").into())
    }
}

/// Reads exactly `2 * N` lower-case hex digits.
pub(crate) fn decode_hex<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut bad = hex.len() ^ (2 * N);
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let (high, low) = (VALUES[usize::from(pair[0])], VALUES[usize::from(pair[1])]);
        bad |= usize::from((high | low) & 0xf0);
        *byte = high << 4 | low & 15;
    }
    (bad == 0).then_some(bytes)
}

/// By ASCII code: the value of a lower-case hex digit; 255 for anything else.
static VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // Nearly all there are, told without looking for the colon.
        if text.len() == 71 && text.starts_with("sha256:") && is_lower_hex(&text[7..]) {
            return Ok(Self(text.into()));
        }
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::Shape(text.to_owned()))?;
        let algorithm = Algorithm::from_name(name).ok_or_else(|| DigestError::Algorithm(name.to_owned()))?;
        if hex.len() != algorithm.hex_len() || !is_lower_hex(hex) {
            return Err(DigestError::Hex {
                digest: text.to_owned(),
                algorithm: algorithm.as_str(),
                expected: algorithm.hex_len(),
                found: hex.len(),
            });
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest over bytes as they pass.
#[derive(Clone)]
pub struct Digester(State);

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Digester {
    /// Starts with no bytes seen.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha384 => State::Sha384(Sha384::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha384(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    /// What it has come to, so that another process may go on ([`Digester::resume`]). Of use to this version of Orlop and
    /// those that have the same hash implementation; others say that they do not know it, and hash again.
    pub fn state(&self) -> Vec<u8> {
        match &self.0 {
            State::Sha256(h) => h.serialize().to_vec(),
            State::Sha384(h) => h.serialize().to_vec(),
            State::Sha512(h) => h.serialize().to_vec(),
        }
    }

    /// Goes on from a [`Digester::state`]; `None` if it is not one of this algorithm.
    pub fn resume(algorithm: Algorithm, state: &[u8]) -> Option<Self> {
        fn read<H: SerializableState>(state: &[u8]) -> Option<H> {
            H::deserialize(state.try_into().ok()?).ok()
        }
        Some(Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(read(state)?),
            Algorithm::Sha384 => State::Sha384(read(state)?),
            Algorithm::Sha512 => State::Sha512(read(state)?),
        }))
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(h) => Digest::from_hash(Algorithm::Sha256, &h.finalize()),
            State::Sha384(h) => Digest::from_hash(Algorithm::Sha384, &h.finalize()),
            State::Sha512(h) => Digest::from_hash(Algorithm::Sha512, &h.finalize()),
        }
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digester")
    }
}

macro_rules! digest_kind {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Says that this digest is one of this kind; the caller knows.
            pub const fn new(digest: Digest) -> Self {
                Self(digest)
            }

            /// The digest itself.
            pub const fn digest(&self) -> &Digest {
                &self.0
            }

            /// The digest itself, by value.
            pub fn into_digest(self) -> Digest {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

digest_kind! {
    /// The digest of a manifest or index: what a name points at.
    ManifestDigest
}
digest_kind! {
    /// The digest of an image's config, which CRI and Docker call the image ID.
    ImageId
}
digest_kind! {
    /// The digest of a layer's uncompressed tar (image-spec config.md, "Layer DiffID").
    DiffId
}
digest_kind! {
    /// The digest that names a stack of layers (image-spec config.md, "Layer ChainID").
    ChainId
}

/// The chain ID of every prefix of `diff_ids`, lowest first; the last one names the whole image's tree.
///
/// Source: image-spec config.md, "Layer ChainID": the first equals its diff ID; each further one is the SHA-256 of
/// the previous chain ID, a space, and the diff ID.
pub fn chain_ids(diff_ids: &[DiffId]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.digest().clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(ChainId::new(next));
    }
    chain
}
