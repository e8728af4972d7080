//! Any sequence of operations gives what a model of two maps says, in memory and on files.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use futures::FutureExt as _;
use orlop_content::{Error, IngestOptions, LocalStore, MemoryStore, Result, Store, Writer, read_verified};
use orlop_oci::Digest;
use orlop_testkit::tier::amount;
use proptest::prelude::*;

/// Few refs and few pieces, so that operations meet.
const REFS: [&str; 2] = ["one", "two"];
const PIECES: [&[u8]; 3] = [b"a", b"bb", b"a longer piece"];

#[derive(Debug, Clone)]
enum Op {
    /// Opens a writer, perhaps one that expects the digest of a piece.
    Open(usize, Option<usize>),
    Write(usize, usize),
    Truncate(usize),
    /// Commits, expecting nothing, what is there, or the digest of a piece.
    Commit(usize, Expect),
    Close(usize),
    Abort(usize),
    Delete(usize),
    Discard(usize),
    Restore(usize),
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Nothing,
    What,
    Piece(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let (r, p) = (0..REFS.len(), 0..PIECES.len());
    let expect = prop_oneof![Just(Expect::Nothing), Just(Expect::What), (0..PIECES.len()).prop_map(Expect::Piece)];
    prop_oneof![
        4 => (r.clone(), proptest::option::weighted(0.3, p.clone())).prop_map(|(r, p)| Op::Open(r, p)),
        6 => (r.clone(), p.clone()).prop_map(|(r, p)| Op::Write(r, p)),
        1 => r.clone().prop_map(Op::Truncate),
        5 => (r.clone(), expect).prop_map(|(r, e)| Op::Commit(r, e)),
        2 => r.clone().prop_map(Op::Close),
        1 => r.prop_map(Op::Abort),
        1 => p.clone().prop_map(Op::Delete),
        1 => p.clone().prop_map(Op::Discard),
        1 => p.prop_map(Op::Restore),
    ]
}

/// What a store should be like.
#[derive(Default)]
struct Model {
    blobs: BTreeMap<Digest, Vec<u8>>,
    bin: BTreeMap<Digest, Vec<u8>>,
    ingests: BTreeMap<usize, Ingest>,
}

#[derive(Default, Clone)]
struct Ingest {
    bytes: Vec<u8>,
    expected: Option<Digest>,
}

/// What an operation came to, without the details.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Exists,
    Locked,
    Missing,
    Mismatch,
}

fn outcome<T>(result: Result<T>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(Error::AlreadyExists(_)) => Outcome::Exists,
        Err(Error::Locked(_)) => Outcome::Locked,
        Err(Error::NotFound { .. }) => Outcome::Missing,
        Err(Error::DigestMismatch { .. }) => Outcome::Mismatch,
        Err(error) => panic!("{error}"),
    }
}

fn now<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("without a runtime every call is done at the first poll")
}

struct Run<'a> {
    store: &'a dyn Store,
    bin: &'a Path,
    model: Model,
    /// A writer whose ingest was aborted is alive no more.
    writers: BTreeMap<usize, (Box<dyn Writer>, bool)>,
    /// What each writer itself expects; what is told of an ingest may be an earlier writer's.
    expected: BTreeMap<usize, Option<Digest>>,
}

