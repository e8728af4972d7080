//! Listing, status, removal, file systems.

use std::collections::BTreeMap;

use orlop_api::containerd::services::images::v1 as containerd;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::runtime::v1 as pb;
use orlop_image::{Images, ImportRequest, Settings};
use orlop_server::CriSettings;
use orlop_testkit::archive::oci_archive;
use orlop_testkit::registry::Options;
use serde_json::{Value, json};
use tonic::Code;

use crate::common::{labels, request_in};
use crate::rig::{Node, Shelf, code, id, made, scope, spec};

async fn streamed(node: &Node, filter: Option<pb::ImageFilter>) -> Vec<Vec<pb::Image>> {
    let request = pb::StreamImagesRequest { filter };
    let mut stream = node.images.clone().stream_images(request).await.unwrap().into_inner();
    let mut pages = Vec::new();
    while let Some(page) = stream.message().await.unwrap() {
        pages.push(page.images);
    }
    pages
}

async fn filtered(node: &Node, text: &str) -> Vec<String> {
    let filter = Some(pb::ImageFilter { image: spec(text) });
    let listed = node.images.clone().list_images(pb::ListImagesRequest { filter: filter.clone() }).await.unwrap();
    let listed = listed.into_inner().images;
    assert_eq!(streamed(node, filter).await.concat(), listed, "{text}");
    listed.into_iter().map(|image| image.id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_answers_every_call() {
    let node = Node::new().await;
    assert_eq!(node.list().await, []);
    assert!(streamed(&node, None).await.is_empty(), "a message without images would be one too many");
    assert_eq!(node.status("busybox").await.unwrap(), pb::ImageStatusResponse::default());
    node.remove("busybox").await.unwrap();
    let filesystems = node.filesystems().await;
    for entries in [&filesystems.image_filesystems, &filesystems.container_filesystems] {
        assert_eq!(entries.len(), 1);
        let mountpoint = node.directory.path().join("root/snapshots/overlayfs").display().to_string();
        assert_eq!(entries[0].fs_id, Some(pb::FilesystemIdentifier { mountpoint }));
        assert!(entries[0].timestamp > 0);
        assert_eq!(entries[0].used_bytes, Some(pb::UInt64Value { value: 0 }));
        assert_eq!(entries[0].inodes_used, Some(pb::UInt64Value { value: 0 }));
    }
    for name in [None, spec("")] {
        let asked = pb::ImageStatusRequest { image: name.clone(), verbose: false };
        assert_eq!(code(node.images.clone().image_status(asked).await), Code::InvalidArgument);
        let removed = pb::RemoveImageRequest { image: name };
        assert_eq!(code(node.images.clone().remove_image(removed).await), Code::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_listed_explained_and_removed() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let (content, node) = (made(1), Node::new().await);
    let name = shelf.put("team/app:v1", &content).await;
    let digest_name = shelf.name(&format!("team/app@{}", content.root.digest));
    assert_eq!(node.pull(&name).await.unwrap(), id(&content));

    let size = content.blobs.values().map(|blob| blob.bytes.len() as u64).sum();
    let expected = pb::Image {
        id: id(&content),
        repo_tags: vec![name.clone()],
        repo_digests: vec![digest_name.clone()],
        size,
        uid: Some(pb::Int64Value { value: 65532 }),
        username: String::new(),
        spec: spec(&id(&content)),
        pinned: false,
    };
    assert_eq!(node.list().await, std::slice::from_ref(&expected));
    assert_eq!(streamed(&node, None).await, [vec![expected.clone()]]);
    let hex = expected.id.strip_prefix("sha256:").unwrap();
    for text in [name.as_str(), &digest_name, &expected.id, hex, &hex[..12], &expected.id[..20]] {
        assert_eq!(node.status(text).await.unwrap().image.as_ref(), Some(&expected), "{text}");
        assert_eq!(filtered(&node, text).await, [expected.id.as_str()], "{text}");
    }
    assert_eq!(filtered(&node, &shelf.name("team/app")).await, [expected.id.as_str()]);
    assert!(filtered(&node, "example.org/none").await.is_empty());

    let quiet = pb::ImageStatusRequest { image: spec(&name), verbose: false };
    assert!(node.images.clone().image_status(quiet).await.unwrap().into_inner().info.is_empty());
    let info = node.status(&name).await.unwrap().info;
    let parsed: BTreeMap<&str, Value> =
        info.iter().map(|(key, text)| (key.as_str(), serde_json::from_str(text).unwrap())).collect();
    let chain = node.store.snapshots(&scope(), "").unwrap().list(&[]).unwrap().pop().unwrap().name;
    assert_eq!(parsed["info"]["chainID"], json!(chain));
    assert_eq!(parsed["info"]["imageSpec"]["config"], json!({"User": "65532:65532"}));
    assert_eq!(parsed["orlop"]["records"].as_array().unwrap().len(), 3);
    assert_eq!(parsed["orlop"]["target"]["digest"], json!(content.root.digest.to_string()));
    assert_eq!(parsed["orlop"]["pinned"], json!([]));

    let used = node.filesystems().await.image_filesystems[0].clone();
    assert!(used.used_bytes.unwrap().value >= 300_000 && used.inodes_used.unwrap().value >= 3);
    node.remove(&hex[..12]).await.unwrap();
    assert!(node.names().is_empty(), "every record goes");
    assert_eq!((node.blobs(), node.snapshots("")), (0, 0), "and the space is there when the answer is");
    assert_eq!(node.filesystems().await.image_filesystems[0].used_bytes, Some(pb::UInt64Value { value: 0 }));
    assert_eq!(node.list().await, []);
    node.remove(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_prefix_is_an_error_and_no_image() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let node = Node::new().await;
    // Of seventeen IDs two start with the same digit.
    let mut ids = Vec::new();
    for seed in 0..17 {
        ids.push(node.pull(&shelf.put(&format!("many/{seed}:1"), &made(seed)).await).await.unwrap());
    }
    let digit = |id: &String| id.as_bytes()[7];
    let twice = ids.iter().find(|id| ids.iter().filter(|other| digit(other) == digit(id)).count() > 1).unwrap();
    for text in [&twice[..8], &twice[7..8]] {
        assert_eq!(code(node.status(text).await), Code::Unknown, "as containerd says it");
        assert_eq!(code(node.remove(text).await), Code::Unknown);
    }
    assert_eq!(node.list().await.len(), 17, "nothing was removed");
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(node.list().await.into_iter().map(|image| image.id).collect::<Vec<_>>(), sorted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containerds_clients_do_is_seen_at_once() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let (content, node) = (made(3), Node::new().await);
    let name = shelf.put("a:1", &content).await;
    node.pull(&name).await.unwrap();
    let mut images = ImagesClient::new(node.channel.clone());
    let get = containerd::GetImageRequest { name: name.clone() };
    let target = images.get(request_in("k8s.io", get)).await.unwrap().into_inner().image.unwrap().target;
    let image = containerd::Image { name: "docker.io/library/b:2".to_owned(), target, ..Default::default() };
    let create = containerd::CreateImageRequest { image: Some(image), source_date_epoch: None };
    images.create(request_in("k8s.io", create)).await.unwrap();
    let listed = node.list().await;
    assert_eq!(listed.len(), 1);
    assert!(listed[0].repo_tags.contains(&"docker.io/library/b:2".to_owned()));
    assert_eq!(listed[0].repo_digests.len(), 2, "the digest reference of the new name is there too");
    assert_eq!(node.status("b:2").await.unwrap().image.unwrap().id, id(&content));

    for gone in ["docker.io/library/b:2", &name] {
        let delete = containerd::DeleteImageRequest { name: gone.to_owned(), sync: true, target: None };
        images.delete(request_in("k8s.io", delete)).await.unwrap();
    }
    assert_eq!(node.list().await, [], "no hash record keeps an image alive");
    assert!(node.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_registry_supplies_is_pinned_with_the_reason_unless_that_is_switched_off() {
    for (pin_unsupplied, pinned) in [(true, true), (false, false)] {
        let settings = Settings { pin_unsupplied, ..Settings::default() };
        let node = Node::with(settings.clone(), CriSettings::default()).await;
        let archive = oci_archive(&[("example.org/imported:1", &made(4))]);
        let images = Images::new(node.store.clone(), settings);
        images.import(&scope(), &mut archive.as_slice(), &ImportRequest::default(), &|_| {}).await.unwrap();
        let status = node.status("example.org/imported:1").await.unwrap();
        assert_eq!(status.image.unwrap().pinned, pinned);
        assert_eq!(status.info["orlop"].contains("the only copy"), pinned, "{}", status.info["orlop"]);
        node.remove("example.org/imported:1").await.unwrap();
        assert!(node.names().is_empty(), "who asks for its removal is obeyed, as CRI wants it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_images_are_pinned_on_every_record() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let name = shelf.put("pause:1", &made(5)).await;
    let settings = Settings { pinned_images: vec![name.clone()], ..Settings::default() };
    let node = Node::with(settings, CriSettings::default()).await;
    node.pull(&name).await.unwrap();
    assert!(node.list().await[0].pinned);
    let labelled = ["labels.\"io.cri-containerd.pinned\"==pinned".to_owned()];
    assert_eq!(node.store.images("k8s.io", &labelled).unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_write_is_told_apart_from_images() {
    let node = Node::new().await;
    let snapshots = node.store.snapshots(&scope(), "").unwrap();
    // What nothing holds, the background collection may take at any time.
    let held = labels(&[("containerd.io/gc.root", "now")]);
    snapshots.prepare("container", "", held.clone()).unwrap();
    snapshots.prepare("extract-1 sha256:x", "", held).unwrap();
    let usage = node.filesystems().await;
    let inodes = |entries: &[pb::FilesystemUsage]| entries[0].inodes_used.unwrap().value;
    assert!(inodes(&usage.image_filesystems) > 0, "what is being unpacked is part of an image");
    assert_eq!(inodes(&usage.container_filesystems), inodes(&usage.image_filesystems));
    snapshots.remove("container").unwrap();
    assert_eq!(inodes(&node.filesystems().await.container_filesystems), 0);
}
