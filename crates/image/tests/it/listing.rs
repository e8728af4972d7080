//! Rows of images and records: whose they are, what they take, and what other programs wrote.

use std::sync::Arc;

use crate::common::{Made, Node, layers, on};
use orlop_content::{IngestOptions, Ingester, LocalStore};
use orlop_image::{Images, ListRequest, Settings, Sizes};
use orlop_metadata::{Image, Labels, OpenOptions, Scope, Store};
use orlop_oci::{Descriptor, ImageId, Kind, Platform};

/// Writes all blobs of `made` into a namespace, as another program would: no summaries, no hash references.
async fn write(node: &Node, namespace: &str, made: &Made) {
    let content = node.store().content(&Scope::new(namespace, "another program"));
    for (digest, (_, bytes)) in &made.blobs {
        let (reference, total) = (digest.to_string(), bytes.len() as u64);
        let options = IngestOptions { reference, total, expected: Some(digest.clone()) };
        match content.writer(options).await {
            Ok(mut writer) => {
                // Bytes that another namespace has are there already.
                writer.write(bytes.slice(writer.status().offset as usize..)).await.unwrap();
                writer.commit(total, Some(digest)).await.unwrap();
            }
            Err(orlop_content::Error::AlreadyExists(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn name(node: &Node, namespace: &str, name: &str, target: &Descriptor) {
    let now = jiff::Timestamp::now();
    let labels = Labels::from([("team".to_owned(), name[..1].to_owned())]);
    let image = Image { name: name.to_owned(), target: target.clone(), labels, created_at: now, updated_at: now };
    node.store().create_image(&Scope::new(namespace, "another program"), image).unwrap();
}

fn size(made: &Made, targets: &[&Descriptor]) -> u64 {
    let of = |target: &Descriptor| {
        let manifest: serde_json::Value = serde_json::from_slice(made.bytes(&target.digest)).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        let below = layers.chain([&manifest["config"]]).map(|d| d["size"].as_u64().unwrap());
        target.size + below.sum::<u64>()
    };
    targets.iter().map(|target| of(target)).sum()
}

fn filters(filters: &[&str]) -> ListRequest {
    ListRequest { filters: filters.iter().map(ToString::to_string).collect(), ..ListRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_programs_wrote_is_learnt_once() {
    let (node, mut made) = (Node::new(), Made::default());
    let (amd64, arm64) = (made.image("amd64", &layers()), made.image("arm64", &layers()[..1]));
    let index = made.index(&[on(&arm64, "arm64"), on(&amd64, "amd64")]);
    write(&node, "k8s.io", &made).await;
    name(&node, "k8s.io", "b.io/x/index:1", &index);
    name(&node, "k8s.io", "a.io/x/arm:1", &arm64);
    let host = Platform::host();
    let mine = if host.architecture == "arm64" { &arm64 } else { &amd64 };
    let id = Some(ImageId::new(made.image_id(mine).parse().unwrap()));
    for round in 0..2 {
        let records = node.images.records(&node.scope, &ListRequest::default()).await.unwrap();
        let names: Vec<&str> = records.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["a.io/x/arm:1", "b.io/x/index:1"], "{round}");
        assert_eq!((&records[1].target, records[1].kind), (&index, Kind::Tag));
        assert_eq!(records[0].size, size(&made, &[&arm64]));
        assert_eq!(records[1].size, index.size + size(&made, &[mine]));
        assert_eq!(records[1].image_id, id);
        let platforms: Vec<String> = records[1].platforms.iter().map(ToString::to_string).collect();
        assert_eq!(platforms, ["linux/arm64", "linux/amd64"]);
        let rows = node.images.images(&node.scope, &ListRequest::default()).await.unwrap();
        assert!(rows.iter().all(|row| !row.incomplete));
        let all: u64 = made.blobs.values().map(|(_, bytes)| bytes.len() as u64).sum();
        assert_eq!(rows.iter().find(|row| row.targets == [index.digest.clone()]).unwrap().size.compressed, all);
        // What is known now is known without the document.
        assert_eq!(node.store().summary(&index.digest).unwrap().unwrap().manifests.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_lists_what_other_programs_wrote() {
    let (node, mut made) = (Node::new(), Made::default());
    let image = made.image("amd64", &layers());
    write(&node, "k8s.io", &made).await;
    name(&node, "k8s.io", "a.io/x/y:1", &image);
    let content = Arc::new(LocalStore::open(node.root.join("content")).unwrap());
    let options = OpenOptions { content, drivers: Vec::new(), read_only: true };
    let reading = Images::new(Store::open(&node.root, options).unwrap(), Settings::default());
    for _ in 0..2 {
        let records = reading.records(&node.scope, &ListRequest::default()).await.unwrap();
        assert_eq!(records[0].size, size(&made, &[&image]));
        let rows = reading.images(&node.scope, &ListRequest::default()).await.unwrap();
        assert_eq!(rows[0].size.compressed, size(&made, &[&image]));
        assert_eq!(node.store().summary(&image.digest).unwrap(), None);
    }
}

/// Bytes that another namespace used too were listed as the image's own: removing it would have freed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_namespace_uses_is_shared() {
    let (node, mut made) = (Node::new(), Made::default());
    let image = made.image("amd64", &layers());
    write(&node, "k8s.io", &made).await;
    name(&node, "k8s.io", "a.io/x/y:1", &image);
    let total = size(&made, &[&image]);
    let alone = Sizes { compressed: total, unpacked: 0, shared: 0, unique: total };
    assert_eq!(node.images.images(&node.scope, &ListRequest::default()).await.unwrap()[0].size, alone);
    write(&node, "moby", &made).await;
    name(&node, "moby", "a.io/x/y:2", &image);
    let shared = Sizes { shared: total, unique: 0, ..alone };
    for (namespace, tag) in [("k8s.io", "a.io/x/y:1"), ("moby", "a.io/x/y:2")] {
        let scope = Scope::new(namespace, "test");
        let rows = node.images.images(&scope, &ListRequest::default()).await.unwrap();
        assert_eq!(rows.len(), 1, "only rows of {namespace}");
        assert_eq!((&rows[0].names, rows[0].size), (&vec![tag.to_owned()], shared));
        assert_eq!(node.images.inspect(&scope, tag).await.unwrap().row.size, shared);
        let records = node.images.records(&scope, &ListRequest::default()).await.unwrap();
        assert_eq!(records.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), [tag]);
    }
    let everywhere = ListRequest { all_namespaces: true, ..ListRequest::default() };
    let rows = node.images.images(&node.scope, &everywhere).await.unwrap();
    assert_eq!(
        rows.iter().map(|r| (r.namespace.as_str(), r.size)).collect::<Vec<_>>(),
        [("k8s.io", shared), ("moby", shared)]
    );
    assert_eq!(node.images.records(&node.scope, &everywhere).await.unwrap().len(), 2);
}

/// A namespace that lacks a blob lacks it, though another one has it.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_namespace_has_does_not_complete_an_image() {
    let (node, mut made) = (Node::new(), Made::default());
    let image = made.image("amd64", &layers());
    write(&node, "k8s.io", &made).await;
    name(&node, "k8s.io", "a.io/x/y:1", &image);
    let layer = made.order[0].clone();
    made.blobs.remove(&layer);
    write(&node, "moby", &made).await;
    name(&node, "moby", "a.io/x/y:1", &image);
    let everywhere = ListRequest { all_namespaces: true, ..ListRequest::default() };
    let rows = node.images.images(&node.scope, &everywhere).await.unwrap();
    assert_eq!(rows.iter().map(|r| r.incomplete).collect::<Vec<_>>(), [false, true]);
    let records = node.images.records(&node.scope, &everywhere).await.unwrap();
    assert_eq!(records.iter().map(|r| r.platforms.len()).collect::<Vec<_>>(), [1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_records_and_the_images_that_have_one() {
    let (node, mut made) = (Node::new(), Made::default());
    let (first, second) = (made.image("amd64", &layers()), made.image("amd64", &layers()[..1]));
    write(&node, "k8s.io", &made).await;
    write(&node, "moby", &made).await;
    name(&node, "k8s.io", "a.io/x/y:1", &first);
    name(&node, "k8s.io", "b.io/x/y:1", &first);
    name(&node, "k8s.io", "c.io/x/z:1", &second);
    name(&node, "moby", "a.io/x/w:1", &second);
    let target = format!("target.digest=={}", second.digest);
    for (filter, records, images) in [
        ("name~=y:1", vec!["a.io/x/y:1", "b.io/x/y:1"], vec!["a.io/x/y:1"]),
        ("labels.team==b", vec!["b.io/x/y:1"], vec!["a.io/x/y:1"]),
        (&target, vec!["c.io/x/z:1"], vec!["c.io/x/z:1"]),
        ("target.mediatype~=manifest,name~=^c", vec!["c.io/x/z:1"], vec!["c.io/x/z:1"]),
        ("annotations.none", vec![], vec![]),
    ] {
        let rows = node.images.records(&node.scope, &filters(&[filter])).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), records, "{filter}");
        let rows = node.images.images(&node.scope, &filters(&[filter])).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.names[0].as_str()).collect::<Vec<_>>(), images, "{filter}");
        // A filter hides rows; it changes no numbers.
        let all = node.images.images(&node.scope, &ListRequest::default()).await.unwrap();
        assert!(rows.iter().all(|row| all.contains(row)), "{filter}");
    }
    let either = filters(&["name==a.io/x/y:1", "name==c.io/x/z:1"]);
    assert_eq!(node.images.records(&node.scope, &either).await.unwrap().len(), 2);
    let everywhere = ListRequest { all_namespaces: true, ..filters(&["labels.team==a"]) };
    assert_eq!(node.images.records(&node.scope, &everywhere).await.unwrap().len(), 2);
    assert_eq!(node.images.images(&node.scope, &everywhere).await.unwrap().len(), 2);
    assert!(node.images.records(&node.scope, &filters(&["name="])).await.is_err());
    assert!(node.images.images(&node.scope, &filters(&["name="])).await.is_err());
}
