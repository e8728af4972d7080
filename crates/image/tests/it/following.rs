//! Whoever has listed and measured a root before, and followed it since, says of it what one says who reads it for the first
//! time: whatever was done, by him or by another process.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::common::{self, Made, Node, on, scope};
use orlop_content::{IngestOptions, Ingester};
use orlop_image::{DiskUsage, ImageRow, Images, ListRequest, RecordRow, RemoveRequest, Settings};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Image, ImageChange, Labels, Scope, Store};
use orlop_oci::{Descriptor, DiffId, Digest, chain_ids};
use orlop_testkit::tier;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const NAMESPACES: [&str; 2] = ["k8s.io", "moby"];
const DRIVER: &str = "native";
const STEPS: usize = 40;

/// What is said of a root, without what grows by being asked: database and log.
#[derive(Debug, PartialEq)]
struct Said {
    images: Vec<ImageRow>,
    records: Vec<RecordRow>,
    filtered: Vec<RecordRow>,
    usage: DiskUsage,
}

async fn said(images: &Images, records_first: bool) -> Said {
    let everywhere = ListRequest { all_namespaces: true, ..ListRequest::default() };
    let filtered = ListRequest { filters: vec!["labels.team==b".to_owned()], ..ListRequest::default() };
    // Records alone need less than images, and are asked for with and without them.
    let early = if records_first { Some(images.records(&scope(), &everywhere).await.unwrap()) } else { None };
    let usage = images.disk_usage(&scope(), true).await.unwrap();
    let said = Said {
        images: images.images(&scope(), &everywhere).await.unwrap(),
        records: images.records(&scope(), &everywhere).await.unwrap(),
        filtered: images.records(&scope(), &filtered).await.unwrap(),
        usage: DiskUsage { total: 0, metadata: 0, ..usage },
    };
    assert!(early.is_none_or(|early| early == said.records));
    assert_eq!(said.images, said.usage.images);
    said
}

/// A root that changes at random, by two processes.
struct World {
    random: StdRng,
    made: Made,
    targets: Vec<Descriptor>,
    /// Of layers, lowest first.
    chains: Vec<Vec<String>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            made: Made::default(),
            targets: Vec::new(),
            chains: Vec::new(),
        };
        for n in 0..6_u8 {
            let layers: Vec<Vec<u8>> =
                (0..3_u8).map(|layer| vec![layer * (n / (layer + 1)); 700 * usize::from(layer + 1)]).collect();
            let diffs: Vec<DiffId> = layers.iter().map(|layer| DiffId::new(Digest::of(layer))).collect();
            world.chains.push(chain_ids(&diffs).iter().map(ToString::to_string).collect());
            let image = world.made.image_by(&format!("author {n}"), &layers);
            world.targets.push(image);
        }
        let (first, second) = (world.targets[0].clone(), world.targets[1].clone());
        world.targets.push(world.made.index(&[on(&first, "amd64"), on(&second, "arm64")]));
        world.targets.push(Descriptor::new("application/octet-stream", Digest::of(b"nowhere"), 7));
        world
    }

    fn one_of<T: Clone>(&mut self, things: &[T]) -> T {
        things[self.random.random_range(0..things.len())].clone()
    }

    fn scope(&mut self) -> Scope {
        Scope::new(self.one_of(&NAMESPACES), "test")
    }

    fn name(&mut self) -> String {
        match self.random.random_range(0..4) {
            0 => self.one_of(&self.targets.clone()).digest.to_string(),
            1 => format!("r.example/a@{}", self.one_of(&self.targets.clone()).digest),
            _ => format!("r.example/{}:{}", self.random.random_range(0..4), self.random.random_range(0..3)),
        }
    }

    async fn step(&mut self, images: &Images) {
        let kind = self.random.random_range(0..14);
        self.change(images, kind).await;
    }

    async fn change(&mut self, images: &Images, kind: u64) {
        let (store, scope) = (images.store(), self.scope());
        match kind {
            0..=2 => self.put_blobs(store, &scope).await,
            3..=5 => self.put_record(store, &scope),
            6 => {
                let name = self.name();
                store.write_images(&scope, &[ImageChange::Delete { name }]).unwrap();
            }
            7 => self.unpack(store, &scope),
            8 => self.drop_snapshot(store, &scope),
            9 => self.drop_blob(store, &scope),
            10 => self.label(store, &scope),
            11 => {
                let disposal = if self.random.random_bool(0.5) {
                    Disposal::Reclaim
                } else {
                    Disposal::Trash { reason: "test".to_owned() }
                };
                store.collect(disposal).unwrap();
            }
            12 => {
                let names = vec![self.name()];
                // What is not there cannot be removed.
                _ = images.remove(&scope, &RemoveRequest { names, ..RemoveRequest::default() }).await;
            }
            _ => _ = images.undo(&scope, None).await,
        }
    }

    /// Some of what was made, as another program brings it: nobody has read it.
    async fn put_blobs(&mut self, store: &Store, scope: &Scope) {
        let content = store.content(scope);
        let part = self.random.random_range(0.2..1.0);
        for (digest, (_, bytes)) in self.made.blobs.clone() {
            let options = IngestOptions {
                reference: digest.to_string(),
                total: bytes.len() as u64,
                expected: Some(digest.clone()),
            };
            if self.random.random_bool(part)
                && let Ok(mut writer) = content.writer(options).await
            {
                writer.write(bytes.slice(writer.status().offset as usize..)).await.unwrap();
                writer.commit(bytes.len() as u64, Some(&digest)).await.unwrap();
            }
        }
    }

    fn put_record(&mut self, store: &Store, scope: &Scope) {
        let (name, target) = (self.name(), self.one_of(&self.targets.clone()));
        let mut labels = Labels::from([("team".to_owned(), self.one_of(&["a", "b"]).to_owned())]);
        if self.random.random_bool(0.2) {
            labels.insert("io.cri-containerd.pinned".to_owned(), "pinned".to_owned());
        }
        if self.random.random_bool(0.1) {
            let layer = self.one_of(&self.made.order.clone());
            labels.insert("containerd.io/gc.ref.content.more".to_owned(), layer.to_string());
        }
        let now = jiff::Timestamp::now();
        let image = Image {
            name: name.clone(),
            target: target.clone(),
            labels: labels.clone(),
            created_at: now,
            updated_at: now,
        };
        if store.create_image(scope, image).is_err() {
            store.write_images(scope, &[ImageChange::Upsert { name, target, labels }]).unwrap();
        }
    }

    fn unpack(&mut self, store: &Store, scope: &Scope) {
        let snapshots = store.snapshots(scope, DRIVER).unwrap();
        let chain = self.one_of(&self.chains.clone());
        let mut parent = String::new();
        for key in chain.iter().take(self.random.random_range(1..=3)) {
            let active = format!("making {key}");
            if snapshots.prepare(&active, &parent, Labels::new()).is_ok() {
                let tree = snapshots.mounts(&active).unwrap().remove(0).source;
                let file = Path::new(&tree).join(format!("file-{}", self.random.random_range(0..3)));
                std::fs::write(&file, vec![1; self.random.random_range(0..20_000)]).unwrap();
                // A file with two names, as layers have them.
                _ = std::fs::hard_link(&file, file.with_extension("again"));
                if self.random.random_bool(0.2) {
                    return;
                }
                // Without that name if it is there already.
                _ = snapshots.commit(key, &active, None, Labels::new());
            }
            parent = key.clone();
        }
    }

    fn drop_snapshot(&mut self, store: &Store, scope: &Scope) {
        let snapshots = store.snapshots(scope, DRIVER).unwrap();
        if let Some(top) = snapshots.list(&[]).unwrap().last() {
            _ = snapshots.remove(&top.name);
        }
    }

    fn drop_blob(&mut self, store: &Store, scope: &Scope) {
        let digest = self.one_of(&self.made.order.clone());
        _ = store.content(scope).forget(&digest);
    }

    /// Labels that say nothing, or so much that a file beside the tree grows, or that something stays.
    fn label(&mut self, store: &Store, scope: &Scope) {
        let (digest, long) = (self.one_of(&self.made.order.clone()), "x".repeat(4_000));
        let key = self.one_of(&["containerd.io/gc.root", "note"]).to_owned();
        _ = store.content(scope).update(&digest, Labels::from([(key.clone(), "yes".to_owned())]), &[]);
        let snapshots = store.snapshots(scope, DRIVER).unwrap();
        if let Some(top) = snapshots.list(&[]).unwrap().first() {
            snapshots.update(&top.name, Labels::from([(key, long)]), &[]).unwrap();
        }
    }
}

