//! `orlop serve --registry` as others meet it: the specification's conformance suite, and clients that others wrote.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use orlop_oci::Compression;
use orlop_testkit::archive::write_layout;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need, output, run};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;

use crate::common::{self, Orlop, get};

/// A daemon that is a registry on a port of its own, and that registry's host.
fn serve(store: &Orlop, options: &[&str]) -> (Served, String) {
    let mut served = store.serve(&[&["--registry", "127.0.0.1:0"], options].concat());
    let host = common::registry_address(&mut served);
    (served, host)
}

/// Every kind of image and artifact, pushed, listed, pulled and deleted, by every way of uploading, in both algorithms.
#[test]
fn the_conformance_suite_of_the_specification_finds_nothing() {
    let store = Orlop::new();
    let (_served, host) = serve(&store, &[]);
    crate::conformance::run(&host);
    store.is_sound();
}

pub(crate) fn layout(dir: &Path, content: &Content) -> String {
    write_layout(dir, &[("v1", content)]).unwrap();
    format!("oci:{}:v1", dir.display())
}

fn image(seed: u64) -> Content {
    let below = Layer::new([Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")]);
    Content::image(&Image::host().layer(below).layer(Layer::noise("data", seed, 3 << 20).packed(Compression::Zstd)))
}

/// The records of an image that was pushed as `HOST/path:tag`, as after a pull.
fn records(host: &str, path: &str, tag: &str, content: &Content, id: &Content) -> Vec<String> {
    let root = &content.root.digest;
    let id = id.image_id().unwrap().to_string();
    let mut names = vec![format!("{host}/{path}:{tag}"), format!("{host}/{path}@{root}"), id];
    names.sort();
    names
}

#[test]
fn skopeo_pushes_an_image_of_the_node_and_gets_it_back_byte_for_byte() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let store = Orlop::new();
    let (_served, host) = serve(&store, &[]);
    let own = image(1);
    let arm = Content::image(&Image::new("linux/arm64").layer(Layer::noise("arm", 2, 10_000)));
    let content = Content::index(&[own.clone(), arm, Content::attestation(&own)]);
    let (from, back) = (store.path("from"), store.path("back"));
    let url = format!("docker://{host}/team/app:1");
    let copy = |from: &str, to: &str| {
        let copy = ["--insecure-policy", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"];
        run("skopeo", [&copy[..], &["--dest-tls-verify=false", from, to]].concat()).ok();
    };
    copy(&layout(&from, &content), &url);
    assert_eq!(store.records(), records(&host, "team/app", "1", &content, &own));
    let images = store.json(["images"]);
    assert_eq!(images["images"].as_array().unwrap().len(), 1, "{images}");
    assert_eq!(images["images"][0]["names"], serde_json::json!([format!("{host}/team/app:1")]));
    copy(&url, &format!("oci:{}:v1", back.display()));
    let blobs = |layout: &Path| -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap());
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
    };
    assert_eq!(blobs(&from), blobs(&back));
    let stored = std::fs::read_dir(store.root().join("content/blobs/sha256")).unwrap().count();
    assert_eq!(stored, blobs(&from).len(), "each blob is there once");
    let log = store.ok(["log", &format!("{host}/team/app:1")]);
    assert!(log.contains("registry (127.0.0.1)"), "{log}");
    // Mounted from there into another repository: nothing is sent again.
    copy(&url, &format!("docker://{host}/other:1"));
    store.is_sound();
    run("skopeo", ["delete", "--tls-verify=false", &url]).ok();
    let left = records(&host, "other", "1", &content, &own);
    assert_eq!(store.records(), left, "deleted by its digest, as skopeo does");
    store.ok(["undo"]);
    assert!(store.records().contains(&format!("{host}/team/app:1")));
    store.is_sound();
}

#[test]
fn an_image_that_was_pushed_is_unpacked_mounted_and_removed_like_any_other() {
    if need("skopeo", "skopeo").is_none() || !common::is_root("an_image_that_was_pushed_is_unpacked") {
        return;
    }
    let store = Orlop::new();
    let (_served, host) = serve(&store, &[]);
    let content = image(3);
    let (from, name) = (layout(&store.path("from"), &content), format!("{host}/app:1"));
    run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &format!("docker://{name}")]).ok();
    // As kubelet does, from the node itself: everything is there.
    let pulled = store.json(["pull", "--plain-http", &name]);
    assert_eq!(pulled["bytesTransferred"], 0);
    let dir = store.path("mnt");
    std::fs::create_dir(&dir).unwrap();
    store.ok(["mount", &name, dir.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(dir.join("etc/hostname")).unwrap(), "orlop\n");
    store.ok(["umount", dir.to_str().unwrap()]);
    let plan = store.json(["rm", "--plan", &name]);
    assert_eq!(plan["unpullable"].as_array().unwrap().len(), 1, "nobody else has it: {plan}");
    store.ok(["rm", &name]);
    assert_eq!(store.records(), Vec::<String>::new());
    assert!(get(&host, "/v2/app/manifests/1").starts_with("HTTP/1.1 404"));
}

