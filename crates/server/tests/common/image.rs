//! A small image as an OCI layout in a tar.

use orlop_oci::{Digest, Platform};
use orlop_testkit::compress::gzip;
use orlop_testkit::tar::{Entry, tar};
use serde_json::{Value, json};

pub const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The blobs of an image with two layers; the second deletes a file of the first.
pub struct Image {
    pub name: String,
    /// Uncompressed and compressed, lowest first.
    pub layers: Vec<(Vec<u8>, Vec<u8>)>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl Image {
    pub fn new(name: &str) -> Self {
        let base = tar(&[
            Entry::dir("etc").mode(0o755),
            Entry::file("etc/gone", "deleted above"),
            Entry::file("etc/kept", "kept"),
            Entry::hardlink("etc/linked", "etc/kept"),
        ]);
        let top = tar(&[Entry::whiteout("etc/gone"), Entry::file("new", "from the second layer")]);
        let layers: Vec<_> = [base, top].into_iter().map(|tar| (tar.clone(), gzip(&tar))).collect();
        let host = Platform::host();
        let config = json!({
            "architecture": host.architecture, "os": host.os, "config": {},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|(tar, _)| Digest::of(tar)).collect::<Vec<_>>()},
            "history": [{"created_by": "one"}, {"created_by": "two"}],
        });
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|(_, gz)| descriptor(GZIP_LAYER, gz)).collect::<Vec<_>>(),
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        Self { name: name.to_owned(), layers, config, manifest }
    }

    /// The target of the name.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// An OCI layout in a tar.
    pub fn archive(&self) -> Vec<u8> {
        let mut target = descriptor(MANIFEST, &self.manifest);
        let short = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        target["annotations"] =
            json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": short});
        let index = json!({"schemaVersion": 2, "manifests": [target]});
        let mut entries = vec![
            Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            Entry::file("index.json", serde_json::to_vec(&index).unwrap()),
            Entry::dir("blobs"),
            Entry::dir("blobs/sha256"),
        ];
        let layers = self.layers.iter().map(|(_, gz)| gz);
        for blob in layers.chain([&self.config, &self.manifest]) {
            entries.push(Entry::file(format!("blobs/sha256/{}", Digest::of(blob).hex()), blob));
        }
        tar(&entries)
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}
