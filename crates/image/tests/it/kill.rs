//! A process that is killed in the middle of a pull: the root opens, nothing half-done shows, and the next pull ends
//! as if nothing had been.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common;
use crate::common::{Entry, Made, Shelf, layers, scope};
use orlop_image::{CheckRequest, GcRequest, PullRequest, Settings};
use orlop_metadata::gc::Disposal;

const ROOT: &str = "ORLOP_TEST_KILL_ROOT";
const REFERENCE: &str = "ORLOP_TEST_KILL_REFERENCE";

/// Not a test of its own: the process that is killed. It says each event on standard error.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var(ROOT), std::env::var(REFERENCE)) else { return };
    let images = common::open(Path::new(&root), Settings::default());
    let request = PullRequest { reference, ..PullRequest::default() };
    let tell = |_| writeln!(std::io::stderr(), "event").unwrap();
    images.pull(&scope(), &common::client(), &request, &tell).await.unwrap();
    writeln!(std::io::stderr(), "end").unwrap();
}

fn start(root: &Path, reference: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["kill::child", "--exact", "--nocapture"])
        .env(ROOT, root)
        .env(REFERENCE, reference)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the child at its event number `at`; whether it came so far.
fn kill_at(mut child: Child, at: usize) -> bool {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let reached = lines.take_while(|line| line != "end").filter(|line| line == "event").nth(at).is_some();
    child.kill().unwrap();
    child.wait().unwrap();
    reached
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_killed_anywhere_leaves_a_sound_root() {
    let (shelf, mut made) = (Shelf::start().await, Made::default());
    let mut many = layers();
    many.push((0..200).map(|i| Entry::file(format!("many/{i}"), format!("{i}"))).collect());
    let image = made.image("amd64", &many);
    shelf.push(&made, "team/app:v1", &image).await;
    let reference = shelf.name("team/app:v1");
    let directory = tempfile::tempdir().unwrap();
    let mut at = 0;
    loop {
        let root = directory.path().join(at.to_string());
        let (path, name) = (root.clone(), reference.clone());
        let reached = tokio::task::spawn_blocking(move || kill_at(start(&path, &name), at)).await.unwrap();
        let images = common::open(&root, Settings::default());
        let names = images.store().images("k8s.io", &[]).unwrap();
        assert!(matches!(names.len(), 0 | 3), "records come all or none: {names:?}");
        let request = PullRequest { reference: reference.clone(), ..PullRequest::default() };
        images.pull(&scope(), &common::client(), &request, &|_| {}).await.unwrap();
        let problems = images.check(&scope(), &CheckRequest { deep: true, name: None }).await.unwrap();
        assert!(problems.is_empty(), "killed at {at}: {problems:?}");
        leaves_nothing(&images).await;
        if !reached {
            break;
        }
        at += 2;
    }
    assert!(at > 10, "only {at} places were tried");
}

/// When everything is removed, nothing stays.
async fn leaves_nothing(images: &orlop_image::Images) {
    let store = images.store();
    assert_eq!(images.remove_image(&scope(), &store.images("k8s.io", &[]).unwrap()[0].name).await.unwrap().len(), 3);
    assert!(store.leases("k8s.io", &[]).unwrap().is_empty(), "the next pull has ended the lease of the killed one");
    images.gc(&scope(), GcRequest { full: true, ..GcRequest::default() }).await.unwrap();
    let left = store.collect_full(Disposal::Reclaim).unwrap();
    assert!(left.content.is_empty() && left.snapshots.is_empty(), "{left:?}");
    assert!(store.content(&scope()).find(&[]).unwrap().is_empty());
    assert!(store.snapshots(&scope(), "").unwrap().list(&[]).unwrap().is_empty());
}
