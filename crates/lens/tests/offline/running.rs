//! What is read of the files of a containerd that runs instead of its lists is what it lists, or nothing.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use orlop_graph::model::Inventory;
use orlop_lens::offline::{Extent, Root, Unsuited};
use orlop_lens::{Listing, Reader};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::go::Module;
use rustix::process::Signal;

use crate::store::{Store, generations, image};
use crate::{assert_same, by_api, sorted};

/// What is active is asked of the server.
async fn measured(store: &Store, listing: Listing) -> Inventory {
    let reader = Reader::new(orlop_api::channel::unix(&store.containerd.socket()).await.unwrap());
    let mut inventory = listing.inventory;
    reader.measure(&mut inventory, |_| true).await.unwrap();
    sorted(inventory)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_containerd_lists_what_its_files_say() {
    for (programs, cri) in generations().into_iter().flat_map(|programs| [(programs.clone(), false), (programs, true)])
    {
        let what = format!("{}, CRI plugin: {cri}", programs.version());
        let store = Store::filled(&programs, cri).await;
        let root = Root::open(&store.containerd.root()).unwrap();
        // Something that no namespace has, and that the API does not list: it is no reason to ask it.
        std::fs::create_dir(root.path().join("io.containerd.snapshotter.v1.overlayfs/snapshots/rm-77")).unwrap();
        let mut theirs = by_api(&store.containerd).await;
        let ours = loop {
            let ours = measured(&store, root.running(Extent::Everything).unwrap()).await;
            let before = std::mem::replace(&mut theirs, by_api(&store.containerd).await);
            if before == theirs {
                break ours;
            }
        };
        store.holds_something_of_everything(&theirs, cri);
        assert_same(&ours, &theirs, &what);
        lists_of_images(&store, &root, &what).await;
    }
}

/// What lists of images show, with and without snapshots.
async fn lists_of_images(store: &Store, root: &Root, what: &str) {
    let reader = Reader::new(orlop_api::channel::unix(&store.containerd.socket()).await.unwrap());
    let all = reader.listing(usize::MAX).await.unwrap().inventory.snapshots.len();
    assert!(all > 5, "{what}");
    for most in [0, 1, all - 1, all, usize::MAX] {
        let theirs = reader.listing(most).await.unwrap();
        let ours = root.running(Extent::Listing { snapshots: most }).unwrap();
        assert_eq!(ours.all_snapshots, theirs.all_snapshots, "{what}: {most} of {all}");
        let mut theirs = theirs.inventory;
        reader.measure(&mut theirs, |_| true).await.unwrap();
        let ours = measured(store, Listing { all_snapshots: true, inventory: ours.inventory }).await;
        assert_same(&ours, &sorted(theirs), &format!("{what}: {most} of {all}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_its_file_is_listed_as_by_the_api_and_files_that_tell_less_than_it_are_not_used() {
    for programs in generations() {
        let store = Store::filled(&programs, false).await;
        let root = Root::open(&store.containerd.root()).unwrap();
        let blobs = root.path().join("io.containerd.content.v1.content/blobs/sha256");
        std::fs::remove_file(blobs.join(store.blob.hex())).unwrap();
        let ours = measured(&store, root.running(Extent::Everything).unwrap()).await;
        assert_same(&ours, &by_api(&store.containerd).await, &programs.version());
        // As of a snapshotter that keeps its files elsewhere.
        let snapshotter = root.path().join("io.containerd.snapshotter.v1.native");
        std::fs::rename(&snapshotter, root.path().join("elsewhere")).unwrap();
        let Unsuited::Gap(gap) = root.running(Extent::Everything).unwrap_err() else { panic!("a gap") };
        assert!(gap.why.contains("keeps its files elsewhere"), "{gap:?}");
        std::fs::rename(root.path().join("elsewhere"), &snapshotter).unwrap();
        assert!(root.running(Extent::Everything).is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_the_files_are_is_known_by_their_lock_and_reading_leaves_them_as_they_were() {
    for programs in generations() {
        let mut store = Store::filled(&programs, false).await;
        let root = Root::open(&store.containerd.root()).unwrap();
        let connection = tokio::net::UnixStream::connect(store.containerd.socket()).await.unwrap();
        let server = connection.peer_cred().unwrap().pid().unwrap().unsigned_abs();
        // It waits for its clients when it ends.
        drop(connection);
        assert!(root.is_held_by(server) && !root.is_held_by(std::process::id()));
        assert!(root.database_bytes().unwrap() > 10_000);
        store.containerd.stop(Signal::TERM);
        assert!(!root.is_held_by(server));
        let before = Fingerprint::of(root.path(), &fingerprint::Options::default()).unwrap();
        root.running(Extent::Everything).unwrap();
        let after = Fingerprint::of(root.path(), &fingerprint::Options::default()).unwrap();
        before.assert_same(&after, "reading leaves the root as it was");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_containerd_that_works_records_come_with_their_targets_or_nothing_comes() {
    for programs in generations() {
        let store = Store::filled(&programs, false).await;
        let root = Root::open(&store.containerd.root()).unwrap();
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                for round in 0..12 {
                    let name = format!("docker.io/library/churn:{}", round % 3);
                    store.import("churn", &name, &image(&name), "overlayfs");
                    if round % 2 == 1 {
                        store.ctr("churn", &["images", "rm", "--sync", &name]);
                    }
                }
            });
            let mut read = 0;
            while !work.is_finished() || read == 0 {
                let Ok(listing) = root.running(Extent::Everything) else { continue };
                assert_eq!(listing.inventory.gaps, []);
                read += 1;
            }
            work.join().unwrap();
        });
    }
}

/// A program that writes `meta.db` without pause.
struct Writer(Child);

impl Writer {
    fn start(program: &Path, root: &Path, count: usize, bytes: usize) -> Self {
        let directory = root.join("io.containerd.metadata.v1.bolt");
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = Command::new(program);
        command.arg("pairs").arg(directory.join("meta.db")).arg(count.to_string()).arg(bytes.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
        Self(child)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// Which images are there; each of them with both records and its blob.
#[track_caller]
fn whole(inventory: &Inventory) -> BTreeSet<usize> {
    let number = |name: &str| name[2..].parse::<usize>().unwrap();
    let with = |letter: char| {
        let names = inventory.records.iter().map(|row| &row.name).filter(move |name| name.starts_with(letter));
        names.map(|name| number(name)).collect::<BTreeSet<_>>()
    };
    let blobs = inventory.blobs.iter().map(|row| usize::from_str_radix(row.digest.hex(), 16).unwrap()).collect();
    assert_eq!(with('a'), with('z'), "two states in one");
    assert_eq!(with('a'), blobs, "two states in one");
    with('a')
}

/// What one transaction makes is read whole or not at all, by both threads, and so is what it deletes: of a database that is
/// copied and of one that is too large for it, while somebody commits thousands of times a second.
#[test]
fn beside_a_writer_that_never_rests_one_state_is_read_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = Module::find("bolt").and_then(|module| module.program(dir.path())) else { return };
    let root = dir.path().join("small");
    let writer = Writer::start(&program, &root, 300, 10);
    let mut seen = BTreeSet::new();
    while seen.len() < 8 {
        if let Ok(listing) = Root::open(&root).unwrap().running(Extent::Everything) {
            seen.insert(whole(&listing.inventory));
        }
    }
    writer.end();
    let root = dir.path().join("large");
    let writer = Writer::start(&program, &root, 4_000, 20_000);
    let reader = Root::open(&root).unwrap();
    assert!(reader.database_bytes().unwrap() > 64 << 20);
    for _ in 0..5 {
        match reader.running(Extent::Everything) {
            Ok(listing) => drop(whole(&listing.inventory)),
            Err(why) => assert!(why.to_string().contains("meta.db"), "{why}"),
        }
    }
    writer.end();
    assert!(whole(&reader.running(Extent::Everything).unwrap().inventory).len() > 1_000);
}
