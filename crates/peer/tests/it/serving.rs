//! What a node answers to whoever asks it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use orlop_peer::{Settings, Tls};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::common::{Fleet, Node, Origin, PATIENCE, image};

async fn asked(url: &str, header: Option<(&str, &str)>) -> reqwest::Response {
    let mut request = reqwest::Client::new().get(url).header("x-spegel-mirrored", "true");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_with_ranges_and_no_tags() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(20, 1, 200_000);
    let name = origin.has("team/app", &content);
    let node = Node::start(fleet.settings(), None).await;
    node.pull(&name).await.unwrap();
    let base = format!("http://{}/v2/team/app", node.settings.serve);
    let layer = content.layers().remove(0);
    let bytes = content.bytes(&layer).to_vec();

    let whole = asked(&format!("{base}/blobs/{layer}?ns=docker.io"), None).await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert_eq!(whole.headers()["docker-content-digest"], layer.as_str());
    assert_eq!(whole.headers()["oci-namespace"], "docker.io");
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.bytes().await.unwrap(), bytes);
    let part = asked(&format!("{base}/blobs/{layer}"), Some(("range", "bytes=1000-"))).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    let range = format!("bytes 1000-{}/{}", bytes.len() - 1, bytes.len());
    assert_eq!(part.headers()["content-range"], range.as_str());
    assert_eq!(part.bytes().await.unwrap(), bytes[1000..]);
    let beyond = asked(&format!("{base}/blobs/{layer}"), Some(("range", "bytes=9999999-"))).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);

    let (manifest, raw) = content.push_order().pop().unwrap();
    let document = asked(&format!("{base}/manifests/{}", manifest.digest), None).await;
    assert_eq!(document.headers()["content-type"], manifest.media_type.as_str());
    assert_eq!(document.bytes().await.unwrap(), raw);
    // A layer is no document.
    assert_eq!(asked(&format!("{base}/manifests/{layer}"), None).await.status(), StatusCode::NOT_FOUND);

    let tag = asked(&format!("{base}/manifests/1"), None).await;
    assert_eq!(tag.status(), StatusCode::NOT_FOUND);
    assert!(tag.text().await.unwrap().contains("digests only"));
    let other = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(asked(&format!("{base}/blobs/{other}"), None).await.status(), StatusCode::NOT_FOUND);
    let head = reqwest::Client::new().head(format!("{base}/blobs/{layer}")).send().await.unwrap();
    assert_eq!(head.headers()["content-length"], bytes.len().to_string().as_str());
    let put = reqwest::Client::new().put(format!("{base}/blobs/{layer}")).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(asked(&format!("http://{}/v2/", node.settings.serve), None).await.status(), StatusCode::OK);

    // Who this is, as Spegel's bootstrap by HTTP asks.
    let id = asked(&format!("http://{}/id", node.settings.serve), None).await.text().await.unwrap();
    let listen = node.settings.listen;
    assert_eq!(id, format!(r#"[{{"ID":"{}","Addrs":["/ip4/{}/tcp/{}"]}}]"#, node.id(), listen.ip(), listen.port()));
}

/// That it could not be read once was remembered as that it is no document.
#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_damaged_is_given_again_once_it_is_mended() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(23, 1, 1000);
    let name = origin.has("app", &content);
    let node = Node::start(fleet.settings(), None).await;
    node.pull(&name).await.unwrap();
    let (manifest, raw) = content.push_order().pop().unwrap();
    let (url, file) =
        (format!("http://{}/v2/app/manifests/{}", node.settings.serve, manifest.digest), node.blob(&manifest.digest));
    let write = |bytes: &[u8]| {
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
    };
    write(&vec![b' '; raw.len()]);
    assert_eq!(asked(&url, None).await.status(), StatusCode::NOT_FOUND);
    write(raw);
    assert_eq!(asked(&url, None).await.bytes().await.unwrap(), raw);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_too_many_are_given_to_is_told_to_come_back() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(21, 1, 3_000_000);
    let name = origin.has("app", &content);
    let settings = Settings { uploads: 1, upload_rate: 1_000_000, ..fleet.settings() };
    let node = Node::start(settings, None).await;
    node.pull(&name).await.unwrap();
    let url = format!("http://{}/v2/app/blobs/{}", node.settings.serve, content.layers()[0]);
    let mut first = asked(&url, None).await;
    assert!(first.chunk().await.unwrap().is_some());
    let second = asked(&url, None).await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(second.headers()["retry-after"], "1");
    assert_eq!(node.report().served[2], 1);
    drop(first);
    crate::common::until("the place is free again", || node.report().served[0] == 1).await;
}

