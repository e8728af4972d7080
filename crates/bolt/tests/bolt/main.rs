//! The reader against files that bbolt itself made (`tests/go/bolt`), and against every way in which one can be damaged.
//!
//! `data/small.db` is the `damage.db` of that program: a branch page, leaf pages, pages that run on, buckets in buckets and
//! in values, in pages of 1,024 bytes.

mod changing;
mod damage;
mod hostile;
mod real;

use std::cell::Cell;
use std::io;

use orlop_bolt::{Bucket, Db, Entry, Source};

const SMALL: &[u8] = include_bytes!("../data/small.db");

/// What is in a database, in the words of `tests/go/bolt dump`; the errors instead, if there are any.
fn dump(db: &Db<'_>) -> Result<Vec<String>, Vec<orlop_bolt::Error>> {
    let (mut lines, mut errors) = (vec![format!("transaction {}", db.meta().txid)], Vec::new());
    list(&db.root(), &mut lines, &mut errors);
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

fn list(bucket: &Bucket<'_>, lines: &mut Vec<String>, errors: &mut Vec<orlop_bolt::Error>) {
    for entry in bucket.iter() {
        match entry {
            Err(error) => errors.push(error),
            Ok((key, Entry::Value(value))) => {
                lines.push(format!("value {} {}", hex::encode(&key), hex::encode(&value)));
            }
            Ok((key, Entry::Bucket(below))) => {
                lines.push(format!("bucket {} {}", hex::encode(&key), below.sequence()));
                list(&below, lines, errors);
                lines.push("end".into());
            }
        }
    }
}

/// Compares without printing all of it.
#[track_caller]
fn assert_same(ours: &[String], theirs: &[String], what: &str) {
    let different = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs);
    let shown = |line: &str| line.chars().take(200).collect::<String>();
    if let Some(at) = different {
        panic!("{what}: line {at}: ours is {}, theirs {}", shown(&ours[at]), shown(&theirs[at]));
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: lines");
}

/// Counts what is read.
struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<u64>,
}

impl<'a> Counted<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, read: Cell::new(0) }
    }
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
