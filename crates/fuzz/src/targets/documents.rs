//! Manifests, indexes and configs. The first byte chooses the media type that the document came with; the rest is the document.
//!
//! What is understood is what a plain JSON reader finds in the same bytes: the same children in the same order. Bytes, size
//! and digest are those that came.

use bytes::Bytes;
use orlop_oci::{Descriptor, Digest, Document, ImageConfig, MAX_MANIFEST_BYTES, media_type};
use serde_json::{Value, json};

use super::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "documents",
    run,
    seeds,
    words: &[
        b"\"manifests\"",
        b"\"layers\"",
        b"\"config\"",
        b"\"mediaType\"",
        b"\"schemaVersion\":2",
        b"\"fsLayers\"",
        b"\"subject\"",
        b"\"size\":-1",
        b"18446744073709551616",
        b"\\u0000",
        b"null",
        b"[[[[[[[[",
    ],
    limit: 16 << 10,
    isolated: false,
};

const DECLARED: [Option<&str>; 6] = [
    None,
    Some(media_type::OCI_MANIFEST),
    Some(media_type::OCI_INDEX),
    Some(media_type::DOCKER_MANIFEST),
    Some(media_type::DOCKER_LIST),
    Some("application/octet-stream"),
];

fn run(bytes: &[u8]) {
    let Some((choice, raw)) = bytes.split_first() else { return };
    let declared = DECLARED[usize::from(*choice) % DECLARED.len()];
    match Document::parse(Bytes::copy_from_slice(raw), declared) {
        Ok(document) => understood(&document, raw),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let (Ok(config), Some(plain)) = (ImageConfig::parse(raw), plain(raw)) {
        let ids: Vec<&str> =
            plain["rootfs"]["diff_ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let ours: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
        assert_eq!(ours, ids);
    }
}

/// The JSON as it stands. Texts that nobody asks for may be no Unicode, as containerd has it too: then there is no second
/// way.
fn plain(raw: &[u8]) -> Option<Value> {
    serde_json::from_slice(raw).ok()
}

fn understood(document: &Document, raw: &[u8]) {
    assert_eq!(document.raw(), raw);
    assert_eq!(document.digest().digest(), &Digest::of(raw));
    assert!(raw.len() as u64 <= MAX_MANIFEST_BYTES);
    assert_eq!(document.descriptor().size, raw.len() as u64);
    assert!(document.manifest().is_some() != document.index().is_some());
    let Some(plain) = plain(raw) else { return };
    assert_eq!(plain["schemaVersion"], 2);
    let listed = |member: &str| plain[member].as_array().into_iter().flatten();
    let children: Vec<&Value> = match document.index() {
        Some(_) => listed("manifests").collect(),
        None => std::iter::once(&plain["config"]).chain(listed("layers")).collect(),
    };
    let ours = document.children();
    assert_eq!(ours.len(), children.len());
    for (descriptor, value) in ours.into_iter().zip(children) {
        assert_eq!(descriptor.digest.as_str(), value["digest"]);
        assert_eq!(descriptor.size, value["size"]);
        let written = serde_json::to_value(descriptor).expect("a descriptor can be written");
        let read: Descriptor = serde_json::from_value(written).expect("what was written can be read");
        assert_eq!(&read, descriptor);
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let digest = |c: &str| format!("sha256:{}", c.repeat(64));
    let layer = json!({"mediaType": media_type::OCI_LAYER_GZIP, "digest": digest("b"), "size": 10});
    let config = json!({"mediaType": media_type::OCI_CONFIG, "digest": digest("c"), "size": 20});
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [layer]});
    let entry = json!({
        "mediaType": media_type::OCI_MANIFEST, "digest": digest("d"), "size": 5,
        "platform": {"architecture": "arm64", "os": "linux", "variant": "v8", "os.version": "1", "os.features": ["x"]},
    });
    let mut artifact = manifest.clone();
    artifact["artifactType"] = json!("application/x");
    artifact["subject"] = entry.clone();
    artifact["annotations"] = json!({"a": "b"});
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry, entry]});
    let docker = json!({"schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config, "layers": []});
    let both = json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []});
    let schema1 = json!({"schemaVersion": 1, "fsLayers": [], "history": []});
    let embedded = json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.empty.v1+json",
        "digest": digest("e"), "size": 2, "data": "e30=", "urls": ["https://x.example/"]}, "layers": []});
    let image = json!({"architecture": "amd64", "os": "linux", "config": {"User": "1000:1000"},
        "rootfs": {"type": "layers", "diff_ids": [digest("f")]}});
    let all = [
        ("manifest", 1, manifest),
        ("artifact", 1, artifact),
        ("index", 2, index),
        ("docker", 3, docker),
        ("both", 0, both),
        ("schema1", 0, schema1),
        ("embedded", 0, embedded),
        ("config", 5, image),
    ];
    all.into_iter()
        .map(|(name, choice, value)| (name.to_owned(), [&[choice], value.to_string().as_bytes()].concat()))
        .collect()
}
