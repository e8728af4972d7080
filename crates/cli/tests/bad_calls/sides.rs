//! The servers: Orlop's daemon, and the containerds that are there; what they answer, side by side.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use orlop_testkit::served::Served;
use prost::Message;
use prost::bytes::Bytes;
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

use crate::common::{self, Orlop};
use crate::deviations::{Deviation, is_asked};
use crate::wire::{self, PATIENCE, Said};

/// What calls led to, by their names.
pub(crate) type Answers = BTreeMap<String, Said>;

/// A server that is asked.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) socket: PathBuf,
    /// `None`: Orlop.
    pub(crate) generation: Option<Generation>,
}

impl Peer {
    /// Whether it is asked this: Orlop is asked everything.
    pub(crate) fn is_asked(&self, call: &str) -> bool {
        self.generation.is_none_or(|generation| is_asked(generation, call))
    }
}

/// Calls one after the other on one connection, in the namespace `test`, each with a name.
pub(crate) struct Calls {
    peer: Peer,
    /// What names begin with.
    pub(crate) within: Option<String>,
    channel: Channel,
    pub(crate) answers: Answers,
}

impl Calls {
    pub(crate) async fn new(peer: Peer) -> Self {
        Self { channel: wire::connect(&peer.socket).await, peer, within: None, answers: Answers::new() }
    }

    pub(crate) async fn call(&mut self, name: &str, method: &str, message: &impl Message) {
        self.bytes(name, method, vec![message.encode_to_vec().into()]).await;
    }

    pub(crate) async fn bytes(&mut self, name: &str, method: &str, messages: Vec<Bytes>) {
        let name = self.within.as_ref().map_or_else(|| name.to_owned(), |within| format!("{within}: {name}"));
        if !self.peer.is_asked(&name) {
            return;
        }
        let path = format!("/containerd.services.{method}");
        let said = wire::call(&self.channel, &path, wire::namespace(Some(b"test")), messages).await;
        assert!(self.answers.insert(name.clone(), said).is_none(), "{name} twice");
    }
}

/// Orlop's daemon.
pub(crate) struct Ours {
    pub(crate) store: Orlop,
    pub(crate) served: Served,
    metrics: String,
    runtime: Runtime,
}

impl Ours {
    pub(crate) fn start() -> Self {
        let store = Orlop::new().in_namespace("test");
        let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
        let metrics = common::metrics_address(&mut served);
        Self { store, served, metrics, runtime: Runtime::new().expect("a runtime") }
    }

    pub(crate) fn ask<T, F: Future<Output = T>>(&self, ask: impl FnOnce(Peer) -> F) -> T {
        self.runtime.block_on(ask(Peer { socket: self.served.socket(), generation: None }))
    }

    pub(crate) fn gauge(&self, name: &str) -> u64 {
        let page = common::get(&self.metrics, "/metrics");
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("no {name}:\n{page}"))
    }

    /// Waits until a gauge has a value.
    #[track_caller]
    pub(crate) fn reaches(&self, gauge: &str, wanted: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.gauge(gauge) != wanted {
            assert!(
                Instant::now() < deadline,
                "{gauge} is {}, not {wanted}; writes: {}\n{}",
                self.gauge(gauge),
                self.store.ok(["content", "active"]),
                self.served.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until nothing runs any more, and nothing that only a call needs is left: no connection, no write, no mount,
    /// and of leases and snapshots just so many.
    #[track_caller]
    pub(crate) fn holds_only(&mut self, leases: u64, snapshots: u64) {
        let wanted = [
            ("orlop_calls_running", 0),
            ("orlop_connections", 0),
            ("orlop_waiting_bytes", 0),
            ("orlop_unfinished_bytes", 0),
            ("orlop_stored{kind=\"ingests\"}", 0),
            ("orlop_stored{kind=\"leases\"}", leases),
            ("orlop_stored{kind=\"snapshots\"}", snapshots),
        ];
        for (gauge, wanted) in wanted {
            self.reaches(gauge, wanted);
        }
        let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.served.process().id())).unwrap();
        let root = self.served.root().to_str().unwrap().to_owned();
        assert!(!mounts.contains(&root), "mounts are left:\n{mounts}");
        assert!(!self.served.log().contains("panicked"), "{}", self.served.log());
        self.store.is_sound();
    }

    /// Files that the process has open.
    pub(crate) fn files(&mut self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.served.process().id())).unwrap().count()
    }
}

/// A generation of containerd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Generation {
    Old,
    Current,
}

/// Those that are there; they say so if they are not.
pub(crate) fn generations() -> Vec<(Generation, Programs)> {
    if !need_root() {
        return Vec::new();
    }
    let found = [(Generation::Old, Programs::debian()), (Generation::Current, Programs::current())];
    found.into_iter().filter_map(|(generation, programs)| Some((generation, programs?))).collect()
}

/// Orlop's answers are those of each containerd that has the call, but for what is declared; what is declared happens.
#[track_caller]
pub(crate) fn compare<F: Future<Output = Answers>>(ours: &Answers, deviations: &[Deviation], ask: impl Fn(Peer) -> F) {
    check_messages(ours);
    let mut wrong = Vec::new();
    for (generation, programs) in generations() {
        let containerd = Containerd::start(&programs, &Options { cri: true, ..Options::default() });
        let peer = Peer { socket: containerd.socket(), generation: Some(generation) };
        let theirs = Runtime::new().unwrap().block_on(ask(peer));
        let idle = deviations.iter().filter(|deviation| deviation.is_idle(generation, theirs.keys()));
        wrong.extend(idle.map(|deviation| format!("{generation:?}: declared and not asked: {deviation:?}")));
        let known = theirs.iter().filter(|(_, said)| !said.is_unknown());
        wrong.extend(known.filter_map(|(call, theirs)| verdict(generation, call, theirs, &ours[call], deviations)));
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn verdict(generation: Generation, call: &str, theirs: &Said, ours: &Said, deviations: &[Deviation]) -> Option<String> {
    let declared = deviations.iter().find(|deviation| deviation.is_of(generation, call));
    let expected = declared.map_or((theirs.code, theirs.code), Deviation::codes);
    let same = ours.code != Code::Ok || theirs.code != Code::Ok || ours.message == theirs.message;
    (expected != (theirs.code, ours.code) || !same).then(|| {
        let cut = |said: &Said| said.message.chars().take(200).collect::<String>();
        format!(
            "{generation:?} {call}\n    containerd {:?}: {}\n    Orlop {:?}: {}\n    declared {expected:?}",
            theirs.code,
            cut(theirs),
            ours.code,
            cut(ours)
        )
    })
}

/// Who is refused is told why.
#[track_caller]
pub(crate) fn check_messages(answers: &Answers) {
    for (call, said) in answers {
        assert!(said.code == Code::Ok || !said.message.is_empty(), "{call}: {:?} without a message", said.code);
        assert!(!said.message.contains("a fault in the server"), "{call}: {}", said.message);
    }
}
