//! Full disks and power cuts.

mod common;

use std::path::Path;

use common::{Tar, describe};
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
