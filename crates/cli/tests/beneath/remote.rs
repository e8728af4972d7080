//! containerd skips what Orlop has unpacked.

use crate::stack::{Of, Stack, ways};

/// Layers as directories, and as images where the kernel has them.
fn forms() -> impl Iterator<Item = Of> {
    let images = orlop_testkit::mounts::need_file_system("erofs");
    [Of::Snapshotter].into_iter().chain(images.then_some(Of::Images))
}

#[test]
fn containerd_is_handed_the_snapshots_of_an_image_runs_it_and_gives_all_back() {
    for ((programs, by), of) in ways().into_iter().flat_map(|way| forms().map(move |of| (way.clone(), of))) {
        let Some(stack) = Stack::start(&programs, of, by) else { return };
        let version = format!("{} by {by:?} of {of:?}", programs.version());
        stack.pull().ok();
        assert_eq!(stack.fallbacks(), [""; 0], "{version}");
        assert_eq!(stack.layers_in_containerd(), [""; 0], "{version} fetched layers although it was handed snapshots");
        let keys = stack.ctr(&["snapshots", "--snapshotter", stack.snapshotter(), "ls"]).ok().stdout;
        assert_eq!(keys.lines().filter(|line| line.contains("Committed")).count(), 3, "{version}: {keys}");

        let seen = "cat /etc/kept /etc/new; ls /etc; echo written > /etc/written; cat /etc/written";
        if let Some(said) = stack.run("one", &["--rm"], seen) {
            assert_eq!(said, "keptnewkept\nnew\nwritten\n", "{version}");
        }
        // Again: nothing is asked for, nothing changes.
        let before = stack.on_disk();
        stack.pull().ok();
        assert_eq!(stack.on_disk(), before, "{version}");

        stack.remove();
        stack.is_emptied();
        // What was removed can come again, at once.
        stack.pull().ok();
        assert_eq!((stack.fallbacks(), stack.layers_in_containerd()), (Vec::new(), Vec::new()), "{version}");
        stack.remove();
        stack.is_emptied();
        stack.store.is_sound();
    }
}

#[test]
fn what_a_container_wrote_survives_its_restart_and_becomes_an_image() {
    for ((programs, by), of) in ways().into_iter().flat_map(|way| forms().map(move |of| (way.clone(), of))) {
        let Some(stack) = Stack::start(&programs, of, by) else { return };
        stack.pull().ok();
        let Some(_) = stack.run("one", &[], "echo first >> /etc/diary") else { return };
        let one = stack.id("one");
        stack.ctr(&["tasks", "rm", &one]);
        let again = stack.ctr(&["tasks", "start", &one]);
        again.ok();
        stack.ctr(&["tasks", "rm", &one]);
        let mounted = stack.ctr(&["snapshots", "--snapshotter", stack.snapshotter(), "diff", &one]).ok();
        assert!(!mounted.stdout.is_empty(), "what it wrote is a layer");
        stack.ctr(&["containers", "rm", &one]).ok();
        stack.remove();
        stack.is_emptied();
    }
}