/// Waits until the directories of a root have been left alone for so long that their times tell all changes to come.
async fn leave_alone(root: &Path) {
    let directories = ["content/blobs/sha256", "snapshots/native"].map(|directory| root.join(directory));
    let second = |directory: &PathBuf| directory.metadata().map_or(0, |found| found.ctime());
    let newest = directories.iter().map(second).max().unwrap_or_default();
    while jiff::Timestamp::now().as_second() <= newest + 4 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// Each kind of change, made in a root that nobody touched for a while: nothing says so but the times of two directories and
/// the rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_seen_in_a_root_that_was_left_alone() {
    let roots = (0..14).map(|kind| async move {
        let (node, mut world) = (Node::new(), World::new(100 + kind));
        let other = common::open(&node.root, Settings::default());
        for _ in 0..30 {
            world.step(&node.images).await;
        }
        // One that is not committed yet.
        let open = node.store().snapshots(&scope(), DRIVER).unwrap();
        open.prepare("open", "", Labels::new()).unwrap();
        said(&node.images, false).await;
        leave_alone(&node.root).await;
        // Read while nothing changed, then believed.
        for _ in 0..3 {
            said(&node.images, false).await;
        }
        let tree = open.mounts("open").unwrap().remove(0).source;
        std::fs::write(Path::new(&tree).join("file"), vec![1; 50_000]).unwrap();
        for step in 0..3 {
            let anew = said(&common::open(&node.root, Settings::default()), false).await;
            assert_eq!(said(&node.images, false).await, anew, "kind {kind}, step {step}");
            match step {
                // Its directory stays where it is.
                0 => open.commit("committed", "open", None, Labels::new()).unwrap(),
                _ => world.change(&other, kind).await,
            }
        }
        let anew = said(&common::open(&node.root, Settings::default()), false).await;
        assert_eq!(said(&node.images, false).await, anew, "kind {kind}");
    });
    futures::future::join_all(roots).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_followed_is_told_as_one_that_is_read_anew() {
    let roots: u64 = tier::amount("ORLOP_TEST_FOLLOWED", 4);
    for seed in 0..roots {
        let (node, mut world) = (Node::new(), World::new(seed));
        let other = common::open(&node.root, Settings::default());
        for step in 0..STEPS {
            // Several at once, of both processes, before anybody looks.
            for _ in 0..world.random.random_range(0..3) {
                let by = if world.random.random_bool(0.5) { &node.images } else { &other };
                world.step(by).await;
            }
            let records_first = world.random.random_bool(0.3);
            let followed = said(&node.images, records_first).await;
            let anew = said(&common::open(&node.root, Settings::default()), false).await;
            assert_eq!(followed, anew, "seed {seed}, step {step}");
        }
    }
}
