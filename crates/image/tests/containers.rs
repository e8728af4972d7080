//! What containers mean for the records of the images they stand on.

mod common;

use std::io::Cursor;

use common::{Entry, Made, Node};
use orlop_image::{ImportRequest, RemoveRequest};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Container, Labels, Scope, TypedBytes};
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

/// A container on the snapshot `key` that is prepared on `parent`.
fn run(node: &Node, key: &str, parent: &str) {
    let snapshots = node.store().snapshots(&node.scope, "").unwrap();
    snapshots.prepare(key, parent, Labels::new()).unwrap();
    let now = jiff::Timestamp::now();
    let container = Container {
        id: key.to_owned(),
        labels: Labels::new(),
        // Whatever it says: what counts is what the container stands on.
        image: "example.com/other:1".to_owned(),
        runtime: "runtime".to_owned(),
        runtime_options: None,
        spec: Some(TypedBytes::default()),
        snapshotter: snapshots.driver_name().to_owned(),
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
