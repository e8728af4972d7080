//! Whoever reads only what surrounds a thing learns of it what one learns who reads everything.

use std::fmt::Write as _;

use crate::common::{Node, labels, request};
use jiff::Timestamp;
use orlop_api::orlop::v1::SurroundingsRequest;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use orlop_content::{IngestOptions, Ingester};
use orlop_graph::model::{Inventory, Model, Node as Thing, NodeId, NodeKind};
use orlop_lens::Reader;
use orlop_metadata::{Container, Image, Labels, Resource, ResourceKind, Scope, Store, TypedBytes};
use orlop_oci::{Descriptor, Digest};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const NAMESPACES: [&str; 2] = ["default", "k8s.io"];
const DRIVER: &str = "native";
const LAYERS: usize = 9;

/// A store that is filled at random: images that share layers, some without a part, some of two platforms, in two
/// namespaces; unpacked or not; leases, containers, writes in progress, and every label that keeps something.
struct World {
    store: Store,
    rng: StdRng,
}

impl World {
    fn scope(namespace: &str) -> Scope {
        Scope::new(namespace, "test")
    }

    fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    /// Commits a blob with labels, or leaves it out at times. Says its digest.
    async fn blob(&mut self, namespace: &str, text: &str, labels: Labels) -> Digest {
        let digest = Digest::of(text.as_bytes());
        if self.chance(0.1) {
            return digest;
        }
        let content = self.store.content(&Self::scope(namespace));
        let options = IngestOptions { reference: text.into(), total: 0, expected: Some(digest.clone()) };
        // One that is there already keeps its labels.
        if let Ok(mut writer) = content.writer(options).await {
            // The bytes are taken over from another namespace that has them.
            if writer.status().offset == 0 {
                writer.write(text.to_owned().into()).await.unwrap();
            }
            writer.commit(0, Some(&digest)).await.unwrap();
            content.update(&digest, labels, &[]).unwrap();
        }
        digest
    }

    /// A chain of snapshots for layers, as deep as it happens to be unpacked. Says the key of the top.
    fn unpacked(&mut self, namespace: &str, layers: &[usize]) -> Option<String> {
        let snapshots = self.store.snapshots(&Self::scope(namespace), DRIVER).unwrap();
        let mut top: Option<String> = None;
        for depth in 1..=layers.len() {
            if self.chance(0.15) {
                break;
            }
            let key = Digest::of(format!("chain {:?}", &layers[..depth]).as_bytes()).to_string();
            let parent = top.clone().unwrap_or_default();
            if snapshots.stat(&key).is_err() {
                let used = Timestamp::now().to_string();
                let labels = labels(&[("containerd.io/gc.cond.value-usedat", &used)]);
                snapshots.prepare(&format!("making {key}"), &parent, labels.clone()).unwrap();
                snapshots.commit(&key, &format!("making {key}"), None, labels).unwrap();
            }
            top = Some(key);
        }
        top
    }

    async fn manifest(&mut self, namespace: &str, number: usize, top: Option<&String>, layers: &[usize]) -> Digest {
        let mut of_config = Labels::new();
        if let Some(top) = top {
            let kind = if self.chance(0.2) {
                "containerd.io/gc.cond.snapshot.native"
            } else {
                "containerd.io/gc.ref.snapshot.native"
            };
            let value = if kind.contains("cond") { format!("usedat<1h|{top}") } else { top.clone() };
            of_config.insert(kind.into(), value);
        }
        let config = self.blob(namespace, &format!("config {number}"), of_config).await;
        let mut own = labels(&[("containerd.io/gc.ref.content.config", config.as_str())]);
        for (at, layer) in layers.iter().enumerate() {
            let diff = Digest::of(format!("diff {layer}").as_bytes());
            let of_layer = labels(&[("containerd.io/uncompressed", diff.as_str())]);
            let blob = self.blob(namespace, &format!("layer {layer}"), of_layer).await;
            own.insert(format!("containerd.io/gc.ref.content.l.{at}"), blob.to_string());
        }
        self.blob(namespace, &format!("manifest {number} {layers:?}"), own).await
    }

