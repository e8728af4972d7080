//! Two processes that meet at one write: what one is about to open, the other has finished meanwhile.

use std::sync::Mutex;

use orlop_testkit::archive::oci_archive;
use orlop_testkit::faults::{Act, Fault, Faults, Rule, Site};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::power::Disk;
use orlop_testkit::process::output;

use crate::common::{self, Orlop};
use crate::outcome;
use crate::verdict::command;
use crate::verdict::images::image;
use crate::verdict::scratch::Scratch;

/// So many syncs of the log an import of one image makes, and more.
const SYNCS: usize = 12;

/// Regression: it had a new write of a document that was there by then, and left that behind.
#[test]
fn a_pull_that_meets_another_one_leaves_no_write_behind() {
    if !Faults::available() {
        return;
    }
    let registry = Liar::start();
    let content = Content::index(&[Content::image(&Image::host().layer(Layer::noise("data", 1, 10_000)))]);
    let name = registry.put("app", "1", &content);
    let store = Orlop::new();
    store.ok(["gc"]);
    let pull = ["pull", "--plain-http", "--no-unpack", &name];
    let mut first = command(&store.root(), &pull);
    let faults = Faults::over(&mut first, &store.root()).expect("the command can be watched");
    let mut second = command(&store.root(), &pull);
    faults.set(Rule {
        which: Box::new(|site| site.call.starts_with("mkdir") && site.path.starts_with("content/ingest")),
        from: 0,
        lasting: false,
        act: Act::Before(Box::new(move || drop(output(&mut second).ok()))),
    });
    output(&mut first).ok();
    assert_eq!(faults.clear().len(), 1, "the two have met");
    let left: Vec<_> = std::fs::read_dir(store.root().join("content/ingest")).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    store.is_sound();
}

/// Regression: an import whose commit of bytes that were there failed for want of space, while another import brought them, said that
/// the archive was wrong (exit code 5). One that failed so by itself waited a minute for its own lock.
#[test]
fn an_import_that_meets_another_one_and_no_space_says_the_latter() {
    if !(common::is_root("faults") && Faults::available()) {
        return;
    }
    let (dir, scratch) = (tempfile::tempdir().expect("a temporary directory"), Scratch::new());
    let file = dir.path().join("one.tar").display().to_string();
    std::fs::write(&file, oci_archive(&[("docker.io/library/one:1", &image("one"))])).expect("an archive");
    let import = ["import", &file];
    // Killed when the bytes of the first blob are in their place, and nothing in the database says so.
    let root = scratch.lay(|_| Ok(()));
    output(&mut command(&root, &["gc"])).ok();
    let mut killed = command(&root, &import);
    let faults = Faults::over(&mut killed, &root).expect("the command can be watched");
    let placed = Mutex::new(false);
    let which = move |site: &Site| {
        let mut placed = placed.lock().expect("nothing panics");
        *placed |= site.call.starts_with("rename") && site.path.starts_with("content");
        *placed && site.call == "pwrite64" && site.path.ends_with("meta.db-wal")
    };
    faults.set(Rule { which: Box::new(which), from: 0, lasting: false, act: Act::Kill });
    assert!(!output(&mut killed).status.success());
    assert_eq!(faults.clear().len(), 1, "it came so far");
    let begun = Disk::read(root.parent().expect("it is in a directory")).expect("the root is read");
    for at in 0..SYNCS {
        let root = scratch.lay(|top| begun.lay(top));
        let mut first = command(&root, &import);
        let faults = Faults::over(&mut first, &root).expect("the command can be watched");
        let second = Mutex::new((0, Some(command(&root, &import))));
        // One sync of the log fails; before the program does anything else with a file, another import is made from start to end.
        let which = move |site: &Site| {
            let (synced, second) = &mut *second.lock().expect("nothing panics");
            let is_sync = site.call.contains("sync") && site.path.ends_with("meta.db-wal");
            *synced += usize::from(is_sync);
            if *synced == at + 1 && is_sync {
                return true;
            }
            if *synced > at
                && site.path.ends_with("gc.lock")
                && let Some(mut second) = second.take()
            {
                output(&mut second).ok();
            }
            false
        };
        faults.set(Rule { which: Box::new(which), from: 0, lasting: false, act: Act::Fail(Fault::Quota) });
        let done = output(&mut first);
        drop(faults.clear());
        outcome::wrong(&done, Fault::Quota).unwrap_or_else(|found| panic!("sync {at}: {found}"));
    }
}

