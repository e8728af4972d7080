//! Opening roots: new, old, newer, read-only, somebody else's, damaged.
//!
//! Read-only file systems and foreign users need a child process: the test program itself, started with
//! `ORLOP_TEST_ROOT` and the name of one of the `child_` tests, which otherwise do nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::{Root, image, labels, scope, texts};
use orlop_content::MemoryStore;
use orlop_metadata::{Error, OpenOptions, Result, Store};

fn open(root: &Path, read_only: bool) -> Result<Store> {
    Store::open(root, OpenOptions { content: Arc::new(MemoryStore::new()), drivers: Vec::new(), read_only })
}

fn child_root() -> Option<PathBuf> {
    std::env::var_os("ORLOP_TEST_ROOT").map(PathBuf::from)
}

/// Runs one `child_` test with `script`, in which `"$@"` runs it, with `root` as `$ROOT`.
fn child(test: &str, root: &Path, script: &str) {
    let isolated = || Command::new("unshare").args(["--mount", "--propagation", "private", "true"]).output();
    if !rustix::process::geteuid().is_root() || !isolated().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: only root, where it has its capabilities, can mount and change users");
        return;
    }
    // Where any user can reach it. A copy cannot be run while a process that another test has just begun still holds the
    // descriptor that it was written through; a link was never written.
    let place = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let (own, program) = (std::env::current_exe().unwrap(), place.path().join("test"));
    fs::hard_link(&own, &program).or_else(|_| fs::copy(&own, &program).map(drop)).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"])
        .arg(&program)
        .args(["--exact", test, "--nocapture"])
        .env("ROOT", root)
        .env("ORLOP_TEST_ROOT", root)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const READ_ONLY_MOUNT: &str = r#"mount --bind "$ROOT" "$ROOT"; mount -o remount,bind,ro "$ROOT"; exec "$@""#;
const AS_NOBODY: &str = r#"exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@""#;

#[test]
fn a_new_root_is_made_with_its_directories() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("some/where");
    let store = open(&root, false).unwrap();
    assert_eq!(store.root(), root);
    assert_eq!(store.read_only_reason(), None);
    for file in ["meta.db", "lock"] {
        assert!(root.join(file).is_file(), "{file}");
    }
    assert!(store.images("test", &[]).unwrap().is_empty());
    assert_eq!(store.check_metadata().unwrap(), []);
}

#[test]
fn what_was_written_is_there_when_opened_again() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "1")).unwrap();
    root.store.create_lease("test", "l", labels([("k", "v")])).unwrap();
    let (images, leases) = (root.store.images("test", &[]).unwrap(), root.store.leases("test", &[]).unwrap());
    let again = root.reopened();
    assert_eq!(again.images("test", &[]).unwrap(), images);
    let Root { store, directory, .. } = root;
    drop((store, again));
    let alone = open(directory.path(), false).unwrap();
    assert_eq!(alone.images("test", &[]).unwrap(), images);
    assert_eq!(alone.leases("test", &[]).unwrap(), leases);
}

#[test]
fn one_handle_sees_what_another_wrote() {
    let root = Root::new();
    let other = root.reopened();
    for i in 0..10 {
        let (from, to) = if i % 2 == 0 { (&root.store, &other) } else { (&other, &root.store) };
        from.create_image(&scope(), image(&format!("{i}"), "1")).unwrap();
        assert_eq!(to.images("test", &[]).unwrap().len(), i + 1);
    }
}

fn set_format(root: &Path, format: i64) {
    let connection = rusqlite::Connection::open(root.join("meta.db")).unwrap();
    connection.pragma_update(None, "user_version", format).unwrap();
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let root = Root::new();
    let Root { store, directory, .. } = root;
    drop(store);
    set_format(directory.path(), 7);
    for read_only in [false, true] {
        match open(directory.path(), read_only) {
            Err(error @ Error::NewerFormat { found: 7, supported: 6, .. }) => {
                let text = error.to_string();
                assert!(text.contains("meta.db") && text.contains("use a newer orlop"), "{text}");
            }
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
    set_format(directory.path(), 6);
    open(directory.path(), false).unwrap();
}

#[test]
fn what_is_no_database_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(directory.path().join("meta.db"), &noise).unwrap();
    let error = open(directory.path(), false).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Database { .. }), "{error:?}");
    assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), noise);
}

