//! Faults in Orlop's own store, with its daemon and without one: found, mended by the doctor's plan or the command that it
//! prints, and what can be undone can be undone still.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_oci::{Digest, ImageConfig, chain_ids};
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::Content;
use orlop_testkit::served::Served;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::{self, Orlop};
use crate::node::image;
use crate::ward::{AGED, K8S, lease, printed, write};

/// A store with something that lives, something that was removed and can be undone, and one fault of each class that there is.
struct Sick {
    store: Orlop,
    programs: Programs,
    /// The image that lives.
    live: &'static str,
    blob: Digest,
    served: Option<Served>,
}

fn import(store: &Orlop, name: &str, content: &Content) {
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    store.ok(["import", file.to_str().unwrap()]);
}

/// The key of an image's uppermost snapshot.
fn top(content: &Content) -> String {
    let config = ImageConfig::parse(content.bytes(content.image_id().unwrap().digest())).unwrap();
    chain_ids(&config.rootfs.diff_ids).pop().unwrap().to_string()
}

impl Sick {
    /// With a daemon or without one; none if what makes the faults is not installed.
    fn new(test: &str, with_daemon: bool) -> Option<Self> {
        let programs = Programs::debian().filter(|_| common::is_root(test))?;
        let (store, live) = (Orlop::new(), "r.example/live:1");
        let content = image("live", 90_000);
        import(&store, live, &content);
        import(&store, "r.example/gone:1", &image("gone", 40_000));
        store.ok(["rm", "r.example/gone:1"]);
        // However full this machine's disk is, the trash stays.
        let config = store.path("config.toml");
        std::fs::write(&config, "[gc]\ntrash_free_percent = 0\n").unwrap();
        let options = ["--config", config.to_str().unwrap()];
        let blob = Digest::of(b"by hand");
        let served = store.serve(&options);
        Runtime::new().unwrap().block_on(async {
            let channel = orlop_api::channel::unix(&served.socket()).await.unwrap();
            write(channel.clone(), "broken-off", &[7; 50_000], None, &[]).await;
            // With its label from the first: the daemon collects whenever it likes.
            let label = [("containerd.io/gc.root", "by-hand")];
            write(channel.clone(), "by hand", b"by hand", Some(&blob), &label).await;
            let held = [("content", content.root.digest.as_str())];
            lease(channel.clone(), "forgotten", &[], &held).await;
        });
        served.ctr(&programs, K8S, &["snapshots", "prepare", "by-hand", &top(&content)]).ok();
        drop(served);
        age(&store.root());
        let served = store.serve(&options);
        Runtime::new().unwrap().block_on(async {
            // What is young is somebody's work.
            let channel = orlop_api::channel::unix(&served.socket()).await.unwrap();
            lease(channel.clone(), "young", &[], &[]).await;
            write(channel, "at-work", &[8; 1_000], None, &[]).await;
        });
        let served = Some(served).filter(|_| with_daemon);
        Some(Self { store, programs, live, blob, served })
    }

    fn doctor(&self, args: &[&str]) -> (i32, Value) {
        let done = self.store.run([&["doctor", "-o", "json"], args].concat());
        (done.code, serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}{}", done.out, done.err)))
    }

    /// Class and subject of what is found.
    fn found(&self, args: &[&str]) -> Vec<(String, String)> {
        let (code, document) = self.doctor(args);
        let problems = document["problems"].as_array().unwrap();
        assert_eq!(code, if problems.is_empty() { 0 } else { 5 }, "{document:#}");
        let text = |problem: &Value, field: &str| problem[field].as_str().unwrap().to_owned();
        problems.iter().map(|p| (text(p, "class"), text(p, "subject"))).collect()
    }

    fn names(&self, args: &[&str]) -> BTreeSet<String> {
        self.store.ok(args.iter().chain(&["-o", "name"])).lines().map(str::to_owned).collect()
    }

    /// Everything that is listed.
    fn items(&self) -> BTreeSet<String> {
        let lists: [(&str, &[&str]); 5] = [
            ("record", &["images", "--all"]),
            ("blob", &["content", "ls"]),
            ("write", &["content", "active"]),
            ("snapshot", &["snapshots", "ls"]),
            ("lease", &["leases", "ls"]),
        ];
        let named = lists.iter().flat_map(|(kind, list)| {
            self.names(list).into_iter().map(move |name| format!("{kind} {name}")).collect::<Vec<_>>()
        });
        named.collect()
    }

    /// Has it mend by its own plan, which nothing else than what it says goes by.
    fn mended(&self, args: &[&str]) -> Value {
        let before = self.items();
        let (code, document) = self.doctor(&[&["--fix"], args].concat());
        assert_eq!((code, &self.items()), (0, &before), "a plan changes nothing: {document:#}");
        let hash = document["plan"]["plan"].as_str().unwrap().to_owned();
        let other = Digest::of(b"another plan").to_string();
        assert_eq!(self.store.run([&["doctor", "--fix", "--execute", &other], args].concat()).code, 4);
        let (code, done) = self.doctor(&[&["--fix", "--execute", &hash], args].concat());
        assert_eq!((code, &done["plan"]["differences"]), (0, &json!([])), "{done:#}");
        document["plan"].clone()
    }

