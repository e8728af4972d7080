//! Manifests, indexes and configs: what is read, what is kept, what is refused.

use bytes::Bytes;
use orlop_oci::{
    Algorithm, Compression, Descriptor, Digest, Document, DocumentError, ImageConfig, MAX_MANIFEST_BYTES, MediaKind,
    media_type,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn hash(seed: &str) -> String {
    Digest::of(seed.as_bytes()).to_string()
}

fn descriptor(media_type: &str, seed: &str) -> Value {
    json!({"mediaType": media_type, "digest": hash(seed), "size": seed.len()})
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, "config"),
        "layers": [descriptor(media_type::OCI_LAYER_GZIP, "one"), descriptor(media_type::OCI_LAYER_ZSTD, "two")],
    })
}

fn index() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [
            {"mediaType": media_type::OCI_MANIFEST, "digest": hash("m"), "size": 1,
             "platform": {"architecture": "amd64", "os": "linux"}},
            {"mediaType": media_type::OCI_INDEX, "digest": hash("nested"), "size": 6},
            {"mediaType": media_type::OCI_MANIFEST, "digest": hash("attestation"), "size": 11,
             "platform": {"architecture": "unknown", "os": "unknown"},
             "annotations": {"vnd.docker.reference.type": "attestation-manifest",
                             "vnd.docker.reference.digest": hash("m")}},
        ],
    })
}

fn bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap().into()
}

fn parse(value: &Value, declared: Option<&str>) -> Result<Document, DocumentError> {
    Document::parse(bytes(value), declared)
}

fn with(mut value: Value, member: &str, content: Value) -> Value {
    value[member] = content;
    value
}

fn without(mut value: Value, member: &str) -> Value {
    value.as_object_mut().unwrap().remove(member);
    value
}

#[test]
fn a_manifest_keeps_its_bytes() {
    // Spacing, member order and unknown members are what the digest is of.
    let text = format!(
        "{{ \"layers\": [],\n\t\"x-unknown\": {{\"a\":[1,2.50]}}, \"config\": {},\"schemaVersion\":2 }}\n",
        descriptor(media_type::OCI_CONFIG, "config")
    );
    let document = Document::parse(Bytes::from(text.clone()), Some(media_type::OCI_MANIFEST)).unwrap();
    assert_eq!(document.raw(), text.as_bytes());
    assert_eq!(document.digest().digest(), &Digest::of(text.as_bytes()));
    let described = document.descriptor();
    assert_eq!(described.size, text.len() as u64);
    assert_eq!(
        (described.media_type.as_str(), &described.digest),
        (media_type::OCI_MANIFEST, document.digest().digest())
    );
}

#[test]
fn children_in_document_order() {
    let document = parse(&manifest(), None).unwrap();
    let digests: Vec<_> = document.children().iter().map(|d| d.digest.to_string()).collect();
    assert_eq!(digests, [hash("config"), hash("one"), hash("two")]);
    assert!(document.index().is_none());
    let m = document.manifest().unwrap();
    assert_eq!(m.layers[1].kind(), MediaKind::Layer { compression: Compression::Zstd, foreign: false });

    let document = parse(&index(), None).unwrap();
    assert!(document.manifest().is_none());
    let children = document.children();
    assert_eq!(children.len(), 3);
    assert_eq!(children[0].platform.as_ref().unwrap().to_string(), "linux/amd64");
    assert_eq!(children[1].kind(), MediaKind::Index);
    assert!(children[2].is_attestation() && !children[0].is_attestation());
    assert!(children[2].platform.as_ref().unwrap().is_unknown());
}

#[test]
fn docker_schema_2() {
    let image = json!({
        "schemaVersion": 2,
        "mediaType": media_type::DOCKER_MANIFEST,
        "config": descriptor(media_type::DOCKER_CONFIG, "config"),
        "layers": [
            descriptor(media_type::DOCKER_LAYER_GZIP, "one"),
            {"mediaType": media_type::DOCKER_LAYER_FOREIGN_GZIP, "digest": hash("far"), "size": 3,
             "urls": ["https://example.com/far"]},
        ],
    });
    let document = parse(&image, Some(media_type::DOCKER_MANIFEST)).unwrap();
    assert_eq!(document.media_type(), media_type::DOCKER_MANIFEST);
    let far = &document.manifest().unwrap().layers[1];
    assert_eq!(far.kind(), MediaKind::Layer { compression: Compression::Gzip, foreign: true });
    assert_eq!(far.urls, ["https://example.com/far"]);

    let list = with(index(), "mediaType", json!(media_type::DOCKER_LIST));
    assert!(parse(&list, Some(media_type::DOCKER_LIST)).unwrap().index().is_some());
}

