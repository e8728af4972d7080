//! What containers mean for the records of the images they stand on.

use std::io::Cursor;

use crate::common::{Entry, Made, Node, Shelf};
use orlop_image::{ImportRequest, RemoveRequest};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Container, ImageChange, Labels, Resource, ResourceKind, Scope, TypedBytes};
use orlop_oci::{Descriptor, media_type};
use orlop_testkit::tar::tar;
use serde_json::json;

const NAME: &str = "example.com/app:1";

/// An archive of one image under [`NAME`], with `text` in its upper layer; the lower one is always the same.
fn archive(text: &str) -> (Made, Descriptor, Vec<u8>) {
    let mut made = Made::default();
    let image = made.image("amd64", &[vec![Entry::file("base", "base")], vec![Entry::file("own", text)]]);
    let blobs = made.blobs.iter().map(|(d, (_, bytes))| Entry::file(format!("blobs/sha256/{}", d.hex()), bytes));
    let mut entries: Vec<Entry> = blobs.collect();
    let mut named = serde_json::to_value(&image).unwrap();
    named["annotations"] = json!({"io.containerd.image.name": NAME});
    entries.push(Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#));
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [named]});
    entries.push(Entry::file("index.json", index.to_string()));
    let archive = tar(&entries);
    (made, image, archive)
}

async fn import(node: &Node, text: &str) -> (String, Descriptor) {
    let (made, image, archive) = archive(text);
    let mut source = Cursor::new(archive);
    node.images.import(&node.scope, &mut source, &ImportRequest::default(), &|_| {}).await.unwrap();
    (made.image_id(&image), image)
}

/// A container on the snapshot `key` that is prepared on `parent`. Its image's name says nothing.
fn run(node: &Node, key: &str, parent: &str) {
    run_of(node, key, parent, "example.com/other:1");
}

fn run_of(node: &Node, key: &str, parent: &str, image: &str) {
    let snapshots = node.store().snapshots(&node.scope, "").unwrap();
    snapshots.prepare(key, parent, Labels::new()).unwrap();
    record(node, key, image);
}

/// The record of a container on a snapshot that is there.
fn record(node: &Node, key: &str, image: &str) {
    let now = jiff::Timestamp::now();
    let container = Container {
        id: key.to_owned(),
        labels: Labels::new(),
        image: image.to_owned(),
        runtime: "runtime".to_owned(),
        runtime_options: None,
        spec: Some(TypedBytes::default()),
        snapshotter: node.store().snapshots(&node.scope, "").unwrap().driver_name().to_owned(),
        snapshot_key: key.to_owned(),
        sandbox: String::new(),
        extensions: Default::default(),
        created_at: now,
        updated_at: now,
    };
    node.store().create_container(&Scope::new("k8s.io", "test"), container).unwrap();
}

