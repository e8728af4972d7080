//! What works without being root: in a user namespace all but foreign owners and devices, for a plain user unpacking.
//!
//! Each test runs itself again in the surroundings it is about.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Meta as FileMeta, Tar, describe, target};
use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{Driver, Error, Meta, OverlayDriver, SnapshotId, TempMount};
use tar_core::EntryType;

const INSIDE: &str = "ORLOP_TEST_INSIDE";

/// Runs the test `name` of this program again under `wrapper`; true in that second run.
fn is_inside(name: &str, wrapper: &[&str], writable: &Path) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let possible = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("{name}: skipped, {wrapper:?} is not permitted");
        return false;
    }
    // Somewhere that other users may run it from. A copy cannot be run while a process that another test has just begun
    // still holds the descriptor that it was written through; a link was never written.
    let (own, program) = (std::env::current_exe().unwrap(), writable.join("test"));
    fs::hard_link(&own, &program).or_else(|_| fs::copy(&own, &program).map(drop)).unwrap();
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(&program).args([name, "--exact", "--nocapture"]);
    let output = command.env(INSIDE, writable).env("TMPDIR", writable).current_dir(writable).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn open_to_all() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = std::env::var_os(INSIDE).map_or_else(std::env::temp_dir, Into::into);
    let root = tempfile::tempdir_in(parent).unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
    root
}

fn meta(kind: &str) -> Meta {
    Meta { namespace: "n".into(), key: "k".into(), kind: kind.into(), parent: None, labels: Default::default() }
}

/// Two layers with a whiteout, an opaque directory and a link into the lower one.
fn stack(driver: &OverlayDriver, options: &Options) -> Vec<SnapshotId> {
    let (mut lower, mut upper) = (Tar::default(), Tar::default());
    lower.dir("d", 0o500).file("d/gone", "1").file("d/kept", "2").dir("o", 0o755).file("o/hidden", "3");
    upper.file("d/.wh.gone", "").file("o/.wh..wh..opq", "").file("o/new", "4").link("l", "d/kept");
    let ids = [SnapshotId(1), SnapshotId(2)];
    for (index, tar) in [lower, upper].iter().enumerate() {
        driver.create(ids[index], &[], &meta("active")).unwrap();
        apply(&tar.end()[..], &driver.apply_target(ids[index]), options).unwrap();
        driver.commit(ids[index], &ids[..index], &meta("committed")).unwrap();
    }
    ids.into_iter().rev().collect()
}

#[test]
fn a_user_namespace_mounts_what_it_unpacked() {
    let root = open_to_all();
    let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
    if !is_inside("rootless::a_user_namespace_mounts_what_it_unpacked", &unshare, root.path()) {
        return;
    }
    if let Err(error) = OverlayDriver::probe(root.path()) {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        println!("a_user_namespace_mounts_what_it_unpacked: skipped, {error}");
        return;
    }
    let driver = OverlayDriver::open(root.path().join("overlayfs")).unwrap();
    let chain = stack(&driver, &Options::default());
    driver.create(SnapshotId(3), &chain, &meta("active")).unwrap();
    let mounts = driver.mounts(SnapshotId(3), &chain, true).unwrap();
    assert!(mounts[0].options.contains(&"userxattr".to_owned()));
    let mounted = TempMount::new(&mounts, root.path()).unwrap();
    assert_eq!(describe(mounted.path()).into_keys().collect::<Vec<_>>(), ["d", "d/kept", "l", "o", "o/new"]);
    fs::write(mounted.path().join("o/written"), "").unwrap();

    let mut foreign = Tar::default();
    foreign.entry(EntryType::Regular, "f", "", &FileMeta { uid: 77, ..FileMeta::default() }, b"");
    let refused = |error: Error| assert!(matches!(&error, Error::Unsupported { .. }), "{error}");
    let empty = tempfile::tempdir_in(root.path()).unwrap();
    refused(apply(&foreign.end()[..], &target(empty.path()), &Options::default()).unwrap_err());
    let squashed = Options { squash_owners: true, ..Options::default() };
    apply(&foreign.end()[..], &target(empty.path()), &squashed).unwrap();

    let mut device = Tar::default();
    let mut null = tar_core::EntryBuilder::new_ustar();
    null.path("null").entry_type(EntryType::Char).mode(0o666).unwrap().device(1, 3).unwrap();
    device.0.extend(null.finish_bytes());
    refused(apply(&device.end()[..], &target(empty.path()), &Options::default()).unwrap_err());
}

#[test]
fn a_plain_user_unpacks_and_is_told_that_mounting_needs_more() {
    let root = open_to_all();
    let setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !is_inside("rootless::a_plain_user_unpacks_and_is_told_that_mounting_needs_more", &setpriv, root.path()) {
        return;
    }
    let driver = OverlayDriver::open(root.path().join("overlayfs")).unwrap();
    let options = Options { squash_owners: true, ..Options::default() };
    let chain = stack(&driver, &options);
    let error = OverlayDriver::probe(root.path()).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { reason, .. } if reason.contains("unshare")), "{error}");
    let tree = describe(&driver.apply_target(chain[1]).root);
    assert!(tree["d"].starts_with("dir 500 65534:65534"), "closed only after it was filled: {tree:#?}");
    for id in chain {
        driver.remove(id, None).unwrap();
    }
    assert!(driver.list().unwrap().is_empty());
}
