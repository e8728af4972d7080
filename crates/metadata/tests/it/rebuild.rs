//! A database that is rebuilt has the rows that the lost one had: random records, removals, undos and collections, the model being
//! the store itself before its `meta.db` went; and what a crash leaves in `history.log` and beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::rig;
use crate::rig::{Rig, labels};
use jiff::Timestamp;
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Condition, Error, HistoryEntry, Image, ImageChange, NeededBlob, Rebuild, Rebuilt, TrashEntry};
use orlop_oci::{Descriptor, Digest};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const NAMESPACES: [&str; 2] = ["a", "b"];

/// What comes back from files alone.
#[derive(Debug, PartialEq)]
struct Rows {
    images: Vec<Vec<Image>>,
    history: Vec<Vec<HistoryEntry>>,
    trash: Vec<TrashEntry>,
}

fn rows(rig: &Rig) -> Rows {
    Rows {
        images: NAMESPACES.map(|namespace| rig.store.images(namespace, &[]).unwrap()).into(),
        history: NAMESPACES.map(|namespace| rig.store.history(namespace, None, usize::MAX).unwrap()).into(),
        trash: rig.store.trash().unwrap(),
    }
}

/// Closes the store, rebuilds its database, which is removed before if that is wanted, and opens it.
fn rebuilt(mut rig: Rig, lost: bool) -> (Rig, Rebuilt) {
    let (directory, clock) = (rig.directory.clone(), rig.clock.clone());
    // Another root in the place of the store, so that nobody has this one open.
    rig.store = Rig::new().store;
    if lost {
        for file in ["meta.db", "meta.db-wal", "meta.db-shm"] {
            let _ = fs::remove_file(directory.path().join(file));
        }
    }
    let at = clock.clone();
    let now: orlop_metadata::Clock = Arc::new(move || Timestamp::from_second(at.load(Ordering::SeqCst)).unwrap());
    let mut rebuild = Rebuild::begin_with_clock(directory.path(), rig::options(directory.path()), &now).unwrap();
    let mut needed: BTreeMap<String, BTreeMap<Digest, NeededBlob>> = BTreeMap::new();
    for (namespace, image) in rebuild.records() {
        let Some(size) = rebuild.size_on_disk(&image.target.digest) else { continue };
        let blob = NeededBlob { size, ..NeededBlob::default() };
        needed.entry(namespace.clone()).or_default().insert(image.target.digest.clone(), blob);
    }
    for (namespace, blobs) in &needed {
        rebuild.put_blobs(namespace, blobs).unwrap();
    }
    rebuild.finish("a").unwrap();
    let done = rebuild.install().unwrap();
    rig.reopen();
    (rig, done)
}

struct Draw {
    draw: StdRng,
    blobs: Vec<Digest>,
}

impl Draw {
    fn step(&mut self, rig: &Rig) {
        rig.advance(self.draw.random_range(0..3));
        let namespace = NAMESPACES[self.draw.random_range(0..2)];
        let scope = rig.scope(namespace, None).with_host("registry.example");
        let name = format!("name-{}", self.draw.random_range(0..6));
        let target = self.blobs[self.draw.random_range(0..self.blobs.len())].clone();
        match self.draw.random_range(0..10) {
            0..=4 => {
                // What it points at is there in this namespace.
                let number = self.blobs.iter().position(|blob| *blob == target).unwrap();
                rig.put(&scope, format!("blob {number}").as_bytes(), &[]).unwrap();
                let mut target = Descriptor::new("application/vnd.oci.image.index.v1+json", target, 6);
                target.annotations = labels(&[("made-by", "a test")]);
                let labels = labels(&[("drawn", ["", "x", "y"][self.draw.random_range(0..3)])]);
                rig.store.write_images(&scope, &[ImageChange::Upsert { name, target, labels }]).unwrap();
            }
            5 => {
                let _ = rig.store.delete_image(&scope, &name, None);
            }
            6..=7 => {
                let changes = [ImageChange::Delete { name }];
                let disposal = Disposal::Trash { reason: "rm".to_owned() };
                rig.store.delete_images(&scope, &changes, &disposal, None).unwrap();
            }
            8 => match rig.store.undo(&scope, None) {
                Ok(_) | Err(Error::TrashEmpty) => {}
                Err(error) => panic!("{error}"),
            },
            _ => drop(rig.store.collect(Disposal::Reclaim).unwrap()),
        }
    }
}

