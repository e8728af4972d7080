//! Pulling from a registry over loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common;
use crate::common::proxy::Proxy;
use crate::common::{Entry, Made, Node, Shelf, client, layers, on, scope};
use orlop_content::{IngestManager, IngestOptions, Ingester};
use orlop_image::{Error, Event, PullRequest, Settings, Stage};
use orlop_metadata::Scope;
use orlop_oci::{Descriptor, Digest, media_type};
use orlop_testkit::{compress, tar::tar};
use serde_json::json;

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
    assert_eq!(node.snapshots().len(), 3);
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());
    assert_eq!(node.blobs(), 1 + 1 + 1 + 3, "only the host's platform");
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_containerds() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    let other = made.image("arm64", &layers()[..1]);
    let index = made.index(&[on(&other, "arm64"), on(&image, "amd64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    shelf.push(&made, "mirror/app:v1", &index).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    node.pull(&shelf.name("mirror/app:v1")).await.unwrap();

    let content = node.store().content(&node.scope);
    let labels = |digest: &Digest| content.stat(digest).unwrap().labels;
    // Without the port, as containerd's clients write it.
    let source = format!("containerd.io/distribution.source.{}", shelf.server.address().ip());
    let of_index = labels(&index.digest);
    assert_eq!(
        of_index["containerd.io/gc.ref.content.m.0"],
        other.digest.to_string(),
        "not fetched, labelled all the same"
    );
    assert_eq!(of_index["containerd.io/gc.ref.content.m.1"], image.digest.to_string());
    assert_eq!(of_index[&source], "mirror/app,team/app");
    let of_manifest = labels(&image.digest);
    assert_eq!(of_manifest["containerd.io/gc.ref.content.config"], made.image_id(&image));
    let layer: Digest = of_manifest["containerd.io/gc.ref.content.l.2"].parse().unwrap();
    assert_eq!(labels(&layer)["containerd.io/uncompressed"], Digest::of(&tar(&layers()[2])).to_string());
    let config: Digest = made.image_id(&image).parse().unwrap();
    let driver = node.store().drivers()[0].name();
    let top = &labels(&config)[&format!("containerd.io/gc.ref.snapshot.{driver}")];
    assert!(node.snapshots().contains(top));
    node.store().collect_full(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    node.is_sound().await;
    assert_eq!(node.snapshots().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_fetched_again_not_even_by_another_namespace() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let proxy = Proxy::start(shelf.server.address()).await;
    node.pull(&proxy.name("team/app:v1")).await.unwrap();
    assert!(proxy.served() > image.size);

    let again = node.pull(&proxy.name("team/app:v1")).await.unwrap();
    assert_eq!(again.bytes_transferred, 0);
    assert!(proxy.served() < 4096, "only the resolution");

    let other = Scope::new("other", "test");
    let request = PullRequest { reference: proxy.name("team/app:v1"), ..PullRequest::default() };
    let third = node.images.pull(&other, &common::client(), &request, &|_| {}).await.unwrap();
    assert_eq!((third.bytes_transferred, third.names.len()), (0, 1), "not CRI-managed: only the name");
    assert!(proxy.served() < 4096);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pull_shows_nothing_and_the_next_one_resumes() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let noise: Vec<u8> = (0..6_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let image = made.image("amd64", &[vec![Entry::file("big", &noise)]]);
    shelf.push(&made, "team/app:v1", &image).await;
    let size = made.blobs.values().map(|(_, bytes)| bytes.len()).max().unwrap() as i64;
    let proxy = Proxy::start(shelf.server.address()).await;
    proxy.allow(size * 3 / 4);
    node.pull(&proxy.name("team/app:v1")).await.unwrap_err();
    assert!(node.names().is_empty() && node.snapshots().is_empty(), "{:?}", node.snapshots());
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());

    proxy.allow(i64::MAX);
    proxy.served();
    node.pull(&proxy.name("team/app:v1")).await.unwrap();
    let served = proxy.served() as i64;
    assert!(served < size / 2, "{served} of {size} bytes came again");
    assert_eq!(node.snapshots().len(), 1);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_the_same_time_meet() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let second_process = common::open(&node.root, orlop_image::Settings::default());
    let request = PullRequest { reference: shelf.name("team/app:v1"), ..PullRequest::default() };
    let pulls = (0..6).map(|i| {
        let images = if i % 2 == 0 { node.images.clone() } else { second_process.clone() };
        let request = request.clone();
        tokio::spawn(async move { images.pull(&scope(), &common::client(), &request, &|_| {}).await.unwrap() })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap();
    }
    assert_eq!((node.names().len(), node.snapshots().len()), (3, 3));
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_native_driver_unpacks_in_order() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let request = PullRequest { snapshotter: "native".to_owned(), ..PullRequest::default() };
    node.pull_with(&shelf.name("team/app:v1"), request).await.unwrap();
    let snapshots = node.store().snapshots(&node.scope, "native").unwrap();
    let top = snapshots.list(&[]).unwrap().pop().unwrap();
    let mounts = snapshots.view("look", &top.name, Default::default()).unwrap();
    let tree = std::path::Path::new(&mounts[0].source);
    assert_eq!(std::fs::read(tree.join("etc/passwd")).unwrap(), b"root:x:0:0:changed\n");
    assert!(tree.join("bin/tool").exists() && !tree.join("etc/gone").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_unpacks_to_something_else_is_refused() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let layer = made.add(media_type::OCI_LAYER_GZIP, compress::gzip(&tar(&layers()[0])));
    let wrong = Digest::of(b"something else");
    let image = made.image_with("amd64", &[wrong.to_string()], std::slice::from_ref(&layer));
    shelf.push(&made, "team/app:v1", &image).await;
    let error = node.pull(&shelf.name("team/app:v1")).await.unwrap_err();
    assert!(matches!(&error, Error::DiffId { layer: l, expected, .. } if *l == layer.digest && *expected == wrong));
    assert!(node.names().is_empty() && node.snapshots().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_hostile_layer_is_refused_naming_it() {
    let good = compress::gzip(&tar(&layers()[0]));
    let cut = good[..good.len() / 2].to_vec();
    let hostile = compress::gzip(&tar(&[Entry::file("../../escape", "x")]));
    for bytes in [cut, hostile, b"no gzip at all".to_vec()] {
        let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
        let layer = made.add(media_type::OCI_LAYER_GZIP, bytes);
        let image = made.image_with("amd64", &[Digest::of(b"x").to_string()], std::slice::from_ref(&layer));
        shelf.push(&made, "team/app:v1", &image).await;
        let error = node.pull(&shelf.name("team/app:v1")).await.unwrap_err();
        assert!(error.to_string().contains(&layer.digest.to_string()), "{error}");
        assert_eq!(error.kind(), orlop_image::ErrorKind::Verification, "{error}");
        assert!(node.names().is_empty() && node.snapshots().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_and_attestations_are_kept_and_never_unpacked() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let empty = made.add(media_type::OCI_EMPTY, "{}");
    let chart = made.add("application/vnd.cncf.helm.chart.content.v1.tar+gzip", compress::gzip(b"chart"));
    let artifact = made.manifest(&empty, &[chart]);
    shelf.push(&made, "charts/app:v1", &artifact).await;
    let outcome = node.pull(&shelf.name("charts/app:v1")).await.unwrap();
    assert_eq!(outcome.names, [shelf.name("charts/app:v1")]);
    assert!(outcome.image_ids.is_empty() && node.snapshots().is_empty());
    assert!(!node.store().image("k8s.io", &outcome.names[0]).unwrap().labels.contains_key("io.cri-containerd.image"));

    let mut made = Made::default();
    let image = made.image("amd64", &layers());
    let config = made.add(media_type::OCI_CONFIG, r#"{"architecture":"unknown","os":"unknown"}"#);
    let statement = made.add("application/vnd.in-toto+json", "{}");
    let attestation = made.manifest(&config, &[statement]);
    let mut entry = on(&attestation, "unknown");
    entry["platform"]["os"] = json!("unknown");
    entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = made.index(&[on(&image, "amd64"), entry]);
    shelf.push(&made, "team/app:v1", &index).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    assert!(node.store().content(&node.scope).stat(&attestation.digest).is_err());
    let all = PullRequest { all_platforms: true, ..PullRequest::default() };
    node.pull_with(&shelf.name("team/app:v1"), all).await.unwrap();
    assert!(node.store().content(&node.scope).stat(&attestation.digest).is_ok());
    assert_eq!(node.snapshots().len(), 3);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_is_not_there_is_named_with_those_that_are() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let arm = made.image("arm64", &layers()[..1]);
    let index = made.index(&[on(&arm, "arm64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    shelf.push(&made, "team/app:single", &arm).await;
    for tag in ["v1", "single"] {
        let error = node.pull(&shelf.name(&format!("team/app:{tag}"))).await.unwrap_err();
        assert!(
            matches!(&error, Error::NoPlatform { wanted, available, .. }
            if wanted == "linux/amd64" && available == "linux/arm64"),
            "{error}"
        );
    }
    let request = PullRequest { platforms: vec!["linux/arm64".parse().unwrap()], ..PullRequest::default() };
    let outcome = node.pull_with(&shelf.name("team/app:v1"), request).await.unwrap();
    assert_eq!(outcome.names, [shelf.name("team/app:v1")], "a foreign platform's image has no hash references");
    assert_eq!(node.snapshots().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_indexes_are_followed_up_to_a_bound() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers()[..1]);
    let mut index = made.index(&[on(&image, "amd64")]);
    index = made.index(&[serde_json::to_value(&index).unwrap(), serde_json::to_value(&index).unwrap()]);
    shelf.push(&made, "team/nested:v1", &index).await;
    node.pull(&shelf.name("team/nested:v1")).await.unwrap();
    for _ in 0..12 {
        index = made.index(&[serde_json::to_value(&index).unwrap()]);
    }
    shelf.push(&made, "team/nested:deep", &index).await;
    let error = node.pull(&shelf.name("team/nested:deep")).await.unwrap_err();
    assert!(matches!(error, Error::TooDeep { .. }), "{error}");
    // Fourteen levels; and the store reads what was let in whatever the bound is now.
    for (depth, is_taken) in [(13, false), (14, true)] {
        let node = Node::with(limited(|limits| limits.index_depth = depth));
        let pulled = node.pull(&shelf.name("team/nested:deep")).await;
        assert_eq!(pulled.is_ok(), is_taken, "{depth}: {pulled:?}");
        assert!(is_taken || pulled.unwrap_err().to_string().contains("limits.index_depth"));
        node.images.set_settings(Settings::default());
        node.is_sound().await;
    }
}

fn limited(set: impl FnOnce(&mut orlop_image::Limits)) -> Settings {
    let mut settings = Settings::default();
    set(&mut settings.limits);
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_limited_in_number_and_bytes() {
    let (shelf, mut made) = (Shelf::start().await, Made::default());
    let images: Vec<_> = (0..3).map(|at| made.image(&format!("arch{at}"), &layers()[..1])).collect();
    let index = made.index(&[on(&images[0], "arch0"), on(&images[1], "arch1"), on(&images[2], "amd64")]);
    shelf.push(&made, "team/many:v1", &index).await;
    let largest = made.order.iter().map(|digest| &made.blobs[digest]).filter(|(kind, _)| kind.contains("json"));
    let largest = largest.map(|(_, bytes)| bytes.len() as u64).max().unwrap();
    let cases: [(&str, Settings, bool); 4] = [
        ("index_documents", limited(|limits| limits.index_documents = 4), true),
        ("index_documents", limited(|limits| limits.index_documents = 3), false),
        ("manifest_bytes", limited(|limits| limits.manifest_bytes = largest), true),
        ("manifest_bytes", limited(|limits| limits.manifest_bytes = largest - 1), false),
    ];
    for (key, settings, is_taken) in cases {
        let node = Node::with(settings);
        let request = PullRequest { all_platforms: true, no_unpack: true, ..PullRequest::default() };
        let pulled = node.pull_with(&shelf.name("team/many:v1"), request).await;
        assert_eq!(pulled.is_ok(), is_taken, "{key}: {pulled:?}");
        if let Err(error) = pulled {
            assert!(error.to_string().contains(&format!("limits.{key}")), "{error}");
            assert!(node.names().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_occurs_twice_is_fetched_once_and_unpacked_twice() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let same = layers()[1].clone();
    let image = made.image("amd64", &[same.clone(), layers()[0].clone(), same]);
    shelf.push(&made, "team/app:v1", &image).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    assert_eq!((node.snapshots().len(), node.blobs()), (3, 1 + 1 + 2));
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_an_image() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &[]);
    shelf.push(&made, "team/empty:v1", &image).await;
    let outcome = node.pull(&shelf.name("team/empty:v1")).await.unwrap();
    assert_eq!(outcome.names.len(), 3);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_makes_a_name_that_stays() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let name = shelf.name(&format!("team/app@{}", image.digest));
    let outcome = node.pull(&name).await.unwrap();
    assert_eq!(outcome.names, [made.image_id(&image), name.clone()]);
    assert_eq!(node.images.reconcile("k8s.io").await.unwrap(), orlop_image::Reconciled::default());
    let rows = node.images.images(&node.scope, &Default::default()).await.unwrap();
    assert_eq!(rows[0].names, [name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_contradicts_its_config_is_refused() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let layer: Descriptor = made.add(media_type::OCI_LAYER, tar(&layers()[0]));
    let image = made.image_with("amd64", &[], &[layer]);
    shelf.push(&made, "team/app:v1", &image).await;
    let error = node.pull(&shelf.name("team/app:v1")).await.unwrap_err();
    assert!(matches!(error, Error::Inconsistent { .. }), "{error}");
}

/// Regression: of two pulls that wrote one layer at the same time, one failed with "the layer's bytes stopped coming" if its write
/// was ended in the middle and the other had brought the layer when it asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_cut_and_that_somebody_else_brought_is_unpacked_from_the_store() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    // More than one piece, however it is compressed.
    let draw = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    let noise: Vec<u8> = std::iter::successors(Some(1u64), draw).map(|n| (n >> 56) as u8).take(4_000_000).collect();
    let image = made.image("amd64", &[vec![Entry::file("noise", noise)]]);
    shelf.push(&made, "team/app:v1", &image).await;
    let cut = AtomicUsize::new(0);
    let sink = |event: Event| {
        let Event::Blob(blob) = event else { return };
        let written = blob.kind == "layer" && blob.stage == Stage::Fetching && blob.offset > 0;
        if !written || cut.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        let content = node.store().content(&node.scope);
        let bytes = made.blobs[&blob.digest].1.clone();
        let instead = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _ = content.abort(&format!("layer-{}", blob.digest)).await;
                // Who ends a write removes its bytes, which nobody but this pull holds here.
                for write in std::fs::read_dir(node.store().root().join("content/ingest")).unwrap() {
                    let _ = std::fs::remove_file(write.unwrap().path().join("data"));
                }
                let options = IngestOptions { reference: "somebody else".into(), ..IngestOptions::default() };
                let mut writer = content.writer(options).await.unwrap();
                writer.write(bytes).await.unwrap();
                writer.commit(blob.total, Some(&blob.digest)).await.unwrap();
            });
        };
        std::thread::scope(|scope| scope.spawn(instead).join().unwrap());
    };
    let request = PullRequest { reference: shelf.name("team/app:v1"), ..PullRequest::default() };
    node.images.pull(&node.scope, &client(), &request, &sink).await.unwrap();
    assert!(cut.load(Ordering::SeqCst) > 0);
    assert_eq!(node.snapshots().len(), 1);
    node.is_sound().await;
}

/// Regression: of two pulls that wrote one layer at the same time, one failed with "ingest not found" if the other had come to its end
/// first and its image was removed at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_somebody_else_ends_is_begun_again() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let name = shelf.name("team/app:v1");
    let ended = AtomicUsize::new(0);
    let sink = |event: Event| {
        let Event::Blob(blob) = event else { return };
        let written = blob.kind == "layer" && blob.stage == Stage::Fetching && blob.offset > 0;
        if !written || ended.fetch_add(1, Ordering::SeqCst) > 1 {
            return;
        }
        let content = node.store().content(&node.scope);
        let abort = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            // That the bytes are in use does not matter: the row is gone.
            let _ = runtime.block_on(content.abort(&format!("layer-{}", blob.digest)));
        };
        std::thread::scope(|scope| scope.spawn(abort).join().unwrap());
    };
    let request = PullRequest { reference: name.clone(), ..PullRequest::default() };
    node.images.pull(&node.scope, &client(), &request, &sink).await.unwrap();
    assert!(ended.load(Ordering::SeqCst) > 1);
    assert!(node.names().contains(&name));
    node.is_sound().await;
}
