//! containerd downloads, and layers are applied at once: by Orlop, or by containerd into Orlop's snapshots.

use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::fingerprint::{self, Fingerprint};

use crate::stack::{By, Of, Stack, generations};

/// The tree of the image, as a view of its uppermost snapshot shows it.
fn tree(containerd: &Containerd, snapshotter: &str, image: &str) -> Fingerprint {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_str().unwrap();
    containerd.ctr("default", &["images", "mount", "--snapshotter", snapshotter, image, at]).ok();
    let seen = Fingerprint::of(
        directory.path(),
        &fingerprint::Options { skip_root: true, skip_dir_times: true, ..Default::default() },
    )
    .unwrap();
    containerd.ctr("default", &["images", "unmount", "--snapshotter", snapshotter, "--rm", at]).ok();
    seen
}

#[test]
fn what_cannot_be_both_is_left_to_containerd_and_the_reason_says_what_to_do() {
    let Some(programs) = Programs::current().filter(|_| !generations().is_empty()) else { return };
    let Some(stack) = Stack::start(&programs, Of::Mixed, By::Ctr) else { return };
    stack.pull().ok();
    let said = stack.fallbacks();
    assert!(said.len() == 2 && said.iter().all(|line| line.contains("do not go together")), "{said:?}");
    if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept /etc/new; ls /etc") {
        assert_eq!(said, "keptnewkept\nnew\n");
    }
    stack.remove();
    stack.is_emptied();
}

#[test]
fn layers_that_are_applied_at_once_make_the_tree_that_containerd_makes() {
    let Some(programs) = Programs::current().filter(|_| !generations().is_empty()) else { return };
    for differ in ["orlop", "walking"] {
        let Some(stack) = Stack::start(&programs, Of::Differ(differ), By::Ctr) else { return };
        stack.pull().ok();
        assert_eq!(stack.fallbacks(), [""; 0], "{differ}");
        assert_eq!(stack.layers_in_containerd().len(), 3, "{differ}: containerd downloads");
        if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept /etc/new; ls /etc") {
            assert_eq!(said, "keptnewkept\nnew\n", "{differ}: what a layer removes is gone");
        }
        let key = stack.ctr(&["snapshots", "--snapshotter", stack.snapshotter(), "ls"]).ok().stdout;
        assert_eq!(key.lines().filter(|line| line.contains("Committed")).count(), 3, "{differ}: {key}");

        let plain = Containerd::start(&programs, &Options::default());
        plain.ctr("default", &["images", "pull", "--plain-http", &stack.name()]).ok();
        let theirs = tree(&plain, "overlayfs", &stack.name());
        tree(&stack.containerd, stack.snapshotter(), &stack.name()).assert_same(&theirs, differ);
        stack.remove();
        stack.is_emptied();
    }
}
