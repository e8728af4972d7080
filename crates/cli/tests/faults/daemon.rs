//! A daemon with clients at work, whose disk fails, fills up or may not be written for a time, or that has no descriptor left:
//! each client is answered well or told what is the matter, who only reads is served, and when it is over each gets where it
//! wanted to, after a new start if the daemon says that it needs one. Many more are connected all the time, and none is cut off.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use orlop_testkit::archive::oci_archive;
use orlop_testkit::faults::{Act, Fault, Faults, Rule, Site};
use orlop_testkit::process::{Output, output};
use orlop_testkit::served::Served;
use orlop_testkit::tier;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::verdict::crowd::Crowd;
use crate::verdict::images::{above, image_of};
use crate::verdict::scratch::Scratch;
use crate::{common, outcome, verdict};

const CLIENTS: usize = 4;

/// What the daemon says when its disk failed.
const STOPPED: &str = "takes no changes any more";

/// What the daemon's registry is called, wherever it listens.
const REGISTRY: &str = "node.example:5000";

/// A daemon that is a registry too, and what it meets.
struct Node<'w> {
    served: Served,
    faults: Faults,
    registry: String,
    world: &'w World,
}

impl<'w> Node<'w> {
    fn start(root: &Path, world: &'w World) -> Self {
        let mut binary = common::binary();
        let faults = Faults::over(&mut binary, root).expect("the daemon can be watched");
        let config = world.dir.path().join("config.toml");
        let mut served = Served::start(binary, root, &["--config", config.to_str().expect("a plain path")]);
        let registry = common::registry_address(&mut served);
        Self { served, faults, registry, world }
    }

    /// What a client comes to with an act: a command, or a push of an image that it has itself.
    fn act(&self, args: &[String]) -> Output {
        if !is_push(args) {
            return client(&self.served.socket(), args);
        }
        let args: Vec<String> = args.iter().map(|arg| arg.replace(REGISTRY, &self.registry)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        output(&mut verdict::command(&self.world.own(), &args))
    }
}

fn is_push(args: &[String]) -> bool {
    args[0] == "push"
}

/// What clients have themselves, and what each does.
struct World {
    dir: TempDir,
    scripts: Vec<Script>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = format!("[registry]\naddress = \"127.0.0.1:0\"\nname = {REGISTRY:?}\n");
        std::fs::write(dir.path().join("config.toml"), config).expect("a file");
        let scripts = (0..CLIENTS).map(|client| script(client, dir.path())).collect();
        let world = Self { dir, scripts };
        for import in world.scripts.iter().flat_map(|script| &script.acts).filter(|args| args[0] == "import") {
            let import: Vec<&str> = import.iter().map(String::as_str).collect();
            output(&mut verdict::command(&world.own(), &import)).ok();
        }
        world
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("own")
    }
}

/// What a client comes to with a command.
pub(crate) fn client(socket: &Path, args: &[String]) -> Output {
    let mut command: Command = common::binary();
    output(command.arg("--address").arg(socket).args(["--namespace", "k8s.io", "-q"]).args(args))
}

pub(crate) fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// What a client does, one after the other, and the records that are there in the end.
struct Script {
    acts: Vec<Vec<String>>,
    records: BTreeMap<String, String>,
}

fn script(client: usize, directory: &Path) -> Script {
    let image = |number: usize| image_of(above(&format!("{client} {number}")));
    let name = |number: usize| format!("docker.io/library/client{client}:{number}");
    let archive = |number: usize| {
        let path = directory.join(format!("{client}-{number}.tar"));
        std::fs::write(&path, oci_archive(&[(&name(number), &image(number))])).expect("the archive is written");
        path.display().to_string()
    };
    let pushed = format!("{REGISTRY}/pushed{client}:1");
    let acts = vec![
        words(&["import", &archive(1)]),
        words(&["tag", "--force", &name(1), &name(3)]),
        words(&["import", &archive(2)]),
        words(&["tag", "--force", &name(2), &name(3)]),
        words(&["rm", &name(2)]),
        words(&["push", "--plain-http", &name(1), &pushed]),
        words(&["gc"]),
    ];
    let mut records = BTreeMap::new();
    let mut put = |name: String, number: usize| {
        records.insert(format!("k8s.io/{name}"), image(number).root.digest.to_string());
    };
    put(name(1), 1);
    put(pushed, 1);
    put(name(3), 2);
    for number in [1, 2] {
        put(format!("docker.io/library/client{client}@{}", image(number).root.digest), number);
        put(image(number).image_id().expect("an image").to_string(), number);
    }
    Script { acts, records }
}

/// Goes on with a script until something fails; how far it came, and what failed.
fn work(node: &Node<'_>, acts: &[Vec<String>], from: usize) -> (usize, Option<Output>) {
    for (at, args) in acts.iter().enumerate().skip(from) {
        let done = node.act(args);
        if !done.status.success() {
            return (at, Some(done));
        }
    }
    (acts.len(), None)
}

