//! Several processes at once on one root, some of them killed: what was acknowledged is there, and the store agrees
//! with itself.
//!
//! The processes are this test program, started with `ORLOP_TEST_ROOT` and running `child_works` or `child_writes_at_once`
//! alone. A child says on its standard output what has been acknowledged to it: `image <name> <digest>`, `gone <name>`,
//! `blob <digest>`, `snapshot <name>`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::support;
use crate::support::{PlainDriver, digest, labels, target};
use bytes::Bytes;
use orlop_content::{IngestOptions, Ingester, LocalStore, Manager, Writer, read_verified};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Error, ImageChange, OpenOptions, Result, Scope, Store};
use orlop_snapshot::Driver;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const STEPS: u32 = 60;

/// Threads of a process that writes at once: enough that they share transactions.
const THREADS: u32 = 8;

fn open(root: &Path) -> (Store, Arc<PlainDriver>) {
    let content = Arc::new(LocalStore::open(root.join("content")).unwrap());
    let driver = Arc::new(PlainDriver::new(root));
    let drivers: Vec<Arc<dyn Driver>> = vec![driver.clone()];
    (Store::open(root, OpenOptions { content, drivers, read_only: false }).unwrap(), driver)
}

/// One process at work; everything it keeps hangs on its lease `<who>`.
struct Worker {
    who: String,
    store: Store,
    scope: Scope,
    runtime: tokio::runtime::Runtime,
    rng: StdRng,
    top: String,
}

