//! `orlop top` on a real terminal, in front of real containerds and of Orlop's daemon: keys in, screens out.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::common;
use crate::common::{Done, Orlop, binary};
use crate::terminal::Terminal;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rustix::process::Signal;

const ESCAPE: &str = "\u{1b}";

fn content(text: &str) -> Content {
    let layer = Layer::new([Entry::file("file", text.repeat(1000))]).packed(Compression::Gzip);
    Content::image(&Image::host().layer(layer))
}

fn archive_of(store: &Orlop, name: &str, content: &Content) -> String {
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    file.to_str().unwrap().to_owned()
}

fn top(containerd: &Containerd, args: &[&str]) -> Command {
    let mut command = binary();
    command.arg("--address").arg(containerd.socket()).arg("top").args(args);
    command
}

fn generations() -> Vec<Programs> {
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

fn names(containerd: &Containerd) -> Vec<String> {
    let listed = containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok();
    listed.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn images_of_a_running_containerd_are_shown_explained_and_deleted_by_plan() {
    if !common::is_root("images_of_a_running_containerd_are_shown_explained_and_deleted_by_plan") {
        return;
    }
    let store = Orlop::new();
    let (app, other) = (content("app"), content("other"));
    for programs in generations() {
        let containerd = Containerd::start(&programs, &Options::default());
        containerd.import("k8s.io", archive_of(&store, "docker.io/library/app:1", &app).as_ref(), "native").ok();
        let mut screen = Terminal::start(top(&containerd, &[]), 80, 24);
        let text = screen.shows(&["docker.io/library/app:1", "containerd", "k8s.io", "1 Images 1", "q quit"]);
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // What others do shows by itself: another image, a hash reference of the first.
        let hash = format!("docker.io/library/app@{}", app.root.digest);
        containerd.ctr("k8s.io", &["images", "tag", "docker.io/library/app:1", &hash]).ok();
        containerd.import("k8s.io", archive_of(&store, "docker.io/library/other:1", &other).as_ref(), "native").ok();
        screen.shows(&["docker.io/library/other:1", "1 Images 2"]);
        screen.keys("/app");
        screen.shows(&["1 Images 1", "/app"]);
        screen.keys("\r\r");
        screen.shows(&[
            "a hash reference: the same by the digest",
            "No container stands on it",
            "Deleting all its names frees",
        ]);
        screen.keys("q2");
        screen.shows(&["LAYER", "docker.io/library/app:1"]);
        screen.keys("4");
        screen.shows(&["content (compressed layers", "kept by nothing", "namespace k8s.io"]);
        // A plan, first given up.
        screen.keys("1d");
        screen.shows(&["Records that go", &hash[..40], "y delete exactly this", "cannot be pulled again"]);
        screen.keys("n");
        screen.shows(&["nothing was changed"]);
        assert_eq!(names(&containerd).len(), 3);
        screen.keys("d");
        screen.shows(&["Records that go", "y delete exactly this"]);
        screen.keys("y");
        screen.shows(&["1 Images 0"]);
        assert_eq!(names(&containerd), ["docker.io/library/other:1"]);
        let layers = containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout;
        assert!(!layers.contains(app.root.digest.as_str()), "the last deletion waits for the collection: {layers}");
        screen.keys(ESCAPE);
        screen.shows(&["1 Images 1", "docker.io/library/other:1"]);
        screen.keys("q");
        assert_eq!(screen.ends(), 0);
    }
}

#[test]
fn a_plan_of_a_store_that_has_changed_deletes_nothing() {
    if !common::is_root("a_plan_of_a_store_that_has_changed_deletes_nothing") {
        return;
    }
    let store = Orlop::new();
    let (one, two) = (content("one"), content("two"));
    for programs in generations() {
        let containerd = Containerd::start(&programs, &Options::default());
        let name = "docker.io/library/app:1";
        containerd.import("k8s.io", archive_of(&store, name, &one).as_ref(), "native").ok();
        let mut screen = Terminal::start(top(&containerd, &[]), 80, 24);
        screen.shows(&[name]);
        screen.keys("d");
        screen.shows(&["Records that go"]);
        containerd.import("k8s.io", archive_of(&store, name, &two).as_ref(), "native").ok();
        screen.keys("y");
        screen.shows(&["the store has changed", "nothing was deleted"]);
        assert_eq!(names(&containerd), [name]);
        screen.keys("q");
        assert_eq!(screen.ends(), 0);
    }
}

#[test]
fn writes_in_progress_are_seen() {
    if !common::is_root("writes_in_progress_are_seen") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    containerd.ctr("k8s.io", &["namespaces", "create", "k8s.io"]).ok();
    let mut screen = Terminal::start(top(&containerd, &[]), 80, 24);
    screen.keys("3");
    screen.shows(&["3 Pulls 0", "WRITE IN PROGRESS"]);
    let mut ingest = binary();
    ingest.arg("--address").arg(containerd.socket()).args(["content", "ingest", "layer-being-pulled"]);
    let mut ingest = ingest.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = ingest.stdin.take().unwrap();
    input.write_all(&vec![7; 4 << 20]).unwrap();
    screen.shows(&["3 Pulls 1", "layer-being-pulled", "MiB"]);
    drop(input);
    ingest.wait().unwrap();
    screen.shows(&["3 Pulls 0"]);
}

#[test]
fn orlops_own_store_has_a_trash() {
    let store = Orlop::new();
    store.ok(["import", "--no-unpack", &archive_of(&store, "docker.io/library/app:1", &content("own"))]);
    let mut screen = Terminal::start(store.command(["top"]), 80, 24);
    screen.shows(&["docker.io/library/app:1", "1 Images 1"]);
    screen.keys("4");
    screen.shows(&["trash", "metadata", "its file system, used", "free"]);
    screen.keys("1d");
    screen.shows(&["Records that go", "orlop undo"]);
    screen.keys("y");
    screen.shows(&["1 Images 0"]);
    screen.keys("q");
    assert_eq!(screen.ends(), 0);
    store.ok(["undo"]);
    assert!(store.records().contains(&"docker.io/library/app:1".to_owned()));
}

#[test]
fn a_store_that_does_not_answer_holds_nothing_up() {
    let store = Orlop::new();
    store.ok(["import", "--no-unpack", &archive_of(&store, "docker.io/library/app:1", &content("slow"))]);
    let mut served = store.serve(&[]);
    let mut screen = Terminal::start(store.command(["top"]), 80, 24);
    screen.shows(&["docker.io/library/app:1"]);
    served.process().signal(Signal::STOP);
    screen.keys("u");
    screen.shows(&["reading, "]);
    screen.keys("?");
    screen.shows(&["read the store again now"]);
    screen.keys("q2");
    screen.shows(&["LAYER"]);
    screen.keys("1d");
    screen.shows(&["planning what deleting"]);
    screen.keys(ESCAPE);
    screen.shows(&["REFS", "docker.io/library/app:1"]);
    screen.keys("q");
    assert_eq!(screen.ends(), 0);
    served.process().signal(Signal::CONT);
}

#[test]
fn a_server_that_comes_back_is_gone_on_with() {
    if !common::is_root("a_server_that_comes_back_is_gone_on_with") {
        return;
    }
    let store = Orlop::new();
    let Some(programs) = Programs::current() else { return };
    let mut containerd = Containerd::start(&programs, &Options::default());
    let file = archive_of(&store, "docker.io/library/app:1", &content("back"));
    containerd.import("k8s.io", file.as_ref(), "native").ok();
    let mut screen = Terminal::start(top(&containerd, &[]), 80, 24);
    screen.shows(&["docker.io/library/app:1"]);
    containerd.restart(Signal::KILL);
    screen.shows(&["no events, reading every"]);
    containerd.ctr("k8s.io", &["images", "tag", "docker.io/library/app:1", "docker.io/library/app:2"]).ok();
    containerd.ctr("k8s.io", &["images", "rm", "docker.io/library/app:1"]).ok();
    screen.shows(&["docker.io/library/app:2"]);
    screen.keys("q");
    assert_eq!(screen.ends(), 0);
}

#[test]
fn every_way_out_leaves_the_terminal_as_it_was() {
    let store = Orlop::new();
    store.ok(["import", "--no-unpack", &archive_of(&store, "docker.io/library/app:1", &content("end"))]);
    let start = || {
        let mut screen = Terminal::start(store.command(["top"]), 80, 24);
        screen.shows(&["docker.io/library/app:1"]);
        screen
    };
    let mut screen = start();
    screen.keys("\u{3}");
    assert_eq!(screen.ends(), 130);
    for signal in [Signal::TERM, Signal::INT] {
        let screen = start();
        screen.signal(signal);
        assert_eq!(screen.ends(), 130);
    }
}

#[test]
fn the_view_follows_the_size_of_the_terminal() {
    let store = Orlop::new();
    store.ok(["import", "--no-unpack", &archive_of(&store, "docker.io/library/app:1", &content("size"))]);
    let mut screen = Terminal::start(store.command(["top"]), 80, 24);
    screen.shows(&["REFS", "docker.io/library/app:1"]);
    screen.resize(40, 10);
    screen.until("small list", |text| text.contains("app:1") && !text.contains("REFS"));
    screen.resize(20, 4);
    screen.shows(&["too small"]);
    screen.resize(120, 40);
    screen.shows(&["REFS", "docker.io/library/app:1"]);
    screen.keys("q");
    assert_eq!(screen.ends(), 0);
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let done: Done = Orlop::new().run(["top"]);
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("terminal") && done.err.contains("orlop images"), "{}", done.err);
}
