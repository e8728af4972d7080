//! Pulling from a registry over loopback.

mod common;

use common::{Made, Node, Shelf, layers, on};

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_writes_three_records_content_and_snapshots() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    let other = made.image("arm64", &layers()[..1]);
    let index = made.index(&[on(&other, "arm64"), on(&image, "amd64")]);
    shelf.push(&made, "team/app:v1", &index).await;

    let outcome = node.pull(&shelf.name("team/app:v1")).await.unwrap();

    let id = made.image_id(&image);
    let expected = [id.clone(), shelf.name("team/app:v1"), shelf.name(&format!("team/app@{}", index.digest))];
    assert_eq!(outcome.names, expected, "containerd's order");
    let mut sorted = expected.to_vec();
    sorted.sort();
    assert_eq!(node.names(), sorted);
    for name in &expected {
        let record = node.store().image("k8s.io", name).unwrap();
        assert_eq!(record.target.digest, index.digest, "{name}");
        assert_eq!(record.labels["io.cri-containerd.image"], "managed");
    }
    let snapshots = node.store().snapshots(&node.scope, "").unwrap().list(&[]).unwrap();
    assert_eq!(snapshots.len(), 3, "{snapshots:?}");
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());
}
