//! The corpus of awkward, broken and hostile layers: all drivers agree, nothing outside is touched, and what a real
//! containerd unpacks is what comes out here.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use orlop_oci::{Compression, DiffId, Digest};
use orlop_snapshot::apply::{Limits, Options, apply};
use orlop_snapshot::diff::diff_tree;
use orlop_snapshot::{
    Driver, ErofsDriver, Error, Link, Meta, NativeDriver, OverlayDriver, Result, SnapshotId, TempMount,
};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::containerd::{self, Containerd, Programs};
use orlop_testkit::corpus::stream::{BOMB_UNIT, bomb, many_entries};
use orlop_testkit::corpus::{Case, Expect, Hideout, Layer, all, awkward};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::image::{self, Content, Image};
use orlop_testkit::mounts::{Cleaned, need_file_system};
use orlop_testkit::process::need_root;
use orlop_testkit::tar::{Entry, tar};
use orlop_testkit::tier;

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

/// Each layer by itself, the last one first, then committed in order and mounted: one by one, and all at once, which is the same.
fn overlayfs(case: &Case, dir: &Path) -> Result<Fingerprint> {
    let one_by_one = overlayfs_committed(case, dir, "overlayfs", |driver, chain| {
        chain.iter().try_for_each(|link| driver.commit(link.id, &link.parents, &link.meta).map(drop))
    });
    let at_once = overlayfs_committed(case, dir, "at-once", |driver, chain| driver.commit_chain(chain).map(drop));
    match (&one_by_one, &at_once) {
        (Ok(one_by_one), Ok(at_once)) => assert_eq!(at_once, one_by_one, "{}", case.name),
        (Err(_), Err(_)) => {}
        _ => panic!("{}: one by one: {one_by_one:?}, at once: {at_once:?}", case.name),
    }
    one_by_one
}

fn overlayfs_committed(
    case: &Case,
    dir: &Path,
    name: &str,
    commit: impl Fn(&dyn Driver, &[Link]) -> Result<()>,
) -> Result<Fingerprint> {
    committed(&OverlayDriver::open(dir.join(name))?, case, dir, commit)
}

/// The same as images; as overlayfs has it where there are none.
fn erofs(case: &Case, dir: &Path) -> Result<Fingerprint> {
    if !need_file_system("erofs") {
        return overlayfs_committed(case, dir, "instead", |driver, chain| driver.commit_chain(chain).map(drop));
    }
    let driver = ErofsDriver::open(dir.join("erofs"))?;
    let _cleaned = Cleaned(dir.to_owned());
    committed(&driver, case, dir, |driver, chain| driver.commit_chain(chain).map(drop))
}

