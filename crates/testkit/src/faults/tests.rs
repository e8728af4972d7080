use std::ffi::OsStr;

use super::*;
use crate::process::output;

fn shell(root: &Path, script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(root);
    command
}

fn rule(call: &'static str, from: usize, lasting: bool, act: Act) -> Rule {
    Rule { which: Box::new(move |site| site.call == call), from, lasting, act }
}

const THREE: &str = "mkdir a && mkdir b; mkdir c";

#[test]
fn one_call_or_all_from_one_on_come_back_with_an_error() {
    if !Faults::available() {
        return;
    }
    for (lasting, left) in [(false, "a c"), (true, "a")] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let mut command = shell(&root, THREE);
        let faults = Faults::over(&mut command, &root).unwrap();
        faults.record();
        faults.set(rule("mkdir", 1, lasting, Act::Fail(Fault::NoSpace)));
        let said = output(&mut command).stderr;
        assert!(said.contains("No space left on device"), "{said}");
        let mut names: Vec<_> = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.join(OsStr::new(" ")), left);
        let hit: Vec<String> = faults.clear().iter().map(Site::to_string).collect();
        assert_eq!(hit, if lasting { vec!["mkdir(b)", "mkdir(c)"] } else { vec!["mkdir(b)"] });
        let made = faults.recorded().iter().filter(|site| site.changes()).count();
        assert_eq!(made, 3);
    }
}

#[test]
fn a_program_is_killed_before_a_call_and_not_after_it() {
    if !Faults::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    // What is made elsewhere does not count.
    let mut command = shell(&root, "exec 3> /dev/null; exec mkdir a b c");
    let faults = Faults::over(&mut command, &root).unwrap();
    faults.set(rule("mkdir", 1, false, Act::Kill));
    let ended = output(&mut command);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status), Some(9), "{ended:?}");
    assert!(root.join("a").exists() && !root.join("b").exists());
}

#[test]
fn something_happens_just_before_a_call() {
    if !Faults::available() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let mut command = shell(&root, "echo x > file; rm file");
    let faults = Faults::over(&mut command, &root).unwrap();
    let (from, to) = (root.join("file"), root.join("copy"));
    let copy = Box::new(move || {
        std::fs::copy(&from, &to).unwrap();
    });
    faults.set(Rule {
        which: Box::new(|site| site.call.starts_with("unlink")),
        from: 0,
        lasting: false,
        act: Act::Before(copy),
    });
    output(&mut command).ok();
    assert_eq!(std::fs::read_to_string(root.join("copy")).unwrap(), "x\n");
}
