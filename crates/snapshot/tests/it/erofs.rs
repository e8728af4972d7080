//! Layers as images: what is in them, that other programs read them, and how they are mounted, committed, damaged and removed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use orlop_snapshot::apply::{Limits, Options, apply, list};
use orlop_snapshot::{
    Compared, Driver, ErofsDriver, Error, Link, Meta, Mount, OverlayDriver, Result, SnapshotId, TempMount, Usage,
    mount_all,
};
use orlop_testkit::corpus::{Hideout, all};
use orlop_testkit::disk::Disk;
use orlop_testkit::mounts::{Cleaned, mounted, need_file_system};
use orlop_testkit::process::{need, need_root, output};
use orlop_testkit::tar::{Entry, Kind, tar};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::{cases, describe};

fn meta(kind: &str, parent: Option<u64>) -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: kind.into(), parent, labels: BTreeMap::new() }
}

/// A store of one driver; what is mounted below goes with it.
struct Store<D> {
    driver: D,
    _cleaned: Cleaned,
    dir: TempDir,
}

impl Store<ErofsDriver> {
    /// A store, if this machine can have one.
    fn new() -> Option<Self> {
        let can = need_root() && need_file_system("erofs");
        can.then(|| Self::of(|path| ErofsDriver::open(path.join("erofs")).unwrap()))
    }

    fn image(&self, id: u64) -> PathBuf {
        self.driver.root().join(format!("{id}/layer.erofs"))
    }
}

impl<D: Driver> Store<D> {
    fn of(open: impl Fn(&Path) -> D) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { driver: open(dir.path()), _cleaned: Cleaned(dir.path().to_owned()), dir }
    }

    fn create(&self, id: u64, parents: &[u64], kind: &str) {
        self.driver.create(SnapshotId(id), &ids(parents), &meta(kind, parents.first().copied())).unwrap();
    }

    fn apply(&self, id: u64, layer: &[u8]) -> Result<()> {
        apply(layer, &self.driver.apply_target(SnapshotId(id)), &Options::default()).map(drop)
    }

    fn commit(&self, id: u64, parents: &[u64]) -> Result<Usage> {
        self.driver.commit(SnapshotId(id), &ids(parents), &meta("committed", parents.first().copied()))
    }

    /// A layer, applied without its parents and committed on them.
    fn layer(&self, id: u64, parents: &[u64], layer: &[u8]) -> Result<Usage> {
        self.create(id, &[], "active");
        self.apply(id, layer)?;
        self.commit(id, parents)
    }

    fn mounted(&self, id: u64, parents: &[u64], writable: bool) -> TempMount {
        let mounts = self.driver.mounts(SnapshotId(id), &ids(parents), writable).unwrap();
        TempMount::new(&mounts, self.dir.path()).unwrap()
    }

    /// What is shown of a stack.
    fn tree(&self, parents: &[u64]) -> BTreeMap<String, String> {
        let view = SnapshotId(9000);
        self.driver.remove(view, None).unwrap();
        self.create(view.0, parents, "view");
        describe(self.mounted(view.0, parents, false).path())
    }

    fn compared(&self, id: u64) -> Compared {
        let mut comparison = self.driver.compare(SnapshotId(id)).unwrap().expect("it was recorded");
        while comparison.step().unwrap().is_some() {}
        assert!(comparison.is_current());
        comparison.compared().clone()
    }
}

fn ids(ids: &[u64]) -> Vec<SnapshotId> {
    ids.iter().copied().map(SnapshotId).collect()
}

/// Directories in each other that fsck.erofs 1.5 can stand; of deeper ones that mkfs.erofs made itself it dies.
const DEPTH: usize = 500;

/// Whether another program can look at the image of a layer.
fn is_flat(layer: &[u8]) -> bool {
    let mut deepest = 0;
    let each = |path: &[u8], _: Option<u64>| deepest = deepest.max(path.iter().filter(|b| **b == b'/').count());
    list(layer, &Limits::default(), each).is_ok() && deepest < DEPTH
}

