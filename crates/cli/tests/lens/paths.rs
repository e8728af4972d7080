//! Paths as identifiers: which snapshot a file belongs to, and from there to layers and images.

use std::path::Path;

use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::common::{Done, Orlop, is_root};
use crate::node::{Node, generations};

/// Two layers; the upper one deletes, hides and adds, and has links that lead out.
fn content() -> Content {
    let lower = [
        Entry::dir("etc"),
        Entry::file("etc/base", "base"),
        Entry::dir("opt"),
        Entry::file("opt/hidden", "hidden"),
        Entry::dir("gone"),
        Entry::file("gone/below", "gone"),
        Entry::dir("usr"),
        Entry::dir("usr/bin"),
        Entry::file("usr/bin/tool", "a tool of 17 byte").mode(0o4755),
        Entry::symlink("bin", "usr/bin"),
    ];
    let upper = [
        Entry::whiteout("etc/base"),
        Entry::dir("opt"),
        Entry::opaque("opt"),
        Entry::file("opt/seen", "seen"),
        Entry::whiteout("gone"),
        Entry::dir("usr"),
        Entry::dir("usr/bin"),
        Entry::file("usr/bin/other", "other"),
        Entry::symlink("escape", "/etc"),
        Entry::symlink("up", "../../../../../../../../etc"),
    ];
    let layer = |entries: &[Entry]| Layer::new(entries).packed(Compression::Gzip);
    Content::image(&Image::host().layer(layer(&lower)).layer(layer(&upper)))
}

/// The chain IDs of the image's two snapshots, as `tree` says.
fn chains(tree: &Value) -> [String; 2] {
    let layers = tree["images"][0]["targets"][0]["layers"].as_array().unwrap();
    [0, 1].map(|at| layers[at]["chainId"].as_str().unwrap().to_owned())
}

