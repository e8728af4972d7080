//! Full disks and power cuts.

use std::path::Path;

use crate::common::{Tar, describe};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{Driver, Error, Meta, NativeDriver, OverlayDriver, SnapshotId};
use orlop_testkit::disk::Disk;

fn meta(kind: &str) -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: kind.into(), parent: None, labels: Default::default() }
}

fn drivers(root: &Path) -> [Box<dyn Driver>; 2] {
    let overlay = OverlayDriver::open(root.join("overlayfs")).unwrap();
    [Box::new(overlay), Box::new(NativeDriver::open(root.join("native")).unwrap())]
}

#[test]
fn a_full_disk_is_said_to_be_full_and_can_be_used_again() {
    let Some(disk) = Disk::new(24) else { return };
    for driver in drivers(&disk.path()) {
        let id = SnapshotId(1);
        driver.create(id, &[], &meta("active")).unwrap();
        let tar = Tar::default().dir("d", 0o755).file("d/large", &"x".repeat(40 << 20)).clone();
        let error = apply(&tar.end()[..], &driver.apply_target(id), &Options::default()).unwrap_err();
        let Error::Io { operation, path, source } = error else { panic!("{error}") };
        assert_eq!((operation, source.kind()), ("write", std::io::ErrorKind::StorageFull));
        assert!(path.ends_with("fs/d/large"), "{}", path.display());
        driver.remove(id, None).unwrap();
        driver.create(id, &[], &meta("active")).unwrap();
        let tar = Tar::default().file("small", &"x".repeat(4 << 20)).clone();
        apply(&tar.end()[..], &driver.apply_target(id), &Options::default()).unwrap();
        driver.commit(id, &[], &meta("committed")).unwrap();
    }
}

#[test]
fn a_committed_tree_survives_a_power_cut() {
    let Some(disk) = Disk::new(64) else { return };
    let mut tar = Tar::default();
    tar.dir("d", 0o750).symlink("s", "d");
    for number in 0..200 {
        tar.file(&format!("d/{number}"), &"content ".repeat(number * 10));
    }
    for driver in drivers(&disk.path()) {
        for id in [1, 2].map(SnapshotId) {
            driver.create(id, &[], &meta("active")).unwrap();
            apply(&tar.end()[..], &driver.apply_target(id), &Options::default()).unwrap();
        }
        driver.commit(SnapshotId(1), &[], &meta("committed")).unwrap();
        let after = disk.after_power_cut();
        let again = drivers(&after.path()).into_iter().find(|again| again.name() == driver.name()).unwrap();
        let tree = |driver: &dyn Driver| describe(&driver.apply_target(SnapshotId(1)).root);
        assert_eq!(tree(&*again), tree(&*driver));
        let found = again.list().unwrap().into_iter().find(|(id, _)| id.0 == 1).unwrap();
        assert_eq!(found.1, Some(meta("committed")));
    }
}

/// A commit that ran out of space half-way could not be repeated: the links that it had made were in its way.
#[test]
fn a_commit_that_failed_on_a_full_disk_can_be_repeated() {
    let Some(disk) = Disk::new(24) else { return };
    let driver = OverlayDriver::open(disk.path().join("overlayfs")).unwrap();
    let (lower, upper) = (SnapshotId(1), SnapshotId(2));
    let mut tar = Tar::default();
    tar.file("small", "s").file("large", &"x".repeat(8 << 20)).dir("d", 0o750);
    driver.create(lower, &[], &meta("active")).unwrap();
    apply(&tar.end()[..], &driver.apply_target(lower), &Options::default()).unwrap();
    driver.commit(lower, &[], &meta("committed")).unwrap();
    driver.create(upper, &[], &meta("active")).unwrap();
    let links = Tar::default().link("d/l1", "small").link("d/l2", "large").clone();
    apply(&links.end()[..], &driver.apply_target(upper), &Options::default()).unwrap();

    let ballast = disk.path().join("ballast");
    let mut block = 1 << 20;
    let mut file = std::fs::File::create(&ballast).unwrap();
    while block >= 4096 {
        // Until nothing fits, ever smaller.
        if std::io::Write::write_all(&mut file, &vec![0; block]).is_err() || file.sync_all().is_err() {
            block /= 2;
        }
    }
    let error = driver.commit(upper, &[lower], &meta("committed")).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error}");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    driver.commit(upper, &[lower], &meta("committed")).unwrap();
    let tree = describe(&driver.apply_target(upper).root);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["d", "d/l1", "d/l2", "large", "small"]);
    assert!(tree["small"].ends_with(" = d/l1") && tree["large"].ends_with(" = d/l2"), "{tree:#?}");
    assert!(tree["d"].starts_with("dir 750"), "{tree:#?}");
}

/// The kernel tells one of those who sync that files could not be written, and then nobody any more: the next commit took what was lost
/// for written.
#[test]
fn what_the_disk_could_not_keep_is_not_committed_by_whoever_comes_next() {
    let Some(below) = Disk::new(64) else { return };
    let Some(disk) = below.on(96) else { return };
    let driver = OverlayDriver::open(disk.path().join("overlayfs")).unwrap();
    let create = |id| driver.create(id, &[], &meta("active")).unwrap();
    let write = |id| {
        let layer = Tar::default().file("large", &"x".repeat(8 << 20)).clone();
        apply(&layer.end()[..], &driver.apply_target(id), &Options::default()).unwrap();
    };
    let refused = |id| {
        let Err(Error::Io { operation, source, .. }) = driver.commit(id, &[], &meta("committed")) else {
            panic!("{id:?} is committed, and not on the disk")
        };
        (operation, source.raw_os_error())
    };
    let lost = [1, 2].map(SnapshotId);
    lost.into_iter().for_each(create);
    below.fill();
    lost.into_iter().for_each(write);
    let first = refused(lost[0]);
    assert_eq!(first.0, "sync the file system of");
    below.empty();
    for id in lost {
        assert_eq!(refused(id), ("trust what was written before an error of the disk in", first.1));
    }
    // What is written anew is on the disk.
    create(SnapshotId(3));
    write(SnapshotId(3));
    driver.commit(SnapshotId(3), &[], &meta("committed")).unwrap();
}