/// What another program says of an image, if that is here.
fn fsck(image: &Path) {
    if let Some(program) = need("fsck.erofs", "erofs-utils") {
        output(std::process::Command::new(program).arg("--extract").arg(image)).ok();
    }
}

/// Sizes around what fits behind an inode and into a block, in both stores: what is read is what was written.
#[test]
fn files_of_all_sizes_are_read_as_they_were_written() {
    let Some(store) = Store::new() else { return };
    let sizes = [0, 1, 31, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 8192, 100_000, 3 << 20];
    let bytes = |size: usize| (0..size).map(|at| (at * 31 + size) as u8).collect::<Vec<u8>>();
    let mut entries = Vec::new();
    for size in sizes {
        entries.push(Entry::file(format!("plain-{size}"), bytes(size)));
        entries.push(Entry::file(format!("tagged-{size}"), bytes(size)).xattr("user.a", "1").xattr("trusted.b", "2"));
        entries.push(Entry::hardlink(format!("again-{size}"), format!("plain-{size}")));
    }
    store.layer(1, &[], &tar(&entries)).unwrap();
    let mounted = store.mounted(2, &[1], false);
    for size in sizes {
        for name in ["plain", "tagged", "again"] {
            let path = mounted.path().join(format!("{name}-{size}"));
            assert!(fs::read(&path).unwrap() == bytes(size), "{name} {size}");
            assert_eq!(fs::metadata(&path).unwrap().nlink(), if name == "tagged" { 1 } else { 2 }, "{name} {size}");
        }
    }
    fsck(&store.image(1));
}

/// What only large or odd layers have: many names, long ones, deep ones, long targets, all kinds of files.
#[test]
fn large_and_odd_trees_are_shown_as_overlayfs_shows_them() {
    let Some(images) = Store::new() else { return };
    let files = Store::of(|path| OverlayDriver::open(path.join("overlayfs")).unwrap());
    let mut entries = vec![
        Entry::dir("many").mode(0o2751).owner(7, 70_000).mtime(1_700_000_000, 123_456_789),
        Entry::symlink("long", "t/".repeat(2047)),
        Entry::symlink("longer", "t".repeat(4095)),
        Entry::symlink("short", "t").owner(9, 9).mtime(5, 6),
        Entry::file("!first", "").mode(0o4755),
        Entry::file("-", ""),
        Entry::file("\u{7f}last", ""),
        Entry::new("fifo", Kind::Fifo).mode(0o620),
        Entry::new("char", Kind::Char(10, 229)).owner(1, 2),
        Entry::new("block", Kind::Block(259, 70_000)),
        Entry::file("capable", "x").xattr("security.capability", capability()),
        Entry::new("sparse", Kind::Sparse { size: 9 << 30, extents: vec![(4 << 30, vec![b'a'; 5000])] }),
        Entry::new(
            "holes",
            Kind::Sparse { size: 3 << 20, extents: vec![(5, vec![b'b'; 3]), (1 << 20, vec![b'c'; 9000])] },
        ),
        Entry::new("empty", Kind::Sparse { size: 1 << 20, extents: Vec::new() }),
    ];
    for number in 0..3000 {
        entries.push(Entry::file(format!("many/{number:0>width$}", width = 1 + number % 200), number.to_string()));
    }
    let first =
        [tar(&entries), tar(&[&entries[..], &[Entry::file(format!("{}f", "d/".repeat(1500)), "deep")]].concat())];
    images.layer(100, &[], &first[0]).unwrap();
    fsck(&images.image(100));
    let [_, first] = first;
    let second = tar(&[
        Entry::hardlink("l1", "capable").owner(5, 5),
        Entry::hardlink("many/l2", "holes"),
        Entry::hardlink("l3", "long"),
        Entry::file("many/new", "n"),
        Entry::whiteout("fifo"),
        Entry::dir("d"),
        Entry::opaque("d"),
    ]);
    let third = tar(&[Entry::hardlink("l4", "l1"), Entry::opaque("many"), Entry::file("d/after", "a")]);
    for store in [&images as &dyn Stacked, &files] {
        [&first, &second, &third].into_iter().enumerate().for_each(|(at, layer)| store.stack(at as u64 + 1, layer));
    }
    // Nine gibibytes of zeros are more than a test should read.
    let (theirs, ours) = (files.mounted(9, &[3, 2, 1], false), images.mounted(9, &[3, 2, 1], false));
    for tree in [&theirs, &ours] {
        let file = fs::File::open(tree.path().join("sparse")).unwrap();
        let mut found = vec![0; 8192];
        file.read_exact_at(&mut found, (4 << 30) - 1000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 9 << 30);
        assert!(found[..1000].iter().all(|b| *b == 0) && found[1000..6000].iter().all(|b| *b == b'a'));
        assert!(found[6000..].iter().all(|b| *b == 0));
    }
    drop((theirs, ours));
    for store in [&images as &dyn Stacked, &files] {
        store.stack(4, &tar(&[Entry::whiteout("sparse")]));
    }
    assert_eq!(images.tree(&[4, 3, 2, 1]), files.tree(&[4, 3, 2, 1]));
    (2..=4).for_each(|id| fsck(&images.image(id)));
    assert!(images.driver.usage(SnapshotId(1)).unwrap().bytes < 16 << 20, "holes take nothing");
}

