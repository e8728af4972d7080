//! Pruning Orlop's own store: by the same policies, into the trash, and back.

use crate::common;
use crate::common::Orlop;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::disk::Disk;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use serde_json::{Value, json};

fn image(own: &str) -> Content {
    let base = Layer::new([Entry::file("base", "common ".repeat(5_000))]).packed(Compression::Gzip);
    Content::image(&Image::host().layer(base).layer(Layer::noise(own, own.len() as u64, 50_000)))
}

/// A store that has pulled `app:1` to `app:3`, in this order, and imported `built:1`.
struct Pulled {
    store: Orlop,
    registry: Registry,
}

impl Pulled {
    fn start() -> Option<Self> {
        Self::into(Orlop::new())
    }

    fn into(store: Orlop) -> Option<Self> {
        let registry = Registry::start(&Options::new())?;
        let maker = Orlop::new();
        let pulled = Self { store, registry };
        for n in 1..4 {
            let name = pulled.name(n);
            common::import(&maker, &name, &image(&"own".repeat(n)));
            maker.ok(["push", "--plain-http", &name]);
            pulled.store.ok(["pull", "-q", "--plain-http", &name]);
        }
        common::import(&pulled.store, "docker.io/library/built:1", &image("built"));
        Some(pulled)
    }

    fn name(&self, n: usize) -> String {
        format!("{}/team/app:{n}", self.registry.host())
    }

    fn chosen(&self, args: &[&str]) -> Vec<String> {
        chosen(&self.store.json([&["prune"], args].concat()))
    }
}

fn chosen(document: &Value) -> Vec<String> {
    let images = document["chosen"].as_array().unwrap();
    images.iter().map(|image| image["names"][0].as_str().unwrap().to_owned()).collect()
}

/// Names and sizes of all images.
fn sizes(store: &Orlop) -> Vec<(String, Value)> {
    let document = store.json(["images"]);
    let images = document["images"].as_array().unwrap();
    images.iter().map(|image| (image["names"][0].to_string(), image["size"].clone())).collect()
}

#[test]
fn what_was_pruned_comes_back_with_undo() {
    let Some(pulled) = Pulled::start() else { return };
    let store = &pulled.store;
    let before = (store.records(), sizes(store));
    let plan = store.json(["prune", "--keep-last", "1", "--plan"]);
    assert_eq!(chosen(&plan), [pulled.name(1), pulled.name(2)], "{plan:#}");
    assert_eq!((plan["freedNow"].as_u64(), &plan["unpullable"]), (Some(0), &json!([])), "into the trash");
    let planned = plan["freedWhenTrashEmpties"].as_u64().unwrap();
    assert_eq!(planned, plan["chosen"].as_array().unwrap().iter().map(|c| c["frees"].as_u64().unwrap()).sum::<u64>());
    assert_eq!(before.0, store.records(), "a plan changes nothing");
    let done = store.json(["prune", "--keep-last", "1", "--execute", plan["plan"].as_str().unwrap()]);
    assert_eq!(done["outcome"], json!({ "planned": planned, "freed": planned, "differences": [] }));
    let left = store.records();
    assert!(!left.contains(&pulled.name(1)) && !left.contains(&pulled.name(2)) && left.contains(&pulled.name(3)));
    store.is_sound();
    let listed: Value = serde_json::from_str(&store.ok(["undo", "--list", "-o", "json"])).unwrap();
    assert_eq!(listed["entries"][0]["reason"], "prune --keep-last 1");
    assert_eq!(listed["entries"][0]["id"], done["trash"]);
    store.ok(["undo"]);
    assert_eq!((store.records(), sizes(store)), before);
    store.is_sound();
}

#[test]
fn a_command_that_joins_the_daemon_prunes_the_same() {
    let Some(pulled) = Pulled::start() else { return };
    let store = &pulled.store;
    let plan = |store: &Orlop| {
        let mut plan = store.json(["prune", "--unused", "--label", "!x"]);
        plan["kept"].as_array_mut().unwrap().sort_by_key(|kept| kept["names"][0].to_string());
        plan
    };
    let alone = plan(store);
    let mut served = store.serve(&[]);
    let joined = plan(store);
    assert_eq!(joined, alone);
    store.ok(["prune", "--unused", "--label", "!x", "--execute", joined["plan"].as_str().unwrap()]);
    assert!(store.records().iter().any(|name| name.ends_with("built:1")), "the last copy");
    assert!(!store.records().contains(&pulled.name(3)));
    store.ok(["undo"]);
    assert!(store.records().contains(&pulled.name(3)));
    served.process().signal(rustix::process::Signal::TERM);
    served.process().wait();
    store.is_sound();
}

