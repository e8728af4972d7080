//! Rounds of one store: a daemon with clients at work is cut down, the store is judged, and the next daemon goes on with it. The daemon
//! is a registry too, to which clients push; and many more are connected and wait for events.
//!
//! What a client does next follows from a seed and from what it believes of its own names; so does when it ends. What was answered
//! must be there after the cut, of what was not yet answered each record may be as it was or as it was to be, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use orlop_testkit::archive::oci_archive;
use orlop_testkit::faults::{Act, Fault, Faults, Rule, Site};
use orlop_testkit::liar::Liar;
use orlop_testkit::process::{Output, output};
use orlop_testkit::served::Served;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::daemon::words;
use crate::verdict::crowd::Crowd;
use crate::verdict::images::{above, image_of};
use crate::verdict::{self, Seen};
use crate::{common, daemon, outcome};

const CLIENTS: usize = 4;

/// What a client does in a round at most.
const STEPS: usize = 7;

/// Images of its own that a client imports, and snapshots that it makes.
const OWN: usize = 2;

/// What the daemon's registry is called, wherever it listens.
const REGISTRY: &str = "node.example:5000";

/// Calls that change something in a round, and answers in one, roughly: somewhere among them is the cut.
const CALLS: usize = 3000;
const ANSWERS: usize = CLIENTS * STEPS;

/// Longest time between an answer and a kill, in microseconds: a call or two.
const LONGEST: u64 = 30_000;

/// How a round ends.
pub(crate) enum Cut {
    /// By SIGKILL at a call that changes something.
    AtCall,
    /// By SIGKILL some time after some answer.
    AfterAnswer,
    /// By this, done just before a call that changes something; then by SIGKILL.
    Before(Box<dyn FnMut() + Send>),
}

/// What a client asks for, and what follows from that.
#[derive(Debug, Clone)]
struct Step {
    /// A command of the daemon's client; of a push, the image and where in the daemon's registry it goes.
    args: Vec<String>,
    is_push: bool,
    records: BTreeMap<String, Option<String>>,
    snapshots: BTreeMap<String, bool>,
}

/// Whether it was refused because others changed something meanwhile, or took away what its plan was to be made from.
fn is_conflict(done: &Output) -> bool {
    let said = ["has changed meanwhile", "not found"].iter().any(|words| done.stderr.contains(words));
    done.status.code() == Some(4) || said
}

/// What is known of the store: names with their targets, and keys of clients' own snapshots.
#[derive(Debug, Clone, Default)]
struct Known {
    records: BTreeMap<String, String>,
    snapshots: BTreeSet<String>,
    /// A push that was not answered. Its client pushes again before it does anything else: until then the lease of the hour may hold
    /// what came of it, which no policy takes then.
    unanswered: Option<Step>,
}

impl Known {
    fn after(&mut self, step: &Step) {
        for (name, target) in &step.records {
            match target {
                Some(target) => self.records.insert(name.clone(), target.clone()),
                None => self.records.remove(name),
            };
        }
        for (key, there) in &step.snapshots {
            if *there {
                self.snapshots.insert(key.clone())
            } else {
                self.snapshots.remove(key)
            };
        }
    }
}

/// What there is to import, pull and push, and what trees come of it.
pub(crate) struct World {
    dir: TempDir,
    registry: Liar,
    reference: Seen,
}

fn layer(client: usize, number: usize) -> orlop_testkit::image::Layer {
    above(&format!("{client} {number}"))
}

fn target(client: usize, number: usize) -> String {
    image_of(layer(client, number)).root.digest.to_string()
}

fn name(client: usize, tag: usize) -> String {
    format!("docker.io/library/client{client}:{tag}")
}

/// A tag in the daemon's registry.
fn pushed(client: usize) -> String {
    format!("{REGISTRY}/pushed{client}:1")
}

fn key(client: usize, number: usize) -> String {
    format!("mine-{client}-{number}")
}

