//! Commands that work on the root themselves, each with an error at one call of each kind that it makes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use orlop_testkit::archive::oci_archive;
use orlop_testkit::faults::{Act, Fault, Faults, Rule, Site, kinds};
use orlop_testkit::image::Content;
use orlop_testkit::liar::Liar;
use orlop_testkit::power::Disk;
use orlop_testkit::process::{Output, output};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tier;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::common;
use crate::outcome;
use crate::verdict::images::{TO_FORMAT_1, chain, image};
use crate::verdict::scratch::Scratch;
use crate::verdict::{self, Seen, command};

/// At how many calls each error is tried in the short tier.
const SHORT: usize = 1;

/// How files are opened: `open`, `openat`.
const OPENS: &str = "open";

/// So many faults that were not borne are told.
const TOLD: usize = 3;

/// Commands that make a root, and one that is tried on it.
struct Bench {
    dir: TempDir,
    scratch: Scratch,
    /// What has been done so far.
    disk: Disk,
    tried: usize,
    broken: Vec<String>,
}

/// What is to be tried.
struct Case<'a> {
    args: &'a [&'a str],
    /// It may be given again when it was done already.
    again: bool,
}

impl Bench {
    /// `None`: this machine cannot.
    fn new() -> Option<Self> {
        if !(common::is_root("faults") && Faults::available()) {
            return None;
        }
        let scratch = Scratch::new();
        let root = scratch.lay(|_| Ok(()));
        let disk = Disk::read(root.parent().expect("it is in a directory")).expect("an empty directory");
        let dir = tempfile::tempdir().expect("a temporary directory");
        Some(Self { dir, scratch, disk, tried: 0, broken: Vec::new() })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn archive(&self, name: &str, content: &Content) -> String {
        let path = self.path(&format!("{}.tar", name.replace(['/', ':'], "-")));
        std::fs::write(&path, oci_archive(&[(name, content)])).expect("the archive is written");
        path
    }

    /// Does something that is not tried.
    #[track_caller]
    fn done(&mut self, args: &[&str]) {
        let root = self.laid();
        output(&mut command(&root, args)).ok();
        self.keep(&root);
    }

    fn keep(&mut self, root: &Path) {
        self.disk = Disk::read(root.parent().expect("it is in a directory")).expect("the root is read");
    }

    fn laid(&self) -> PathBuf {
        self.scratch.lay(|top| self.disk.lay(top))
    }

    /// Tries a command with every error, and goes on with what it has done without one.
    fn tries(&mut self, args: &[&str]) {
        self.all(&Case { args, again: false });
    }

    /// The same for a command that may be given twice.
    fn tries_again(&mut self, args: &[&str]) {
        self.all(&Case { args, again: true });
    }

    fn all(&mut self, case: &Case<'_>) {
        let (before, after, sites, end) = self.measure(case);
        let mut draw = StdRng::seed_from_u64(tier::amount("ORLOP_TEST_SEED", 1) ^ sites.len() as u64);
        for fault in Fault::ALL {
            for at in drawn(&sites, fault, &mut draw) {
                let lasting = draw.random_ratio(1, 2);
                self.tried += 1;
                let rule = Rule { which: Box::new(|_| true), from: at, lasting, act: Act::Fail(fault) };
                if let Err(found) = self.one(case, fault, rule, (&before, &after)) {
                    let lasting = if lasting { " and from there on" } else { "" };
                    self.broken.push(format!("{fault} at call {at}{lasting} of {:?}: {found}", case.args));
                }
                assert!(self.broken.len() < TOLD, "{}", self.broken.join("\n\n"));
            }
        }
        self.disk = end;
    }

    /// Runs the command without a fault: what is seen before and after it, which calls it makes, and what it leaves.
    fn measure(&self, case: &Case<'_>) -> (Seen, Seen, Vec<Site>, Disk) {
        let root = self.laid();
        let seen = |root: &Path| verdict::look(root).unwrap_or_else(|found| panic!("{:?}: {found}", case.args));
        // Opening makes what is not there.
        let before = seen(&root);
        let root = self.laid();
        let mut command = command(&root, case.args);
        let faults = Faults::over(&mut command, &root).expect("the command can be watched");
        faults.record();
        output(&mut command).ok();
        let sites = faults.recorded();
        self.clear_away(case, &root);
        let end = Disk::read(root.parent().expect("it is in a directory")).expect("the root is read");
        (before, seen(&root), sites, end)
    }

    fn one(
        &self,
        case: &Case<'_>,
        fault: Fault,
        rule: Rule,
        (before, after): (&Seen, &Seen),
    ) -> Result<(Vec<Site>, Output), String> {
        let root = self.laid();
        let mut command = command(&root, case.args);
        let faults = Faults::over(&mut command, &root).expect("the command can be watched");
        faults.set(rule);
        let done = output(&mut command);
        let hit = faults.clear();
        let told = |found: String| {
            let sites: Vec<String> = hit.iter().take(5).map(Site::to_string).collect();
            format!("at {sites:?} ({} in all): {found}\nit ended with {}: {}", hit.len(), done.status, done.stderr)
        };
        self.clear_away(case, &root);
        outcome::wrong(&done, fault).map_err(told)?;
        let goal = if done.status.success() { after } else { before };
        let found = verdict::judge(&root, goal, after).map_err(told)?;
        let can = case.again || found.is_named_like(before) && !before.is_named_like(after);
        if !can {
            return Ok((hit, done));
        }
        let again = self.again(case, &root);
        if !again.status.success() {
            return Err(told(format!("given again: {}: {}", again.status, again.stderr)));
        }
        verdict::judge(&root, after, after).map_err(|found| told(format!("given again: {found}")))?;
        Ok((hit, done))
    }

    /// Tries a command with an error at one call on a file of a name.
    #[track_caller]
    fn at(&self, args: &[&str], (call, name): (&'static str, &'static str), fault: Fault, lasting: bool) {
        let case = Case { args, again: true };
        let (before, after, ..) = self.measure(&case);
        let which =
            Box::new(move |site: &Site| site.call.starts_with(call) && (name.is_empty() || site.path.ends_with(name)));
        let found = self.one(&case, fault, Rule { which, from: 0, lasting, act: Act::Fail(fault) }, (&before, &after));
        let (hit, done) = found.unwrap_or_else(|found| panic!("{fault} at {call} of {name:?}, {args:?}: {found}"));
        assert!(!hit.is_empty(), "{args:?} does not call {call} of {name:?}");
        assert!(!done.stderr.contains("unable to open database file"), "{args:?}: {}", done.stderr);
    }

    fn again(&self, case: &Case<'_>, root: &Path) -> Output {
        let done = output(&mut command(root, case.args));
        self.clear_away(case, root);
        done
    }

    /// What a command leaves outside the root.
    fn clear_away(&self, case: &Case<'_>, root: &Path) {
        if case.args[0] == "mount" {
            let place = case.args.last().expect("a place");
            output(&mut command(root, &["umount", place]));
        }
    }

    #[track_caller]
    fn judge(self) {
        eprintln!("{} faults tried", self.tried);
        assert!(self.broken.is_empty(), "{}", self.broken.join("\n\n"));
    }
}

/// At which of the calls that can return it an error is tried: one call of a kind, of as many kinds as are to be tried.
fn drawn(sites: &[Site], fault: Fault, draw: &mut StdRng) -> Vec<usize> {
    let most = tier::amount("ORLOP_TEST_FAULTS", SHORT);
    let mut kinds = kinds(sites, |site| site.may(fault));
    if most == 0 {
        return kinds.into_iter().flat_map(|(_, numbers)| numbers).collect();
    }
    let mut chosen = BTreeSet::new();
    while chosen.len() < most && !kinds.is_empty() {
        let (_, numbers) = kinds.swap_remove(draw.random_range(0..kinds.len()));
        chosen.insert(numbers[draw.random_range(0..numbers.len())]);
    }
    chosen.into_iter().collect()
}

#[test]
fn images_that_come_and_go() {
    let Some(mut bench) = Bench::new() else { return };
    let (one, two) = (
        bench.archive("docker.io/library/one:1", &image("one")),
        bench.archive("docker.io/library/two:1", &image("two")),
    );
    let registry = Liar::start();
    let name = registry.put("app", "1", &image("three"));
    bench.tries_again(&["import", &one]);
    bench.tries_again(&["import", &two]);
    bench.tries_again(&["pull", "--plain-http", &name]);
    let pushed_to = Registry::start(&Options::new());
    if let Some(registry) = &pushed_to {
        bench.tries_again(&["push", "--plain-http", "one:1", &format!("{}/one:1", registry.host())]);
    }
    bench.judge();
}

#[test]
fn names_and_what_is_removed() {
    let Some(mut bench) = Bench::new() else { return };
    for word in ["one", "two"] {
        let archive = bench.archive(&format!("docker.io/library/{word}:1"), &image(word));
        bench.done(&["import", &archive]);
    }
    bench.tries_again(&["tag", "--force", "one:1", "app:1"]);
    bench.tries(&["rm", "one:1"]);
    bench.tries(&["undo"]);
    bench.done(&["rm", "one:1", "app:1"]);
    bench.tries_again(&["gc", "--trash"]);
    bench.tries(&["prune", "--unused", "--last-copies", "--yes"]);
    bench.judge();
}

#[test]
fn looks_and_checks() {
    let Some(mut bench) = Bench::new() else { return };
    let archive = bench.archive("docker.io/library/one:1", &image("one"));
    bench.done(&["import", &archive]);
    let (out, mounted) = (bench.path("out.tar"), bench.path("mounted"));
    std::fs::create_dir(&mounted).expect("a directory");
    bench.tries_again(&["images"]);
    bench.tries_again(&["explain", "one:1"]);
    bench.tries_again(&["df"]);
    bench.tries_again(&["check", "--deep"]);
    bench.tries_again(&["export", "one:1", "-O", &out]);
    bench.tries_again(&["mount", "one:1", &mounted]);
    bench.judge();
}

#[test]
fn snapshots_of_clients() {
    let Some(mut bench) = Bench::new() else { return };
    let archive = bench.archive("docker.io/library/one:1", &image("one"));
    bench.done(&["import", &archive]);
    bench.tries(&["snapshots", "prepare", "mine", &chain("one")]);
    bench.tries(&["snapshots", "commit", "theirs", "mine"]);
    bench.tries(&["snapshots", "rm", "theirs"]);
    bench.tries(&["snapshots", "prepare", "--snapshotter", "native", "copy", ""]);
    bench.judge();
}

#[test]
fn migration() {
    let Some(mut bench) = Bench::new() else { return };
    let archive = bench.archive("docker.io/library/one:1", &image("one"));
    bench.done(&["import", &archive]);
    let root = bench.laid();
    let connection = rusqlite::Connection::open(root.join("meta.db")).expect("the database opens");
    connection.execute_batch(TO_FORMAT_1).expect("it becomes an older one");
    drop(connection);
    bench.keep(&root);
    bench.tries_again(&["tag", "--force", "one:1", "app:1"]);
    bench.judge();
}

/// Regression: each of these was something else to the user, or a panic (docs/reliability.md).
#[test]
fn what_was_found_is_borne() {
    let Some(mut bench) = Bench::new() else { return };
    let (one, two) = (
        bench.archive("docker.io/library/one:1", &image("one")),
        bench.archive("docker.io/library/two:1", &image("two")),
    );
    bench.done(&["import", &one]);
    let tag = ["tag", "--force", "one:1", "app:1"];
    // "disk I/O error"; "no space" for whatever it was.
    bench.at(&tag, ("pwrite64", "meta.db-wal"), Fault::Quota, false);
    bench.at(&tag, ("pwrite64", "meta.db-shm"), Fault::ReadOnly, true);
    // "unable to open database file"; "attempt to write a readonly database".
    bench.at(&tag, (OPENS, ""), Fault::NoSpace, true);
    bench.at(&tag, (OPENS, "meta.db-wal"), Fault::Io, false);
    bench.at(&tag, (OPENS, "meta.db"), Fault::TooManyFiles, false);
    bench.at(&["images"], (OPENS, "meta.db-shm"), Fault::ReadOnly, false);
    // "no Orlop store"; "File exists"; "ingest not found".
    bench.at(&["images"], ("statx", "meta.db"), Fault::Io, false);
    bench.at(&["images"], ("statx", "content"), Fault::Io, false);
    bench.at(&["import", &two], ("newfstatat", "data"), Fault::Io, false);
    // A panic.
    bench.at(&["images"], ("socketpair", ""), Fault::TooManyFiles, true);
}
