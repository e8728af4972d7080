//! `orlop scrub` and the daemon's own scrubber on real stores with real damage: found, set aside, told and mended; a pass that is
//! killed goes on where it was.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use crate::common;
use crate::common::{Done, Orlop};
use orlop_oci::Digest;
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use serde_json::Value;

/// An image of some small layers: so many blobs that a slow pass is between two of them.
fn content() -> Content {
    let layer = |n: u32| Layer::new([Entry::file(format!("file-{n}"), format!("content {n}"))]);
    Content::image(&(0..16).fold(Image::host(), |image, n| image.layer(layer(n))))
}

fn damage(store: &Orlop, digest: &Digest) {
    let blob = store.blob(digest);
    fs::set_permissions(&blob, Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, bytes).unwrap();
}

fn imported() -> (Orlop, Content) {
    let (store, content) = (Orlop::new(), content());
    let file = store.path("image.tar");
    fs::write(&file, archive::oci_archive(&[("r.example/app:1", &content)])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    (store, content)
}

fn scrub(store: &Orlop, args: &[&str]) -> (i32, Value) {
    let done = store.run([&["scrub", "-o", "json"], args].concat());
    (done.code, serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}{}", done.out, done.err)))
}

/// How far a pass has come.
fn progress(store: &Orlop) -> Option<BTreeMap<String, Value>> {
    serde_json::from_slice(&fs::read(store.root().join("scrub")).ok()?).ok()
}

fn finds_and_sets_aside(with_daemon: bool) {
    let (store, content) = imported();
    let served = with_daemon.then(|| store.serve(&[]));
    let (code, document) = scrub(&store, &[]);
    assert_eq!((code, document["blobs"].as_u64()), (0, Some(content.blobs.len() as u64)), "{document:#}");
    let bad: Vec<&Digest> = content.blobs.keys().step_by(5).collect();
    bad.iter().for_each(|digest| damage(&store, digest));
    let (code, document) = scrub(&store, &[]);
    assert_eq!((code, document["damaged"].as_u64()), (5, Some(bad.len() as u64)), "{document:#}");
    let found: Vec<&str> =
        document["found"].as_array().unwrap().iter().map(|f| f["subject"].as_str().unwrap()).collect();
    assert_eq!(found, bad.iter().map(|digest| digest.as_str()).collect::<Vec<_>>());
    assert!(bad.iter().all(|digest| !store.blob(digest).exists()), "what is found is given to nobody");
    let done = store.run(["check", "-o", "json"]);
    let problems: Value = serde_json::from_str(&done.out).unwrap();
    for digest in &bad {
        let row = problems["problems"].as_array().unwrap().iter().find(|p| p["subject"] == digest.as_str());
        assert_eq!(row.map(|p| &p["class"]), Some(&Value::from("blob-damaged")), "{problems:#}");
    }
    let archive = store.path("image.tar");
    store.ok(["repair", "--known", "--from", archive.to_str().unwrap()]);
    assert_eq!(scrub(&store, &[]).0, 0);
    store.is_sound();
    drop(served);
}

#[test]
fn what_a_scrub_finds_is_set_aside_and_told() {
    finds_and_sets_aside(false);
}

#[test]
fn what_a_daemons_scrub_finds_is_set_aside_and_told() {
    finds_and_sets_aside(true);
}

/// A daemon scrubs by itself, slowly; killed in between, the next one goes on behind what was read, and mends what it finds.
#[test]
fn a_killed_pass_goes_on_where_it_was_and_the_daemon_mends() {
    let Some(registry) = Registry::start(&Options::new()) else { return };
    let (maker, content) = (Orlop::new(), content());
    common::import(&maker, "docker.io/library/app:1", &content);
    let name = format!("{}/app:1", registry.host());
    maker.ok(["push", "app:1", &name]);
    let store = Orlop::new();
    store.ok(["pull", "--no-unpack", &name]);
    let config = store.path("config.toml");
    let configured = |limit: u64| {
        let scrub = format!("[scrub]\nevery_days = 1\ndelay_seconds = 0\nbytes_per_second = {limit}\n");
        fs::write(&config, format!("{scrub}[repair]\nretry_seconds = 1\n")).unwrap();
        store.serve(&["--config", config.to_str().unwrap()])
    };
    // A blob here is some hundred bytes.
    let mut served = configured(200);
    let after = served.process().wait_for(|_| {
        let progress = progress(&store)?;
        (progress["blobs"].as_u64()? >= 2).then(|| progress["after"].as_str().unwrap().to_owned())
    });
    served.process().kill();
    let (first, last) = (content.blobs.keys().next().unwrap(), content.blobs.keys().next_back().unwrap());
    assert!(first.as_str() <= after.as_str() && after.as_str() < last.as_str());
    damage(&store, first);
    damage(&store, last);
    let mut served = configured(0);
    served.process().wait_for(|_| progress(&store)?["ended"].as_str().map(drop));
    let ended = progress(&store).unwrap();
    let counts = (ended["blobs"].as_u64(), ended["found"].as_u64());
    assert_eq!(
        counts,
        (Some(content.blobs.len() as u64), Some(1)),
        "what was read before is not read again: {ended:?}"
    );
    served.process().wait_for(|_| (fs::read(store.blob(last)).ok()? == content.blobs[last].bytes).then_some(()));
    served.process().wait_for(|daemon| daemon.log().contains("mended").then_some(()));
    let (code, document) = scrub(&store, &["--anew"]);
    assert_eq!((code, document["found"][0]["subject"].as_str()), (5, Some(first.as_str())), "{document:#}");
    served.process().wait_for(|_| (fs::read(store.blob(first)).ok()? == content.blobs[first].bytes).then_some(()));
    store.ok(["repair", "--known"]);
    store.is_sound();
}

/// Each time the configuration was read anew the first scrub was put off by the whole delay again.
#[test]
fn a_reload_does_not_put_the_first_scrub_off() {
    let (store, _) = imported();
    let config = store.path("config.toml");
    fs::write(&config, "[scrub]\nevery_days = 1\ndelay_seconds = 2\n").unwrap();
    let mut served = store.serve(&["--config", config.to_str().unwrap()]);
    served.process().wait_for(|daemon| {
        daemon.signal(rustix::process::Signal::HUP);
        progress(&store)?["ended"].as_str().map(drop)
    });
}

/// One at a time: another is told so, by exit code too, and the limit can be changed while it runs.
#[test]
fn one_scrubs_at_a_time_and_the_limit_follows_the_configuration() {
    let (store, content) = imported();
    let config = store.path("config.toml");
    let write = |limit: u64| {
        let text = format!("[scrub]\nevery_days = 1\ndelay_seconds = 0\nbytes_per_second = {limit}\n");
        fs::write(&config, text).unwrap();
    };
    write(200);
    let mut served = store.serve(&["--metrics", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
    let metrics = common::metrics_address(&mut served);
    served.process().wait_for(|_| progress(&store));
    let refused: Done = store.run(["scrub"]);
    assert!(refused.code == 8 && refused.err.contains("already"), "{}: {}", refused.code, refused.err);
    write(0);
    served.process().signal(rustix::process::Signal::HUP);
    served.process().wait_for(|_| progress(&store)?["ended"].as_str().map(drop));
    let bytes: u64 = content.blobs.values().map(|blob| blob.bytes.len() as u64).sum();
    for line in [format!("orlop_scrubbed_bytes_total {bytes}\n"), "orlop_scrubs_total 1\n".to_owned()] {
        served.process().wait_for(|_| common::get(&metrics, "/metrics").contains(&line).then_some(()));
    }
}
