//! `skopeo`, a client that others wrote, copies images in and out.

mod common;

use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use common::{Peer, digest_of};
use orlop_oci::Digest;
use serde_json::json;
use tokio::process::Command;

async fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "--tmpdir", "/tmp"]).args(arguments).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn installed() -> bool {
    let found = std::process::Command::new("skopeo").arg("--version").stdout(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        eprintln!("skipped: skopeo is not installed");
    }
    found
}

fn blobs(layout: &Path) -> Vec<(String, Vec<u8>)> {
    let directory = layout.join("blobs/sha256");
    let mut found: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

/// An OCI layout with one image of two layers.
fn make_layout(directory: &Path) -> String {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |media_type: &str, bytes: &[u8]| {
        std::fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        common::descriptor(media_type, bytes)
    };
    let layers: Vec<Bytes> = (0..2_usize).map(|i| vec![0_u8; 1024 * (1 + i * 3000)].into()).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": orlop_oci::media_type::OCI_MANIFEST,
        "config": write(orlop_oci::media_type::OCI_CONFIG, config.to_string().as_bytes()),
        "layers": layers.iter().map(|l| write(orlop_oci::media_type::OCI_LAYER, l)).collect::<Vec<_>>(),
    });
    let digest = digest_of(&manifest).to_string();
    let entry = write(orlop_oci::media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(directory.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
        .unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_in_and_comes_out_byte_for_byte() {
    if !installed() {
        return;
    }
    let peer = Peer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let digest = make_layout(&source);
    let url = format!("docker://{}/some/image:v1", peer.host());
    let oci = |path: &Path| format!("oci:{}", path.display());
    let plain = ["--dest-tls-verify=false", "--src-tls-verify=false"];
    skopeo(&["copy", plain[0], "--preserve-digests", &oci(&source), &url]).await;
    skopeo(&["copy", plain[1], "--preserve-digests", &url, &oci(&target)]).await;
    assert_eq!(blobs(&source), blobs(&target));
    let other = format!("docker://{}/other/image:v2", peer.host());
    skopeo(&["copy", plain[0], plain[1], "--preserve-digests", &url, &other]).await;
    let inspected = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &other]).await;
    assert_eq!(String::from_utf8(inspected).unwrap().trim(), digest);
    let listed = skopeo(&["list-tags", "--tls-verify=false", &format!("docker://{}/other/image", peer.host())]).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed["Tags"], json!(["v2"]));
    skopeo(&["delete", "--tls-verify=false", &other]).await;
    assert_eq!(peer.get("/v2/other/image/manifests/v2").await.status(), 404);
    peer.server.shutdown().await;
}