/// Several clients at once, and one that only looks; what each came to.
fn crowd(node: &Node<'_>, from: &[usize], looks: &AtomicBool) -> (Vec<(usize, Option<Output>)>, Vec<Output>) {
    let socket = node.served.socket();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut failed = Vec::new();
            while looks.load(Ordering::SeqCst) {
                failed.extend(Some(client(&socket, &words(&["images"]))).filter(|done| !done.status.success()));
            }
            failed
        });
        let workers: Vec<_> = node
            .world
            .scripts
            .iter()
            .zip(from)
            .map(|(script, from)| scope.spawn(move || work(node, &script.acts, *from)))
            .collect();
        let ended = workers.into_iter().map(|worker| worker.join().expect("a client ends")).collect();
        looks.store(false, Ordering::SeqCst);
        (ended, looking.join().expect("it ends"))
    })
}

/// Which calls count. No descriptor: new connections wait until there is one, and a client that waits for ever is no test.
fn which(fault: Fault, lasting: bool) -> Box<dyn Fn(&Site) -> bool + Send> {
    match fault {
        Fault::TooManyFiles if lasting => Box::new(|site| site.call != "accept4"),
        Fault::TooManyFiles => Box::new(|_| true),
        _ => Box::new(Site::changes),
    }
}

/// What is wrong with how a push failed: its client is told by HTTP, as every client of every registry is, and of a full disk by 507.
fn refused(done: &Output, fault: Fault) -> Result<(), String> {
    let is_full = matches!(fault, Fault::NoSpace | Fault::Quota);
    let says = done.stderr.contains("orlop: ") && (!is_full || done.stderr.contains("507"));
    match done.status.code() {
        Some(_) if says && !done.stderr.contains("panicked") => Ok(()),
        _ => Err(format!("a push ends with {}: {}", done.status, done.stderr)),
    }
}

/// One round: what went wrong, if anything.
fn round(fault: Fault, seed: u64, scratch: &Scratch, world: &World) -> Result<usize, String> {
    let root = scratch.lay(|_| Ok(()));
    let mut node = Node::start(&root, world);
    let connected = Crowd::of(&node.served.socket());
    let mut draw = StdRng::seed_from_u64(seed);
    let (from, lasting) = (draw.random_range(0..200), draw.random_ratio(1, 2));
    node.faults.set(Rule { which: which(fault, lasting), from, lasting, act: Act::Fail(fault) });
    let (ended, looks) = crowd(&node, &[0; CLIENTS], &AtomicBool::new(true));
    let hit = node.faults.clear();
    let told = |found: String, log: String| {
        let sites: Vec<String> = hit.iter().take(5).map(Site::to_string).collect();
        let lasting = if lasting { " and from there on" } else { "" };
        format!("{fault} at call {from}{lasting}, seed {seed}, at {sites:?} ({} in all): {found}\n{log}", hit.len())
    };
    for done in ended.iter().filter_map(|(_, failed)| failed.as_ref()).chain(&looks) {
        if done.command.contains("\"push\"") {
            refused(done, fault).map_err(|found| told(found, node.served.log()))?;
            continue;
        }
        outcome::wrong(done, fault).map_err(|found| told(found, node.served.log()))?;
    }
    connected.is_served().map_err(|found| told(found, node.served.log()))?;
    // Who only looks needs no space and no writable disk.
    if fault != Fault::TooManyFiles
        && let Some(look) = looks.first()
    {
        return Err(told(format!("a look fails: {}", look.stderr), node.served.log()));
    }
    let mut from: Vec<usize> = ended.iter().map(|(at, _)| *at).collect();
    let stopped = client(&node.served.socket(), &words(&["leases", "create"])).stderr.contains(STOPPED);
    if stopped {
        drop(node);
        node = Node::start(&root, world);
    }
    let (again, _) = crowd(&node, &from, &AtomicBool::new(false));
    for (at, (reached, failed)) in from.iter_mut().zip(again) {
        *at = reached;
        if let Some(failed) = failed {
            return Err(told(format!("when it is over: {}: {}", failed.command, failed.stderr), node.served.log()));
        }
    }
    let log = node.served.log();
    if log.contains("panicked") {
        return Err(told("it panicked".to_owned(), log));
    }
    drop(node);
    let found = verdict::collected(&root).map_err(|found| told(found, log.clone()))?;
    let wanted: BTreeMap<String, String> = world.scripts.iter().flat_map(|script| script.records.clone()).collect();
    match wanted.iter().find(|(name, target)| found.records().get(*name) != Some(target)) {
        Some((name, _)) => Err(told(format!("{name} is {:?}", found.records().get(name)), log)),
        None => Ok(hit.len()),
    }
}

#[test]
fn a_daemon_with_clients() {
    if !(common::is_root("faults") && Faults::available()) {
        return;
    }
    let world = World::new();
    let (scratch, seed) = (Scratch::new(), tier::amount("ORLOP_TEST_SEED", 1));
    let rounds = match tier::amount("ORLOP_TEST_FAULTS", 1) {
        0 => 100,
        rounds => rounds,
    };
    let (mut hit, mut tried) = (0, 0);
    for number in 0..rounds {
        for fault in Fault::ALL {
            tried += 1;
            let seed = seed * 1000 + number * 10 + fault as u64;
            match round(fault, seed, &scratch, &world) {
                Ok(calls) => hit += usize::from(calls > 0),
                Err(found) => panic!("{found}"),
            }
        }
    }
    eprintln!("{tried} rounds, in {hit} of which calls failed");
}
