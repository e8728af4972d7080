//! containerd deletes every blob and snapshot that its plugins list and that it does not know: so it must see what is its own.

use orlop_testkit::containerd::Containerd;

use crate::stack::{By, Of, Stack, generations, image, options};

#[test]
fn containerds_collection_takes_nothing_of_orlops_own_and_nothing_of_another_containerd() {
    for programs in generations() {
        let Some(content) = image() else { return };
        let second = tempfile::tempdir().unwrap();
        let raw = second.path().join("raw");
        let config = format!("[serve]\nraw_sockets = {{ other = {:?} }}\n", raw.display().to_string());
        let Some(stack) = Stack::start_with(&programs, Of::Both, By::Ctr, &content, &config) else { return };
        let other = Containerd::start(&programs, &options(&programs, Of::Both, By::Ctr, &raw, &stack.store));
        let address = stack.served.socket();
        let own = |args: &[&str]| {
            let at = ["--address", address.to_str().unwrap()];
            let done = stack.store.run([&at, args].concat());
            assert_eq!(done.code, 0, "{args:?}: {}", done.err);
            done.out
        };
        let name = stack.name();
        own(&["pull", &name]);
        stack.pull().ok();
        other.ctr("default", &["images", "pull", "--plain-http", "--snapshotter", "orlop-overlay", &name]).ok();
        let all = stack.on_disk();

        // Each removes what it has; the others go on.
        other.ctr("default", &["images", "rm", "--sync", &name]).ok();
        other.ctr("default", &["images", "pull", "--plain-http", "--snapshotter", "orlop-overlay", &name]).ok();
        stack.remove();
        let listed = stack.ctr(&["snapshots", "--snapshotter", "orlop-overlay", "ls"]).ok().stdout;
        assert_eq!(listed.lines().count(), 1, "{listed}");
        let listed = other.ctr("default", &["snapshots", "--snapshotter", "orlop-overlay", "ls"]).ok().stdout;
        assert_eq!(listed.lines().count(), 4, "{listed}");
        own(&["check", "--deep"]);
        assert!(own(&["images", "-o", "name"]).contains("app:1"));
        own(&["rm", &name]);
        own(&["check", "--deep"]);
        if let Some(said) =
            stack.pull().status.success().then(|| stack.run("one", &["--rm"], "cat /etc/kept")).flatten()
        {
            assert_eq!(said, "kept");
        }
        stack.remove();
        other.ctr("default", &["images", "rm", "--sync", &name]).ok();
        own(&["gc", "--trash"]);
        assert!(!all.is_empty());
        stack.is_emptied();
    }
}
