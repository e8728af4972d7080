//! Unpacked layers on real stores with real damage: found by a scrub, a check and a daemon, told with whom it concerns, and healed from
//! their layers; never beneath anybody who stands on them.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common;
use crate::common::{Done, Orlop, is_root};
use orlop_oci::{Compression, Digest, ImageConfig, chain_ids};
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process;
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use serde_json::Value;

const NAME: &str = "r.example/app:1";

/// Does something to the tree that `file-1` is in.
type Damage = fn(&Path);

/// What is done, and what is told of it.
const DAMAGES: [(Damage, &str); 5] = [
    (flip, "file-1: its bytes hash to blake3:"),
    (|tree| fs::write(tree.join("file-1"), "").unwrap(), "file-1: expected 30000 bytes, found 0"),
    (|tree| fs::remove_file(tree.join("file-1")).unwrap(), "file-1: it is gone"),
    (
        |tree| fs::set_permissions(tree.join("file-1"), Permissions::from_mode(0o4755)).unwrap(),
        "file-1: its mode is 4755",
    ),
    (|tree| fs::remove_dir_all(tree).unwrap(), "its tree "),
];

fn flip(tree: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(tree.join("file-1")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 20_000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 20_000).unwrap();
}

fn text(n: u32) -> String {
    format!("content {n:02}").repeat(3000)
}

/// An image whose n-th layer has `file-n`, 30,000 bytes that take some hundred in the layer.
fn content(layers: u32) -> Content {
    let layer = |n: u32| Layer::new([Entry::file(format!("file-{n}"), text(n))]).packed(Compression::Gzip);
    Content::image(&(0..layers).fold(Image::host(), |image, n| image.layer(layer(n))))
}

/// The keys of the snapshots, lowest first.
fn chain(content: &Content) -> Vec<String> {
    let config = content.blobs.values().find_map(|blob| ImageConfig::parse(&blob.bytes).ok()).unwrap();
    chain_ids(&config.rootfs.diff_ids).iter().map(ToString::to_string).collect()
}

/// The blob of the n-th layer.
fn layer(content: &Content, n: usize) -> Digest {
    let manifest = content.blobs.values().find_map(|blob| {
        let manifest: Value = serde_json::from_slice(&blob.bytes).ok()?;
        manifest["layers"][n]["digest"].as_str()?.parse().ok()
    });
    manifest.unwrap()
}

struct Unpacked {
    store: Orlop,
    content: Content,
    archive: String,
}

impl Unpacked {
    fn new(layers: u32) -> Self {
        let (store, content) = (Orlop::new(), content(layers));
        let file = store.path("image.tar");
        fs::write(&file, archive::oci_archive(&[(NAME, &content)])).unwrap();
        let archive = file.to_str().unwrap().to_owned();
        store.ok(["import", &archive]);
        Self { store, content, archive }
    }

    /// The tree that has `file-n`; what was replaced by a fresh one has a higher number for a while.
    fn tree(&self, n: u32) -> PathBuf {
        let trees = self.store.root().join("snapshots/overlayfs");
        let ids = fs::read_dir(&trees).unwrap().map(|tree| tree.unwrap().file_name().into_string().unwrap());
        let mut ids: Vec<u64> = ids.map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        let mut found = ids.into_iter().map(|id| trees.join(id.to_string()).join("fs"));
        found.find(|tree| tree.join(format!("file-{n}")).exists()).unwrap()
    }

    /// The blobs of the store are sound, and so are the trees; and the files have what they had.
    #[track_caller]
    fn is_sound(&self, layers: u32) {
        self.store.is_sound();
        for n in 0..layers {
            let file = self.tree(n).join(format!("file-{n}"));
            assert_eq!(fs::read_to_string(&file).unwrap(), text(n));
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
        }
    }
}

fn document(store: &Orlop, args: &[&str]) -> (i32, Value) {
    let done: Done = store.run([args, &["-o", "json"]].concat());
    (done.code, serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}{}", done.out, done.err)))
}

