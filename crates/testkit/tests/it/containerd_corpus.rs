//! What the corpus says of a layer is what a real containerd makes of it.

use std::path::Path;

use orlop_oci::{DiffId, chain_ids};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::corpus::{Case, Expect, awkward, broken};
use orlop_testkit::process::need_root;

/// What differs from the corpus.
fn check(containerd: &Containerd, archive: &Path, case: &Case) -> Vec<String> {
    let imported = containerd.import("corpus", archive, "native");
    match (imported.status.success(), case.expect) {
        (true, Expect::Applies) => {}
        (false, Expect::Applies) => return vec![imported.stderr],
        (true, Expect::Refused) => return vec!["applied".to_owned()],
        // Refused only because the made-up diff ID is another one.
        (false, Expect::Refused) if imported.stderr.contains("wrong diff id") => return vec!["applied".to_owned()],
        (_, Expect::Refused | Expect::Contained) => return vec![],
    }
    let diff_ids: Vec<DiffId> = case.layers.iter().filter_map(|l| l.diff_id.clone()).collect();
    let root = containerd.native_tree("corpus", chain_ids(&diff_ids).last().expect("a layer"));
    let is_there = |path: &&&str| root.join(path).symlink_metadata().is_ok();
    let missing = case.present.iter().filter(|p| !is_there(p)).map(|p| format!("no {p}"));
    let extra = case.absent.iter().filter(is_there).map(|p| format!("{p} is there"));
    missing.chain(extra).collect()
}

/// With the native snapshotter, which applies each layer onto the whole tree below. With overlayfs containerd applies
/// into the upper directory alone, and fails itself at hard links into lower layers, among others.
fn against(programs: &Programs) {
    let containerd = Containerd::start(programs, &Options::default());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("archive.tar");
    let mut wrong = Vec::new();
    for (at, case) in awkward().iter().chain(&broken()).enumerate() {
        std::fs::write(&file, oci_archive(&[(&format!("docker.io/corpus/case:{at}"), &case.image())])).unwrap();
        wrong.extend(check(&containerd, &file, case).into_iter().map(|w| format!("{}: {w}", case.name)));
    }
    assert!(wrong.is_empty(), "{}:\n{}", programs.version(), wrong.join("\n"));
}

#[test]
fn the_current_containerd_agrees() {
    if let Some(programs) = Programs::current().filter(|_| need_root()) {
        against(&programs);
    }
}

#[test]
fn debians_containerd_agrees() {
    if let Some(programs) = Programs::debian().filter(|_| need_root()) {
        against(&programs);
    }
}