/// Of each snapshot with the path: its key, the path in it, and what is there.
fn files(explained: &Value) -> Vec<(&str, &str, &str)> {
    let files = explained["files"].as_array().unwrap_or_else(|| panic!("{explained:#}"));
    files.iter().map(|file| (word(&file["snapshot"]["name"]), word(&file["path"]), word(&file["type"]))).collect()
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a store says of paths inside images, whoever asks it.
fn inside_images(
    json: impl Fn(&[&str]) -> Value,
    run: impl Fn(&[&str]) -> Done,
    [lower, upper]: &[String; 2],
    tag: &str,
) {
    let tool = json(&["explain", "/usr/bin/tool"]);
    assert_eq!(files(&tool), [(lower.as_str(), "/usr/bin/tool", "file")]);
    assert_eq!((&tool["files"][0]["size"], &tool["files"][0]["mode"]), (&17.into(), &"4755".into()));
    assert_eq!((&tool["things"][0]["kind"], &tool["things"][0]["name"]), (&"snapshot".into(), &lower.as_str().into()));
    // By a link of the same layer, and around.
    assert_eq!(files(&json(&["explain", "/bin/tool"])), [(lower.as_str(), "/bin/tool", "file")]);
    assert_eq!(files(&json(&["explain", "/./usr/../usr//bin/tool"])), [(lower.as_str(), "/usr/bin/tool", "file")]);
    let base = [(lower.as_str(), "/etc/base", "file"), (upper.as_str(), "/etc/base", "whiteout")];
    let mut found = json(&["explain", "/etc/base"]);
    found["files"].as_array_mut().unwrap().sort_by_key(|file| file["type"].to_string());
    assert_eq!(files(&found), base);
    assert_eq!(json(&["explain", "/up"])["files"][0]["link"], "../../../../../../../../etc");
    // A link of an image leads to nothing of this host.
    assert!(Path::new("/etc/passwd").exists());
    for outside in ["/escape/passwd", "/up/passwd", "/nowhere/at/all"] {
        let done = run(&["explain", outside]);
        assert_eq!(done.code, 3, "{outside}: {}", done.out);
        assert!(done.err.contains(outside) && done.err.contains("snapshots looked at"), "{}", done.err);
    }
    assert!(run(&["why", "/usr/bin/other"]).out.contains(tag));
    assert_eq!(json(&["resolve", "/usr/bin/other"])["images"][0]["names"][0]["name"], tag);
    assert_eq!(json(&["tree", "/usr/bin/other"])["images"][0]["names"][0]["name"], tag);
    let text = run(&["explain", "/usr/bin/tool"]).out;
    assert!(text.starts_with("/usr/bin/tool  (file, 17 B, mode 4755)  in snapshot "), "{text}");
    let several = run(&["explain", "/etc/base"]).out;
    assert!(several.contains("deleted here from the layers below"), "{several}");
    assert!(several.contains("explains the first"), "{several}");
}

#[test]
fn a_path_is_explained_by_the_snapshot_that_has_it() {
    for programs in generations("a_path_is_explained_by_the_snapshot_that_has_it") {
        let Some(mut node) = Node::start(&programs) else { return };
        let tag = node.pull("files:1", &content());
        let chains = chains(&node.json(&["tree", &tag]));
        inside_images(|args| node.json(args), |args| node.run(args), &chains, &tag);
        let [lower, upper] = &chains;

        // Paths of this host: a snapshot's directory, its files, and what is beside them.
        let tool = node.json(&["explain", "/usr/bin/tool"]);
        let host = tool["files"][0]["hostPath"].as_str().unwrap().to_owned();
        assert_eq!(std::fs::read(&host).unwrap().len(), 17);
        assert_eq!(files(&node.json(&["explain", &host])), [(lower.as_str(), "/usr/bin/tool", "file")]);
        let directory = Path::new(&host).ancestors().nth(4).unwrap();
        assert_eq!(files(&node.json(&["explain", path(directory)])), [(lower.as_str(), "-", "directory")]);
        let gone = directory.join("fs/usr/bin/absent");
        assert_eq!(node.run(&["explain", path(&gone)]).code, 3);
        // By another name of the same directory.
        let other = Orlop::new();
        std::os::unix::fs::symlink(directory, other.path("link")).unwrap();
        let by_link = other.path("link").join("fs/usr/bin/tool");
        assert_eq!(files(&node.json(&["explain", path(&by_link)])), [(lower.as_str(), "/usr/bin/tool", "file")]);

        // A mount of both layers: what it shows comes from the uppermost that says something.
        let mounted = node.containerd.mounted("k8s.io", &tag, |root| {
            let at = |inside: &str| path(&root.join(inside)).to_owned();
            let explained = |inside: &str| node.json(&["explain", &at(inside)]);
            assert_eq!(files(&explained("usr/bin/tool")), [(lower.as_str(), "/usr/bin/tool", "file")]);
            assert_eq!(files(&explained("bin/other")), [(upper.as_str(), "/usr/bin/other", "file")]);
            assert_eq!(files(&explained("opt/seen")), [(upper.as_str(), "/opt/seen", "file")]);
            assert_eq!(files(&explained("etc/base")), [(upper.as_str(), "/etc/base", "whiteout")]);
            assert_eq!(files(&explained("gone/below")), [(upper.as_str(), "/gone", "whiteout")]);
            assert_eq!(node.run(&["explain", &at("opt/hidden")]).code, 3);
        });
        mounted.unwrap_or_else(|output| panic!("{}{}", output.stdout, output.stderr));

        let files = node.stop();
        let offline = |args: &[&str]| files.run(args);
        let json = |args: &[&str]| serde_json::from_str(&offline(&[args, &["-o", "json"]].concat()).out).unwrap();
        inside_images(json, offline, &chains, &tag);
    }
}

#[test]
fn a_path_is_explained_in_orlops_own_store() {
    if !is_root("a_path_is_explained_in_orlops_own_store") {
        return;
    }
    let store = Orlop::new();
    let tag = "r.example/files:1";
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(tag, &content())])).unwrap();
    store.ok(["import", path(&file)]);
    let chains = chains(&store.json(["tree", tag]));
    inside_images(|args| store.json(args), |args| store.run(args), &chains, tag);
    let host = store.json(["explain", "/usr/bin/tool"])["files"][0]["hostPath"].as_str().unwrap().to_owned();
    let served = store.serve(&[]);
    let by_daemon = store.json(["explain", &host]);
    assert_eq!(files(&by_daemon), [(chains[0].as_str(), "/usr/bin/tool", "file")]);
    drop(served);
}
