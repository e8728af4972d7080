//! What is read of a root's files is what its containerd lists, row by row, while it runs and after it has ended; and
//! reading leaves the root as it was.

mod damage;
mod running;
mod store;

use std::collections::BTreeSet;
use std::path::Path;

use orlop_graph::model::{Gap, Inventory, SnapshotKind, SnapshotRow};
use orlop_lens::offline::{self, Root, Unlisted};
use orlop_lens::{Documents, Reader};
use orlop_testkit::containerd::Containerd;
use orlop_testkit::fingerprint::{self, Fingerprint};
use rustix::process::Signal;

use store::{Store, generations};

/// Rows in an order of their own.
fn sorted(mut inventory: Inventory) -> Inventory {
    inventory.taken = Default::default();
    inventory.records.sort_by(|a, b| (a.namespace, &a.name).cmp(&(b.namespace, &b.name)));
    inventory.blobs.sort_by(|a, b| (a.namespace, &a.digest).cmp(&(b.namespace, &b.digest)));
    let of = |s: &SnapshotRow| (s.namespace, s.snapshotter.clone(), s.key.clone());
    inventory.snapshots.sort_by_key(of);
    inventory.leases.sort_by(|a, b| (a.namespace, &a.id).cmp(&(b.namespace, &b.id)));
    for lease in &mut inventory.leases {
        lease.resources.sort_by_key(|resource| format!("{resource:?}"));
    }
    inventory.ingests.sort_by(|a, b| (a.namespace, &a.reference).cmp(&(b.namespace, &b.reference)));
    inventory.containers.sort_by(|a, b| (a.namespace, &a.id).cmp(&(b.namespace, &b.id)));
    inventory
}

async fn by_api(containerd: &Containerd) -> Inventory {
    let reader = Reader::new(orlop_api::channel::unix(&containerd.socket()).await.unwrap());
    let mut inventory = reader.inventory(None).await.unwrap();
    reader.measure(&mut inventory, |_| true).await.unwrap();
    sorted(inventory)
}

fn by_files(root: &Path) -> Inventory {
    let root = Root::open(root).unwrap();
    let mut stored = root.read().unwrap();
    root.measure(&mut stored, |_| true);
    assert_eq!(stored.absent, []);
    sorted(stored.inventory)
}

