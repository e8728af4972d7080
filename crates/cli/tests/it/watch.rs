//! `orlop watch` on real containerds and on Orlop: what is done by others is told in words, as it happens.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::common;
use crate::common::{Orlop, binary};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running `orlop watch`; it ends when it is dropped.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    /// Starts it, and lets `happen` happen again and again until it tells of it: containerd does not say when a
    /// subscription stands.
    fn start(mut command: Command, mut happen: impl FnMut(usize)) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("orlop starts");
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let deadline = Instant::now() + PATIENCE;
        for number in 0.. {
            happen(number);
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(_) => break,
                Err(RecvTimeoutError::Timeout) => assert!(Instant::now() < deadline, "it tells of nothing"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended: {:?}", child.wait_with_output()),
            }
        }
        Self { child, lines }
    }

    /// The first line from now on that has all of these.
    #[track_caller]
    fn line_with(&self, parts: &[&str]) -> String {
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line with {parts:?} in\n{}", seen.join("\n"));
    }

    #[track_caller]
    fn json_with(&self, parts: &[&str]) -> Value {
        let line: Value = serde_json::from_str(&self.line_with(parts)).expect("every line is a document");
        assert_eq!(line["schema"], "orlop.watch/v1");
        line
    }

    /// The exit code and standard error.
    fn end(mut self, signal: Signal) -> (i32, String) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        self.wait()
    }

    fn wait(&mut self) -> (i32, String) {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let mut err = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut err).unwrap();
        (code, err)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn of(containerd: &Containerd, args: &[&str]) -> Command {
    let mut command = binary();
    command.arg("--address").arg(containerd.socket()).arg("watch").args(args);
    command
}

/// Makes namespaces, of which each makes an event.
fn namespaces(containerd: &Containerd) -> impl FnMut(usize) + '_ {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    |_| {
        let name = format!("probe{}", MADE.fetch_add(1, Ordering::Relaxed));
        containerd.ctr("default", &["namespaces", "create", &name]).ok();
    }
}

fn content(text: &str) -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file("small", text)]).packed(Compression::Gzip)))
}

fn file_of(store: &Orlop, name: &str, content: &Content) -> String {
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn what_ctr_does_is_told_in_words() {
    if !common::is_root("what_ctr_does_is_told_in_words") {
        return;
    }
    let store = Orlop::new();
    let (one, two) = (content("1"), content("2"));
    let name = "docker.io/library/small:1";
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        let watch = Watch::start(of(&containerd, &["-A"]), namespaces(&containerd));
        containerd.import("default", file_of(&store, name, &one).as_ref(), "native").ok();
        let digest = |content: &Content| content.root.digest.to_string();
        let line = watch.line_with(&["image created", name]);
        let arrow = format!("{name} → {}", &digest(&one)[..19]);
        assert!(line.contains(&arrow) && line.contains(" default "), "{line}");
        let line = watch.line_with(&["snapshot committed", "sha256:"]);
        assert!(line.contains("(from "), "{line}");
        // The tag moves: where it pointed is remembered.
        containerd.import("default", file_of(&store, name, &two).as_ref(), "native").ok();
        let line = watch.line_with(&["image updated", name, &digest(&two)[..19]]);
        assert!(line.contains(&format!("was {}", &digest(&one)[..19])), "{line}");
        let hash = format!("docker.io/library/small@{}", digest(&two));
        containerd.ctr("default", &["images", "tag", name, &hash]).ok();
        let line = watch.line_with(&["image created", &hash]);
        assert!(line.contains("hash reference: the image's name by digest"), "{line}");
        containerd.ctr("default", &["images", "rm", name]).ok();
        watch.line_with(&["image deleted", name]);
        containerd.ctr("default", &["containers", "create", "--snapshotter", "native", &hash, "box"]).ok();
        let line = watch.line_with(&["container created", "box"]);
        assert!(line.contains(&format!("of {}", &hash[..hash.len() - 52])), "{line}");
        let (code, err) = watch.end(Signal::INT);
        assert_eq!((code, err.as_str()), (130, ""));
    }
}

#[test]
fn the_image_id_that_cri_writes_is_explained() {
    if !common::is_root("the_image_id_that_cri_writes_is_explained") {
        return;
    }
    let store = Orlop::new();
    let content = content("cri");
    let file = file_of(&store, "docker.io/library/small:1", &content);
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options { cri: true, ..Options::default() });
        let watch = Watch::start(of(&containerd, &["-A", "-o", "json"]), namespaces(&containerd));
        containerd.import("k8s.io", file.as_ref(), "native").ok();
        let id = content.image_id().unwrap().to_string();
        let event = watch.json_with(&["image created", &format!("\"subject\":\"{id}\"")]);
        assert_eq!((&event["kind"], &event["namespace"]), (&"id".into(), &"k8s.io".into()));
        assert_eq!(event["target"], content.root.digest.as_str());
        assert!(event["note"].as_str().unwrap().contains("hash reference: the image ID"), "{event}");
        assert_eq!(event["author"], serde_json::json!({"name": "CRI", "inferred": true}));
        assert_eq!(event["topic"], "/images/create");
        assert_eq!(event["event"]["labels"]["io.cri-containerd.image"], "managed");
        assert!(event["at"].as_str().unwrap().ends_with('Z'));
    }
}