#[test]
fn artifacts_subjects_and_empty_configs() {
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": {"mediaType": media_type::OCI_EMPTY, "digest": Digest::of(b"{}").to_string(), "size": 2, "data": "e30="},
        "layers": [descriptor("application/vnd.example.sbom+json", "sbom")],
        "subject": descriptor(media_type::OCI_MANIFEST, "subject"),
        "annotations": {"a": "b"},
    });
    let document = parse(&artifact, None).unwrap();
    let m = document.manifest().unwrap();
    assert_eq!(m.artifact_type.as_deref(), Some("application/vnd.example.sbom"));
    assert_eq!(m.config.data.as_deref(), Some("e30="));
    assert_eq!((m.config.kind(), m.layers[0].kind()), (MediaKind::Other, MediaKind::Other));
    let subject = &m.subject.as_ref().unwrap().digest;
    assert!(document.children().iter().all(|c| &c.digest != subject), "a referrer does not keep its subject");

    let about = with(index(), "subject", descriptor(media_type::OCI_MANIFEST, "subject"));
    let about = with(about, "artifactType", json!("application/vnd.example.set"));
    let document = parse(&about, None).unwrap();
    assert_eq!(document.index().unwrap().artifact_type.as_deref(), Some("application/vnd.example.set"));
    assert_eq!(document.children().len(), 3);
}

