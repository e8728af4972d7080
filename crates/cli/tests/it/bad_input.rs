//! What must not harm a store: hostile layers, bombs, full and read-only disks, kills at any moment. After each the store
//! opens, has what was acknowledged, and is sound.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common;
use crate::common::{Done, Orlop};
use orlop_oci::{Compression, DiffId, Digest};
use orlop_testkit::archive;
use orlop_testkit::corpus::{self, Expect, Hideout, stream};
use orlop_testkit::disk::{Disk, SMALL};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::tar::Entry;
use orlop_testkit::tier::amount;

fn archive_of(store: &Orlop, name: &str, content: &Content) -> String {
    let file = store.path(&format!("{}.tar", name.replace(['/', ':'], "_")));
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    file.to_str().unwrap().to_owned()
}

fn small() -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("small", "small")]).packed(Compression::Gzip)))
}

fn noise(seed: u64, mebibytes: usize) -> Content {
    Content::image(&Image::host().layer(Layer::noise("noise", seed, mebibytes << 20).packed(Compression::Gzip)))
}

#[test]
fn no_layer_reaches_outside_and_broken_ones_are_refused() {
    if !common::is_root("no_layer_reaches_outside_and_broken_ones_are_refused") {
        return;
    }
    let store = Orlop::new();
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    let aim = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(aim.path()).unwrap();
    let mut before = store.records();
    for case in corpus::broken().into_iter().chain(corpus::hostile(&hideout)) {
        let name = "docker.io/library/bad:1";
        let done = store.run(["import", &archive_of(&store, name, &case.image())]);
        assert_eq!(hideout.check(), Ok(()), "{}", case.name);
        let refused = done.code != 0;
        assert!(refused || case.expect != Expect::Refused, "{} was taken", case.name);
        if refused {
            done.refuses_a_layer(case.name);
            assert_eq!(store.records(), before, "{}", case.name);
        } else {
            store.ok(["rm", "--no-trash", name]);
        }
        before = store.records();
    }
    store.ok(["gc", "--trash"]);
    store.is_sound();
}

#[test]
fn archives_that_are_none_are_told_by_what_they_are() {
    let store = Orlop::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = store.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let tar = orlop_testkit::tar::tar(&[Entry::file("some/file", "x")]);
    let whole = archive::oci_archive(&[("docker.io/library/good:1", &small())]);
    for (name, bytes, says) in [
        ("text", &b"root:x:0:0:root:/root:/bin/bash\n".repeat(100)[..], "no tar archive"),
        ("nothing", &[], "neither index.json nor manifest.json"),
        ("any.tar", &tar, "neither index.json nor manifest.json"),
        ("cut.tar", &whole[..whole.len() / 2], "truncated"),
        ("cut.tar.gz", &orlop_testkit::compress::gzip(&whole)[..300], "truncated"),
    ] {
        let done = store.run(["import", &file(name, bytes)]);
        assert_eq!(done.code, 5, "{name}: {}", done.err);
        assert!(done.err.contains(says) && done.err.contains("hint: "), "{name}: {}", done.err);
        assert_eq!(store.records(), Vec::<String>::new(), "{name}");
    }
    store.is_sound();
}

