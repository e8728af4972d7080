//! What containerd removes goes from Orlop's disk to the byte.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop_testkit::containerd::Programs;

use crate::stack::{By, Of, Stack, is_old, ways};

/// Every file below Orlop's root, with the bytes that it has and the blocks that it takes; of directories that they are there. The
/// database and the journal of names are left out: they tell what happened, and grow with it.
fn files(root: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        // What goes meanwhile is gone, a directory too.
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            let name = entry.path().strip_prefix(root).unwrap().display().to_string();
            if name.starts_with("meta.db") || name == "history.log" {
                continue;
            }
            if metadata.is_dir() {
                open.push(entry.path());
                found.insert(name, (0, 0));
            } else {
                found.insert(name, (metadata.len(), metadata.blocks()));
            }
        }
    }
    found
}

/// Directories are made once, when something first lies in them.
fn without_directories(files: BTreeMap<String, (u64, u64)>) -> BTreeMap<String, (u64, u64)> {
    files.into_iter().filter(|(_, sizes)| *sizes != (0, 0)).collect()
}

/// Waits until the disk is as it was.
#[track_caller]
fn is_again(stack: &Stack, expected: &BTreeMap<String, (u64, u64)>, all: bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = files(&stack.store.root());
        let now = if all { now } else { without_directories(now) };
        if now == *expected {
            return;
        }
        let more: Vec<_> = now.iter().filter(|(name, sizes)| expected.get(*name) != Some(sizes)).collect();
        let less: Vec<_> = expected.iter().filter(|(name, _)| !now.contains_key(*name)).collect();
        assert!(Instant::now() < deadline, "{what}: more or other: {more:?}; less: {less:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn gives_all_back(programs: &Programs, of: Of, by: By) {
    let Some(stack) = Stack::start(programs, of, by) else { return };
    let what = format!("{} with {of:?} of Orlop by {by:?}", programs.version());
    let empty = without_directories(files(&stack.store.root()));
    stack.pull().ok();
    let full = files(&stack.store.root());
    let held: u64 =
        full.values().map(|(bytes, _)| bytes).sum::<u64>() - empty.values().map(|(bytes, _)| bytes).sum::<u64>();
    assert!(held > 2 << 20, "{what}: {held} bytes of an image that has more");
    drop(stack.run("one", &["--rm"], "head -c 1000000 /dev/urandom > /etc/written"));
    stack.remove();
    is_again(&stack, &empty, false, &what);
    // A second time not even a directory is more.
    let once = files(&stack.store.root());
    stack.pull().ok();
    drop(stack.run("two", &["--rm"], "mkdir -p /a/b && echo c > /a/b/c"));
    stack.remove();
    is_again(&stack, &once, true, &what);
}

#[test]
fn what_containerd_removes_goes_to_the_byte() {
    for (programs, by) in ways() {
        for of in [Of::Snapshotter, Of::Content, Of::Both] {
            gives_all_back(&programs, of, by);
        }
        if by == By::Ctr && !is_old(&programs) {
            gives_all_back(&programs, Of::Differ("orlop"), by);
        }
    }
}
