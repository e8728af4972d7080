//! The node's registry: what is pushed is an image of the node, what the node has can be pulled, and nothing that anybody counts on
//! is collected.

use axum::body::{Body, to_bytes};
use http::{Request, StatusCode};
use orlop_image::{
    Gate, GcRequest, Identity, Images, ImportRequest, Limits, Policy, RemoveRequest, Requirement, Rule, Settings,
    Signed,
};
use orlop_metadata::{Labels, Scope};
use orlop_oci::{Digest, media_type};
use orlop_registry::Registry;
use orlop_server::NodeRegistry;
use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Image, Layer, is_document};
use orlop_testkit::tar::Entry;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::Node;

pub(crate) const HOST: &str = "localhost:32000";

/// A node that is a registry.
pub(crate) struct Rig {
    pub(crate) node: Node,
    registry: Registry,
    pub(crate) scope: Scope,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status, code of the specification, and what it says of it.
    pub(crate) fn error(&self) -> (u16, String, String) {
        let error = &self.json()["errors"][0];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (self.status, text("code"), text("detail"))
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        Self::at(tempfile::tempdir().unwrap(), settings).await
    }

    async fn at(directory: TempDir, settings: Settings) -> Self {
        let settings = Settings { own_registries: vec![HOST.into()], ..settings };
        let node = Node::at(directory, settings);
        let (own, images) = (NodeRegistry { host: HOST.into(), namespace: "k8s.io".into() }, node.images.clone());
        let registry = tokio::task::spawn_blocking(move || own.open(&images)).await.unwrap().unwrap();
        Self { node, registry, scope: Scope::new("k8s.io", "test") }
    }

    /// The same root, opened anew.
    async fn again(self) -> Self {
        let Self { node, registry, .. } = self;
        drop(registry);
        drop((node.channel, node.server, node.images, node.store));
        Self::at(node.directory, Settings::default()).await
    }

    fn images(&self) -> &Images {
        &self.node.images
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.registry.handle(request.body(body.into()).unwrap()).await;
        let (parts, body) = answer.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], "").await
    }

    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(bytes));
        let answer = self.ask("POST", &path, &[], bytes.to_vec()).await;
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    }

    pub(crate) async fn put(&self, repository: &str, key: &str, media_type: &str, document: &[u8]) -> Answer {
        let path = format!("/v2/{repository}/manifests/{key}");
        self.ask("PUT", &path, &[("content-type", media_type)], document.to_vec()).await
    }

    /// Everything of an image, its root last; that under a tag, or by its digest.
    pub(crate) async fn push(&self, repository: &str, tag: Option<&str>, content: &Content) -> Answer {
        for (descriptor, bytes) in content.push_order() {
            if descriptor.digest == content.root.digest {
                continue;
            }
            if is_document(&descriptor.media_type) {
                let answer = self.put(repository, descriptor.digest.as_str(), &descriptor.media_type, bytes).await;
                assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
            } else {
                self.push_blob(repository, bytes).await;
            }
        }
        let root = &content.root;
        self.put(repository, tag.unwrap_or(root.digest.as_str()), &root.media_type, content.bytes(&root.digest)).await
    }

    pub(crate) fn records(&self) -> Vec<String> {
        self.node.store.images("k8s.io", &[]).unwrap().into_iter().map(|image| image.name).collect()
    }

    pub(crate) async fn collect(&self) {
        let request = GcRequest { full: true, trash: true, ..GcRequest::default() };
        self.images().gc(&self.scope, request).await.unwrap();
    }

    /// Ends the leases of all pushes, as their time does.
    pub(crate) fn end_leases(&self) {
        for lease in self.node.store.leases("k8s.io", &[]).unwrap() {
            self.node.store.delete_lease("k8s.io", &lease.id).unwrap();
        }
    }

    pub(crate) async fn remove(&self, name: &str) {
        let request = RemoveRequest { names: vec![name.to_owned()], ..RemoveRequest::default() };
        self.images().remove(&self.scope, &request).await.unwrap();
    }

    pub(crate) fn blob_files(&self) -> usize {
        std::fs::read_dir(self.node.directory.path().join("root/content/blobs/sha256")).unwrap().count()
    }

    /// Brings an image in as `orlop import` does.
    pub(crate) async fn import(&self, name: &str, content: &Content) {
        self.import_into(&self.scope, name, content).await;
    }

    async fn import_into(&self, scope: &Scope, name: &str, content: &Content) {
        let archive = oci_archive(&[(name, content)]);
        let request = ImportRequest { no_unpack: true, ..ImportRequest::default() };
        self.images().import(scope, &mut archive.as_slice(), &request, &|_| {}).await.unwrap();
    }
}