    async fn image(&mut self, namespace: &str, number: usize) {
        let layers: Vec<usize> = (0..LAYERS).filter(|layer| *layer == 0 || self.rng.random_bool(0.3)).collect();
        let top = self.unpacked(namespace, &layers);
        let mut target = self.manifest(namespace, number, top.as_ref(), &layers).await;
        if self.chance(0.3) {
            let second = self.manifest(namespace, number + 100, None, &layers[1..]).await;
            let both = labels(&[
                ("containerd.io/gc.ref.content.m.0", target.as_str()),
                ("containerd.io/gc.ref.content.m.1", second.as_str()),
            ]);
            target = self.blob(namespace, &format!("index {number}"), both).await;
        }
        let config = Digest::of(format!("config {number}").as_bytes());
        let repository = format!("registry.example/app{}", number % 3);
        let mut names = vec![format!("{repository}:{number}")];
        names.extend(self.chance(0.6).then(|| format!("{repository}@{target}")));
        names.extend(self.chance(0.6).then(|| config.to_string()));
        names.extend(self.chance(0.2).then(|| format!("docker.io/library/app{number}:latest")));
        for name in names {
            let target = Descriptor::new("application/vnd.oci.image.manifest.v1+json", target.clone(), 7);
            let now = Timestamp::UNIX_EPOCH;
            let image = Image { name: name.clone(), target, labels: Labels::new(), created_at: now, updated_at: now };
            // An ID record of another index of the same image may be there.
            let _ = self.store.create_image(&Self::scope(namespace), image);
            if self.chance(0.3) {
                self.container(namespace, &format!("c-{number}-{}", name.len()), top.as_deref(), &name);
            }
        }
    }