/// Programs written in Go write empty lists as `null`; images from scratch have them.
#[test]
fn null_is_absent() {
    let document = parse(&with(with(manifest(), "layers", Value::Null), "annotations", Value::Null), None).unwrap();
    assert!(document.manifest().unwrap().layers.is_empty());
    assert!(parse(&with(manifest(), "manifests", Value::Null), None).unwrap().manifest().is_some());
    assert!(parse(&with(index(), "layers", Value::Null), None).unwrap().index().is_some());
    let empty = with(index(), "manifests", Value::Null);
    assert!(parse(&empty, None).unwrap().index().unwrap().manifests.is_empty());
    let config = br#"{"architecture":"amd64","os":"linux","created":null,"rootfs":{"type":"layers","diff_ids":null}}"#;
    assert!(ImageConfig::parse(config).unwrap().rootfs.diff_ids.is_empty());
    assert_eq!(ImageConfig::parse(br#"{"rootfs":null,"os":null}"#).unwrap().rootfs.diff_ids, []);
    let layer: Descriptor = serde_json::from_value(
        json!({"mediaType": null, "digest": hash("x"), "size": 1, "urls": null, "annotations": null, "platform": null}),
    )
    .unwrap();
    assert_eq!(layer, Descriptor::new("", Digest::of(b"x"), 1));
}

#[test]
fn where_the_media_type_comes_from() {
    let bare = without(manifest(), "mediaType");
    for (value, declared, expected) in [
        (&manifest(), None, media_type::OCI_MANIFEST),
        (&manifest(), Some("application/json"), media_type::OCI_MANIFEST),
        (&manifest(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"), media_type::OCI_MANIFEST),
        (&manifest(), Some(""), media_type::OCI_MANIFEST),
        (&bare, None, media_type::OCI_MANIFEST),
        (&bare, Some(media_type::DOCKER_MANIFEST), media_type::DOCKER_MANIFEST),
        (&bare, Some("text/plain"), media_type::OCI_MANIFEST),
        (&without(index(), "mediaType"), None, media_type::OCI_INDEX),
        (&with(manifest(), "mediaType", json!("")), None, media_type::OCI_MANIFEST),
    ] {
        assert_eq!(parse(value, declared).unwrap().media_type(), expected, "{declared:?}");
    }
}

#[test]
fn ambiguous_documents_are_refused() {
    let both = with(manifest(), "manifests", json!([]));
    assert!(matches!(parse(&both, None), Err(DocumentError::Ambiguous("manifests", "layers"))));
    let config = with(index(), "config", descriptor(media_type::OCI_CONFIG, "c"));
    assert!(matches!(parse(&config, None), Err(DocumentError::Ambiguous("manifests", "config"))));

    // The type says one thing, the members another.
    let lying = with(manifest(), "mediaType", json!(media_type::OCI_INDEX));
    assert!(matches!(parse(&lying, None), Err(DocumentError::Member { member: "layers", .. })));
    let lying = with(index(), "mediaType", json!(media_type::OCI_MANIFEST));
    assert!(matches!(parse(&lying, None), Err(DocumentError::Member { member: "manifests", .. })));
    let bare = without(index(), "mediaType");
    assert!(matches!(parse(&bare, Some(media_type::OCI_MANIFEST)), Err(DocumentError::Member { .. })));

    // Inside and outside disagree.
    for declared in [media_type::OCI_INDEX, media_type::DOCKER_MANIFEST] {
        match parse(&manifest(), Some(declared)) {
            Err(DocumentError::MediaType { expected, found }) => {
                assert_eq!((expected.as_str(), found.as_str()), (declared, media_type::OCI_MANIFEST));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn members_twice_or_in_another_case_are_refused() {
    let config = descriptor(media_type::OCI_CONFIG, "c");
    for extra in [
        format!("\"config\":{}", descriptor(media_type::OCI_CONFIG, "other")),
        "\"layers\":[]".to_owned(),
        "\"schemaVersion\":2".to_owned(),
        format!("\"mediaType\":{:?}", media_type::OCI_MANIFEST),
    ] {
        let text = format!(
            "{{\"schemaVersion\":2,\"mediaType\":{:?},\"config\":{config},\"layers\":[],{extra}}}",
            media_type::OCI_MANIFEST
        );
        assert!(matches!(Document::parse(text.into(), None), Err(DocumentError::Json { .. })), "{extra}");
    }
    for member in ["Layers", "CONFIG", "mediatype", "Manifests"] {
        let error = parse(&with(manifest(), member, json!([])), None).unwrap_err();
        assert!(matches!(&error, DocumentError::Case { found, .. } if found == member), "{error}");
    }
}

#[test]
fn schema_1_is_refused_by_name() {
    let old =
        json!({"schemaVersion": 1, "name": "a/b", "tag": "t", "fsLayers": [{"blobSum": hash("x")}], "history": []});
    for (value, declared) in [
        (&old, None),
        (&old, Some(media_type::DOCKER_SCHEMA1)),
        (&old, Some(media_type::DOCKER_SCHEMA1_SIGNED)),
        (&without(old.clone(), "schemaVersion"), None),
        (&without(manifest(), "mediaType"), Some(media_type::DOCKER_SCHEMA1_SIGNED)),
    ] {
        let error = parse(value, declared).unwrap_err();
        assert!(matches!(error, DocumentError::Schema1), "{error}");
    }
}

#[test]
fn other_documents_are_refused() {
    for (text, part) in [
        ("", "not a valid manifest"),
        ("null", "not a valid manifest"),
        ("[]", "not a valid manifest"),
        ("\"x\"", "not a valid manifest"),
        ("{", "not a valid manifest"),
        ("{}", "unknown media type"),
        ("<html>", "not a valid manifest"),
        ("{\"schemaVersion\":3,\"layers\":[]}", "schemaVersion is 3"),
        ("{\"schemaVersion\":2,\"layers\":[]}", "unknown media type"),
        ("{\"schemaVersion\":2,\"mediaType\":\"application/x-tar\"}", "application/x-tar"),
        ("{\"schemaVersion\":\"2\",\"config\":{}}", "not a valid manifest"),
    ] {
        let error = Document::parse(Bytes::from(text), None).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let trailing = [bytes(&manifest()), Bytes::from("{}")].concat();
    assert!(matches!(Document::parse(trailing.into(), None), Err(DocumentError::Json { .. })));
    let layer = |size: Value, digest: &str| {
        with(manifest(), "layers", json!([{"mediaType": "x", "digest": digest, "size": size}]))
    };
    assert!(parse(&layer(json!(-1), &hash("x")), None).is_err());
    assert!(parse(&layer(json!(1.5), &hash("x")), None).is_err());
    assert!(parse(&layer(json!("1"), &hash("x")), None).is_err());
    assert!(parse(&layer(json!(1), "sha256:beef"), None).is_err());
    assert!(parse(&layer(json!(1), "../../etc/passwd"), None).is_err());
    assert!(parse(&layer(json!(u64::MAX), &hash("x")), None).is_ok());
    assert!(parse(&without(manifest(), "config"), None).is_err());
    assert!(parse(&without(manifest(), "schemaVersion"), None).is_err());
}

#[test]
fn size_limit() {
    let pad = |total: u64| {
        let mut text = manifest().to_string();
        text.push_str(&" ".repeat(total as usize - text.len()));
        Bytes::from(text)
    };
    assert!(Document::parse(pad(MAX_MANIFEST_BYTES), None).is_ok());
    let error = Document::parse(pad(MAX_MANIFEST_BYTES + 1), None).unwrap_err();
    assert!(matches!(error, DocumentError::TooLarge { size } if size == MAX_MANIFEST_BYTES + 1));
    assert!(matches!(ImageConfig::parse(&pad(MAX_MANIFEST_BYTES + 1)), Err(DocumentError::TooLarge { .. })));
}

#[test]
fn nesting_does_not_exhaust_the_stack() {
    for open in ["[", "{\"a\":"] {
        let text = format!("{{\"schemaVersion\":2,\"x\":{}", open.repeat(400_000));
        assert!(matches!(Document::parse(text.into(), None), Err(DocumentError::Json { .. })));
        assert!(ImageConfig::parse(open.repeat(400_000).as_bytes()).is_err());
    }
}

#[test]
fn other_algorithms() {
    let raw = bytes(&manifest());
    let document = Document::parse_as(raw.clone(), None, Algorithm::Sha512).unwrap();
    assert_eq!(document.digest().digest().algorithm(), Algorithm::Sha512);
    assert_ne!(document.digest(), Document::parse(raw, None).unwrap().digest());
}

#[test]
fn a_config_gives_platform_and_layers() {
    let raw = json!({
        "architecture": "arm", "os": "linux", "variant": "v7", "created": "2026-01-02T03:04:05Z",
        "config": {"Env": ["A=b"]}, "history": [{"created_by": "x"}],
        "rootfs": {"type": "layers", "diff_ids": [hash("a"), hash("b")]},
    });
    let config = ImageConfig::parse(&bytes(&raw)).unwrap();
    assert_eq!(config.platform.to_string(), "linux/arm/v7");
    assert_eq!((config.rootfs.kind.as_str(), config.rootfs.diff_ids.len()), ("layers", 2));
    assert_eq!(config.created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert!(ImageConfig::parse(b"{}").unwrap().platform.is_unknown(), "the empty config of an artifact");
    let bad = with(raw, "rootfs", json!({"type": "layers", "diff_ids": ["sha256:1"]}));
    assert!(matches!(ImageConfig::parse(&bytes(&bad)), Err(DocumentError::Json { what: "image config", .. })));
}

#[test]
fn a_config_tells_its_user_and_a_broken_one_costs_nothing_else() {
    for (config, user) in [
        (json!({"User": "65532:65532", "Env": ["A=b"]}), "65532:65532"),
        (json!({"Env": null}), ""),
        (json!({"User": null}), ""),
        (json!({"User": 5}), ""),
        (json!("text"), ""),
        (json!(null), ""),
    ] {
        let parsed = ImageConfig::parse(&bytes(&json!({"os": "linux", "config": config}))).unwrap();
        assert_eq!((parsed.user.as_str(), parsed.platform.os.as_str()), (user, "linux"), "{config}");
    }
    assert_eq!(ImageConfig::parse(b"{}").unwrap().user, "");
}

#[test]
fn media_types() {
    use Compression::{Gzip, None, Zstd};
    for (name, compression, foreign) in [
        (media_type::OCI_LAYER, None, false),
        (media_type::OCI_LAYER_GZIP, Gzip, false),
        (media_type::OCI_LAYER_ZSTD, Zstd, false),
        (media_type::DOCKER_LAYER, None, false),
        (media_type::DOCKER_LAYER_GZIP, Gzip, false),
        (media_type::DOCKER_LAYER_ZSTD, Zstd, false),
        (media_type::DOCKER_LAYER_FOREIGN_GZIP, Gzip, true),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", None, true),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", None, true),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Gzip, true),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Zstd, true),
        ("application/vnd.oci.image.layer.v1.tar+gzip ; x=y", Gzip, false),
    ] {
        assert_eq!(MediaKind::of(name), MediaKind::Layer { compression, foreign }, "{name}");
        assert!(MediaKind::of(name).is_layer());
    }
    for name in [
        "",
        ";",
        "application/json",
        "application/vnd.oci.image.layer.v1.tar+xz",
        media_type::OCI_EMPTY,
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.in-toto+json",
    ] {
        assert_eq!(MediaKind::of(name), MediaKind::Other, "{name}");
    }
    assert_eq!(MediaKind::of(media_type::OCI_CONFIG), MediaKind::Config);
    assert_eq!(MediaKind::of(media_type::DOCKER_CONFIG), MediaKind::Config);
    assert_eq!(MediaKind::of(media_type::DOCKER_SCHEMA1_SIGNED), MediaKind::Schema1);
}

proptest! {
    #[test]
    fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Document::parse(raw.clone().into(), None);
        let _ = ImageConfig::parse(&raw);
    }

    /// One byte of a good document changed: it parses or it does not, and the digest is of the bytes.
    #[test]
    fn no_damage_panics(at in 0usize..2000, byte in any::<u8>(), which in any::<bool>(), declared in any::<bool>()) {
        let mut raw = bytes(&if which { manifest() } else { index() }).to_vec();
        let at = at % raw.len();
        raw[at] = byte;
        let declared = declared.then_some(media_type::OCI_MANIFEST);
        if let Ok(document) = Document::parse(raw.clone().into(), declared) {
            prop_assert_eq!(document.raw(), &raw);
            prop_assert_eq!(document.digest().digest(), &Digest::of(&raw));
            prop_assert_eq!(document.manifest().is_some(), document.index().is_none());
        }
    }

    #[test]
    fn no_media_type_panics(text in "\\PC*") {
        let _ = MediaKind::of(&text);
    }
}