/// The committed snapshot on which nothing stands yet.
fn top(node: &Node) -> String {
    let all = node.store().snapshots(&node.scope, "").unwrap().list(&[]).unwrap();
    let is_parent = |key: &str| all.iter().any(|s| s.parent == key);
    all.iter().find(|s| !is_parent(&s.name)).unwrap().name.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn hash_references_stay_while_a_container_stands_on_the_image() {
    let node = Node::new();
    let (id, image) = import(&node, "first").await;
    run(&node, "web", &top(&node));

    // Another image takes the name, and is not taken for the one in use although they share a layer.
    let (next, _) = import(&node, "second").await;
    node.store().delete_image(&node.scope, NAME, None).unwrap();
    node.images.reconcile("k8s.io").await.unwrap();
    let digest = format!("example.com/app@{}", image.digest);
    assert_eq!(node.names(), [digest.clone(), id.clone()], "{next} is not in use");
    node.store().collect(Disposal::Reclaim).unwrap();
    assert_eq!(node.snapshots().len(), 3, "two layers and the container's own");
    node.is_sound().await;

    node.store().delete_container(&node.scope, "web").unwrap();
    node.images.reconcile("k8s.io").await.unwrap();
    let stranded =
        |name: &str| node.store().image("k8s.io", name).unwrap().labels.contains_key("io.orlop.stranded-since");
    assert!(stranded(&digest) && stranded(&id), "the name moved away: a grace period begins");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_which_container_uses_an_image() {
    let node = Node::new();
    let (id, image) = import(&node, "first").await;
    run(&node, "web", &top(&node));
    let request = RemoveRequest { names: vec![NAME.to_owned()], ..RemoveRequest::default() };
    let plan = node.images.plan_remove(&node.scope, &request).await.unwrap();
    assert_eq!(plan.records, [NAME], "the hash references stay");
    assert!(plan.snapshots.is_empty());
    let told: Vec<_> = plan.in_use.iter().filter(|r| r.reason.contains("container web")).collect();
    assert_eq!(told.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), [image.digest.as_str()], "{:?}", plan.in_use);

    // The whole image, by its ID: its records go, the container's snapshots stay until the container goes.
    let whole = RemoveRequest { names: vec![id[7..19].to_owned()], no_trash: true, ..RemoveRequest::default() };
    node.images.remove(&node.scope, &whole).await.unwrap();
    assert!(node.names().is_empty());
    assert_eq!(node.snapshots().len(), 3);
    node.store().delete_container(&node.scope, "web").unwrap();
    node.store().collect(Disposal::Reclaim).unwrap();
    assert!(node.snapshots().is_empty() && node.blobs() == 0);
}

/// The names of an image by its manifest and by its config.
fn hashes(made: &Made, image: &Descriptor, repository: &str) -> [String; 2] {
    [format!("{repository}@{}", image.digest), made.image_id(image)]
}

/// Regression: a container kept the hash references of every image with the layers it stands on.
#[tokio::test(flavor = "multi_thread")]
async fn of_images_with_the_same_layers_the_one_that_a_container_was_made_of_is_in_use() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let layers = [tar(&[Entry::file("base", "base")])];
    let images: Vec<Descriptor> = ["first", "second", "third"].map(|author| made.image_by(author, &layers)).to_vec();
    for (number, image) in images.iter().enumerate() {
        shelf.push(&made, &format!("app:{number}"), image).await;
        node.pull(&shelf.name(&format!("app:{number}"))).await.unwrap();
    }
    let name = |number: usize| shelf.name(&format!("app:{number}"));
    let hashes = |number: usize| hashes(&made, &images[number], &shelf.name("app"));
    let there = |number: usize| hashes(number).iter().all(|hash| node.names().contains(hash));
    run_of(&node, "web", &top(&node), &name(0));

    // The tag moves to an image with the same layers: the container was not made of that.
    node.images.tag(&node.scope, &name(1), &[name(0)], true).await.unwrap();
    for number in [0, 1, 2] {
        let _ = node.images.untag(&node.scope, &name(number)).await.unwrap();
    }
    node.images.reconcile("k8s.io").await.unwrap();
    assert!(there(0), "in use: {:?}", node.names());
    assert!(!there(1) && !there(2), "not in use: {:?}", node.names());
    assert_eq!(node.names().len(), 2);

    let by_id = RemoveRequest { names: vec![hashes(0)[1][7..19].to_owned()], ..RemoveRequest::default() };
    let plan = node.images.plan_remove(&node.scope, &by_id).await.unwrap();
    assert!(plan.in_use.iter().any(|r| r.reason.contains("container web")), "{:?}", plan.in_use);
    node.store().delete_container(&node.scope, "web").unwrap();
    node.images.reconcile("k8s.io").await.unwrap();
    let record = node.store().image("k8s.io", &hashes(0)[1]).unwrap();
    assert!(record.labels.contains_key("io.orlop.stranded-since"), "{record:?}");
}

/// Where the name says nothing, what the container may need is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_image_is_no_record_keeps_all_images_with_its_layers() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let layers = [tar(&[Entry::file("base", "base")])];
    let images = ["first", "second"].map(|author| made.image_by(author, &layers));
    for (number, image) in images.iter().enumerate() {
        shelf.push(&made, &format!("app:{number}"), image).await;
        node.pull(&shelf.name(&format!("app:{number}"))).await.unwrap();
    }
    run_of(&node, "web", &top(&node), "example.com/never:1");
    for number in 0..2 {
        node.images.untag(&node.scope, &shelf.name(&format!("app:{number}"))).await.unwrap();
    }
    node.images.reconcile("k8s.io").await.unwrap();
    assert_eq!(node.names().len(), 4, "{:?}", node.names());
}

/// Regression: a pass that had looked for containers before one was made took the hash references of its image away.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_comes_while_everything_is_reconciled_keeps_its_hash_references() {
    let node = Node::new();
    let (id, image) = import(&node, "first").await;
    let (target, parent) = (image.clone(), top(&node));
    let snapshots = node.store().snapshots(&node.scope, "").unwrap();
    snapshots.prepare("web", &parent, Labels::new()).unwrap();
    let lease = node.store().scoped_lease(&node.scope, 3600).unwrap();
    for (kind, name) in [
        (ResourceKind::Content, target.digest.to_string()),
        (ResourceKind::Snapshots(snapshots.driver_name().to_owned()), "web".to_owned()),
    ] {
        node.store().add_resource("k8s.io", lease.lease.as_deref().unwrap(), &Resource { kind, name }).unwrap();
    }
    let mut kept = 0;
    for round in 0..200 {
        node.store().write_images(&node.scope, &[ImageChange::Delete { name: NAME.to_owned() }]).unwrap();
        let images = node.images.clone();
        let pass = tokio::spawn(async move { images.reconcile("k8s.io").await.unwrap() });
        // At another point of the pass in each round.
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        record(&node, "web", NAME);
        let there = node.names().contains(&id);
        pass.await.unwrap();
        assert!(!there || node.names().contains(&id), "the pass took away what a container needs");
        kept += usize::from(there);
        node.store().delete_container(&node.scope, "web").unwrap();
        let (name, target, labels) = (NAME.to_owned(), target.clone(), Labels::new());
        node.store().write_images(&node.scope, &[ImageChange::Upsert { name, target, labels }]).unwrap();
        node.images.reconcile("k8s.io").await.unwrap();
    }
    assert!(kept > 0, "no container came before its hash references went");
}
