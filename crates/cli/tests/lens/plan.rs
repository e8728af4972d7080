//! Removal from a foreign containerd: what the plan says goes, goes, and the file system gets back what it says.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_testkit::{archive, tier};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::alone::{Alone, NAMESPACES, free, random_image};
use crate::common::Orlop;
use crate::node::{Node, generations, image};

#[test]
fn what_random_plans_say_goes_and_is_given_back() {
    let stores: u64 = tier::amount("ORLOP_TEST_STORES", 4);
    for programs in generations("what_random_plans_say_goes_and_is_given_back") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut names: BTreeSet<(usize, String)> = BTreeSet::new();
        for seed in 0..stores {
            let mut random = StdRng::seed_from_u64(seed);
            for n in 0..random.random_range(1..4) {
                let (at, name) = (random.random_range(0..2), format!("r.example/i{seed}:{n}"));
                node.import(NAMESPACES[at], &name, &random_image(&mut random));
                if random.random_bool(0.3) {
                    let other = format!("r.example/again{seed}:{n}");
                    node.containerd.ctr(NAMESPACES[at], &["images", "tag", &name, &other]).ok();
                    names.insert((at, other));
                }
                names.insert((at, name));
            }
            let at = random.random_range(0..2);
            let mut going: Vec<String> = names.iter().filter(|(n, _)| *n == at).map(|(_, name)| name.clone()).collect();
            going.retain(|_| random.random_bool(0.6));
            if !going.is_empty() {
                names.retain(|(n, name)| *n != at || !going.contains(name));
                let names: Vec<&str> = going.iter().map(String::as_str).collect();
                node.as_planned(
                    NAMESPACES[at],
                    &[&["rm"], &names[..]].concat(),
                    &format!("{} store {seed}", programs.version()),
                );
            }
        }
    }
}

#[test]
fn a_plan_is_refused_once_the_state_has_moved_and_nothing_goes() {
    for programs in generations("a_plan_is_refused_once_the_state_has_moved_and_nothing_goes") {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        let plan = node.json(&["rm", "--plan", &tag]);
        assert_eq!(plan["records"].as_array().unwrap().len(), 3, "the hash references go with the last name");
        assert!(plan["freedNow"].as_u64().unwrap() > 200_000);
        let other = node.name("calico/cni:kept");
        node.containerd.ctr("k8s.io", &["images", "tag", &tag, &other]).ok();
        let before = node.records();
        let refused = node.run(&["rm", "--execute", plan["plan"].as_str().unwrap(), &tag]);
        assert_eq!(refused.code, 4, "{}", refused.err);
        assert!(refused.err.contains("the plan has changed"), "{}", refused.err);
        assert_eq!(node.records(), before);
        // The new plan: the other name keeps everything.
        let plan = node.json(&["rm", "--plan", &tag]);
        assert_eq!((plan["records"].as_array().unwrap().len(), plan["freedNow"].as_u64()), (1, Some(0)));
        node.ok(&["rm", "--execute", plan["plan"].as_str().unwrap(), &tag]);
        assert!(!node.records().contains(&tag) && node.records().contains(&other));
        node.ok(&["rm", &other]);
        assert_eq!(node.records(), [""; 0]);
        assert_eq!(node.containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout, "");
    }
}

#[test]
fn disk_usage_agrees_with_what_the_file_system_has_allocated() {
    for programs in generations("disk_usage_agrees_with_what_the_file_system_has_allocated") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut random = StdRng::seed_from_u64(7);
        for n in 0..6 {
            node.import(NAMESPACES[n % 2], &format!("r.example/i:{n}"), &random_image(&mut random));
        }
        node.containerd.ctr("k8s.io", &["images", "rm", "r.example/i:0"]).ok();
        // containerd collects when it likes: what it would take between both looks goes before, and all is written out.
        node.collect();
        free(&node.disk.path());
        let done = node.orlop("k8s.io", &["df", "-o", "json"]);
        assert_eq!(done.code, 0, "{}", done.err);
        let usage: Value = serde_json::from_str(&done.out).unwrap();
        let number = |field: &str| usage[field].as_u64().unwrap_or_else(|| panic!("{field}: {usage:#}"));
        let parts = number("content") + number("snapshots") + number("ingests") + number("metadata");
        assert_eq!(number("total"), parts);
        assert_eq!(usage["measured"], true);
        let root = node.disk.path().join("root");
        let taken = du(&root);
        let off = taken.abs_diff(number("total"));
        assert!(off <= (taken / 100).max(1 << 20), "{}: df {}, du {taken}", programs.version(), number("total"));
        assert!(number("snapshots") > 0 && usage["images"].as_array().unwrap().len() == 5);
        let layers = node.orlop("k8s.io", &["df", "--by", "layer", "-o", "json"]);
        let layers: Value = serde_json::from_str(&layers.out).unwrap();
        let shared = layers["layers"].as_array().unwrap().iter().filter(|l| l["images"].as_array().unwrap().len() > 1);
        assert!(shared.count() > 0, "{layers:#}");
        let parts = node.orlop("k8s.io", &["df", "--by", "namespace", "-o", "json"]);
        let parts: Value = serde_json::from_str(&parts.out).unwrap();
        assert_eq!(parts["parts"].as_array().unwrap().len(), 2, "{parts:#}");
        by_image(&usage, |args| node.orlop("k8s.io", args).out);
    }
}

