//! What a push has is there until its manifest is, whatever is removed and collected meanwhile; and no longer than it is needed.

use std::sync::Arc;

use axum::body::Body;
use http::Request;
use orlop_image::{Gate, Identity, Policy, Requirement, Rule, Settings, Signed};
use orlop_oci::{Descriptor, Digest};
use orlop_registry::{BlobIndex, ManifestIndex, ManifestRecord, Registry};
use orlop_server::{NodeIndex, NodeRegistry};
use orlop_testkit::image::{Content, is_document};

use crate::node_registry::{HOST, Rig, image};

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_in_the_middle_of_a_push_takes_nothing() {
    let rig = Rig::new().await;
    let content = image(3);
    for (descriptor, bytes) in content.push_order() {
        rig.collect().await;
        match is_document(&descriptor.media_type) {
            true => assert_eq!(rig.put("app", "1", &descriptor.media_type, bytes).await.status, 201),
            false => rig.push_blob("app", bytes).await,
        }
    }
    rig.collect().await;
    // From now on the records hold it.
    rig.end_leases();
    rig.collect().await;
    for (descriptor, bytes) in content.push_order().into_iter().filter(|(d, _)| !is_document(&d.media_type)) {
        assert_eq!(rig.get(&format!("/v2/app/blobs/{}", descriptor.digest)).await.body, bytes);
    }
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_ends_the_leases_and_pushes_go_on() {
    let rig = Rig::new().await;
    rig.push_blob("app", b"first").await;
    rig.end_leases();
    assert_eq!(rig.push("app", Some("1"), &image(4)).await.status, 201);
    rig.collect().await;
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_manifest_came_for_goes_with_its_lease() {
    let rig = Rig::new().await;
    rig.push_blob("app", b"never named").await;
    let path = format!("/v2/app/blobs/{}", Digest::of(b"never named"));
    assert_eq!(rig.get(&path).await.status, 200);
    rig.end_leases();
    rig.collect().await;
    assert_eq!(rig.get(&path).await.status, 404);
    assert_eq!(rig.blob_files(), 0);
}

/// Regression: the lease of a push held it for a day after it was removed.
#[tokio::test(flavor = "multi_thread")]
async fn who_removes_what_was_just_pushed_gets_its_space_back() {
    let rig = Rig::new().await;
    let content = image(19);
    let layer = content.layers()[0].clone();
    // Another push that has the same layer, and whose manifest has not come yet.
    rig.push_blob("other", content.bytes(&layer)).await;
    rig.push("app", Some("1"), &content).await;
    rig.remove(&format!("{HOST}/app:1")).await;
    rig.collect().await;
    assert_eq!(rig.blob_files(), 1, "only what the other push has");
    assert_eq!(rig.get(&format!("/v2/other/blobs/{layer}")).await.status, 200);
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 404);
}

impl Rig {
    /// Another index of the same registry.
    async fn index(&self) -> NodeIndex {
        let own = NodeRegistry { host: HOST.into(), namespace: "k8s.io".into() };
        let images = self.node.images.clone();
        tokio::task::spawn_blocking(move || own.index(&images)).await.unwrap().unwrap()
    }

    async fn is_there(&self, digest: &Digest) -> bool {
        self.node.store.content(&self.scope).stat(digest).is_ok()
    }
}

/// Puts a manifest as the registry does; its bytes and children are there.
async fn put(index: &NodeIndex, repository: &str, content: &Content) {
    let Descriptor { digest, media_type, size, .. } = content.root.clone();
    let children: Vec<Digest> = content.push_order().into_iter().map(|(child, _)| child.digest).collect();
    let held = index.hold(&children).await.unwrap();
    let children = children.into_iter().filter(|child| *child != digest).collect();
    let record = ManifestRecord {
        digest,
        media_type,
        size,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
        children,
        elsewhere: Vec::new(),
    };
    index.put_manifest(repository, record.clone(), &["1".to_owned()]).await.unwrap();
    index.settle(repository, record, held).await;
}

/// It is for a day what it may become: a part of a signed index.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_signed_yet_in_one_repository_no_other_lets_go_of() {
    let nobody = Signed { keys: Vec::new(), threshold: 1, identity: Identity::Any };
    let rule = |images: &[&str], requirement| {
        let images = images.iter().map(|pattern| pattern.parse().unwrap()).collect();
        Rule { place: "test".into(), images, requirement }
    };
    let signed = format!("{HOST}/signed");
    let policy =
        Policy { rules: vec![rule(&[&signed], Requirement::Signed(nobody))], default: rule(&[], Requirement::Accept) };
    let gate = Gate { policy: Some(Arc::new(policy)), verifiers: None };
    let rig = Rig::with(Settings { gate, ..Settings::default() }).await;
    let content = image(24);
    assert_eq!(rig.push("signed", None, &content).await.status, 201);
    assert_eq!(rig.push("app", Some("1"), &content).await.status, 201);
    assert!(rig.records().iter().all(|name| !name.contains("/signed")), "{:?}", rig.records());
    rig.remove(&format!("{HOST}/app:1")).await;
    rig.collect().await;
    let got = rig.get(&format!("/v2/signed/manifests/{}", content.root.digest)).await;
    assert_eq!(got.body, content.bytes(&content.root.digest));
    assert_eq!(rig.blob_files(), content.push_order().len());
}

