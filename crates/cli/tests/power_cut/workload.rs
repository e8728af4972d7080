//! Commands that are recorded, and the judgement of every state that they may have left.

use std::path::PathBuf;
use std::process::Command;

use orlop_testkit::archive;
use orlop_testkit::image::Content;
use orlop_testkit::power::{self, Amount, Recorder, State};
use orlop_testkit::tier;
use tempfile::TempDir;

use crate::common;
use crate::verdict::{self, Seen};

/// After one of so many states the command that was cut is given again.
const AGAIN: usize = 16;

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
    pub(crate) fn on(prepare: impl FnOnce(&std::path::Path)) -> Option<Self> {
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
        let of_point = Some(tier::amount("ORLOP_TEST_CUTS", 5)).filter(|most| *most > 0);
        let amount = Amount { seed: tier::amount("ORLOP_TEST_SEED", 1), of_point };
        let (mut again, mut broken) = (0, Vec::new());
        let explored = timeline.explore(amount, &mut |state| {
            let root = scratch.lay(|top| state.disk.lay(top));
            let (before, after) = (&seen[state.marks], seen.get(state.marks + 1));
            let judged = verdict::judge(&root, before, after.unwrap_or(before)).and_then(|found| {
                let (Some(step), Some(after)) = (self.steps.get(state.marks), after) else { return Ok(()) };
                // What has not happened can be done, and some things can be done twice.
                let can = step.again || (found.is_named_like(before) && !before.is_named_like(after));
                if !can || state.number % AGAIN != 0 {
                    return Ok(());
                }
                again += 1;
                repeated(&root, step, after)
            });
            if let Err(found) = judged {
                broken.push(format!("{found}\n{}", told(state, &self.steps)));
            }
            broken.len() < 3
        });
        let (ops, syncs, marks) = timeline.counts();
        eprintln!(
            "{marks} commands, {ops} operations, {syncs} syncs: {} points, {} choices, {} states judged, {again} commands again",
            explored.points, explored.choices, explored.states
        );
        assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    }
}

fn told(state: &State<'_>, steps: &[Step]) -> String {
    let cut = steps.get(state.marks).map_or("after the last command".to_owned(), |step| step.args.join(" "));
    format!("cut: {cut}\n{}", state.story())
}

/// Gives a command again, which must lead to where it would have led.
fn repeated(root: &std::path::Path, step: &Step, after: &Seen) -> Result<(), String> {
    let args: Vec<&str> = step.args.iter().map(String::as_str).collect();
    let done = command(root, &args).output().map_err(|e| e.to_string())?;
    if !done.status.success() {
        return Err(format!("given again: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)));
    }
    verdict::judge(root, after, after).map_err(|found| format!("given again: {found}"))?;
    Ok(())
}

pub(crate) fn command(root: &std::path::Path, args: &[&str]) -> Command {
    let mut command = common::binary();
    command.arg("--root").arg(root).args(["--namespace", "k8s.io", "-q"]).args(args);
    command
}

/// Where states are laid, one after the other: in memory where there is a file system in it.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let memory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self { dir: memory.expect("a temporary directory") }
    }

    /// A root that was made anew, in place of the last one.
    fn lay(&self, lay: impl FnOnce(&std::path::Path) -> std::io::Result<()>) -> PathBuf {
        let top = self.dir.path().join("top");
        if top.exists() {
            std::fs::remove_dir_all(&top).expect("the last state goes");
        }
        std::fs::create_dir(&top).expect("a directory");
        lay(&top).expect("the state is laid");
        top.join("root")
    }
}
