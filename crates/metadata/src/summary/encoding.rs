//! How a summary is written: compact, since listing reads all of them.
//!
//! ```text
//! summary   = version size media-type image-id config-size platform user chain layers manifests
//! version   = 1                                    one byte
//! size      = number                               of the document; of the config, a layer, a manifest
//! image-id  = digest | 0                           0: none
//! platform  = 0 | length os architecture variant version features
//! chain     = count { digest }
//! layers    = count { digest size }
//! manifests = count { digest size platform }
//! digest    = algorithm hash                       one byte, 1 sha256, 2 sha384, 3 sha512; the raw bytes
//! text      = length bytes                         media-type, user, os, architecture: UTF-8
//! variant, version = 0 | 1 text                    0: not said
//! features  = count { text }
//! number, length, count = LEB128                   seven bits a byte, the lowest first
//! ```
//!
//! Nothing follows. The length of a platform covers what comes after it, so that a reader can tell a platform that it
//! has read before without reading it again. A summary of another version, or one that is damaged, counts as not there.

use orlop_oci::{Algorithm, ChainId, Digest, ImageId, Platform};

use super::ManifestSummary;

const VERSION: u8 = 1;

/// Writes a summary.
pub(super) fn encode(summary: &ManifestSummary) -> Vec<u8> {
    let mut to = vec![VERSION];
    number(&mut to, summary.size);
    text(&mut to, &summary.media_type);
    match &summary.image_id {
        Some(id) => digest(&mut to, id.digest()),
        None => to.push(0),
    }
    number(&mut to, summary.config_size);
    platform(&mut to, summary.platform.as_ref());
    text(&mut to, &summary.user);
    number(&mut to, summary.chain.len() as u64);
    summary.chain.iter().for_each(|id| digest(&mut to, id.digest()));
    number(&mut to, summary.layers.len() as u64);
    for (layer, size) in &summary.layers {
        digest(&mut to, layer);
        number(&mut to, *size);
    }
    number(&mut to, summary.manifests.len() as u64);
    for (manifest, size, its) in &summary.manifests {
        digest(&mut to, manifest);
        number(&mut to, *size);
        platform(&mut to, its.as_ref());
    }
    to
}

fn number(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn text(to: &mut Vec<u8>, value: &str) {
    number(to, value.len() as u64);
    to.extend_from_slice(value.as_bytes());
}

fn optional_text(to: &mut Vec<u8>, value: Option<&str>) {
    to.push(u8::from(value.is_some()));
    value.into_iter().for_each(|value| text(to, value));
}

fn digest(to: &mut Vec<u8>, digest: &Digest) {
    to.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha384 => 2,
        Algorithm::Sha512 => 3,
    });
    to.extend(digest.to_bytes());
}

fn platform(to: &mut Vec<u8>, platform: Option<&Platform>) {
    let Some(platform) = platform else { return to.push(0) };
    let mut said = Vec::new();
    text(&mut said, &platform.os);
    text(&mut said, &platform.architecture);
    optional_text(&mut said, platform.variant.as_deref());
    optional_text(&mut said, platform.os_version.as_deref());
    number(&mut said, platform.os_features.len() as u64);
    platform.os_features.iter().for_each(|feature| text(&mut said, feature));
    number(to, said.len() as u64);
    to.extend(said);
}

/// What becomes of a summary's digests and platforms while it is read.
pub(crate) trait Taker {
    /// A digest as the reader wants it.
    type Digest;
    /// A platform as the reader wants it.
    type Platform;

    /// Takes the bytes of a hash; `None` if they are not as many as the algorithm makes.
    fn digest(&mut self, algorithm: Algorithm, hash: &[u8]) -> Option<Self::Digest>;

    /// Takes a platform, which [`decode_platform`] reads.
    fn platform(&mut self, encoded: &[u8]) -> Option<Self::Platform>;

    /// Whether chain IDs are wanted; if not, there are none.
    fn wants_chain(&self) -> bool;
}

/// A summary as a [`Taker`] took it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gist<'a, D, P> {
    pub(crate) size: u64,
    pub(crate) media_type: &'a str,
    pub(crate) image_id: Option<D>,
    pub(crate) config_size: u64,
    pub(crate) platform: Option<P>,
    pub(crate) user: &'a str,
    pub(crate) chain: Vec<D>,
    pub(crate) layers: Vec<(D, u64)>,
    pub(crate) manifests: Vec<(D, u64, Option<P>)>,
}