trait Stacked {
    fn stack(&self, id: u64, layer: &[u8]);
}

impl<D: Driver> Stacked for Store<D> {
    fn stack(&self, id: u64, layer: &[u8]) {
        self.layer(id, &(1..id).rev().collect::<Vec<_>>(), layer).unwrap();
    }
}

/// `cap_net_bind_service=ep`, version 2.
fn capability() -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 2, 0, 4, 0, 0];
    bytes.resize(20, 0);
    bytes
}

/// The same layers give the same bytes, whenever and wherever; other programs take them for what they are.
#[test]
fn every_image_is_the_same_again_and_sound_for_others() {
    let (Some(first), Some(second)) = (Store::new(), Store::new()) else { return };
    let outside = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(outside.path()).unwrap();
    let mut made = 0;
    for (at, case) in all(&hideout).into_iter().enumerate() {
        let mut parents = Vec::new();
        for (number, layer) in case.layers.iter().enumerate() {
            let id = (at * 100 + number + 1) as u64;
            if first.layer(id, &parents, &layer.bytes).is_err() {
                break;
            }
            second.layer(id, &parents, &layer.bytes).unwrap();
            let bytes = fs::read(first.image(id)).unwrap();
            assert!(bytes == fs::read(second.image(id)).unwrap(), "{}", case.name);
            if is_flat(&layer.bytes) {
                fsck(&first.image(id));
            }
            parents.insert(0, id);
            made += 1;
        }
    }
    assert!(made > 60, "{made} images");
}

/// What a container writes becomes an image at the commit, and what stands on that sees it.
#[test]
fn what_a_container_wrote_is_an_image_too() {
    let Some(store) = Store::new() else { return };
    let base = [Entry::dir("d").mode(0o2750), Entry::file("d/f", "f"), Entry::file("gone", "g"), Entry::dir("o")];
    store.layer(1, &[], &tar(&[&base[..], &[Entry::file("o/x", "x")]].concat())).unwrap();
    store.create(2, &[1], "active");
    let before = {
        let mounted = store.mounted(2, &[1], true);
        let at = |name: &str| mounted.path().join(name);
        fs::write(at("d/new"), "n".repeat(10_000)).unwrap();
        fs::hard_link(at("d/new"), at("other")).unwrap();
        fs::write(at("d/f"), "changed").unwrap();
        fs::remove_file(at("gone")).unwrap();
        fs::remove_dir_all(at("o")).unwrap();
        fs::create_dir(at("o")).unwrap();
        std::os::unix::fs::symlink("d/f", at("s")).unwrap();
        let hole = fs::File::create(at("hole")).unwrap();
        hole.set_len(20 << 20).unwrap();
        hole.write_all_at(b"end", (20 << 20) - 3).unwrap();
        describe(mounted.path())
    };
    let upper = store.driver.apply_target(SnapshotId(2)).root;
    store.commit(2, &[1]).unwrap();
    assert!(upper.join("d/new").exists(), "nobody stands on it, and the commit may be made again");
    let once = fs::read(store.image(2)).unwrap();
    store.commit(2, &[1]).unwrap();
    assert!(fs::read(store.image(2)).unwrap() == once);
    assert_eq!(store.tree(&[2, 1]), before);
    assert_eq!(store.compared(2).detail(), "");
    assert!(store.driver.usage(SnapshotId(2)).unwrap().bytes < 1 << 20);
    fsck(&store.image(2));
    // What stands on it took the upper directory away: the image was mounted over nothing.
    store.driver.remove(SnapshotId(9000), None).unwrap();
    rustix::mount::unmount(&upper, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 0);
    assert_eq!(store.tree(&[2, 1]), before, "after a reboot it is mounted again");
}

