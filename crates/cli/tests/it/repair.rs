//! `orlop repair` on real stores with real damage, from a real registry or an archive, with a daemon and without one: what is
//! damaged is set aside and never given out, what somebody has comes back, whom it concerns is named, and nothing else changes.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common;
use crate::common::{Done, Orlop};
use orlop_oci::{Compression, Digest, ImageConfig, chain_ids};
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process;
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use serde_json::Value;

/// Does something to a file.
type Damage = fn(&Path);

/// What a disk, or somebody, may do to a blob, and what it is found as.
const DAMAGES: [(&str, Damage); 5] = [
    ("damaged", |blob| {
        let mut byte = [0];
        let file = OpenOptions::new().read(true).write(true).open(blob).unwrap();
        let middle = file.metadata().unwrap().len() / 2;
        file.read_exact_at(&mut byte, middle).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();
    }),
    ("size", |blob| {
        let file = OpenOptions::new().write(true).open(blob).unwrap();
        file.set_len(file.metadata().unwrap().len() - 7).unwrap();
    }),
    ("size", |blob| OpenOptions::new().write(true).open(blob).unwrap().set_len(0).unwrap()),
    ("missing", |blob| fs::remove_file(blob).unwrap()),
    ("damaged", |blob| {
        let length = fs::metadata(blob).unwrap().len();
        fs::write(blob, vec![0; length as usize]).unwrap();
    }),
];

/// An index with an image of two layers for this machine.
fn content(word: &str) -> Content {
    let base = Layer::new([Entry::dir("etc"), Entry::file("etc/base", "common ".repeat(3000))]);
    let own = Layer::noise(word, word.len() as u64, 300_000).packed(Compression::Gzip);
    let image = Image::host().layer(base.packed(Compression::Gzip)).layer(own);
    Content::index(&[Content::image(&image.config("Labels", serde_json::json!({ "word": word })))])
}

/// The blob that is the image's own layer.
fn largest(content: &Content) -> &Digest {
    content.blobs.iter().max_by_key(|(_, blob)| blob.bytes.len()).unwrap().0
}

/// The key of the uppermost snapshot.
fn top(content: &Content) -> String {
    let config = content.blobs.values().find_map(|blob| ImageConfig::parse(&blob.bytes).ok()).unwrap();
    chain_ids(&config.rootfs.diff_ids).pop().unwrap().to_string()
}

/// Damages a blob in its place; what is there then.
fn damage(store: &Orlop, digest: &Digest, how: Damage) -> Option<Vec<u8>> {
    let blob = store.blob(digest);
    fs::set_permissions(&blob, Permissions::from_mode(0o644)).unwrap();
    how(&blob);
    fs::read(&blob).ok()
}

/// Everything that was set aside, by digest.
fn set_aside(store: &Orlop) -> BTreeSet<(String, Vec<u8>)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(store.root().join("quarantine")).into_iter().flatten() {
        for blob in fs::read_dir(entry.unwrap().path().join("blobs/sha256")).into_iter().flatten() {
            let blob = blob.unwrap();
            found.insert((blob.file_name().into_string().unwrap(), fs::read(blob.path()).unwrap()));
        }
    }
    found
}

/// A store with an image pulled from a registry as `HOST/team/app:1`.
struct Pulled {
    registry: Registry,
    store: Orlop,
    name: String,
    content: Content,
}

impl Pulled {
    fn new() -> Option<Self> {
        let (registry, content) = (Registry::start(&Options::new())?, content("own"));
        let name = format!("{}/team/app:1", registry.host());
        let maker = Orlop::new();
        common::import(&maker, "docker.io/library/app:1", &content);
        maker.ok(["push", "app:1", &name]);
        let store = Orlop::new();
        store.ok(["pull", &name]);
        Some(Self { registry, store, name, content })
    }
}

fn repair(store: &Orlop, args: &[&str]) -> (Done, Value) {
    let done = store.run([&["repair", "-o", "json"], args].concat());
    let document = serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}{}", done.out, done.err));
    (done, document)
}

fn texts<'a>(rows: &'a Value, field: &str) -> BTreeSet<&'a str> {
    rows.as_array().unwrap().iter().map(|row| row[field].as_str().unwrap()).collect()
}

