//! The corpus of awkward, broken and hostile layers: both drivers agree, nothing outside is touched, and what a real
//! containerd unpacks is what comes out here.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_oci::{Compression, DiffId, Digest};
use orlop_snapshot::apply::{Limits, Options, apply};
use orlop_snapshot::diff::diff_tree;
use orlop_snapshot::{Driver, Error, Meta, NativeDriver, OverlayDriver, Result, SnapshotId, TempMount};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::containerd::{self, Containerd, Programs};
use orlop_testkit::corpus::stream::{BOMB_UNIT, bomb, many_entries};
use orlop_testkit::corpus::{Case, Expect, Hideout, all, awkward};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::process::need_root;
use orlop_testkit::tar::{Entry, tar};

fn meta(parent: Option<u64>) -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: "active".into(), parent, labels: BTreeMap::new() }
}

/// The numbers of the first `count` layers, nearest first.
fn chain(count: usize) -> Vec<SnapshotId> {
    (1..=count as u64).rev().map(SnapshotId).collect()
}

fn apply_one(driver: &dyn Driver, id: SnapshotId, case: &Case, index: usize) -> Result<()> {
    let layer = &case.layers[index];
    let applied = apply(&layer.bytes[..], &driver.apply_target(id), &Options::default())?;
    if let Some(expected) = &layer.diff_id {
        assert_eq!(&applied.diff_id, expected, "{}", case.name);
    }
    Ok(())
}

fn tree(root: &Path) -> Fingerprint {
    // overlayfs' own marks are seen where a tree of one layer is mounted without overlayfs.
    let skip_xattrs = vec!["trusted.overlay.".to_owned()];
    Fingerprint::of(root, &fingerprint::Options { skip_root: true, skip_xattrs, ..Default::default() }).unwrap()
}

/// Layer by layer onto the tree below.
fn native(case: &Case, dir: &Path) -> Result<Fingerprint> {
    let driver = NativeDriver::open(dir.join("native"))?;
    for index in 0..case.layers.len() {
        let id = SnapshotId(index as u64 + 1);
        driver.create(id, &chain(index), &meta(None))?;
        apply_one(&driver, id, case, index)?;
        driver.commit(id, &chain(index), &meta(None))?;
    }
    Ok(tree(&driver.apply_target(SnapshotId(case.layers.len() as u64)).root))
}

/// Each layer by itself, the last one first, then committed in order and mounted.
fn overlayfs(case: &Case, dir: &Path) -> Result<Fingerprint> {
    let driver = OverlayDriver::open(dir.join("overlayfs"))?;
    for index in (0..case.layers.len()).rev() {
        let id = SnapshotId(index as u64 + 1);
        driver.create(id, &[], &meta(None))?;
        apply_one(&driver, id, case, index)?;
    }
    for index in 0..case.layers.len() {
        driver.commit(SnapshotId(index as u64 + 1), &chain(index), &meta(Some(index as u64)))?;
    }
    let (view, parents) = (SnapshotId(1000), chain(case.layers.len()));
    driver.create(view, &parents, &meta(None))?;
    let mounted = TempMount::new(&driver.mounts(view, &parents, false)?, dir)?;
    Ok(tree(mounted.path()))
}

/// What comparing the trees of a case with what was recorded of them finds, on one driver.
fn differences(case: &Case, driver: &dyn Driver) -> Vec<String> {
    let mut found = Vec::new();
    for index in 0..case.layers.len() {
        let mut comparison = driver.compare(SnapshotId(index as u64 + 1)).unwrap().expect("it was recorded");
        while comparison.step().unwrap().is_some() {}
        let compared = comparison.compared();
        found.extend(compared.fault().map(|_| format!("{} ({}): {}", case.name, driver.name(), compared.detail())));
    }
    found
}

