//! The same image pulled by a real containerd and by Orlop: same records, same digests, same trees.

use crate::common;
use crate::common::Orlop;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{self, Registry};
use orlop_testkit::tar::Entry;

fn awkward() -> Content {
    let below = [
        Entry::dir("etc").mode(0o750).owner(10, 20).mtime(1_600_000_000, 123_456_789),
        Entry::file("etc/passwd", "root:x:0:0\n").mode(0o640),
        Entry::file("etc/gone", "soon"),
        Entry::dir("opaque"),
        Entry::file("opaque/old", "old"),
        Entry::file("bin", "a file that becomes a directory"),
        Entry::file("tool", "setuid").mode(0o4755).owner(1, 1),
        Entry::hardlink("tool-link", "tool"),
    ];
    let above = [
        Entry::whiteout("etc/gone"),
        Entry::file("etc/new", "new").mtime(1_700_000_000, 1),
        Entry::dir("opaque"),
        Entry::opaque("opaque"),
        Entry::file("opaque/new", "new"),
        Entry::dir("bin"),
        Entry::symlink("bin/sh", "../tool"),
    ];
    let image = Image::host()
        .layer(Layer::new(below).packed(Compression::Gzip))
        .layer(Layer::new(above).packed(Compression::Zstd))
        .layer(Layer::noise("big", 3, 3 << 20).packed(Compression::Gzip));
    Content::image(&image)
}

fn generations() -> Vec<Programs> {
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

fn pushed(content: &Content) -> Option<Registry> {
    let registry = Registry::start(&registry::Options::new())?;
    let store = Orlop::new();
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/app:1", content)])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    store.ok(["push", "app:1", &format!("{}/app:1", registry.host())]);
    Some(registry)
}

/// `ctr images ls`, as (name, digest).
fn rows(containerd: &Containerd, namespace: &str) -> Vec<(String, String)> {
    let out = containerd.ctr(namespace, &["images", "ls"]).ok();
    let mut rows: Vec<(String, String)> = out
        .stdout
        .lines()
        .skip(1)
        .map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default().to_owned();
            (name, words.find(|w| w.starts_with("sha256:")).unwrap_or_default().to_owned())
        })
        .collect();
    rows.sort();
    rows
}

fn own_rows(store: &Orlop) -> Vec<(String, String)> {
    let records = store.json(["images", "--all"]);
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let mut rows: Vec<(String, String)> = records["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (text(&r["name"]), text(&r["target"]["digest"])))
        .collect();
    rows.sort();
    rows
}

#[test]
fn both_pull_the_same_records_content_and_tree() {
    if !common::is_root("both_pull_the_same_records_content_and_tree") {
        return;
    }
    let content = awkward();
    let Some(registry) = pushed(&content) else { return };
    let name = format!("{}/app:1", registry.host());
    let store = Orlop::new().in_namespace("default");
    store.ok(["pull", &name]);
    let dir = store.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    store.ok(["mount", &name, dir.to_str().unwrap()]);
    // What nobody sets has the clock's time: the root, which no layer names.
    let options = fingerprint::Options { skip_root: true, ..fingerprint::Options::default() };
    let own = Fingerprint::of(&dir, &options).unwrap();
    store.ok(["umount", dir.to_str().unwrap()]);
    for programs in generations() {
        let containerd = Containerd::start(&programs, &Options::default());
        containerd.ctr("default", &["images", "pull", "--plain-http", &name]).ok();
        assert_eq!(own_rows(&store), rows(&containerd, "default"), "{}", programs.version());
        let theirs: Vec<String> =
            containerd.ctr("default", &["content", "ls", "-q"]).ok().stdout.lines().map(str::to_owned).collect();
        let mut ours: Vec<String> = store.ok(["content", "ls", "-o", "name"]).lines().map(str::to_owned).collect();
        ours.sort();
        let mut theirs = theirs;
        theirs.sort();
        assert_eq!(ours, theirs, "{}", programs.version());
        let mut other = containerd
            .mounted("default", &name, |path| Fingerprint::of(path, &options).unwrap())
            .unwrap_or_else(|output| panic!("ctr images mount: {output:?}"));
        // containerd gives the present time to directories that a layer only implies; Orlop what the layer below says.
        let mut own = own.clone();
        other.forget_clock(&mut own, 1_750_000_000);
        own.assert_same(&other, &programs.version());
    }
}

#[test]
fn in_the_namespace_of_cri_both_write_the_image_id() {
    if !common::is_root("in_the_namespace_of_cri_both_write_the_image_id") {
        return;
    }
    let content = awkward();
    let Some(registry) = pushed(&content) else { return };
    let Some(programs) = Programs::debian() else { return };
    let name = format!("{}/app:1", registry.host());
    let store = Orlop::new();
    store.ok(["pull", &name]);
    let containerd = Containerd::start(&programs, &Options { cri: true, ..Options::default() });
    containerd.ctr("k8s.io", &["images", "pull", "--plain-http", &name]).ok();
    let id = content.image_id().unwrap().to_string();
    // CRI writes the record when it hears of the image; the log of a loaded machine shows up to some seconds.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let theirs = loop {
        let rows = rows(&containerd, "k8s.io");
        if rows.iter().any(|(name, _)| *name == id) {
            break rows;
        }
        assert!(std::time::Instant::now() < deadline, "containerd wrote no image ID record: {rows:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    let ours = own_rows(&store);
    assert!(theirs.iter().all(|row| ours.contains(row)), "{theirs:?} is not all in {ours:?}");
    let extra: Vec<_> = ours.iter().filter(|row| !theirs.contains(row)).collect();
    // `ctr` pulls past CRI, which then writes no repository digest; a pull through CRI does.
    assert_eq!(extra.len(), 1);
    assert!(extra[0].0.contains("/app@sha256:"), "{extra:?}");
}

#[test]
fn each_reads_the_archives_of_the_other() {
    if !common::is_root("each_reads_the_archives_of_the_other") {
        return;
    }
    let content = awkward();
    let Some(registry) = pushed(&content) else { return };
    let name = format!("{}/app:1", registry.host());
    let store = Orlop::new();
    store.ok(["pull", &name]);
    let file = store.path("exported.tar");
    let path = file.to_str().unwrap();
    store.ok(["export", &name, "-O", path]);
    for programs in generations() {
        let containerd = Containerd::start(&programs, &Options::default());
        containerd.import("default", &file, "overlayfs").ok();
        let listed = rows(&containerd, "default");
        assert!(listed.iter().any(|(n, d)| *n == name && *d == content.root.digest.as_str()), "{listed:?}");
        let back = store.path("back.tar");
        containerd.export("default", &name, &back);
        let other = Orlop::new();
        other.ok(["import", back.to_str().unwrap()]);
        assert!(other.records().contains(&name), "{:?}", other.records());
        other.is_sound();
    }
}