fn every_damage_is_mended(with_daemon: bool) {
    let Some(Pulled { registry: _registry, store, name, content }) = Pulled::new() else { return };
    let served = with_daemon.then(|| store.serve(&[]));
    let before = store.records();
    let all: BTreeSet<&str> = content.blobs.keys().map(Digest::as_str).collect();
    for (fault, how) in DAMAGES {
        let bad: Vec<_> = content.blobs.keys().map(|digest| (digest, damage(&store, digest, how))).collect();
        let found = store.run(["check", "--deep", "-o", "json"]);
        assert_eq!(found.code, 5, "{fault}: {}", found.out);
        let problems: Value = serde_json::from_str(&found.out).unwrap();
        assert!(texts(&problems["problems"], "subject").is_superset(&all), "{fault}: {problems:#}");
        let aside = set_aside(&store);

        let (done, plan) = repair(&store, &["--plan"]);
        assert_eq!((done.code, plan["ok"].as_bool()), (5, Some(false)), "{plan:#}");
        assert_eq!(texts(&plan["repairs"], "subject"), all, "{fault}: {plan:#}");
        assert_eq!(
            (texts(&plan["repairs"], "fault"), texts(&plan["repairs"], "outcome")),
            ([fault].into(), ["planned"].into())
        );
        for row in plan["repairs"].as_array().unwrap() {
            assert!(texts(&row["images"], "name").contains(name.as_str()), "{row:#}");
            assert_eq!(row["sources"][0], name.rsplit_once(':').unwrap().0, "{row:#}");
        }
        assert_eq!(set_aside(&store), aside, "a plan changes nothing");
        bad.iter().for_each(|(digest, bytes)| assert_eq!(fs::read(store.blob(digest)).ok(), *bytes));

        let (done, document) = repair(&store, &[]);
        assert_eq!((done.code, document["ok"].as_bool()), (0, Some(true)), "{fault}: {document:#}");
        assert_eq!(texts(&document["repairs"], "outcome"), ["mended"].into(), "{document:#}");
        store.is_sound();
        let aside = set_aside(&store);
        for (digest, bytes) in bad {
            assert_eq!(fs::read(store.blob(digest)).unwrap(), content.blobs[digest].bytes);
            assert!(bytes.is_none_or(|bytes| aside.contains(&(digest.hex().to_owned(), bytes))), "{fault} {digest}");
        }
        assert_eq!(repair(&store, &[]).1["repairs"], serde_json::json!([]), "nothing is damaged any more");
    }
    assert_eq!(store.records(), before);
    let usage = store.json(["df"]);
    assert!(usage["quarantine"].as_u64().unwrap() > 600_000, "{usage:#}");
    let parts = ["content", "snapshots", "ingests", "trash", "quarantine", "metadata"];
    let sum: u64 = parts.iter().map(|part| usage[part].as_u64().unwrap()).sum();
    assert_eq!(usage["total"].as_u64(), Some(sum));
    drop(served);
}

#[test]
fn every_damage_to_every_blob_is_mended_from_the_registry() {
    every_damage_is_mended(false);
}

#[test]
fn every_damage_to_every_blob_is_mended_by_a_daemon() {
    every_damage_is_mended(true);
}

/// While nobody has the bytes: that is said with what to do, the damaged ones are given to nobody, and everything else works.
/// Whoever brings the digest later mends it: an archive, a pull, an import.
#[test]
fn what_nobody_has_stays_aside_until_somebody_brings_it() {
    let Some(registry) = Registry::start(&Options::new()) else { return };
    let (store, content) = (Orlop::new(), content("own"));
    let name = format!("{}/team/app:1", registry.host());
    let archive = store.path("image.tar");
    fs::write(&archive, archive::oci_archive(&[(&name, &content)])).unwrap();
    let archive = archive.to_str().unwrap();
    store.ok(["import", archive]);
    let layer = largest(&content);
    let ways: [&[&str]; 3] = [&["repair", "--known", "--from", archive], &["import", archive], &["pull", &name]];
    for way in ways {
        let bytes = damage(&store, layer, DAMAGES[0].1);
        let (done, document) = repair(&store, &[]);
        assert_eq!(done.code, 5, "{document:#}");
        let row = &document["repairs"][0];
        assert_eq!((row["subject"].as_str(), row["outcome"].as_str()), (Some(layer.as_str()), Some("left")), "{row:#}");
        assert!(row["reason"].as_str().unwrap().contains("nobody who was asked has it"), "{row:#}");
        assert!(row["fix"].as_str().unwrap().contains("orlop repair --from ARCHIVE"), "{row:#}");
        assert_eq!(texts(&row["snapshots"], "name"), [format!("overlayfs/{}", top(&content)).as_str()].into());
        assert!(set_aside(&store).contains(&(layer.hex().to_owned(), bytes.unwrap())));

        assert_eq!(store.run(["content", "get", layer.as_str()]).code, 3, "nobody is given what was set aside");
        let found = store.run(["check", "-o", "json"]);
        let problems: Value = serde_json::from_str(&found.out).unwrap();
        assert_eq!(texts(&problems["problems"], "class"), ["blob-damaged"].into(), "{problems:#}");
        assert_eq!(problems["problems"][0]["fix"], format!("orlop repair {layer}"));
        assert!(store.records().contains(&name), "its names stay");
        store.ok(["gc", "--full"]);
        assert_eq!(store.run(["check"]).code, 5, "and so does what is known of it");

        if way[0] == "pull" {
            let maker = Orlop::new();
            common::import(&maker, "docker.io/library/app:1", &content);
            maker.ok(["push", "app:1", &name]);
        }
        store.ok(way);
        store.is_sound();
        assert_eq!(fs::read(store.blob(layer)).unwrap(), content.blobs[layer].bytes);
    }
}

