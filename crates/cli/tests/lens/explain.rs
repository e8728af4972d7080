use std::collections::BTreeMap;

use orlop_api::containerd::services::snapshots::v1::{PrepareSnapshotRequest, snapshots_client::SnapshotsClient};
use orlop_oci::Digest;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::common::Orlop;
use crate::node::{Node, generations, image};
use crate::tree::several;
use crate::ward::write;

/// The only thing of a kind that is explained.
fn only(document: &Value, kind: &str) -> Value {
    let things = document["things"].as_array().unwrap();
    let found: Vec<&Value> = things.iter().filter(|thing| thing["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{document:#}");
    found[0].clone()
}

fn texts(values: &Value, field: &str) -> Vec<String> {
    let mut all: Vec<String> =
        values.as_array().unwrap().iter().map(|value| value[field].as_str().unwrap().to_owned()).collect();
    all.sort();
    all
}

#[test]
fn a_hash_reference_says_why_it_is_there_what_else_names_the_image_and_that_it_frees_nothing() {
    for programs in
        generations("a_hash_reference_says_why_it_is_there_what_else_names_the_image_and_that_it_frees_nothing")
    {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        node.pull("web:2", &image("web", 90_000));
        let before = node.records();
        let images = node.json(&["images"]);
        let row =
            images["images"].as_array().unwrap().iter().find(|row| row["names"][0] == tag.as_str()).unwrap().clone();
        let id = row["imageId"].as_str().unwrap().to_owned();
        let document = node.json(&["explain", &id]);
        assert_eq!(document["schema"], "orlop.explain/v1");
        let record = only(&document, "record");
        assert_eq!(record["role"], "id");
        assert!(record["why"].as_str().unwrap().contains("CRI"), "{record:#}");
        assert_eq!(record["writtenBy"]["inferred"], true);
        let mut others = vec![
            tag.clone(),
            row["hashReferences"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_str().unwrap().to_owned())
                .find(|n| n.contains('@'))
                .unwrap(),
        ];
        others.sort();
        assert_eq!(texts(&record["otherNames"], "name"), others);
        assert_eq!(record["ifDeleted"]["frees"], 0);
        assert_eq!(record["ifDeleted"]["comesBack"], false);
        let (cost, size) = (&record["imageCost"], &row["size"]);
        assert_eq!(cost["all"]["blobBytes"], size["compressed"]);
        assert_eq!(cost["all"]["snapshotBytes"], size["unpacked"]);
        assert_eq!(cost["alone"]["bytes"], size["unique"]);
        // The same digest is the config too.
        let config = only(&document, "blob");
        assert_eq!((config["role"].as_str(), config["partOf"].as_array().unwrap().len()), (Some("config"), 3));
        let text = node.ok(&["explain", &id]);
        assert!(text.contains("hash reference, image ID") && text.contains("nothing is freed"), "{text}");
        // A name for short, and the beginning of the digest.
        assert_eq!(only(&node.json(&["explain", &id[7..19]]), "record")["name"], id.as_str());
        assert_eq!(node.records(), before, "nothing was changed");
    }
}

/// Makes a snapshot with no other labels; `ctr` sets one that makes it a root.
fn prepare(node: &Node, key: &str, labels: BTreeMap<String, String>) {
    let message =
        PrepareSnapshotRequest { snapshotter: "native".into(), key: key.to_owned(), labels, ..Default::default() };
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "k8s.io".parse().unwrap());
    Runtime::new().unwrap().block_on(async {
        let channel = orlop_api::channel::unix(&node.containerd.socket()).await.unwrap();
        SnapshotsClient::new(channel).prepare(request).await.unwrap();
    });
}

/// A reference that holds at times keeps what it names where the store knows of such references, and is told.
#[test]
fn what_a_condition_keeps_is_told_as_the_store_treats_it() {
    for programs in generations("what_a_condition_keeps_is_told_as_the_store_treats_it") {
        let Some(node) = Node::that_waits(&programs) else { return };
        let tag = node.pull("web:2", &image("web", 90_000));
        let ctr = |args: &[&str]| node.containerd.ctr("k8s.io", args).ok().stdout;
        ctr(&["images", "label", &tag, "containerd.io/gc.cond.snapshot.native=usedat<24h|at-times"]);
        let used = ("containerd.io/gc.cond.value-usedat".to_owned(), jiff::Timestamp::now().to_string());
        prepare(&node, "at-times", [used].into());
        let why = node.json(&["why", "at-times"]);
        let kept = why["things"][0]["kept"].as_bool().unwrap();
        assert_eq!(kept, !programs.version().contains(" 1."), "{why:#}");
        ctr(&["leases", "create", "--id", "gone"]);
        ctr(&["leases", "rm", "--sync", "gone"]);
        let left = ctr(&["snapshots", "--snapshotter", "native", "ls"]);
        assert_eq!(kept, left.contains("at-times"), "{}: {why:#}", programs.version());
        if kept {
            assert_eq!(why["things"][0]["chains"][0]["name"], tag.as_str());
            let text = node.ok(&["why", "at-times"]);
            assert!(
                text.contains("while a condition holds, by the label containerd.io/gc.cond.snapshot.native"),
                "{text}"
            );
        }
    }
}