/// Asks for a path from an address, over a connection of its own, and reads no more than the beginning of the answer; `None` if it
/// is closed instead.
async fn begun(from: Ipv4Addr, to: SocketAddr, path: &str) -> Option<(TcpStream, String)> {
    let socket = TcpSocket::new_v4().unwrap();
    // So that what is not read does not fit into it.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.ok()?;
    Some((stream, String::from_utf8_lossy(&head).into_owned()))
}

/// Until an answer of 200 begins.
async fn gives(from: Ipv4Addr, to: SocketAddr, path: &str) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match begun(from, to, path).await {
            Some((stream, head)) if head == "HTTP/1.1 200" => return stream,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_more_of_a_blob_makes_room_for_others() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(24, 1, 16 << 20);
    let name = origin.has("app", &content);
    let settings = Settings { uploads: 1, patience: Duration::from_millis(200), ..fleet.settings() };
    let node = Node::start(settings, None).await;
    node.pull(&name).await.unwrap();
    let (path, to) = (format!("/v2/app/blobs/{}", content.layers()[0]), node.settings.serve);
    let stopped = gives(Ipv4Addr::LOCALHOST, to, &path).await;
    // The only place is free again, though that connection is open at its other end.
    let second = gives(Ipv4Addr::LOCALHOST, to, &path).await;
    drop((stopped, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_connections() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(25, 1, 16 << 20);
    let name = origin.has("app", &content);
    let node = Node::start(fleet.settings(), None).await;
    node.pull(&name).await.unwrap();
    let (path, to) = (format!("/v2/app/blobs/{}", content.layers()[0]), node.settings.serve);
    let (greedy, other) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let mut held = Vec::new();
    while let Some((stream, _)) = begun(greedy, to, &path).await {
        held.push(stream);
        assert!(held.len() <= 32, "32 of one address, as docs/operations/fleet.md says");
    }
    assert_eq!(held.len(), 32);
    let path = "/v2/";
    drop(gives(other, to, path).await);
    drop(held.pop());
    gives(greedy, to, path).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_peers_are_found_by_http() {
    let fleet = Fleet::new();
    let seed = Node::start(fleet.settings(), None).await;
    let url = format!("http://{}/id", seed.settings.serve);
    let settings = Settings { bootstrap: vec![url.parse().unwrap()], ..fleet.settings() };
    let node = Node::start(settings, None).await;
    node.meets(1).await;
    assert_eq!(node.report().neighbours[0].id, seed.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_only_nodes_of_one_authority_give() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(22, 1, 100_000);
    let name = origin.has("app", &content);
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node_of = |dir: &std::path::Path| Settings { tls: Some(certified(dir)), ..fleet.settings() };
    let settings = node_of(ours.path());
    let tls = settings.tls.clone();
    let seed = Node::start(settings, None).await;
    seed.pull(&name).await.unwrap();
    let friend = Node::start(Settings { tls, ..fleet.settings() }, Some(&seed)).await;
    let stranger = Node::start(node_of(theirs.path()), Some(&seed)).await;
    let plain = Node::start(fleet.settings(), Some(&seed)).await;
    for node in [&friend, &stranger, &plain] {
        node.meets(1).await;
        node.pull(&name).await.unwrap();
    }
    let layer = &content.layers()[0];
    assert!(friend.had_from_peers(layer), "{:?}", friend.gave(layer));
    assert!(!stranger.had_from_peers(layer) && !plain.had_from_peers(layer));
}

/// An authority, and a certificate of it with which a node both gives and asks.
fn certified(dir: &std::path::Path) -> Tls {
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let mut node = CertificateParams::new(vec!["node".to_owned()]).unwrap();
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = node.signed_by(&key, &issuer).unwrap();
    let tls = Tls { certificate: dir.join("node.crt"), key: dir.join("node.key"), authority: dir.join("ca.crt") };
    std::fs::write(&tls.certificate, certificate.pem()).unwrap();
    std::fs::write(&tls.key, key.serialize_pem()).unwrap();
    std::fs::write(&tls.authority, signed.pem()).unwrap();
    tls
}
