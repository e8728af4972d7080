//! Trees that are taken over from another place, and given to one: the same trees, whose files are not copied.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Tar, is_root};
use orlop_snapshot::apply::{Limits, Options, apply};
use orlop_snapshot::{Driver, Meta, OverlayDriver, SnapshotId, linked};
use orlop_testkit::disk::{Disk, FILE_SYSTEMS};
use orlop_testkit::fingerprint::{self, Fingerprint};

fn meta(kind: &str, parent: Option<u64>) -> Meta {
    Meta { namespace: "test".into(), key: "key".into(), kind: kind.into(), parent, labels: Default::default() }
}

fn layer() -> Tar {
    let mut tar = Tar::default();
    tar.dir("etc", 0o750).file("etc/kept", "kept").link("etc/twin", "etc/kept").symlink("etc/link", "kept");
    tar.file("etc/empty", "").dir("big", 0o755).file("big/file", &"content ".repeat(40_000));
    tar.dir("hides", 0o755).file("hides/.wh..wh..opq", "").file(".wh.gone", "");
    tar
}

/// A tree as another store has it: made by the driver, in a directory of its own.
fn theirs(directory: &Path) -> std::path::PathBuf {
    let driver = OverlayDriver::open(directory.join("theirs")).unwrap();
    driver.create(SnapshotId(1), &[], &meta("active", None)).unwrap();
    let target = driver.apply_target(SnapshotId(1));
    apply(&layer().end()[..], &target, &Options::default()).unwrap();
    driver.commit(SnapshotId(1), &[], &meta("committed", None)).unwrap();
    target.root
}

fn seen(tree: &Path) -> Fingerprint {
    Fingerprint::of(tree, &fingerprint::Options::default()).unwrap()
}

fn everywhere(test: impl Fn(&Path)) {
    if !is_root("linked") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    test(directory.path());
    if let Some(disk) = FILE_SYSTEMS.last().and_then(Disk::of) {
        test(&disk.path());
    }
}

#[test]
fn a_tree_is_taken_over_as_it_is_and_counts_for_nothing_until_the_other_place_is_gone() {
    everywhere(|directory| {
        let source = theirs(directory);
        let before = seen(&source);
        let driver = OverlayDriver::open(directory.join("own")).unwrap();
        driver.create(SnapshotId(7), &[], &meta("active", None)).unwrap();
        let taken = driver.take_in(SnapshotId(7), &source).unwrap();
        assert_eq!(taken.files, 3, "kept, empty, file: one inode each");
        let usage = driver.commit(SnapshotId(7), &[], &meta("committed", None)).unwrap();
        let own = driver.apply_target(SnapshotId(7)).root;
        seen(&own).assert_same(&before, "the tree");
        seen(&source).assert_same(&before, "where it came from");
        let inode = |tree: &Path| fs::metadata(tree.join("big/file")).unwrap().ino();
        assert_eq!(inode(&own) == inode(&source), taken.cloned == 0);
        assert!(usage.bytes >= 320_000, "{usage:?}: it is its own when the other is gone");
        let elsewhere = driver.elsewhere(SnapshotId(7)).unwrap();
        assert!((320_000..=taken.bytes).contains(&elsewhere), "{elsewhere} of {taken:?}: each inode once");
        assert_eq!(driver.compare(SnapshotId(7)).unwrap().map(drop), None, "nobody hashed it");
        fs::remove_dir_all(&source).unwrap();
        // XFS lets go of the extents of files that are removed in its own time.
        let deadline = Instant::now() + Duration::from_secs(60);
        while driver.elsewhere(SnapshotId(7)).unwrap() > 0 {
            assert!(Instant::now() < deadline, "{} bytes", driver.elsewhere(SnapshotId(7)).unwrap());
            rustix::fs::statvfs(directory).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        seen(&own).assert_same(&before, "the tree without the other");
    });
}

#[test]
fn a_tree_is_given_to_a_directory() {
    everywhere(|directory| {
        let source = theirs(directory);
        let driver = OverlayDriver::open(directory.join("theirs")).unwrap();
        let to = directory.join("upper");
        fs::create_dir(&to).unwrap();
        assert_eq!(driver.elsewhere(SnapshotId(1)).unwrap(), 0);
        driver.give(SnapshotId(1), &to).unwrap();
        seen(&to).assert_same(&seen(&source), "what was given");
        assert!(driver.elsewhere(SnapshotId(1)).unwrap() >= 320_000);
        // What is not empty is not mixed.
        assert!(driver.give(SnapshotId(1), &to).is_err());
    });
}

#[test]
fn files_that_are_not_as_long_as_the_layer_says_are_found() {
    everywhere(|directory| {
        let source = theirs(directory);
        let compare = || linked::differing(&layer().end()[..], &source, &Limits::default()).unwrap();
        assert_eq!(compare(), []);
        fs::File::options().write(true).open(source.join("etc/kept")).unwrap().set_len(0).unwrap();
        fs::write(source.join("etc/empty"), "not any more").unwrap();
        let found: Vec<_> =
            compare().into_iter().map(|(path, said, is)| (path.display().to_string(), said, is)).collect();
        assert_eq!(found, [("etc/empty".to_owned(), 0, 12), ("etc/kept".to_owned(), 4, 0)]);
        // What lies behind a link is no file of the layer.
        fs::rename(source.join("etc"), source.join("moved")).unwrap();
        symlink("moved", source.join("etc")).unwrap();
        assert_eq!(compare(), []);
    });
}

#[test]
fn a_link_in_the_place_of_a_tree_is_not_followed() {
    everywhere(|directory| {
        let driver = OverlayDriver::open(directory.join("own")).unwrap();
        driver.create(SnapshotId(1), &[], &meta("active", None)).unwrap();
        let link = directory.join("link");
        symlink("/etc", &link).unwrap();
        assert!(driver.take_in(SnapshotId(1), &link).is_err());
        assert_eq!(fs::read_dir(driver.apply_target(SnapshotId(1)).root).unwrap().count(), 0);
    });
}

#[test]
fn what_cannot_have_names_there_is_told() {
    let here = tempfile::tempdir().unwrap();
    assert_eq!(linked::reach(here.path(), &here.path().join("not/there/yet")), Ok(()));
    let told = linked::reach(here.path(), Path::new("/proc")).unwrap_err();
    assert!(told.contains("different file systems"), "{told}");
}
