//! What is found from a digest or the beginning of one, among images that have much in common.

use crate::common::{Entry, Made, Node, Shelf, on};
use bytes::Bytes;
use orlop_content::{IngestOptions, Ingester};
use orlop_image::RemoveRequest;
use orlop_metadata::{ImageChange, Labels};
use orlop_oci::Descriptor;

fn layer(text: &str) -> Vec<Entry> {
    vec![Entry::file("own", text)]
}

/// Puts a record there, as any client may.
fn put(node: &Node, name: &str, target: &Descriptor) {
    let (name, target) = (name.to_owned(), target.clone());
    node.store().write_images(&node.scope, &[ImageChange::Upsert { name, target, labels: Labels::new() }]).unwrap();
}

async fn found(node: &Node, text: &str) -> Vec<String> {
    node.images.resolve_name(&node.scope, text).await.unwrap().names
}

/// Every name of the one image, and no other, whichever of its documents it points at.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_found_by_its_id_with_the_names_of_its_index_and_its_manifest() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &[layer("base"), layer("own")]);
    let foreign = made.image("s390x", &[layer("base"), layer("foreign")]);
    let index = made.index(&[on(&foreign, "s390x"), on(&image, "amd64")]);
    let other = made.image("amd64", &[layer("base"), layer("other")]);
    for (name, target) in [("app:manifest", &image), ("app:index", &index), ("other:1", &other)] {
        shelf.push(&made, name, target).await;
        node.pull(&shelf.name(name)).await.unwrap();
    }
    let id = made.image_id(&image);
    put(&node, "an odd name", &image);
    let mut all: Vec<String> = ["app:index", "app:manifest"].map(|name| shelf.name(name)).to_vec();
    all.extend([&index, &image].map(|target| shelf.name(&format!("app@{}", target.digest))));
    all.extend(["an odd name".to_owned(), id.clone()]);
    all.sort();
    for text in [&id, &id[7..], &id[..19], &id[7..19]] {
        assert_eq!(found(&node, text).await, all, "{text}");
    }
    let plan = |name: &str| RemoveRequest { names: vec![name.to_owned()], ..RemoveRequest::default() };
    let by_id = node.images.plan_remove(&node.scope, &plan(&id[7..19])).await.unwrap();
    assert_eq!(by_id.records, all);
    assert_eq!(by_id.blobs.len(), 4, "index, manifest, config, own layer: {by_id:?}");
    assert!(by_id.blobs.iter().all(|blob| blob.size > 0));
    assert!(by_id.in_use.iter().all(|reason| reason.reason.starts_with("1 of its blobs stay: ")), "{by_id:?}");

    // A hash reference that somebody has put elsewhere comes back where it belongs.
    put(&node, &id, &other);
    let astray = node.images.plan_remove(&node.scope, &plan(&id)).await.unwrap();
    assert_eq!(astray.returns.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), [id.as_str()], "{astray:?}");

    assert_eq!(node.images.pin(&node.scope, &id[7..19], true).await.unwrap().len(), 5, "all that are its own");
}

/// A client has written an image without the labels by which it would be found.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_says_nothing_of_what_it_has_is_found_all_the_same() {
    let (node, mut made) = (Node::new(), Made::default());
    let image = made.image("amd64", &[layer("base")]);
    let scope = node.store().scoped_lease(&node.scope, 3600).unwrap();
    for (digest, (_, bytes)) in &made.blobs {
        let options = IngestOptions { reference: digest.to_string(), ..IngestOptions::default() };
        let mut writer = node.store().content(&scope).writer(options).await.unwrap();
        writer.write(Bytes::clone(bytes)).await.unwrap();
        writer.commit(0, None).await.unwrap();
    }
    put(&node, "raw:1", &image);
    let id = made.image_id(&image);
    for text in [&id, &id[7..19], image.digest.as_str(), &image.digest.hex()[..12]] {
        assert_eq!(found(&node, text).await, ["raw:1"], "{text}");
    }
}