/// A client who mounts what a layer was applied to finds it there, and goes on; so does a layer after him. As with overlayfs.
#[test]
fn a_client_goes_on_with_what_a_layer_became() {
    let Some(images) = Store::new() else { return };
    let files = Store::of(|path| OverlayDriver::open(path.join("overlayfs")).unwrap());
    let go = |store: &dyn Going| {
        store.go(&tar(&[Entry::dir("d").mode(0o750), Entry::file("d/low", "low"), Entry::file("o/x", "x")]), false);
        let first = [
            Entry::file("d/new", "new"),
            Entry::hardlink("l", "d/low"),
            Entry::opaque("o"),
            Entry::file("o/y", "y"),
            Entry::file("gone", "g").xattr("user.a", "b"),
        ];
        store.go(&tar(&first), true);
        store.go(&tar(&[Entry::hardlink("m", "d/new"), Entry::file("d/later/f", "f"), Entry::whiteout("l")]), true)
    };
    let [mut ours, mut theirs] = [go(&images), go(&files)];
    for tree in [&mut ours, &mut theirs] {
        // Whoever writes leaves the time of day.
        tree.retain(|name, _| !["own", "d"].contains(&name.as_str()));
    }
    assert_eq!(ours, theirs);
    assert!(ours.contains_key("d/later/f") && !ours.contains_key("o/x") && !ours.contains_key("gone"), "{ours:#?}");
    assert_eq!(images.compared(2).detail(), "");
    fsck(&images.image(2));
    assert!(!images.image(2).with_file_name("unpacked").exists());
}

trait Going {
    /// Applies a layer to the first snapshot, which is committed, or to the second, which is mounted and written to. What is shown
    /// of both then.
    fn go(&self, layer: &[u8], second: bool) -> BTreeMap<String, String>;
}

impl<D: Driver> Going for Store<D> {
    fn go(&self, layer: &[u8], second: bool) -> BTreeMap<String, String> {
        if !second {
            self.layer(1, &[], layer).unwrap();
            self.create(2, &[1], "active");
            return BTreeMap::new();
        }
        let again = self.driver.root().join("2/fs/own").exists();
        self.apply(2, layer).unwrap();
        if !again {
            let mounted = self.mounted(2, &[1], true);
            assert_eq!(fs::read_to_string(mounted.path().join("d/new")).unwrap(), "new");
            assert!(!mounted.path().join("o/x").exists() && mounted.path().join("o/y").exists());
            fs::remove_file(mounted.path().join("gone")).unwrap();
            fs::write(mounted.path().join("own"), "own").unwrap();
            return BTreeMap::new();
        }
        self.commit(2, &[1]).unwrap();
        self.tree(&[2, 1])
    }
}

