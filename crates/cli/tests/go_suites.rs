//! Programs in Go against `orlop serve`: containerd's own contract suites (`tests/go/contract`), and what nerdctl and BuildKit do
//! (`tests/go/sequences`), which containerd has to do likewise.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Orlop, registry_with};
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::go::Module;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::output;
use orlop_testkit::tar::Entry;

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

#[test]
fn sequences_of_nerdctl_and_buildkit_go_as_with_containerd() {
    if !common::is_root("sequences_of_nerdctl_and_buildkit_go_as_with_containerd") {
        return;
    }
    let Some(module) = Module::find("sequences") else { return };
    let content = Content::image(
        &Image::host()
            .layer(Layer::new([Entry::file("lower", "1")]))
            .layer(Layer::new([Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")])),
    );
    let Some(registry) = registry_with(&content) else { return };
    let dir = tempfile::tempdir().unwrap();
    let Some(tests) = module.tests(dir.path()) else { return };
    let run = |server: &Path| {
        let mut command = Command::new(&tests);
        command.current_dir(module.dir()).env("SERVER", server).env("IMAGE", format!("{}/app:1", registry.host()));
        let said = output(command.arg("-test.v")).ok().stdout;
        said.lines().filter(|line| line.starts_with("--- PASS:")).count()
    };
    if let Some(programs) = Programs::current() {
        assert!(run(&Containerd::start(&programs, &Options::default()).socket()) >= 10);
    }
    let store = Orlop::new();
    assert!(run(&store.serve(&[]).socket()) >= 10);
    store.is_sound();
}