#[test]
fn only_what_was_asked_for_is_told() {
    if !common::is_root("only_what_was_asked_for_is_told") {
        return;
    }
    let store = Orlop::new();
    let file = file_of(&store, "docker.io/library/small:1", &content("x"));
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let containerd = Containerd::start(&programs, &Options::default());
        containerd.import("one", file.as_ref(), "native").ok();
        containerd.import("two", file.as_ref(), "native").ok();
        let args = [
            "-n",
            "two",
            "--filter",
            "topic==\"/images/create\"",
            "--filter",
            "topic==\"/images/delete\"",
            "-o",
            "name",
        ];
        let tag = |namespace: &str, name: &str| {
            containerd.ctr(namespace, &["images", "tag", "docker.io/library/small:1", name]).ok()
        };
        let watch = Watch::start(of(&containerd, &args), |number| drop(tag("two", &format!("probe:{number}"))));
        tag("one", "elsewhere:1");
        containerd.ctr("two", &["images", "label", "docker.io/library/small:1", "a=b"]).ok();
        tag("two", "here:1");
        containerd.ctr("two", &["images", "rm", "here:1"]).ok();
        let told = || loop {
            let line = watch.lines.recv_timeout(PATIENCE).unwrap();
            if !line.starts_with("probe:") {
                break line;
            }
        };
        assert_eq!([told(), told()], ["here:1", "here:1"]);
        // It ends by itself after so many events, or so long.
        let mut counted = Watch::start(of(&containerd, &["-A", "--count", "1"]), namespaces(&containerd));
        assert_eq!(counted.wait(), (0, String::new()));
        let done = of(&containerd, &["--for", "100ms"]).output().unwrap();
        assert!(done.status.success() && done.stdout.is_empty(), "{done:?}");
        // A filter that does not parse is the caller's mistake.
        let done = of(&containerd, &["--filter", "topic~"]).output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() == Some(2) && err.contains("filter") && err.contains("hint:"), "{err}");
    }
}

#[test]
fn nobody_is_left_without_a_word_when_the_server_ends() {
    if !common::is_root("nobody_is_left_without_a_word_when_the_server_ends") {
        return;
    }
    let Some(programs) = Programs::current() else { return };
    let mut containerd = Containerd::start(&programs, &Options::default());
    let mut watch = Watch::start(of(&containerd, &["-A"]), namespaces(&containerd));
    containerd.restart(Signal::KILL);
    let (code, err) = watch.wait();
    assert!(code == 8 && err.contains("orlop: "), "{code} {err}");
    // A reader that went away ends it, without a complaint.
    let mut watch = Watch::start(of(&containerd, &["-A"]), namespaces(&containerd));
    drop(std::mem::replace(&mut watch.lines, channel().1));
    let deadline = Instant::now() + PATIENCE;
    let mut happen = namespaces(&containerd);
    while watch.child.try_wait().unwrap().is_none() {
        happen(0);
        assert!(Instant::now() < deadline, "it goes on for nobody");
    }
    assert_eq!(watch.wait(), (0, String::new()));
}

#[test]
fn on_orlops_own_store_it_says_who_did_it() {
    let store = Orlop::new();
    let file = file_of(&store, "docker.io/library/small:1", &content("own"));
    let told = |store: &Orlop| {
        let mut command = store.command(["watch", "-o", "json"]);
        command.stderr(Stdio::piped());
        store.ok(["import", "--no-unpack", &file]);
        let watch = Watch::start(command, |number| {
            store.ok(["tag", "docker.io/library/small:1", &format!("docker.io/library/probe:{number}")]);
        });
        store.ok(["tag", "docker.io/library/small:1", "docker.io/library/small:2"]);
        let event = watch.json_with(&["\"subject\":\"docker.io/library/small:2\""]);
        assert_eq!(event["author"], serde_json::json!({"name": "orlop tag", "inferred": false}), "{event}");
        assert!(event["target"].as_str().unwrap().starts_with("sha256:"));
    };
    // Without a daemon: what other processes do to records, by the history.
    told(&store);
    let other = Orlop::new();
    let _served = other.serve(&[]);
    told(&other);
}

#[test]
fn a_foreign_store_has_no_log_and_says_what_to_do() {
    if !common::is_root("a_foreign_store_has_no_log_and_says_what_to_do") {
        return;
    }
    let Some(programs) = Programs::debian() else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let mut command = binary();
    let done = command.arg("--address").arg(containerd.socket()).arg("log").output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{err}");
    assert!(err.contains("keeps no log") && err.contains("orlop watch"), "{err}");
}
