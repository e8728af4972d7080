//! Archives and layouts exchanged with skopeo and umoci; broken ones refused.

use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::Orlop;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need, output};
use orlop_testkit::tar::Entry;

fn image() -> Content {
    let entries = [Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")];
    Content::image(&Image::host().layer(Layer::new(entries).packed(Compression::Gzip)).layer(Layer::noise(
        "n",
        1,
        1 << 20,
    )))
}

fn skopeo(args: &[&str]) -> bool {
    let Some(program) = need("skopeo", "skopeo") else { return false };
    output(Command::new(program).args(["--insecure-policy", "copy", "-q"]).args(args)).ok();
    true
}

fn show(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_skopeo_and_umoci_write_is_imported() {
    let store = Orlop::new();
    let layout = store.path("layout");
    let content = image();
    archive::write_layout(&layout, &[("1", &content)]).unwrap();
    let source = format!("oci:{}:1", show(&layout));
    let id = content.image_id().unwrap().to_string();

    let oci = store.path("oci.tar");
    if !skopeo(&[&source, &format!("oci-archive:{}:docker.io/library/app:oci", show(&oci))]) {
        return;
    }
    store.ok(["import", show(&oci)]);
    let docker = store.path("docker.tar");
    skopeo(&[&source, &format!("docker-archive:{}:docker.io/library/app:docker", show(&docker))]);
    let done = store.fed(&["import", "-"], &docker);
    assert_eq!(done.code, 0, "{}", done.err);
    let records = store.records();
    for name in ["docker.io/library/app:oci", "docker.io/library/app:docker"] {
        assert!(records.iter().any(|r| r == name), "{name} is not in {records:?}");
    }
    assert!(records.contains(&id), "the OCI archive keeps the image ID: {records:?}");
    store.is_sound();

    if let Some(umoci) = need("umoci", "umoci") {
        let image = format!("{}:1", show(&layout));
        output(Command::new(&umoci).args(["config", "--image", &image, "--config.env", "A=B"])).ok();
        // Regression: its tar ends with the last byte of the last file, and was refused as damaged.
        let inserted = store.path("inserted");
        std::fs::write(&inserted, "umoci").unwrap();
        output(Command::new(umoci).args(["insert", "--image", &image, show(&inserted), "/etc/inserted"])).ok();
        let other = Orlop::new();
        other.ok(["import", "--base-name", "docker.io/library/app", show(&layout)]);
        assert!(other.records().contains(&"docker.io/library/app:1".to_owned()), "{:?}", other.records());
        if common::is_root("umoci insert, mounted") {
            let mounted = other.path("mounted");
            std::fs::create_dir(&mounted).unwrap();
            other.ok(["mount", "app:1", show(&mounted)]);
            assert_eq!(std::fs::read_to_string(mounted.join("etc/inserted")).unwrap(), "umoci");
            other.ok(["umount", show(&mounted)]);
        }
        other.is_sound();
    }
}

#[test]
fn what_orlop_exports_is_read_by_skopeo_and_umoci() {
    let store = Orlop::new();
    let file = store.path("in.tar");
    let content = image();
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/app:1", &content)])).unwrap();
    store.ok(["import", show(&file)]);
    let (oci, docker) = (store.path("o.tar"), store.path("d.tar"));
    store.ok(["export", "app:1", "-O", show(&oci)]);
    store.ok(["export", "--format", "docker", "app:1", "-O", show(&docker)]);
    let layout = store.path("copied");
    if !skopeo(&[&format!("oci-archive:{}", show(&oci)), &format!("oci:{}:1", show(&layout))]) {
        return;
    }
    let from_docker = store.path("from-docker");
    skopeo(&[&format!("docker-archive:{}", show(&docker)), &format!("oci:{}:1", show(&from_docker))]);
    let blob = layout.join("blobs/sha256").join(content.root.digest.hex());
    assert!(blob.exists(), "the manifest came out byte for byte");
    if let Some(umoci) = need("umoci", "umoci").filter(|_| common::is_root("umoci unpack")) {
        let bundle = store.path("bundle");
        output(Command::new(umoci).args(["unpack", "--image", &format!("{}:1", show(&from_docker)), show(&bundle)]))
            .ok();
        assert_eq!(std::fs::read_to_string(bundle.join("rootfs/etc/hostname")).unwrap(), "orlop\n");
        assert_eq!(std::fs::metadata(bundle.join("rootfs/n")).unwrap().len(), 1 << 20);
    }
}

#[test]
fn exports_are_the_same_bytes_each_time() {
    let store = Orlop::new();
    let file = store.path("in.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/app:1", &image())])).unwrap();
    store.ok(["import", "--no-unpack", show(&file)]);
    for format in ["oci", "docker"] {
        let first = store.command(["export", "--format", format, "app:1"]).output().unwrap().stdout;
        let second = store.command(["export", "--format", format, "app:1"]).output().unwrap().stdout;
        assert!(!first.is_empty() && first == second, "{format}");
    }
}

/// Whatever is cut off an archive, nothing of it becomes visible, and the answer is no success.
#[test]
fn a_truncated_archive_is_refused_and_leaves_nothing() {
    let store = Orlop::new();
    let whole = archive::oci_archive(&[("docker.io/library/app:1", &image())]);
    let file = store.path("cut.tar");
    for part in [0, 100, 512, 2000, whole.len() / 3, whole.len() / 2, whole.len() - 600_000] {
        std::fs::write(&file, &whole[..part]).unwrap();
        let done = store.run(["import", show(&file)]);
        assert_ne!(done.code, 0, "{part} bytes: {}", done.out);
        assert!(!done.err.is_empty());
        assert_eq!(store.records(), Vec::<String>::new(), "{part} bytes");
    }
    store.ok(["gc"]);
    store.is_sound();
    std::fs::write(&file, &whole).unwrap();
    store.ok(["import", show(&file)]);
    store.is_sound();
}

#[test]
fn an_archive_that_lacks_a_platform_names_digest_and_platform() {
    let arm = Content::image(&Image::new("linux/arm64").layer(Layer::new([Entry::file("arm", "arm")])));
    let index = Content::index(&[image(), arm.clone()]);
    let mut files = archive::layout(&[("docker.io/library/app:1", &index)]);
    let layer = arm.layers()[0].clone();
    files.remove(&format!("blobs/sha256/{}", layer.hex())).unwrap();
    let store = Orlop::new();
    let file = store.path("partial.tar");
    std::fs::write(&file, archive::archive(&files)).unwrap();
    let done = store.run(["import", show(&file)]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains(layer.as_str()) && done.err.contains("arm64"), "{}", done.err);
    assert_eq!(store.records(), Vec::<String>::new());
    // Asked for the platform that is whole, it is good.
    let host = orlop_oci::Platform::host().to_string();
    store.ok(["import", "--platform", &host, show(&file)]);
    store.is_sound();
}

#[test]
fn garbage_is_no_archive() {
    let store = Orlop::new();
    let file = store.path("garbage");
    for bytes in [&b"hello"[..], &[0u8; 4096], &[0x1f, 0x8b, 8, 0, 0, 0], &[0xffu8; 100_000]] {
        std::fs::write(&file, bytes).unwrap();
        let done = store.run(["import", show(&file)]);
        assert_ne!(done.code, 0, "{:?}", &bytes[..4]);
        assert_eq!(store.records(), Vec::<String>::new());
    }
}
