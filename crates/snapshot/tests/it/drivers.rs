//! What the drivers keep on disk and how they say to mount it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::common;
use crate::common::{Tar, describe, is_root};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{
    Driver, Error, Meta, NativeDriver, OverlayDriver, SnapshotId, TempMount, mount_all, remove_tree, unmount,
};

fn meta(kind: &str, parent: Option<u64>) -> Meta {
    let labels = [("a".to_owned(), "b".to_owned())].into();
    Meta { namespace: "n".into(), key: "k".into(), kind: kind.into(), parent, labels }
}

fn drivers(root: &Path) -> [Box<dyn Driver>; 2] {
    let overlay = OverlayDriver::open(root.join("overlayfs")).unwrap();
    [Box::new(overlay), Box::new(NativeDriver::open(root.join("native")).unwrap())]
}

/// A committed snapshot with one file more than its parents.
fn layer(driver: &dyn Driver, id: u64, parents: &[SnapshotId], tar: &Tar) -> SnapshotId {
    let id = SnapshotId(id);
    driver.create(id, parents, &meta("active", parents.first().map(|p| p.0))).unwrap();
    apply(&tar.end()[..], &driver.apply_target(id), &Options::default()).unwrap();
    driver.commit(id, parents, &meta("committed", parents.first().map(|p| p.0))).unwrap();
    id
}

#[test]
fn mounts_are_containerds() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    let [overlay, native] = drivers(&root);
    let dir =
        |driver: &dyn Driver, id: u64, name: &str| driver.root().join(id.to_string()).join(name).display().to_string();
    let ids = [3, 2, 1].map(SnapshotId);
    let options = |driver: &dyn Driver, parents: &[SnapshotId], writable| {
        let [mount]: [_; 1] = driver.mounts(SnapshotId(9), parents, writable).unwrap().try_into().unwrap();
        (mount.kind, mount.source, mount.options)
    };
    let bind = |source, access: &str| ("bind".to_owned(), source, vec![access.to_owned(), "rbind".to_owned()]);

    assert_eq!(options(&*overlay, &[], true), bind(dir(&*overlay, 9, "fs"), "rw"));
    assert_eq!(options(&*overlay, &[], false), bind(dir(&*overlay, 9, "fs"), "ro"));
    assert_eq!(options(&*overlay, &ids[..1], false), bind(dir(&*overlay, 3, "fs"), "ro"));
    let lower = format!("lowerdir={}:{}:{}", dir(&*overlay, 3, "fs"), dir(&*overlay, 2, "fs"), dir(&*overlay, 1, "fs"));
    let own = |given: Vec<String>| given.into_iter().filter(|o| o.contains("dir=")).collect::<Vec<_>>();
    let (kind, source, given) = options(&*overlay, &ids, true);
    assert_eq!((kind.as_str(), source.as_str()), ("overlay", "overlay"));
    let upper = [format!("workdir={}", dir(&*overlay, 9, "work")), format!("upperdir={}", dir(&*overlay, 9, "fs"))];
    assert_eq!(own(given), [&upper[..], std::slice::from_ref(&lower)].concat());
    assert_eq!(own(options(&*overlay, &ids, false).2), [lower]);

    assert_eq!(options(&*native, &ids, true), bind(dir(&*native, 9, "fs"), "rw"));
    assert_eq!(options(&*native, &ids, false), bind(dir(&*native, 3, "fs"), "ro"));
}

#[test]
fn snapshots_are_listed_with_what_rebuilds_their_rows() {
    let root = tempfile::tempdir().unwrap();
    for driver in drivers(root.path()) {
        let base = layer(&*driver, 1, &[], Tar::default().file("f", "x"));
        driver.create(SnapshotId(2), &[base], &meta("active", Some(1))).unwrap();
        assert!(matches!(driver.create(base, &[], &meta("active", None)), Err(Error::Io { .. })), "never over another");
        fs::create_dir(driver.root().join("3")).unwrap();
        fs::write(driver.root().join("stray"), "").unwrap();
        let listed = driver.list().unwrap();
        assert_eq!(
            listed,
            [
                (SnapshotId(1), Some(meta("committed", None))),
                (SnapshotId(2), Some(meta("active", Some(1)))),
                (SnapshotId(3), None),
            ]
        );
        assert_eq!(fs::metadata(driver.root()).unwrap().mode() & 0o777, 0o700);
    }
}