/// Reads a summary; `None` if it is none of this version.
pub(crate) fn decode<'a, T: Taker>(encoded: &'a [u8], taker: &mut T) -> Option<Gist<'a, T::Digest, T::Platform>> {
    let mut from = Reader(encoded);
    if from.byte()? != VERSION {
        return None;
    }
    let gist = Gist {
        size: from.number()?,
        media_type: from.text()?,
        image_id: from.optional_digest(taker)?,
        config_size: from.number()?,
        platform: from.platform(taker)?,
        user: from.text()?,
        chain: from.chain(taker)?,
        layers: from.list(|from| Some((from.digest(taker)?, from.number()?)))?,
        manifests: from.list(|from| Some((from.digest(taker)?, from.number()?, from.platform(taker)?)))?,
    };
    from.0.is_empty().then_some(gist)
}

/// Reads a summary into types of its own.
pub(super) fn decode_owned(encoded: &[u8]) -> Option<ManifestSummary> {
    let gist = decode(encoded, &mut Owned)?;
    Some(ManifestSummary {
        size: gist.size,
        media_type: gist.media_type.to_owned(),
        image_id: gist.image_id.map(ImageId::new),
        config_size: gist.config_size,
        platform: gist.platform,
        user: gist.user.to_owned(),
        chain: gist.chain.into_iter().map(ChainId::new).collect(),
        layers: gist.layers,
        manifests: gist.manifests,
    })
}

/// Reads a platform that a [`Taker`] was given.
pub(crate) fn decode_platform(encoded: &[u8]) -> Option<Platform> {
    let mut from = Reader(encoded);
    let platform = Platform {
        os: from.text()?.to_owned(),
        architecture: from.text()?.to_owned(),
        variant: from.optional_text()?.map(str::to_owned),
        os_version: from.optional_text()?.map(str::to_owned),
        os_features: from.list(|from| from.text().map(str::to_owned))?,
    };
    from.0.is_empty().then_some(platform)
}

struct Owned;

impl Taker for Owned {
    type Digest = Digest;
    type Platform = Platform;

    fn digest(&mut self, algorithm: Algorithm, hash: &[u8]) -> Option<Digest> {
        Digest::from_bytes(algorithm, hash)
    }

    fn platform(&mut self, encoded: &[u8]) -> Option<Platform> {
        decode_platform(encoded)
    }

    fn wants_chain(&self) -> bool {
        true
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if (part << shift) >> shift != part {
                return None;
            }
            value |= part << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.length()?;
        std::str::from_utf8(self.bytes(length)?).ok()
    }

