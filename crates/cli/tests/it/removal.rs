//! Removing by plan, and its end: a plan that is not true any more, a trash that is empty.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Done, Orlop};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

/// A store with one image.
fn store() -> Orlop {
    let store = Orlop::new();
    let image = Content::image(&Image::host().layer(Layer::new([Entry::file("file", "content")])));
    let file = store.path("good.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/good:1", &image)])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    store
}

/// Waits until a process stands in line for the lock on a file.
fn wait_for_a_waiter(file: &Path, process: u32) {
    let inode = format!(":{}", std::fs::metadata(file).unwrap().ino());
    let is_waiter = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1) == Some(&"->")
            && words.contains(&process.to_string().as_str())
            && words.iter().any(|word| word.ends_with(&inode))
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string("/proc/locks").unwrap().lines().any(is_waiter) {
        assert!(Instant::now() < deadline, "nobody waits for {}", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Regression: the hash was compared before the transaction that deletes, so that whatever was written between the two was
/// overlooked. Here the removal is held up between them by the collector's lock, which it needs and a tag does not.
#[test]
fn a_plan_that_turns_stale_between_its_check_and_its_execution_is_not_executed() {
    let store = store();
    let plan = store.json(["rm", "--plan", "good:1"]);
    let hash = plan["plan"].as_str().unwrap();
    let path = store.root().join("gc.lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut removal = store.command(["rm", "--execute", hash, "good:1"]);
    let child = removal.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_waiter(&path, child.id());
    store.ok(["tag", "good:1", "other:1"]);
    let before = store.records();
    drop(lock);
    let done = Done::of(&child.wait_with_output().unwrap());
    assert_eq!(done.code, 4, "{}{}", done.out, done.err);
    assert!(done.err.contains(hash) && done.err.contains("stale"), "{}", done.err);
    assert_eq!(store.records(), before, "nothing was removed");
    store.is_sound();
}

/// What a plan does not depend on may change while it is executed.
#[test]
fn a_plan_that_stays_true_is_executed_whatever_else_is_written() {
    let store = store();
    let plan = store.json(["rm", "--plan", "good:1"]);
    let path = store.root().join("gc.lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut removal = store.command(["rm", "--execute", plan["plan"].as_str().unwrap(), "good:1"]);
    let child = removal.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_waiter(&path, child.id());
    store.ok(["leases", "create"]);
    drop(lock);
    let done = Done::of(&child.wait_with_output().unwrap());
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert_eq!(store.records(), Vec::<String>::new());
    store.is_sound();
}

/// Regression: it said `trash entry "(newest)": not found`.
#[test]
fn an_empty_trash_is_said_to_be_empty() {
    let store = store();
    let nothing = store.run(["undo"]);
    assert_eq!(nothing.code, 3);
    assert!(nothing.err.contains("the trash is empty"), "{}", nothing.err);
    store.ok(["rm", "good:1"]);
    let unknown = store.run(["undo", "yesterday"]);
    assert_eq!(unknown.code, 3);
    assert!(unknown.err.contains("yesterday") && unknown.err.contains("orlop undo --list"), "{}", unknown.err);
    store.ok(["undo"]);
    assert_eq!(store.run(["undo"]).code, 3, "it was undone");
    store.is_sound();
}

/// Regression: after a removal, and after a tag that moved, everything there is was read. Here one record cannot be read, and has
/// nothing to do with it.
#[test]
fn what_goes_is_told_from_what_has_to_do_with_it_alone() {
    let store = store();
    for name in ["second", "unread"] {
        let image = Content::image(&Image::host().layer(Layer::new([Entry::file(name, name)])));
        let file = store.path(&format!("{name}.tar"));
        let tag = format!("docker.io/library/{name}:1");
        std::fs::write(&file, archive::oci_archive(&[(tag.as_str(), &image)])).unwrap();
        store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    }
    let database = rusqlite::Connection::open(store.root().join("meta.db")).unwrap();
    let spoil = "UPDATE image SET labels = '{' WHERE name = 'docker.io/library/unread:1'";
    assert_eq!(database.execute(spoil, []).unwrap(), 1);
    assert_ne!(store.run(["images"]).code, 0, "reading everything fails");

    let records = || -> Vec<String> {
        let mut query = database.prepare("SELECT name FROM image ORDER BY name").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(records().len(), 9);
    store.ok(["tag", "--force", "second:1", "good:1"]);
    assert_eq!(
        records().len(),
        10,
        "second needs a hash reference in good's repository, good's own wait: {:?}",
        records()
    );
    store.ok(["rm", "--no-trash", "good:1"]);
    store.ok(["rm", "--no-trash", "second:1"]);
    let left = records();
    assert!(!left.iter().any(|name| name.contains("second")), "{left:?}");
    assert_eq!(left.iter().filter(|name| name.contains("unread")).count(), 2, "{left:?}");
}