impl Worker {
    fn new(root: &Path, who: &str) -> Self {
        let store = open(root).0;
        let scope = Scope::new("test", who).with_lease(who);
        match store.create_lease("test", who, labels([])) {
            Ok(_) | Err(Error::AlreadyExists { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let rng = StdRng::seed_from_u64(u64::from(crc32fast::hash(who.as_bytes())));
        Self { who: who.to_owned(), store, scope, runtime, rng, top: String::new() }
    }

    /// Another thread of the same process, with the same store and lease.
    fn beside(&self, thread: u32) -> Self {
        let who = format!("{}t{thread}", self.who);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let rng = StdRng::seed_from_u64(u64::from(crc32fast::hash(who.as_bytes())));
        Self { who, store: self.store.clone(), scope: self.scope.clone(), runtime, rng, top: String::new() }
    }

    fn say(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "@ {line}").unwrap();
        out.flush().unwrap();
    }

    fn step(&mut self, number: u32) -> Result<()> {
        match self.rng.random_range(0..8) {
            0..=2 => self.image(number),
            3 | 4 => self.blob(number),
            5 | 6 => self.layer(number),
            _ => self.store.collect(Disposal::Reclaim).map(|_| ()),
        }
    }

    fn image(&mut self, number: u32) -> Result<()> {
        let name = format!("{}:{}", self.who, self.rng.random_range(0..5));
        if self.rng.random_ratio(1, 3) {
            self.say(&format!("maybe {name}"));
            self.store.write_images(&self.scope, &[ImageChange::Delete { name: name.clone() }])?;
            self.say(&format!("gone {name}"));
        } else {
            let target = target(&format!("{} {number}", self.who));
            let digest = target.digest.clone();
            self.say(&format!("maybe {name}"));
            self.store
                .write_images(&self.scope, &[ImageChange::Upsert { name: name.clone(), target, labels: labels([]) }])?;
            self.say(&format!("image {name} {digest}"));
        }
        Ok(())
    }

    /// Half of the blobs are the same in all processes.
    fn blob(&mut self, number: u32) -> Result<()> {
        let text =
            if number.is_multiple_of(2) { format!("shared {}", number % 16) } else { format!("{} {number}", self.who) };
        let content = self.store.content(&self.scope);
        let wanted = digest(&text);
        let expected = self.rng.random_ratio(1, 2).then(|| wanted.clone());
        let reference = format!("{} {number}", self.who);
        let written = self.runtime.block_on(async {
            let mut writer: Box<dyn Writer> =
                content.writer(IngestOptions { reference, total: text.len() as u64, expected }).await?;
            if writer.status().offset == 0 {
                writer.write(Bytes::from(text.into_bytes())).await?;
            }
            writer.commit(0, Some(&wanted)).await
        });
        match written {
            Ok(_) => {}
            // A commit that comes second is not leased by containerd either; do it as a client would.
            Err(orlop_content::Error::AlreadyExists(_)) => {
                let options = IngestOptions { reference: "lease".to_owned(), total: 0, expected: Some(wanted.clone()) };
                match self.runtime.block_on(content.writer(options)).map(|_| ()) {
                    Err(orlop_content::Error::AlreadyExists(_)) => {}
                    // Collected in between: there is nothing to hold.
                    Ok(()) | Err(orlop_content::Error::Locked(_)) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.say(&format!("blob {wanted}"));
        Ok(())
    }

    /// Layers of one stack, each process racing for the same names.
    fn layer(&mut self, number: u32) -> Result<()> {
        let snapshots = self.store.snapshots(&self.scope, "plain")?;
        let name = format!("layer {}", number / 12);
        let key = format!("extract {} {number}", self.who);
        let parent = self.top.clone();
        snapshots.prepare(&key, &parent, labels([]))?;
        match snapshots.commit(&format!("{parent}/{name}"), &key, None, labels([])) {
            Ok(()) => {}
            Err(Error::AlreadyExists { .. }) => snapshots.remove(&key)?,
            Err(error) => return Err(error),
        }
        self.top = format!("{parent}/{name}");
        self.say(&format!("snapshot {}", self.top));
        if self.rng.random_ratio(1, 4) {
            self.top.clear();
        }
        Ok(())
    }
}

#[test]
fn child_works() {
    let (Some(root), Ok(who)) = (std::env::var_os("ORLOP_TEST_ROOT"), std::env::var("ORLOP_TEST_WHO")) else { return };
    let mut worker = Worker::new(&PathBuf::from(root), &who);
    for number in 0..STEPS {
        worker.step(number).unwrap();
    }
    worker.say("done");
}

/// Some of what the threads do fails, in the middle of what others do.
#[test]
fn child_writes_at_once() {
    let (Some(root), Ok(who)) = (std::env::var_os("ORLOP_TEST_ROOT"), std::env::var("ORLOP_TEST_WHO")) else { return };
    let worker = Worker::new(&PathBuf::from(root), &who);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let mut worker = worker.beside(thread);
            scope.spawn(move || {
                for number in 0..STEPS {
                    worker.step(number).unwrap();
                    let image = support::image(&format!("{who}:refused", who = worker.who), "x");
                    let twice = [&image, &image].map(|image| worker.store.create_image(&worker.scope, image.clone()));
                    assert!(matches!(twice[1], Err(Error::AlreadyExists { .. })), "{twice:?}");
                }
            });
        }
    });
    worker.say("done");
}

/// What was acknowledged to one child.
#[derive(Default, Debug)]
struct Acknowledged {
    images: BTreeMap<String, Option<String>>,
    blobs: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    lines: usize,
    done: bool,
    rest: String,
}

fn start(root: &Path, who: &str, stop_after: Option<usize>) -> JoinHandle<Acknowledged> {
    start_as("processes::child_works", root, who, stop_after)
}

fn start_as(child: &str, root: &Path, who: &str, stop_after: Option<usize>) -> JoinHandle<Acknowledged> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env("ORLOP_TEST_ROOT", root)
        .env("ORLOP_TEST_WHO", who)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::spawn(move || follow(&mut child, stop_after))
}

/// Reads what a child says; kills it when it has said enough.
fn follow(child: &mut Child, stop_after: Option<usize>) -> Acknowledged {
    let mut told = Acknowledged::default();
    let out = BufReader::new(child.stdout.take().unwrap());
    for line in out.lines().map_while(Result::ok) {
        let Some((_, said)) = line.split_once("@ ") else { continue };
        told.lines += 1;
        match said.split_once(' ').unwrap_or((said, "")) {
            ("image", rest) => {
                let (name, digest) = rest.rsplit_once(' ').unwrap();
                told.images.insert(name.to_owned(), Some(digest.to_owned()));
            }
            ("gone", name) => drop(told.images.insert(name.to_owned(), None)),
            // Until the next line nobody knows.
            ("maybe", name) => drop(told.images.remove(name)),
            ("blob", digest) => drop(told.blobs.insert(digest.to_owned())),
            ("snapshot", name) => drop(told.snapshots.insert(name.to_owned())),
            _ => told.done = true,
        }
        // What it says until it is dead counts too: it goes on while the signal is on its way.
        if stop_after == Some(told.lines) {
            child.kill().unwrap();
        }
    }
    let output = child.wait().unwrap();
    if let Some(mut from) = child.stderr.take() {
        std::io::Read::read_to_string(&mut from, &mut told.rest).unwrap();
    }
    assert!(stop_after.is_some() || (output.success() && told.done), "{}", told.rest);
    told
}

fn check(root: &Path, all: &[Acknowledged]) {
    let (store, driver) = open(root);
    assert_eq!(store.check_metadata().unwrap(), []);
    let content = store.content(&Scope::new("test", "check"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..2 {
        for told in all {
            for (name, digest) in &told.images {
                let found = store.image("test", name).ok().map(|i| i.target.digest.to_string());
                assert_eq!(&found, digest, "{name}");
            }
            for digest in &told.blobs {
                let digest = digest.parse().unwrap();
                runtime.block_on(read_verified(&content, &digest, 100)).unwrap();
            }
            let snapshots = store.snapshots(&Scope::new("test", "check"), "plain").unwrap();
            for name in &told.snapshots {
                let info = snapshots.stat(name).unwrap();
                assert_eq!(info.kind, orlop_metadata::SnapshotKind::Committed);
                snapshots.view(&format!("view {name}"), name, labels([])).unwrap();
                snapshots.remove(&format!("view {name}")).unwrap();
            }
        }
        if round == 0 {
            store.collect(Disposal::Reclaim).unwrap();
            let full = store.collect_full(Disposal::Reclaim).unwrap();
            assert!(full.content.is_empty() && full.snapshots.is_empty(), "collect had found all: {full:?}");
        }
    }
    let digests = |list: Vec<orlop_content::Info>| list.into_iter().map(|i| i.digest.to_string()).collect();
    let raw: BTreeSet<String> = digests(runtime.block_on(store.raw_content().list()).unwrap());
    let rows: BTreeSet<String> = digests(runtime.block_on(content.list()).unwrap());
    let protected = protected(root);
    assert!(raw.is_superset(&rows), "a row without bytes: {:?}", rows.difference(&raw));
    let stray: Vec<_> = raw.difference(&rows).filter(|digest| !protected.contains(*digest)).collect();
    assert!(stray.is_empty(), "bytes without a row: {stray:?}");
    assert!(!driver.list().unwrap().is_empty());
    assert_eq!(store.check_metadata().unwrap(), []);
}

/// What writes that were killed between rename and row still hold, under their leases.
fn protected(root: &Path) -> BTreeSet<String> {
    let database = rusqlite::Connection::open(root.join("meta.db")).unwrap();
    let mut query = database.prepare("SELECT expected FROM ingest WHERE expected IS NOT NULL").unwrap();
    let found = query.query_map([], |row| row.get(0)).unwrap();
    found.collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn processes_work_on_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let started: Vec<_> = (0..5).map(|i| start(directory.path(), &format!("worker{i}"), None)).collect();
    let all: Vec<_> = started.into_iter().map(|child| child.join().unwrap()).collect();
    assert!(all.iter().any(|told| !told.snapshots.is_empty()) && all.iter().any(|told| !told.blobs.is_empty()));
    check(directory.path(), &all);
}

#[test]
fn killed_processes_leave_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..4_usize {
        let started: Vec<_> = (0..4_usize)
            .map(|i| start(directory.path(), &format!("r{round}w{i}"), (i > 0).then_some(3 + 9 * i + 7 * round)))
            .collect();
        let all: Vec<_> = started.into_iter().map(|child| child.join().unwrap()).collect();
        check(directory.path(), &all);
    }
}

#[test]
fn processes_whose_threads_share_transactions_are_killed_and_leave_what_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5_usize {
        let kill = |i: usize| (round < 4).then_some(20 + 60 * i + 45 * round);
        let started: Vec<_> = (0..2_usize)
            .map(|i| start_as("processes::child_writes_at_once", directory.path(), &format!("r{round}w{i}"), kill(i)))
            .collect();
        let all: Vec<_> = started.into_iter().map(|child| child.join().unwrap()).collect();
        assert!(all.iter().all(|told| told.lines >= 20), "{all:?}");
        check(directory.path(), &all);
    }
}