impl World {
    pub(crate) fn new() -> Self {
        let (dir, registry) = (tempfile::tempdir().expect("a temporary directory"), Liar::start());
        let config = format!("[registry]\naddress = \"127.0.0.1:0\"\nname = {REGISTRY:?}\n");
        std::fs::write(dir.path().join("config.toml"), config).expect("a file");
        let root = dir.path().join("reference");
        let done = |args: &[&str]| drop(output(&mut verdict::command(&root, args)).ok());
        for client in 0..CLIENTS {
            for number in 0..OWN {
                let archive = dir.path().join(format!("{client}-{number}.tar"));
                let image = image_of(layer(client, number));
                std::fs::write(&archive, oci_archive(&[(&name(client, number), &image)])).expect("an archive");
                done(&["import", archive.to_str().expect("a plain path")]);
            }
            let pulled = registry.put(&format!("pulled{client}"), "1", &image_of(layer(client, OWN)));
            done(&["pull", "--plain-http", &pulled]);
            for number in 0..OWN {
                done(&["snapshots", "prepare", &key(client, number), ""]);
            }
        }
        let reference = verdict::look(&root).unwrap_or_else(|found| panic!("the reference: {found}"));
        Self { dir, registry, reference }
    }

    fn archive(&self, client: usize, number: usize) -> String {
        self.dir.path().join(format!("{client}-{number}.tar")).display().to_string()
    }

    fn pulled(&self, client: usize) -> String {
        format!("{}/pulled{client}:1", self.registry.host())
    }

    /// Runs a step of a client, and says how that ended.
    fn run(&self, daemon: &Reached, step: &Step) -> Output {
        if !step.is_push {
            return daemon::client(&daemon.socket, &step.args);
        }
        let [image, to] = &step.args[..] else { panic!("an image and where it goes: {:?}", step.args) };
        let to = to.replace(REGISTRY, &daemon.registry);
        output(&mut verdict::command(&self.dir.path().join("reference"), &["push", "--plain-http", image, &to]))
    }

    /// What a client does next.
    fn step(&self, client: usize, known: &Known, draw: &mut StdRng) -> Step {
        if let Some(push) = &known.unanswered {
            return push.clone();
        }
        let plain = |args: &[&str]| Step {
            args: words(args),
            is_push: false,
            records: BTreeMap::new(),
            snapshots: BTreeMap::new(),
        };
        let number = draw.random_range(0..OWN);
        let names: Vec<String> =
            (0..=OWN).map(|tag| name(client, tag)).filter(|n| known.records.contains_key(n)).collect();
        let some = (!names.is_empty()).then(|| names[draw.random_range(0..names.len())].clone());
        let (pulled, mine, pushed) = (self.pulled(client), key(client, number), pushed(client));
        match (draw.random_range(0..13), some) {
            (0..=1, Some(source)) => {
                let moved = name(client, OWN);
                let records = [(moved.clone(), known.records.get(&source).cloned())].into();
                Step { records, ..plain(&["tag", "--force", &source, &moved]) }
            }
            (2, Some(gone)) => Step { records: [(gone.clone(), None)].into(), ..plain(&["rm", &gone]) },
            (3, Some(_)) => {
                // An image goes if all of its names are of these repositories.
                let [own, there] = [format!("docker.io/library/client{client}"), format!("{REGISTRY}/pushed{client}")];
                let all = names.iter().chain(known.records.contains_key(&pushed).then_some(&pushed));
                let records = all.map(|name| (name.clone(), None)).collect();
                let policy = ["prune", "--unused", "--last-copies", "--repository", &own, "--repository", &there];
                Step { records, ..plain(&[&policy[..], &["--no-trash", "--yes"]].concat()) }
            }
            (4, _) if known.records.contains_key(&pulled) => {
                Step { records: [(pulled.clone(), None)].into(), ..plain(&["rm", "--no-trash", &pulled]) }
            }
            (4..=5, _) => {
                let records = [(pulled.clone(), Some(target(client, OWN)))].into();
                Step { records, ..plain(&["pull", "--plain-http", &pulled]) }
            }
            (6, _) => plain(&["gc"]),
            (10, _) if known.records.contains_key(&pushed) => {
                Step { records: [(pushed.clone(), None)].into(), ..plain(&["rm", "--no-trash", &pushed]) }
            }
            (10..=12, _) => {
                let records = [(pushed.clone(), Some(target(client, number)))].into();
                Step { records, is_push: true, ..plain(&[&name(client, number), &pushed]) }
            }
            (7, _) if known.snapshots.contains(&mine) => {
                Step { snapshots: [(mine.clone(), false)].into(), ..plain(&["snapshots", "rm", &mine]) }
            }
            (7, _) => {
                let args = ["snapshots", "prepare", &mine, ""];
                Step { snapshots: [(mine.clone(), true)].into(), ..plain(&args) }
            }
            _ => {
                let records = [(name(client, number), Some(target(client, number)))].into();
                Step { records, ..plain(&["import", &self.archive(client, number)]) }
            }
        }
    }
}