/// The most memory that a process ever had, in KiB, looked up until it ends; without the pages of files, most of them its own program's,
/// of which a build without optimisation has twice as many.
fn peak_of(child: &mut std::process::Child) -> u64 {
    let (status, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let said = std::fs::read_to_string(&status).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            let line = said.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        if let (Some(all), Some(files)) = (field("VmHWM:"), field("RssFile:")) {
            peak = peak.max(all.saturating_sub(files));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

/// The disk has room for the gigabyte that any layer may become, not for the bomb.
#[test]
fn a_decompression_bomb_is_refused() {
    let Some(disk) = Disk::new(1400) else { return };
    let store = Orlop::below(&disk.path());
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    let acknowledged = store.records();
    for (compression, media_type) in [
        (Compression::Gzip, orlop_oci::media_type::OCI_LAYER_GZIP),
        (Compression::Zstd, orlop_oci::media_type::OCI_LAYER_ZSTD),
    ] {
        let (file, layer) = bomb(&store, compression, media_type);
        let mut child = store.command(["import", &file]).stderr(Stdio::piped()).spawn().unwrap();
        let peak = peak_of(&mut child);
        let done = Done::of(&child.wait_with_output().unwrap());
        // No space would be 6: the limit was what ended it.
        assert_eq!(done.code, 5, "{compression:?}: {}", done.err);
        for says in [layer.as_str(), "more than 500 bytes uncompressed for each compressed byte", "  hint: "] {
            assert!(done.err.contains(says), "{compression:?}: {}", done.err);
        }
        assert!(peak > 0 && peak < 72 << 10, "{compression:?}: {peak} KiB: promised are 64 MiB and 8 a layer");
        assert_eq!(store.records(), acknowledged);
        store.ok(["verify", "-q", "good:1"]);
        store.ok(["gc", "--trash"]);
        let snapshots = store.json(["df"])["snapshots"].as_u64().unwrap();
        assert!(snapshots < 1 << 20, "{compression:?}: {snapshots} bytes are left");
        store.is_sound();
    }
}

/// An archive of an image whose one layer is a bomb of 6 GiB; the archive's path and the layer.
fn bomb(store: &Orlop, compression: Compression, media_type: &str) -> (String, Digest) {
    let mut packed = Vec::new();
    stream::bomb(compression, 6 << 30).read_to_end(&mut packed).unwrap();
    // Nobody gets so far as to compare it.
    let diff_id = DiffId::new(Digest::of(&packed));
    let layer = Digest::of(&packed);
    let put = |bytes: &[u8]| (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec());
    let platform = orlop_oci::Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": platform.os,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": orlop_oci::media_type::OCI_MANIFEST,
        "config": { "mediaType": orlop_oci::media_type::OCI_CONFIG, "digest": Digest::of(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": media_type, "digest": layer, "size": packed.len() }],
    })
    .to_string();
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": orlop_oci::media_type::OCI_MANIFEST, "digest": Digest::of(manifest.as_bytes()), "size": manifest.len(),
        "annotations": { "io.containerd.image.name": "docker.io/library/bomb:1" },
    }] })
    .to_string();
    let mut files: std::collections::BTreeMap<String, Vec<u8>> =
        [put(config.as_bytes()), put(manifest.as_bytes()), put(&packed)].into();
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    files.insert("index.json".into(), index.into_bytes());
    let file = store.path("bomb.tar");
    std::fs::write(&file, archive::archive(&files)).unwrap();
    (file.to_str().unwrap().to_owned(), layer)
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let Some(disk) = Disk::new(40) else { return };
    let store = Orlop::below(&disk.path());
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    let acknowledged = store.records();
    let done = store.run(["import", &archive_of(&store, "docker.io/library/big:1", &noise(1, 60))]);
    assert_eq!(done.code, 6, "{}", done.err);
    assert_eq!(store.records(), acknowledged);
    store.ok(["verify", "-q", "good:1"]);
    // What the failed import left goes by itself; then what fits is taken.
    for ingest in store.json(["content", "active"])["ingests"].as_array().unwrap() {
        store.ok(["content", "abort", ingest["reference"].as_str().unwrap()]);
    }
    store.ok(["gc", "--trash"]);
    store.ok(["import", &archive_of(&store, "docker.io/library/fits:1", &noise(2, 8))]);
    store.is_sound();
}

#[test]
fn a_read_only_root_is_read_and_says_why_it_is_not_written() {
    let Some(disk) = Disk::new(40) else { return };
    let store = Orlop::below(&disk.path());
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    disk.remount("ro");
    assert!(store.ok(["images"]).contains("docker.io/library/good:1"));
    store.ok(["export", "good:1", "-O", store.path("out.tar").to_str().unwrap()]);
    for args in [&["rm", "good:1"][..], &["tag", "good:1", "b:1"], &["gc"], &["leases", "create"]] {
        let done = store.run(args);
        assert_eq!(done.code, 7, "{args:?}: {}", done.err);
    }
    disk.remount("rw");
    store.ok(["tag", "good:1", "b:1"]);
    store.is_sound();
}

/// Regression: on a disk without a free block nothing worked: SQLite could not make the index of its log, and said
/// "disk I/O error", whatever the command was; so nothing could be read and nothing removed. With blocks of 1 KiB processes ended by
/// SIGBUS, since the index had holes.
#[test]
fn a_disk_without_a_free_block_is_read_and_cleaned_up() {
    for kind in SMALL {
        let Some(disk) = Disk::of(kind) else { return };
        eprintln!("on {kind:?}");
        full_disk(&disk);
    }
}