/// The images of `df`, the largest first, in a document and as rows.
fn by_image(usage: &Value, orlop: impl Fn(&[&str]) -> String) {
    let document: Value = serde_json::from_str(&orlop(&["df", "--by", "image", "-o", "json"])).unwrap();
    assert_eq!(document["schema"], "orlop.df.images/v1");
    let images = document["images"].as_array().unwrap();
    let all = usage["images"].as_array().unwrap();
    assert!(all.len() == images.len() && all.iter().all(|image| images.contains(image)), "{document:#}");
    let number = |image: &Value, field: &str| image["size"][field].as_u64().unwrap();
    let bytes: Vec<u64> = images.iter().map(|image| number(image, "shared") + number(image, "unique")).collect();
    assert!(bytes.is_sorted_by(|a, b| a >= b) && bytes[0] > 0, "{bytes:?}");
    let text = orlop(&["df", "--by", "image"]);
    assert!(text.starts_with("IMAGE "), "{text}");
    let titles: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles[2..], ["COMPRESSED", "UNPACKED", "SHARED", "UNIQUE"]);
    for (line, image) in text.lines().skip(1).zip(images) {
        assert!(line.starts_with(image["names"][0].as_str().unwrap()), "{line}");
    }
    assert_eq!(text.lines().count(), images.len() + 1);
}

#[test]
fn what_each_image_of_orlops_own_store_takes_is_shown_in_rows() {
    let store = Orlop::new();
    for (name, own, size) in [("r.example/small:1", "small", 9_000), ("r.example/large:1", "large", 90_000)] {
        let file = store.path("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, &image(own, size))])).unwrap();
        store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    }
    by_image(&store.json(["df"]), |args| store.ok(args));
    assert!(store.ok(["df", "--by", "image"]).lines().nth(1).unwrap().starts_with("r.example/large:1"));
}

#[test]
fn disk_usage_of_orlops_own_store_agrees_with_what_the_file_system_has_allocated() {
    let store = Orlop::new();
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("r.example/i:1", &image("own", 300_000))])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    let root = store.path("root");
    let agrees = || {
        let usage = store.json(["df"]);
        let number = |field: &str| usage[field].as_u64().unwrap();
        let parts = ["content", "snapshots", "ingests", "trash", "metadata"].map(number).iter().sum::<u64>();
        let (total, taken) = (number("total"), du(&root));
        assert_eq!(total, parts);
        assert!(taken.abs_diff(total) <= (taken / 100).max(1 << 20), "df {total}, du {taken}");
        usage
    };
    let before = agrees();
    let grown = |now: &Value, field: &str| now[field].as_i64().unwrap() - before[field].as_i64().unwrap();
    // More names in one directory, and more directories, than are looked at in one go.
    let many = root.join("content/blobs/many");
    for n in 0..3_000 {
        std::fs::create_dir_all(many.join(format!("{}", n % 70))).unwrap();
        std::fs::write(many.join(format!("file-{n}")), [1; 4_000]).unwrap();
        std::fs::write(many.join(format!("{}/{n}", n % 70)), [1; 4_000]).unwrap();
    }
    let with_many = agrees();
    assert!((6_000 * 4_096..7_000 * 4_096).contains(&grown(&with_many, "content")), "{with_many:#}");
    // What is sparse takes nothing; what has several names takes what it takes once, wherever they are.
    std::fs::write(many.join("large"), vec![1; 3 << 20]).unwrap();
    std::fs::hard_link(many.join("large"), many.join("large-2")).unwrap();
    std::fs::create_dir_all(root.join("trash")).unwrap();
    std::fs::hard_link(many.join("large"), root.join("trash/large-3")).unwrap();
    std::fs::File::create(many.join("sparse")).unwrap().set_len(1 << 30).unwrap();
    let linked = agrees();
    let more = grown(&linked, "content") - grown(&with_many, "content");
    assert!((3 << 20..(3 << 20) + 100_000).contains(&more), "{more}");
    assert!(grown(&linked, "trash") <= 8_192, "{linked:#}");
}

/// What `du` says that a directory takes.
fn du(directory: &Path) -> u64 {
    let out = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(directory).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
