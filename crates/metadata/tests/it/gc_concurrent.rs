//! Pulls, removals and undos in threads while other threads and processes collect as fast as they can.
//!
//! Every puller owns its image names but all draw their blobs from one small pool, in two namespaces; so blobs are
//! adopted, committed twice, doomed and wanted again all the time. What a pull has made must be readable from its
//! acknowledgement to its removal.
//!
//! The collecting processes are this test program, running `child_collects` alone.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use crate::rig;
use crate::rig::{DRIVER, Rig, digest, image, labels};
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{Image, ImageChange, Scope, Store};
use orlop_oci::Digest;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const NAMESPACES: [&str; 2] = ["one", "two"];
const PULLERS: usize = 3;

/// Layers that pulls choose from.
const POOL: u64 = 6;

const ROOT: &str = "ORLOP_TEST_COLLECT_IN";

fn rounds() -> usize {
    // A history of the property tests costs about as much as three rounds.
    std::env::var("ORLOP_TEST_SCHEDULES").ok().and_then(|n| n.parse::<usize>().ok()).map_or(40, |n| n / 3 + 1)
}

fn layer(number: u64) -> Vec<u8> {
    // Some take several reads and writes, so that commits overlap.
    format!("layer {number} ").repeat(if number.is_multiple_of(2) { 1 } else { 40_000 }).into_bytes()
}

struct Puller {
    store: Store,
    runtime: tokio::runtime::Runtime,
    rng: StdRng,
    who: usize,
}

impl Puller {
    fn run(&mut self) {
        for round in 0..rounds() {
            let namespace = NAMESPACES[self.rng.random_range(0..2)];
            let name = format!("{} {round}", self.who);
            let held = self.pull(namespace, &name);
            self.verify(&held, "after the pull");
            let scope = Scope::new(namespace, "test");
            let delete = [ImageChange::Delete { name: name.clone() }];
            match self.rng.random_range(0..4) {
                0 => self.store.write_images(&scope, &delete).expect("deleted"),
                1 => {
                    let report = self
                        .store
                        .delete_images(&scope, &delete, &Disposal::Trash { reason: "test".into() }, None)
                        .expect("deleted");
                    let undone = self.store.undo(&scope, report.trash.as_deref()).expect("undone");
                    assert_eq!(undone.images.len(), 1);
                    // What another puller reclaimed meanwhile, after this one let go of it, is nowhere.
                    let back: Vec<_> = held.into_iter().filter(|d| !undone.missing.contains(d)).collect();
                    self.verify(&back, "after the undo");
                    self.store.write_images(&scope, &delete).expect("deleted");
                }
                2 => {
                    self.store
                        .delete_images(&scope, &delete, &Disposal::Trash { reason: "test".into() }, None)
                        .expect("deleted");
                }
                _ => {}
            }
        }
    }

    /// As clients do it. Returns what the image needs.
    fn pull(&mut self, namespace: &str, name: &str) -> Vec<Digest> {
        let scope = self.store.scoped_lease(&Scope::new(namespace, "test"), 3600).expect("a lease");
        let layers: Vec<u64> = (0..POOL).filter(|_| self.rng.random_ratio(1, 2)).collect();
        let mut held = Vec::new();
        for &number in &layers {
            self.put(&scope, &format!("layer-{number}"), &layer(number));
            held.push(digest(&layer(number)));
        }
        // Manifests of equal layers are equal: they are shared, too.
        let manifest = format!("manifest of {layers:?}").into_bytes();
        self.put(&scope, &format!("manifest of {layers:?}"), &manifest);
        let target = digest(&manifest);
        let top = self.unpack(&scope, &layers);
        let mut refs = labels(&[]);
        for (at, digest) in held.iter().enumerate() {
            refs.insert(format!("containerd.io/gc.ref.content.l.{at}"), digest.to_string());
        }
        if let Some(top) = top {
            refs.insert(format!("containerd.io/gc.ref.snapshot.{DRIVER}"), top);
        }
        self.store.content(&scope).label_all(&[(target.clone(), refs)]).expect("labelled");
        let Image { target: descriptor, .. } = image(name, &target, &[]);
        let upsert = ImageChange::Upsert { name: name.to_owned(), target: descriptor, labels: labels(&[]) };
        self.store.write_images(&scope, &[upsert]).expect("written");
        self.store.delete_lease(namespace, scope.lease.as_deref().expect("made above")).expect("it is there");
        held.push(target);
        held
    }

