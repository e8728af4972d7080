//! PullImage: secrets, sharing, limits, standing still, refusals.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::types;
use orlop_api::runtime::v1 as pb;
use orlop_content::IngestManager;
use orlop_image::{Gate, Identity, Policy, PublicKey, Requirement, Rule, Settings, Signed, Verifiers};
use orlop_server::CriSettings;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::proxy::{Fault, Proxy};
use orlop_testkit::registry::Options;
use orlop_testkit::token::{self, TokenServer};
use tonic::{Code, Status};

use crate::rig::{Node, Shelf, code, id, made, pull, request, until};

fn auth() -> pb::AuthConfig {
    pb::AuthConfig::default()
}

fn user(name: &str, password: &str) -> pb::AuthConfig {
    pb::AuthConfig { username: name.into(), password: password.into(), ..auth() }
}

async fn pull_as(node: &Node, name: &str, auth: pb::AuthConfig) -> Result<String, Status> {
    pull(&node.images, pb::PullImageRequest { auth: Some(auth), ..request(name) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_password_is_taken_and_given_to_nobody_else() {
    let Some(shelf) = Shelf::start(&Options::new().basic()) else { return };
    let content = made(10);
    let name = shelf.put("a:1", &content).await;
    let at = |server: &str| pb::AuthConfig { server_address: server.into(), ..user("user", "secret") };
    let host = shelf.registry.host();
    for good in [
        user("user", "secret"),
        pb::AuthConfig { auth: "dXNlcjpzZWNyZXQ=".into(), ..auth() },
        at(&format!("http://{host}/v2/")),
        at(&host),
    ] {
        let node = Node::new().await;
        assert_eq!(pull_as(&node, &name, good).await.unwrap(), id(&content));
    }
    let node = Node::new().await;
    for bad in [auth(), user("user", "wrong"), at("https://elsewhere.example"), at("127.0.0.1:1")] {
        let status = pull_as(&node, &name, bad).await.unwrap_err();
        assert_eq!(status.code(), Code::Unknown, "{status:?}");
        assert!(!status.message().contains("secret") && !status.message().starts_with("RegistryUnavailable"));
    }
    let broken = pull_as(&node, &name, pb::AuthConfig { auth: "!!!".into(), ..auth() }).await;
    assert_eq!(code(broken), Code::Unknown);
    assert!(node.names().is_empty());
    // A secret that was good once is not the next caller's.
    pull_as(&node, &name, user("user", "secret")).await.unwrap();
    assert_eq!(code(node.pull(&name).await), Code::Unknown);
}

/// A token as a registry's token server gives it.
fn access_token(realm: &str, scope: &str) -> String {
    let (host, path) = realm.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    let head = format!(
        "GET /{path}?service={}&scope={scope} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n",
        token::SERVICE
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (start, end) = (answer.find('{').unwrap(), answer.rfind('}').unwrap());
    let answer: serde_json::Value = serde_json::from_str(&answer[start..=end]).unwrap();
    answer["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_registry_tokens_are_taken() {
    let server = TokenServer::start(token::Options::default());
    let Some(shelf) = Shelf::start(&Options::new().token(&server)) else { return };
    let content = made(11);
    let name = shelf.put("a:1", &content).await;
    let identity = pb::AuthConfig { identity_token: "user:secret".into(), ..auth() };
    assert_eq!(pull_as(&Node::new().await, &name, identity).await.unwrap(), id(&content));
    let realm = server.realm();
    let access = tokio::task::spawn_blocking(move || access_token(&realm, "repository:a:pull")).await.unwrap();
    let asked = server.asked().len();
    let registry = pb::AuthConfig { registry_token: access, ..auth() };
    assert_eq!(pull_as(&Node::new().await, &name, registry).await.unwrap(), id(&content));
    assert_eq!(server.asked().len(), asked, "the token is used as it is");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_once_bring_each_blob_once() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let (content, node) = (made(12), Node::new().await);
    let name = shelf.put("a:1", &content).await;
    let before = shelf.registry.log().len();
    let all = futures::future::join_all((0..16).map(|_| node.pull(&name))).await;
    assert!(all.into_iter().all(|pulled| pulled.unwrap() == id(&content)));
    let log = shelf.registry.log()[before..].to_owned();
    for digest in content.blobs.keys().filter(|digest| **digest != content.root.digest) {
        let path = format!("\"GET /v2/a/blobs/{digest} ");
        assert_eq!(log.matches(&path).count(), 1, "{digest}");
    }
    assert_eq!(node.names().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_stands_still_is_given_up_with_the_reason_and_the_next_goes_on() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let content = made(13);
    shelf.put("a:1", &content).await;
    let proxy = Proxy::start(shelf.registry.address());
    let name = format!("{}/a:1", proxy.host());
    let cri = CriSettings { progress_timeout: Duration::from_millis(500), ..CriSettings::default() };
    let node = Node::with(Settings::default(), cri).await;
    proxy.set_default(Fault::StallAfter(60_000));
    let status = node.pull(&name).await.unwrap_err();
    assert_eq!(status.code(), Code::Cancelled, "{status:?}");
    assert!(status.message().contains("nothing came for 500ms: waited for sha256:"), "{status:?}");
    assert!(node.names().is_empty());
    proxy.release();
    assert_eq!(node.pull(&name).await.unwrap(), id(&content));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_a_pull_that_nobody_else_waits_for() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let content = made(14);
    shelf.put("a:1", &content).await;
    let proxy = Proxy::start(shelf.registry.address());
    let name = format!("{}/a:1", proxy.host());
    let node = Node::new().await;
    proxy.set_default(Fault::StallAfter(60_000));
    let (first, second) = (node.images.clone(), node.images.clone());
    let asked = name.clone();
    let first = tokio::spawn(async move { pull(&first, request(&asked)).await });
    until(|| proxy.counts().faults > 0).await;
    let asked = name.clone();
    let second = tokio::spawn(async move { pull(&second, request(&asked)).await });
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    proxy.release();
    assert_eq!(second.await.unwrap().unwrap(), id(&content), "the other one still gets its image");

    shelf.put("b:1", &made(140)).await;
    let proxy = Proxy::start(shelf.registry.address());
    proxy.set_default(Fault::StallAfter(60_000));
    let name = format!("{}/b:1", proxy.host());
    let images = node.images.clone();
    let alone = tokio::spawn(async move { pull(&images, request(&name)).await });
    until(|| proxy.counts().faults > 0).await;
    alone.abort();
    drop(alone.await);
    // Nobody waits any more: the writers let go of their ingests, which another program may then take away.
    let content = node.store.content(&crate::rig::scope());
    let mut left = content.statuses().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Some(ingest) = left.pop() {
        while content.abort(&ingest.reference).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline, "{ingest:?} is still being written");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serial_pulls_wait_for_each_other() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let slow = made(15);
    shelf.put("slow:1", &slow).await;
    let proxy = Proxy::start(shelf.registry.address());
    let slow_name = format!("{}/slow:1", proxy.host());
    let node = Node::with(Settings::default(), CriSettings { parallel_pulls: 1, ..CriSettings::default() }).await;
    proxy.set_default(Fault::StallAfter(60_000));
    let images = node.images.clone();
    let first = tokio::spawn(async move { pull(&images, request(&slow_name)).await });
    until(|| proxy.counts().faults > 0).await;
    let (store, (quick_name, asked)) = (node.store.clone(), asked_when());
    let images = node.images.clone();
    let second = tokio::spawn(async move { pull(&images, request(&quick_name)).await });
    let running = "orlop_calls_running 2";
    while !node.server.metrics_text().await.lines().any(|line| line == running) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.release();
    // When the second one's registry is asked for the first time, the first pull is done.
    let there = tokio::task::spawn_blocking(move || {
        let stream = asked.accept().unwrap().0;
        let there = store.images("k8s.io", &[]).unwrap().len();
        drop((stream, asked));
        there
    });
    assert_eq!(there.await.unwrap(), 3);
    assert_eq!(first.await.unwrap().unwrap(), id(&slow));
    second.await.unwrap().expect_err("a registry that hangs up");
}

/// A registry that a pull of the name asks.
fn asked_when() -> (String, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("{}/quick:1", listener.local_addr().unwrap()), listener)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_is_refused_as_containerd_does_and_leaves_nothing() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let node = Node::new().await;
    let foreign =
        shelf.put("foreign:1", &Content::image(&Image::new("linux/s390x").layer(Layer::noise("n", 1, 9)))).await;
    let artifact =
        shelf.put("artifact:1", &Content::artifact("application/x.sbom", &[("text/plain", b"x")], None)).await;
    for (name, expected) in [
        (shelf.name("none:1"), Code::NotFound),
        (shelf.name(&format!("none@sha256:{}", "0".repeat(64))), Code::NotFound),
        ("127.0.0.1:1/x:1".to_owned(), Code::Unknown),
        ("UPPER!!".to_owned(), Code::Unknown),
        (String::new(), Code::Unknown),
        (foreign, Code::NotFound),
        (artifact, Code::Unknown),
    ] {
        let status = node.pull(&name).await.unwrap_err();
        assert_eq!(status.code(), expected, "{name}: {status:?}");
        // The words by which kubelet knows that the registry is to blame.
        assert_eq!(
            status.message().starts_with("RegistryUnavailable: "),
            name.starts_with("127.0.0.1:1/"),
            "{status:?}"
        );
    }
    assert!(node.names().is_empty(), "{:?}", node.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_handler_chooses_the_snapshotter() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let name = shelf.put("a:1", &made(17)).await;
    let runtime_snapshotters = BTreeMap::from([("vm".to_owned(), "native".to_owned())]);
    let settings = CriSettings { runtime_snapshotters, ..CriSettings::default() };
    let by_field = pb::PullImageRequest {
        image: Some(pb::ImageSpec { image: name.clone(), runtime_handler: "vm".into(), ..Default::default() }),
        ..Default::default()
    };
    let annotations = BTreeMap::from([("io.containerd.cri.runtime-handler".to_owned(), "vm".to_owned())]);
    let sandbox = pb::PodSandboxConfig { annotations, ..Default::default() };
    let by_annotation = pb::PullImageRequest { sandbox_config: Some(sandbox), ..request(&name) };
    let unknown = pb::PullImageRequest {
        image: Some(pb::ImageSpec { image: name.clone(), runtime_handler: "other".into(), ..Default::default() }),
        ..Default::default()
    };
    for (request, native, overlay) in [(by_field, 2, 0), (by_annotation, 2, 0), (unknown, 0, 2)] {
        let node = Node::with(Settings::default(), settings.clone()).await;
        pull(&node.images, request).await.unwrap();
        assert_eq!((node.snapshots("native"), node.snapshots("overlayfs")), (native, overlay));
        let used = node.filesystems().await.image_filesystems;
        assert!(used[0].fs_id.as_ref().unwrap().mountpoint.ends_with("overlayfs"), "the default one comes first");
        assert_eq!(used.len(), 1 + usize::from(native > 0));
    }
}

/// A node that keeps out `rejected/*`, wants signatures for `signed/*`, and asks verifiers for all.
async fn guarded(host: &str, verifiers: Option<Verifiers>) -> Node {
    let rule = |pattern: &str, requirement| {
        let images = vec![format!("{host}/{pattern}").parse().unwrap()];
        Rule { images, place: "policy.toml:1".into(), requirement }
    };
    let key = PublicKey::from_pem("release.pub", KEY.as_bytes()).unwrap();
    let signed = Signed { keys: vec![key], threshold: 1, identity: Identity::Any };
    let rules = vec![rule("rejected/*", Requirement::Reject), rule("signed/*", Requirement::Signed(signed))];
    let default = Rule { images: Vec::new(), place: "policy.toml:1".into(), requirement: Requirement::Accept };
    let gate = Gate { policy: Some(Arc::new(Policy { rules, default })), verifiers };
    Node::with(Settings { gate, ..Settings::default() }, CriSettings::default()).await
}

const KEY: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAmx7zq7aLqoHQX3KWoRseUwz9DQbkCiKAkx/KbCIjnxM=
-----END PUBLIC KEY-----
";

/// kubelet took a refusal by policy for an image that could not be pulled: it never saw its own word for it, since that
/// must come first in a message whose code is UNKNOWN.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_image_is_told_in_the_words_that_kubelet_knows_and_leaves_nothing() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let host = shelf.registry.host();
    let (rejected, unsigned) = (shelf.put("rejected/a:1", &made(20)).await, shelf.put("signed/a:1", &made(21)).await);
    let (open, directory) = (shelf.put("open/a:1", &made(22)).await, tempfile::tempdir().unwrap());
    let verifier = directory.path().join("no");
    std::fs::write(&verifier, "#!/bin/sh\necho not today\nexit 1\n").unwrap();
    std::fs::set_permissions(&verifier, std::fs::Permissions::from_mode(0o755)).unwrap();
    let strict = guarded(&host, Some(Verifiers::new(directory.path()))).await;
    let node = guarded(&host, None).await;
    for (node, name, why) in
        [(&node, &rejected, "rejects it"), (&node, &unsigned, "found no signature"), (&strict, &open, "not today")]
    {
        let status = node.pull(name).await.unwrap_err();
        assert_eq!(status.code(), Code::Unknown, "{status:?}");
        assert!(status.message().starts_with("SignatureValidationFailed: pull "), "{status:?}");
        assert!(status.message().contains(why) && status.message().contains(name.as_str()), "{status:?}");
        assert!(node.names().is_empty() && node.store.leases("k8s.io", &[]).unwrap().is_empty());
    }
    node.pull(&open).await.unwrap();
}

fn in_cri<T>(message: T) -> tonic::Request<T> {
    crate::common::request_in("k8s.io", message)
}

/// Whoever writes a record by the Images service meets the same gate as whoever pulls, and so does an update that moves one.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_a_client_writes_passes_the_gate_or_is_not_written() {
    let Some(shelf) = Shelf::start(&Options::new()) else { return };
    let node = guarded(&shelf.registry.host(), None).await;
    let mut targets = Vec::new();
    for (n, name) in ["open/a:1", "open/b:1"].into_iter().enumerate() {
        let name = shelf.put(name, &made(23 + n as u64)).await;
        node.pull(&name).await.unwrap();
        targets.push(node.store.image("k8s.io", &name).unwrap().target);
    }
    let record = |name: &str, target: usize| {
        let target = types::Descriptor {
            media_type: targets[target].media_type.clone(),
            digest: targets[target].digest.to_string(),
            size: targets[target].size as i64,
            ..Default::default()
        };
        Some(images::Image { name: shelf.name(name), target: Some(target), ..Default::default() })
    };
    let create = |name| in_cri(images::CreateImageRequest { image: record(name, 0), ..Default::default() });
    let (mut client, before) = (ImagesClient::new(node.channel.clone()), node.names());
    for name in ["rejected/a:1", "signed/a:1"] {
        let refused = client.create(create(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains(name), "{refused:?}");
    }
    assert_eq!(node.names(), before);
    client.create(create("open/c:1")).await.unwrap();

    // A record from before the policy may be labelled, and not moved.
    let old = orlop_metadata::ImageChange::Upsert {
        name: shelf.name("rejected/old:1"),
        target: targets[0].clone(),
        labels: BTreeMap::new(),
    };
    node.store.write_images(&crate::rig::scope(), &[old]).unwrap();
    let update = |paths: &[&str]| {
        let update_mask = Some(prost_types::FieldMask { paths: paths.iter().map(|&p| p.to_owned()).collect() });
        in_cri(images::UpdateImageRequest { image: record("rejected/old:1", 1), update_mask, ..Default::default() })
    };
    client.update(update(&["labels"])).await.unwrap();
    for paths in [&["target"][..], &[]] {
        let refused = client.update(update(paths)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    }
    assert_eq!(node.store.image("k8s.io", &shelf.name("rejected/old:1")).unwrap().target.digest, targets[0].digest);
}

/// A registry that answers every request with one status; where it listens.
fn always(status: u16) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), [0; 4096]);
            if stream.read(&mut head).is_ok_and(|read| head[..read].starts_with(b"GET") || head.starts_with(b"HEAD")) {
                let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                // A client that has gone needs no answer.
                let _ = stream.write_all(answer.as_bytes());
            }
        }
    });
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_registry_that_cannot_answer_is_called_unavailable() {
    let node = Node::new().await;
    for (status, unavailable) in [(500, true), (503, true), (400, false), (401, false), (403, false), (404, false)] {
        let failed = node.pull(&format!("{}/a:1", always(status))).await.unwrap_err();
        let word = failed.message().starts_with("RegistryUnavailable: pull ");
        assert_eq!((word, failed.code() == Code::NotFound), (unavailable, status == 404), "{status}: {failed:?}");
    }
}