/// A commit that nobody got to know of: the snapshot is what it was, and can be gone on with.
#[test]
fn a_snapshot_whose_commit_was_lost_can_be_written_to() {
    let Some(store) = Store::new() else { return };
    store.create(1, &[], "active");
    store.apply(1, &tar(&[Entry::file("a", "a")])).unwrap();
    store.commit(1, &[]).unwrap();
    for (name, seen) in [("b", vec!["a"]), ("c", vec!["a", "b"])] {
        let mounted = store.mounted(1, &[], true);
        assert_eq!(describe(mounted.path()).keys().collect::<Vec<_>>(), seen);
        fs::write(mounted.path().join(name), name).unwrap();
        drop(mounted);
        store.commit(1, &[]).unwrap();
    }
    assert_eq!(store.tree(&[1]).into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(store.compared(1).detail(), "");
}

/// A layer and what a client wrote beside it are not made one image: the commit says so.
#[test]
fn a_layer_and_what_a_client_wrote_are_refused() {
    let Some(store) = Store::new() else { return };
    store.create(1, &[], "active");
    store.apply(1, &tar(&[Entry::file("a", "a")])).unwrap();
    fs::write(store.driver.apply_target(SnapshotId(1)).root.join("b"), "b").unwrap();
    let error = store.commit(1, &[]).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("wrote to"), "{error}");
    fs::remove_file(store.driver.apply_target(SnapshotId(1)).root.join("b")).unwrap();
    store.commit(1, &[]).unwrap();
    assert_eq!(store.tree(&[1]).into_keys().collect::<Vec<_>>(), ["a"]);
}

/// Two layers of one snapshot are one image; a failed one can be emptied and filled anew.
#[test]
fn a_second_layer_goes_on_where_the_first_ended() {
    let Some(store) = Store::new() else { return };
    store.layer(1, &[], &tar(&[Entry::file("low", "low"), Entry::file("lower", "lower")])).unwrap();
    store.create(2, &[1], "active");
    store.apply(2, &tar(&[Entry::file("a", "a"), Entry::file("d/b", "b"), Entry::hardlink("l", "low")])).unwrap();
    store.apply(2, &tar(&[Entry::hardlink("c", "d/b"), Entry::whiteout("a"), Entry::hardlink("m", "l")])).unwrap();
    store.commit(2, &[1]).unwrap();
    let tree = store.tree(&[2, 1]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["c", "d", "d/b", "l", "low", "lower", "m"]);
    assert!(tree["c"].ends_with(" = c") && tree["d/b"].ends_with(" = c") && tree["m"].ends_with(" = l"), "{tree:#?}");
    assert_eq!(store.compared(2).detail(), "");
    fsck(&store.image(2));

    store.create(3, &[], "active");
    let target = store.driver.apply_target(SnapshotId(3));
    store.apply(3, &tar(&[Entry::file("wrong", "w")])).unwrap();
    target.empty().unwrap();
    store.apply(3, &tar(&[Entry::file("right", "r")])).unwrap();
    store.commit(3, &[2, 1]).unwrap();
    assert!(!store.tree(&[3, 2, 1]).contains_key("wrong") && store.tree(&[3, 2, 1]).contains_key("right"));
}