/// The archive lacks it, is none, or is not there: said, and nothing is worse than before.
#[test]
fn an_archive_that_does_not_help_changes_nothing() {
    let (store, content) = (Orlop::new(), content("own"));
    let archive_of = |file: &str, name: &str, content: &Content| {
        let file = store.path(file);
        fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let own = archive_of("own.tar", "r.example/app:1", &content);
    store.ok(["import", &own]);
    damage(&store, largest(&content), DAMAGES[1].1);
    let missing = store.run(["repair", "--from", "/nonexistent"]);
    assert_eq!(missing.code, 3, "{}", missing.err);
    assert!(store.blob(largest(&content)).exists(), "a name with a mistake sets nothing aside");
    let other = archive_of("other.tar", "r.example/other:1", &self::content("another one"));
    let (done, document) = repair(&store, &["--from", &other]);
    assert_eq!(done.code, 5, "{document:#}");
    assert_eq!(document["repairs"][0]["reason"], "the archive does not have it");
    let text = store.path("text");
    fs::write(&text, "no archive").unwrap();
    let refused = store.run(["repair", "--from", text.to_str().unwrap()]);
    assert!(refused.code == 5 && refused.err.contains("archive refused"), "{}", refused.err);
    store.ok(["repair", "--from", &own, largest(&content).as_str()]);
    store.is_sound();
    store.ok(["gc"]);
    let listed = store.ok(["content", "ls", "-o", "name"]);
    assert_eq!(listed.lines().count(), content.blobs.len(), "what else an archive had is collected: {listed}");
}

/// A medium that does not give the bytes (EIO), for documents too, where everything else is still told.
#[test]
fn what_cannot_be_read_is_mended_as_well() {
    if process::need("strace", "strace").is_none() {
        return;
    }
    let Some(Pulled { registry: _registry, store, content, .. }) = Pulled::new() else { return };
    for digest in content.blobs.keys() {
        let failing = |args: &[&str]| {
            let mut command = Command::new("strace");
            let (traced, failing) = ("trace=pread64,preadv2", "inject=pread64,preadv2:error=EIO");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", traced, "-e", failing]);
            let orlop = store.command(args);
            command.arg("-P").arg(store.blob(digest)).arg(orlop.get_program()).args(orlop.get_args());
            orlop.get_envs().for_each(|(key, value)| match value {
                Some(value) => drop(command.env(key, value)),
                None => drop(command.env_remove(key)),
            });
            Done::of(&command.output().unwrap())
        };
        let found = failing(&["check", "--deep", "-o", "json"]);
        let problems: Value = serde_json::from_str(&found.out).unwrap_or_else(|e| panic!("{e}: {}", found.err));
        let unreadable = problems["problems"].as_array().unwrap().iter().find(|p| p["class"] == "blob-unreadable");
        assert_eq!(unreadable.map(|p| p["subject"].as_str().unwrap()), Some(digest.as_str()), "{problems:#}");
        let done = failing(&["repair", "-o", "json", digest.as_str()]);
        let document: Value = serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.err));
        let row = &document["repairs"][0];
        assert_eq!((row["fault"].as_str(), row["outcome"].as_str()), (Some("unreadable"), Some("mended")), "{row:#}");
        assert!(row["detail"].as_str().unwrap().contains("Input/output error"), "{row:#}");
    }
    store.is_sound();
    assert_eq!(set_aside(&store).len(), content.blobs.len());
}

