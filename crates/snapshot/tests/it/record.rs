//! What was recorded of a tree at its commit: every later change of it is found, and nothing else is called one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, chown, symlink};
use std::path::Path;

use crate::common::{Tar, is_root};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{Compared, Driver, Meta, NativeDriver, OverlayDriver, SnapshotId};

fn meta(kind: &str, parent: Option<u64>) -> Meta {
    Meta { namespace: "test".into(), key: "key".into(), kind: kind.into(), parent, labels: Default::default() }
}

/// Both drivers, in directories of their own.
fn drivers(dir: &Path) -> [Box<dyn Driver>; 2] {
    [
        Box::new(OverlayDriver::open(dir.join("overlayfs")).unwrap()),
        Box::new(NativeDriver::open(dir.join("native")).unwrap()),
    ]
}

fn layer() -> Tar {
    let mut tar = Tar::default();
    tar.dir("etc", 0o755).file("etc/passwd", "root:x:0:0").file("etc/empty", "");
    tar.dir("bin", 0o755).file("bin/tool", &"program ".repeat(300_000)).link("bin/other", "bin/tool");
    tar.symlink("bin/sh", "tool").file("etc/twice", "first").file("etc/twice", "again").file("bin.d", "beside");
    tar.dir("gone", 0o755).file("gone/file", "soon").file(".wh.gone", "");
    tar.dir("deep", 0o700).dir("deep/er", 0o755).file("deep/er/file", "down here");
    tar
}

/// Makes, fills and commits a snapshot; `before_commit` may do more to its tree.
fn commit(driver: &dyn Driver, id: u64, parents: &[SnapshotId], tar: &Tar, before_commit: impl Fn(&Path)) {
    let id = SnapshotId(id);
    let parent = parents.first().map(|parent| parent.0);
    driver.create(id, parents, &meta("active", parent)).unwrap();
    let target = driver.apply_target(id);
    apply(&tar.end()[..], &target, &Options::default()).unwrap();
    before_commit(&target.root);
    driver.commit(id, parents, &meta("committed", parent)).unwrap();
}

fn compared(driver: &dyn Driver, id: u64) -> Compared {
    let mut comparison = driver.compare(SnapshotId(id)).unwrap().expect("it was recorded");
    while comparison.step().unwrap().is_some() {}
    comparison.compared().clone()
}

/// Does something to a tree, and what is found then: the fault, the path, and how the detail begins.
type Damage = (fn(&Path), &'static str, &'static str, &'static str);

const DAMAGES: [Damage; 17] = [
    (|t| flip(&t.join("etc/passwd"), 3), "damaged", "etc/passwd", "its bytes hash to blake3:"),
    (|t| flip(&t.join("bin/tool"), 2_399_999), "damaged", "bin/other", "its bytes hash to blake3:"),
    (|t| fs::write(t.join("etc/passwd"), "").unwrap(), "damaged", "etc/passwd", "expected 10 bytes, found 0"),
    (|t| fs::write(t.join("etc/twice"), "first").unwrap(), "damaged", "etc/twice", "its bytes hash to blake3:"),
    (|t| fs::write(t.join("etc/empty"), "x").unwrap(), "damaged", "etc/empty", "expected 0 bytes, found 1"),
    (|t| fs::remove_file(t.join("etc/passwd")).unwrap(), "damaged", "etc/passwd", "it is gone"),
    (|t| fs::remove_file(t.join("bin.d")).unwrap(), "damaged", "bin.d", "it is gone"),
    (|t| fs::write(t.join("etc/new"), "x").unwrap(), "damaged", "etc/new", "it was not there"),
    (|t| fs::create_dir_all(t.join("more/below")).unwrap(), "damaged", "more", "it was not there"),
    (|t| fs::remove_dir_all(t.join("deep")).unwrap(), "damaged", "deep", "it is gone"),
    (
        |t| {
            fs::remove_dir_all(t.join("deep")).unwrap();
            fs::write(t.join("deep"), "").unwrap();
        },
        "damaged",
        "deep",
        "something else is in its place",
    ),
    (
        |t| {
            fs::remove_file(t.join("etc/passwd")).unwrap();
            symlink("/etc/passwd", t.join("etc/passwd")).unwrap();
        },
        "damaged",
        "etc/passwd",
        "something else is in its place",
    ),
    (
        |t| {
            fs::remove_file(t.join("bin/sh")).unwrap();
            symlink("loot", t.join("bin/sh")).unwrap();
        },
        "damaged",
        "bin/sh",
        "it is a link to something else",
    ),
    (|t| mode(&t.join("bin/tool"), 0o4755), "damaged", "bin/other", "its mode is 4755, expected 0644"),
    (|t| mode(&t.join("deep"), 0o755), "damaged", "deep", "its mode is 0755, expected 0700"),
    (|t| chown(t.join("etc"), Some(7), Some(8)).unwrap(), "damaged", "etc", "it belongs to 7:8, expected 0:0"),
    (|t| fs::remove_dir_all(t).unwrap(), "missing", "", "its tree "),
];

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn every_change_of_a_committed_tree_is_found() {
    if !is_root("every_change_of_a_committed_tree_is_found") {
        return;
    }
    for (at, (damage, fault, path, detail)) in DAMAGES.iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        for driver in drivers(dir.path()) {
            commit(&*driver, 1, &[], &layer(), |_| {});
            let sound = compared(&*driver, 1);
            assert_eq!((sound.fault(), sound.detail()), (None, String::new()), "{}", driver.name());
            assert_eq!(sound.bytes, 2_400_000 + 10 + 5 + 6 + 9, "each file is read, one with two names once");
            damage(&driver.apply_target(SnapshotId(1)).root);
            let found = compared(&*driver, 1);
            let name = format!("damage {at} of {}: {found:?}", driver.name());
            assert_eq!(found.fault(), Some(*fault), "{name}");
            let first = &found.differences[0];
            assert!(first.path == *path && first.detail.starts_with(detail), "{name}");
            let twice = if path.starts_with("bin/o") { 2 } else { 1 };
            assert_eq!(found.differing, twice, "{name}");
        }
    }
}