#[test]
fn pins_and_last_copies_stay_and_a_stale_plan_is_refused() {
    let Some(pulled) = Pulled::start() else { return };
    let store = &pulled.store;
    assert_eq!(pulled.chosen(&[]).len(), 3);
    assert_eq!(pulled.chosen(&["--last-copies"]).len(), 4);
    let plan = store.json(["prune"]);
    store.ok(["pin", &pulled.name(2)]);
    let refused = store.run(["prune", "--execute", plan["plan"].as_str().unwrap()]);
    assert_eq!(refused.code, 4, "{}{}", refused.out, refused.err);
    assert_eq!(pulled.chosen(&["--last-copies"]).len(), 3);
    (1..4).for_each(|n| drop(store.ok(["pin", &pulled.name(n)])));
    store.ok(["pin", "built:1"]);
    let before = store.records();
    let nothing = store.run(["prune", "--unused", "--last-copies", "--free", "9TiB", "--yes"]);
    assert_eq!(nothing.code, 0, "{}", nothing.err);
    assert!(nothing.out.contains("Nothing to prune") && nothing.out.contains("pinned: "), "{}", nothing.out);
    assert_eq!(store.records(), before);
    // Without the trash the space is there at once, and nothing comes back.
    (1..4).for_each(|n| drop(store.ok(["unpin", &pulled.name(n)])));
    let done = store.json(["prune", "--unused", "--no-trash", "--yes"]);
    assert!(done["freedNow"].as_u64().unwrap() > 150_000 && done.get("trash").is_none(), "{done:#}");
    assert_eq!(store.run(["undo"]).code, 3);
    store.is_sound();
}

#[test]
fn bytes_that_are_asked_for_are_counted_with_the_trash() {
    // A file system of its own: free space is compared.
    let Some(disk) = Disk::new(256) else { return };
    let Some(pulled) = Pulled::into(Orlop::below(&disk.path())) else { return };
    let store = &pulled.store;
    assert_eq!(pulled.chosen(&["--free", "1B"]), [pulled.name(1)], "least recently used first");
    let one = store.json(["prune", "--free", "1B"])["freedWhenTrashEmpties"].as_u64().unwrap();
    assert_eq!(pulled.chosen(&["--free", &format!("{one}B")]).len(), 1);
    assert_eq!(pulled.chosen(&["--free", &format!("{}B", one + 1)]).len(), 2);
    let all = store.json(["prune", "--free", "9TiB"]);
    assert_eq!(chosen(&all).len(), 3);
    let text = store.ok(["prune", "--free", "9TiB"]);
    assert!(text.contains("less than the 9.0 TiB that were asked for"), "{text}");
    // A trash of which room can be made is as good as free room: it is not asked for again.
    store.ok(["prune", "--unused", "--yes"]);
    let trash = store.json(["df"])["trash"].as_u64().unwrap();
    assert!(trash > 150_000, "{trash}");
    let share = |args: &[&str]| store.json([&["prune", "--last-copies", "--until-free", "100%"], args].concat());
    let (with, without) = (share(&[]), share(&["--no-trash"]));
    let wanted = |document: &Value| document["policy"]["free"].as_u64().unwrap();
    assert!(wanted(&with) + trash / 2 < wanted(&without), "{with:#}");
}

/// Regression: a plan said nothing of an image that its registry was found to have no more.
#[test]
fn what_a_registry_has_no_more_is_a_last_copy() {
    let Some(pulled) = Pulled::start() else { return };
    let store = &pulled.store;
    std::fs::remove_dir_all(pulled.registry.dir().join("data/docker/registry/v2/repositories/team/app")).unwrap();
    let gone = store.run(["pull", "-q", "--plain-http", &pulled.name(1)]);
    assert_eq!(gone.code, 3, "{}", gone.err);
    assert_eq!(pulled.chosen(&[]), [pulled.name(2), pulled.name(3)]);
    let plan = store.json(["rm", "--plan", &pulled.name(1)]);
    let reason = plan["unpullable"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("team/app had it once"), "{reason}");
    assert_eq!(store.json(["rm", "--plan", &pulled.name(2)])["unpullable"], json!([]));
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let store = Orlop::new();
    let file = store.path("built.tar");
    std::fs::write(&file, archive::oci_archive(&[("docker.io/library/built:1", &image("built"))])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    let cases: [(&[&str], &str); 14] = [
        (&["--yes"], "needs a policy"),
        (&["--yes", "--last-copies"], "needs a policy"),
        (&["--keep-last", "0"], "0 is not in"),
        (&["--keep-last", "-1"], "unexpected argument"),
        (&["--unused-since", "soon"], "like 7d"),
        (&["--unused-since", "-7d"], "unexpected argument"),
        (&["--unused-since=-7d"], "negative"),
        (&["--free", "5"], "no unit"),
        (&["--free", "99999999999TiB"], "too large"),
        (&["--until-free", "120%"], "between 0% and 100%"),
        (&["--free", "1GiB", "--until-free", "1GiB"], "cannot be used with"),
        (&["--label", "!"], "the key is empty"),
        (&["--repository", "app:1"], "without a tag"),
        (&["--plan", "--yes"], "cannot be used with"),
    ];
    for (args, says) in cases {
        let done = store.run([&["prune"], args].concat());
        assert_eq!(done.code, 2, "{args:?}: {}{}", done.out, done.err);
        assert!(done.err.contains(says), "{args:?}: {}", done.err);
    }
    assert_eq!(store.run(["prune", "--unused", "--execute", "sha256:0"]).code, 4);
    for args in [&["--free", "0B"][..], &["--label", "nobody.has.it"], &["-n", "nowhere"], &["--free", "9TiB", "--yes"]]
    {
        let done = store.run([&["prune"], args].concat());
        assert_eq!(done.code, 0, "{args:?}: {}", done.err);
        assert!(done.out.contains("Nothing to prune"), "{args:?}: {}", done.out);
    }
    assert_eq!(store.records().len(), 3);
}
