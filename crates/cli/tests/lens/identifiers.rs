//! Every kind of identifier, wherever the store is read from: a server's API, a containerd's files, Orlop's own store.

use orlop_testkit::archive;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::common::Orlop;
use crate::node::{Node, generations, image};
use crate::resolve::{Truth, column, truth};
use crate::ward::lease;

fn kinds(document: &Value) -> Vec<&str> {
    document["is"].as_array().unwrap().iter().map(|thing| thing["kind"].as_str().unwrap()).collect()
}

fn tags(document: &Value) -> Vec<&str> {
    document["images"].as_array().unwrap().iter().map(|image| image["names"][0]["name"].as_str().unwrap()).collect()
}

/// Where two documents differ.
fn differences(one: &Value, other: &Value) -> Vec<String> {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let pairs = one.iter().zip(other).enumerate();
            pairs.flat_map(|(at, (one, other))| below(&at.to_string(), differences(one, other))).collect()
        }
        (Value::Object(one), Value::Object(other)) if one.keys().eq(other.keys()) => {
            one.iter().flat_map(|(key, value)| below(key, differences(value, &other[key]))).collect()
        }
        _ if one == other => Vec::new(),
        _ => vec![format!(": {one} and {other}")],
    }
}

fn below(key: &str, differences: Vec<String>) -> Vec<String> {
    differences.into_iter().map(|difference| format!("/{key}{difference}")).collect()
}

/// Takes a member out of all objects that have another.
fn forget(value: &mut Value, having: &str, member: &str) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| forget(value, having, member)),
        Value::Object(members) => {
            if members.contains_key(having) {
                members.remove(member);
            }
            members.values_mut().for_each(|value| forget(value, having, member));
        }
        _ => {}
    }
}

/// A lease that lists a layer, a snapshot that somebody writes to.
fn held(node: &Node, known: &Truth) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = orlop_api::channel::unix(&node.containerd.socket()).await.unwrap();
        lease(channel, "somebodys-lease", &[], &[("content", &known.layers[1])]).await;
    });
    node.containerd.ctr("k8s.io", &["snapshots", "prepare", "somebodys-tree", &known.chain_ids[1]]).ok();
}

/// Names of an image and of its parts, and of what holds it.
fn identifiers(name: &str, known: &Truth) -> Vec<String> {
    let repository = name.rsplit_once(':').unwrap().0;
    let [short_layer, short_chain] = [&known.layers[1], &known.chain_ids[1]].map(|id| id[7..19].to_owned());
    let by_digest = format!("{repository}@{}", known.manifest);
    let all =
        [name, &by_digest, &known.config, &known.manifest, &known.layers[1], &known.diff_ids[1], &known.chain_ids[1]];
    all.into_iter().map(str::to_owned).chain([short_layer, short_chain]).collect()
}

#[test]
fn a_lease_and_a_snapshot_that_is_written_to_lead_to_the_image_that_they_stand_on() {
    for programs in generations("a_lease_and_a_snapshot_that_is_written_to_lead_to_the_image_that_they_stand_on") {
        let Some(node) = Node::start(&programs) else { return };
        let content = image("cni", 200_000);
        let (tag, known) = (node.pull("calico/cni:v3.25.1", &content), truth(&content));
        node.pull("web:2", &image("web", 90_000));
        held(&node, &known);
        for (id, kind) in [("somebodys-lease", "lease"), ("somebodys-tree", "snapshot"), ("somebodys-t", "snapshot")] {
            let document = node.json(&["resolve", id]);
            assert_eq!((kinds(&document), tags(&document)), (vec![kind], vec![tag.as_str()]), "{id}: {document:#}");
            assert_eq!(column(&document["images"][0], "chainId"), known.chain_ids);
            let document = node.json(&["tree", id]);
            assert_eq!(tags(&document), [tag.as_str()], "{id}: {document:#}");
            assert_eq!(node.json(&["explain", id])["things"][0]["kind"], kind);
        }
        let text = node.ok(&["resolve", "somebodys-tree"]);
        assert!(text.starts_with("active snapshot somebodys-tree\n"), "{text}");
        // A lease that lists nothing stands on no image.
        node.containerd.ctr("k8s.io", &["leases", "create", "--id", "of-nothing"]).ok();
        let document = node.json(&["resolve", "of-nothing"]);
        assert_eq!((kinds(&document), tags(&document)), (vec!["lease"], vec![]));
    }
}