pub(crate) fn image(seed: u64) -> Content {
    Content::image(
        &Image::host().layer(Layer::new([Entry::file("who", format!("{seed}"))])).layer(Layer::noise("n", seed, 5000)),
    )
}

fn foreign(seed: u64) -> Content {
    Content::image(&Image::new("windows/amd64").layer(Layer::noise("n", seed, 3000)))
}

/// `limits.manifest_bytes` counts for what is pushed as for what is pulled.
#[tokio::test]
async fn a_manifest_of_more_bytes_than_a_document_may_have_is_refused() {
    let content = image(61);
    let size = content.root.size;
    for (limit, status) in [(size, 201), (size - 1, 413)] {
        let limits = Limits { manifest_bytes: limit, ..Limits::default() };
        let rig = Rig::with(Settings { limits, ..Settings::default() }).await;
        let answer = rig.push("app", Some("1"), &content).await;
        assert_eq!(answer.status, status, "{}", String::from_utf8_lossy(&answer.body));
        assert_eq!(rig.records().is_empty(), status == 413);
        if status == 413 {
            assert!(String::from_utf8_lossy(&answer.body).contains("limits.manifest_bytes"), "it names the limit");
        }
    }
}

/// A manifest that the store has for another namespace, or from a push that was cut, was refused: its bytes were taken to come twice.
#[tokio::test]
async fn what_another_namespace_has_can_be_pushed() {
    let rig = Rig::new().await;
    let content = image(60);
    rig.import_into(&Scope::new("default", "test"), "docker.io/library/app:1", &content).await;
    let answer = rig.push("app", Some("1"), &content).await;
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    let pulled = rig.get("/v2/app/manifests/1").await;
    assert_eq!((pulled.status, pulled.body), (200, content.bytes(&content.root.digest).to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_an_image_of_the_node_at_once_and_is_there_once() {
    let rig = Rig::new().await;
    let content = image(1);
    let root = content.root.digest.clone();
    assert_eq!(rig.push("team/app", Some("1"), &content).await.status, 201);
    let id = content.image_id().unwrap().to_string();
    let (tag, digest) = (format!("{HOST}/team/app:1"), format!("{HOST}/team/app@{root}"));
    assert_eq!(rig.records(), [tag.clone(), digest.clone(), id.clone()]);
    let record = rig.node.store.image("k8s.io", &tag).unwrap();
    assert_eq!((record.target.digest, record.target.size), (root.clone(), content.root.size));
    assert_eq!(record.labels["io.cri-containerd.image"], "managed");
    assert_eq!(rig.blob_files(), content.push_order().len(), "each blob is one file");
    let who = &rig.node.store.history("k8s.io", Some(&tag), 1).unwrap()[0].actor;
    assert!(who.starts_with("registry"), "{who}");
    // A second pass has nothing to mend.
    assert_eq!(rig.images().reconcile("k8s.io").await.unwrap(), Default::default());
    let got = rig.get("/v2/team/app/manifests/1").await;
    assert_eq!((got.status, got.body.as_slice()), (200, content.bytes(&root)));
    for layer in content.layers() {
        assert_eq!(rig.get(&format!("/v2/team/app/blobs/{layer}")).await.body, content.bytes(&layer));
    }
    assert!(rig.images().check(&rig.scope, &Default::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_what_it_meant_stays_in_the_repository() {
    let rig = Rig::new().await;
    let (old, new) = (image(1), image(2));
    rig.push("app", Some("1"), &old).await;
    rig.push("app", Some("1"), &new).await;
    rig.end_leases();
    rig.collect().await;
    let got = rig.get(&format!("/v2/app/manifests/{}", old.root.digest)).await;
    assert_eq!(got.body, old.bytes(&old.root.digest));
    for layer in old.layers() {
        assert_eq!(rig.get(&format!("/v2/app/blobs/{layer}")).await.status, 200);
    }
    assert_eq!(rig.get("/v2/app/manifests/1").await.body, new.bytes(&new.root.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_and_what_was_pushed_outlive_a_restart() {
    let rig = Rig::new().await;
    let content = image(5);
    rig.push("app", Some("1"), &content).await;
    rig.push_blob("app", b"waits for its manifest").await;
    let started = rig.ask("POST", "/v2/app/blobs/uploads/", &[], "").await;
    let location = started.header("location").to_owned();
    assert_eq!(rig.ask("PATCH", &location, &[], "first, ").await.status, 202);
    let rig = rig.again().await;
    rig.collect().await;
    assert_eq!(rig.ask("GET", &location, &[], "").await.header("range"), "0-6");
    let digest = Digest::of(b"first, second");
    assert_eq!(rig.ask("PUT", &format!("{location}?digest={digest}"), &[], "second").await.status, 201);
    assert_eq!(rig.get(&format!("/v2/app/blobs/{digest}")).await.body, b"first, second");
    assert_eq!(rig.get(&format!("/v2/app/blobs/{}", Digest::of(b"waits for its manifest"))).await.status, 200);
    assert_eq!(rig.get("/v2/app/manifests/1").await.body, content.bytes(&content.root.digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_keeps_its_manifests_and_takes_them_along() {
    let rig = Rig::new().await;
    let (amd64, other) = (image(6), foreign(7));
    let content = Content::index(&[amd64.clone(), other.clone()]);
    assert_eq!(rig.push("app", Some("1"), &content).await.status, 201);
    let names = rig.records();
    let own = format!("{HOST}/app@{}", content.root.digest);
    assert_eq!(names, [format!("{HOST}/app:1"), own, amd64.image_id().unwrap().to_string()], "as after a pull");
    rig.end_leases();
    rig.collect().await;
    for child in [&amd64, &other] {
        let path = format!("/v2/app/manifests/{}", child.root.digest);
        assert_eq!(rig.get(&path).await.body, child.bytes(&child.root.digest));
        let refused = rig.delete(&path).await.error();
        assert_eq!((refused.0, refused.1.as_str()), (405, "UNSUPPORTED"));
        assert!(refused.2.contains(&format!("{HOST}/app")), "{}", refused.2);
    }
    rig.remove(&format!("{HOST}/app:1")).await;
    rig.collect().await;
    assert_eq!((rig.records(), rig.blob_files()), (Vec::new(), 0));
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 404);
}

/// Regression: a manifest's own record went, with its tag's digest reference or a pin, when an index came that has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_takes_no_record_from_its_manifests_that_is_needed_otherwise() {
    let rig = Rig::new().await;
    let (tagged, pinned) = (image(20), foreign(21));
    assert_eq!(rig.push("app", Some("amd64"), &tagged).await.status, 201);
    assert_eq!(rig.push("app", None, &pinned).await.status, 201);
    let [of_tagged, of_pinned] = [&tagged, &pinned].map(|child| format!("{HOST}/app@{}", child.root.digest));
    rig.images().pin(&rig.scope, &of_pinned, true).await.unwrap();
    let content = Content::index(&[tagged.clone(), pinned.clone()]);
    assert_eq!(rig.push("app", Some("1"), &content).await.status, 201);
    let names = rig.records();
    for name in [&of_tagged, &of_pinned] {
        assert!(names.contains(name), "{name} {names:#?}");
    }
    assert_eq!(rig.images().reconcile("k8s.io").await.unwrap(), Default::default(), "nothing was to be mended");
    // The index goes, what has a tag of its own stays.
    assert_eq!(rig.delete(&format!("/v2/app/manifests/{}", content.root.digest)).await.status, 202);
    rig.end_leases();
    rig.collect().await;
    for child in [&tagged, &pinned] {
        let path = format!("/v2/app/manifests/{}", child.root.digest);
        assert_eq!(rig.get(&path).await.body, child.bytes(&child.root.digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_is_a_removal_that_can_be_undone() {
    let rig = Rig::new().await;
    let content = image(8);
    let root = content.root.digest.clone();
    rig.push("app", Some("1"), &content).await;
    rig.put("app", "2", &content.root.media_type, content.bytes(&root)).await;
    assert_eq!(rig.delete("/v2/app/manifests/1").await.status, 202);
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 404);
    assert_eq!(rig.get("/v2/app/manifests/2").await.status, 200);
    assert_eq!(rig.delete(&format!("/v2/app/manifests/{root}")).await.status, 202);
    rig.end_leases();
    assert_eq!(rig.records(), Vec::<String>::new());
    for path in ["/v2/app/manifests/2".to_owned(), format!("/v2/app/manifests/{root}")] {
        assert_eq!(rig.get(&path).await.status, 404);
    }
    rig.images().undo(&rig.scope, None).await.unwrap();
    assert_eq!(rig.get("/v2/app/manifests/2").await.body, content.bytes(&root));
    assert_eq!(rig.get(&format!("/v2/app/manifests/{root}")).await.status, 200);
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 404, "that was another removal");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_tag_goes_and_the_manifest_stays_until_it_is_deleted() {
    let rig = Rig::new().await;
    let content = image(9);
    let by_digest = format!("/v2/app/manifests/{}", content.root.digest);
    rig.push("app", Some("1"), &content).await;
    assert_eq!(rig.delete("/v2/app/manifests/1").await.status, 202);
    rig.end_leases();
    rig.collect().await;
    rig.images().reconcile("k8s.io").await.unwrap();
    assert_eq!(rig.get(&by_digest).await.status, 200);
    let layer = format!("/v2/app/blobs/{}", content.layers()[0]);
    assert_eq!(rig.get(&layer).await.status, 200);
    let refused = rig.delete(&layer).await.error();
    assert_eq!((refused.0, refused.1.as_str()), (405, "UNSUPPORTED"), "its manifest needs it");
    assert_eq!(rig.delete(&by_digest).await.status, 202);
    rig.collect().await;
    assert_eq!(rig.blob_files(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn rm_takes_what_was_pushed_out_of_its_repository_and_of_no_other() {
    let rig = Rig::new().await;
    let content = image(10);
    rig.push("one", Some("1"), &content).await;
    rig.push("two", None, &content).await;
    rig.remove(&format!("{HOST}/one:1")).await;
    rig.end_leases();
    rig.collect().await;
    assert_eq!(rig.get(&format!("/v2/one/manifests/{}", content.root.digest)).await.status, 404);
    assert_eq!(rig.get(&format!("/v2/two/manifests/{}", content.root.digest)).await.status, 200);
    assert_eq!(rig.records(), [format!("{HOST}/two@{}", content.root.digest)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_another_way_can_be_pulled_and_its_referrers_are_found() {
    let rig = Rig::new().await;
    let content = image(11);
    let signature = Content::artifact("test/signature", &[("text/plain", b"signed")], Some(&content.root));
    for (name, content) in [(format!("{HOST}/app:1"), &content), (format!("{HOST}/app:sig"), &signature)] {
        rig.import(&name, content).await;
    }
    let got = rig.get("/v2/app/manifests/1").await;
    assert_eq!((got.status, got.header("content-type")), (200, media_type::OCI_MANIFEST));
    for layer in content.layers() {
        assert_eq!(rig.get(&format!("/v2/app/blobs/{layer}")).await.status, 200);
        let hidden = rig.get(&format!("/v2/other/blobs/{layer}")).await.error();
        assert_eq!((hidden.0, hidden.1.as_str()), (404, "BLOB_UNKNOWN"), "another repository does not have it");
        let no_manifest = rig.get(&format!("/v2/app/manifests/{layer}")).await.error();
        assert_eq!(no_manifest.1, "MANIFEST_UNKNOWN", "a layer is no manifest");
    }
    let listed = rig.get(&format!("/v2/app/referrers/{}", content.root.digest)).await.json();
    assert_eq!(listed["manifests"][0]["digest"], signature.root.digest.as_str());
    assert_eq!(listed["manifests"][0]["artifactType"], "test/signature");
    assert_eq!(rig.get("/v2/app/tags/list").await.json()["tags"], serde_json::json!(["1", "sig"]));
    assert_eq!(rig.get("/v2/_catalog").await.json()["repositories"], serde_json::json!(["app"]));
    // Names of other hosts are no repositories of this one.
    rig.import("docker.io/library/app:1", &image(12)).await;
    assert_eq!(rig.get("/v2/library/app/manifests/1").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_stay_with_their_subject_whatever_is_collected() {
    let rig = Rig::new().await;
    let content = image(13);
    rig.push("app", Some("1"), &content).await;
    let sbom = Content::artifact("test/sbom", &[("text/plain", b"parts")], Some(&content.root));
    let pushed = rig.push("app", None, &sbom).await;
    assert_eq!(pushed.header("oci-subject"), content.root.digest.as_str());
    rig.end_leases();
    rig.collect().await;
    let rig = rig.again().await;
    let path = format!("/v2/app/referrers/{}", content.root.digest);
    let listed = rig.get(&path).await.json();
    assert_eq!(listed["manifests"][0]["digest"], sbom.root.digest.as_str());
    let blob = sbom.push_order().into_iter().find(|(d, _)| !is_document(&d.media_type)).unwrap().0.digest;
    assert_eq!(rig.get(&format!("/v2/app/blobs/{blob}")).await.status, 200);
    assert_eq!(rig.delete(&format!("/v2/app/manifests/{}", sbom.root.digest)).await.status, 202);
    assert_eq!(rig.get(&path).await.json()["manifests"], serde_json::json!([]));
}

fn gate(requirement: Requirement) -> Settings {
    let rule = Rule { place: "test".into(), images: Vec::new(), requirement };
    let policy = Policy { rules: Vec::new(), default: rule };
    Settings { gate: Gate { policy: Some(std::sync::Arc::new(policy)), verifiers: None }, ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policy_rejects_is_not_taken() {
    let rig = Rig::with(gate(Requirement::Reject)).await;
    let content = image(14);
    for tag in [Some("1"), None] {
        let refused = rig.push("app", tag, &content).await.error();
        assert_eq!((refused.0, refused.1.as_str()), (403, "DENIED"));
        assert!(refused.2.contains("hange the policy"), "{}", refused.2);
    }
    assert_eq!(rig.records(), Vec::<String>::new());
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 404);
}

/// The manifests of an index come before it and are not signed themselves.
#[tokio::test(flavor = "multi_thread")]
async fn what_must_be_signed_gets_no_name_without_a_signature() {
    let nobody = Signed { keys: Vec::new(), threshold: 1, identity: Identity::Any };
    let rig = Rig::with(gate(Requirement::Signed(nobody))).await;
    let content = image(15);
    let unnamed = rig.push("app", None, &content).await;
    assert_eq!(unnamed.status, 201, "perhaps the index that comes is signed");
    assert_eq!(rig.records(), Vec::<String>::new(), "but the node has no image of it");
    assert_eq!(rig.get(&format!("/v2/app/manifests/{}", content.root.digest)).await.status, 200);
    let refused = rig.push("app", Some("1"), &content).await.error();
    assert_eq!((refused.0, refused.1.as_str()), (403, "DENIED"));
    assert_eq!(rig.records(), Vec::<String>::new());
    rig.end_leases();
    rig.collect().await;
    assert_eq!(rig.blob_files(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_image_is_not_deleted() {
    let rig = Rig::new().await;
    let content = image(16);
    rig.push("app", Some("1"), &content).await;
    rig.images().pin(&rig.scope, &format!("{HOST}/app:1"), true).await.unwrap();
    for key in ["1", content.root.digest.as_str()] {
        let refused = rig.delete(&format!("/v2/app/manifests/{key}")).await.error();
        assert_eq!((refused.0, refused.1.as_str()), (403, "DENIED"), "{}", refused.2);
        assert!(refused.2.contains("pinned"), "{}", refused.2);
    }
    assert_eq!(rig.get("/v2/app/manifests/1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_a_client_has_is_not_sent_again() {
    let rig = Rig::new().await;
    let content = image(17);
    rig.push("app", Some("1"), &content).await;
    let layer = content.layers()[0].clone();
    for path in [format!("/v2/app/blobs/{layer}"), "/v2/app/manifests/1".to_owned()] {
        let first = rig.get(&path).await;
        let tag = first.header("etag").to_owned();
        let again = rig.ask("GET", &path, &[("if-none-match", &tag)], "").await;
        assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, tag.as_str()));
        let changed = rig.ask("GET", &path, &[("if-none-match", "\"sha256:0\"")], "").await;
        assert_eq!(changed.status, StatusCode::OK.as_u16());
    }
    let path = format!("/v2/app/blobs/{layer}");
    let part = rig.ask("GET", &path, &[("range", "bytes=0-9"), ("if-range", "\"other\"")], "").await;
    assert_eq!(part.status, 200, "of something else than the client has a part of, it gets the whole");
    let part = rig.ask("GET", &path, &[("range", "bytes=0-9"), ("if-range", &format!("\"{layer}\""))], "").await;
    assert_eq!((part.status, part.body.len()), (206, 10));
}

/// What is pulled from the node's own registry has no other supplier: kubelet must not be told that it could come again.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_ones_own_registry_is_supplied_by_nobody() {
    let rig = Rig::new().await;
    let content = image(18);
    rig.push("app", Some("1"), &content).await;
    let blob = rig.node.store.content(&rig.scope).stat(&content.root.digest).unwrap();
    let sources: Labels = blob.labels.into_iter().filter(|(key, _)| key.contains("distribution.source")).collect();
    assert_eq!(sources, Labels::new());
    let plan = RemoveRequest { names: vec![format!("{HOST}/app:1")], ..RemoveRequest::default() };
    let plan = rig.images().plan_remove(&rig.scope, &plan).await.unwrap();
    assert_eq!(plan.unpullable.len(), 1);
}
