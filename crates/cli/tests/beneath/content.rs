//! containerd's content lies in Orlop's store.

use crate::stack::{Of, Stack, text, ways};

#[test]
fn what_containerd_fetches_lies_in_orlops_store_and_goes_with_the_image() {
    for (programs, by) in ways() {
        for of in [Of::Content, Of::Both] {
            let Some(stack) = Stack::start(&programs, of, by) else { return };
            let what = format!("{} with {of:?} of Orlop by {by:?}", programs.version());
            stack.pull().ok();
            assert_eq!(stack.fallbacks(), [""; 0], "{what}");
            let own = stack.containerd.root().join("io.containerd.content.v1.content/blobs");
            assert!(!own.exists(), "{what}: containerd has blobs of its own");
            let listed = stack.ctr(&["content", "ls", "-q"]).ok().stdout;
            let layers = if of == Of::Both { 0 } else { 3 };
            assert_eq!(stack.layers_in_containerd().len(), layers, "{what}: {listed}");
            for digest in listed.lines() {
                let blob = stack.store.root().join("content/blobs").join(digest.replace(':', "/"));
                assert!(blob.is_file(), "{what}: {digest} is not in Orlop's store");
            }
            if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept") {
                assert_eq!(said, "kept", "{what}");
            }
            // What another store owns is nothing to clean up here.
            let socket = stack.served.socket();
            let own = |args: &[&str]| stack.store.run([&["--address", text(&socket)], args].concat());
            let found = own(&["doctor"]);
            assert!(found.code == 0 && found.out.contains("nothing is wrong"), "{what}: {}{}", found.out, found.err);
            let digest = listed.lines().next().expect("a blob");
            let said = own(&["explain", digest]);
            assert!(
                said.out.contains("itself: it is a blob of the containerd above"),
                "{what}: {}{}",
                said.out,
                said.err
            );
            stack.remove();
            stack.is_emptied();
            stack.store.is_sound();
        }
    }
}
