//! A containerd that has stopped: its files say what its API said.

use crate::node::{Node, generations, image};

#[test]
fn a_stopped_containerd_is_explained_from_its_files_as_while_it_ran() {
    for programs in generations("a_stopped_containerd_is_explained_from_its_files_as_while_it_ran") {
        let Some(mut node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        node.pull("web:2", &image("web", 90_000));
        let id = node.records().into_iter().find(|name| name.starts_with("sha256:")).unwrap();
        let looks: [&[&str]; 5] = [
            &["images", "-o", "wide"],
            &["images", "--all"],
            &["explain", &id],
            &["why", &tag],
            &["rm", "--plan", &tag],
        ];
        let before: Vec<String> = looks.iter().map(|look| node.ok(look)).collect();
        let files = node.stop();
        let run = |args: &[&str]| files.run(args);
        for (look, before) in looks.iter().zip(before) {
            let done = run(look);
            assert_eq!((done.code, done.out), (0, before), "{look:?}: {}", done.err);
            assert!(done.err.contains("only its files are read"), "{}", done.err);
        }
        // What would change something is refused, and nothing changes.
        let refused = run(&["gc"]);
        assert_eq!(refused.code, 2, "{}", refused.err);
        let refused = run(&["rm", &tag]);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(run(&["images", "-o", "name"]).out.contains(&tag));
    }
}
