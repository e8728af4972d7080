//! Files that bbolt made, key by key.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use orlop_bolt::{Bucket, Db, Entry, MetaDamage};
use orlop_testkit::go::Module;
use orlop_testkit::process::run;

use crate::{SMALL, assert_same, dump};

/// bbolt's databases, one of each shape; the program says what is in them.
pub(crate) struct Real {
    pub(crate) program: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl Real {
    pub(crate) fn program() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let program = Module::find("bolt")?.program(dir.path())?;
        Some(Self { program, dir })
    }

    /// Made once for the tests that run at the same time.
    pub(crate) fn make() -> Option<Arc<Self>> {
        static MADE: Mutex<Weak<Real>> = Mutex::new(Weak::new());
        let mut made = MADE.lock().unwrap();
        if let Some(real) = made.upgrade() {
            return Some(real);
        }
        let real = Arc::new(Self::program()?);
        run(&real.program, ["make".as_ref(), real.dir.path()]).ok();
        *made = Arc::downgrade(&real);
        Some(real)
    }

    pub(crate) fn databases(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == "db")).collect();
        all.sort();
        all
    }

    pub(crate) fn dump(&self, path: &Path) -> Vec<String> {
        run(&self.program, ["dump".as_ref(), path]).ok().stdout.lines().map(str::to_owned).collect()
    }
}

#[test]
fn every_shape_of_database_reads_as_bbolt_reads_it() {
    let Some(real) = Real::make() else { return };
    let (mut metas, mut sizes) = (BTreeSet::new(), BTreeSet::new());
    let databases = real.databases();
    for path in &databases {
        let bytes = std::fs::read(path).unwrap();
        let db = Db::open(&bytes).unwrap();
        let ours = dump(&db).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
        assert_same(&ours, &real.dump(path), &path.display().to_string());
        assert!(db.damaged_meta().is_none());
        metas.insert(db.meta().page);
        sizes.insert(db.meta().page_size);
    }
    assert!(databases.len() >= 20, "{databases:?}");
    assert_eq!(metas, [0, 1].into(), "the newest state is in either meta page");
    assert_eq!(sizes, [1024, 4096, 16384, 65536].into());
}

#[test]
fn the_small_database_of_the_other_tests_is_one_that_bbolt_made() {
    let Some(real) = Real::make() else { return };
    let db = Db::open(&SMALL).unwrap();
    assert_same(&dump(&db).unwrap(), &real.dump(&real.dir.path().join("damage.db")), "small.db");
}

#[test]
fn each_key_is_found_by_itself_and_no_other_is() {
    let Some(real) = Real::make() else { return };
    for path in real.databases().iter().filter(|path| !path.ends_with("deep.db") && !path.ends_with("deleted.db")) {
        let bytes = std::fs::read(path).unwrap();
        let db = Db::open(&bytes).unwrap();
        look_up(&db.root());
    }
}

fn look_up(bucket: &Bucket<'_>) {
    // Of a large bucket some: the way to each is from its root.
    let every = 1 + bucket.iter().count() / 200;
    for (key, entry) in bucket.iter().step_by(every).map(Result::unwrap) {
        match entry {
            Entry::Value(value) => {
                assert_eq!(bucket.get(&key).unwrap(), Some(value));
                assert!(bucket.bucket(&key).unwrap().is_none());
            }
            Entry::Bucket(below) => {
                let found = bucket.bucket(&key).unwrap().expect("the bucket that was listed");
                assert_eq!(found.sequence(), below.sequence());
                assert_eq!(bucket.get(&key).unwrap(), None);
                look_up(&below);
            }
        }
        let missing = [&key[..], b"\0"].concat();
        assert!(bucket.entry(&missing).unwrap().is_none());
    }
    assert!(bucket.entry(b"").unwrap().is_none() && bucket.entry(&[0xff; 40_000]).unwrap().is_none());
}

#[test]
fn more_than_100_000_keys_are_found_in_a_tree_of_several_pages_depth() {
    let Some(real) = Real::make() else { return };
    let bytes = std::fs::read(real.dir.path().join("deep.db")).unwrap();
    let db = Db::open(&bytes).unwrap();
    let many = db.root().bucket(b"many").unwrap().unwrap();
    let keys: Vec<Bytes> = many.iter().map(|entry| entry.unwrap().0).collect();
    assert_eq!(keys.len(), 120_000);
    assert!(keys.is_sorted());
    for key in keys.iter().step_by(997) {
        assert!(many.get(key).unwrap().is_some());
    }
}

#[test]
fn a_damaged_newest_meta_page_gives_the_state_before_and_says_so() {
    let Some(real) = Real::make() else { return };
    for (newest, before) in [("state-4.db", "state-3.db"), ("state-5.db", "state-4.db")] {
        let mut bytes = std::fs::read(real.dir.path().join(newest)).unwrap();
        let meta = *Db::open(&bytes).unwrap().meta();
        bytes[meta.page as usize * meta.page_size as usize + 16 + 20] ^= 1;
        let db = Db::open(&bytes).unwrap();
        let damaged = db.damaged_meta().expect("it says that the newest meta page is damaged");
        assert_eq!(damaged.page, meta.page);
        assert!(matches!(damaged.damage, MetaDamage::Checksum { .. }), "{damaged}");
        assert_eq!(db.meta().txid, meta.txid - 1);
        assert_same(&dump(&db).unwrap(), &real.dump(&real.dir.path().join(before)), newest);
    }
}

#[test]
fn the_second_meta_page_is_found_at_every_size_of_page() {
    let Some(real) = Real::make() else { return };
    for size in [1024, 4096, 16384, 65536] {
        let path = real.dir.path().join(format!("pages-{size}.db"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..1024].fill(0);
        let db = Db::open(&bytes).unwrap();
        assert_eq!((db.meta().page, db.meta().page_size), (1, size));
        assert_eq!(db.damaged_meta().map(|damaged| damaged.damage), Some(MetaDamage::Magic { found: 0 }));
    }
}
