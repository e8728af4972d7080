//! Layers made from trees: applied to the lower tree they give the upper one.

use std::fs;
use std::path::Path;

use crate::common::{Meta, Tar, apply_all, cases, describe, is_root, mode, target};
use orlop_oci::{Compression, Digest};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::diff::{diff, diff_tree};
use orlop_snapshot::{ApplyTarget, Driver as _, Error, OverlayDriver, SnapshotId, Whiteouts};
use proptest::prelude::*;
use tar_core::EntryType;

const PACKINGS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn tree(layers: &[&Tar]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    apply_all(layers, root.path()).unwrap();
    root
}

/// Applies what `diff` makes of the two trees onto a copy of the lower one.
fn assert_round_trip(lower_layers: &[&Tar], upper: &Path, compression: Compression) {
    let lower = tree(lower_layers);
    let mut layer = Vec::new();
    let made = diff(Some(lower.path()), upper, &mut layer, compression).unwrap();
    assert_eq!((&made.digest, made.bytes), (&Digest::of(&layer), layer.len() as u64));
    let again = tree(lower_layers);
    let applied = apply(&layer[..], &target(again.path()), &Options::default()).unwrap();
    assert_eq!((applied.diff_id, applied.tar_bytes), (made.diff_id, made.tar_bytes));
    assert_eq!(describe(again.path()), describe(upper));
}

fn lower() -> Tar {
    let mut tar = Tar::default();
    let attributes = Meta { mode: 0o2750, pax: vec![("SCHILY.xattr.user.a".into(), b"1".to_vec())], ..Meta::default() };
    tar.entry(EntryType::Directory, "d", "", &attributes, b"");
    tar.file("d/same", "same").file("d/content", "before").file("d/gone", "x").file("d/kind", "x");
    tar.dir("gone", 0o755).file("gone/too", "").dir("kind", 0o755).file("kind/below", "");
    tar.file("one", "linked").link("two", "one").link("three", "one").symlink("s", "d/same");
    tar
}

#[test]
fn changes_of_every_kind_survive_a_round_trip() {
    let mut changes = Tar::default();
    let nanos = Meta {
        mode: 0o4711,
        pax: vec![("mtime".into(), b"1700000001.000000007".to_vec()), ("SCHILY.xattr.user.b".into(), vec![0, 255, 10])],
        ..Meta::default()
    };
    changes.entry(EntryType::Regular, "d/nanos", "", &nanos, b"n");
    changes.file("d/content", "after!").file("d/.wh.gone", "").file(".wh.gone", "");
    changes.dir("d/kind", 0o700).file("kind", "now a file").symlink("s", "elsewhere");
    changes.file(".wh.two", "").file("two", "alone now").link("four", "one");
    changes.entry(EntryType::Fifo, "pipe", "", &mode(0o600), b"");
    let deep = "long-directory-name/".repeat(12);
    changes.file(&format!("{deep}file"), "deep").link("short", &format!("{deep}file"));
    changes.symlink("far", &deep);
    let upper = tree(&[&lower(), &changes]);
    for compression in PACKINGS {
        assert_round_trip(&[&lower()], upper.path(), compression);
    }
}

#[test]
fn a_tree_without_changes_makes_an_empty_layer() {
    let (a, b) = (tree(&[&lower()]), tree(&[&lower()]));
    let mut layer = Vec::new();
    diff(Some(a.path()), b.path(), &mut layer, Compression::None).unwrap();
    assert_eq!(layer, [0; 1024]);
}

#[test]
fn the_same_trees_make_the_same_bytes() {
    let upper = tree(&[&lower()]);
    for compression in PACKINGS {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        diff(None, upper.path(), &mut first, compression).unwrap();
        diff(None, tree(&[&lower()]).path(), &mut second, compression).unwrap();
        assert_eq!(first, second);
        assert_round_trip(&[], upper.path(), compression);
    }
}

#[test]
fn names_that_would_delete_are_refused() {
    let upper = tempfile::tempdir().unwrap();
    fs::write(upper.path().join(".wh.x"), "").unwrap();
    let error = diff(None, upper.path(), std::io::sink(), Compression::None).unwrap_err();
    assert!(matches!(error, Error::Hostile { entry, .. } if entry == ".wh.x"));
}