fn words(row: &Value, field: &str) -> Vec<String> {
    row[field].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

fn found_and_healed(with_daemon: bool) {
    let unpacked = Unpacked::new(4);
    let (store, key) = (&unpacked.store, format!("overlayfs/{}", chain(&unpacked.content)[1]));
    let served = with_daemon.then(|| store.serve(&[]));
    let (code, sound) = document(store, &["scrub"]);
    let counts = ["snapshots", "snapshotBytes", "unrecorded", "damaged"].map(|field| sound[field].as_u64());
    assert_eq!((code, counts), (0, [Some(4), Some(120_000), Some(0), Some(0)]), "{sound:#}");
    let tree = unpacked.tree(1);
    for (damage, detail) in DAMAGES {
        damage(&tree);
        let (code, deep) = document(store, &["check", "--deep"]);
        assert_eq!((code, deep["problems"].as_array().unwrap().len()), (5, 1), "{deep:#}");
        let (code, found) = document(store, &["scrub"]);
        let row = &found["found"][0];
        assert_eq!((code, row["subject"].as_str(), found["damaged"].as_u64()), (5, Some(&*key), Some(1)), "{found:#}");
        assert!(row["detail"].as_str().unwrap().starts_with(detail), "{detail}: {row:#}");
        let (code, check) = document(store, &["check"]);
        let problems = check["problems"].as_array().unwrap();
        let damaged = problems.iter().find(|problem| problem["class"] == "snapshot-damaged").unwrap();
        assert_eq!((code, damaged["subject"].as_str()), (5, Some(&*format!("k8s.io/{key}"))), "{check:#}");
        assert_eq!(damaged["fix"].as_str(), Some(&*format!("orlop repair {NAME}")));
        let (code, plan) = document(store, &["repair", "--known", "--plan"]);
        let row = &plan["repairs"][0];
        assert_eq!((code, row["kind"].as_str(), row["outcome"].as_str()), (5, Some("snapshot"), Some("planned")));
        assert!(words(row, "images").contains(&NAME.to_owned()), "{row:#}");
        assert_eq!(row["sources"][0].as_str(), Some(layer(&unpacked.content, 1).as_str()), "{row:#}");
        assert_eq!(document(store, &["scrub"]).0, 5, "a plan changes nothing");
        let (code, healed) = document(store, &["repair", "--known"]);
        let row = &healed["repairs"][0];
        assert_eq!(
            (code, row["subject"].as_str(), row["outcome"].as_str()),
            (0, Some(&*key), Some("mended")),
            "{row:#}"
        );
        assert_eq!(unpacked.tree(1), tree, "it has the number that it had");
        unpacked.is_sound(4);
        assert_eq!(document(store, &["scrub"]).0, 0);
    }
    drop(served);
    // What is healed is what everybody stands on from now on; what was replaced goes.
    store.ok(["snapshots", "prepare", "mine", &chain(&unpacked.content)[3]]);
    store.ok(["snapshots", "rm", "mine"]);
    store.ok(["gc", "--full"]);
    unpacked.is_sound(4);
}

#[test]
fn damage_to_trees_is_found_told_and_healed() {
    if is_root("damage_to_trees_is_found_told_and_healed") {
        found_and_healed(false);
    }
}

#[test]
fn damage_to_trees_is_found_told_and_healed_by_a_daemon() {
    if is_root("damage_to_trees_is_found_told_and_healed_by_a_daemon") {
        found_and_healed(true);
    }
}

/// Nothing changes beneath a container: it is named with what to do, and once it is gone the tree is healed.
#[test]
fn a_tree_that_containers_stand_on_is_left_until_they_are_gone() {
    let Some(programs) = Programs::debian().filter(|_| is_root("a_tree_that_containers_stand_on")) else { return };
    let unpacked = Unpacked::new(3);
    let (store, tree) = (&unpacked.store, unpacked.tree(1));
    let served = store.serve(&[]);
    served.ctr(&programs, "k8s.io", &["containers", "create", NAME, "web-1"]).ok();
    flip(&tree);
    let before = fs::metadata(&tree).unwrap().ino();
    for args in [&["repair", "--plan"][..], &["repair"], &["repair", NAME], &["repair", "--known"]] {
        let (code, left) = document(store, args);
        let row = &left["repairs"][0];
        assert_eq!((code, row["outcome"].as_str()), (5, Some("left")), "{args:?}: {left:#}");
        assert_eq!(
            (words(row, "containers"), words(row, "images").contains(&NAME.to_owned())),
            (vec!["web-1".to_owned()], true)
        );
        assert!(
            row["reason"].as_str().unwrap().contains("in use") && row["reason"].as_str().unwrap().contains("web-1"),
            "{row:#}"
        );
        assert!(row["fix"].as_str().unwrap().contains("remove the containers"), "{row:#}");
    }
    let said = store.run(["repair", "--known"]).out;
    assert!(["web-1", NAME, "what to do"].iter().all(|word| said.contains(word)), "{said}");
    assert_eq!(fs::metadata(&tree).unwrap().ino(), before, "the tree is the one that the container stands on");
    assert!(store.run(["check"]).out.contains("containers stand on it: web-1"));
    served.ctr(&programs, "k8s.io", &["containers", "delete", "web-1"]).ok();
    let (code, healed) = document(store, &["repair", "--known"]);
    assert_eq!((code, healed["repairs"][0]["outcome"].as_str()), (0, Some("mended")), "{healed:#}");
    unpacked.is_sound(3);
}

/// What containerd's own client unpacks through the daemon is recorded too, and healed: its layer is found by the chain ID.
#[test]
fn what_other_clients_unpack_is_recorded_and_healed() {
    let Some(programs) = Programs::debian().filter(|_| is_root("what_other_clients_unpack")) else { return };
    let (store, content) = (Orlop::new(), content(3));
    let archive = store.path("image.tar");
    fs::write(&archive, archive::oci_archive(&[(NAME, &content)])).unwrap();
    let served = store.serve(&[]);
    served.ctr(&programs, "k8s.io", &["images", "import", archive.to_str().unwrap()]).ok();
    let unpacked = Unpacked { archive: archive.to_str().unwrap().to_owned(), store, content };
    let store = &unpacked.store;
    let (code, sound) = document(store, &["scrub"]);
    let counts = ["snapshots", "unrecorded", "damaged"].map(|field| sound[field].as_u64());
    assert_eq!((code, counts), (0, [Some(3), Some(0), Some(0)]), "{sound:#}");
    for n in 0..3 {
        fs::remove_file(unpacked.tree(n).join(format!("file-{n}"))).unwrap();
    }
    let (code, healed) = document(store, &["repair"]);
    assert_eq!((code, healed["repairs"].as_array().unwrap().len()), (0, 3), "{healed:#}");
    unpacked.is_sound(3);
}

/// A layer that is damaged itself is mended first, and gives the tree then; one that nobody has is said, with what to do.
#[test]
fn a_tree_whose_layer_is_damaged_too_waits_for_that() {
    if !is_root("a_tree_whose_layer_is_damaged_too_waits_for_that") {
        return;
    }
    let unpacked = Unpacked::new(2);
    let (store, tree, blob) = (&unpacked.store, unpacked.tree(1), layer(&unpacked.content, 1));
    flip(&tree);
    fs::remove_file(store.blob(&blob)).unwrap();
    fs::write(store.blob(&blob), "no layer").unwrap();
    let (code, left) = document(store, &["repair"]);
    let rows: BTreeMap<&str, &Value> =
        left["repairs"].as_array().unwrap().iter().map(|row| (row["kind"].as_str().unwrap(), row)).collect();
    assert_eq!(
        (code, rows["snapshot"]["outcome"].as_str(), rows["blob"]["outcome"].as_str()),
        (5, Some("left"), Some("left"))
    );
    assert!(rows["snapshot"]["reason"].as_str().unwrap().contains(blob.as_str()), "{left:#}");
    assert!(rows["snapshot"]["fix"].as_str().unwrap().contains("brings a missing layer"), "{left:#}");
    let (code, healed) = document(store, &["repair", "--from", &unpacked.archive]);
    assert_eq!((code, healed["repairs"].as_array().unwrap().len()), (0, 2), "{healed:#}");
    unpacked.is_sound(2);
}

/// As a client does that needs no layer once it is unpacked; its bytes go with the next collection.
fn delete(store: &Orlop, layer: &Digest) {
    store.ok(["content", "rm", layer.as_str()]);
    store.ok(["gc", "--full"]);
    assert!(!store.blob(layer).exists());
}

/// How a layer is lost: a client deletes it after unpacking, or the disk loses or changes its bytes and nobody has noticed yet.
const LOSSES: [fn(&Orlop, &Digest); 3] = [
    delete,
    |store, layer| fs::remove_file(store.blob(layer)).unwrap(),
    |store, layer| {
        fs::remove_file(store.blob(layer)).unwrap();
        fs::write(store.blob(layer), "no layer").unwrap();
    },
];

/// A store that pulled the image from a registry, which has it still.
fn pulled(layers: u32) -> Option<(Registry, Unpacked)> {
    let registry = Registry::start(&Options::new())?;
    let name = format!("{}/team/app:1", registry.host());
    let maker = Unpacked::new(layers);
    maker.store.ok(["push", NAME, &name]);
    let store = Orlop::new();
    store.ok(["pull", &name]);
    let archive = store.path("image.tar").to_str().unwrap().to_owned();
    fs::copy(&maker.archive, &archive).unwrap();
    Some((registry, Unpacked { store, content: maker.content, archive }))
}

fn lost_layers_are_brought(with_daemon: bool) {
    let Some((registry, unpacked)) = pulled(3) else { return };
    let (store, blob) = (&unpacked.store, layer(&unpacked.content, 1));
    let key = format!("overlayfs/{}", chain(&unpacked.content)[1]);
    let served = with_daemon.then(|| store.serve(&[]));
    for (n, lose) in LOSSES.iter().enumerate() {
        // Only of the tree is it known that it is damaged: the layer is found to be lost while the tree is healed.
        flip(&unpacked.tree(1));
        assert_eq!(document(store, &["scrub"]).0, 5);
        lose(store, &blob);
        let (_, plan) = document(store, &["repair", "--known", "--plan"]);
        let row = plan["repairs"].as_array().unwrap().iter().find(|row| row["kind"] == "snapshot").unwrap();
        assert_eq!(
            row["sources"][0].as_str(),
            Some(blob.as_str()),
            "loss {n}: the layer is named, here or not: {row:#}"
        );
        let (code, healed) = document(store, &["repair", "--known"]);
        let row = healed["repairs"].as_array().unwrap().iter().find(|row| row["kind"] == "snapshot").unwrap();
        assert_eq!(
            (code, row["subject"].as_str(), row["outcome"].as_str()),
            (0, Some(&*key), Some("mended")),
            "{healed:#}"
        );
        let from = format!("layer {blob}, brought from {}/team/app", registry.host());
        assert_eq!(row["from"].as_str(), Some(&*from), "loss {n}: {row:#}");
        assert_eq!(healed["repairs"].as_array().unwrap().len(), if n == 0 { 1 } else { 2 }, "loss {n}: {healed:#}");
        unpacked.is_sound(3);
        store.ok(["gc", "--full"]);
        assert_eq!(fs::read(store.blob(&blob)).unwrap(), unpacked.content.blobs[&blob].bytes, "its manifest keeps it");
        let listed = store.ok(["content", "ls"]);
        assert!(listed.contains(blob.as_str()), "{listed}");
    }
    drop(served);
}

/// A tree whose layer is not here any more, or is damaged too, is healed all the same while a registry has the layer.
#[test]
fn a_lost_layer_is_brought_to_heal_its_tree() {
    if is_root("a_lost_layer_is_brought_to_heal_its_tree") {
        lost_layers_are_brought(false);
    }
}

#[test]
fn a_lost_layer_is_brought_by_a_daemon_to_heal_its_tree() {
    if is_root("a_lost_layer_is_brought_by_a_daemon_to_heal_its_tree") {
        lost_layers_are_brought(true);
    }
}

/// Nobody has the layer: said, with whom was asked; then an archive brings it.
#[test]
fn a_lost_layer_that_only_an_archive_has_heals_its_tree() {
    if !is_root("a_lost_layer_that_only_an_archive_has_heals_its_tree") {
        return;
    }
    let Some((registry, unpacked)) = pulled(3) else { return };
    let (store, blob) = (&unpacked.store, layer(&unpacked.content, 1));
    delete(store, &blob);
    fs::remove_file(registry.blob_path(&blob)).unwrap();
    flip(&unpacked.tree(1));
    let (code, left) = document(store, &["repair"]);
    let row = &left["repairs"][0];
    assert_eq!((code, row["outcome"].as_str()), (5, Some("left")), "{left:#}");
    let asked = format!("{}/team/app", registry.host());
    assert!(
        ["nobody who was asked has it", &asked].iter().all(|word| row["reason"].as_str().unwrap().contains(word)),
        "{row:#}"
    );
    assert!(row["fix"].as_str().unwrap().contains("orlop repair --from ARCHIVE"), "{row:#}");
    let other = Unpacked::new(1);
    let (code, left) = document(store, &["repair", "--from", &other.archive]);
    assert_eq!((code, left["repairs"][0]["outcome"].as_str()), (5, Some("left")), "{left:#}");
    assert!(left["repairs"][0]["reason"].as_str().unwrap().contains("the archive does not have it"), "{left:#}");
    let (code, healed) = document(store, &["repair", "--from", &unpacked.archive]);
    assert_eq!((code, healed["repairs"][0]["outcome"].as_str()), (0, Some("mended")), "{healed:#}");
    unpacked.is_sound(3);
}

/// The daemon asks for the layer by itself.
#[test]
fn a_daemon_brings_a_lost_layer_by_itself() {
    if !is_root("a_daemon_brings_a_lost_layer_by_itself") {
        return;
    }
    let Some((_registry, unpacked)) = pulled(2) else { return };
    let (store, blob) = (&unpacked.store, layer(&unpacked.content, 1));
    delete(store, &blob);
    flip(&unpacked.tree(1));
    assert_eq!(document(store, &["scrub"]).0, 5);
    let config = store.path("config.toml");
    fs::write(&config, "[repair]\nretry_seconds = 1\n").unwrap();
    let mut served = store.serve(&["--config", config.to_str().unwrap()]);
    served.process().wait_for(|daemon| daemon.log().contains("mended").then_some(()));
    unpacked.is_sound(2);
}

/// Killed where the fresh tree would take its place: the damaged one is there, is known to be damaged, and is healed by the next repair.
#[test]
fn a_repair_that_is_killed_leaves_the_damaged_tree_to_the_next() {
    if process::need("strace", "strace").is_none() || !is_root("a_repair_that_is_killed") {
        return;
    }
    let unpacked = Unpacked::new(2);
    let (store, tree) = (&unpacked.store, unpacked.tree(1));
    flip(&tree);
    let (damaged, trees) = (fs::read(tree.join("file-1")).unwrap(), store.root().join("snapshots/overlayfs"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=renameat2", "-e", "inject=renameat2:signal=KILL"]);
    let orlop = store.command(["repair"]);
    strace.arg(orlop.get_program()).args(orlop.get_args());
    orlop.get_envs().for_each(|(key, value)| match value {
        Some(value) => drop(strace.env(key, value)),
        None => drop(strace.env_remove(key)),
    });
    let killed = strace.output().unwrap();
    assert!(!killed.status.success(), "{killed:?}");
    assert_eq!(fs::read(tree.join("file-1")).unwrap(), damaged, "nothing was done by halves");
    assert_eq!(fs::read_dir(&trees).unwrap().count(), 3, "the fresh tree waits for its collection");
    assert!(store.run(["check"]).out.contains("snapshot-damaged"), "what was found is known");
    store.ok(["gc", "--full"]);
    assert_eq!(document(store, &["repair", "--known"]).0, 0);
    unpacked.is_sound(2);
}

/// A store of before, and what a client made: nothing is known of such a tree, so nothing is said of it.
#[test]
fn what_was_not_recorded_is_no_damage() {
    if !is_root("what_was_not_recorded_is_no_damage") {
        return;
    }
    let unpacked = Unpacked::new(3);
    let store = &unpacked.store;
    fs::remove_file(unpacked.tree(1).with_file_name("digests")).unwrap();
    store.ok(["snapshots", "prepare", "mine", &chain(&unpacked.content)[2]]);
    store.ok(["snapshots", "commit", "theirs", "mine"]);
    flip(&unpacked.tree(1));
    let (code, sound) = document(store, &["scrub"]);
    let counts = ["snapshots", "unrecorded", "damaged"].map(|field| sound[field].as_u64());
    assert_eq!((code, counts), (0, [Some(2), Some(2), Some(0)]), "{sound:#}");
    store.is_sound();
    assert_eq!(document(store, &["repair"]).0, 0);
}

/// How far a pass has come.
fn progress(store: &Orlop) -> Option<BTreeMap<String, Value>> {
    serde_json::from_slice(&fs::read(store.root().join("scrub")).ok()?).ok()
}

/// A daemon compares trees as slowly as it is told; killed in between, the next one goes on behind what it had compared, and heals.
#[test]
fn a_killed_pass_goes_on_between_trees_and_the_daemon_heals() {
    if !is_root("a_killed_pass_goes_on_between_trees_and_the_daemon_heals") {
        return;
    }
    let unpacked = Unpacked::new(12);
    let store = &unpacked.store;
    let config = store.path("config.toml");
    let configured = |limit: u64| {
        let scrub = format!("[scrub]\nevery_days = 1\ndelay_seconds = 0\nbytes_per_second = {limit}\n");
        fs::write(&config, format!("{scrub}[repair]\nretry_seconds = 1\n")).unwrap();
        store.serve(&["--metrics", "127.0.0.1:0", "--config", config.to_str().unwrap()])
    };
    let mut served = configured(40_000);
    let at = served.process().wait_for(|_| progress(store)?["after_tree"].as_u64());
    served.process().kill();
    let id = |n| unpacked.tree(n).parent().unwrap().file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let mut ids: Vec<u64> = (0..12).map(id).collect();
    ids.sort_unstable();
    assert!(ids[0] <= at && at < ids[11], "{at} of {ids:?}");
    let tree = |id: u64| store.root().join("snapshots/overlayfs").join(id.to_string()).join("fs");
    let file = |id: u64| fs::read_dir(tree(id)).unwrap().next().unwrap().unwrap().path();
    let sound = [ids[0], ids[11]].map(|id| fs::read(file(id)).unwrap());
    for id in [ids[0], ids[11]] {
        fs::write(file(id), "other").unwrap();
    }
    let mut served = configured(0);
    let metrics = common::metrics_address(&mut served);
    served.process().wait_for(|_| progress(store)?["ended"].as_str().map(drop));
    let ended = progress(store).unwrap();
    let counts = ["trees", "found", "unrecorded", "tree_bytes"].map(|field| ended[field].as_u64());
    assert_eq!(
        counts,
        [Some(12), Some(1), Some(0), Some(11 * 30_000)],
        "what was compared is not compared again: {ended:?}"
    );
    served.process().wait_for(|_| (fs::read(file(ids[11])).ok()? == sound[1]).then_some(()));
    served.process().wait_for(|daemon| daemon.log().contains("mended").then_some(()));
    let line = "orlop_repairs_total{result=\"mended\"} 1";
    served.process().wait_for(|_| common::get(&metrics, "/metrics").contains(line).then_some(()));
    assert_eq!(document(store, &["scrub", "--anew"]).0, 5);
    served.process().wait_for(|_| (fs::read(file(ids[0])).ok()? == sound[0]).then_some(()));
    store.ok(["repair", "--known"]);
    unpacked.is_sound(12);
}

/// Clients come and go on a tree that is damaged and healed again and again: it never changes beneath one of them, whoever comes while
/// it is whole finds it whole, and when they are gone it is healed.
#[test]
fn clients_come_and_go_while_trees_are_healed() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 6;
    if !is_root("clients_come_and_go_while_trees_are_healed") {
        return;
    }
    let unpacked = Unpacked::new(3);
    let (store, tree, top) = (&unpacked.store, unpacked.tree(1), chain(&unpacked.content).pop().unwrap());
    let served = store.serve(&[]);
    let (running, mended) = (AtomicUsize::new(CLIENTS), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (running, tree, top) = (Ended(&running), &tree, &top);
            scope.spawn(move || {
                let _running = running;
                for round in 0..ROUNDS {
                    let key = format!("client-{client}-{round}");
                    store.ok(["snapshots", "prepare", &key, top]);
                    let before = fs::metadata(tree).unwrap().ino();
                    store.ok(["images"]);
                    store.ok(["snapshots", "ls"]);
                    assert_eq!(fs::metadata(tree).unwrap().ino(), before, "it changed beneath {key}");
                    store.ok(["snapshots", "rm", &key]);
                }
            });
        }
        while running.load(Ordering::Relaxed) > 0 {
            flip(&tree);
            let (_, repaired) = document(store, &["repair"]);
            let outcome = repaired["repairs"][0]["outcome"].as_str().unwrap_or("none").to_owned();
            match outcome.as_str() {
                "mended" => drop(mended.fetch_add(1, Ordering::Relaxed)),
                // Flipped twice, it is sound.
                "left" | "none" => {}
                other => panic!("{other}: {repaired:#}"),
            }
        }
    });
    assert!(matches!(document(store, &["repair"]), (0, _)), "nobody stands on it any more");
    unpacked.is_sound(3);
    flip(&tree);
    assert_eq!(document(store, &["repair"]).1["repairs"][0]["outcome"], "mended");
    unpacked.is_sound(3);
    drop(served);
}

/// Counts down when a client ends, also when it has failed.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
