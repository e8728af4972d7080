//! Pruning a foreign containerd: each policy takes what it says, what is needed stays, and the plan is what comes back.

use orlop_oci::Compression;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::alone::{Alone, NAMESPACES, random_image};
use crate::common::Done;
use crate::node::{Node, generations, image};
use crate::ward::{K8S, Ward, made_older};

fn texts(values: &Value) -> Vec<&str> {
    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect()
}

/// The first names of images that go, in order.
fn chosen(document: &Value) -> Vec<&str> {
    document["chosen"].as_array().unwrap().iter().map(called).collect()
}

fn called(image: &Value) -> &str {
    image["names"].get(0).or_else(|| image["hashReferences"].get(0)).and_then(Value::as_str).unwrap()
}

/// Why an image stays.
fn why<'d>(document: &'d Value, name: &str) -> &'d str {
    let kept = document["kept"].as_array().unwrap();
    let found = kept.iter().find(|image| called(image) == name);
    found.unwrap_or_else(|| panic!("{name} does not stay: {document:#}"))["reason"].as_str().unwrap()
}

fn freed(document: &Value) -> u64 {
    document["chosen"].as_array().unwrap().iter().map(|image| image["frees"].as_u64().unwrap()).sum()
}

#[test]
fn what_is_pruned_until_enough_is_free_is_given_back_and_no_image_more() {
    for programs in generations("what_is_pruned_until_enough_is_free_is_given_back_and_no_image_more") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut random = StdRng::seed_from_u64(11);
        for n in 0..12 {
            node.import(NAMESPACES[n % 2], &format!("r.example/i{}:{n}", n % 3), &random_image(&mut random));
        }
        for round in 0..3 {
            let namespace = NAMESPACES[round % 2];
            let wanted = random.random_range(200_000..3_000_000_u64);
            let command = ["prune", "--last-copies", "--free", &format!("{wanted}B")];
            let case = format!("{} round {round}", programs.version());
            let plan = node.as_planned(namespace, &command, &case);
            assert_eq!(
                (plan["schema"].as_str(), plan["policy"]["free"].as_u64()),
                (Some("orlop.prune/v1"), Some(wanted))
            );
            assert_eq!(freed(&plan), plan["freedNow"].as_u64().unwrap(), "{case}: {plan:#}");
            assert!(freed(&plan) >= wanted, "{case}: {plan:#}");
            let last = plan["chosen"].as_array().unwrap().last().unwrap()["frees"].as_u64().unwrap();
            assert!(freed(&plan) - last < wanted, "{case}: one image less would do: {plan:#}");
        }
        // The rest, of which more is wanted than there is.
        let all = node.as_planned("default", &["prune", "--last-copies", "--free", "1TiB"], &programs.version());
        assert!(!chosen(&all).is_empty());
        assert_eq!(node.containerd.ctr("default", &["images", "ls", "-q"]).ok().stdout, "");
        // What was imported is nowhere else.
        let kept = node.orlop("k8s.io", &["prune", "--unused", "--yes"]);
        assert_eq!(kept.code, 0, "{}", kept.err);
        assert!(kept.out.starts_with("Nothing to prune") && kept.out.contains("--last-copies"), "{}", kept.out);
        assert_ne!(node.containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok().stdout, "");
    }
}

#[test]
fn a_share_of_the_file_system_is_left_free() {
    for programs in generations("a_share_of_the_file_system_is_left_free") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut random = StdRng::seed_from_u64(12);
        for n in 0..4 {
            node.import("k8s.io", &format!("r.example/i:{n}"), &random_image(&mut random));
        }
        let prune = |share: &str| {
            let done = node.orlop("k8s.io", &["prune", "--last-copies", "--until-free", share, "-o", "json"]);
            assert_eq!(done.code, 0, "{}", done.err);
            serde_json::from_str::<Value>(&done.out).unwrap()
        };
        assert_eq!(chosen(&prune("1%")), [""; 0], "that much is free");
        assert_eq!(chosen(&prune("100%")).len(), 4);
        let available = rustix::fs::statvfs(node.disk.path()).unwrap();
        let wanted = available.f_bavail * available.f_frsize + (1 << 20);
        let some = prune(&format!("{wanted}B"));
        assert!((1..4).contains(&chosen(&some).len()), "{some:#}");
        let text = node.orlop("k8s.io", &["prune", "--last-copies", "--until-free", "1%"]);
        assert!(text.out.contains("that much is free already"), "{}", text.out);
    }
}

