//! Either of both is not there when the other starts; both are killed; the whole node starts again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_testkit::process::{Output, output};
use rustix::process::{Pid, Signal, kill_process};

use crate::stack::{By, Of, Stack, generations, ways};

const WAITS: &str = "while true; do sleep 1; done";

#[test]
fn a_containerd_starts_without_orlop_says_what_is_missing_and_comes_to_life_with_it() {
    for (programs, by) in ways() {
        for of in [Of::Snapshotter, Of::Content, Of::Both] {
            let Some(mut stack) = Stack::start(&programs, of, by) else { return };
            let what = format!("{} with {of:?} of Orlop by {by:?}", programs.version());
            stack.pull().ok();
            stack.served.process().kill();
            // As after a start of the node: what listens there is not even a file.
            std::fs::remove_file(stack.store.path("raw")).unwrap();
            // It answers although Orlop is not there.
            stack.containerd.restart(Signal::TERM);
            let listed = stack.ctr(&["images", "ls", "-q"]).ok().stdout;
            assert!(listed.contains(&stack.name()), "{what}: {listed}");
            let broken = stack.ctr(&["plugins", "ls"]).ok().stdout;
            let broken = broken.lines().filter(|line| line.contains("orlop") && !line.trim_end().ends_with("ok"));
            assert_eq!(broken.collect::<Vec<_>>(), [""; 0], "{what}: its plugins are there, whoever is behind them");
            // What needs Orlop fails, and names the socket that nobody has.
            let raw = stack.store.path("raw").display().to_string();
            let failed = if of == Of::Snapshotter {
                stack.ctr(&["snapshots", "--snapshotter", stack.snapshotter(), "ls"])
            } else {
                // containerd lists blobs from its own database; their bytes are Orlop's.
                let blobs = stack.ctr(&["content", "ls", "-q"]).ok().stdout;
                stack.ctr(&["content", "get", blobs.lines().next().expect("a blob")])
            };
            assert!(!failed.status.success(), "{what}: {failed:?}");
            // containerd 1.6 tries for some seconds and tells only that it gave up.
            let why = ["no such file", "timeout"].iter().any(|why| failed.stderr.contains(why));
            assert!(failed.stderr.contains(&raw) && why, "{what}: {failed:?}");
            let failed = stack.pull();
            assert!(!failed.status.success(), "{what}: {failed:?}");

            stack.served = stack.again();
            stack.until(&mut stack.pulling(), "");
            if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept") {
                assert_eq!(said, "kept", "{what}");
            }
            assert_eq!(stack.layers_in_containerd().len(), if of == Of::Content { 3 } else { 0 }, "{what}");
            stack.remove();
            stack.is_emptied();
            stack.store.is_sound();
        }
    }
}

/// Runs a test on a stack with a container `one`: of each generation, with what it may have of Orlop, and with who of both starts
/// first again. Afterwards the container and its image go, and nothing is left. Where this machine runs no containers it ends.
fn in_either_order(command: &str, test: impl Fn(&mut Stack, bool, &str)) {
    for programs in generations() {
        for (of, orlop_first) in [Of::Snapshotter, Of::Both].into_iter().flat_map(|of| [(of, true), (of, false)]) {
            let Some(mut stack) = Stack::start(&programs, of, By::Ctr) else { return };
            stack.pull().ok();
            if stack.run("one", &["--detach"], command).is_none() {
                return;
            }
            let what = format!("{} with {of:?}, Orlop first: {orlop_first}", programs.version());
            test(&mut stack, orlop_first, &what);
            let one = stack.id("one");
            stack.ctr(&["tasks", "rm", "--force", &one]).ok();
            stack.ctr(&["containers", "rm", &one]).ok();
            stack.remove();
            stack.is_emptied();
            stack.store.is_sound();
        }
    }
}

/// Starts both again.
fn start_both(stack: &mut Stack, orlop_first: bool) {
    if orlop_first {
        stack.served = stack.again();
        stack.containerd.start_again();
    } else {
        stack.containerd.start_again();
        stack.served = stack.again();
    }
}

