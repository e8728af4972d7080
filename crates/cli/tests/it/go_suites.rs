//! Programs in Go against `orlop serve`: containerd's own contract suites (`tests/go/contract`), and what nerdctl and BuildKit do
//! (`tests/go/sequences`), which containerd has to do likewise.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::{Orlop, document, registry_with};
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
    let (passed, skipped) = (cases(&said, "PASS"), cases(&said, "SKIP"));
    assert!(passed.len() >= 60, "only {} cases were run:\n{said}", passed.len());
    let mut suites: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for (list, name) in passed.iter().map(|name| (0, name)).chain(skipped.iter().map(|name| (1, name))) {
        let Some((suite, case)) = name.split_once('/') else { continue };
        let cases = suites.entry(suite).or_default();
        if list == 0 { cases.0.push(case) } else { cases.1.push(case) }
    }
    let mut table = String::from("| suite of containerd 2.4 | passes | skips itself |\n|---|---|---|\n");
    for (suite, (mut passed, mut skipped)) in suites {
        // Cases of one suite run at once, and end as it comes.
        passed.sort_unstable();
        skipped.sort_unstable();
        let skipped = if skipped.is_empty() { "nothing".into() } else { listed(&skipped) };
        table += &format!("| {} | {}: {} | {skipped} |\n", words(suite), passed.len(), listed(&passed));
    }
    document::settle("suites", &table);
}

/// The cases that ended in a way, as Go says it, without what each file of tests puts before their names.
fn cases<'a>(said: &'a str, how: &str) -> Vec<&'a str> {
    let of_line = |line: &'a str| line.trim_start().strip_prefix("--- ")?.strip_prefix(how)?.strip_prefix(": Test");
    said.lines().filter_map(of_line).filter_map(|rest| rest.split(' ').next()).collect()
}

fn listed(cases: &[&str]) -> String {
    cases.iter().map(|case| format!("`{case}`")).collect::<Vec<_>>().join(", ")
}

/// `PullByTransfer` as `pull by transfer`.
fn words(name: &str) -> String {
    let split = name.char_indices().flat_map(|(at, c)| {
        let space = (at > 0 && c.is_uppercase()).then_some(' ');
        space.into_iter().chain(c.to_lowercase())
    });
    split.collect()
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
        output(command.arg("-test.v")).ok().stdout
    };
    let store = Orlop::new();
    let ours = run(&store.serve(&[]).socket());
    let ours = cases(&ours, "PASS");
    assert!(ours.len() >= 10, "{ours:?}");
    store.is_sound();
    let Some(programs) = Programs::current() else { return };
    let theirs = run(&Containerd::start(&programs, &Options::default()).socket());
    assert_eq!(cases(&theirs, "PASS"), ours);
    let mut table = String::from("| client | sequence | result |\n|---|---|---|\n");
    for name in ours {
        let (client, sequence) = name.split_once('_').unwrap_or_else(|| panic!("{name} does not say whose it is"));
        let client = if client == "Nerdctl" { "nerdctl" } else { "BuildKit" };
        table += &format!("| containerd's Go client 2.4, as {client} | {} | same |\n", words(sequence));
    }
    document::settle("sequences", &table);
}
