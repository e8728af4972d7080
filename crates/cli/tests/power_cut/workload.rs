//! Commands that are recorded, and the judgement of every state that they may have left.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use orlop_testkit::archive;
use orlop_testkit::image::Content;
use orlop_testkit::power::{self, Amount, Followed, Recorder, State, Timeline};
use orlop_testkit::tier;
use tempfile::TempDir;

use crate::common;
use crate::verdict::scratch::Scratch;
use crate::verdict::{self, Seen, command};

/// After one of so many states the command that was cut is given again.
const AGAIN: usize = 16;

/// How many states are tried at each point in the short tier.
const SHORT: usize = 3;

/// So many states that are broken are told.
const TOLD: usize = 3;

/// Commands on one root.
pub(crate) struct Workload {
    dir: TempDir,
    recorder: Recorder,
    steps: Vec<Step>,
}

struct Step {
    args: Vec<String>,
    /// Whether it may be given again after any cut.
    again: bool,
}

impl Workload {
    /// A root that is not there yet; `None`: this machine cannot.
    pub(crate) fn new() -> Option<Self> {
        Self::on(|_| {})
    }

    /// A root that `prepare` makes, in the directory that it is given.
    pub(crate) fn on(prepare: impl FnOnce(&Path)) -> Option<Self> {
        if !(common::is_root("power_cut") && power::need_recorder()) {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let top = dir.path().join("top");
        std::fs::create_dir(&top).expect("a directory");
        prepare(&top);
        let recorder = Recorder::new(&top, &dir.path().join("log")).expect("the directory is read");
        Some(Self { dir, recorder, steps: Vec::new() })
    }

    /// An archive beside what is recorded.
    pub(crate) fn archive(&self, name: &str, content: &Content) -> String {
        let path = self.dir.path().join(format!("{}.tar", name.replace(['/', ':'], "-")));
        std::fs::write(&path, archive::oci_archive(&[(name, content)])).expect("the archive is written");
        path.display().to_string()
    }

    /// Runs a command, which must succeed.
    #[track_caller]
    pub(crate) fn run(&mut self, args: &[&str]) -> String {
        self.step(args, false)
    }

    /// The same for a command that does the same when it is given again.
    #[track_caller]
    pub(crate) fn again(&mut self, args: &[&str]) -> String {
        self.step(args, true)
    }

    #[track_caller]
    fn step(&mut self, args: &[&str], again: bool) -> String {
        let done = self.recorder.run(&command(&self.dir.path().join("top/root"), args)).ok();
        self.steps.push(Step { args: args.iter().map(|arg| (*arg).to_owned()).collect(), again });
        done.stdout
    }

    /// Runs a command that ends with this exit code.
    #[track_caller]
    pub(crate) fn ends_with(&mut self, args: &[&str], code: i32) {
        self.recorder.run(&command(&self.dir.path().join("top/root"), args)).code(code);
        self.steps.push(Step { args: args.iter().map(|arg| (*arg).to_owned()).collect(), again: false });
    }

    /// What was recorded, and where states can be laid.
    pub(crate) fn finish(self) -> (Timeline, Scratch) {
        (self.recorder.finish(), Scratch::new())
    }

    /// Starts a command that goes on until it is stopped; what it says is kept.
    pub(crate) fn start(&self, args: &[&str]) -> Followed {
        let mut command = common::binary();
        command.arg("--root").arg(self.dir.path().join("top/root")).args(["--namespace", "k8s.io"]).args(args);
        self.recorder.start(&command)
    }

    /// Stops it, and says what was recorded, with a mark at each time, and where states can be laid.
    pub(crate) fn stop(mut self, running: Followed, answered: &[SystemTime]) -> (Timeline, Scratch) {
        self.recorder.stop(running, answered);
        (self.recorder.finish(), Scratch::new())
    }

    /// A place beside what is recorded.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes every state, and judges it.
    #[track_caller]
    pub(crate) fn judge(self) {
        let timeline = self.recorder.finish();
        let scratch = Scratch::new();
        let seen: Vec<Seen> = (0..=self.steps.len())
            .map(|mark| {
                let root = scratch.lay(|top| timeline.at_mark(mark).lay(top));
                verdict::look(&root).unwrap_or_else(|found| panic!("after {mark} commands: {found}"))
            })
            .collect();
        let mut again = 0;
        explored(&timeline, &scratch, SHORT, &mut |root, state| {
            let (before, after) = (&seen[state.marks], seen.get(state.marks + 1));
            let cut =
                self.steps.get(state.marks).map_or("after the last command".to_owned(), |step| step.args.join(" "));
            let judged = verdict::judge(root, before, after.unwrap_or(before)).and_then(|found| {
                let (Some(step), Some(after)) = (self.steps.get(state.marks), after) else { return Ok(()) };
                // What has not happened can be done, and some things can be done twice.
                let can = step.again || (found.is_named_like(before) && !before.is_named_like(after));
                if !can || state.number % AGAIN != 0 {
                    return Ok(());
                }
                again += 1;
                repeated(root, step, after)
            });
            judged.map_err(|found| format!("{found}\ncut: {cut}"))
        });
        eprintln!("{again} commands were given again");
    }
}

/// Makes states of a recording, `short` at each point in the short tier, and has them judged; the first few that are broken
/// are told.
#[track_caller]
pub(crate) fn explored(
    timeline: &Timeline,
    scratch: &Scratch,
    short: usize,
    judge: &mut dyn FnMut(&Path, &State<'_>) -> Result<(), String>,
) {
    let of_point = Some(tier::amount("ORLOP_TEST_CUTS", short)).filter(|most| *most > 0);
    let amount = Amount { seed: tier::amount("ORLOP_TEST_SEED", 1), of_point };
    let mut broken = Vec::new();
    let explored = timeline.explore(amount, &mut |state| {
        let root = scratch.lay(|top| state.disk.lay(top));
        if let Err(found) = judge(&root, state) {
            broken.push(format!("{found}\n{}", state.story()));
        }
        broken.len() < TOLD
    });
    let (ops, syncs, marks) = timeline.counts();
    eprintln!(
        "{marks} answers, {ops} operations, {syncs} syncs: {} points, {} choices, {} states judged",
        explored.points, explored.choices, explored.states
    );
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// Gives a command again, which must lead to where it would have led.
fn repeated(root: &Path, step: &Step, after: &Seen) -> Result<(), String> {
    let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
    let done = command(root, &args).output().map_err(|e| e.to_string())?;
    if !done.status.success() {
        return Err(format!("given again: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)));
    }
    verdict::judge(root, after, after).map_err(|found| format!("given again: {found}"))?;
    Ok(())
}