    fn container(&mut self, namespace: &str, id: &str, top: Option<&str>, image: &str) {
        let snapshots = self.store.snapshots(&Self::scope(namespace), DRIVER).unwrap();
        let key = format!("rootfs-{id}");
        let made = self.chance(0.8) && snapshots.prepare(&key, top.unwrap_or_default(), Labels::new()).is_ok();
        let container = Container {
            id: id.into(),
            labels: Labels::new(),
            image: image.into(),
            runtime: "runtime".into(),
            runtime_options: None,
            spec: Some(TypedBytes::default()),
            snapshotter: if made { DRIVER.into() } else { String::new() },
            snapshot_key: if made { key } else { String::new() },
            sandbox: String::new(),
            extensions: Default::default(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        };
        let _ = self.store.create_container(&Self::scope(namespace), container);
    }

    /// What holds things by other means than names.
    async fn holders(&mut self, namespace: &str) {
        let content = self.store.content(&Self::scope(namespace));
        for number in 0..3 {
            let id = format!("lease-{number}");
            let flat = labels(&[("containerd.io/gc.flat", "1")]);
            self.store.create_lease(namespace, &id, if number == 0 { flat } else { Labels::new() }).unwrap();
            let layer = Digest::of(format!("layer {}", self.rng.random_range(0..LAYERS)).as_bytes());
            let config = Digest::of(format!("config {}", self.rng.random_range(0..6)).as_bytes()).to_string();
            for (kind, name) in [
                (ResourceKind::Content, layer.to_string()),
                (ResourceKind::Images, config),
                (ResourceKind::Snapshots(DRIVER.into()), format!("rootfs-c-{number}-24")),
                (ResourceKind::Ingests, "half".into()),
            ] {
                if self.chance(0.7) {
                    self.store.add_resource(namespace, &id, &Resource { kind, name }).unwrap();
                }
            }
            let label = match number {
                0 => ("containerd.io/gc.root", "yes"),
                1 => ("containerd.io/gc.bref.image", "registry.example/app1:1"),
                _ => ("containerd.io/gc.ref.image.of", "registry.example/app2:2"),
            };
            let _ = content.update(&layer, labels(&[label]), &[format!("labels.{}", label.0)]);
        }
        let missing = Digest::of(format!("layer {LAYERS}").as_bytes());
        let options = IngestOptions { reference: "half".into(), total: 100, expected: Some(missing) };
        let mut writer = content.writer(options).await.unwrap();
        writer.write("some".into()).await.unwrap();
    }
}

async fn filled(node: &Node, seed: u64) {
    let mut world = World { store: node.store.clone(), rng: StdRng::seed_from_u64(seed) };
    for namespace in NAMESPACES {
        for number in 0..if namespace == "default" { 3 } else { 7 } {
            world.image(namespace, number).await;
        }
        world.holders(namespace).await;
    }
}

fn name(model: &Model, node: NodeId) -> String {
    let namespace = model.namespace(model.node(node).namespace());
    let name = match model.node(node) {
        Thing::Record(row) => row.name.to_string(),
        Thing::Blob(row) => row.digest.to_string(),
        Thing::Snapshot(row) => row.key.to_string(),
        Thing::Lease(row) => row.id.to_string(),
        Thing::Ingest(row) => format!("{} {}/{}", row.reference, row.offset, row.total),
        Thing::Container(row) => row.id.to_string(),
        Thing::Missing(missing) => format!("{:?}", missing.resource),
    };
    format!("{namespace}/{:?}/{name}", model.kind(node))
}

fn names(model: &Model, nodes: impl IntoIterator<Item = NodeId>) -> Vec<String> {
    nodes.into_iter().map(|node| name(model, node)).collect()
}

/// Everything that commands say of what a text means.
fn answer(model: &Model, text: &str) -> String {
    let mut said = String::new();
    for found in model.find(text) {
        let node = found.node;
        writeln!(said, "{:?} {} {:?}", found.matched, name(model, node), model.labels(node)).unwrap();
        for chain in model.chains(node) {
            let links: Vec<_> = chain.links.iter().map(|l| (format!("{:?}", l.why), name(model, l.node))).collect();
            writeln!(said, "  kept by {} {:?} {links:?}", name(model, chain.root), model.root(chain.root)).unwrap();
        }
        let edges = |edges: Vec<(String, NodeId)>| -> Vec<_> {
            edges.into_iter().map(|(why, node)| (why, name(model, node))).collect()
        };
        let from = model.references(node).map(|edge| (format!("{:?}", edge.why), edge.node)).collect();
        let to = model.referrers(node).map(|edge| (format!("{:?}", edge.why), edge.node)).collect();
        writeln!(said, "  from {:?}\n  to {:?}", edges(from), edges(to)).unwrap();
        writeln!(said, "  cost {:?} keepers {:?}", model.cost(&[node]), names(model, model.keepers(node))).unwrap();
        match model.kind(node) {
            NodeKind::Record => writeln!(said, "{}", of_record(model, node)).unwrap(),
            NodeKind::Blob => writeln!(said, "  role {:?}", model.role(node)).unwrap(),
            NodeKind::Snapshot | NodeKind::Container => {
                let top = model.image_top(node);
                writeln!(said, "  top {:?}", names(model, top)).unwrap();
                // Without one the name tells, as far as it goes.
                if let (Thing::Container(row), None) = (model.node(node), top)
                    && let Some(record) = model.record(row.namespace, &row.image)
                {
                    writeln!(said, "{}", of_record(model, record)).unwrap();
                }
            }
            _ => {}
        }
    }
    said
}

fn of_record(model: &Model, record: NodeId) -> String {
    let family = model.family(record);
    let here: Vec<NodeId> =
        family.iter().copied().filter(|f| model.node(*f).namespace() == model.node(record).namespace()).collect();
    let plan = model.removal(&[record]);
    let ids: Vec<_> = family.iter().map(|record| model.image_id(*record)).collect();
    format!(
        "  id {:?} family {:?} {ids:?}\n  users {:?}\n  cost {:?}\n  removal of {:?} frees {} in use {:?} unpullable {:?}\n  items {:?}",
        model.image_id(record),
        names(model, family.iter().copied()),
        names(model, model.users(&here)),
        model.cost(&here),
        names(model, plan.records.iter().copied()),
        plan.freed.bytes() - plan.garbage.bytes(),
        names(model, plan.in_use),
        names(model, plan.unpullable),
        names(model, model.items_of(&here)),
    )
}

/// Every name by which something in the store can be meant.
fn texts(all: &Inventory) -> Vec<String> {
    let mut texts: Vec<String> = all.records.iter().map(|row| row.name.to_string()).collect();
    texts
        .extend(all.records.iter().filter_map(|row| Some(row.name.get(..row.name.len().checked_sub(40)?)?.to_owned())));
    texts.extend(all.records.iter().filter_map(|row| {
        let short = row.name.strip_prefix("docker.io/library/")?;
        Some(short.trim_end_matches(":latest").to_owned())
    }));
    for blob in &all.blobs {
        texts.extend([blob.digest.to_string(), blob.digest.hex()[..9].to_owned()]);
        texts.extend(blob.labels.get("containerd.io/uncompressed").map(str::to_owned));
        texts.extend(blob.labels.get("containerd.io/uncompressed").map(|id| id[7..20].to_ascii_uppercase()));
    }
    for snapshot in &all.snapshots {
        texts.extend([snapshot.key.to_string(), snapshot.key[..8].to_owned(), snapshot.key[7..].to_owned()]);
    }
    texts.extend(all.leases.iter().map(|row| row.id.to_string()));
    texts.extend(all.containers.iter().flat_map(|row| [row.id.to_string(), row.id[..4].to_owned()]));
    texts.extend(all.ingests.iter().map(|row| row.reference.to_string()));
    texts.extend(["nothing of this name".to_owned(), "0123".into(), "lease-".into(), " ".into()]);
    texts.sort();
    texts.dedup();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn what_surrounds_a_thing_says_of_it_what_everything_says() {
    for seed in 0..3 {
        let node = Node::new();
        filled(&node, seed).await;
        let reader = Reader::new(node.channel.clone());
        let all = reader.inventory(None).await.unwrap();
        assert_eq!(all.gaps, []);
        let (taken, texts, count) = (all.taken, texts(&all), all.records.len() + all.blobs.len());
        let whole = Model::new(all);
        let mut smaller = 0;
        for text in texts {
            let mut part = reader.surroundings("k8s.io", &text).await.unwrap().expect("few things");
            part.taken = taken;
            assert_eq!(part.gaps, []);
            smaller += usize::from(part.records.len() + part.blobs.len() < count);
            assert_eq!(answer(&Model::new(part), &text), answer(&whole, &text), "seed {seed}, {text:?}");
        }
        assert!(smaller > 10, "seed {seed}: nearly everything surrounds everything");
    }
}

#[tokio::test]
async fn too_many_things_are_none() {
    let node = Node::new();
    filled(&node, 1).await;
    let mut client = OrlopClient::new(node.channel.clone());
    let mut asked = async |most| {
        let asked = SurroundingsRequest { text: "registry.example/app1:1".into(), most };
        let mut stream = client.surroundings(request(asked)).await.unwrap().into_inner();
        let (mut things, mut too_many) = (0, false);
        while let Some(page) = stream.message().await.unwrap() {
            things += page.things.len();
            too_many |= page.too_many;
        }
        (things, too_many)
    };
    let (things, too_many) = asked(0).await;
    assert!(things > 5 && !too_many, "{things}");
    assert_eq!(asked(3).await, (0, true));
    assert_eq!(asked(10_000).await, (things, false));
}

/// Whoever reads is told to read the lists then.
#[tokio::test]
async fn what_too_many_things_hang_on_is_read_from_the_lists() {
    let node = Node::new();
    let content = node.store.content(&World::scope("k8s.io"));
    let bytes = "it refers to many";
    let options = IngestOptions { reference: "many".into(), total: 0, expected: None };
    let mut writer = content.writer(options).await.unwrap();
    writer.write(bytes.into()).await.unwrap();
    let digest = Digest::of(bytes.as_bytes());
    writer.commit(0, Some(&digest)).await.unwrap();
    let reader = Reader::new(node.channel.clone());
    assert!(reader.surroundings("k8s.io", digest.as_str()).await.unwrap().is_some());
    let label = |at: u32| (format!("containerd.io/gc.ref.content.{at}"), Digest::of(&at.to_ne_bytes()).to_string());
    content.update(&digest, (0..5_001).map(label).collect(), &[]).unwrap();
    assert!(reader.surroundings("k8s.io", digest.as_str()).await.unwrap().is_none());
}