/// A record that the disk has changed says so, and one that is not there claims nothing.
#[test]
fn a_record_that_does_not_check_is_damage_and_none_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for driver in drivers(dir.path()) {
        let mut tar = Tar::default();
        tar.file("a", "content");
        commit(&*driver, 1, &[], &tar, |_| {});
        let record = driver.root().join("1/digests");
        assert!(!driver.root().join("1/applied").exists(), "the commit has used it");
        flip(&record, 20);
        let found = compared(&*driver, 1);
        assert!(found.detail().starts_with("its record does not check"), "{found:?}");
        fs::remove_file(&record).unwrap();
        assert!(driver.compare(SnapshotId(1)).unwrap().is_none());
    }
}

/// A snapshot that no layer was applied to, such as a container's, is not recorded.
#[test]
fn what_no_layer_was_applied_to_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    for driver in drivers(dir.path()) {
        driver.create(SnapshotId(1), &[], &meta("active", None)).unwrap();
        fs::write(driver.apply_target(SnapshotId(1)).root.join("file"), "a client's").unwrap();
        driver.commit(SnapshotId(1), &[], &meta("committed", None)).unwrap();
        assert!(driver.compare(SnapshotId(1)).unwrap().is_none());
    }
}

/// Regression: a commit that was made again, since what followed it had failed, lost the record: nothing was found out of that tree any
/// more. What a client changes between the two is the tree.
#[test]
fn a_commit_that_is_made_again_keeps_what_is_still_true() {
    let dir = tempfile::tempdir().unwrap();
    for driver in drivers(dir.path()) {
        commit(&*driver, 1, &[], &layer(), |_| {});
        let again = || driver.commit(SnapshotId(1), &[], &meta("committed", None)).unwrap();
        again();
        assert_eq!(compared(&*driver, 1).detail(), "", "{}", driver.name());
        flip(&driver.apply_target(SnapshotId(1)).root.join("etc/passwd"), 0);
        assert_eq!(compared(&*driver, 1).differing, 1);
        again();
        assert!(driver.compare(SnapshotId(1)).unwrap().is_none());
    }
}

/// What a client does to a tree after a layer was applied, and before the commit, is the tree; even if it hides what it did.
#[test]
fn what_a_client_writes_before_the_commit_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    for driver in drivers(dir.path()) {
        commit(&*driver, 1, &[], &layer(), |tree| {
            let file = tree.join("etc/passwd");
            let before = fs::metadata(&file).unwrap();
            fs::write(&file, "ROOT:x:0:0").unwrap();
            fs::File::open(&file).unwrap().set_modified(before.modified().unwrap()).unwrap();
            assert_eq!(fs::metadata(&file).unwrap().mtime(), before.mtime());
            fs::write(tree.join("etc/own"), "new").unwrap();
            fs::remove_file(tree.join("etc/twice")).unwrap();
        });
        assert_eq!(compared(&*driver, 1).detail(), "", "{}", driver.name());
        flip(&driver.apply_target(SnapshotId(1)).root.join("etc/own"), 0);
        flip(&driver.apply_target(SnapshotId(1)).root.join("etc/passwd"), 0);
        assert_eq!(compared(&*driver, 1).differing, 2);
    }
}

/// A hard link into a lower layer is a copy of the file here, and has its digest here; a second layer of the same tree adds to it.
#[test]
fn files_that_come_from_below_are_recorded_too() {
    if !is_root("files_that_come_from_below_are_recorded_too") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for driver in drivers(dir.path()) {
        commit(&*driver, 1, &[], &layer(), |_| {});
        let mut upper = Tar::default();
        upper.link("etc/linked", "etc/passwd");
        commit(&*driver, 2, &[SnapshotId(1)], &upper, |_| {
            let mut again = Tar::default();
            again.file("etc/more", "more");
            apply(&again.end()[..], &driver.apply_target(SnapshotId(2)), &Options::default()).unwrap();
        });
        assert_eq!(compared(&*driver, 2).detail(), "", "{}", driver.name());
        for file in ["etc/linked", "etc/more"] {
            flip(&driver.apply_target(SnapshotId(2)).root.join(file), 1);
            let found = compared(&*driver, 2);
            assert!(found.differences.iter().any(|one| one.path == file), "{found:?}");
        }
        assert_eq!(compared(&*driver, 1).detail(), "", "the lower one is another");
    }
}

/// Of many differences the first are told, and how many there are.
#[test]
fn long_lists_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(dir.path().join("native")).unwrap();
    let mut tar = Tar::default();
    for n in 0..50 {
        tar.file(&format!("{n}"), "x");
    }
    commit(&driver, 1, &[], &tar, |_| {});
    (0..50).for_each(|n| fs::remove_file(driver.apply_target(SnapshotId(1)).root.join(n.to_string())).unwrap());
    let found = compared(&driver, 1);
    assert_eq!((found.differing, found.differences.len()), (50, 20));
    assert_eq!(found.detail(), "0: it is gone; 1: it is gone; 10: it is gone; and 47 more");
}