#[test]
fn an_upper_directory_makes_a_layer_by_itself() {
    if !is_root("an_upper_directory_makes_a_layer_by_itself") {
        return;
    }
    let mut upper = Tar::default();
    upper.dir("d", 0o711).file("d/.wh.gone", "").file("d/.wh..wh..opq", "").file("d/new", "n").file(".wh.s", "");
    let root = tempfile::tempdir().unwrap();
    let overlay = ApplyTarget {
        root: root.path().to_owned(),
        whiteouts: Whiteouts::Overlay { userxattr: false },
        deferred: None,
        applied: None,
        image: None,
    };
    apply(&upper.end()[..], &overlay, &Options::default()).unwrap();
    let mut layer = Vec::new();
    diff_tree(&overlay, &mut layer, Compression::Zstd).unwrap();

    let expected = tree(&[&lower(), &upper]);
    let found = tree(&[&lower()]);
    apply(&layer[..], &target(found.path()), &Options::default()).unwrap();
    assert_eq!(describe(found.path()), describe(expected.path()));
}

#[test]
fn a_write_error_is_reported() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let upper = tree(&[&lower()]);
    let error = diff(None, upper.path(), Full, Compression::None).unwrap_err();
    assert!(matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
}

#[test]
fn what_a_container_changed_through_a_mount_is_found() {
    if !is_root("what_a_container_changed_through_a_mount_is_found") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let driver = OverlayDriver::open(root.path().join("overlayfs")).unwrap();
    let meta = |kind: &str| orlop_snapshot::Meta {
        namespace: "n".into(),
        key: "k".into(),
        kind: kind.into(),
        parent: None,
        labels: Default::default(),
    };
    let (base, container, view) = (SnapshotId(1), SnapshotId(2), SnapshotId(3));
    driver.create(base, &[], &meta("active")).unwrap();
    apply(&lower().end()[..], &driver.apply_target(base), &Options::default()).unwrap();
    driver.commit(base, &[], &meta("committed")).unwrap();
    driver.create(container, &[base], &meta("active")).unwrap();
    driver.create(view, &[base], &meta("view")).unwrap();
    let mount = |id, writable| {
        orlop_snapshot::TempMount::new(&driver.mounts(id, &[base], writable).unwrap(), root.path()).unwrap()
    };
    let (changed, before) = (mount(container, true), mount(view, false));
    fs::remove_dir_all(changed.path().join("d")).unwrap();
    fs::create_dir(changed.path().join("d")).unwrap();
    fs::write(changed.path().join("d/only"), "x").unwrap();
    fs::rename(changed.path().join("s"), changed.path().join("t")).unwrap();
    fs::write(changed.path().join("one"), "changed").unwrap();
    let mut layer = Vec::new();
    diff(Some(before.path()), changed.path(), &mut layer, Compression::Gzip).unwrap();
    let found = tree(&[&lower()]);
    apply(&layer[..], &target(found.path()), &Options::default()).unwrap();
    assert_eq!(describe(found.path()), describe(changed.path()));
}

#[derive(Debug, Clone)]
enum Op {
    Dir(String),
    File(String, u8, u64),
    Link(String, String),
    Symlink(String, String),
    Remove(String),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path =
        || prop::collection::vec(prop::sample::select(vec!["a", "b", "c.d", "é"]), 1..4).prop_map(|n| n.join("/"));
    let op = prop_oneof![
        path().prop_map(Op::Dir),
        (path(), any::<u8>(), 1..3u64).prop_map(|(p, c, t)| Op::File(p, c, t)),
        (path(), path()).prop_map(|(p, t)| Op::Link(p, t)),
        (path(), path()).prop_map(|(p, t)| Op::Symlink(p, t)),
        path().prop_map(Op::Remove),
    ];
    prop::collection::vec(op, 0..12)
}

/// Applies each operation as a layer of its own, leaving out those that fail.
fn run(ops: &[Op], root: &Path) {
    for op in ops {
        let mut tar = Tar::default();
        match op {
            Op::Dir(path) => tar.dir(path, 0o750),
            Op::File(path, content, mtime) => {
                tar.entry(EntryType::Regular, path, "", &Meta { mtime: *mtime, ..Meta::default() }, &[*content])
            }
            Op::Link(path, to) => tar.link(path, to),
            Op::Symlink(path, to) => tar.symlink(path, to),
            Op::Remove(path) => {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                tar.file(format!("{dir}/.wh.{name}").trim_start_matches('/'), "")
            }
        };
        let _ = apply(&tar.end()[..], &target(root), &Options::default());
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn any_two_trees_survive_a_round_trip(before in ops(), after in ops()) {
        let (lower, upper, again) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(&before, lower.path());
        run(&before, again.path());
        run(&before, upper.path());
        run(&after, upper.path());
        let mut layer = Vec::new();
        diff(Some(lower.path()), upper.path(), &mut layer, Compression::None).unwrap();
        apply(&layer[..], &target(again.path()), &Options::default()).unwrap();
        prop_assert_eq!(describe(again.path()), describe(upper.path()));
    }
}
