//! Clients that others wrote push to and pull from it: `skopeo`, `ctr` of two containerd generations.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common;
use crate::common::Peer;
use orlop_oci::Compression;
use orlop_testkit::archive::{oci_archive, write_layout};
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need, need_root, run};
use serde_json::Value;

/// Runs a program without holding up the runtime in which the registry runs.
async fn skopeo(arguments: &[&str]) -> String {
    let arguments: Vec<_> = ["--insecure-policy"].iter().chain(arguments).map(|a| (*a).to_owned()).collect();
    tokio::task::spawn_blocking(move || run("skopeo", arguments).ok().stdout).await.unwrap()
}

fn blobs(layout: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

fn image(platform: &str, seed: u64) -> Image {
    let large = Layer::noise("large", seed, 3 << 20);
    Image::new(platform).layer(large).layer(Layer::noise("small", 7, 1000).packed(Compression::Zstd))
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_gets_back_byte_for_byte_what_it_put_in() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let peer = Peer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let amd64 = Content::image(&image("linux/amd64", 1));
    let content =
        Content::index(&[amd64.clone(), Content::image(&image("linux/arm64", 2)), Content::attestation(&amd64)]);
    write_layout(&source, &[("v1", &content)]).unwrap();
    let (from, to) = (format!("oci:{}:v1", source.display()), format!("oci:{}:v1", target.display()));
    let (url, other) = (format!("docker://{}/a/b:v1", peer.host()), format!("docker://{}/c:v1", peer.host()));
    let copy = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
    for [from, to] in [[&from, &url], [&url, &other], [&other, &to]] {
        skopeo(&[&copy[..], &[from, to]].concat()).await;
    }
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &other]).await;
    assert_eq!(raw.as_bytes(), content.bytes(&content.root.digest), "the very bytes");
    assert_eq!(blobs(&source), blobs(&target));
    let listed = skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{}/c", peer.host())]).await;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["Tags"], serde_json::json!(["v1"]));
    skopeo(&["delete", "--tls-verify=false", &other]).await;
    assert_eq!(peer.get("/v2/c/manifests/v1").await.status(), 404);
    peer.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_own_formats_are_taken() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let peer = Peer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let image = Image::new("linux/amd64").layer(Layer::noise("file", 5, 100_000));
    write_layout(directory.path(), &[("v1", &Content::image(&image))]).unwrap();
    let (from, to) = (format!("oci:{}:v1", directory.path().display()), format!("docker://{}/d:v1", peer.host()));
    skopeo(&["copy", "--format", "v2s2", "--dest-tls-verify=false", &from, &to]).await;
    let manifest = peer.get("/v2/d/manifests/v1").await;
    assert_eq!(common::header(&manifest, "content-type"), orlop_oci::media_type::DOCKER_MANIFEST);
    let inspected: Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &to]).await).unwrap();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    peer.server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctr_pushes_and_pulls() {
    if !need_root() {
        return;
    }
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let peer = Peer::start().await;
        let name = format!("{}/team/app:v1", peer.host());
        let content = Content::image(&image("linux/amd64", 4));
        let archive = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(archive.path(), oci_archive(&[(name.as_str(), &content)])).unwrap();
        let archive = archive.path().display().to_string();
        let digest = content.root.digest.clone();
        let work = move || {
            let containerd = Containerd::start(&programs, &Options::default());
            let ctr = |arguments: &[&str]| containerd.ctr("default", arguments).ok().stdout;
            ctr(&["images", "import", "--no-unpack", "--all-platforms", &archive]);
            ctr(&["images", "push", "--plain-http", "--platform", "linux/amd64", &name]);
            ctr(&["images", "rm", "--sync", &name]);
            assert_eq!(ctr(&["content", "ls", "-q"]).trim(), "", "nothing is left to take the place of a pull");
            ctr(&["images", "pull", "--plain-http", "--platform", "linux/amd64", &name]);
            let listed = ctr(&["images", "ls"]);
            assert!(listed.contains(&name) && listed.contains(digest.as_str()), "{listed}");
        };
        tokio::task::spawn_blocking(work).await.unwrap();
        peer.server.shutdown().await;
    }
}
