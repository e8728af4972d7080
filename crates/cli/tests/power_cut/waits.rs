//! How often a command waits for the disk: an upper bound for each layer, counted from outside. Each transaction of the database is one
//! sync of its write-ahead log. It was five of them a layer, and ten syncs in all, when every write, tree and blob had its own.

use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::power::Timeline;
use orlop_testkit::tar::Entry;

use crate::workload::Workload;

const LAYERS: usize = 40;

/// Syncs that a command takes however many layers there are: opening, documents, records, checkpoint.
const ONCE: usize = 20;

fn image(word: &str, layers: usize) -> Content {
    let layer = |at: usize| Layer::new([Entry::file(format!("{word}-{at}"), format!("{word} {at}\n"))]);
    Content::image(&(0..layers).fold(Image::new("linux/amd64"), |image, at| image.layer(layer(at))))
}

/// Judges the command after so many others.
#[track_caller]
fn judge(timeline: &Timeline, commands: usize) {
    let syncs = timeline.syncs(commands);
    let transactions = syncs.iter().filter(|name| name.ends_with("-wal")).count();
    eprintln!("{LAYERS} layers: {} syncs, {transactions} of them transactions", syncs.len());
    assert!(transactions <= LAYERS, "{transactions} transactions for {LAYERS} layers: {syncs:?}");
    // The file of each blob and its directory, and what committing trees takes where they are few at a time.
    assert!(syncs.len() <= 3 * LAYERS + ONCE, "{} syncs for {LAYERS} layers: {syncs:?}", syncs.len());
}

#[test]
fn layers_of_a_pull_wait_together() {
    let Some(mut work) = Workload::new() else { return };
    let registry = Liar::start();
    let small = registry.put("small", "1", &image("small", 1));
    let large = registry.put("large", "1", &image("large", LAYERS));
    work.run(&["pull", "--plain-http", &small]);
    work.run(&["pull", "--plain-http", &large]);
    judge(&work.finish().0, 1);
}

#[test]
fn layers_of_an_archive_wait_together() {
    let Some(mut work) = Workload::new() else { return };
    let small = work.archive("docker.io/library/small:1", &image("small", 1));
    let large = work.archive("docker.io/library/large:1", &image("large", LAYERS));
    work.run(&["import", &small]);
    work.run(&["import", &large]);
    judge(&work.finish().0, 1);
}
