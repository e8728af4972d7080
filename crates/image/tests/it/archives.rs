//! Importing archives: what OCI layouts and docker-archives become, and which are refused before anything shows.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::{Entry, Events, Made, Node, layers, on};
use orlop_image::{ArchiveError, ArchiveFormat, Error, Event, ExportRequest, ImportRequest, Outcome, Result, Stage};
use orlop_oci::{Descriptor, media_type};
use orlop_testkit::{compress, tar::tar};
use serde_json::{Value, json};

async fn import(node: &Node, archive: Vec<u8>, request: &ImportRequest) -> Result<Outcome> {
    node.images.import(&node.scope, &mut Cursor::new(archive), request, &|_| {}).await
}

fn nothing_shows(node: &Node) {
    assert!(node.names().is_empty(), "{:?}", node.names());
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());
    node.store().collect(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    assert!(node.store().content(&node.scope).find(&[]).unwrap().is_empty());
    assert!(node.store().snapshots(&node.scope, "").unwrap().list(&[]).unwrap().is_empty());
}

/// The layout of some blobs, those in `leave_out` missing; blobs come before the index.
fn oci_layout(made: &Made, manifests: &[Value], leave_out: &[&Descriptor]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (digest, (_, bytes)) in &made.blobs {
        if leave_out.iter().all(|d| d.digest != *digest) {
            entries.push(Entry::file(format!("blobs/sha256/{}", digest.hex()), bytes));
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    entries.push(Entry::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#));
    entries.push(Entry::file("index.json", index.to_string()));
    entries
}

fn called(descriptor: &Descriptor, key: &str, name: &str) -> Value {
    let mut value = serde_json::to_value(descriptor).unwrap();
    value["annotations"] = json!({key: name});
    value
}

/// The stages that each blob was told to be at, and what the import came to.
async fn told(node: &Node, archive: &[u8]) -> (BTreeMap<String, Vec<Stage>>, Outcome) {
    let events = Events::default();
    let (mut source, request) = (Cursor::new(archive.to_vec()), ImportRequest::default());
    let outcome = node.images.import(&node.scope, &mut source, &request, &|e| events.push(e)).await.unwrap();
    let mut stages: BTreeMap<String, Vec<Stage>> = BTreeMap::new();
    for event in events.0.into_inner().unwrap() {
        if let Event::Blob(blob) = event {
            stages.entry(blob.digest.to_string()).or_default().push(blob.stage);
        }
    }
    (stages, outcome)
}

const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[tokio::test(flavor = "multi_thread")]
async fn an_oci_layout_is_imported_plain_gzip_and_zstd() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers());
    let archive = tar(&oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[]));
    for packed in [archive.clone(), compress::gzip(&archive), compress::zstd(&archive)] {
        let node = Node::new();
        let outcome = import(&node, packed, &ImportRequest::default()).await.unwrap();
        assert_eq!(outcome.names[1], "example.com/app:1");
        assert_eq!(outcome.image_ids[0].to_string(), made.image_id(&image));
        assert_eq!(node.names().len(), 3);
        assert_eq!(node.store().snapshots(&node.scope, "").unwrap().list(&[]).unwrap().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_alone_is_completed_by_the_base_name() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers()[..1]);
    let archive = tar(&oci_layout(&made, &[called(&image, REF_NAME, "v7")], &[]));
    let node = Node::new();
    let request = ImportRequest { base_name: "example.com/app".to_owned(), ..ImportRequest::default() };
    let outcome = import(&node, archive, &request).await.unwrap();
    assert_eq!(outcome.names[1], "example.com/app:v7");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_lacks_a_layer_is_refused_naming_digest_and_platform() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers());
    let manifest: Value = serde_json::from_slice(made.bytes(&image.digest)).unwrap();
    let layer: Descriptor = serde_json::from_value(manifest["layers"][1].clone()).unwrap();
    let node = Node::new();
    let archive = tar(&oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[&layer]));
    let error = import(&node, archive, &ImportRequest::default()).await.unwrap_err();
    let Error::Incomplete { missing, .. } = &error else { panic!("{error}") };
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].digest, layer.digest);
    assert_eq!(missing[0].platform.as_ref().unwrap().to_string(), "linux/amd64");
    nothing_shows(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_some_platforms_is_refused_if_the_hosts_or_a_wanted_one_is_missing() {
    let mut made = Made::default();
    let arm = made.image("arm64", &layers()[..1]);
    let amd = made.image("amd64", &layers()[1..2]);
    let index = made.index(&[on(&arm, "arm64"), on(&amd, "amd64")]);
    let entries =
        |missing: &Descriptor| tar(&oci_layout(&made, &[called(&index, IMAGE_NAME, "example.com/app:1")], &[missing]));
    let node = Node::new();
    let error = import(&node, entries(&amd), &ImportRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains(&amd.digest.to_string()), "{error}");
    assert!(error.to_string().contains("linux/amd64"), "{error}");
    nothing_shows(&node);
    let all = ImportRequest { all_platforms: true, ..ImportRequest::default() };
    let error = import(&node, entries(&arm), &all).await.unwrap_err();
    assert!(error.to_string().contains(&arm.digest.to_string()), "{error}");
    let one = ImportRequest { platforms: vec!["linux/arm64".parse().unwrap()], ..ImportRequest::default() };
    let error = import(&node, entries(&arm), &one).await.unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
    nothing_shows(&node);
    import(&node, entries(&arm), &ImportRequest::default()).await.unwrap();
    assert_eq!(node.names().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_archive_is_refused_wherever_it_ends() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers()[1..]);
    let archive = tar(&oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[]));
    let node = Node::new();
    let content_end = archive.len() - 1024;
    for length in (0..content_end).step_by(700) {
        let result = import(&node, archive[..length].to_vec(), &ImportRequest::default()).await;
        assert!(matches!(result, Err(Error::Archive(_))), "{length}: {result:?}");
    }
    nothing_shows(&node);
    let packed = compress::gzip(&archive);
    for length in [20, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
        let result = import(&node, packed[..length].to_vec(), &ImportRequest::default()).await;
        let Err(Error::Archive(ArchiveError::Truncated(_))) = result else { panic!("{length}: {result:?}") };
    }
    nothing_shows(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_whose_bytes_are_not_its_name_is_refused() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers()[..1]);
    let mut entries = oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[&image]);
    let mut wrong = made.bytes(&image.digest).to_vec();
    wrong[20] ^= 1;
    entries.push(Entry::file(format!("blobs/sha256/{}", image.digest.hex()), wrong));
    let node = Node::new();
    let error = import(&node, tar(&entries), &ImportRequest::default()).await.unwrap_err();
    assert!(error.to_string().contains("its bytes hash to"), "{error}");
    nothing_shows(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_lead_out_of_the_archive_are_refused() {
    for path in ["../index.json", "/index.json", "blobs/../../x"] {
        let node = Node::new();
        let error = import(&node, tar(&[Entry::file(path, "x")]), &ImportRequest::default()).await.unwrap_err();
        assert!(matches!(&error, Error::Archive(ArchiveError::Entry { .. })), "{path}: {error}");
    }
}

/// A docker-archive as `docker save` made it before version 25.
fn docker_archive(tags: &[&str], swap: bool) -> Vec<u8> {
    let tars: Vec<Vec<u8>> = layers().iter().map(tar).collect();
    let diff_ids: Vec<String> = tars.iter().map(|t| orlop_oci::Digest::of(t).to_string()).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let mut entries = vec![Entry::file("abc.json", config.to_string())];
    let mut paths: Vec<String> = (0..tars.len()).map(|i| format!("layer{i}/layer.tar")).collect();
    for (path, bytes) in paths.iter().zip(&tars) {
        entries.push(Entry::file(path, bytes));
    }
    entries.push(Entry::symlink("same/layer.tar", "../layer0/layer.tar"));
    paths[0] = "same/layer.tar".to_owned();
    if swap {
        paths.swap(1, 2);
    }
    let manifest = json!([{"Config": "abc.json", "RepoTags": tags, "Layers": paths}]);
    entries.push(Entry::file("manifest.json", manifest.to_string()));
    tar(&entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_archive_gets_a_manifest_and_keeps_its_layers_as_they_are() {
    let node = Node::new();
    let outcome = import(&node, docker_archive(&["busybox:1", "b:2"], false), &ImportRequest::default()).await.unwrap();
    assert_eq!(outcome.target.media_type, media_type::DOCKER_MANIFEST);
    for name in ["docker.io/library/busybox:1", "docker.io/library/b:2"] {
        assert!(outcome.names.iter().any(|n| n == name), "{:?}", outcome.names);
    }
    let inspection = node.images.inspect(&node.scope, "busybox:1").await.unwrap();
    let manifest: Value = serde_json::from_slice(&inspection.documents[0].raw).unwrap();
    assert_eq!(manifest["layers"][0]["mediaType"], media_type::DOCKER_LAYER);
    assert_eq!(inspection.snapshots.len(), 3);
    let again = Node::new();
    let second = import(&again, docker_archive(&["busybox:1"], false), &ImportRequest::default()).await.unwrap();
    assert_eq!(second.target, outcome.target, "the same archive gives the same image");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_archive_with_layers_in_the_wrong_place_is_refused() {
    let node = Node::new();
    let error = import(&node, docker_archive(&["busybox:1"], true), &ImportRequest::default()).await.unwrap_err();
    assert!(matches!(error, Error::DiffId { .. }), "{error}");
    nothing_shows(&node);
}

fn skopeo(arguments: &[&str]) -> bool {
    match Command::new("skopeo").args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(error) => {
            eprintln!("skipped: skopeo cannot be run: {error}");
            false
        }
    }
}

fn write_layout(directory: &Path, made: &Made, image: &Descriptor) {
    std::fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    for (digest, (_, bytes)) in &made.blobs {
        std::fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    }
    let index = json!({"schemaVersion": 2, "manifests": [called(image, REF_NAME, "v1")]});
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_in_a_directory_is_imported_and_what_it_lacks_is_named() {
    let (node, directory, mut made) = (Node::new(), tempfile::tempdir().unwrap(), Made::default());
    let image = made.image("amd64", &layers());
    write_layout(directory.path(), &made, &image);
    let request = ImportRequest { base_name: "example.com/app".to_owned(), ..ImportRequest::default() };
    let outcome = node.images.import_directory(&node.scope, directory.path(), &request, &|_| {}).await.unwrap();
    assert_eq!(outcome.names[1], "example.com/app:v1");
    let id = made.image_id(&image);
    std::fs::remove_file(directory.path().join("blobs/sha256").join(id.trim_start_matches("sha256:"))).unwrap();
    let other = Node::new();
    let error = other.images.import_directory(&other.scope, directory.path(), &request, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains(&id), "{error}");
    nothing_shows(&other);
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeos_docker_archive_is_imported_and_our_exports_are_read_by_skopeo() {
    let (node, directory, mut made) = (Node::new(), tempfile::tempdir().unwrap(), Made::default());
    let image = made.image("amd64", &layers());
    write_layout(&directory.path().join("layout"), &made, &image);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (layout, archive) = (format!("oci:{}:v1", path("layout")), path("docker.tar"));
    if !skopeo(&["--insecure-policy", "copy", &layout, &format!("docker-archive:{archive}:example.com/app:1")]) {
        return;
    }
    let bytes = std::fs::read(&archive).unwrap();
    let outcome = import(&node, bytes, &ImportRequest::default()).await.unwrap();
    assert_eq!(outcome.names[1], "example.com/app:1");

    for (format, transport) in [(ArchiveFormat::Oci, "oci-archive"), (ArchiveFormat::Docker, "docker-archive")] {
        let request = ExportRequest { names: vec!["example.com/app:1".to_owned()], format, ..ExportRequest::default() };
        let mut exported = Vec::new();
        node.images.export(&node.scope, &request, &mut exported).await.unwrap();
        let file = path(transport);
        std::fs::write(&file, &exported).unwrap();
        let target = format!("dir:{}", path(&format!("out-{transport}")));
        assert!(skopeo(&["--insecure-policy", "copy", &format!("{transport}:{file}"), &target]));
        let again = Node::new();
        let back = import(&again, exported, &ImportRequest::default()).await.unwrap();
        assert_eq!(back.image_ids, outcome.image_ids, "{transport}");
        assert_eq!(back.names[1], "example.com/app:1");
    }
}

/// An export by image ID once named a digest reference of the index although only one manifest of it was in the
/// archive, which no importer can take.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_by_image_id_of_a_partial_index_is_imported_again() {
    let (node, shelf, mut made) = (Node::new(), common::Shelf::start().await, Made::default());
    let amd = made.image("amd64", &layers());
    let arm = made.image("arm64", &layers()[..1]);
    let index = made.index(&[on(&amd, "amd64"), on(&arm, "arm64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    let request = ExportRequest { names: vec![made.image_id(&amd)], ..ExportRequest::default() };
    let (mut exported, mut again) = (Vec::new(), Vec::new());
    node.images.export(&node.scope, &request, &mut exported).await.unwrap();
    node.images.export(&node.scope, &request, &mut again).await.unwrap();
    assert!(exported == again, "the same content gives the same bytes");
    let other = Node::new();
    let outcome = import(&other, exported, &ImportRequest::default()).await.unwrap();
    assert_eq!(outcome.target.digest, amd.digest);
    assert!(outcome.names.contains(&shelf.name("team/app:v1")), "{:?}", outcome.names);
    let all = ExportRequest { all_platforms: true, ..request };
    let error = node.images.export(&node.scope, &all, &mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains(&arm.digest.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_with_a_wrong_size_is_refused_whether_or_not_the_blob_is_there() {
    let (node, directory, mut made) = (Node::new(), tempfile::tempdir().unwrap(), Made::default());
    let image = made.image("amd64", &layers()[..1]);
    let mut manifest: Value = serde_json::from_slice(made.bytes(&image.digest)).unwrap();
    manifest["layers"][0]["size"] = json!(manifest["layers"][0]["size"].as_u64().unwrap() + 1);
    let wrong = made.add(media_type::OCI_MANIFEST, manifest.to_string());
    let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
    write_layout(&good, &made, &image);
    write_layout(&bad, &made, &wrong);
    let request = ImportRequest { base_name: "example.com/app".to_owned(), ..ImportRequest::default() };
    let import = |path| node.images.import_directory(&node.scope, path, &request, &|_| {});
    import(&bad).await.unwrap_err();
    assert!(node.names().is_empty());
    import(&good).await.unwrap();
    let error = import(&bad).await.unwrap_err();
    assert!(matches!(error, Error::Inconsistent { .. }), "{error}");
    assert_eq!(node.store().image("k8s.io", "example.com/app:v1").unwrap().target.digest, image.digest);
}

/// Everything that a first import brought was told as "already here", and counted both as transferred and as present.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_tells_what_comes_and_what_was_here() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers());
    let archive = tar(&oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[]));
    let bytes: u64 = made.blobs.values().map(|(_, bytes)| bytes.len() as u64).sum();
    let node = Node::new();

    let (stages, outcome) = told(&node, &archive).await;
    assert_eq!((outcome.bytes_transferred, outcome.bytes_present), (bytes, 0));
    assert_eq!(stages.len(), made.blobs.len());
    for (digest, stages) in stages {
        assert_eq!((stages.first(), stages.last()), (Some(&Stage::Fetching), Some(&Stage::Complete)), "{digest}");
        assert!(!stages.contains(&Stage::Present), "{digest} {stages:?}");
    }

    let (stages, outcome) = told(&node, &archive).await;
    assert_eq!((outcome.bytes_transferred, outcome.bytes_present), (0, bytes));
    assert!(stages.values().flatten().all(|stage| *stage == Stage::Present), "{stages:?}");
}

/// What import took, check called incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_names_no_manifest_lacks_none() {
    let mut made = Made::default();
    let index = made.index(&[]);
    let node = Node::new();
    let archive = tar(&oci_layout(&made, &[called(&index, IMAGE_NAME, "example.com/none:1")], &[]));
    import(&node, archive, &ImportRequest::default()).await.unwrap();
    assert_eq!(node.names(), ["example.com/none:1"]);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_and_documents_of_an_archive_are_limited() {
    let mut made = Made::default();
    let image = made.image("amd64", &layers()[..1]);
    let entries = oci_layout(&made, &[called(&image, IMAGE_NAME, "example.com/app:1")], &[]);
    let index = entries.iter().find(|entry| entry.path == b"index.json").map(|entry| match &entry.kind {
        orlop_testkit::tar::Kind::File(bytes) => bytes.len() as u64,
        other => panic!("{other:?}"),
    });
    let (count, index) = (entries.len() as u64, index.unwrap());
    for (key, entries_limit, bytes, is_taken) in [
        ("archive_entries", count, 4096, true),
        ("archive_entries", count - 1, 4096, false),
        ("manifest_bytes", count, index.max(1024), true),
        ("manifest_bytes", count, index - 1, false),
    ] {
        let mut settings = orlop_image::Settings::default();
        (settings.limits.archive_entries, settings.limits.manifest_bytes) = (entries_limit, bytes);
        let node = Node::with(settings);
        let imported = import(&node, tar(&entries), &ImportRequest::default()).await;
        assert_eq!(imported.is_ok(), is_taken, "{key}: {imported:?}");
        if let Err(error) = imported {
            assert!(error.to_string().contains(&format!("limits.{key}")), "{error}");
            nothing_shows(&node);
        }
    }
}
