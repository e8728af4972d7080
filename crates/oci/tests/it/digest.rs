//! Digests, their four kinds, and chain IDs.

use std::collections::HashSet;

use orlop_oci::{Algorithm, ChainId, DiffId, Digest, DigestError, Digester, ImageId, ManifestDigest, chain_ids};
use proptest::prelude::*;

const EMPTY_SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const EMPTY_SHA384: &str =
    "sha384:38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b";
const EMPTY_SHA512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

fn digest(text: &str) -> Digest {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn finish(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut digester = Digester::new(algorithm);
    digester.update(bytes);
    digester.finish()
}

#[test]
fn known_answers_of_every_algorithm() {
    assert_eq!(Digest::of(b"").as_str(), EMPTY_SHA256);
    assert_eq!(Digest::of(b"abc").as_str(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(finish(Algorithm::Sha384, b"").as_str(), EMPTY_SHA384);
    assert_eq!(finish(Algorithm::Sha512, b"").as_str(), EMPTY_SHA512);
}

#[test]
fn parts_of_a_digest() {
    for (text, algorithm, short) in [
        (EMPTY_SHA256, Algorithm::Sha256, "sha256:e3b0c44298fc"),
        (EMPTY_SHA384, Algorithm::Sha384, "sha384:38b060a751ac"),
        (EMPTY_SHA512, Algorithm::Sha512, "sha512:cf83e1357eef"),
    ] {
        let d = digest(text);
        assert_eq!(d.algorithm(), algorithm);
        assert_eq!(d.hex().len(), algorithm.hex_len());
        assert_eq!(format!("{}:{}", algorithm.as_str(), d.hex()), text);
        assert_eq!(d.short(), short);
        assert_eq!(format!("{d:?}"), text);
        assert_eq!(Algorithm::from_name(algorithm.as_str()), Some(algorithm));
    }
}

#[test]
fn what_is_no_digest_says_why() {
    let hex = &EMPTY_SHA256[7..];
    let shape = |t: &str| assert!(matches!(t.parse::<Digest>(), Err(DigestError::Shape(_))), "{t:?}");
    let algorithm = |t: &str| assert!(matches!(t.parse::<Digest>(), Err(DigestError::Algorithm(_))), "{t:?}");
    let digits = |t: &str| assert!(matches!(t.parse::<Digest>(), Err(DigestError::Hex { .. })), "{t:?}");
    shape("");
    shape(hex);
    shape("latest");
    algorithm(":");
    algorithm(&format!(":{hex}"));
    algorithm(&format!("md5:{hex}"));
    algorithm(&format!("SHA256:{hex}"));
    algorithm(&format!("sha256+b64:{hex}"));
    algorithm(&format!(" sha256:{hex}"));
    digits("sha256:");
    digits(&format!("sha256:{}", &hex[1..]));
    digits(&format!("sha256:{hex}0"));
    digits(&format!("sha256:{hex} "));
    digits(&format!("sha256:{}", hex.to_uppercase()));
    digits(&format!("sha256:{}g", &hex[1..]));
    digits(&format!("sha256:{}é", &hex[2..]));
    digits(&format!("sha512:{hex}"));
    let error = format!("sha256:{}", &hex[..10]).parse::<Digest>().unwrap_err().to_string();
    assert!(error.contains("needs 64") && error.contains("found 10"), "{error}");
}

#[test]
fn the_kinds_are_distinct_types_over_one_text() {
    let d = digest(EMPTY_SHA256);
    assert_eq!(ManifestDigest::new(d.clone()).to_string(), EMPTY_SHA256);
    assert_eq!(ImageId::new(d.clone()).digest(), &d);
    assert_eq!(DiffId::new(d.clone()).into_digest(), d);
    let json = serde_json::to_string(&ChainId::new(d.clone())).unwrap();
    assert_eq!(json, format!("{EMPTY_SHA256:?}"));
    assert_eq!(serde_json::from_str::<ChainId>(&json).unwrap(), ChainId::new(d));
    assert!(serde_json::from_str::<ImageId>("\"sha256:beef\"").is_err());
}

/// The image specification's rule, with values computed once by `printf '%s %s' A B | sha256sum`.
#[test]
fn chain_ids_of_known_layers() {
    assert!(chain_ids(&[]).is_empty());
    let diffs: Vec<DiffId> = ["abc", "def", "ghi"].iter().map(|t| DiffId::new(Digest::of(t.as_bytes()))).collect();
    let chain: Vec<String> = chain_ids(&diffs).iter().map(ToString::to_string).collect();
    assert_eq!(
        chain,
        [
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "sha256:8594be0c9ef586b508d0507f5a6a2fc1c359593712b218949fae0868527d2e21",
            "sha256:56c6d0423fb3a99f3c41cd19ac800aa76ccbeb9301b6639909ab5e7f3058394b",
        ]
    );
    // A layer of another algorithm: the chain goes on in SHA-256.
    let mixed = [DiffId::new(digest(EMPTY_SHA512)), diffs[0].clone()];
    let chain = chain_ids(&mixed);
    assert_eq!(chain[0].digest().algorithm(), Algorithm::Sha512);
    assert_eq!(chain[1].digest().algorithm(), Algorithm::Sha256);
}

proptest! {
    #[test]
    fn no_text_panics_and_what_parses_prints_the_same(text in "\\PC*") {
        if let Ok(d) = text.parse::<Digest>() {
            prop_assert_eq!(d.as_str(), text);
        }
    }

    #[test]
    fn no_text_like_a_digest_panics(text in "(sha256|sha384|sha512|)(:|)[0-9a-fA-F:é]{0,130}") {
        if let Ok(d) = text.parse::<Digest>() {
            prop_assert_eq!(d.to_string(), text);
            prop_assert!(d.short().len() == 19);
        }
    }

    #[test]
    fn pieces_hash_as_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..2000) {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut digester = Digester::new(algorithm);
            digester.update(head);
            digester.update(tail);
            let whole = finish(algorithm, &bytes);
            prop_assert_eq!(&digester.finish(), &whole);
            prop_assert_eq!(&whole.as_str().parse::<Digest>().unwrap(), &whole);
        }
    }

    #[test]
    fn a_chain_id_depends_on_everything_below(seeds in proptest::collection::vec(any::<u16>(), 1..8), at in 0usize..8) {
        let diff = |s: &u16| DiffId::new(Digest::of(&s.to_le_bytes()));
        let diffs: Vec<DiffId> = seeds.iter().map(diff).collect();
        let chain = chain_ids(&diffs);
        prop_assert_eq!(chain.len(), diffs.len());
        prop_assert_eq!(chain[0].digest(), diffs[0].digest());
        let mut changed = diffs.clone();
        let at = at % diffs.len();
        changed[at] = DiffId::new(Digest::of(b"something else"));
        let other = chain_ids(&changed);
        prop_assert_eq!(&chain[..at], &other[..at]);
        prop_assert!(chain[at..].iter().zip(&other[at..]).all(|(a, b)| a != b));
        let distinct: HashSet<_> = chain.iter().collect();
        prop_assert_eq!(distinct.len(), chain.len());
    }
}