/// An image whose config has a label.
fn labelled(own: &str, label: &str) -> Content {
    let layer = Layer::new([Entry::file(own, own.repeat(9_000))]).packed(Compression::Gzip);
    Content::image(&Image::host().layer(layer).config("Labels", json!({ label: "1" })))
}

#[test]
fn each_policy_takes_what_it_says_and_nothing_that_is_needed() {
    for programs in generations("each_policy_takes_what_it_says_and_nothing_that_is_needed") {
        let Some(mut ward) = Ward::open(&programs) else { return };
        let live = ward.live.clone();
        let apps: Vec<String> =
            (1..4).map(|n| ward.node.pull(&format!("team/app:v{n}"), &image(&format!("app{n}"), 90_000))).collect();
        let tool = ward.node.pull("tool:1", &labelled("tool", "tier"));
        let digest = image("by digest", 60_000);
        let by_digest = ward.node.pull("found/app:x", &digest);
        ward.ctr(&["images", "rm", &by_digest]);
        let by_digest = format!("{}@{}", ward.node.name("found/app"), digest.root.digest);
        let before = ward.items();
        let prune = |ward: &Ward, args: &[&str]| ward.node.json(&[&["prune"], args].concat());

        let all = prune(&ward, &[]);
        assert_eq!(why(&all, &live), "in-use");
        assert_eq!(chosen(&all), [&apps[..], &[tool.clone(), by_digest.clone()]].concat());
        assert_eq!(texts(&all["records"]).len(), 4 * 3 + 2, "with the hash references: {all:#}");
        assert_eq!(
            (all["unpullable"].as_array().unwrap().len(), &all["inUse"]),
            (0, &json!([])),
            "CRI says where from"
        );
        assert_eq!(freed(&all), all["freedNow"].as_u64().unwrap());

        assert_eq!(chosen(&prune(&ward, &["--keep-last", "1"])), [apps[0].as_str(), &apps[1]]);
        let kept = prune(&ward, &["--keep-last", "2", "--repository", &ward.node.name("team/*")]);
        assert_eq!(chosen(&kept), [apps[0].as_str()]);
        assert_eq!((why(&kept, &apps[1]), why(&kept, &tool)), ("among-last", "other-repository"));
        assert_eq!(chosen(&prune(&ward, &["--label", "tier=1"])), [tool.as_str()], "the image's own label");
        ward.ctr(&["images", "label", &apps[0], "tier=none"]);
        assert_eq!(chosen(&prune(&ward, &["--label", "tier", "--label", "!tier=1"])), [apps[0].as_str()]);
        assert_eq!(chosen(&prune(&ward, &["--label", "nobody.has.this"])), [""; 0]);
        assert_eq!(chosen(&prune(&ward, &["--untagged"])), [by_digest.as_str()]);

        let unused = prune(&ward, &["--unused-since", "1d"]);
        assert_eq!(chosen(&unused), [""; 0]);
        assert_eq!(why(&unused, &tool), "recently-used");
        ward.age_and(|database| assert!(made_older(database, "updatedat") > 0));
        ward.node.pull("team/app:v4", &image("app4", 90_000));
        let unused = prune(&ward, &["--unused-since", "1d"]);
        assert_eq!(chosen(&unused).len(), 5, "all but the new one: {unused:#}");
        assert_eq!(unused["chosen"][0]["lastUse"]["inferred"], true);
        assert_eq!(chosen(&prune(&ward, &["--unused-since", "3d"])), [""; 0]);

        ward.ctr(&["images", "label", &apps[1], "io.cri-containerd.pinned=pinned"]);
        ward.lease("at work", &[], &[("content", digest.root.digest.as_str())]);
        let shielded = prune(&ward, &["--unused-since", "1d"]);
        assert_eq!((why(&shielded, &apps[1]), why(&shielded, &by_digest)), ("pinned", "held"));
        assert_eq!(chosen(&shielded).len(), 3);
        ward.ctr(&["leases", "rm", "at work"]);
        // A file system that somebody has prepared, without a container.
        let chain = ward.node.json(&["resolve", &tool])["images"][0]["targets"][0]["layers"][0]["chainId"].clone();
        ward.ctr(&["snapshots", "prepare", "by hand", chain.as_str().unwrap()]);
        assert_eq!(why(&prune(&ward, &["--unused-since", "1d"]), &tool), "held");
        ward.ctr(&["snapshots", "rm", "by hand"]);
        // All that was only looked at is as it was.
        let new: Vec<String> = ward.items().difference(&before).cloned().collect();
        assert!(before.is_subset(&ward.items()) && new.iter().all(|item| !item.starts_with("lease")), "{new:?}");
        ward.node.ok(&["prune", "--unused-since", "1d", "--yes"]);
        let left = ward.node.records();
        assert!(left.contains(&live) && left.contains(&apps[1]) && !left.contains(&apps[0]) && !left.contains(&tool));
        ward.node.crictl(&["inspecti", &live]);
        ward.node.crictl(&["inspecti", &apps[1]]);
        assert_eq!(ward.found(&["--class", "stranded,partial,missing-id,missing-digest"]), []);
    }
}

