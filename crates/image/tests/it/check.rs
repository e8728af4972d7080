//! Checking finds what is wrong, and the fix that it names mends it.

use crate::common;
use crate::common::{Made, Node, Shelf, layers};
use orlop_image::{CheckRequest, Images, Problem};
use orlop_metadata::{ImageChange, Scope};

async fn pulled() -> (Node, Shelf, String, Made) {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let name = shelf.name("team/app:v1");
    node.pull(&name).await.unwrap();
    (node, shelf, name, made)
}

async fn check(node: &Node, deep: bool) -> Vec<Problem> {
    node.images.check(&node.scope, &CheckRequest { deep, name: None }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_gone_is_found_and_the_next_pull_makes_it_again() {
    let (node, _shelf, name, _) = pulled().await;
    assert_eq!(check(&node, true).await, []);
    let snapshots = node.store().snapshots(&node.scope, "").unwrap();
    let top = snapshots.list(&[]).unwrap().pop().unwrap().name;
    snapshots.remove(&top).unwrap();
    let problems = check(&node, false).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].class, "snapshot-missing");
    assert!(problems[0].subject.ends_with(&top) && problems[0].fix.ends_with(&name), "{problems:?}");
    let again = node.pull(&name).await.unwrap();
    assert_eq!(again.bytes_transferred, 0, "it is made from what is stored");
    assert_eq!(check(&node, true).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_and_a_shortened_blob_are_told_apart() {
    let (node, _shelf, _, made) = pulled().await;
    let path = |hex: &str| node.root.join("content/blobs/sha256").join(hex);
    let largest = made.blobs.iter().max_by_key(|(_, (_, bytes))| bytes.len()).unwrap().0;
    let mut bytes = std::fs::read(path(largest.hex())).unwrap();
    bytes[1000] ^= 1;
    std::fs::remove_file(path(largest.hex())).unwrap();
    std::fs::write(path(largest.hex()), &bytes).unwrap();
    assert_eq!(check(&node, false).await, [], "its size is right");
    let problems = check(&node, true).await;
    assert_eq!((problems.len(), problems[0].class), (1, "blob-damaged"), "{problems:?}");
    std::fs::write(path(largest.hex()), &bytes[..5000]).unwrap();
    let problems = check(&node, false).await;
    assert_eq!((problems.len(), problems[0].class), (1, "blob-size"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_reference_that_is_missing_is_found_until_it_is_reconciled() {
    let (node, ..) = pulled().await;
    let id = node.names().into_iter().find(|n| n.starts_with("sha256:")).unwrap();
    node.store().write_images(&node.scope, &[ImageChange::Delete { name: id.clone() }]).unwrap();
    let problems = check(&node, false).await;
    assert_eq!((problems.len(), problems[0].class), (1, "hash-reference-missing"), "{problems:?}");
    assert_eq!(problems[0].subject, id);
    node.images.reconcile("k8s.io").await.unwrap();
    assert_eq!(check(&node, false).await, []);
}

/// Servers spawn these futures: they must be able to move between threads.
#[tokio::test]
async fn operations_may_be_spawned() {
    fn spawnable<T: Send>(future: T) {
        drop(future);
    }
    let (node, scope) = (Node::new(), Scope::new("k8s.io", "test"));
    let (images, client): (&Images, _) = (&node.images, common::client());
    spawnable(images.pull(&scope, &client, &Default::default(), &|_| {}));
    spawnable(images.push(&scope, &client, &Default::default(), &|_| {}));
    spawnable(images.import(&scope, &mut tokio::io::empty(), &Default::default(), &|_| {}));
    spawnable(images.import_directory(&scope, &node.root, &Default::default(), &|_| {}));
    spawnable(images.export(&scope, &Default::default(), &mut tokio::io::sink()));
    spawnable(images.remove(&scope, &Default::default()));
    spawnable(images.check(&scope, &Default::default()));
    spawnable(images.reconcile("k8s.io"));
    spawnable(images.disk_usage(&scope, true));
}