#[test]
fn a_stopped_containerds_files_say_of_every_identifier_what_its_api_said() {
    for programs in generations("a_stopped_containerds_files_say_of_every_identifier_what_its_api_said") {
        let Some(mut node) = Node::start(&programs) else { return };
        let content = image("cni", 200_000);
        let (tag, known) = (node.pull("calico/cni:v3.25.1", &content), truth(&content));
        node.pull("web:2", &image("web", 90_000));
        node.containerd.ctr("k8s.io", &["containers", "create", &tag, "web-1"]).ok();
        held(&node, &known);
        let mut ids = identifiers(&tag, &known);
        ids.extend(["somebodys-lease", "somebodys-tree", "web-1"].map(str::to_owned));
        let looks = |ask: &dyn Fn(&[&str]) -> Value| -> Vec<(String, Value)> {
            let of = |command: &'static str, id: &String| {
                let mut document = ask(&[command, id]);
                document.as_object_mut().unwrap().remove("store");
                if command == "resolve" {
                    // What snapshots take, files tell unasked.
                    forget(&mut document, "snapshotter", "size");
                }
                if command == "explain" {
                    // containerd 1.6 writes down when a blob's labels changed, and does not tell it.
                    forget(&mut document, "kind", "updated");
                }
                (format!("{command} {id}"), document)
            };
            ["resolve", "tree", "why", "explain"]
                .iter()
                .flat_map(|c| ids.iter().map(|id| of(c, id)).collect::<Vec<_>>())
                .collect()
        };
        let before = looks(&|args| node.json(args));
        let files = node.stop();
        let after = looks(&|args| {
            let done = files.run(&[args, &["-o", "json"]].concat());
            assert!(done.code == 0 && done.err.contains("only its files are read"), "{args:?}: {}", done.err);
            serde_json::from_str(&done.out).unwrap()
        });
        for ((look, before), (_, after)) in before.iter().zip(&after) {
            assert_eq!(differences(before, after), [""; 0], "{look}");
        }
        assert_eq!(before.len(), 4 * 12);
        let done = files.run(&["resolve", "0000000000"]);
        assert_eq!(done.code, 3, "{}", done.err);
    }
}

#[test]
fn orlops_own_store_knows_every_identifier_with_a_daemon_and_without_one() {
    let store = Orlop::new();
    let content = image("cni", 200_000);
    let (tag, known) = ("r.example/calico/cni:v3.25.1", truth(&content));
    for (name, content) in [(tag, &content), ("r.example/web:2", &image("web", 90_000))] {
        let file = store.path("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        let unpack = if rustix::process::geteuid().is_root() { &[][..] } else { &["--no-unpack"] };
        store.ok([&["import"], unpack, &[file.to_str().unwrap()]].concat());
    }
    let is_right = || {
        for id in identifiers(tag, &known) {
            let document = store.json(["resolve", &id]);
            assert_eq!(tags(&document), [tag], "{id}: {document:#}");
            let image = &document["images"][0];
            assert_eq!(image["imageId"], known.config.as_str());
            let columns = ["digest", "diffId", "chainId"].map(|field| column(image, field));
            assert_eq!(columns, [&known.layers, &known.diff_ids, &known.chain_ids].map(Clone::clone), "{id}");
            assert_eq!(tags(&store.json(["tree", &id])), [tag], "{id}");
            let keepers = store.json(["why", &id]);
            assert!(keepers.to_string().contains(tag), "{id}: {keepers:#}");
            let explained = store.json(["explain", &id]);
            assert!(explained["things"].as_array().is_some_and(|things| !things.is_empty()), "{id}: {explained:#}");
        }
        // The common layer leads to both.
        assert_eq!(tags(&store.json(["resolve", &known.layers[0]])), [tag, "r.example/web:2"]);
        assert_eq!(store.run(["resolve", &"0".repeat(64)]).code, 3);
    };
    is_right();
    let _served = store.serve(&[]);
    is_right();
}
