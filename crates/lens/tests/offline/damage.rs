//! Databases of a real containerd, damaged: no panic, and nothing missing without a word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use orlop_graph::model::{Inventory, SnapshotKind};
use orlop_lens::Documents;
use orlop_lens::offline::{Root, Unlisted, load};
use orlop_testkit::process::output;
use orlop_testkit::tier::amount;
use rustix::process::Signal;

use crate::store::{Store, generations};

const META: &str = "io.containerd.metadata.v1.bolt/meta.db";
const OVERLAYFS: &str = "io.containerd.snapshotter.v1.overlayfs/metadata.db";

/// A copy of what a containerd left.
struct Left {
    dir: tempfile::TempDir,
}

impl Left {
    async fn by_each() -> Vec<Self> {
        let mut all = Vec::new();
        for programs in generations() {
            let mut store = Store::filled(&programs, true).await;
            store.containerd.stop(Signal::TERM);
            let dir = tempfile::tempdir().unwrap();
            let mut copy = std::process::Command::new("cp");
            output(copy.arg("-a").arg(store.containerd.root()).arg(dir.path())).ok();
            all.push(Self { dir });
        }
        all
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn database(&self, name: &str) -> Database {
        let path = self.root().join(name);
        Database { sound: std::fs::read(&path).unwrap(), path }
    }
}

/// A database that is sound again when this goes.
struct Database {
    path: PathBuf,
    sound: Vec<u8>,
}

impl Database {
    fn damaged(&self, damage: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.sound.clone();
        damage(&mut bytes);
        std::fs::write(&self.path, bytes).unwrap();
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.sound).unwrap();
    }
}

