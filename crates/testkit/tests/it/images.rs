//! Images that are made are what they say, and other programs read them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use orlop_oci::{Compression, Digest, Document, ImageConfig, MediaKind, chain_ids, media_type};
use orlop_testkit::archive::{docker_archive, oci_archive, write_layout};
use orlop_testkit::fingerprint::{Fingerprint, Options};
use orlop_testkit::from_dir;
use orlop_testkit::image::{Content, Image, Layer, noise};
use orlop_testkit::tar::{Entry, Kind, tar};

fn two_layers() -> Image {
    Image::new("linux/amd64")
        .layer(Layer::new([Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n").mode(0o640).owner(3, 4)]))
        .layer(Layer::new([Entry::whiteout("etc/hostname"), Entry::file("new", "n")]).packed(Compression::Zstd))
        .config("Cmd", serde_json::json!(["/bin/true"]))
}

fn document(content: &Content) -> Document {
    let raw = Bytes::copy_from_slice(content.bytes(&content.root.digest));
    Document::parse(raw, Some(&content.root.media_type)).unwrap()
}

/// Every descriptor below the top names a blob of that size and digest.
fn check(content: &Content) {
    let mut seen = BTreeSet::new();
    let mut stack = vec![content.root.clone()];
    while let Some(d) = stack.pop() {
        let bytes = content.bytes(&d.digest);
        assert_eq!((bytes.len() as u64, &Digest::of(bytes)), (d.size, &d.digest));
        if matches!(d.kind(), MediaKind::Manifest | MediaKind::Index) && seen.insert(d.digest.clone()) {
            let parsed = Document::parse(Bytes::copy_from_slice(bytes), Some(&d.media_type)).unwrap();
            stack.extend(parsed.children().into_iter().cloned());
        }
    }
}

#[test]
fn an_image_is_consistent_and_the_same_every_time() {
    for image in [two_layers(), two_layers().docker()] {
        let content = Content::image(&image);
        check(&content);
        assert_eq!(Content::image(&image).root, content.root);
        let document = document(&content);
        let manifest = document.manifest().unwrap();
        let config = ImageConfig::parse(content.bytes(&manifest.config.digest)).unwrap();
        let diff_ids: Vec<_> = image.layers().iter().map(Layer::diff_id).collect();
        assert_eq!(config.rootfs.diff_ids, diff_ids);
        assert_eq!(chain_ids(&diff_ids).len(), 2);
        assert_eq!(content.image_id().unwrap().digest(), &manifest.config.digest);
        assert_eq!(content.layers().len(), 2);
        assert!(manifest.layers.iter().all(|l| l.kind().is_layer()));
    }
    let other = two_layers().config("Cmd", serde_json::json!(["/bin/false"]));
    assert_ne!(Content::image(&other).image_id(), Content::image(&two_layers()).image_id());
    assert_eq!(Content::image(&other).layers(), Content::image(&two_layers()).layers());
}

#[test]
fn indexes_attestations_artifacts_and_foreign_layers() {
    let amd64 = Content::image(&two_layers());
    let arm64 = Content::image(&Image::new("linux/arm64").layer(Layer::noise("f", 1, 100)));
    let attestation = Content::attestation(&amd64);
    let nested = Content::index(&[arm64]);
    let index = Content::index(&[amd64.clone(), attestation, nested]);
    check(&index);
    let parsed = document(&index);
    let children = &parsed.index().unwrap().manifests;
    assert_eq!(children[0].platform.as_ref().unwrap().to_string(), "linux/amd64");
    assert!(children[1].is_attestation());
    assert_eq!(children[2].kind(), MediaKind::Index);

    let sbom = Content::artifact("application/spdx+json", &[("application/spdx+json", b"{}")], Some(&amd64.root));
    check(&sbom);
    let parsed = document(&sbom);
    assert_eq!(parsed.manifest().unwrap().subject.as_ref().unwrap().digest, amd64.root.digest);
    assert_eq!(parsed.manifest().unwrap().config.media_type, media_type::OCI_EMPTY);

    let foreign = two_layers().docker().layer(Layer::noise("far", 2, 10).foreign("https://example.com/far"));
    let content = Content::image(&foreign);
    check(&content);
    let parsed = document(&content);
    let last = &parsed.manifest().unwrap().layers[2];
    assert!(matches!(last.kind(), MediaKind::Layer { foreign: true, .. }));
    assert_eq!(Content::index(&[content]).root.media_type, media_type::DOCKER_LIST);
}

#[test]
fn push_order_puts_children_first() {
    let amd64 = Content::image(&two_layers());
    let index = Content::index(&[amd64.clone(), Content::attestation(&amd64)]);
    let order = index.push_order();
    assert_eq!(order.len(), index.blobs.len());
    let mut seen = BTreeSet::new();
    for (descriptor, bytes) in order {
        if matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index) {
            let document = Document::parse(Bytes::copy_from_slice(bytes), None).unwrap();
            assert!(document.children().iter().all(|c| seen.contains(&c.digest)));
        }
        seen.insert(descriptor.digest);
    }
    assert!(seen.contains(&index.root.digest));
}

#[test]
fn noise_does_not_compress_and_repeats() {
    let bytes = noise(7, 100_000);
    assert_eq!(bytes, noise(7, 100_000));
    assert_ne!(bytes, noise(8, 100_000));
    assert!(orlop_testkit::compress::zstd(&bytes).len() > 99_000);
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).output() {
        Ok(out) => {
            assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
            Some(String::from_utf8_lossy(&out.stdout).into_owned())
        }
        Err(_) => {
            eprintln!("skipped: {program} is not installed (apt-get install {program})");
            None
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn skopeo_reads_layouts_and_archives() {
    let dir = tempfile::tempdir().unwrap();
    let image = two_layers();
    let content = Content::image(&image);
    let index = Content::index(&[content.clone(), Content::image(&Image::new("linux/arm64"))]);
    write_layout(&dir.path().join("layout"), &[("one", &content), ("docker.io/library/two:2", &index)]).unwrap();
    std::fs::write(dir.path().join("oci.tar"), oci_archive(&[("one", &content)])).unwrap();
    std::fs::write(dir.path().join("docker.tar"), docker_archive(&[(&["docker.io/library/x:1"], &image)])).unwrap();
    let layout = text(dir.path()).to_owned() + "/layout";
    let Some(raw) = run("skopeo", &["inspect", "--raw", &format!("oci:{layout}:one")]) else { return };
    assert_eq!(raw.as_bytes(), content.bytes(&content.root.digest));
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci:{layout}:2")]).unwrap();
    assert_eq!(raw.as_bytes(), index.bytes(&index.root.digest));
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci-archive:{}/oci.tar:one", text(dir.path()))]).unwrap();
    assert_eq!(raw.as_bytes(), content.bytes(&content.root.digest));
    let archive = format!("docker-archive:{}/docker.tar", text(dir.path()));
    let config = run("skopeo", &["inspect", "--config", "--raw", &archive]).unwrap();
    assert_eq!(config.as_bytes(), content.bytes(content.image_id().unwrap().digest()));
    // Copying reads every layer and checks every digest.
    run("skopeo", &["copy", "--quiet", &archive, &format!("dir:{}/copied", text(dir.path()))]).unwrap();
}

#[test]
fn umoci_unpacks_to_the_same_tree() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: unpacking owners needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new([
        Entry::dir("d").mode(0o750).owner(7, 8),
        Entry::file("d/f", "content").mode(0o4755).owner(5, 5).mtime(1_600_000_000, 123_456_789),
        Entry::hardlink("d/h", "d/f").mode(0o4755).owner(5, 5).mtime(1_600_000_000, 123_456_789),
        Entry::symlink("l", "d/f"),
        Entry::new("p", Kind::Fifo),
        Entry::file("x", "y").xattr("user.a", "b"),
    ]);
    let content = Content::image(&Image::new("linux/amd64").layer(layer.clone()));
    write_layout(&dir.path().join("layout"), &[("one", &content)]).unwrap();
    let bundle = dir.path().join("bundle");
    let source = format!("{}/layout:one", text(dir.path()));
    if run("umoci", &["unpack", "--image", &source, text(&bundle)]).is_none() {
        return;
    }
    let options = Options { skip_root: true, ..Options::default() };
    let unpacked = Fingerprint::of(&bundle.join("rootfs"), &options).unwrap();
    assert_eq!(unpacked.lines.len(), 7, "{unpacked}");
    assert!(unpacked.lines["d/f"].contains("mode=4755 owner=5:5 mtime=1600000000.123456789"), "{unpacked}");
    assert!(unpacked.lines["d/f"].contains("linked-with=[\"d/f\", \"d/h\"]"), "{unpacked}");
    assert!(unpacked.lines["x"].contains("user.a=b"), "{unpacked}");
    // Read back off the disk it is the same layer again, and unpacked once more the same tree.
    let again = tar(&from_dir::entries(&bundle.join("rootfs")).unwrap());
    let content = Content::image(&Image::new("linux/amd64").layer(Layer::of_tar(again)));
    write_layout(&dir.path().join("layout2"), &[("one", &content)]).unwrap();
    let bundle = dir.path().join("bundle2");
    run("umoci", &["unpack", "--image", &format!("{}/layout2:one", text(dir.path())), text(&bundle)]).unwrap();
    Fingerprint::of(&bundle.join("rootfs"), &options).unwrap().assert_same(&unpacked, "unpacked twice");
}

#[test]
fn fingerprints_tell_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = |name: &str, content: &str| {
        let root = dir.path().join(name);
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/f"), content).unwrap();
        root
    };
    let options = Options { skip_times: true, ..Options::default() };
    let (a, b) = (tree("a", "1"), tree("b", "1"));
    let first = Fingerprint::of(&a, &options).unwrap();
    first.assert_same(&Fingerprint::of(&b, &options).unwrap(), "equal trees");
    std::fs::write(b.join("sub/f"), "2").unwrap();
    std::fs::write(b.join("more"), "").unwrap();
    std::fs::hard_link(b.join("more"), b.join("most")).unwrap();
    let diff = first.diff(&Fingerprint::of(&b, &options).unwrap());
    assert_eq!(diff.len(), 3, "{diff:?}");
    assert!(diff[0].starts_with("sub/f:") && diff[1].contains("only in the second: more"), "{diff:?}");
    assert!(diff[1].contains("linked-with=[\"more\", \"most\"]"), "{diff:?}");
    assert!(Fingerprint::of(&dir.path().join("no such"), &options).unwrap_err().to_string().contains("no such"));
}
