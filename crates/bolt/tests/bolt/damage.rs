//! A real file damaged at every byte, cut at every length, and with its pages mixed up: an error or content, never a panic,
//! and no more work than the file is long.

use orlop_bolt::{Bucket, Db, Entry};
use orlop_testkit::tier::amount;
use proptest::prelude::*;

use crate::{Counted, SMALL, dump};

const PAGE: usize = 1024;

/// Reads all there is of it, checks how much was read for it, and says how many errors there were; nothing if it cannot be
/// opened.
fn read_all(bytes: &[u8]) -> Option<usize> {
    let source = Counted::new(bytes);
    let db = Db::open(&source).ok()?;
    let (entries, errors) = count(&db.root());
    // The meta pages at each size of page; then each page once, and those that run on once more.
    let most = 64 * 1024 + 3 * bytes.len() as u64;
    assert!(source.read.get() <= most, "{} bytes were read of {}", source.read.get(), bytes.len());
    assert!(entries + errors <= bytes.len(), "{entries} entries and {errors} errors of {} bytes", bytes.len());
    Some(errors)
}

/// Looks keys up too.
fn read_and_look_up(bytes: &[u8]) -> Option<usize> {
    let errors = read_all(bytes);
    if let Ok(db) = Db::open(&bytes) {
        look_up(&db.root());
    }
    errors
}

fn count(bucket: &Bucket<'_>) -> (usize, usize) {
    let of = |entry| match entry {
        Err(_) => (0, 1),
        Ok((_, Entry::Value(_))) => (1, 0),
        Ok((_, Entry::Bucket(below))) => count(&below),
    };
    bucket.iter().map(of).fold((1, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

fn look_up(bucket: &Bucket<'_>) {
    for (key, entry) in bucket.iter().filter_map(Result::ok).take(50) {
        let _ = bucket.get(&key);
        if let Entry::Bucket(below) = entry {
            look_up(&below);
        }
    }
    for key in [&b""[..], b"key 030", b"\xff\xff"] {
        let _ = bucket.entry(key);
    }
}

#[test]
fn every_byte_can_be_anything() {
    let mut bytes = SMALL.to_vec();
    let mut told = 0;
    // In the long tier each byte is damaged in more ways than one.
    let ways = amount("ORLOP_TEST_DAMAGES", 1);
    for at in 0..bytes.len() {
        for way in 0..ways {
            let flipped = [0x01, 0x80, 0xff, 0x10][(at + way) % 4];
            bytes[at] ^= flipped;
            let read = if at % 16 == way { read_and_look_up } else { read_all };
            told += usize::from(read(&bytes) != Some(0));
            bytes[at] ^= flipped;
        }
    }
    assert_eq!(read_all(&bytes), Some(0));
    // Headers and elements of some twenty pages: most of their bytes cannot be anything else.
    assert!(told > 1500 * ways, "only {told} of the damages were noticed");
}

#[test]
fn a_file_can_end_anywhere() {
    for length in (0..SMALL.len()).filter(|length| length % PAGE < 100 || length % 7 == 0) {
        // Where it ends within a page, the page is lost.
        let found = read_all(&SMALL[..length]);
        assert_eq!(found.is_some(), length >= 80, "{length} bytes");
    }
}

#[test]
fn a_file_without_its_last_pages_gives_the_rest_and_names_what_is_missing() {
    let sound = dump(&Db::open(&SMALL).unwrap()).unwrap();
    let mut seen = 0;
    for pages in 3..SMALL.len() / PAGE {
        let source = SMALL[..pages * PAGE].to_vec();
        let db = Db::open(&source).unwrap();
        let Err(errors) = dump(&db) else { continue };
        for error in errors {
            let last = pages as u64 - 1;
            assert!(matches!(error, orlop_bolt::Error::Outside { last: l, .. } if l == last), "{error}");
        }
        seen += 1;
    }
    assert!(seen > 3 && sound.len() > 100);
}

#[test]
fn both_meta_pages_bad_is_said_of_each() {
    let mut bytes = SMALL.to_vec();
    bytes[16] ^= 1;
    bytes[PAGE + 16 + 60] ^= 1;
    let error = Db::open(&bytes).unwrap_err().to_string();
    assert!(error.contains("the first: magic number 0xed0cdaec") && error.contains("the second: not found"), "{error}");
    let mut bytes = SMALL.to_vec();
    bytes[16 + 4] ^= 1;
    bytes[PAGE + 16 + 60] ^= 1;
    let error = Db::open(&bytes).unwrap_err().to_string();
    assert!(error.contains("the first: version 3, expected 2"), "{error}");
    assert!(Db::open(&Vec::new()).unwrap_err().to_string().contains("the file ends before it, at 0 bytes"));
    assert!(Db::open(&b"not a database ".repeat(100)).is_err());
}

/// Something that happens to a file.
#[derive(Debug, Clone)]
enum Damage {
    Byte { at: usize, to: u8 },
    Number { at: usize, to: u64 },
    Random { page: usize, bytes: Vec<u8> },
    Copied { from: usize, to: usize },
    Zeroed { page: usize },
    Cut { length: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    let (size, pages) = (SMALL.len(), SMALL.len() / PAGE);
    let numbers = prop_oneof![0..40_u64, 0..70_000_u64, any::<u64>()];
    prop_oneof![
        4 => (0..size, any::<u8>()).prop_map(|(at, to)| Damage::Byte { at, to }),
        // Where headers and elements have their numbers.
        8 => (2..pages, 0..80_usize, numbers).prop_map(|(page, at, to)| Damage::Number { at: page * PAGE + at * 4, to }),
        1 => (0..pages, prop::collection::vec(any::<u8>(), PAGE)).prop_map(|(page, bytes)| Damage::Random { page, bytes }),
        2 => (0..pages, 2..pages).prop_map(|(from, to)| Damage::Copied { from, to }),
        1 => (0..pages).prop_map(|page| Damage::Zeroed { page }),
        1 => (0..size).prop_map(|length| Damage::Cut { length }),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let length = bytes.len();
    let range = |page: usize| (page * PAGE).min(length)..((page + 1) * PAGE).min(length);
    match damage {
        Damage::Byte { at, to } if *at < length => bytes[*at] = *to,
        Damage::Number { at, to } if at + 8 <= length => bytes[*at..at + 8].copy_from_slice(&to.to_le_bytes()),
        Damage::Random { page, bytes: random } => {
            let range = range(*page);
            bytes[range.clone()].copy_from_slice(&random[..range.len()]);
        }
        Damage::Copied { from, to } => {
            let copied = bytes[range(*from)].to_vec();
            let range = range(*to);
            let both = range.len().min(copied.len());
            bytes[range.start..range.start + both].copy_from_slice(&copied[..both]);
        }
        Damage::Zeroed { page } => bytes[range(*page)].fill(0),
        Damage::Cut { length } => bytes.truncate(*length),
        Damage::Byte { .. } | Damage::Number { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(amount("PROPTEST_CASES", 1000)))]

    #[test]
    fn pages_can_be_anything(all in prop::collection::vec(damage(), 1..6)) {
        let mut bytes = SMALL.to_vec();
        for one in &all {
            apply(&mut bytes, one);
        }
        let _ = read_and_look_up(&bytes);
    }
}
