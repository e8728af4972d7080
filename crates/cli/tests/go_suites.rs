//! containerd's own contract suites, in Go, against `orlop serve` (`tests/go/contract`).

mod common;

use std::process::Command;

use orlop_testkit::go::Module;
use orlop_testkit::process::output;

#[test]
fn the_content_store_and_the_snapshotters_pass_the_suites_of_containerd() {
    if !common::is_root("the_content_store_and_the_snapshotters_pass_the_suites_of_containerd") {
        return;
    }
    let Some(module) = Module::find("contract") else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(tests) = module.tests(dir.path()) else { return };
    let mut command = Command::new(tests);
    command.current_dir(module.dir()).env("ORLOP_BIN", env!("CARGO_BIN_EXE_orlop"));
    let said = output(command.args(["-test.root", "-test.v"])).ok().stdout;
    // Cases that the suites skip themselves count as not run.
    let passed = said.lines().filter(|line| line.trim_start().starts_with("--- PASS:")).count();
    assert!(passed >= 60, "only {passed} cases were run:\n{said}");
}