#[test]
fn the_rows_are_those_that_were_lost() {
    for seed in 0..12 {
        let mut rig = Rig::new();
        let blobs = (0..5).map(|number| rig::digest(format!("blob {number}").as_bytes())).collect();
        let mut draw = Draw { draw: StdRng::seed_from_u64(seed), blobs };
        for _ in 0..4 {
            (0..30).for_each(|_| draw.step(&rig));
            // What nothing keeps would be held by the lease that is made.
            rig.store.collect(Disposal::Reclaim).unwrap();
            let before = rows(&rig);
            // A removal may have been undone without its blob, which another namespace got again since.
            let on_disk = rig.blobs_on_disk();
            let blobs = NAMESPACES.map(|namespace| {
                let targets = rig.store.images(namespace, &[]).unwrap().into_iter().map(|image| image.target.digest);
                let mut blobs = rig.blobs(namespace);
                blobs.extend(targets.filter(|target| on_disk.contains(target.as_str())));
                blobs
            });
            let (again, done) = rebuilt(rig, true);
            rig = again;
            assert!(matches!(done.condition, Condition::Lost(_)), "seed {seed}: {done:?}");
            assert_eq!((done.left.len(), done.held.len(), &done.moved_to), (0, 0, &None), "seed {seed}: {done:?}");
            assert_eq!(rows(&rig), before, "seed {seed}");
            assert_eq!(NAMESPACES.map(|namespace| rig.blobs(namespace)), blobs, "seed {seed}");
            assert_eq!(rig.store.check_metadata().unwrap(), [], "seed {seed}");
            let full = rig.store.collect_full(Disposal::Reclaim).unwrap();
            assert_eq!((full.missed, full.content), (BTreeSet::new(), BTreeSet::new()), "seed {seed}");
        }
    }
}

#[test]
fn what_nothing_keeps_is_held_until_somebody_lets_it_go() {
    let rig = Rig::new();
    let scope = rig.scope("a", None);
    let named = rig.put(&scope, b"named", &[]).unwrap();
    rig.image("a", "name", &named);
    rig.store.create_lease("b", "lost", labels(&[])).unwrap();
    let leased = rig.put(&rig.scope("b", Some("lost")), b"leased", &[]).unwrap();
    rig.image("b", "other", &named);
    let (rig, done) = rebuilt(rig, true);
    assert_eq!(
        done.held.iter().map(|held| (held.namespace.as_str(), held.blobs)).collect::<Vec<_>>(),
        [("a", 1), ("b", 1)]
    );
    for _ in 0..2 {
        rig.store.collect_full(Disposal::Reclaim).unwrap();
        assert!(rig.reads(&leased), "whoever had it has it");
    }
    for held in &done.held {
        rig.store.delete_lease(&held.namespace, &held.lease).unwrap();
    }
    rig.store.collect(Disposal::Reclaim).unwrap();
    assert!(!rig.reads(&leased) && rig.reads(&named));
}

/// A last line that was cut, one that was damaged, and a change that was never committed and is in the log.
#[test]
fn a_damaged_log_gives_what_it_has() {
    let rig = Rig::new();
    let scope = rig.scope("a", None);
    let blob = rig.put(&scope, b"blob", &[]).unwrap();
    for name in ["one", "two", "three"] {
        rig.image("a", name, &blob);
    }
    let path = rig.directory.path().join("history.log");
    let mut text = fs::read(&path).unwrap();
    let second = text.iter().position(|&byte| byte == b'\n').unwrap() + 20;
    text[second] ^= 1;
    text.extend(b"00000000 {\"seq\":4");
    fs::File::create(&path).unwrap().write_all(&text).unwrap();
    let (rig, done) = rebuilt(rig, true);
    assert_eq!(rig.names("a"), BTreeSet::from(["one".to_owned(), "three".to_owned()]));
    assert_eq!(done.left, ["history.log, line 2: it does not check"]);
    assert_eq!(rig.store.check_metadata().unwrap(), []);
    rig.image("a", "four", &blob);
    assert_eq!(rig.store.check_metadata().unwrap(), [], "and the log goes on");
}

#[test]
fn nobody_opens_a_root_whose_database_is_gone() {
    let mut rig = Rig::new();
    rig.put(&rig.scope("a", None), b"blob", &[]).unwrap();
    let (directory, clock) = (rig.directory.clone(), Rig::new());
    rig.store = clock.store.clone();
    let database = directory.path().join("meta.db");
    for empty in [false, true] {
        if empty {
            fs::write(&database, "").unwrap();
        } else {
            fs::remove_file(&database).unwrap();
        }
        for read_only in [false, true] {
            let options = orlop_metadata::OpenOptions { read_only, ..rig::options(directory.path()) };
            let refused = orlop_metadata::Store::open(directory.path(), options).map(drop);
            match refused {
                Err(Error::Lost { loss, .. }) => assert!(loss.found.contains(&"blobs"), "{loss}"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(database.exists(), empty, "nothing is made");
    }
    // A root that is only begun has nothing to lose.
    let begun = tempfile::tempdir().unwrap();
    fs::write(begun.path().join("meta.db"), "").unwrap();
    orlop_metadata::Store::open(begun.path(), rig::options(begun.path())).unwrap();
}