#[test]
fn ctr_pushes_and_pulls() {
    if !common::is_root("ctr_pushes_and_pulls") {
        return;
    }
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let store = Orlop::new();
        let (_served, host) = serve(&store, &[]);
        let (content, name) = (image(4), format!("{host}/team/app:v1"));
        let archive = store.path("image.tar");
        std::fs::write(&archive, orlop_testkit::archive::oci_archive(&[(name.as_str(), &content)])).unwrap();
        let containerd = Containerd::start(&programs, &Options::default());
        let ctr = |arguments: &[&str]| containerd.ctr("default", arguments).ok().stdout;
        ctr(&["images", "import", "--no-unpack", archive.to_str().unwrap()]);
        ctr(&["images", "push", "--plain-http", &name]);
        assert_eq!(store.records(), records(&host, "team/app", "v1", &content, &content));
        ctr(&["images", "rm", "--sync", &name]);
        assert_eq!(ctr(&["content", "ls", "-q"]).trim(), "", "nothing is left to take the place of a pull");
        ctr(&["images", "pull", "--plain-http", &name]);
        assert!(ctr(&["images", "ls"]).contains(content.root.digest.as_str()));
        store.is_sound();
    }
}

#[test]
fn podman_pushes_and_pulls() {
    if need("podman", "podman").is_none() || !common::is_root("podman_pushes_and_pulls") {
        return;
    }
    let store = Orlop::new();
    let (_served, host) = serve(&store, &[]);
    let (content, name) = (image(5), format!("{host}/podman/app:1"));
    let archive = store.path("image.tar");
    std::fs::write(&archive, orlop_testkit::archive::oci_archive(&[(name.as_str(), &content)])).unwrap();
    let (graph, state) = (store.path("graph"), store.path("state"));
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&graph).arg("--runroot").arg(&state).args(["--storage-driver", "vfs"]);
        output(command.args(["--events-backend", "none"]).args(arguments))
    };
    podman(&["load", "-i", archive.to_str().unwrap()]).ok();
    podman(&["push", "--tls-verify=false", &name]).ok();
    let pushed = store.records();
    assert!(pushed.contains(&name), "{pushed:?}");
    let id = podman(&["image", "inspect", "--format", "{{.Id}}", &name]).ok().stdout;
    assert!(pushed.contains(&format!("sha256:{}", id.trim())), "podman's image ID is the node's: {id} {pushed:?}");
    podman(&["rmi", "--all", "--force"]).ok();
    podman(&["pull", "--tls-verify=false", &name]).ok();
    assert_eq!(podman(&["image", "inspect", "--format", "{{.Id}}", &name]).ok().stdout, id);
    store.is_sound();
}

#[test]
fn a_daemon_that_is_killed_has_lost_nothing_that_it_acknowledged() {
    if need("skopeo", "skopeo").is_none() {
        return;
    }
    let store = Orlop::new();
    let (mut served, host) = serve(&store, &[]);
    let content = image(6);
    let (from, url) = (layout(&store.path("from"), &content), format!("docker://{host}/app:1"));
    run("skopeo", ["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &url]).ok();
    served.process().signal(Signal::KILL);
    drop(served);
    // The port may be taken meanwhile: the name in the records is what counts.
    let config = store.path("config.toml");
    std::fs::write(&config, format!("[registry]\naddress = \"127.0.0.1:0\"\nname = {host:?}\n")).unwrap();
    let mut served = store.serve(&["--config", config.to_str().unwrap()]);
    let address = common::registry_address(&mut served);
    let answer = get(&address, "/v2/app/manifests/1");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(content.root.digest.as_str()), "{answer}");
    store.is_sound();
}

#[test]
fn a_registry_that_cannot_be_is_told_before_anything_is_opened() {
    let store = Orlop::new();
    let socket = store.path("s");
    let refused = |address: &str| store.run(["serve", "--socket", socket.to_str().unwrap(), "--registry", address]);
    let done = refused("5000");
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("registry.address: expected HOST:PORT"), "{}", done.err);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let done = refused(&address);
    assert_ne!(done.code, 0);
    assert!(done.err.contains(&format!("listen on {address}")), "{}", done.err);
    assert!(!store.root().exists());
}