#[test]
fn a_root_that_is_a_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file, false).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn a_root_that_somebody_has_for_himself_is_refused() {
    let root = Root::new();
    let Root { store, directory, .. } = root;
    let lock = fs::File::open(directory.path().join("lock")).unwrap();
    let alone = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(&lock, alone).is_err(), "an open root is locked");
    drop(store);
    // Processes that other tests start hold a copy of the lock until they are what they are to be: so wait, and unlock.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(matches!(open(directory.path(), false), Err(Error::InUse { .. })));
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    open(directory.path(), false).unwrap();
}

fn refuses_writes(store: &Store, why: &str) {
    let errors = [
        store.create_image(&scope(), image("new", "1")).map(|_| ()),
        store.create_lease("test", "new", labels([])).map(|_| ()),
        store.delete_image(&scope(), "a", None).map(|_| ()),
    ];
    for error in errors {
        match error {
            Err(error @ Error::ReadOnly { .. }) => assert!(error.to_string().contains(why), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn opened_for_reading_nothing_is_written() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "1")).unwrap();
    let reading = open(root.path(), true).unwrap();
    assert_eq!(reading.images("test", &texts(["name==a"])).unwrap().len(), 1);
    refuses_writes(&reading, "opened for reading only");
    root.store.create_image(&scope(), image("b", "1")).unwrap();
    assert_eq!(reading.images("test", &[]).unwrap().len(), 2, "and sees what others write");
}

#[test]
fn opened_for_reading_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let error = open(directory.path(), true).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Io { operation: "open", .. }), "{error:?}");
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    assert!(open(&directory.path().join("none"), true).is_err());
}

fn reads_but_does_not_write(root: &Path, why: &str) {
    for read_only in [false, true] {
        let store = open(root, read_only).unwrap();
        assert_eq!(store.images("test", &[]).unwrap().len(), 1);
        refuses_writes(&store, if read_only { "opened for reading only" } else { why });
    }
}

#[test]
fn a_read_only_file_system_can_be_read() {
    let Root { store, directory, .. } = Root::new();
    store.create_image(&scope(), image("a", "1")).unwrap();
    drop(store);
    assert!(!directory.path().join("meta.db-wal").exists(), "the last one to close leaves one file");
    child("open::child_on_a_read_only_file_system", directory.path(), READ_ONLY_MOUNT);
}

/// Beside a root in use lie the log and its index.
#[test]
fn a_read_only_file_system_with_an_unfinished_log_can_be_read() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "1")).unwrap();
    assert!(root.path().join("meta.db-wal").exists());
    child("open::child_on_a_read_only_file_system", root.path(), READ_ONLY_MOUNT);
}

#[test]
fn child_on_a_read_only_file_system() {
    let Some(root) = child_root() else { return };
    assert!(fs::write(root.join("x"), "").is_err());
    reads_but_does_not_write(&root, "the file system is read-only");
}

/// Without the index the log cannot be read, and what it holds was acknowledged: better no answer than an old one.
#[test]
fn a_log_that_cannot_be_read_is_not_passed_over() {
    let root = Root::new();
    root.store.create_image(&scope(), image("a", "1")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    for file in ["meta.db", "meta.db-wal"] {
        fs::copy(root.path().join(file), copy.path().join(file)).unwrap();
    }
    child("open::child_with_a_log_without_index", copy.path(), READ_ONLY_MOUNT);
    assert_eq!(open(copy.path(), false).unwrap().images("test", &[]).unwrap().len(), 1);
}

#[test]
fn child_with_a_log_without_index() {
    let Some(root) = child_root() else { return };
    let error = open(&root, false).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::ReadOnly { .. }) && error.to_string().contains("meta.db-wal"), "{error}");
}

#[test]
fn another_user_can_read_what_he_may() {
    let Root { store, directory, .. } = Root::new();
    store.create_image(&scope(), image("a", "1")).unwrap();
    drop(store);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    child("open::child_as_another_user", directory.path(), AS_NOBODY);
}

#[test]
fn child_as_another_user() {
    let Some(root) = child_root() else { return };
    reads_but_does_not_write(&root, "this user may not write there");
    let error = open(&root.join("new"), false).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::ReadOnly { .. }), "{error:?}");
}