    fn optional_text(&mut self) -> Option<Option<&'a str>> {
        match self.byte()? {
            0 => Some(None),
            1 => self.text().map(Some),
            _ => None,
        }
    }

    fn hash(&mut self, algorithm: u8) -> Option<(Algorithm, &'a [u8])> {
        let algorithm = match algorithm {
            1 => Algorithm::Sha256,
            2 => Algorithm::Sha384,
            3 => Algorithm::Sha512,
            _ => return None,
        };
        Some((algorithm, self.bytes(algorithm.hex_len() / 2)?))
    }

    fn digest<T: Taker>(&mut self, taker: &mut T) -> Option<T::Digest> {
        let algorithm = self.byte()?;
        let (algorithm, hash) = self.hash(algorithm)?;
        taker.digest(algorithm, hash)
    }

    fn optional_digest<T: Taker>(&mut self, taker: &mut T) -> Option<Option<T::Digest>> {
        match self.byte()? {
            0 => Some(None),
            algorithm => {
                let (algorithm, hash) = self.hash(algorithm)?;
                taker.digest(algorithm, hash).map(Some)
            }
        }
    }

    fn platform<T: Taker>(&mut self, taker: &mut T) -> Option<Option<T::Platform>> {
        match self.length()? {
            0 => Some(None),
            length => taker.platform(self.bytes(length)?).map(Some),
        }
    }

    fn chain<T: Taker>(&mut self, taker: &mut T) -> Option<Vec<T::Digest>> {
        if taker.wants_chain() {
            return self.list(|from| from.digest(taker));
        }
        for _ in 0..self.length()? {
            let algorithm = self.byte()?;
            self.hash(algorithm)?;
        }
        Some(Vec::new())
    }

    fn list<V>(&mut self, mut one: impl FnMut(&mut Self) -> Option<V>) -> Option<Vec<V>> {
        let count = self.length()?;
        // A damaged count asks for no more memory than the bytes that are left could fill.
        let mut values = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            values.push(one(self)?);
        }
        Some(values)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests() -> impl Strategy<Value = Digest> {
        (0..3usize, any::<[u8; 64]>()).prop_map(|(which, bytes)| {
            let algorithm = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512][which];
            Digest::from_bytes(algorithm, &bytes[..algorithm.hex_len() / 2]).unwrap()
        })
    }

    fn platforms() -> impl Strategy<Value = Platform> {
        let text = "[a-z0-9é]{0,9}";
        let features = proptest::collection::vec(text, 0..3);
        (text, text, proptest::option::of(text), proptest::option::of(text), features).prop_map(
            |(os, architecture, variant, os_version, os_features)| Platform {
                os,
                architecture,
                variant,
                os_version,
                os_features,
            },
        )
    }

    fn summaries() -> impl Strategy<Value = ManifestSummary> {
        let platform = || proptest::option::of(platforms());
        let many = 0..6usize;
        (
            (
                any::<u64>(),
                "[ -~é]{0,200}",
                proptest::option::of(digests()),
                any::<u64>(),
                platform(),
                "[0-9a-z:]{0,9}",
            ),
            proptest::collection::vec(digests(), many.clone()),
            proptest::collection::vec((digests(), any::<u64>()), many.clone()),
            proptest::collection::vec((digests(), any::<u64>(), platform()), many),
        )
            .prop_map(
                |((size, media_type, image_id, config_size, platform, user), chain, layers, manifests)| {
                    ManifestSummary {
                        size,
                        media_type,
                        image_id: image_id.map(ImageId::new),
                        config_size,
                        platform,
                        user,
                        chain: chain.into_iter().map(ChainId::new).collect(),
                        layers,
                        manifests,
                    }
                },
            )
    }

    /// Takes everything but chain IDs.
    struct Flat;

    impl Taker for Flat {
        type Digest = Digest;
        type Platform = Vec<u8>;

        fn digest(&mut self, algorithm: Algorithm, hash: &[u8]) -> Option<Digest> {
            Digest::from_bytes(algorithm, hash)
        }

        fn platform(&mut self, encoded: &[u8]) -> Option<Vec<u8>> {
            Some(encoded.to_vec())
        }

        fn wants_chain(&self) -> bool {
            false
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(summary in summaries()) {
            let encoded = encode(&summary);
            let gist = decode(&encoded, &mut Flat).unwrap();
            prop_assert_eq!((gist.chain.len(), &gist.layers), (0, &summary.layers));
            prop_assert_eq!(gist.platform.as_deref().and_then(decode_platform), summary.platform.clone());
            prop_assert_eq!(decode_owned(&encoded), Some(summary));
        }

        #[test]
        fn what_is_cut_or_longer_is_nothing(summary in summaries(), cut in any::<prop::sample::Index>(), more in 0u8..) {
            let mut encoded = encode(&summary);
            prop_assert_eq!(decode_owned(&encoded[..cut.index(encoded.len())]), None);
            encoded.push(more);
            prop_assert_eq!(decode_owned(&encoded), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_owned(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode_owned(&bytes);
        }
    }

    #[test]
    fn other_versions_are_nothing() {
        let summary = ManifestSummary {
            size: 1,
            media_type: "m".to_owned(),
            image_id: None,
            config_size: 2,
            platform: None,
            user: "u".to_owned(),
            chain: Vec::new(),
            layers: Vec::new(),
            manifests: Vec::new(),
        };
        let mut encoded = encode(&summary);
        assert_eq!(encoded, [1, 1, 1, b'm', 0, 2, 0, 1, b'u', 0, 0, 0]);
        encoded[0] = 2;
        assert_eq!(decode_owned(&encoded), None);
        assert_eq!(decode_owned(b"{\"size\":1}"), None);
        // A number may not have more than 64 bits, a count not more than there is.
        assert_eq!(decode_owned(&[1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2]), None);
        assert_eq!(decode_owned(&[1, 1, 1, b'm', 0, 2, 0, 0, 255, 255, 255, 255, 15]), None);
    }
}