#[track_caller]
fn assert_same(ours: &Inventory, theirs: &Inventory, what: &str) {
    let mut ours = ours.clone();
    // containerd 1.6 does not tell when a blob's labels changed; the files do.
    if theirs.blobs.iter().all(|blob| blob.updated.is_none()) {
        assert!(ours.blobs.iter().all(|blob| blob.updated >= blob.created), "{what}");
        ours.blobs.iter_mut().for_each(|blob| blob.updated = None);
    }
    assert_eq!((&ours.gaps, &theirs.gaps), (&vec![], &vec![]), "{what}");
    assert_eq!(ours.namespaces, theirs.namespaces, "{what}");
    assert_eq!(ours.records, theirs.records, "{what}");
    assert_eq!(ours.blobs, theirs.blobs, "{what}");
    assert_eq!(ours.snapshots, theirs.snapshots, "{what}");
    assert_eq!(ours.leases, theirs.leases, "{what}");
    assert_eq!(ours.ingests, theirs.ingests, "{what}");
    assert_eq!(ours.containers, theirs.containers, "{what}");
    assert_eq!(&ours, theirs, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_is_the_one_that_containerd_lists() {
    for (programs, cri) in generations().into_iter().flat_map(|programs| [(programs.clone(), false), (programs, true)])
    {
        let what = format!("{}, CRI plugin: {cri}", programs.version());
        let mut store = Store::filled(&programs, cri).await;
        // What CRI does after an event may still be under way: compared is what lies between two equal answers.
        let mut theirs = by_api(&store.containerd).await;
        let running = loop {
            let ours = by_files(&store.containerd.root());
            let before = std::mem::replace(&mut theirs, by_api(&store.containerd).await);
            if before == theirs {
                break ours;
            }
        };
        store.holds_something_of_everything(&theirs, cri);
        assert_same(&running, &theirs, &format!("{what}, while it runs"));
        store.containerd.stop(Signal::TERM);
        let root = store.containerd.root();
        let before = Fingerprint::of(&root, &fingerprint::Options::default()).unwrap();
        assert_same(&by_files(&root), &theirs, &format!("{what}, after its end"));
        read_documents(&root, &theirs);
        let after = Fingerprint::of(&root, &fingerprint::Options::default()).unwrap();
        before.assert_same(&after, "reading leaves the root as it was");
    }
}

fn read_documents(root: &Path, inventory: &Inventory) {
    let mut documents = Documents::default();
    let wanted = inventory.blobs.iter().map(|blob| blob.digest.clone());
    Root::open(root).unwrap().documents(&mut documents, wanted).unwrap();
    for blob in &inventory.blobs {
        assert_eq!(documents.get(&blob.digest).map(|bytes| bytes.len() as u64), Some(blob.size), "{}", blob.digest);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_was_killed_leaves_what_it_had_answered() {
    for programs in generations() {
        let mut store = Store::filled(&programs, false).await;
        let theirs = by_api(&store.containerd).await;
        store.containerd.stop(Signal::KILL);
        assert_same(&by_files(&store.containerd.root()), &theirs, &programs.version());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_what_nobody_lists_are_told() {
    for programs in generations() {
        let mut store = Store::filled(&programs, false).await;
        store.containerd.stop(Signal::TERM);
        let root = store.containerd.root();
        // Left behind by somebody: a blob, a write, a directory of a snapshot.
        let content = root.join("io.containerd.content.v1.content");
        let stray = orlop_oci::Digest::of(b"stray");
        std::fs::write(content.join("blobs/sha256").join(stray.hex()), "stray").unwrap();
        std::fs::create_dir(content.join("ingest/left")).unwrap();
        std::fs::write(content.join("ingest/left/ref"), "default/9/left").unwrap();
        std::fs::write(content.join("ingest/left/data"), "123").unwrap();
        let trees = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots");
        std::fs::create_dir(trees.join("rm-77")).unwrap();
        let gone = store.blob.clone();
        std::fs::remove_file(content.join("blobs/sha256").join(gone.hex())).unwrap();

        let stored = Root::open(&root).unwrap().read().unwrap();
        assert_eq!(stored.inventory.gaps, []);
        assert_eq!(stored.absent, [gone]);
        let expected = [
            Unlisted::Snapshot { snapshotter: "overlayfs".into(), directory: Some(trees.join("rm-77")), key: None },
            Unlisted::Ingest {
                directory: content.join("ingest/left"),
                reference: Some("default/9/left".into()),
                size: 3,
            },
            Unlisted::Blob { digest: stray, size: 5 },
        ];
        assert_eq!(stored.unlisted, expected);
        let [ingest] = &stored.inventory.ingests[..] else { panic!("{:?}", stored.inventory.ingests) };
        assert_eq!((&*ingest.reference, ingest.offset, ingest.total), ("under way", 5, 1000));
        for row in &stored.inventory.snapshots {
            let directory = stored.directory(row).unwrap_or_else(|| panic!("{row:?} has no directory"));
            let files = if &*row.snapshotter == "native" { directory.to_owned() } else { directory.join("fs") };
            assert!(files.is_dir(), "{}", files.display());
            assert_eq!(row.usage.is_some(), row.kind != SnapshotKind::Active, "{row:?}");
        }
        let active = stored.inventory.snapshots.iter().find(|row| &*row.key == "active").unwrap();
        let written = stored.directory(active).unwrap().join("fs/written");
        assert_eq!(std::fs::read(written).unwrap().len(), 70_000);
    }
}

/// Images come and go.
fn churn(store: &Store, rounds: usize) {
    for round in 0..rounds {
        let name = format!("docker.io/library/churn:{}", round % 3);
        store.import("churn", &name, &store::image(&name), "overlayfs");
        if round % 2 == 1 {
            store.ctr("churn", &["images", "rm", "--sync", &name]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_beside_a_containerd_that_works_fits_together_or_the_rest_is_told() {
    for programs in generations() {
        let store = Store::filled(&programs, false).await;
        let root = Root::open(&store.containerd.root()).unwrap();
        std::thread::scope(|scope| {
            let work = scope.spawn(|| churn(&store, 12));
            let mut reads = 0;
            while !work.is_finished() || reads < 5 {
                fits(&root.read().unwrap().inventory);
                reads += 1;
            }
            work.join().unwrap();
        });
    }
}

/// What is in one database is of one moment; what the other does not have yet or any more is named.
fn fits(inventory: &Inventory) {
    let blobs: BTreeSet<_> = inventory.blobs.iter().map(|blob| (blob.namespace, &blob.digest)).collect();
    for record in &inventory.records {
        assert!(blobs.contains(&(record.namespace, &record.target)), "{record:?} without its target");
    }
    let of = |row: &SnapshotRow| (row.namespace, row.snapshotter.clone());
    let keys: BTreeSet<_> = inventory.snapshots.iter().map(|row| (of(row), &row.key)).collect();
    let told = |key: &str| inventory.gaps.iter().any(|gap| gap.what.contains(key));
    for row in &inventory.snapshots {
        assert!(row.kind != SnapshotKind::Unknown, "{row:?}");
        let has_parent = row.parent.as_ref().is_none_or(|parent| keys.contains(&(of(row), parent)) || told(parent));
        assert!(has_parent, "{row:?} without its parent; {:?}", inventory.gaps);
    }
    let moments = |gap: &Gap| gap.why.contains("the snapshotter does not know it") || gap.what.starts_with("whether");
    assert!(inventory.gaps.iter().all(moments), "{:?}", inventory.gaps);
}

#[test]
fn what_is_no_root_is_refused_and_a_root_inside_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = offline::load(dir.path()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "is not the root of a containerd: expected directories like io.containerd.metadata.v1.bolt in it"
        ),
        "{message}"
    );
    let inside = dir.path().join("agent/containerd");
    std::fs::create_dir_all(inside.join("io.containerd.content.v1.content")).unwrap();
    let message = offline::load(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with(&format!("did you mean {}?", inside.display())), "{message}");
    let message = offline::load(&dir.path().join("nothing")).unwrap_err().to_string();
    assert!(message.starts_with("listing ") && message.contains("No such file"), "{message}");
    // Only content is there.
    let stored = Root::open(&inside).unwrap().read().unwrap();
    let gaps: BTreeSet<&str> = stored.inventory.gaps.iter().map(|gap| &gap.what[..20]).collect();
    assert_eq!(gaps, ["all that meta.db rec"].into());
    assert!(stored.inventory.gaps[0].why.contains("io.containerd.metadata.v1.bolt/meta.db: No such file"));
}

#[tokio::test]
async fn whether_a_snapshot_is_there_is_told_as_long_as_it_is() {
    for programs in generations() {
        let store = Store::filled(&programs, false).await;
        store.ctr("k8s.io", &["snapshots", "prepare", "made-here"]);
        let root = Root::open(&store.containerd.root()).unwrap();
        let (standing, stored) = (root.standing(), root.read().unwrap());
        let made = stored.inventory.snapshots.iter().find(|row| &*row.key == "made-here").expect("it was made");
        let others = stored
            .inventory
            .snapshots
            .iter()
            .filter(|row| &*row.snapshotter == "overlayfs" && &*row.key != "made-here");
        let trees: Vec<_> = others.filter_map(|row| stored.tree(row)).collect();
        let tree = stored.tree(made).expect("its form is known");
        assert!(standing.has("overlayfs", &tree) && !standing.has("native", &tree) && !standing.has("none", &tree));
        store.ctr("k8s.io", &["snapshots", "rm", "made-here"]);
        store.ctr("k8s.io", &["leases", "create", "--id", "collect"]);
        store.ctr("k8s.io", &["leases", "rm", "--sync", "collect"]);
        assert!(!standing.has("overlayfs", &tree), "{}", programs.version());
        assert!(trees.iter().any(|tree| standing.has("overlayfs", tree)), "the others stay");
    }
}