/// What stands on the damaged image is named, whoever made it, and goes on.
#[test]
fn images_snapshots_and_containers_that_it_concerns_are_named() {
    let Some(programs) = Programs::debian().filter(|_| common::is_root("images_snapshots_and_containers")) else {
        return;
    };
    let Some(Pulled { store, name, content, registry }) = Pulled::new() else { return };
    let other = format!("{}/team/other:1", registry.host());
    store.ok(["tag", &name, &other]);
    let served = store.serve(&[]);
    served.ctr(&programs, "k8s.io", &["containers", "create", &name, "web-1"]).ok();
    for digest in content.blobs.keys() {
        damage(&store, digest, DAMAGES[0].1);
        let (_, plan) = repair(&store, &["--plan", digest.as_str()]);
        let row = &plan["repairs"][0];
        let images = texts(&row["images"], "name");
        assert!([&name, &other].iter().all(|name| images.contains(name.as_str())), "{row:#}");
        assert_eq!(texts(&row["containers"], "name"), ["web-1"].into(), "{row:#}");
        let said = store.ok_or(&["repair", digest.as_str()], 0);
        assert!(said.contains("web-1") && said.contains(&other) && said.contains("mended       from "), "{said}");
    }
    served.ctr(&programs, "k8s.io", &["snapshots", "mounts", "/mnt", "web-1"]).ok();
    store.is_sound();
}

impl Orlop {
    #[track_caller]
    fn ok_or(&self, args: &[&str], code: i32) -> String {
        let done = self.run(args);
        assert_eq!(done.code, code, "{args:?}: {}{}", done.out, done.err);
        done.out
    }
}

/// An image is repaired by its name, its ID, or the digest of a blob; another one is left alone, and a wrong name is said.
#[test]
fn only_what_is_named_is_looked_at() {
    let Some(Pulled { registry: _registry, store, name, content }) = Pulled::new() else { return };
    let other = self::content("another one");
    common::import(&store, "r.example/other:1", &other);
    damage(&store, largest(&other), DAMAGES[2].1);
    let id = store.records().into_iter().find(|record| record.starts_with("sha256:")).unwrap();
    for (what, blobs) in [(name.as_str(), content.blobs.len()), (largest(&content).as_str(), 1)] {
        damage(&store, largest(&content), DAMAGES[2].1);
        let (done, document) = repair(&store, &[what]);
        assert_eq!((done.code, document["examined"]["blobs"].as_u64()), (0, Some(blobs as u64)), "{document:#}");
        assert_eq!(texts(&document["repairs"], "subject"), [largest(&content).as_str()].into());
    }
    assert_eq!(store.run(["repair", &id]).code == 0, !other.blobs.keys().any(|d| d.as_str() == id));
    for unknown in ["r.example/nothing:1", Digest::of(b"nothing").as_str()] {
        assert_eq!(store.run(["repair", unknown]).code, 3);
    }
    let found = store.run(["check", "-o", "json"]);
    assert!(found.out.contains(largest(&other).as_str()) && !found.out.contains(largest(&content).as_str()));
}

/// Tells threads to end, also when the test has failed.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients go on while everything is damaged and mended again and again; nobody is given wrong bytes.
#[test]
fn clients_go_on_while_a_daemon_repairs() {
    const CLIENTS: usize = 8;
    let Some(Pulled { registry: _registry, store, name, content }) = Pulled::new() else { return };
    let served = store.serve(&[]);
    let (done, layer) = (AtomicBool::new(false), largest(&content));
    let archive = store.path("other.tar");
    fs::write(&archive, archive::oci_archive(&[("r.example/other:1", &self::content("another one"))])).unwrap();
    std::thread::scope(|scope| {
        let _ended = Ended(&done);
        for client in 0..CLIENTS {
            let (store, done, name, archive) = (&store, &done, &name, archive.to_str().unwrap());
            let good = &content.blobs[layer].bytes;
            scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) || rounds < 3 {
                    rounds += 1;
                    match client % 4 {
                        0 => drop(store.ok(["images", "--all"])),
                        1 => drop(store.ok(["import", archive])),
                        2 => drop(store.ok(["pull", name])),
                        _ => {
                            let mut command = store.command(["content", "get", layer.as_str()]);
                            let read = command.output().unwrap();
                            // The bytes as somebody has just damaged them are not looked at before they are read.
                            let wrong = read.status.success() && read.stdout.len() != good.len();
                            assert!(!wrong, "{} bytes were given", read.stdout.len());
                        }
                    }
                }
            });
        }
        for round in 0..6 {
            damage(&store, layer, DAMAGES[round % DAMAGES.len()].1);
            let document = repair(&store, &[]).1;
            assert!(document["ok"] == true, "{document:#}");
        }
    });
    store.is_sound();
    drop(served);
    store.is_sound();
}

