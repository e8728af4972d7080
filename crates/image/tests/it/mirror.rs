//! What a mirror keeps, and what becomes of a blob that nobody waits for any more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use orlop_image::{GcRequest, Mirror, MirrorKey, MirrorSettings, Via};
use orlop_oci::{Descriptor, Digest, RepositoryName};
use orlop_remote::ClientOptions;
use orlop_testkit::proxy::{Fault, Proxy};

use crate::common::{Made, Node, Shelf, layers};

fn mirror(node: &Node, keep: Duration, keep_bytes: u64) -> Mirror {
    let settings = MirrorSettings {
        namespace: node.scope.namespace.clone(),
        give: Vec::new(),
        fetch: vec!["127.0.0.1:*/*".parse().unwrap()],
        fresh: Duration::from_secs(60),
        keep,
        keep_bytes,
        registry: ClientOptions::default(),
    };
    Mirror::open(&node.images, settings).unwrap()
}

fn named(mirror: &Mirror, name: &str) -> RepositoryName {
    let (host, path) = name.split_once('/').unwrap();
    mirror.repository(host, path).unwrap()
}

/// Everything of an image, by its tag, as a client asks for it.
async fn take(mirror: &Mirror, repository: &RepositoryName, tag: &str) -> Vec<Digest> {
    let (via, key) = (Via::default(), MirrorKey::Tag(tag.into()));
    let document = mirror.manifest(repository, &key, &via).await.unwrap().document;
    let mut blobs = Vec::new();
    for child in document.children() {
        let reader = mirror.blob(repository, &child.digest, &via, true).await.unwrap();
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < reader.size() {
            bytes.extend_from_slice(&reader.read_at(bytes.len() as u64, 1 << 20).await.unwrap());
        }
        assert_eq!(Digest::of(&bytes), child.digest);
        blobs.push(child.digest.clone());
    }
    blobs
}

async fn two_images(shelf: &Shelf) -> (Made, [Descriptor; 2]) {
    let mut made = Made::default();
    let pair = [made.image("amd64", &layers()), made.image("amd64", &layers()[..1])];
    for (target, name) in pair.iter().zip(["app:1", "app:2"]) {
        shelf.push(&made, name, target).await;
    }
    (made, pair)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_goes_and_what_the_node_wants_stays() {
    let (node, shelf) = (Node::new(), Shelf::start().await);
    two_images(&shelf).await;
    let mirror = mirror(&node, Duration::from_secs(24 * 3600), 0);
    let repository = named(&mirror, &shelf.name("app"));
    take(&mirror, &repository, "1").await;
    take(&mirror, &repository, "2").await;
    node.pull(&shelf.name("app:2")).await.unwrap();
    let later = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
    assert_eq!(mirror.tidy(later(23)).await.unwrap(), Vec::<String>::new());
    let gone = mirror.tidy(later(25)).await.unwrap();
    assert_eq!(gone.len(), 1, "the pulled one is the node's: {gone:?}");
    node.images.gc(&node.scope, GcRequest::default()).await.unwrap();
    assert_eq!(node.blobs(), 3, "the other one, with its config and layer");
    assert!(node.names().contains(&shelf.name("app:2")), "{:?}", node.names());
    assert_eq!(node.names().len(), 3, "{:?}", node.names());
    node.is_sound().await;
    // It is had again.
    take(&mirror, &repository, "1").await;
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_goes_but_nothing_that_is_in_use() {
    let (node, shelf) = (Node::new(), Shelf::start().await);
    two_images(&shelf).await;
    let mirror = mirror(&node, Duration::ZERO, 1);
    take(&mirror, &named(&mirror, &shelf.name("app")), "1").await;
    assert_eq!(mirror.tidy(Timestamp::now()).await.unwrap(), Vec::<String>::new());
    let gone = mirror.tidy(Timestamp::now() + SignedDuration::from_hours(1)).await.unwrap();
    assert_eq!(gone.len(), 1);
    node.images.gc(&node.scope, GcRequest::default()).await.unwrap();
    assert_eq!((node.blobs(), node.names()), (0, Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_nobody_reads_is_parked_and_gone_on_with() {
    let (node, shelf) = (Node::new(), Shelf::start().await);
    let mut made = Made::default();
    let noise = orlop_testkit::image::noise(5, 4 << 20);
    let layer = made.add("application/vnd.oci.image.layer.v1.tar", noise);
    let image = made.image_with("amd64", &[layer.digest.to_string()], std::slice::from_ref(&layer));
    shelf.push(&made, "app:1", &image).await;
    let proxy = Proxy::start(shelf.server.address());
    let mirror = mirror(&node, Duration::ZERO, 0);
    let repository = named(&mirror, &format!("{}/app", proxy.host()));
    let via = Via::default();
    mirror.manifest(&repository, &MirrorKey::Tag("1".into()), &via).await.unwrap();
    // Half of it comes, and then nothing more, on a connection that stays.
    proxy.set_default(Fault::StallAfter(2 << 20));
    proxy.cut_all();
    let reader = mirror.blob(&repository, &layer.digest, &via, true).await.unwrap();
    assert!(!reader.read_at(1 << 20, 1).await.unwrap().is_empty());
    assert_eq!(mirror.counts().fetching, 1);
    drop(reader);
    while mirror.counts().fetching > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.set_default(Fault::None);
    let before = proxy.counts().down;
    let reader = mirror.blob(&repository, &layer.digest, &via, true).await.unwrap();
    assert!(!reader.read_at(reader.size() - 1, 1).await.unwrap().is_empty());
    let came = proxy.counts().down - before;
    assert!(came < 3 << 20, "{came} bytes came again");
}