fn committed(
    driver: &dyn Driver,
    case: &Case,
    dir: &Path,
    commit: impl Fn(&dyn Driver, &[Link]) -> Result<()>,
) -> Result<Fingerprint> {
    for index in (0..case.layers.len()).rev() {
        let id = SnapshotId(index as u64 + 1);
        driver.create(id, &[], &meta(None))?;
        apply_one(driver, id, case, index)?;
    }
    let below = |index: usize| index.checked_sub(1).map(|_| index as u64);
    let link = |index| Link { id: SnapshotId(index as u64 + 1), parents: chain(index), meta: meta(below(index)) };
    commit(driver, &(0..case.layers.len()).map(link).collect::<Vec<_>>())?;
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
        if need_file_system("erofs") && erofs(&case, work.path()).is_ok() {
            wrong.extend(differences(&case, &ErofsDriver::open(work.path().join("erofs")).unwrap()));
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
fn every_case_on_all_drivers() {
    if !need_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    let mut wrong = Vec::new();
    for case in all(&hideout) {
        let work = tempfile::tempdir_in(dir.path()).unwrap();
        let results = [native(&case, work.path()), overlayfs(&case, work.path()), erofs(&case, work.path())];
        for (result, driver) in results.iter().zip(["native", "overlayfs", "erofs"]) {
            wrong.extend(judge(&case, result, driver));
        }
        if let Err(change) = hideout.check() {
            wrong.push(format!("{}: {change}", case.name));
        }
        match &results {
            [Ok(native), Ok(overlayfs), Ok(erofs)] => {
                let differs = native.diff(overlayfs).into_iter().chain(overlayfs.diff(erofs));
                wrong.extend(differs.map(|d| format!("{}: {d}", case.name)));
            }
            [Err(_), Err(_), Err(_)] => {}
            [native, overlayfs, erofs] => {
                wrong.push(format!("{}: {native:?} but {overlayfs:?} but {erofs:?}", case.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} complaints\n{}", wrong.len(), wrong.join("\n"));
}

/// What a containerd makes of a case: by its overlayfs, where that unpacks it at all, else (hard links into lower layers) by its native
/// snapshotter; what it says, if neither does.
fn theirs(containerd: &Containerd, case: &Case, at: usize, dir: &Path) -> std::result::Result<Fingerprint, String> {
    let (name, file) = (format!("docker.io/corpus/case:{at}"), dir.join("archive.tar"));
    // containerd compares the digest of what it unpacked; of layers that are broken further in that can be said too.
    let tar = |layer: &Layer| Some(layer.tar()).filter(|tar| !tar.is_empty()).unwrap_or_else(|| case.name.into());
    let layers = case.layers.iter().map(|layer| (layer, tar(layer))).collect::<Vec<_>>();
    let packed =
        layers.iter().map(|(layer, tar)| image::Layer::of_packed(layer.bytes.clone(), layer.compression, tar.clone()));
    // The name keeps the images of equal stacks apart.
    let start = Image::host().config("Cmd", serde_json::json!([case.name]));
    let content = Content::image(&packed.fold(start, Image::layer));
    std::fs::write(&file, oci_archive(&[(&name, &content)])).unwrap();
    if containerd.import("corpus", &file, "overlayfs").status.success() {
        return containerd.mounted("corpus", &name, tree).map_err(|said| said.stderr);
    }
    let native = containerd.import("corpus", &file, "native");
    if !native.status.success() {
        return Err(native.stderr);
    }
    let diff_ids: Vec<_> = layers.iter().map(|(_, tar)| DiffId::new(Digest::of(tar))).collect();
    Ok(tree(&containerd.native_tree("corpus", orlop_oci::chain_ids(&diff_ids).last().unwrap())))
}

const CLIMBS: &str = "containerd takes the root for its own parent; a name that climbs out is refused here";
const ORDERS: &str = "attributes that overlayfs takes for orders in a user namespace are left out here";
const LATE: &str = "containerd gives directories their times at the end, by names that are links by then";

/// What containerd takes and Orlop refuses: each with its reason.
const REFUSED: [(&str, &str); 21] = [
    ("a path that climbs out", CLIMBS),
    ("a path that climbs out after going in", CLIMBS),
    ("a path that overwrites outside", CLIMBS),
    ("the parent itself", CLIMBS),
    ("a climbing directory", CLIMBS),
    ("a climbing directory that exists", CLIMBS),
    ("a climbing device", CLIMBS),
    ("a PAX path that climbs behind a harmless name", CLIMBS),
    ("a climbing sparse name", CLIMBS),
    ("a hard link placed outside", CLIMBS),
    ("a whiteout that climbs out", CLIMBS),
    ("an opaque mark that climbs out", CLIMBS),
    ("CVE-2019-11246: a link whose own name climbs", CLIMBS),
    ("CVE-2024-21626: the working directory of whoever unpacks", CLIMBS),
    ("CVE-2007-4559: names with dots and from the root", CLIMBS),
    ("CVE-2024-12718: time and mode of a directory outside", CLIMBS),
    ("CVE-2001-1267: dots in the middle of a name", CLIMBS),
    ("CVE-2016-6321: a name of which a part is cut", CLIMBS),
    ("an empty name", "an entry that names nothing is damage here, and the root there"),
    ("an owner beyond 32 bits", "there is no such owner; containerd takes what is left of the number"),
    (
        "mode and owner of a hard link to a symlink must not reach its target",
        "a link cannot have the attribute, which containerd leaves out",
    ),
];

/// Of what both take, where the trees differ: each with its reason.
const OTHERWISE: [(&str, &str); 8] = [
    ("a global PAX path", "containerd makes the directories above the name of a global header, which is no entry"),
    ("a directory that turns into a symlink", LATE),
    ("CVE-2021-32803: a directory is known, becomes a link, and is used again", LATE),
    ("an overlay redirect for users", ORDERS),
    ("an overlay opaque mark for users", ORDERS),
    ("CVE-2023-0386: an overlay mark that users may set", ORDERS),
    (
        "CVE-2025-4517: a chain of links longer than a path may be",
        "what a link leads through is made here; containerd takes a name and the dots behind it away unseen",
    ),
    (
        "CVE-2021-31566: attributes and times of a link, set after its directory is complete",
        "containerd leaves out the attributes that a hard link to a symbolic link names",
    ),
];

/// Of what is broken or hostile one case of so many is tried beside containerd; `ORLOP_TEST_LAYERS=1`: all.
const ONE_OF: usize = 4;

/// Each case that is right is unpacked by a containerd too, with `foreign` those that are broken or hostile. Whatever containerd takes
/// Orlop takes, and makes the same tree of it, but where a list above says why not. What containerd refuses of the latter Orlop may take.
fn against(programs: &Programs, foreign: bool) {
    let containerd = Containerd::start(programs, &containerd::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    let (mut wrong, mut taken) = (Vec::new(), 0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (one_of, awkward) = (tier::amount("ORLOP_TEST_LAYERS", ONE_OF).max(1), awkward().len());
    let cases = all(&hideout);
    let listed = REFUSED.iter().chain(&OTHERWISE);
    let unknown: Vec<_> = listed.filter(|(name, _)| !cases.iter().any(|case| case.name == *name)).collect();
    assert!(unknown.is_empty(), "there are no such cases: {unknown:?}");
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| !case.disputed) {
        if at >= awkward && !(foreign && at % one_of == 0) {
            continue;
        }
        let work = tempfile::tempdir_in(dir.path()).unwrap();
        let (theirs, ours) = (theirs(&containerd, case, at, dir.path()), overlayfs(case, work.path()));
        taken += usize::from(theirs.is_ok());
        let named = |list: &[(&str, &str)]| list.iter().any(|(name, _)| *name == case.name);
        match (theirs, ours) {
            (Ok(_), Ok(_)) if named(&REFUSED) => wrong.push(format!("{}: it is taken", case.name)),
            (Ok(mut theirs), Ok(mut ours)) => {
                // A directory that no layer lists has the time of day there; here what the layers below say, or none.
                theirs.forget_clock(&mut ours, since);
                let differs = theirs.diff(&ours);
                if differs.is_empty() == named(&OTHERWISE) {
                    wrong.extend(differs.iter().map(|d| format!("{}: {d}", case.name)));
                    wrong.extend(differs.is_empty().then(|| format!("{}: the trees are the same", case.name)));
                }
            }
            (Ok(_), Err(_)) if named(&REFUSED) => {}
            (Ok(theirs), Err(error)) => wrong.push(format!("{}: refused, {error}, and there {theirs:?}", case.name)),
            (Err(said), _) if case.expect == Expect::Applies => {
                wrong.push(format!("{}: there refused, {said}", case.name));
            }
            (Err(_), _) => {}
        }
        if let Err(change) = hideout.check() {
            wrong.push(format!("{}: {change}", case.name));
        }
    }
    eprintln!("{taken} of the cases are taken by {}", programs.version());
    assert!(wrong.is_empty(), "first: {}, second: Orlop\n{}", programs.version(), wrong.join("\n"));
}

#[test]
fn the_current_containerd_unpacks_the_same() {
    if let Some(programs) = Programs::current().filter(|_| need_root()) {
        against(&programs, true);
    }
}

#[test]
fn debians_containerd_unpacks_the_same() {
    if let Some(programs) = Programs::debian().filter(|_| need_root()) {
        against(&programs, false);
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