/// Mounts are made when they are needed, by whoever comes first, and go with the snapshot; those that were made of them stay.
#[test]
fn images_are_mounted_on_demand_and_unmounted_at_the_end() {
    let Some(store) = Store::new() else { return };
    let root = store.driver.root().to_owned();
    for id in 1..=3 {
        let parents: Vec<u64> = (1..id).rev().collect();
        store.layer(id, &parents, &tar(&[Entry::file(format!("f{id}"), "x")])).unwrap();
    }
    assert!(mounted(&root).is_empty(), "unpacking needs no mount");
    store.create(4, &[3, 2, 1], "active");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| store.driver.mounts(SnapshotId(4), &ids(&[3, 2, 1]), true).unwrap());
        }
    });
    let points = || mounted(&root).into_iter().map(|(point, _)| point).collect::<Vec<_>>();
    let expected = |ids: &[u64]| ids.iter().map(|id| root.join(format!("{id}/fs"))).collect::<Vec<_>>();
    let mut found = points();
    found.sort();
    assert_eq!(found, expected(&[1, 2, 3]), "each once");
    let container = store.mounted(4, &[3, 2, 1], true);
    fs::write(container.path().join("own"), "o").unwrap();
    // Another process, that knows nothing of the first.
    let other = ErofsDriver::open(&root).unwrap();
    other.mounts(SnapshotId(4), &ids(&[3, 2, 1]), true).unwrap();
    assert_eq!(points().len(), 3);
    let trash = store.dir.path().join("trash");
    other.remove(SnapshotId(3), Some(&trash)).unwrap();
    assert!(points().len() == 2 && trash.join("3/layer.erofs").exists());
    assert_eq!(fs::read_to_string(container.path().join("f3")).unwrap(), "x", "who stands on it goes on");
    other.release().unwrap();
    assert!(points().is_empty(), "{:?}", points());
    assert_eq!(fs::read_to_string(container.path().join("f1")).unwrap(), "x", "who stands on it goes on");
    assert!(!root.join("1/fs").exists(), "nobody is shown an empty directory for a layer");
    drop(container);
    other.restore(SnapshotId(3), &trash).unwrap();
    assert_eq!(store.tree(&[3, 2, 1]).len(), 3);
    let error = other.give(SnapshotId(1), &trash).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(other.elsewhere(SnapshotId(1)).unwrap(), 0);
    for id in [9000, 4, 3, 2, 1] {
        store.driver.remove(SnapshotId(id), None).unwrap();
    }
    assert!(points().is_empty() && store.driver.list().unwrap().is_empty());
}

/// A process that was killed while it made files of an image has that mounted still.
#[test]
fn what_a_killed_process_has_mounted_goes_with_its_snapshot_and_at_the_end() {
    let Some(store) = Store::new() else { return };
    let root = store.driver.root().to_owned();
    store.layer(1, &[], &tar(&[Entry::file("d/f", "x")])).unwrap();
    let left_behind = |id: u64| {
        store.create(id, &[1], "active");
        store.driver.mounts(SnapshotId(id), &ids(&[1]), true).unwrap();
        let point = root.join(format!("{id}/unpacked"));
        fs::create_dir(&point).unwrap();
        let source = root.join("1/fs").display().to_string();
        mount_all(&[Mount { kind: "bind".into(), source, options: vec!["bind".into(), "ro".into()] }], &point).unwrap();
        assert!(point.join("d/f").exists());
    };
    let trash = store.dir.path().join("trash");
    for (id, trash) in [(2, None), (3, Some(trash.as_path()))] {
        left_behind(id);
        store.driver.remove(SnapshotId(id), trash).unwrap();
    }
    fs::remove_dir_all(&trash).unwrap();
    left_behind(4);
    store.driver.release().unwrap();
    assert!(mounted(&root).is_empty(), "{:?}", mounted(&root));
}