/// Of an index of which several platforms are here, labels do not tell which manifest is this machine's.
#[test]
fn the_image_id_of_an_index_is_this_platforms_wherever_nothing_writes_hash_references() {
    for programs in generations("the_image_id_of_an_index_is_this_platforms_wherever_nothing_writes_hash_references") {
        let Some(mut node) = Node::start(&programs) else { return };
        let content = several();
        let tag = node.pull("multi:1", &content);
        let id = node.records().into_iter().find(|name| name.starts_with("sha256:")).unwrap();
        let ctr = |args: &[&str]| node.containerd.ctr("default", args).ok();
        for options in [&[][..], &["--all-platforms"]] {
            ctr(&[&["content", "fetch", "--plain-http"], options, &[&tag]].concat());
            let explained = node.json(&["-n", "default", "explain", &tag]);
            assert_eq!(only(&explained, "record")["imageId"], id.as_str(), "{options:?}: {explained:#}");
        }
        let text = node.ok(&["-n", "default", "explain", &tag]);
        assert!(text.contains(&format!("image ID    {id}")), "{text}");
        let text = node.stop().run(&["-n", "default", "explain", &tag]).out;
        assert!(text.contains(&format!("image ID    {id}")), "{text}");
    }
}

#[test]
fn hash_references_without_a_name_are_said_to_keep_the_content_that_removing_them_frees() {
    for programs in generations("hash_references_without_a_name_are_said_to_keep_the_content_that_removing_them_frees")
    {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        let told = only(&node.json(&["explain", &tag]), "record");
        let words = told["ifDeleted"]["words"].to_string();
        assert!(
            words.contains("takes this record alone and frees nothing: the hash references keep the content"),
            "{words}"
        );
        node.containerd.ctr("k8s.io", &["images", "rm", "--sync", &tag]).ok();
        let stranded: Vec<String> = node.records();
        assert_eq!(stranded.len(), 2, "as was said: {stranded:?}");
        let id = stranded.iter().find(|name| name.starts_with("sha256:")).unwrap();
        let record = only(&node.json(&["explain", id]), "record");
        assert!(record["ifDeleted"]["words"].to_string().contains("no tag leads to the image"), "{record:#}");
        let all = record["imageCost"]["alone"]["bytes"].as_u64().unwrap();
        assert!(all > 200_000, "{record:#}");
        // `why` names the two, and that they are all there is to remove.
        let why = node.json(&["why", id]);
        let config = why["things"].as_array().unwrap().iter().find(|thing| thing["kind"] == "blob").unwrap();
        assert_eq!(texts(&config["removals"], "name"), stranded);
        assert_eq!(config["frees"]["bytes"], all);
        for name in &stranded {
            node.containerd.ctr("k8s.io", &["images", "rm", "--sync", name]).ok();
        }
        let left = node.containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout;
        assert!(!left.contains(id.as_str()), "removing what `why` names frees it");
        let gone = node.run(&["explain", id]);
        assert_eq!(gone.code, 3, "{}", gone.err);
    }
}

#[test]
fn what_is_not_there_is_not_found_with_what_is_like_it() {
    for programs in generations("what_is_not_there_is_not_found_with_what_is_like_it") {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        let done = node.run(&["explain", "calico/cni:v4"]);
        assert_eq!(done.code, 3);
        assert!(done.err.contains(&tag), "{}", done.err);
        // The beginning of everything means nothing.
        let done = node.run(&["why", "sha256:"]);
        assert_eq!(done.code, 4, "{}", done.err);
        assert!(done.err.contains("is the beginning of several"), "{}", done.err);
    }
}

#[test]
fn a_layer_is_kept_by_every_name_of_both_images_and_a_chain_shows_the_way() {
    for programs in generations("a_layer_is_kept_by_every_name_of_both_images_and_a_chain_shows_the_way") {
        let Some(node) = Node::start(&programs) else { return };
        node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        node.pull("web:2", &image("web", 90_000));
        // The lowest snapshot is the common layer's.
        let listed = node.containerd.ctr("k8s.io", &["snapshots", "ls"]).ok().stdout;
        let lowest = listed
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|w| w.len() == 2)
            .unwrap()[0]
            .to_owned();
        let why = node.json(&["why", &lowest]);
        let thing = only(&why, "snapshot");
        assert_eq!(texts(&thing["removals"], "name"), node.records());
        let chain = thing["chains"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"].as_str().unwrap().ends_with("web:2"))
            .unwrap();
        let kinds: Vec<&str> =
            chain["chain"].as_array().unwrap().iter().map(|step| step["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["blob", "blob", "snapshot", "snapshot"], "{chain:#}");
        let text = node.ok(&["why", &lowest]);
        assert!(text.contains("is kept by 6 roots"), "{text}");
    }
}

/// The daemon does not tell what surrounds a thing with so many; the command reads everything then.
#[test]
fn what_very_many_things_hang_on_is_explained_too() {
    let store = Orlop::new();
    let served = store.serve(&[]);
    let (part, whole) = (Digest::of(b"part"), Digest::of(b"whole"));
    let mut labels: Vec<(String, String)> = (0..5_001_u32)
        .map(|at| (format!("containerd.io/gc.ref.content.{at}"), Digest::of(&at.to_ne_bytes()).to_string()))
        .collect();
    labels.push(("containerd.io/gc.ref.content.here".into(), part.to_string()));
    labels.push(("containerd.io/gc.root".into(), "yes".into()));
    let labels: Vec<(&str, &str)> = labels.iter().map(|(key, value)| (&**key, &**value)).collect();
    Runtime::new().unwrap().block_on(async {
        let channel = orlop_api::channel::unix(&served.socket()).await.unwrap();
        write(channel.clone(), "part", b"part", Some(&part), &[("containerd.io/gc.root", "yes")]).await;
        write(channel, "whole", b"whole", Some(&whole), &labels).await;
    });
    let document = store.json(["explain", whole.as_str()]);
    assert_eq!(texts(&only(&document, "blob")["pointsTo"], "name"), [part.to_string()]);
    let document = store.json(["explain", part.as_str()]);
    assert_eq!(texts(&only(&document, "blob")["keptBy"], "name"), [part.to_string(), whole.to_string()]);
}
