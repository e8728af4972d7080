//! `ctr events`: what is told while images, content, snapshots, leases, namespaces and containers change.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::answer::Answer;
use crate::client::{BY_SERVER, OLD};
use crate::deviation::{Deviation, How};
use crate::pair::{Pair, Side};
use crate::step::{Look, Step, step};

pub(crate) const NAMESPACE: &str = "compat-events";

pub(crate) static OF_NAMESPACES: Deviation = Deviation {
    name: "whose the events of namespaces are",
    reason: "containerd 1.6 tells of a namespace under the caller's; Orlop, as containerd 2.x, under its own",
    how: How::Same(without_callers),
};

pub(crate) static LAYERS_AT_ONCE: Deviation = Deviation {
    name: "the events of unpacking",
    reason: "Orlop prepares the snapshots of all layers at once, each without its parent, where containerd unpacks one on the \
             other",
    how: How::Same(without_unpacking),
};

fn without_callers(mut answer: Answer) -> Answer {
    for line in answer.out.iter_mut().filter(|line| line.contains(" /namespaces/")) {
        *line = line.split_once(" /namespaces/").map_or_else(String::new, |(_, rest)| rest.to_owned());
    }
    answer
}

fn without_unpacking(mut answer: Answer) -> Answer {
    answer.out.retain(|line| !line.contains("extract-RANDOM"));
    answer
}

/// The case: what is listened to.
pub(crate) const STEP: Step = step("import, label, tag; snapshots; namespaces; containers", "events")
    .but(OLD, &OF_NAMESPACES)
    .but(BY_SERVER, &LAYERS_AT_ONCE);

/// How long an event may be under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens while it listens.
const CHANGES: &[&str] = &[
    "images import %LOCAL --snapshotter overlayfs $FILES/app.tar",
    "images label example.org/app:1 a=b",
    "snapshots prepare one $TOP",
    "snapshots commit two one",
    "snapshots rm two",
    "namespaces create compat-other a=b",
    "namespaces label compat-other c=d",
    "namespaces rm compat-other",
    "containers create --snapshotter native example.org/app:1 web",
    "containers label web a=b",
    "containers rm web",
    "images tag %LOCAL example.org/app:1 example.org/app:2",
    "images rm example.org/app:2",
];

/// Both sides' events.
pub(crate) fn watch(pair: &Pair) -> [Answer; 2] {
    std::thread::scope(|scope| {
        [&pair.theirs, &pair.ours]
            .map(|side| scope.spawn(move || heard(pair, side)))
            .map(|listening| listening.join().expect("a client runs"))
    })
}

/// A client that listens; ended when dropped.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn heard(pair: &Pair, side: &Side) -> Answer {
    let path = side.scratch().join("events");
    let file = File::create(&path).expect("a writable file");
    let mut command = pair.command(side, NAMESPACE, "events");
    command.stdin(Stdio::null()).stderr(file.try_clone().expect("a file")).stdout(file);
    let _listener = Listener(command.spawn().expect("the client starts"));
    // Told to whoever listens: once it is heard, so is all that follows.
    let began = until_heard(pair, side, &path, "compat-begin");
    for line in CHANGES {
        let done = pair.command(side, NAMESPACE, line).output().expect("the client starts");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let text = until_heard(pair, side, &path, "compat-end");
    let between = text[began.len()..].lines().take_while(|line| !line.contains("compat-end"));
    // An own namespace, since others change too; what is stored is told by 2.x and comes as it is written.
    let lines: Vec<&str> = between.filter(|line| line.contains(NAMESPACE) || line.contains("compat-other")).collect();
    let output = std::process::Output {
        status: std::process::ExitStatus::default(),
        stdout: lines.join("\n").into_bytes(),
        stderr: Vec::new(),
    };
    pair.read(side, &output, Look::Lines)
}

/// Makes namespaces until one is heard of; returns all that was heard up to then.
fn until_heard(pair: &Pair, side: &Side, path: &Path, name: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    for round in 0.. {
        let line = format!("namespaces create {name}-{round}");
        let done = pair.command(side, "default", &line).output().expect("the client starts");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        let wanted = format!("{name}-{round}");
        // A second for this one, then another is made: the listener may not have been there yet.
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.contains(&wanted) && text.ends_with('\n') {
                return text;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(
            Instant::now() < deadline,
            "no event of {wanted} was heard: {}",
            std::fs::read_to_string(path).unwrap()
        );
    }
    unreachable!("the rounds do not end")
}