#[test]
fn a_stale_plan_is_refused_and_nothing_goes() {
    for programs in generations("a_stale_plan_is_refused_and_nothing_goes") {
        let Some(ward) = Ward::open(&programs) else { return };
        let one = ward.node.pull("app:1", &image("one", 90_000));
        let two = ward.node.pull("app:2", &image("two", 90_000));
        let hash = |args: &[&str]| ward.node.json(&[&["prune"], args].concat())["plan"].as_str().unwrap().to_owned();
        let refused = |hash: &str| {
            let before = ward.node.records();
            let done = ward.node.run(&["prune", "--execute", hash]);
            assert_eq!(done.code, 4, "{}{}", done.out, done.err);
            assert!(done.err.contains("the plan has changed") && done.err.contains("orlop prune"), "{}", done.err);
            assert_eq!(ward.node.records(), before);
        };
        let plan = hash(&[]);
        ward.ctr(&["containers", "create", &one, "web-2"]);
        refused(&plan);
        let plan = hash(&[]);
        ward.node.pull("app:3", &image("three", 90_000));
        refused(&plan);
        let plan = hash(&[]);
        ward.ctr(&["images", "label", &two, "io.cri-containerd.pinned=pinned"]);
        refused(&plan);
        let plan = hash(&[]);
        ward.ctr(&["images", "rm", "--sync", &ward.node.name("app:3")]);
        ward.node.ok(&["rm", &format!("{}@{}", ward.node.name("app"), image("three", 90_000).root.digest)]);
        refused(&plan);
        // Nothing may go now: that is a plan too, and another one.
        assert_eq!(chosen(&ward.node.json(&["prune"])), [""; 0]);
        let nothing = hash(&[]);
        ward.node.ok(&["prune", "--execute", &nothing]);
    }
}

#[test]
fn the_files_of_a_stopped_containerd_tell_the_same_and_are_not_changed() {
    for programs in generations("the_files_of_a_stopped_containerd_tell_the_same_and_are_not_changed") {
        let Some(mut node) = Node::start(&programs) else { return };
        node.pull("app:1", &image("one", 90_000));
        node.pull("app:2", &image("two", 90_000));
        let looks: [&[&str]; 3] =
            [&["prune"], &["prune", "--keep-last", "1"], &["prune", "--free", "1KiB", "--label", "!x", "-o", "wide"]];
        let before: Vec<String> = looks.iter().map(|look| node.ok(look)).collect();
        let files = node.stop();
        let run = |args: &[&str]| files.run(args);
        for (look, before) in looks.iter().zip(before) {
            let done = run(look);
            assert_eq!((done.code, done.out), (0, before), "{look:?}: {}", done.err);
        }
        let refused = run(&["prune", "--unused", "--yes"]);
        assert_eq!(refused.code, 2, "{}", refused.err);
        assert!(run(&["images", "-o", "name"]).out.contains("app:2"));
    }
}

#[test]
fn what_a_plan_says_to_do_does_it() {
    for programs in generations("what_a_plan_says_to_do_does_it") {
        let Some(node) = Node::start(&programs) else { return };
        let old = node.pull("app:1", &labelled("old", "it's: old"));
        let new = node.pull("app:2", &labelled("new", "it's: old"));
        let plan = node.ok(&["prune", "--keep-last", "1", "--label", "it's: old", "--unused-since", "0s"]);
        assert!(plan.contains("1 image goes"), "{plan}");
        let command = plan.lines().last().unwrap().split_once("exactly this: ").unwrap().1;
        let orlop = env!("CARGO_BIN_EXE_orlop");
        let socket = node.containerd.socket();
        let command = command.replacen("orlop", &format!("{orlop} --address {} -n {K8S}", socket.display()), 1);
        let done = Done::of(&std::process::Command::new("sh").args(["-c", &command]).output().unwrap());
        assert_eq!(done.code, 0, "{command}: {}", done.err);
        assert!(done.out.lines().any(|line| line == old) && done.err.contains("freed"), "{}{}", done.out, done.err);
        assert!(!node.records().contains(&old) && node.records().contains(&new));
    }
}
