//! A full disk: a small file system of its own, in a child process (this test program) that alone sees its mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::{labels, scope, target};
use orlop_content::MemoryStore;
use orlop_metadata::{Error, ImageChange, OpenOptions, Result, Store};

const SMALL_MOUNT: &str = r#"mount -t tmpfs -o size=$SIZE tmpfs "$ROOT"; exec "$@""#;

fn open(root: &Path) -> Result<Store> {
    Store::open(root, OpenOptions { content: Arc::new(MemoryStore::new()), drivers: Vec::new(), read_only: false })
}

#[test]
fn a_full_disk_refuses_changes_and_keeps_what_was_acknowledged() {
    on_a_disk("2m", "full_disk::child_on_a_small_disk");
}

/// Regression, of a trial: what was lent to who looked for room was taken for room, again and again.
#[test]
fn where_nothing_gives_way_the_error_is_the_answer() {
    on_a_disk("48m", "full_disk::child_on_a_disk_with_a_reserve");
}

/// Regression: who met a full disk was refused, since what had given way to another was there already when he looked.
#[test]
fn what_another_has_made_room_by_meanwhile_counts() {
    on_a_disk("48m", "full_disk::child_beside_others");
}

fn on_a_disk(size: &str, child: &str) {
    let isolated = || Command::new("unshare").args(["--mount", "--propagation", "private", "true"]).output();
    if !rustix::process::geteuid().is_root() || !isolated().is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: only root, where it has its capabilities, can mount");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", SMALL_MOUNT, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env("ROOT", directory.path())
        .env("SIZE", size)
        .env("ORLOP_TEST_ROOT", directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn put(store: &Store, name: &str) -> Result<()> {
    let long = labels([("note", &"x".repeat(2000))]);
    let change = ImageChange::Upsert { name: name.to_owned(), target: target(name), labels: long };
    store.write_images(&scope(), &[change])
}

/// Puts records until the disk refuses one, as a full disk does; gives the names of those that are there.
fn put_until_full(store: &Store) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let error = loop {
        let name = format!("{:06}", acknowledged.len());
        match put(store, &name) {
            Ok(()) => acknowledged.push(name),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 10_000, "the disk never fills");
    };
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull),
        "{error:?}"
    );
    acknowledged
}

#[test]
fn child_on_a_small_disk() {
    let Some(root) = std::env::var_os("ORLOP_TEST_ROOT").map(PathBuf::from) else { return };
    let ballast = root.join("ballast");
    fs::write(&ballast, vec![1; 256 << 10]).unwrap();
    let store = open(&root).unwrap();
    let acknowledged = put_until_full(&store);
    let names = |store: &Store| store.images("test", &[]).unwrap().into_iter().map(|i| i.name).collect::<Vec<_>>();
    assert_eq!(names(&store), acknowledged, "it can still be read");
    assert!(put(&store, "another").is_err());
    drop(store);

    let store = open(&root).unwrap();
    assert_eq!(names(&store), acknowledged, "and opened");
    assert_eq!(store.check_metadata().unwrap(), []);
    fs::remove_file(ballast).unwrap();
    put(&store, "another").unwrap();
    assert_eq!(names(&store).len(), acknowledged.len() + 1);
    assert_eq!(store.check_metadata().unwrap(), []);
}

fn fill(ballast: &Path) {
    let mut ballast = fs::File::create(ballast).unwrap();
    while std::io::Write::write_all(&mut ballast, &[1; 4096]).is_ok() {}
}

#[test]
fn child_beside_others() {
    let Some(root) = std::env::var_os("ORLOP_TEST_ROOT").map(PathBuf::from) else { return };
    let store = open(&root).unwrap();
    put(&store, "first").unwrap();
    let ballast = root.join("ballast");
    // Another took everything after he began, and gave it back before he looks.
    let mut asking = store.asking(8 << 20);
    fill(&ballast);
    fs::remove_file(&ballast).unwrap();
    assert!(store.make_room(&mut asking));
    // Another had everything when he began.
    fill(&ballast);
    let mut asking = store.asking(64 << 20);
    fs::remove_file(&ballast).unwrap();
    assert!(store.make_room(&mut asking), "there is more than when he began");
    // He alone is there, and it does not suffice.
    assert!(!store.make_room(&mut asking));
    fill(&ballast);
    let mut asking = store.asking(1);
    assert!(!store.make_room(&mut asking));
}

#[test]
fn child_on_a_disk_with_a_reserve() {
    let Some(root) = std::env::var_os("ORLOP_TEST_ROOT").map(PathBuf::from) else { return };
    let store = open(&root).unwrap();
    put(&store, "first").unwrap();
    assert_eq!(fs::metadata(root.join("reserve")).unwrap().len(), 4 << 20);
    fill(&root.join("ballast"));
    put_until_full(&store);
    // What is held back is whole, or lent to nobody but a removal.
    let delete = ImageChange::Delete { name: "first".to_owned() };
    store.write_images(&scope(), &[delete]).unwrap();
    assert!(put(&store, "another").is_err());
    assert_eq!(store.check_metadata().unwrap(), []);
}