/// How a client's part of a round ended.
struct Part {
    /// What it asked for last, and what came of that, if it failed.
    open: Option<(Step, Output)>,
    known: Known,
    answers: usize,
}

/// Where a daemon is reached.
struct Reached {
    socket: PathBuf,
    registry: String,
}

fn part(world: &World, daemon: &Reached, client: usize, known: &Known, seed: u64, answers: &AtomicUsize) -> Part {
    let mut part = Part { open: None, known: known.clone(), answers: 0 };
    let mut draw = StdRng::seed_from_u64(seed ^ client as u64);
    for _ in 0..STEPS {
        let step = world.step(client, &part.known, &mut draw);
        let done = world.run(daemon, &step);
        let conflict = !step.is_push && is_conflict(&done);
        if step.is_push {
            part.known.unanswered = Some(step.clone()).filter(|_| !done.status.success());
        }
        if !done.status.success() && !conflict {
            part.open = Some((step, done));
            return part;
        }
        if !conflict {
            part.known.after(&step);
        }
        part.answers += 1;
        answers.fetch_add(1, Ordering::SeqCst);
    }
    part
}

/// One store, and what is known of it.
pub(crate) struct Rounds<'w> {
    world: &'w World,
    root: PathBuf,
    known: Vec<Known>,
    /// Answers so far.
    pub(crate) answers: usize,
    /// Rounds that were cut while somebody waited for an answer.
    pub(crate) amid: usize,
}

impl<'w> Rounds<'w> {
    pub(crate) fn new(world: &'w World, root: &Path) -> Self {
        Self { world, root: root.to_owned(), known: vec![Known::default(); CLIENTS], answers: 0, amid: 0 }
    }