#[test]
fn usage_counts_blocks_once_for_each_file() {
    let root = tempfile::tempdir().unwrap();
    for driver in drivers(root.path()) {
        let id = layer(&*driver, 1, &[], Tar::default().file("f", &"x".repeat(100_000)).link("g", "f").dir("d", 0o755));
        let tree = driver.apply_target(id).root;
        let expected: u64 =
            ["", "f", "d"].map(|name| fs::metadata(tree.join(name)).unwrap().blocks() * 512).iter().sum();
        let usage = driver.usage(id).unwrap();
        assert_eq!((usage.inodes, usage.bytes), (3, expected));
        assert!(usage.bytes >= 100_000);
    }
}

#[test]
fn the_root_takes_its_attributes_from_below() {
    if !is_root("the_root_takes_its_attributes_from_below") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for driver in drivers(root.path()) {
        let base = layer(&*driver, 1, &[], Tar::default().file("f", "x"));
        let tree = |id| driver.apply_target(id).root;
        fs::set_permissions(tree(base), fs::Permissions::from_mode(0o1751)).unwrap();
        std::os::unix::fs::chown(tree(base), Some(5), Some(6)).unwrap();
        driver.create(SnapshotId(2), &[base], &meta("active", Some(1))).unwrap();
        let stat = fs::metadata(tree(SnapshotId(2))).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o1751, 5, 6), "{}", driver.name());
        if driver.supports_rebase() {
            driver.create(SnapshotId(3), &[], &meta("active", None)).unwrap();
            driver.commit(SnapshotId(3), &[base], &meta("committed", Some(1))).unwrap();
            assert_eq!(fs::metadata(tree(SnapshotId(3))).unwrap().mode() & 0o7777, 0o1751);
        }
    }
}

#[test]
fn removing_goes_to_the_trash_and_back_or_for_good() {
    let root = tempfile::tempdir().unwrap();
    let trash = root.path().join("trash/1");
    for driver in drivers(root.path()) {
        let id = layer(&*driver, 1, &[], Tar::default().file("f", "x"));
        driver.remove(id, Some(&trash)).unwrap();
        assert!(trash.join("1/fs/f").exists() && driver.list().unwrap().is_empty());
        driver.remove(id, Some(&trash)).unwrap();
        driver.restore(id, &trash).unwrap();
        assert_eq!(driver.list().unwrap(), [(id, Some(meta("committed", None)))]);
        driver.remove(id, None).unwrap();
        driver.remove(id, None).unwrap();
        assert!(driver.list().unwrap().is_empty());
    }
}

#[test]
fn awkward_trees_are_copied_and_removed() {
    let root = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(root.path().join("native")).unwrap();
    let mut tar = Tar::default();
    tar.file(&"d/".repeat(2000), "").dir("closed", 0).file("closed/f", "x").link("closed/g", "closed/f");
    let base = layer(&driver, 1, &[], &tar);
    driver.create(SnapshotId(2), &[base], &meta("active", Some(1))).unwrap();
    // Deeper than any path can name.
    let mut here = driver.apply_target(base).root.join("d");
    for _ in 0..3 {
        here = here.join("e".repeat(200));
        fs::create_dir(&here).unwrap();
    }
    assert!(driver.usage(SnapshotId(2)).unwrap().inodes > 2000);
    for id in [base, SnapshotId(2)] {
        driver.remove(id, None).unwrap();
        assert!(!driver.apply_target(id).root.exists());
    }
}