/// A store with unpacked images of these names.
fn store_with(words: &[&str]) -> Orlop {
    let store = Orlop::new();
    for word in words {
        let file = store.path(&format!("{word}.tar"));
        let name = format!("docker.io/library/{word}:1");
        std::fs::write(&file, oci_archive(&[(&name, &image(word))])).expect("an archive");
        store.ok(["import", file.to_str().expect("a plain path")]);
    }
    store
}

/// Does something each time before a command takes the lock of collections, so often at most.
fn before_it_is_alone(most: usize, act: impl FnMut() + Send + 'static) -> Rule {
    let met = Mutex::new(0);
    let which = move |site: &Site| {
        let is_next = site.call.starts_with("open") && site.path.ends_with("gc.lock");
        let mut met = met.lock().expect("nothing panics");
        *met += usize::from(is_next);
        is_next && *met <= most
    };
    Rule { which: Box::new(which), from: 0, lasting: true, act: Act::Before(Box::new(act)) }
}

/// Regression: a removal beside somebody who writes all the time, to other records, gave up ("has changed meanwhile"). What somebody
/// does to the records that are meant still makes it another removal.
#[test]
fn a_removal_beside_others_who_write_all_the_time_is_done() {
    if !Faults::available() {
        return;
    }
    let store = store_with(&["one", "two"]);
    store.ok(["tag", "one:1", "mine:1"]);
    let root = store.root();
    let mut remove = command(&root, &["rm", "mine:1", "one:1"]);
    let faults = Faults::over(&mut remove, &root).expect("the command can be watched");
    let mut written = 0;
    // Each time that it has made its plan, and is about to do it.
    let write = move || {
        written += 1;
        output(&mut command(&root, &["tag", "two:1", &format!("others:{written}")])).ok();
    };
    faults.set(before_it_is_alone(usize::MAX, write));
    output(&mut remove).ok();
    assert!(faults.clear().len() > 1, "the two have met");
    let left = store.records();
    assert!(left.iter().all(|name| !name.contains("one:1") && !name.contains("mine:1")), "{left:?}");
    assert!(left.iter().any(|name| name == "docker.io/library/others:2"), "{left:?}");
    store.ok(["undo"]);
    store.ok(["verify", "-q", "one:1", "mine:1", "two:1"]);
    store.is_sound();
}

/// One of the records that are meant moves while they are removed: the plan is made anew, and is right.
#[test]
fn a_removal_whose_image_gets_another_name_leaves_that() {
    if !Faults::available() {
        return;
    }
    let store = store_with(&["one"]);
    let root = store.root();
    let mut remove = command(&root, &["rm", "one:1"]);
    let faults = Faults::over(&mut remove, &root).expect("the command can be watched");
    let mut written = 0;
    let write = move || {
        written += 1;
        output(&mut command(&root, &["tag", "--force", "one:1", &format!("other:{written}")])).ok();
    };
    // More often than it insists on being alone.
    faults.set(before_it_is_alone(8, write));
    output(&mut remove).ok();
    assert!(faults.clear().len() > 5, "the two have met");
    let left = store.records();
    let has = |wanted: &str| left.iter().any(|name| name == wanted);
    assert!(!has("docker.io/library/one:1") && has("docker.io/library/other:1"), "{left:?}");
    let id = image("one").image_id().expect("an image").to_string();
    assert!(has(&id), "what the other names need stays: {left:?}");
    store.is_sound();
}