#[test]
fn both_are_killed_and_start_in_either_order_and_containers_go_on() {
    in_either_order(WAITS, |stack, orlop_first, what| {
        let (process, one) = (pid(stack, "one"), stack.id("one"));
        stack.containerd.stop(Signal::KILL);
        stack.served.process().kill();
        start_both(stack, orlop_first);
        assert_eq!(pid(stack, "one"), process, "{what}");
        let exec = ["tasks", "exec", "--exec-id", "look", &one, "/bin/sh", "-c", "cat /etc/kept; echo two > /etc/two"];
        assert_eq!(stack.ctr(&exec).ok().stdout, "kept", "{what}");
        // It can be ended and begun again, and others can start.
        stack.ctr(&["tasks", "kill", "--signal", "KILL", &one]).ok();
        stack.until(&mut stack.tasks(), "STOPPED");
        stack.ctr(&["tasks", "rm", &one]).ok();
        start(stack, &one);
        let exec = ["tasks", "exec", "--exec-id", "again", &one, "/bin/sh", "-c", "cat /etc/two"];
        assert_eq!(stack.ctr(&exec).ok().stdout, "two\n", "{what}: what it wrote");
        assert_eq!(stack.run("two", &["--rm"], "cat /etc/kept").as_deref(), Some("kept"), "{what}");
    });
}

/// The directory of a stack's containerd.
fn directory(stack: &Stack) -> PathBuf {
    stack.containerd.socket().parent().expect("a directory of its own").to_owned()
}

/// The processes that watch the containers of a stack.
fn shims(stack: &Stack) -> Vec<i32> {
    let address = stack.containerd.socket().display().to_string();
    let is_its = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        words[0].contains("containerd-shim") && words.iter().any(|word| *word == address)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_its).collect()
}

/// The process of a container that runs.
fn pid(stack: &Stack, name: &str) -> String {
    let id = stack.id(name);
    let said = stack.until(&mut stack.tasks(), "RUNNING").stdout;
    let row = said.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("{id} is not there:\n{said}"));
    row.split_whitespace().nth(1).unwrap().to_owned()
}

/// Tries again until a program says something.
#[track_caller]
fn until_says(said: impl Fn() -> Output, wanted: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let output = said();
        if output.stdout == wanted {
            return output.stdout;
        }
        assert!(Instant::now() < deadline, "{output:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn start(stack: &Stack, id: &str) {
    stack.until(&mut stack.calling(&["tasks", "start", "--detach", id]), "");
}

/// Ends everything of a stack that a node has in memory: both daemons, shims, containers, mounts, what runc and containerd keep in
/// /run. What is on disk stays.
fn power_off(stack: &mut Stack) {
    let (directory, watching) = (directory(stack), shims(stack));
    let listed = stack.ctr(&["tasks", "ls"]).stdout;
    let containers = listed.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)?.parse().ok());
    let pids: Vec<i32> = watching.into_iter().chain(containers).collect();
    stack.containerd.stop(Signal::KILL);
    stack.served.process().kill();
    for pid in pids.into_iter().filter_map(Pid::from_raw) {
        // One that ended with another one's end is gone.
        let _ = kill_process(pid, Signal::KILL);
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while !shims(stack).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", shims(stack));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let below =
        |line: &str| line.split(' ').nth(1).filter(|at| Path::new(at).starts_with(&directory)).map(str::to_owned);
    for at in mounts.lines().rev().filter_map(below) {
        rustix::mount::unmount(at.as_str(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    std::fs::remove_dir_all(directory.join("state")).unwrap();
    std::fs::remove_file(stack.store.path("raw")).unwrap();
    let own = format!("-{}", directory.file_name().unwrap().to_string_lossy());
    for entry in std::fs::read_dir("/run/containerd/runc/default").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(&own) {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[test]
fn after_a_restart_of_the_node_containers_start_from_their_snapshots_and_nothing_is_lost() {
    let diary = "echo before >> /etc/diary; sync; while true; do sleep 1; done";
    in_either_order(diary, |stack, orlop_first, what| {
        let one = stack.id("one");
        let look = |stack: &Stack, id: &str| {
            output(&mut stack.calling(&["tasks", "exec", "--exec-id", id, &one, "/bin/sh", "-c", "cat /etc/diary"]))
        };
        until_says(|| look(stack, "first"), "before\n");
        let before = stack.on_disk();
        power_off(stack);
        start_both(stack, orlop_first);
        assert_eq!(stack.on_disk(), before, "{what}: what was there is there");
        // A task of a dead shim may be listed until it is removed.
        drop(stack.ctr(&["tasks", "rm", "--force", &one]));
        start(stack, &one);
        let twice = until_says(|| look(stack, "again"), "before\nbefore\n");
        assert_eq!(twice, "before\nbefore\n", "{what}: it goes on where it was");
        assert_eq!(stack.run("two", &["--rm"], "cat /etc/kept").as_deref(), Some("kept"), "{what}");
        let again = stack.pull();
        assert!(again.status.success(), "{what}: {again:?}");
        stack.end_leases();
    });
}