    /// Locked means that another puller writes the same ref: wait as clients do.
    fn put(&self, scope: &Scope, reference: &str, bytes: &[u8]) {
        loop {
            match self.runtime.block_on(rig::put(&self.store, scope, reference, bytes)) {
                Ok(()) => {
                    // A commit that comes second may not have been leased; ask until it is.
                    let resource = orlop_metadata::Resource {
                        kind: orlop_metadata::ResourceKind::Content,
                        name: digest(bytes).to_string(),
                    };
                    let lease = scope.lease.as_deref().expect("a lease");
                    self.store.add_resource(&scope.namespace, lease, &resource).expect("leased");
                    if self.store.content(scope).stat(&digest(bytes)).is_ok() {
                        return;
                    }
                }
                Err(error) if error.is_temporary() => std::thread::yield_now(),
                // Who shares a ref shares its fate: the other aborted it, or committed it.
                Err(orlop_content::Error::NotFound { kind: "ingest", .. } | orlop_content::Error::Offset { .. }) => {}
                Err(error) => panic!("{reference}: {error}"),
            }
        }
    }

    /// Snapshots named by the layers below and including them. Returns the top's name.
    fn unpack(&mut self, scope: &Scope, layers: &[u64]) -> Option<String> {
        let snapshots = self.store.snapshots(scope, DRIVER).expect("the driver is there");
        let mut parent = String::new();
        for number in layers {
            let name = format!("{parent}/{number}");
            loop {
                let key = format!("extract {} {}", self.who, self.rng.random::<u64>());
                let target = labels(&[("containerd.io/snapshot.ref", &name)]);
                match snapshots.prepare(&key, &parent, target) {
                    Err(orlop_metadata::Error::AlreadyExists { .. }) => break,
                    other => drop(other.expect("prepared")),
                }
                match snapshots.commit(&name, &key, None, labels(&[])) {
                    Err(orlop_metadata::Error::AlreadyExists { .. }) => snapshots.remove(&key).expect("removed"),
                    other => other.expect("committed"),
                }
            }
            parent = name;
        }
        (!parent.is_empty()).then_some(parent)
    }

    fn verify(&self, held: &[Digest], when: &str) {
        let raw = self.store.raw_content();
        for digest in held {
            let read = self.runtime.block_on(orlop_content::read_verified(&**raw, digest, 1 << 20));
            assert!(read.is_ok(), "{digest} {when}: {:?}", read.err());
        }
    }
}

#[test]
fn child_collects() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = rig::open_at_real_time(Path::new(&root));
    // Until the parent takes the file away, or is gone itself with the whole directory.
    while Path::new(&root).join("go").exists() {
        store.collect(Disposal::Reclaim).expect("a collection");
    }
}

fn start_collector(root: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "gc_concurrent::child_collects", "--nocapture"])
        .env(ROOT, root)
        .stdout(Stdio::null())
        .spawn()
        .expect("a process")
}

fn assert_all_readable(rig: &Rig) {
    for namespace in NAMESPACES {
        for digest in rig.blobs(namespace) {
            assert!(rig.reads(&digest), "{digest} of {namespace} is lost");
        }
    }
}

#[test]
fn no_acknowledged_blob_is_lost() {
    let rig = Rig::at_real_time();
    std::fs::write(rig.directory.path().join("go"), b"").expect("written");
    let mut children = [start_collector(rig.directory.path()), start_collector(rig.directory.path())];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pullers: Vec<ScopedJoinHandle<'_, ()>> = (0..PULLERS)
            .map(|who| {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
                let mut puller = Puller {
                    store: rig::open_at_real_time(rig.directory.path()),
                    runtime: runtime.expect("a runtime"),
                    rng: StdRng::seed_from_u64(who as u64),
                    who,
                };
                scope.spawn(move || puller.run())
            })
            .collect();
        let full = rig::open_at_real_time(rig.directory.path());
        let collector = scope.spawn(|| {
            let full = full;
            while !stop.load(Ordering::Relaxed) {
                full.collect_full(Disposal::Reclaim).expect("a collection");
            }
        });
        let results: Vec<_> = pullers.into_iter().map(|p| p.join()).collect();
        stop.store(true, Ordering::Relaxed);
        collector.join().expect("collected");
        results.into_iter().for_each(|result| result.expect("pulled"));
    });
    children.iter_mut().for_each(|child| assert_eq!(child.try_wait().expect("asked"), None, "a collector ended early"));
    std::fs::remove_file(rig.directory.path().join("go")).expect("removed");
    children.iter_mut().for_each(|child| assert!(child.wait().expect("waited").success(), "a collector failed"));

    assert_all_readable(&rig);
    rig.store.empty_trash(0, 0).expect("emptied");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let full = rig.store.collect_full(Disposal::Reclaim).expect("a collection");
    assert_eq!(full.clone(), Report { visited: full.visited, ..Report::default() }, "missed by the incremental way");
    assert_all_readable(&rig);
    let rows = NAMESPACES.iter().flat_map(|ns| rig.blobs(ns)).map(|d| d.to_string()).collect();
    assert_eq!(rig.blobs_on_disk(), rows);
    assert_eq!(rig.trees_on_disk(), NAMESPACES.iter().map(|ns| rig.keys(ns).len()).sum::<usize>());
    assert_eq!(rig.writes_on_disk(), 0);
}