/// While a manifest is put, all that it has may be pushed elsewhere, removed there and collected.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_push_counts_on_no_other_lets_go_of() {
    let rig = Rig::new().await;
    let content = image(22);
    let layer = content.layers()[0].clone();
    rig.import("elsewhere.test/app:1", &content).await;
    let index = rig.index().await;
    let held = index.hold(std::slice::from_ref(&layer)).await.unwrap();
    put(&index, "app", &content).await;
    for name in ["elsewhere.test/app:1".to_owned(), format!("{HOST}/app:1")] {
        rig.remove(&name).await;
    }
    rig.collect().await;
    assert!(rig.is_there(&layer).await);
    assert_eq!(rig.blob_files(), 1, "what nobody else counts on went");
    // Without a manifest it is there for a day.
    drop(held);
    rig.collect().await;
    assert!(rig.is_there(&layer).await);
}

/// What holds a blob is that the registry asks for it: nothing else does here, not even the lease under which bytes are written.
#[tokio::test(flavor = "multi_thread")]
async fn the_registry_holds_what_is_uploaded_and_what_a_manifest_names() {
    let rig = Rig::new().await;
    let content = image(23);
    let layer = content.layers()[0].clone();
    let registry = Registry::new(Arc::new(rig.node.store.content(&rig.scope)), Arc::new(rig.index().await));
    let ask = async |method: &str, path: String, body: &[u8]| {
        let request = Request::builder().method(method).uri(path).header("content-type", &*content.root.media_type);
        registry.handle(request.body(Body::from(body.to_vec())).unwrap()).await.status().as_u16()
    };
    let uploaded = b"uploaded";
    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::of(uploaded));
    assert_eq!(ask("POST", path, uploaded).await, 201);
    rig.collect().await;
    assert!(rig.is_there(&Digest::of(uploaded)).await);
    // The config of this manifest is missing: it may come, and the layer waits for it.
    rig.import(&format!("{HOST}/app:1"), &content).await;
    let manifest = String::from_utf8(content.bytes(&content.root.digest).to_vec()).unwrap();
    let config: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let config = config["config"]["digest"].as_str().unwrap();
    let other = manifest.replace(config, Digest::of(b"missing").as_str());
    assert_eq!(ask("PUT", "/v2/app/manifests/2".to_owned(), other.as_bytes()).await, 400, "it is missing");
    rig.remove(&format!("{HOST}/app:1")).await;
    rig.collect().await;
    assert!(rig.is_there(&layer).await);
    assert!(!rig.is_there(&content.root.digest).await);
}
