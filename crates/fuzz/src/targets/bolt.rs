//! bbolt's files. The first byte says whether the checksums of the meta pages are made right, so that damage gets beyond them;
//! the rest is the file.
//!
//! A walk ends, and reads no more than a file of that size can have; what it finds is found by its key too; no key comes
//! twice; and a copy is read as the file is.

use std::cell::Cell;
use std::io;

use orlop_bolt::{Bucket, Db, Entry, Source, copy};

use super::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "bolt",
    run,
    seeds,
    words: &[&[0xED, 0xDA, 0x0C, 0xED], &[0x02, 0, 0, 0], &[0x10, 0], &[0x01, 0], &[0xff, 0xff, 0xff, 0xff]],
    limit: 64 << 10,
    isolated: false,
};

const PAGE_SIZES: [usize; 3] = [512, 1024, 4096];

fn run(bytes: &[u8]) {
    let Some((flags, file)) = bytes.split_first() else { return };
    let file = if flags & 1 == 1 { summed(file) } else { file.to_vec() };
    let counted = Counted { bytes: &file, read: Cell::new(0) };
    let Ok(db) = Db::open(&counted) else { return };
    let (mut entries, mut errors) = (0, 0);
    walk(&db.root(), &mut entries, &mut errors);
    // Every page is read by the walk and once more for each key that is looked up below; what is in a value is not read again.
    let most = (2 + entries) * file.len() as u64 + (1 << 17);
    assert!(counted.read.get() <= most, "{} bytes read of {} with {entries} entries", counted.read.get(), file.len());
    if let Ok(whole) = copy(&counted, 1 << 20, 1) {
        let second = Db::open(&whole).expect("a copy is a database");
        let (mut same, mut damage) = (0, 0);
        walk(&second.root(), &mut same, &mut damage);
        assert_eq!((same, damage), (entries, errors), "the copy differs");
    }
}

fn walk(bucket: &Bucket<'_>, entries: &mut u64, errors: &mut u64) {
    let mut before = None;
    let mut whole = true;
    for entry in bucket.iter() {
        let Ok((key, entry)) = entry else {
            (*errors, whole) = (*errors + 1, false);
            continue;
        };
        *entries += 1;
        assert!(before.as_ref().is_none_or(|before| *before < key), "keys out of order");
        // Whoever looks for the key finds the same, unless the way to it is damaged.
        if *entries < 2_000 && whole {
            match (bucket.entry(&key), &entry) {
                (Ok(Some(Entry::Value(found))), Entry::Value(value)) => assert_eq!(found, value),
                (Ok(Some(Entry::Bucket(found))), Entry::Bucket(below)) => {
                    assert_eq!(found.sequence(), below.sequence())
                }
                (found, _) => panic!("{key:?} was listed and is {found:?}"),
            }
        }
        if let Entry::Bucket(below) = entry {
            walk(&below, entries, errors);
        }
        before = Some(key);
    }
}

/// With the checksums (FNV-1a) that the meta pages should have.
fn summed(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    for start in std::iter::once(0).chain(PAGE_SIZES) {
        let Some(meta) = file.get_mut(start + 16..start + 80) else { continue };
        let sum = meta[..56]
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        if start == 0 || meta[..4] == [0xED, 0xDA, 0x0C, 0xED] {
            meta[56..].copy_from_slice(&sum.to_le_bytes());
        }
    }
    file
}

struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<u64>,
}

impl Source for Counted<'_> {
    fn size(&self) -> io::Result<u64> {
        self.bytes.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read.set(self.read.get() + buffer.len() as u64);
        self.bytes.read_exact_at(buffer, offset)
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let whole = include_bytes!("../../../bolt/tests/data/small.db");
    let with = |flags: u8, file: &[u8]| [&[flags], file].concat();
    vec![
        ("whole".to_owned(), with(0, whole)),
        ("summed".to_owned(), with(1, whole)),
        ("cut".to_owned(), with(1, &whole[..8192])),
    ]
}