/// What happened is told to whoever listens, in words, and counted.
#[test]
fn damage_and_its_end_are_events_and_metrics() {
    let Some(Pulled { store, name, content, registry: _registry }) = Pulled::new() else { return };
    let mut served = store.serve(&["--metrics", "127.0.0.1:0"]);
    let metrics = common::metrics_address(&mut served);
    let layer = largest(&content);
    damage(&store, layer, DAMAGES[2].1);
    let mut watch = store.command(["watch", "-o", "json", "--filter", "topic~=\"^/orlop/damage/\"", "--count", "2"]);
    let watching = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    // The subscription is the call that does not end: what `watch` asks before it changes the page.
    let mut before = String::new();
    served.process().wait_for(|_| {
        let page = common::get(&metrics, "/metrics");
        let stands = page.contains("orlop_calls_running 1") && page == before;
        before = page;
        stands.then_some(())
    });
    assert_eq!(repair(&store, &[]).0.code, 0);
    let told = Done::of(&watching.wait_with_output().unwrap());
    let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines.iter().map(|l| l["topic"].as_str().unwrap()).collect::<Vec<_>>(),
        ["/orlop/damage/found", "/orlop/damage/mended"]
    );
    assert_eq!((lines[0]["what"].as_str(), lines[0]["subject"].as_str()), (Some("damage found"), Some(layer.as_str())));
    assert!(lines[0]["event"]["images"].as_array().unwrap().contains(&Value::from(name)), "{}", lines[0]);
    assert_eq!((lines[0]["event"]["fault"].as_str(), lines[1]["what"].as_str()), (Some("size"), Some("damage mended")));
    let page = common::get(&metrics, "/metrics");
    for line in ["orlop_repairs_total{result=\"mended\"} 1", "orlop_stored{kind=\"damage\"} 0"] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

/// What nobody had is mended by the daemon itself once its registry is back, also after a restart; unless it is told not to.
#[test]
fn a_daemon_mends_by_itself_when_the_registry_is_back() {
    let Some(Pulled { registry, store, name, content }) = Pulled::new() else { return };
    let layer = largest(&content);
    let kept = registry.blob_path(layer);
    let away = kept.with_extension("away");
    fs::rename(&kept, &away).unwrap();
    damage(&store, layer, DAMAGES[0].1);
    let (done, document) = repair(&store, &[&name]);
    assert_eq!((done.code, document["repairs"][0]["outcome"].as_str()), (5, Some("left")), "{document:#}");
    let config = store.path("config.toml");
    let configured = |text: &str| {
        fs::write(&config, text).unwrap();
        store.serve(&["--config", config.to_str().unwrap()])
    };
    let mut served = configured("[repair]\nretry_seconds = 1\n");
    served.process().wait_for(|daemon| daemon.log().contains("damaged still").then_some(()));
    drop(served);
    fs::rename(&away, &kept).unwrap();
    let mut served = configured("[repair]\nretry_seconds = 0\n");
    served.process().wait_for(|daemon| daemon.log().contains("serving").then_some(()));
    assert_eq!(store.run(["check"]).code, 5, "it was told not to");
    fs::write(&config, "[repair]\nretry_seconds = 1\n").unwrap();
    served.process().signal(rustix::process::Signal::HUP);
    served.process().wait_for(|_| store.blob(layer).exists().then_some(()));
    served.process().wait_for(|daemon| daemon.log().contains("mended").then_some(()));
    store.is_sound();
}

/// The registry that the image is named after is gone, and what mirrors it has the bytes.
#[test]
fn a_mirror_has_the_bytes_of_a_registry_that_is_gone() {
    let Some(Pulled { registry, content, .. }) = Pulled::new() else { return };
    let store = Orlop::new();
    let hosts = store.path("certs.d");
    fs::create_dir_all(hosts.join("gone.invalid")).unwrap();
    let mirror = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registry.host());
    fs::write(hosts.join("gone.invalid/hosts.toml"), format!("server = \"http://gone.invalid\"\n{mirror}")).unwrap();
    let hosts = ["--hosts-dir", hosts.to_str().unwrap()];
    store.ok([&["pull"], &hosts[..], &["gone.invalid/team/app:1"]].concat());
    for digest in content.blobs.keys() {
        damage(&store, digest, DAMAGES[0].1);
    }
    let (done, document) = repair(&store, &["--known", "--plan"]);
    assert_eq!((done.code, document["repairs"].as_array().unwrap().len()), (0, 0), "nothing is known yet");
    let (done, document) = repair(&store, &hosts);
    assert_eq!((done.code, texts(&document["repairs"], "outcome")), (0, ["mended"].into()), "{document:#}");
    assert_eq!(texts(&document["repairs"], "from"), ["gone.invalid/team/app"].into(), "{document:#}");
    store.is_sound();
}