/// What is there, by name.
fn names(inventory: &Inventory) -> BTreeSet<String> {
    let namespaces = inventory.namespaces.iter().map(|row| format!("namespace {}", row.name));
    let records = inventory.records.iter().map(|row| format!("record {}", row.name));
    let blobs = inventory.blobs.iter().map(|row| format!("blob {}", row.digest));
    let snapshots = inventory.snapshots.iter().map(|row| format!("snapshot {} {:?}", row.key, row.kind));
    let leases = inventory.leases.iter().map(|row| format!("lease {}", row.id));
    let containers = inventory.containers.iter().map(|row| format!("container {}", row.id));
    let ingests = inventory.ingests.iter().map(|row| format!("ingest {}", row.reference));
    namespaces.chain(records).chain(blobs).chain(snapshots).chain(leases).chain(containers).chain(ingests).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_anywhere_never_panics() {
    for left in Left::by_each().await {
        for name in [META, OVERLAYFS] {
            let database = left.database(name);
            let tries = amount("ORLOP_TEST_DAMAGES", 1) * 300;
            // An odd step, so that every field of an element is met.
            for at in (0..database.sound.len()).step_by((database.sound.len() / tries) | 1) {
                database.damaged(|bytes| bytes[at] ^= [0x01, 0x80, 0xff][at % 3]);
                load(&left.root()).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_page_is_told_if_it_cost_anything() {
    for left in Left::by_each().await {
        let sound = names(&load(&left.root()).unwrap());
        for name in [META, OVERLAYFS] {
            let database = left.database(name);
            let mut cost = 0;
            for page in 0..database.sound.len() / 4096 {
                database.damaged(|bytes| bytes[page * 4096..(page + 1) * 4096].fill(0));
                let found = load(&left.root()).unwrap();
                let rest = names(&found);
                assert!(rest.is_superset(&sound) || !found.gaps.is_empty(), "page {page} of {name}");
                cost += usize::from(rest != sound);
            }
            assert!(cost > 0, "no page of {name} held anything");
        }
        let database = left.database(META);
        for length in (0..database.sound.len()).step_by(3000) {
            database.damaged(|bytes| bytes.truncate(length));
            let found = load(&left.root()).unwrap();
            assert!(names(&found).is_superset(&sound) || !found.gaps.is_empty(), "{length} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_only_content_is_left_that_is_what_is_told() {
    for left in Left::by_each().await {
        let blobs: BTreeSet<_> =
            load(&left.root()).unwrap().blobs.into_iter().map(|row| (row.digest, row.size)).collect();
        let database = left.database(META);
        database.damaged(|bytes| {
            bytes[20] ^= 1;
            bytes[4096 + 20] ^= 1;
        });
        let root = Root::open(&left.root()).unwrap();
        let stored = root.read().unwrap();
        let [gap] = &stored.inventory.gaps[..] else { panic!("{:?}", stored.inventory.gaps) };
        assert!(gap.what.starts_with("all that meta.db records"), "{gap:?}");
        assert!(gap.why.contains("meta.db: not a bbolt database, or its two meta pages are damaged"), "{gap:?}");
        assert_eq!(names(&stored.inventory), BTreeSet::new());
        let files = stored.unlisted.iter().filter_map(|one| match one {
            Unlisted::Blob { digest, size } => Some((digest.clone(), *size)),
            _ => None,
        });
        assert_eq!(files.collect::<BTreeSet<_>>(), blobs);
        // Snapshots are still known to their snapshotter, by its keys, and their directories are there.
        let known = stored
            .unlisted
            .iter()
            .filter(|one| matches!(one, Unlisted::Snapshot { directory: Some(at), key: Some(_), .. } if at.is_dir()));
        assert!(known.count() > 5, "{:?}", stored.unlisted);
        let mut documents = Documents::default();
        root.documents(&mut documents, blobs.iter().map(|(digest, _)| digest.clone())).unwrap();
        assert!(blobs.iter().all(|(digest, _)| documents.get(digest).is_some()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_whose_snapshotter_cannot_be_read_are_of_no_known_kind() {
    for left in Left::by_each().await {
        let sound = load(&left.root()).unwrap();
        let of = |inventory: &Inventory, name: &str| {
            let rows = inventory.snapshots.iter().filter(|row| &*row.snapshotter == name);
            rows.map(|row| (row.namespace, row.key.clone(), row.parent.clone())).collect::<Vec<_>>()
        };
        let database = left.database(OVERLAYFS);
        let check = |why: &str| {
            let stored = Root::open(&left.root()).unwrap().read().unwrap();
            // Whose the directories are, nobody knows: not that they are nobody's.
            assert_eq!(stored.unlisted, []);
            let found = stored.inventory;
            let [gap] = &found.gaps[..] else { panic!("{:?}", found.gaps) };
            assert!(gap.what.contains("snapshots of overlayfs") && gap.why.contains(why), "{gap:?}");
            assert_eq!(of(&found, "overlayfs"), of(&sound, "overlayfs"));
            for row in &found.snapshots {
                let unknown = &*row.snapshotter == "overlayfs";
                assert_eq!(
                    (row.kind == SnapshotKind::Unknown, row.usage.is_none() && unknown),
                    (unknown, unknown),
                    "{row:?}"
                );
            }
        };
        database.damaged(Vec::clear);
        check("metadata.db: not a bbolt database");
        std::fs::remove_file(&database.path).unwrap();
        check("metadata.db: No such file");
        drop(database);
        rename(&left.root(), |from, to| std::fs::rename(from, to).unwrap());
        check("the snapshotter keeps its files elsewhere");
        rename(&left.root(), |from, to| std::fs::rename(to, from).unwrap());
        assert_eq!(load(&left.root()).unwrap().snapshots, sound.snapshots);
    }
}

fn rename(root: &Path, how: impl FnOnce(&Path, &Path)) {
    how(&root.join("io.containerd.snapshotter.v1.overlayfs"), &root.join("elsewhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_write_gives_the_state_before_and_says_so() {
    for left in Left::by_each().await {
        let database = left.database(META);
        let newest = orlop_bolt::Db::open(&database.sound).unwrap().meta().page;
        database.damaged(|bytes| bytes[usize::from(newest) * 4096 + 16 + 50] ^= 1);
        let found = load(&left.root()).unwrap();
        let [gap] = &found.gaps[..] else { panic!("{:?}", found.gaps) };
        assert!(gap.what.starts_with("the last changes of meta.db"), "{gap:?}");
        assert!(gap.why.contains(&format!("meta page {newest}: checksum")), "{gap:?}");
        assert!(found.records.len() >= 4);
    }
}