/// A fresh image takes the place of a damaged one, mounted or not.
#[test]
fn damage_is_found_wherever_it_is_and_healed() {
    let Some(store) = Store::new() else { return };
    let layer = tar(&[Entry::file("large", "x".repeat(3 << 20)), Entry::file("small", "s"), Entry::dir("d")]);
    store.layer(1, &[], &layer).unwrap();
    let sound = store.compared(1);
    assert_eq!((sound.fault(), sound.bytes), (None, fs::metadata(store.image(1)).unwrap().len()));
    let length = sound.bytes;
    let whole = fs::read(store.image(1)).unwrap();
    for at in [0, 1030, 1200, 4096, length / 2, length - 1] {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 1;
        fs::write(store.image(1), &bytes).unwrap();
        let found = store.compared(1);
        assert_eq!((found.fault(), found.differing), (Some("damaged"), 1), "{at}: {found:?}");
        assert!(found.detail().contains("BLAKE3"), "{}", found.detail());
    }
    fs::write(store.image(1), &whole[..whole.len() - 4096]).unwrap();
    assert!(store.compared(1).detail().contains("expected"), "{}", store.compared(1).detail());
    fs::write(store.image(1), &whole).unwrap();
    assert_eq!(store.compared(1).fault(), None);

    let digests = store.driver.root().join("1/digests");
    let recorded = fs::read(&digests).unwrap();
    for at in (0..recorded.len()).step_by(7) {
        let mut bytes = recorded.clone();
        bytes[at] ^= 1;
        fs::write(&digests, &bytes).unwrap();
        let found = store.driver.compare(SnapshotId(1)).unwrap();
        assert!(found.is_none_or(|found| found.compared().fault().is_some()), "byte {at}");
    }
    fs::remove_file(&digests).unwrap();
    assert!(store.driver.compare(SnapshotId(1)).unwrap().is_none());

    let mut broken = whole.clone();
    broken[5000] ^= 0xff;
    fs::write(store.image(1), &broken).unwrap();
    fs::write(&digests, &recorded).unwrap();
    let container = store.mounted(8, &[1], false);
    store.create(2, &[], "active");
    store.apply(2, &layer).unwrap();
    store.commit(2, &[]).unwrap();
    store.driver.exchange(SnapshotId(2), SnapshotId(1)).unwrap();
    drop(container);
    store.driver.remove(SnapshotId(2), None).unwrap();
    assert_eq!(store.compared(1).fault(), None);
    assert!(fs::read(store.mounted(8, &[1], false).path().join("large")).unwrap().iter().all(|b| *b == b'x'));
    fs::remove_file(store.image(1)).unwrap();
    assert_eq!(store.compared(1).fault(), Some("missing"));
}

/// A commit that failed is made again from what the layer left.
#[test]
fn a_commit_that_failed_can_be_repeated() {
    let Some(store) = Store::new() else { return };
    store.create(2, &[], "active");
    store.apply(2, &tar(&[Entry::hardlink("l", "low"), Entry::file("own", "o")])).unwrap();
    let chain = [Link { id: SnapshotId(2), parents: ids(&[1]), meta: meta("committed", Some(1)) }];
    store.driver.commit_chain(&chain).unwrap_err();
    store.layer(1, &[], &tar(&[Entry::file("other", "")])).unwrap();
    let error = store.driver.commit_chain(&chain).unwrap_err();
    assert!(matches!(error, Error::LinkTarget { .. }), "{error}");
    store.driver.remove(SnapshotId(1), None).unwrap();
    store.layer(1, &[], &tar(&[Entry::file("low", "low")])).unwrap();
    store.driver.commit_chain(&chain).unwrap();
    let tree = store.tree(&[2, 1]);
    assert_eq!(tree.keys().collect::<Vec<_>>(), ["l", "low", "own"]);
    assert!(tree["l"].ends_with(" = l") && tree["low"].ends_with(" = l"), "{tree:#?}");
}

/// What was committed is whole after a power cut, and what was being applied is none.
#[test]
fn a_committed_image_survives_a_power_cut() {
    if !(need_root() && need_file_system("erofs")) {
        return;
    }
    let Some(disk) = Disk::new(64) else { return };
    let driver = ErofsDriver::open(disk.path().join("erofs")).unwrap();
    let entries: Vec<_> =
        (0..200).map(|number| Entry::file(format!("d/{number}"), "content ".repeat(number * 10))).collect();
    for id in [1, 2].map(SnapshotId) {
        driver.create(id, &[], &meta("active", None)).unwrap();
        apply(&tar(&entries)[..], &driver.apply_target(id), &Options::default()).unwrap();
    }
    driver.commit(SnapshotId(1), &[], &meta("committed", None)).unwrap();
    let after = disk.after_power_cut();
    let again = ErofsDriver::open(after.path().join("erofs")).unwrap();
    let image = |driver: &ErofsDriver| fs::read(driver.root().join("1/layer.erofs")).unwrap();
    assert!(image(&again) == image(&driver));
    let mut comparison = again.compare(SnapshotId(1)).unwrap().expect("it was recorded");
    while comparison.step().unwrap().is_some() {}
    assert_eq!(comparison.compared().fault(), None);
    let found = again.list().unwrap().into_iter().find(|(id, _)| id.0 == 1).unwrap();
    assert_eq!(found.1, Some(meta("committed", None)));
}