    /// A daemon and its clients, until it is cut down. The store can be judged then.
    pub(crate) fn cut(&mut self, seed: u64, cut: Cut) -> Result<Judge, String> {
        let mut draw = StdRng::seed_from_u64(seed);
        let mut binary = common::binary();
        let faults = Faults::over(&mut binary, &self.root).map_err(|e| e.to_string())?;
        let config = self.world.dir.path().join("config.toml");
        let mut served = Served::start(binary, &self.root, &["--config", config.to_str().expect("a plain path")]);
        let registry = common::registry_address(&mut served);
        let crowd = Crowd::of(&served.socket());
        let (from, after, pause) =
            (draw.random_range(0..CALLS), draw.random_range(0..ANSWERS), draw.random_range(0..LONGEST));
        let (timed, failing) = (matches!(cut, Cut::AfterAnswer), matches!(cut, Cut::Before(_)));
        let rule = |act| Rule { which: Box::new(Site::changes), from, lasting: false, act };
        match cut {
            Cut::AtCall => faults.set(rule(Act::Kill)),
            Cut::Before(act) => faults.set(rule(Act::Before(act))),
            Cut::AfterAnswer => {}
        }
        let (daemon, answers, world) = (Reached { socket: served.socket(), registry }, AtomicUsize::new(0), self.world);
        let parts: Vec<Part> = std::thread::scope(|scope| {
            let (daemon, answers) = (&daemon, &answers);
            let clients: Vec<_> = self
                .known
                .iter()
                .enumerate()
                .map(|(client, known)| scope.spawn(move || part(world, daemon, client, known, seed, answers)))
                .collect();
            if timed {
                while answers.load(Ordering::SeqCst) < after && !clients.iter().all(|client| client.is_finished()) {
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                // Not a wait for something: the moment of the kill is what is drawn.
                std::thread::sleep(std::time::Duration::from_micros(pause));
                served.process().kill();
            }
            clients.into_iter().map(|client| client.join().expect("a client ends")).collect()
        });
        served.process().kill();
        let hit = faults.clear();
        crowd.wait_for_the_end()?;
        let was_cut = timed || !hit.is_empty();
        let log = served.log();
        let sites: Vec<String> = hit.iter().map(Site::to_string).collect();
        let context = format!("seed {seed}, cut at {sites:?}\n{log}");
        for (step, done) in parts.iter().filter_map(|part| part.open.as_ref()) {
            if !was_cut {
                return Err(format!("{:?} fails: {}\n{context}", step.args, done.stderr));
            }
            // A client of the registry is told by HTTP, as every client of every registry is.
            if failing && !step.is_push {
                outcome::wrong(done, Fault::Io).map_err(|found| format!("{found}\n{context}"))?;
            }
        }
        if log.contains("panicked") {
            return Err(format!("it panicked\n{context}"));
        }
        self.answers += parts.iter().map(|part| part.answers).sum::<usize>();
        self.amid += usize::from(parts.iter().any(|part| part.open.is_some()));
        Ok(Judge { parts, context })
    }

    /// Judges the store after a cut, and takes what is there for what is known.
    pub(crate) fn judge(&mut self, judge: Judge) -> Result<(), String> {
        let Judge { parts, context } = judge;
        let told = |found: String| {
            let open: Vec<&Vec<String>> = parts.iter().filter_map(|p| Some(&p.open.as_ref()?.0.args)).collect();
            format!("{found}\nnot answered: {open:?}\n{context}")
        };
        let found = verdict::collected(&self.root).map_err(told)?;
        found.has_trees_of(&self.world.reference).map_err(told)?;
        let named =
            |record: &str| Some(record.strip_prefix("k8s.io/")?.to_owned()).filter(|name| !name.contains("sha256:"));
        let records: BTreeMap<String, String> =
            found.records().iter().filter_map(|(name, target)| Some((named(name)?, target.clone()))).collect();
        let snapshots: BTreeSet<String> =
            found.snapshots().filter_map(|key| Some(key.strip_prefix("k8s.io/overlayfs/")?.to_owned())).collect();
        let mut left = (records.clone(), snapshots.clone());
        for part in &parts {
            let mut records_may: BTreeMap<&String, Vec<Option<&String>>> =
                part.known.records.iter().map(|(name, target)| (name, vec![Some(target)])).collect();
            let mut snapshots_may: BTreeMap<&String, Vec<bool>> =
                part.known.snapshots.iter().map(|key| (key, vec![true])).collect();
            if let Some((step, _)) = &part.open {
                for (name, target) in &step.records {
                    records_may.entry(name).or_insert_with(|| vec![None]).push(target.as_ref());
                }
                for (key, there) in &step.snapshots {
                    snapshots_may.entry(key).or_insert_with(|| vec![false]).push(*there);
                }
            }
            for (name, may) in records_may {
                if !may.contains(&left.0.remove(name).as_ref()) {
                    return Err(told(format!("{name} is {:?}, and may be {may:?}", records.get(name))));
                }
            }
            for (key, may) in snapshots_may {
                if !may.contains(&left.1.remove(key)) {
                    return Err(told(format!("snapshot {key}: there {}, and may be {may:?}", snapshots.contains(key))));
                }
            }
        }
        if let Some(name) = left.0.keys().next() {
            return Err(told(format!("{name} is there, and nobody made it")));
        }
        if let Some(key) = left.1.iter().find(|key| key.starts_with("mine-")) {
            return Err(told(format!("snapshot {key} is there, and nobody made it")));
        }
        for (client, known) in self.known.iter_mut().enumerate() {
            let own = |name: &&String| {
                ["client", "pulled", "pushed"].iter().any(|kind| name.contains(&format!("{kind}{client}:")))
            };
            known.records = records
                .iter()
                .filter(|(name, _)| own(name))
                .map(|(name, target)| (name.clone(), target.clone()))
                .collect();
            let prefix = format!("mine-{client}-");
            known.unanswered = parts[client].known.unanswered.clone();
            known.snapshots = snapshots.iter().filter(|key| key.starts_with(&prefix)).cloned().collect();
        }
        Ok(())
    }
}

/// What is needed to judge a round.
pub(crate) struct Judge {
    parts: Vec<Part>,
    context: String,
}