#[test]
fn immutable_files_are_removed() {
    if !is_root("immutable_files_are_removed") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::write(tree.join("d/f"), "x").unwrap();
    for name in ["d/f", "d"] {
        let file = fs::File::open(tree.join(name)).unwrap();
        if let Err(error) = rustix::fs::ioctl_setflags(&file, rustix::fs::IFlags::IMMUTABLE) {
            println!("immutable_files_are_removed: skipped, {error}");
            return;
        }
    }
    remove_tree(&tree).unwrap();
    assert!(!tree.exists());
    remove_tree(&tree).unwrap();
}

#[test]
fn copies_keep_everything() {
    let root = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(root.path().join("native")).unwrap();
    let mut tar = Tar::default();
    tar.dir("d", 0o2711).file("d/f", "x").link("d/g", "d/f").symlink("s", "d/f").file("z", &"0".repeat(300_000));
    tar.entry(tar_core::EntryType::Fifo, "p", "", &common::mode(0o620), b"");
    let base = layer(&driver, 1, &[], &tar);
    let sparse = fs::File::create(driver.apply_target(base).root.join("hole")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    driver.create(SnapshotId(2), &[base], &meta("active", Some(1))).unwrap();
    let copy = driver.apply_target(SnapshotId(2)).root;
    assert_eq!(describe(&copy), describe(&driver.apply_target(base).root));
    assert_eq!(fs::metadata(copy.join("hole")).unwrap().blocks(), 0);
}

#[test]
fn a_hundred_layers_mount_and_the_guard_cleans_up() {
    if !is_root("a_hundred_layers_mount_and_the_guard_cleans_up") {
        return;
    }
    // A long directory name, so that the options exceed a page many times over.
    let root = tempfile::tempdir().unwrap();
    let store = root.path().join("a-rather-long-directory-name".repeat(4)).join("overlayfs");
    let driver = OverlayDriver::open(&store).unwrap();
    OverlayDriver::probe(root.path()).unwrap();
    let mut chain: Vec<SnapshotId> = Vec::new();
    for number in 1..=100 {
        let tar = Tar::default().file(&format!("f{number}"), "x").file(&format!(".wh.f{}", number - 1), "").clone();
        let id = layer(&driver, number, &chain, &tar);
        chain.insert(0, id);
    }
    let top = SnapshotId(1000);
    driver.create(top, &chain, &meta("active", Some(100))).unwrap();
    for writable in [true, false] {
        let mounts = driver.mounts(top, &chain, writable).unwrap();
        let mounted = TempMount::new(&mounts, root.path()).unwrap();
        let path: PathBuf = mounted.path().to_owned();
        assert_eq!(describe(&path).into_keys().collect::<Vec<_>>(), ["f100"]);
        assert_eq!(fs::write(path.join("new"), "x").is_ok(), writable);
        let _ = fs::remove_file(path.join("new"));
        drop(mounted);
        assert!(!path.exists());
    }
}

#[test]
fn bind_mounts_are_read_only_when_asked() {
    if !is_root("bind_mounts_are_read_only_when_asked") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let driver = OverlayDriver::open(root.path().join("overlayfs")).unwrap();
    let base = layer(&driver, 1, &[], Tar::default().file("f", "x"));
    let target = root.path().join("mounted");
    fs::create_dir(&target).unwrap();
    mount_all(&driver.mounts(SnapshotId(2), &[base], false).unwrap(), &target).unwrap();
    let written = fs::write(target.join("g"), "");
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    unmount(&target).unwrap();
    mount_all(&driver.mounts(base, &[], true).unwrap(), &target).unwrap();
    fs::write(target.join("g"), "").unwrap();
    unmount(&target).unwrap();
    let unknown = orlop_snapshot::Mount { kind: "erofs".into(), source: String::new(), options: Vec::new() };
    assert!(matches!(mount_all(&[unknown], &target), Err(Error::Unsupported { .. })));
}

#[test]
fn roots_that_mount_options_cannot_name_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a:b", "a,b", "a\\b"] {
        let error = OverlayDriver::open(root.path().join(name)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}
