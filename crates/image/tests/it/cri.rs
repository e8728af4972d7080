//! Images as CRI counts them: what is listed, what names mean, what is pinned, what a removal takes.

use std::sync::Arc;

use crate::common;
use crate::common::{Made, Node, Shelf, layers, on, open};
use orlop_image::{CriCatalog, CriImage, Error, Pinned, PullRequest, Settings};
use orlop_metadata::{Image, Labels};
use orlop_oci::{Descriptor, Platform};

fn catalog(node: &Node) -> CriCatalog {
    CriCatalog::new(node.images.clone(), "k8s.io")
}

fn host() -> String {
    Platform::host().architecture
}

/// An index of the host's image and another platform's.
fn index(made: &mut Made) -> (Descriptor, Descriptor) {
    let image = made.image(&host(), &layers());
    let other = made.image("riscv64", &layers());
    (made.index(&[on(&other, "riscv64"), on(&image, &host())]), image)
}

async fn only(catalog: &CriCatalog) -> CriImage {
    let view = catalog.view().await.unwrap();
    assert_eq!(view.images().len(), 1, "{view:?}");
    view.images()[0].clone()
}

fn create(node: &Node, name: &str, target: &Descriptor) {
    let now = jiff::Timestamp::now();
    let (name, labels) = (name.to_owned(), Labels::new());
    let image = Image { name, target: target.clone(), labels, created_at: now, updated_at: now };
    node.store().create_image(&node.scope, image).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_listed_once_with_all_its_names_and_containerds_size() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let (index, image) = index(&mut made);
    shelf.push(&made, "team/app:v1", &index).await;
    let name = shelf.name("team/app:v1");
    let catalog = catalog(&node);
    assert!(catalog.view().await.unwrap().images().is_empty());

    node.pull(&name).await.unwrap();
    let listed = only(&catalog).await;
    let id = made.image_id(&image);
    assert_eq!(listed.gist.id.to_string(), id);
    assert_eq!(listed.gist.manifest, image.digest);
    let digest_name = shelf.name(&format!("team/app@{}", index.digest));
    assert_eq!(listed.repo_tags, [Arc::from(name.as_str())]);
    assert_eq!(listed.repo_digests, [Arc::from(digest_name.as_str())]);
    assert_eq!(listed.names.len(), 3);
    let manifest: serde_json::Value = serde_json::from_slice(made.bytes(&image.digest)).unwrap();
    let blobs = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    let blobs: u64 = blobs.map(|blob| blob["size"].as_u64().unwrap()).sum();
    assert_eq!(listed.gist.size, index.size + image.size + blobs);
    assert_eq!(listed.gist.chain_id.as_ref().map(ToString::to_string), node.snapshots().last().cloned());
    assert_eq!(listed.pinned, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_stays_the_same_until_something_it_shows_changes() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image(&host(), &layers());
    shelf.push(&made, "a:1", &image).await;
    node.pull(&shelf.name("a:1")).await.unwrap();
    let catalog = catalog(&node);
    let first = catalog.view().await.unwrap();
    node.store().create_lease("k8s.io", "something else", Labels::new()).unwrap();
    assert!(Arc::ptr_eq(&first, &catalog.view().await.unwrap()), "a lease changes no image");

    // As another process would.
    let other = open(&node.root, Settings::default());
    other.tag(&node.scope, &shelf.name("a:1"), &["example.com/b:2".to_owned()], false).await.unwrap();
    let second = catalog.view().await.unwrap();
    assert!(second.images()[0].repo_tags.iter().any(|tag| &**tag == "example.com/b:2"));
    assert!(first.resolve("example.com/b:2").is_err(), "the old picture is as it was");

    let layer = second.images()[0].gist.manifest.clone();
    other.store().content(&node.scope).forget(&layer).unwrap();
    assert!(catalog.view().await.unwrap().images().is_empty(), "an image that lacks a blob is not there");
    node.pull(&shelf.name("a:1")).await.unwrap();
    assert_eq!(only(&catalog).await.names.len(), 5, "and is there again when the blob is");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_ids_and_prefixes_find_an_image_and_ambiguous_ones_are_refused() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let mut ids = Vec::new();
    // Of seventeen IDs two start with the same digit.
    for n in 0..17 {
        let layer = vec![vec![common::Entry::file("n", n.to_string())]];
        let image = made.image(&host(), &layer);
        shelf.push(&made, &format!("many/{n}:1"), &image).await;
        node.pull(&shelf.name(&format!("many/{n}:1"))).await.unwrap();
        ids.push(made.image_id(&image));
    }
    let view = catalog(&node).view().await.unwrap();
    let id = &ids[3];
    let hex = id.strip_prefix("sha256:").unwrap();
    let tag = shelf.name("many/3:1");
    let untagged = shelf.name("many/3");
    for text in [id, hex, &id[..60], &hex[..40], &tag] {
        assert_eq!(view.resolve(text).unwrap().gist.id.to_string(), *id, "{text}");
    }
    let digit = |id: &String| id.as_bytes()[7];
    let twice = ids.iter().find(|id| ids.iter().filter(|other| digit(other) == digit(id)).count() > 1).unwrap();
    for text in [&twice[..8], &twice[7..8]] {
        assert!(matches!(view.resolve(text), Err(Error::Ambiguous { .. })), "{text}");
        assert!(view.matching(text).len() > 1);
    }
    let manifest = view.resolve(id).unwrap().gist.manifest.to_string();
    for text in ["", "sha256:", "zz", &hex.to_uppercase(), &format!("sha512:{}", &hex[..20]), &untagged, &manifest] {
        assert!(matches!(view.resolve(text), Err(Error::NotFound(_))), "{text}");
    }
    assert_eq!(view.matching("").len(), 17);
    assert_eq!(view.matching(&untagged).len(), 1, "a repository's name lets its images through");
    assert_eq!(view.matching(&tag).len(), 1);
    assert_eq!(view.matching(&hex[..40]).len(), 1);
    assert!(view.matching("example.com/none").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_program_normalised_is_found_and_removed_as_it_stands() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image(&host(), &layers());
    shelf.push(&made, "a:1", &image).await;
    node.pull(&shelf.name("a:1")).await.unwrap();
    create(&node, "any text", &image);
    create(&node, "busybox:1", &image);
    let catalog = catalog(&node);
    let listed = only(&catalog).await;
    assert_eq!(listed.names.len(), 5);
    assert!(listed.repo_tags.iter().any(|tag| &**tag == "docker.io/library/busybox:1"), "{listed:?}");
    assert!(catalog.view().await.unwrap().resolve("any text").is_ok());

    assert_eq!(catalog.remove(&node.scope, "any text").await.unwrap().len(), 5);
    assert!(node.names().is_empty());
    assert_eq!((node.blobs(), node.snapshots().len()), (0, 0), "the space is given back at once");
    assert!(catalog.remove(&node.scope, "any text").await.unwrap().is_empty(), "what is not there is success");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_platforms_and_artifacts_are_not_there() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let other = made.image("riscv64", &layers());
    shelf.push(&made, "other:1", &other).await;
    let platforms = vec!["linux/riscv64".parse().unwrap()];
    let request = PullRequest { platforms, no_unpack: true, ..PullRequest::default() };
    node.pull_with(&shelf.name("other:1"), request).await.unwrap();
    assert!(catalog(&node).view().await.unwrap().images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_another_program_wrote_is_read_when_it_is_first_seen() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let (index, _) = index(&mut made);
    shelf.push(&made, "a:1", &index).await;
    node.pull(&shelf.name("a:1")).await.unwrap();
    // A root whose summaries nobody has written yet: the same content under another namespace's records.
    let (second, scope) = (Node::new(), node.scope.clone());
    let there = second.store().content(&scope);
    for info in node.store().content(&scope).find(&[]).unwrap() {
        let bytes = orlop_content::read_verified(&node.store().content(&scope), &info.digest, 1 << 30).await.unwrap();
        let options = orlop_content::IngestOptions { reference: info.digest.to_string(), ..Default::default() };
        let mut writer = orlop_content::Ingester::writer(&there, options).await.unwrap();
        writer.write(bytes).await.unwrap();
        writer.commit(0, None).await.unwrap();
    }
    create(&second, "example.com/a:1", &index);
    assert!(second.store().summary(&index.digest).unwrap().is_none());
    let listed = only(&catalog(&second)).await;
    assert_eq!(listed.repo_tags, [Arc::from("example.com/a:1")]);
}

/// Writes an image and a record that another program made; `source`: with the registry that it came from.
async fn written(node: &Node, made: &mut Made, n: usize, source: bool) {
    let target = made.image(&host(), &[vec![common::Entry::file("n", n.to_string())]]);
    let manifest: serde_json::Value = serde_json::from_slice(made.bytes(&target.digest)).unwrap();
    let parts = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    let parts = parts.map(|part| part["digest"].as_str().unwrap().parse().unwrap());
    let content = node.store().content(&node.scope);
    for digest in parts.chain([target.digest.clone()]) {
        let options = orlop_content::IngestOptions { reference: digest.to_string(), ..Default::default() };
        let mut writer = orlop_content::Ingester::writer(&content, options).await.unwrap();
        writer.write(made.bytes(&digest).clone()).await.unwrap();
        writer.commit(0, None).await.unwrap();
    }
    if source {
        let label = ("containerd.io/distribution.source.r.example".to_owned(), "many".to_owned());
        content.label_all(&[(target.digest.clone(), Labels::from([label]))]).unwrap();
    }
    create(node, &format!("r.example/many:{n}"), &target);
}

/// Of many images, all blobs' names are read at once instead of asking for each.
#[tokio::test(flavor = "multi_thread")]
async fn many_images_read_at_once_are_those_that_were_followed_one_by_one() {
    let (node, mut made) = (Node::new(), Made::default());
    let followed = catalog(&node);
    for n in 0..70 {
        written(&node, &mut made, n, n % 2 == 0).await;
        assert_eq!(followed.view().await.unwrap().images().len(), n + 1);
    }
    let (followed, fresh) = (followed.view().await.unwrap(), catalog(&node).view().await.unwrap());
    assert_eq!(fresh.images(), followed.images());
    for n in 0..70 {
        let image = fresh.resolve(&format!("r.example/many:{n}")).unwrap();
        assert_eq!(image.pinned.is_empty(), n % 2 == 0, "{n}: {:?}", image.pinned);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_come_from_labels_and_from_the_configuration() {
    let (shelf, mut made) = (Shelf::start().await, Made::default());
    let image = made.image(&host(), &layers());
    shelf.push(&made, "pause:1", &image).await;
    let name = shelf.name("pause:1");
    let node = Node::with(Settings { pinned_images: vec![name.clone()], ..Settings::default() });
    node.pull(&name).await.unwrap();
    let catalog = catalog(&node);
    let pinned = only(&catalog).await.pinned;
    assert!(pinned.contains(&Pinned::Configured { name: name.clone() }), "{pinned:?}");
    let records = node.store().images("k8s.io", &[]).unwrap();
    let is_pinned = |r: &Image| r.labels.get("io.cri-containerd.pinned").is_some_and(|v| v == "pinned");
    assert!(records.len() == 3 && records.iter().all(is_pinned), "{records:?}");

    let plain = Node::new();
    plain.pull(&name).await.unwrap();
    let catalog = CriCatalog::new(plain.images.clone(), "k8s.io");
    assert_eq!(only(&catalog).await.pinned, []);
    plain.images.pin(&plain.scope, &name, true).await.unwrap();
    assert!(matches!(only(&catalog).await.pinned[..], [Pinned::Label { .. }]));
    plain.images.pin(&plain.scope, &name, false).await.unwrap();
    assert_eq!(only(&catalog).await.pinned, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_its_registry_lost_is_pinned_until_it_is_found_again() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image(&host(), &layers());
    shelf.push(&made, "lost:1", &image).await;
    let name = shelf.name("lost:1");
    node.pull(&name).await.unwrap();
    let catalog = catalog(&node);
    assert_eq!(only(&catalog).await.pinned, []);

    // The same registry, emptied: another one at its address.
    let address = shelf.server.address();
    let full = shelf;
    full.server.shutdown().await;
    let empty = Shelf::start_at(address).await;
    node.pull(&name).await.unwrap_err();
    let pinned = only(&catalog).await.pinned;
    let reason = pinned.iter().map(ToString::to_string).collect::<String>();
    assert!(matches!(pinned[..], [Pinned::Unsupplied { .. }]) && reason.contains("lost no longer has it"), "{reason}");
    let off = Settings { pin_unsupplied: false, ..Settings::default() };
    let off = CriCatalog::new(open(&node.root, off), "k8s.io");
    assert_eq!(only(&off).await.pinned, [], "unless that is switched off");

    empty.push(&made, "lost:1", &image).await;
    node.pull(&name).await.unwrap();
    assert_eq!(only(&catalog).await.pinned, []);
}