fn full_disk(disk: &Disk) {
    let store = Orlop::below(&disk.path());
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    store.ok(["import", &archive_of(&store, "docker.io/library/big:1", &noise(1, 6))]);
    let acknowledged = store.records();
    let extra = archive_of(&store, "docker.io/library/extra:1", &noise(2, 1));
    disk.fill();
    for _ in 0..20 {
        assert_eq!(store.records(), acknowledged);
    }
    store.ok(["verify", "-q", "good:1", "big:1"]);
    store.ok(["export", "good:1", "-O", store.path("out.tar").to_str().unwrap()]);
    store.is_sound();
    let done = store.run(["import", &extra]);
    assert_eq!(done.code, 6, "{}", done.err);
    assert!(done.err.contains("orlop gc --trash"), "{}", done.err);
    assert_eq!(store.records(), acknowledged);
    store.ok(["rm", "big:1"]);
    store.ok(["undo"]);
    assert_eq!(store.records(), acknowledged);
    store.ok(["rm", "big:1"]);
    store.ok(["gc", "--trash"]);
    // What the removal freed is there for others.
    store.ok(["import", &extra]);
    store.ok(["verify", "-q", "good:1", "extra:1"]);
    store.is_sound();
}

#[test]
fn a_root_that_belongs_to_somebody_else_is_not_entered() {
    if !common::is_root("a_root_that_belongs_to_somebody_else_is_not_entered") {
        return;
    }
    let store = Orlop::new();
    let file = archive_of(&store, "docker.io/library/good:1", &small());
    store.ok(["import", &file]);
    let acknowledged = store.records();
    std::fs::set_permissions(store.root(), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::set_permissions(store.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    for args in [&["images"][..], &["import", &file], &["rm", "good:1"], &["gc"], &["check"]] {
        let done = store.run_as_nobody(args);
        assert_eq!(done.code, 7, "{args:?}: {}", done.err);
        assert!(done.err.contains("hint: run as"), "{args:?}: {}", done.err);
    }
    assert_eq!(store.records(), acknowledged);
    store.is_sound();
}

#[test]
fn a_root_that_may_only_be_read_is_read() {
    if !common::is_root("a_root_that_may_only_be_read_is_read") {
        return;
    }
    let store = Orlop::new();
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    std::fs::set_permissions(store.path("."), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(store.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let done = store.run_as_nobody(&["tag", "good:1", "b:1"]);
    assert_eq!(done.code, 7, "{}", done.err);
    assert!(done.err.contains("hint: run as"), "{}", done.err);
    store.is_sound();
}

#[test]
fn a_database_that_is_none_is_said_and_left_alone() {
    let store = Orlop::new();
    std::fs::create_dir_all(store.root()).unwrap();
    std::fs::write(store.root().join("meta.db"), "this is no database at all".repeat(100)).unwrap();
    let done = store.run(["images"]);
    assert_eq!(done.code, 5, "{}", done.err);
    assert!(done.err.contains("not a database") && done.err.contains("history.log"), "{}", done.err);
    assert!(std::fs::read_to_string(store.root().join("meta.db")).unwrap().starts_with("this is no"));
}

fn tree_of(root: &Path) -> Vec<String> {
    let listed = std::process::Command::new("find").arg(root).args(["-printf", "%P %y %s %T@\\n"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Regression: a `--root` that was the wrong directory got a store put among what was there.
#[test]
fn a_root_that_is_something_else_is_refused_and_left_alone() {
    let store = Orlop::new();
    let file = archive_of(&store, "docker.io/library/good:1", &small());
    std::fs::create_dir_all(store.root().join("photos")).unwrap();
    std::fs::create_dir_all(store.root().join("content")).unwrap();
    std::fs::write(store.root().join("thesis"), "x").unwrap();
    let before = tree_of(&store.root());
    let socket = store.path("orlop.sock");
    let serve = ["serve", "--socket", socket.to_str().unwrap()];
    for args in [&["images"][..], &["import", &file], &["df"], &["gc"], &["check"], &serve] {
        let done = store.run(args);
        assert_eq!(done.code, 4, "{args:?}: {}", done.err);
        let root = store.root().display().to_string();
        for says in [&root, "meta.db", "\"photos\", \"thesis\"", "hint: give --root a directory of its own"] {
            assert!(done.err.contains(says), "{args:?}: {}", done.err);
        }
        assert_eq!(tree_of(&store.root()), before, "{args:?}");
    }
}

/// A start that was cut short, and a new file system, leave something; neither is in the way.
#[test]
fn a_root_that_was_only_begun_is_used() {
    let store = Orlop::new();
    let file = archive_of(&store, "docker.io/library/good:1", &small());
    for name in ["content/blobs", "snapshots/overlayfs", "lost+found"] {
        std::fs::create_dir_all(store.root().join(name)).unwrap();
    }
    store.ok(["import", &file]);
    // Whoever puts something beside the store later does not lose it.
    std::fs::write(store.root().join("note"), "x").unwrap();
    store.ok(["verify", "-q", "good:1"]);
    store.is_sound();
}

/// A million entries in the long tier, which says so by this variable; fewer in the short one.
#[test]
fn a_layer_of_very_many_entries_is_unpacked_or_refused() {
    let count = amount("ORLOP_TEST_ENTRIES", 20_000);
    let mut tar = Vec::new();
    stream::many_entries(count).read_to_end(&mut tar).unwrap();
    let packed = orlop_testkit::compress::zstd(&tar);
    let image = Image::host().layer(Layer::of_packed(packed, Compression::Zstd, tar));
    let store = Orlop::new();
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    store.ok(["import", &archive_of(&store, "docker.io/library/many:1", &Content::image(&image))]);
    store.ok(["verify", "-q", "good:1", "many:1"]);
    let snapshots = store.json(["inspect", "many:1"])["snapshots"].clone();
    assert!(snapshots[0]["inodes"].as_u64().is_some_and(|inodes| inodes > count), "{snapshots}");
    store.ok(["rm", "--no-trash", "many:1"]);
    store.is_sound();
}

/// A small generator of numbers, so that a failure can be repeated with its seed.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

fn killed_at_a_moment(store: &Orlop, args: &[&str], milliseconds: u64) {
    let mut child = store.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Not a wait for something: the moment of the kill is what the test varies.
    std::thread::sleep(Duration::from_millis(milliseconds));
    let _ = child.kill();
    child.wait().unwrap();
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap()
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let rounds: u64 = amount("ORLOP_TEST_KILLS", 8);
    let mut seed = 20_261_123;
    let (store, registry) = (Orlop::new(), Liar::start());
    store.ok(["import", &archive_of(&store, "docker.io/library/good:1", &small())]);
    let acknowledged = store.records();
    let content = noise(5, 4);
    let (big, pulled) = (archive_of(&store, "docker.io/library/big:1", &content), registry.put("big", "1", &content));
    let steps: [(&[&str], u64); 7] = [
        (&["pull", &pulled], 200),
        (&["import", &big], 200),
        (&["tag", "big:1", "other:1"], 60),
        (&["rm", "big:1", "other:1"], 60),
        (&["undo"], 60),
        (&["rm", "big:1"], 60),
        (&["gc", "--trash"], 60),
    ];
    for round in 0..rounds {
        for (args, longest) in &steps {
            let at = next(&mut seed) % longest;
            killed_at_a_moment(&store, args, at);
            let records = store.records();
            assert!(acknowledged.iter().all(|r| records.contains(r)), "round {round}, {args:?}, {at} ms: {records:?}");
            store.is_sound();
        }
    }
    store.ok(["import", &big]);
    store.ok(["pull", &pulled]);
    store.ok(["verify", "-q", "big:1", "good:1", &pulled]);
    let names = store.records();
    let names = names.iter().filter(|name| name.contains(':') && !name.contains("sha256:")).map(String::as_str);
    store.ok(["rm", "--no-trash"].into_iter().chain(names));
    store.ok(["gc", "--full", "--trash"]);
    store.is_sound();
    let blobs = store.root().join("content/blobs/sha256");
    assert!(!exists(&blobs) || std::fs::read_dir(&blobs).unwrap().next().is_none(), "nothing is left");
}

#[test]
fn two_commands_at_once_on_one_root_both_succeed() {
    let store = Orlop::new();
    let files: Vec<String> =
        (0..4).map(|n| archive_of(&store, &format!("docker.io/library/n{n}:1"), &noise(n % 2, 1))).collect();
    let children: Vec<_> = files
        .iter()
        .map(|file| store.command(["import", file]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let images = store.json(["images"]);
    assert_eq!(images["images"].as_array().unwrap().len(), 2, "four names, two images");
    store.is_sound();
}