impl Run<'_> {
    fn is_open(&self, r: usize) -> bool {
        self.writers.get(&r).is_some_and(|(_, alive)| *alive)
    }

    fn apply(&mut self, op: &Op) {
        let piece = |p: usize| Bytes::from_static(PIECES[p]);
        match *op {
            Op::Open(r, expected) => self.open(r, expected.map(|p| Digest::of(PIECES[p]))),
            Op::Commit(r, expect) => self.commit(r, expect),
            Op::Write(r, p) => {
                let Some((writer, alive)) = self.writers.get_mut(&r) else { return };
                assert_eq!(outcome(now(writer.write(piece(p)))), if *alive { Outcome::Done } else { Outcome::Missing });
                if *alive {
                    self.model.ingests.get_mut(&r).unwrap().bytes.extend_from_slice(PIECES[p]);
                }
            }
            Op::Truncate(r) => {
                let Some((writer, alive)) = self.writers.get_mut(&r) else { return };
                assert_eq!(outcome(now(writer.truncate(0))), if *alive { Outcome::Done } else { Outcome::Missing });
                if *alive {
                    self.model.ingests.get_mut(&r).unwrap().bytes.clear();
                }
            }
            Op::Close(r) => drop(self.writers.remove(&r)),
            Op::Abort(r) => {
                let there = self.model.ingests.remove(&r).is_some();
                let expected = if there { Outcome::Done } else { Outcome::Missing };
                assert_eq!(outcome(now(self.store.abort(REFS[r]))), expected);
                if let Some((_, alive)) = self.writers.get_mut(&r) {
                    *alive = false;
                }
            }
            Op::Delete(p) => {
                let digest = Digest::of(PIECES[p]);
                let there = self.model.blobs.remove(&digest).is_some();
                let expected = if there { Outcome::Done } else { Outcome::Missing };
                assert_eq!(outcome(now(self.store.delete(&digest))), expected);
            }
            Op::Discard(p) => self.trash(p, true),
            Op::Restore(p) => self.trash(p, false),
        }
    }

    fn open(&mut self, r: usize, expected: Option<Digest>) {
        let options = IngestOptions { reference: REFS[r].to_owned(), expected: expected.clone(), total: 0 };
        let open = self.is_open(r);
        let opened = now(self.store.writer(options));
        let Model { blobs, ingests, .. } = &mut self.model;
        if expected.as_ref().is_some_and(|digest| blobs.contains_key(digest)) {
            assert_eq!(outcome(opened.map(drop)), Outcome::Exists);
            if !open {
                ingests.remove(&r);
            }
            return;
        }
        if open {
            assert_eq!(outcome(opened.map(drop)), Outcome::Locked);
            return;
        }
        let ingest = ingests.entry(r).or_default();
        self.expected.insert(r, expected.clone());
        ingest.expected = expected.or(ingest.expected.take());
        self.writers.insert(r, (opened.unwrap(), true));
    }

    fn commit(&mut self, r: usize, expect: Expect) {
        let Some((writer, alive)) = self.writers.get_mut(&r) else { return };
        let ingest = self.model.ingests.get(&r).filter(|_| *alive).cloned();
        let actual = Digest::of(&ingest.clone().unwrap_or_default().bytes);
        let expected = match expect {
            Expect::Nothing => None,
            Expect::What => Some(actual.clone()),
            Expect::Piece(p) => Some(Digest::of(PIECES[p])),
        };
        let found = outcome(now(writer.commit(0, expected.as_ref())));
        let Some(ingest) = ingest else {
            assert_eq!(found, Outcome::Missing);
            return;
        };
        if expected.or_else(|| self.expected[&r].clone()).is_some_and(|expected| expected != actual) {
            assert_eq!(found, Outcome::Mismatch);
            return;
        }
        let before = self.model.blobs.insert(actual, ingest.bytes);
        assert_eq!(found, if before.is_some() { Outcome::Exists } else { Outcome::Done });
        self.model.ingests.remove(&r);
        *alive = false;
    }

    fn trash(&mut self, p: usize, discard: bool) {
        let digest = Digest::of(PIECES[p]);
        let trash = self.store.trash().unwrap();
        let Model { blobs, bin, .. } = &mut self.model;
        let (found, from, to) = if discard {
            (now(trash.discard(&digest, self.bin)), blobs, bin)
        } else {
            (now(trash.restore(&digest, self.bin)), bin, blobs)
        };
        if let Some(bytes) = from.remove(&digest) {
            to.insert(digest.clone(), bytes);
        }
        assert_eq!(found.ok(), to.get(&digest).map(|bytes| bytes.len() as u64));
    }

    fn check(&self) {
        let listed: BTreeMap<_, _> = now(self.store.list())
            .unwrap()
            .into_iter()
            .map(|info| (info.digest.clone(), now(read_verified(self.store, &info.digest, 1 << 20)).unwrap().to_vec()))
            .collect();
        assert_eq!(listed, self.model.blobs);
        let statuses = now(self.store.statuses()).unwrap();
        let found: BTreeMap<_, _> = statuses.into_iter().map(|s| (s.reference, (s.offset, s.expected))).collect();
        let ingests = self.model.ingests.iter();
        let expected: BTreeMap<_, _> =
            ingests.map(|(r, i)| (REFS[*r].to_owned(), (i.bytes.len() as u64, i.expected.clone()))).collect();
        assert_eq!(found, expected);
        for (r, (writer, alive)) in &self.writers {
            if *alive {
                assert_eq!(writer.digest(), Digest::of(&self.model.ingests[r].bytes));
            }
        }
    }
}

fn run(store: &dyn Store, bin: &Path, ops: &[Op]) {
    let mut run = Run { store, bin, model: Model::default(), writers: BTreeMap::new(), expected: BTreeMap::new() };
    for op in ops {
        run.apply(op);
        run.check();
    }
}

fn cases(few: u32) -> ProptestConfig {
    let cases = amount("PROPTEST_CASES", few);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn the_store_in_memory_is_like_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        run(&MemoryStore::new(), Path::new("bin"), &ops);
    }

}

proptest! {
    // Fewer, since every commit waits for the disk.
    #![proptest_config(cases(60))]

    #[test]
    fn the_store_on_files_is_like_the_model(ops in proptest::collection::vec(op(), 1..30)) {
        let directory = tempfile::tempdir().unwrap();
        run(&LocalStore::open(directory.path().join("content")).unwrap(), &directory.path().join("bin"), &ops);
    }
}
