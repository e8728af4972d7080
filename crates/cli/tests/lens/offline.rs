//! A containerd that has stopped: its files say what its API said. One that runs and is large: the same.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

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

#[test]
fn what_a_stopped_containerds_files_lack_is_found_and_what_they_do_not_tell_is_not_called_sound() {
    for programs in generations("what_a_stopped_containerds_files_lack_is_found") {
        let Some(mut node) = Node::start(&programs) else { return };
        let content = image("cni", 200_000);
        node.pull("calico/cni:v3.25.1", &content);
        let root = node.containerd.root();
        let files = node.stop();
        let doctor = || {
            let done = files.run(&["doctor", "-o", "json"]);
            (done.code, serde_json::from_str::<serde_json::Value>(&done.out).unwrap())
        };
        let sound = serde_json::json!([]);
        assert!(matches!(doctor(), (0, document) if document["problems"] == sound && document["unknown"] == sound));
        let layer = content.layers().pop().unwrap();
        std::fs::remove_file(blob(&root, &layer)).unwrap();
        let (code, document) = doctor();
        assert_eq!((code, &document["ok"]), (5, &false.into()), "{document:#}");
        let problem = &document["problems"][0];
        assert_eq!((&problem["class"], &problem["subject"]), (&"damaged".into(), &layer.to_string().into()));
        assert!(problem["detail"].as_str().unwrap().contains("its file is gone"), "{problem:#}");
        assert_eq!(problem["cost"]["bytes"], 0);
        std::fs::write(root.join("io.containerd.metadata.v1.bolt/meta.db"), b"no database").unwrap();
        let (_, document) = doctor();
        assert!(document["unknown"][0].as_str().unwrap().contains("meta.db"), "{document:#}");
        let told = files.run(&["doctor"]).out;
        assert!(told.contains("not everything could be read") && !told.starts_with("nothing is wrong"), "{told}");
    }
}

/// What is large is a matter of the file's size.
fn grown(root: &Path) {
    let database = root.join("io.containerd.metadata.v1.bolt/meta.db");
    std::fs::File::options().write(true).open(database).unwrap().set_len(32 << 20).unwrap();
}

/// The file of a blob.
fn blob(root: &Path, digest: &orlop_oci::Digest) -> PathBuf {
    root.join("io.containerd.content.v1.content/blobs/sha256").join(digest.hex())
}

/// Another process, as far as the socket tells, in front of a server.
fn in_front_of(server: &Path, socket: &Path) {
    let (listener, server) = (UnixListener::bind(socket).unwrap(), server.to_owned());
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = UnixStream::connect(&server).unwrap();
            let ends = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
            for (from, to) in ends {
                let (mut from, mut to) = (from.unwrap(), to.unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

#[test]
fn of_a_large_containerd_that_runs_the_files_are_read_if_they_are_its_own_and_say_the_same() {
    const FILES: &str = "read from the store's files beside its server";
    const API: &str = "read over the API";
    const DOCUMENTS: &str = "documents are read from files";
    for programs in
        generations("of_a_large_containerd_that_runs_the_files_are_read_if_they_are_its_own_and_say_the_same")
    {
        let Some(mut node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        node.pull("web:2", &image("web", 90_000));
        let id = node.records().into_iter().find(|name| name.starts_with("sha256:")).unwrap();
        // One manifest whose bytes are not those of its digest: nothing is said of what it has, whoever reads it.
        let torn = node.pull("torn:3", &image("torn", 70_000));
        node.containerd.changed(|root| {
            let file = blob(root, &image("torn", 70_000).root.digest);
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, text.replace("layers", "layerz")).unwrap();
        });
        let looks: [&[&str]; 12] = [
            &["images", "-o", "wide"],
            &["images", "-A", "-o", "json"],
            &["images", "--all"],
            &["images", "--all", "-o", "json"],
            &["explain", &id],
            &["why", &tag],
            &["resolve", &id],
            &["tree"],
            &["tree", &torn],
            &["history", &tag],
            &["df", "--by", "image"],
            &["rm", "--plan", &tag],
        ];
        let run = |node: &Node, look: &[&str]| {
            let done = node.run(&[&["-v"], look].concat());
            assert_eq!(done.code, 0, "{look:?}: {}", done.err);
            done
        };
        let of_api = looks.map(|look| run(&node, look));
        for done in &of_api {
            assert!(done.err.contains(API) && done.err.contains("fewer than"), "{}", done.err);
        }
        node.containerd.changed(grown);
        for (look, before) in looks.iter().zip(&of_api) {
            let done = run(&node, look);
            assert_eq!(done.out, before.out, "{look:?}");
            assert!(done.err.contains(FILES) && !done.err.contains(API), "{}", done.err);
            let reads_documents = matches!(look[0], "images" | "resolve" | "tree" | "history" | "df");
            assert!(done.err.contains(DOCUMENTS) || !reads_documents, "{look:?}: {}", done.err);
        }
        // The files may be another server's.
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        in_front_of(&node.containerd.socket(), &socket);
        let done = node.at(&socket, &["-v", "images", "-o", "wide"]);
        assert_eq!((done.code, &done.out), (0, &of_api[0].out), "{}", done.err);
        assert!(done.err.contains(API) && done.err.contains("does not hold the lock"), "{}", done.err);
    }
}