/// Whatever a layer is like: what was recorded of its tree while it was unpacked is the tree.
#[test]
fn no_tree_differs_from_what_was_recorded_of_it() {
    if !need_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    let (mut wrong, mut applied) = (Vec::new(), 0);
    for case in all(&hideout) {
        let work = tempfile::tempdir_in(dir.path()).unwrap();
        if native(&case, work.path()).is_ok() {
            applied += 1;
            wrong.extend(differences(&case, &NativeDriver::open(work.path().join("native")).unwrap()));
        }
        if overlayfs(&case, work.path()).is_ok() {
            wrong.extend(differences(&case, &OverlayDriver::open(work.path().join("overlayfs")).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(applied > 50, "{applied} cases apply");
}

/// What is wrong with a case, in words.
fn judge(case: &Case, result: &Result<Fingerprint>, driver: &str) -> Vec<String> {
    let say = |what: String| format!("{} ({driver}): {what}", case.name);
    match (result, case.expect) {
        (Ok(_), Expect::Refused) => vec![say("applied, must be refused".into())],
        (Err(e), Expect::Applies) => vec![say(format!("refused: {e}"))],
        (Ok(tree), Expect::Applies) if !case.disputed => {
            let missing = case.present.iter().filter(|p| !tree.lines.contains_key(**p)).map(|p| say(format!("no {p}")));
            let extra =
                case.absent.iter().filter(|p| tree.lines.contains_key(**p)).map(|p| say(format!("{p} is there")));
            missing.chain(extra).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn every_case_on_both_drivers() {
    if !need_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    let mut wrong = Vec::new();
    for case in all(&hideout) {
        let work = tempfile::tempdir_in(dir.path()).unwrap();
        let results = [native(&case, work.path()), overlayfs(&case, work.path())];
        for (result, driver) in results.iter().zip(["native", "overlayfs"]) {
            wrong.extend(judge(&case, result, driver));
        }
        if let Err(change) = hideout.check() {
            wrong.push(format!("{}: {change}", case.name));
        }
        match &results {
            [Ok(native), Ok(overlayfs)] => {
                wrong.extend(native.diff(overlayfs).into_iter().map(|d| format!("{}: {d}", case.name)));
            }
            [Err(_), Err(_)] => {}
            [native, overlayfs] => wrong.push(format!("{}: {native:?} but {overlayfs:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

/// Where containerd's overlayfs unpacks a case at all, its tree is ours; else (hard links into lower layers) that of
/// its native snapshotter.
fn against(programs: &Programs) {
    let containerd = Containerd::start(programs, &containerd::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("archive.tar");
    let mut wrong = Vec::new();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    for (at, case) in awkward().iter().enumerate().filter(|(_, case)| !case.disputed) {
        let name = format!("docker.io/corpus/case:{at}");
        std::fs::write(&file, oci_archive(&[(&name, &case.image())])).unwrap();
        let theirs = if containerd.import("corpus", &file, "overlayfs").status.success() {
            containerd.mounted("corpus", &name, tree).map_err(|said| said.stderr)
        } else {
            containerd.import("corpus", &file, "native").ok();
            let diff_ids: Vec<_> = case.layers.iter().filter_map(|l| l.diff_id.clone()).collect();
            Ok(tree(&containerd.native_tree("corpus", orlop_oci::chain_ids(&diff_ids).last().unwrap())))
        };
        let work = tempfile::tempdir_in(dir.path()).unwrap();
        match (theirs, overlayfs(case, work.path())) {
            (Ok(mut theirs), Ok(mut ours)) => {
                // A directory that no layer lists has the time of day there; here what the layers below say, or none.
                theirs.forget_clock(&mut ours, since);
                wrong.extend(theirs.diff(&ours).into_iter().map(|d| format!("{}: {d}", case.name)));
            }
            (theirs, ours) => wrong.push(format!("{}: {theirs:?} but {ours:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "first: {}, second: Orlop\n{}", programs.version(), wrong.join("\n"));
}

#[test]
fn the_current_containerd_unpacks_the_same() {
    if let Some(programs) = Programs::current().filter(|_| need_root()) {
        against(&programs);
    }
}

#[test]
fn debians_containerd_unpacks_the_same() {
    if let Some(programs) = Programs::debian().filter(|_| need_root()) {
        against(&programs);
    }
}

/// Every step on the deepest tree that the limit on paths allows, on a thread with the stack that the runtime's have:
/// nothing may follow directories by recursion that a layer can make too deep.
#[test]
fn the_deepest_tree_there_can_be() {
    if !need_root() {
        return;
    }
    let deep = tar(&[Entry::file("d/".repeat(2_040) + "f", "deep")]);
    let more =
        tar(&[Entry::file("d/".repeat(2_000) + "g", "less deep"), Entry::hardlink("l", "d/".repeat(2_040) + "f")]);
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let native = NativeDriver::open(dir.path().join("native")).unwrap();
        let overlay = OverlayDriver::open(dir.path().join("overlayfs")).unwrap();
        for driver in [&native as &dyn Driver, &overlay] {
            for (index, layer) in [&deep, &more].into_iter().enumerate() {
                let id = SnapshotId(index as u64 + 1);
                driver.create(id, &chain(index), &meta(None)).unwrap();
                apply(&layer[..], &driver.apply_target(id), &Options::default()).unwrap();
                driver.commit(id, &chain(index), &meta(None)).unwrap();
                assert!(driver.usage(id).unwrap().inodes > 2_000);
            }
            let mut again = Vec::new();
            let made = diff_tree(&driver.apply_target(SnapshotId(1)), &mut again, Compression::None).unwrap();
            assert_eq!(made.diff_id, DiffId::new(Digest::of(&again)));
            driver.remove(SnapshotId(2), None).unwrap();
            driver.remove(SnapshotId(1), None).unwrap();
            assert!(driver.list().unwrap().is_empty());
        }
    });
    thread.unwrap().join().unwrap();
}

/// Reads on, and counts.
struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let length = self.0.read(out)?;
        self.1 += length as u64;
        Ok(length)
    }
}

#[test]
fn bombs_are_refused_long_before_they_are_unpacked() {
    for (compression, size) in [(Compression::Gzip, 64 << 30), (Compression::Zstd, 1 << 40)] {
        let dir = tempfile::tempdir().unwrap();
        let driver = NativeDriver::open(dir.path().join("native")).unwrap();
        driver.create(SnapshotId(1), &[], &meta(None)).unwrap();
        let mut reader = Counted(bomb(compression, size), 0);
        let error = apply(&mut reader, &driver.apply_target(SnapshotId(1)), &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        let units = reader.1 / (bomb_unit(compression));
        assert!(units * BOMB_UNIT < 3 << 30, "{compression:?}: {units} units were read");
    }
}

/// Packed bytes of one unit of a bomb.
fn bomb_unit(compression: Compression) -> u64 {
    let length = |units: u64| {
        let mut reader = Counted(bomb(compression, units * BOMB_UNIT), 0);
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        reader.1
    };
    length(2) - length(1)
}

#[test]
fn too_many_entries_are_refused_at_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let driver = NativeDriver::open(dir.path().join("native")).unwrap();
    driver.create(SnapshotId(1), &[], &meta(None)).unwrap();
    let options = Options { limits: Limits { layer_entries: 2_000, ..Limits::default() }, ..Options::default() };
    let error = apply(many_entries(1_000_000), &driver.apply_target(SnapshotId(1)), &options).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
    driver.remove(SnapshotId(1), None).unwrap();
    driver.create(SnapshotId(1), &[], &meta(None)).unwrap();
    let applied = apply(many_entries(1_990), &driver.apply_target(SnapshotId(1)), &options).unwrap();
    assert_eq!(applied.entries, 1_992);
}