    /// What was removed before is back with all its bytes, and everything is in order.
    fn is_whole(&self) {
        assert_eq!(self.found(&["--deep"]), []);
        assert!(self.store.ok(["undo"]).contains("r.example/gone:1"));
        assert!(self.store.records().contains(&self.live.to_owned()));
        self.store.is_sound();
        assert_eq!(self.found(&["--deep"]), []);
    }
}

/// Two days pass for everything in a store that nobody has open.
fn age(root: &Path) {
    let database = rusqlite::Connection::open(root.join("meta.db")).unwrap();
    let nanos = i64::try_from(AGED).unwrap() * 1_000_000_000;
    for table in ["lease", "ingest", "blob", "snapshot"] {
        let changed = database.execute(&format!("UPDATE {table} SET created = created - ?1"), [nanos]).unwrap();
        assert!(changed > 0, "{table}");
    }
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(AGED as i64);
    for ingest in std::fs::read_dir(root.join("content/ingest")).unwrap() {
        let ingest = ingest.unwrap().path();
        let mut meta: serde_json::Value = serde_json::from_slice(&std::fs::read(ingest.join("meta")).unwrap()).unwrap();
        meta["startedAt"] = then.to_string().into();
        std::fs::write(ingest.join("meta"), meta.to_string()).unwrap();
        let data = std::fs::File::options().write(true).open(ingest.join("data")).unwrap();
        data.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(AGED)).unwrap();
    }
}

fn pair(class: &str, subject: &str) -> (String, String) {
    (class.to_owned(), subject.to_owned())
}

fn each(test: &str, run: impl Fn(Sick)) {
    for with_daemon in [false, true] {
        eprintln!("with a daemon: {with_daemon}");
        if let Some(sick) = Sick::new(test, with_daemon) {
            run(sick);
        }
    }
}

#[test]
fn each_fault_of_orlops_own_store_is_found_and_mended_by_plan_and_what_can_be_undone_still_can() {
    each("each_fault_of_orlops_own_store_is_found_and_mended_by_plan", |sick| {
        let blob = sick.blob.to_string();
        let all = [
            pair("lease", "forgotten"),
            pair("ingest", "broken-off"),
            pair("orphan-snapshot", "by-hand"),
            pair("orphan-blob", &blob),
        ];
        assert_eq!(sick.found(&[]), all);
        for (class, subject) in &all {
            assert_eq!(sick.found(&["--class", class]), [pair(class, subject)]);
        }
        let before = sick.items();
        // By itself only the write that nobody can miss.
        let plan = sick.mended(&[]);
        let steps: Vec<&Value> = plan["steps"].as_array().unwrap().iter().map(|step| &step["act"]).collect();
        assert_eq!(steps, ["abort-write", "collect"]);
        assert_eq!(sick.found(&[]), [&all[..1], &all[2..]].concat());
        sick.mended(&["--class", "lease,orphan-snapshot,orphan-blob"]);
        let gone: Vec<String> = before.difference(&sick.items()).cloned().collect();
        let expected =
            [format!("blob {blob}"), "lease forgotten".into(), "snapshot by-hand".into(), "write broken-off".into()];
        assert_eq!(gone, expected);
        assert!(sick.items().is_subset(&before));
        sick.is_whole();
        assert_eq!(sick.served.is_some(), sick.store.root().join("daemon.lock").exists() && sick.served.is_some());
    });
}

#[test]
fn the_commands_that_are_printed_for_orlops_own_store_mend_each_fault() {
    each("the_commands_that_are_printed_for_orlops_own_store_mend_each_fault", |sick| {
        let (_, document) = sick.doctor(&[]);
        let problems = document["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 4, "{document:#}");
        for (at, problem) in problems.iter().enumerate() {
            printed(problem, &sick.programs);
            assert_eq!(sick.found(&[]).len(), problems.len() - 1 - at, "{problem:#}");
        }
        sick.is_whole();
    });
}

#[test]
fn what_only_bytes_tell_of_orlops_own_store_is_found_and_fetched_again() {
    each("what_only_bytes_tell_of_orlops_own_store_is_found_and_fetched_again", |sick| {
        sick.mended(&["--class", "lease,ingest,orphan-snapshot,orphan-blob"]);
        let layer = image("live", 90_000).layers().pop().unwrap();
        let file = sick.store.root().join("content/blobs/sha256").join(layer.hex());
        let sound = std::fs::read(&file).unwrap();
        let mut bytes = sound.clone();
        bytes[40_000] ^= 1;
        // Blobs are read-only; whoever damages one is root or the disk.
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(sick.found(&[]), [], "bytes are not read without --deep");
        let found = sick.found(&["--deep"]);
        assert!(found.iter().any(|(_, subject)| subject.contains(layer.as_str())), "{found:?}");
        std::fs::write(&file, sound).unwrap();
        assert_eq!(sick.found(&["--deep"]), []);
        std::fs::remove_file(&file).unwrap();
        let found = sick.found(&[]);
        assert!(found.iter().any(|(_, subject)| subject.contains(layer.as_str())), "{found:?}");
        let (_, document) = sick.doctor(&["--fix"]);
        assert_eq!(document["plan"]["steps"], json!([]), "it has to be fetched again");
    });
}