/// A disk that is full says so, while a layer is applied and at its commit, which can be made again.
#[test]
fn a_full_disk_is_said_to_be_full() {
    if !(need_root() && need_file_system("erofs")) {
        return;
    }
    let Some(disk) = Disk::new(24) else { return };
    let driver = ErofsDriver::open(disk.path().join("erofs")).unwrap();
    let full =
        |error: &Error| matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
    let apply = |id, entries: &[Entry]| {
        driver.create(SnapshotId(id), &[], &meta("active", None)).unwrap();
        apply(&tar(entries)[..], &driver.apply_target(SnapshotId(id)), &Options::default())
    };
    let error = apply(1, &[Entry::file("large", "x".repeat(40 << 20))]).unwrap_err();
    assert!(full(&error) && error.to_string().contains("layer.erofs"), "{error}");
    driver.remove(SnapshotId(1), None).unwrap();
    apply(1, &[Entry::file("large", "x".repeat(8 << 20)), Entry::file("small", "s")]).unwrap();
    driver.commit(SnapshotId(1), &[], &meta("committed", None)).unwrap();
    apply(2, &[Entry::hardlink("l", "small"), Entry::hardlink("m", "large")]).unwrap();
    let ballast = disk.path().join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let mut block = 1 << 20;
    while block >= 4096 {
        // Until nothing fits, ever smaller.
        if std::io::Write::write_all(&mut file, &vec![0; block]).is_err() || file.sync_all().is_err() {
            block /= 2;
        }
    }
    let commit = || driver.commit(SnapshotId(2), &ids(&[1]), &meta("committed", Some(1)));
    let error = commit().unwrap_err();
    assert!(full(&error), "{error}");
    drop(file);
    fs::remove_file(&ballast).unwrap();
    commit().unwrap();
    let mut comparison = driver.compare(SnapshotId(2)).unwrap().expect("it was recorded");
    while comparison.step().unwrap().is_some() {}
    assert_eq!(comparison.compared().fault(), None);
}

/// Whatever the bytes of an image are: whoever settles a layer on it gets an error at worst.
fn settled_on(store: &Store<ErofsDriver>, bytes: &[u8]) {
    fs::write(store.image(1), bytes).unwrap();
    store.driver.remove(SnapshotId(2), None).unwrap();
    store.create(2, &[], "active");
    let links = [Entry::hardlink("l", "d/f"), Entry::hardlink("m", "s/f"), Entry::file("d/new", ""), Entry::opaque("")];
    store.apply(2, &tar(&links[..3])).unwrap();
    let _ = store.commit(2, &[1]);
}

proptest! {
    #![proptest_config(cases(50))]

    #[test]
    fn no_image_makes_settling_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let Some(store) = Store::new() else { return Ok(()) };
        let entries = [
            Entry::dir("d"), Entry::file("d/f", "f").xattr("user.a", "b"), Entry::symlink("s", "d"), Entry::hardlink("g", "d/f"),
            Entry::new("sparse", Kind::Sparse { size: 1 << 20, extents: vec![(5000, vec![b'a'; 10])] }),
        ];
        store.layer(1, &[], &tar(&entries)).unwrap();
        let mut bytes = fs::read(store.image(1)).unwrap();
        for (at, to) in changes {
            // All but the superblock, whose checksum refuses every change.
            let at = 1152 + at.index(bytes.len() - 1152);
            bytes[at] = to;
        }
        sum(&mut bytes);
        settled_on(&store, &bytes);
    }
}

/// Makes the checksum of the first block right again.
fn sum(bytes: &mut [u8]) {
    bytes[1028..1032].fill(0);
    let crc = bytes[1024..4096].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 })
    });
    bytes[1028..1032].copy_from_slice(&crc.to_le_bytes());
}
