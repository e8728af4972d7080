//! Power cuts: the real binary's work is recorded call by call (`orlop_testkit::power`), and every state that a cut may leave at
//! any moment is made, opened and judged. After each the store opens, `check --deep` finds nothing, what was answered is there and
//! verifies, nothing else is visible than what was there before or is there after the command that was cut, every tree that a
//! container could start on is the one that its layers give; and a collection and the same command again go through.
//!
//! `ORLOP_TEST_CUTS` is how many states are tried at each point instead of a few (0: all that the model has), `ORLOP_TEST_SEED` draws others.
//! Needs root and strace.

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod pushes;
mod repair;
#[path = "../verdict/mod.rs"]
mod verdict;
mod waits;
mod wire;
mod workload;

use orlop_testkit::archive::oci_archive;
use orlop_testkit::liar::Liar;
use orlop_testkit::registry::{Options, Registry};
use verdict::images::{TO_FORMAT_1, chain, image};
use workload::Workload;

#[test]
fn imports_pulls_and_pushes() {
    let Some(mut work) = Workload::new() else { return };
    let archive = work.archive("docker.io/library/one:1", &image("one"));
    let registry = Liar::start();
    let name = registry.put("app", "1", &image("two"));
    work.again(&["import", &archive]);
    work.again(&["pull", "--plain-http", &name]);
    // Kept until all is judged: a push is given again.
    let pushed_to = Registry::start(&Options::new());
    if let Some(registry) = &pushed_to {
        work.again(&["push", "--plain-http", "one:1", &format!("{}/one:1", registry.host())]);
    }
    work.judge();
}

#[test]
fn tags_removals_and_collections() {
    let Some(mut work) = Workload::new() else { return };
    let one = work.archive("docker.io/library/one:1", &image("one"));
    let two = work.archive("docker.io/library/two:1", &image("two"));
    work.again(&["import", &one]);
    work.again(&["import", &two]);
    work.again(&["tag", "--force", "one:1", "app:1"]);
    work.again(&["tag", "--force", "two:1", "app:1"]);
    work.run(&["rm", "one:1"]);
    work.run(&["undo"]);
    work.run(&["rm", "one:1", "two:1"]);
    work.again(&["gc", "--trash"]);
    work.judge();
}

/// What a client makes itself, and what goes with a policy.
#[test]
fn snapshots_of_clients_and_prunes() {
    let Some(mut work) = Workload::new() else { return };
    let archives = ["one", "two"].map(|word| work.archive(&format!("docker.io/library/{word}:1"), &image(word)));
    work.again(&["import", &archives[0]]);
    work.run(&["snapshots", "prepare", "mine", &chain("one")]);
    work.run(&["snapshots", "view", "seen", &chain("one")]);
    work.run(&["snapshots", "commit", "theirs", "mine"]);
    work.run(&["snapshots", "prepare", "next", "theirs"]);
    work.again(&["import", &archives[1]]);
    work.run(&["snapshots", "rm", "next"]);
    work.run(&["prune", "--unused", "--last-copies", "--yes"]);
    work.run(&["undo"]);
    work.judge();
}

/// Its snapshots are copies of their parents.
#[test]
fn copies_of_trees() {
    let Some(mut work) = Workload::new() else { return };
    let registry = Liar::start();
    let name = registry.put("app", "1", &image("one"));
    work.again(&["pull", "--plain-http", "--snapshotter", "native", &name]);
    work.run(&["snapshots", "prepare", "--snapshotter", "native", "mine", &chain("one")]);
    work.judge();
}

/// Layers are images: written as they come, settled, sealed and recorded at their commit.
#[test]
fn images_of_layers() {
    if !orlop_testkit::mounts::need_file_system("erofs") {
        return;
    }
    let Some(mut work) = Workload::new() else { return };
    let registry = Liar::start();
    let name = registry.put("app", "1", &image("one"));
    work.again(&["pull", "--plain-http", "--snapshotter", "erofs", &name]);
    work.run(&["snapshots", "prepare", "--snapshotter", "erofs", "mine"]);
    work.run(&["snapshots", "commit", "--snapshotter", "erofs", "theirs", "mine"]);
    work.run(&["rm", &name]);
    work.judge();
}

/// What is below format 6 is brought up by the first command that opens it for writing.
#[test]
fn migration() {
    let work = Workload::on(|top| {
        let root = top.join("root");
        let archive = top.with_file_name("one.tar");
        std::fs::write(&archive, oci_archive(&[("docker.io/library/one:1", &image("one"))])).unwrap();
        let done = verdict::command(&root, &["import", archive.to_str().unwrap()]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let connection = rusqlite::Connection::open(root.join("meta.db")).unwrap();
        connection.execute_batch(TO_FORMAT_1).unwrap();
    });
    let Some(mut work) = work else { return };
    work.again(&["tag", "--force", "one:1", "app:1"]);
    work.judge();
}
