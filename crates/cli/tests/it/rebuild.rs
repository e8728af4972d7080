//! A `meta.db` that is lost or damaged in every way that disks and people have: nobody opens such a store as a new one, and
//! `orlop repair --rebuild-metadata` brings back what the daemon's clients had made, keeps the old file, and loses nothing that is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::common;
use crate::common::{Done, Orlop};
use orlop_api::containerd::services::snapshots::v1 as api;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_testkit::archive::oci_archive;
use orlop_testkit::faults::{Act, Faults, Rule, Site};
use orlop_testkit::fingerprint::{Fingerprint, Options as Exactly};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::tar::Entry;
use serde_json::Value;

const COMMAND: [&str; 2] = ["repair", "--rebuild-metadata"];

fn content(word: &str) -> Content {
    let base = Layer::new([Entry::dir("etc"), Entry::file("etc/base", "common ".repeat(3000))]);
    let own = Layer::noise(word, word.len() as u64, 200_000);
    Content::index(&[Content::image(&Image::host().layer(base).layer(own))])
}

fn archive(store: &Orlop, name: &str, content: &Content) -> String {
    let path = store.path(&format!("{}.tar", name.replace(['/', ':'], "-")));
    fs::write(&path, oci_archive(&[(name, content)])).unwrap();
    path.display().to_string()
}

/// What a store shows, as scripts read it, of both namespaces.
#[derive(Debug, PartialEq)]
struct Shown {
    /// Records with targets, labels and times.
    records: Vec<Value>,
    /// Images with their sizes.
    images: Vec<Value>,
    /// What names meant.
    log: Vec<Value>,
    /// Blobs by namespace, with sizes and labels.
    content: BTreeMap<String, BTreeSet<String>>,
    /// Snapshots: key, parent, kind, labels.
    snapshots: BTreeSet<String>,
    undoable: Value,
}

/// A store that was filled through its daemon, and what it shows.
struct Filled {
    store: Orlop,
    _registry: Registry,
    /// The mount of a container's snapshot.
    container: String,
    shown: Shown,
}

/// Makes a container's snapshot as a client does: only a lease keeps it. Returns where it is written.
fn prepare_leased(store: &Orlop, socket: &Path, parent: &str) -> String {
    store.ok(["leases", "create", "--id", "of-a-container"]);
    let (key, parent) = ("container-1".to_owned(), parent.to_owned());
    let request = api::PrepareSnapshotRequest { snapshotter: "overlayfs".into(), key, parent, ..Default::default() };
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    request.metadata_mut().insert("containerd-lease", "of-a-container".parse().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mounts = runtime.block_on(async {
        let channel = orlop_api::channel::unix(socket).await.unwrap();
        SnapshotsClient::new(channel).prepare(request).await.unwrap().into_inner().mounts
    });
    let mut options = mounts.iter().flat_map(|mount| &mount.options);
    options.find_map(|option| option.strip_prefix("upperdir=")).unwrap().to_owned()
}

/// Runs a command in a namespace.
fn within(store: &Orlop, namespace: &str, args: &[&str]) -> Done {
    let mut command = common::binary();
    command.arg("--root").arg(store.root()).args(["--namespace", namespace]).args(args);
    let done = Done::of(&command.output().unwrap());
    assert_eq!(done.code, 0, "{args:?}: {}", done.err);
    done
}

fn rows_within(store: &Orlop, namespace: &str, args: &[&str]) -> Value {
    serde_json::from_str(&within(store, namespace, &[args, &["-o", "json"]].concat()).out).unwrap()
}

fn in_both(store: &Orlop, args: &[&str], field: &str) -> Vec<Value> {
    let of = |namespace: &str| {
        let document = rows_within(store, namespace, args);
        document[field].as_array().unwrap_or_else(|| panic!("{args:?}: {document:#}")).clone()
    };
    ["k8s.io", "other"].into_iter().flat_map(of).collect()
}

fn shown(store: &Orlop) -> Shown {
    let rows = |args: &[&str], field: &str, wanted: &[&str]| -> BTreeSet<String> {
        let rows = in_both(store, args, field);
        rows.iter().map(|row| wanted.iter().map(|key| format!("{key}={} ", row[key])).collect()).collect()
    };
    let content = ["k8s.io", "other"].into_iter().map(|namespace| {
        let blobs = rows_within(store, namespace, &["content", "ls"]);
        let blobs = blobs["blobs"].as_array().unwrap().iter();
        (
            namespace.to_owned(),
            blobs.map(|blob| format!("{} {} {}", blob["digest"], blob["size"], blob["labels"])).collect(),
        )
    });
    Shown {
        records: in_both(store, &["images", "--all"], "records"),
        images: in_both(store, &["images"], "images"),
        log: in_both(store, &["log"], "changes"),
        content: content.collect(),
        snapshots: rows(&["snapshots", "ls"], "snapshots", &["name", "parent", "kind", "labels"]),
        undoable: store.json(["undo", "--list"])["entries"].clone(),
    }
}

/// Images that share a layer, from a registry and from archives; tags that moved; a removal that was undone, and one that can be;
/// another namespace; a container's own snapshot, with files in it; a label on a snapshot.
fn filled() -> Option<Filled> {
    if !common::is_root("rebuild") {
        return None;
    }
    let registry = Registry::start(&Options::new())?;
    let pulled = format!("{}/team/app:1", registry.host());
    let maker = Orlop::new();
    common::import(&maker, "docker.io/library/app:1", &content("pulled"));
    maker.ok(["push", "app:1", &pulled]);
    let store = Orlop::new();
    let served = store.serve(&[]);
    store.ok(["pull", &pulled]);
    for word in ["one", "three", "gone"] {
        store.ok(["import", &archive(&store, &format!("docker.io/library/{word}:1"), &content(word))]);
    }
    within(&store, "other", &["import", &archive(&store, "docker.io/library/elsewhere:1", &content("one"))]);
    store.ok(["tag", "one:1", "moved:1"]);
    store.ok(["tag", "--force", "three:1", "moved:1"]);
    store.ok(["rm", "one:1"]);
    store.ok(["undo"]);
    store.ok(["rm", "gone:1"]);
    let committed = store.json(["snapshots", "ls"]);
    let committed = committed["snapshots"].as_array().unwrap();
    let key = |row: &Value, field: &str| row[field].as_str().unwrap().to_owned();
    let parents: BTreeSet<String> = committed.iter().map(|row| key(row, "parent")).collect();
    let top = committed.iter().map(|row| key(row, "name")).find(|name| !parents.contains(name)).unwrap();
    let upper = prepare_leased(&store, &served.socket(), &top);
    fs::write(Path::new(&upper).join("written"), "by the container").unwrap();
    store.ok(["snapshots", "label", &top, "team=green"]);
    let shown = shown(&store);
    drop(served);
    Some(Filled { store, _registry: registry, container: upper, shown })
}

fn database(store: &Orlop) -> PathBuf {
    store.root().join("meta.db")
}

/// Does something to a database.
type Damage = fn(&Path);

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Each with what `--rebuild-metadata` calls it, and whether opening tells.
const DAMAGES: [(&str, &str, bool, Damage); 6] = [
    ("gone", "lost", true, |path| fs::remove_file(path).unwrap()),
    ("without a byte", "lost", true, |path| OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap()),
    ("cut short", "damaged", true, |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2 / 4096 * 4096).unwrap();
    }),
    ("no database", "damaged", true, |path| overwrite(path, 0, &[0x5a; 4096])),
    ("zeros behind the first page", "damaged", true, |path| {
        let pages = fs::metadata(path).unwrap().len() / 4096;
        overwrite(path, 4096, &vec![0; (pages as usize - 1) * 4096]);
    }),
    ("another page in the middle", "damaged", false, |path| {
        let length = fs::metadata(path).unwrap().len();
        overwrite(path, length / 4096 / 2 * 4096, &[0xa5; 4096]);
    }),
];

#[track_caller]
fn refuses_and_names_the_command(done: &Done, why: &str) {
    assert_eq!(done.code, 5, "{why}: {}{}", done.out, done.err);
    let said = format!("{}{}", done.out, done.err);
    assert!(said.contains("meta.db") && said.contains("orlop repair --rebuild-metadata"), "{why}: {said}");
}

fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let own = names.filter(|name| name.starts_with("meta.db") && !name.ends_with("-shm"));
    own.map(|name| (name.clone(), fs::read(root.join(name)).unwrap())).collect()
}

fn rebuild(store: &Orlop, more: &[&str]) -> Value {
    store.json([&COMMAND, more].concat())
}

/// The store is as it was: to who lists it, to `check`, to who undoes, to collections, to who mounts a container's tree.
fn is_as_before(filled: &Filled, why: &str) {
    let Filled { store, shown: before, .. } = filled;
    store.is_sound();
    let now = shown(store);
    assert_eq!(now.records, before.records, "{why}");
    assert_eq!(now.images, before.images, "{why}");
    assert_eq!(now.log, before.log, "{why}");
    assert_eq!(now.content, before.content, "{why}");
    assert_eq!(now.snapshots, before.snapshots, "{why}");
    assert_eq!(now.undoable, before.undoable, "{why}");
    store.ok(["gc", "--full"]);
    assert_eq!(shown(store).content, before.content, "{why}: a collection takes nothing");
    assert_eq!(shown(store).snapshots, before.snapshots, "{why}: a collection takes nothing");
    let mounts = store.ok(["snapshots", "mounts", "container-1"]);
    assert!(mounts.contains(&filled.container), "{why}: {mounts}");
    assert_eq!(fs::read_to_string(Path::new(&filled.container).join("written")).unwrap(), "by the container");
}

#[test]
fn a_database_that_is_lost_or_damaged_comes_back_from_what_lies_beside_it() {
    let Some(filled) = filled() else { return };
    let store = &filled.store;
    let trees = Fingerprint::of(&store.root().join("snapshots"), &Exactly::default()).unwrap();
    for (why, condition, opening_tells, damage) in DAMAGES {
        damage(&database(store));
        let damaged = files(&store.root());
        if opening_tells {
            refuses_and_names_the_command(&store.run(["images"]), why);
            refuses_and_names_the_command(&store.run(["pull", "docker.io/library/none:1"]), why);
            refuses_and_names_the_command(&store.run(["serve", "--socket", "/tmp/orlop-never"]), why);
        } else {
            refuses_and_names_the_command(&store.run(["check"]), why);
        }
        let old = |name: &str| damaged.get(name).cloned();
        assert!(files(&store.root()).get("meta.db").cloned() == old("meta.db"), "{why}: looking changes something");
        let plan = rebuild(store, &["--plan"]);
        assert_eq!(
            (plan["condition"].as_str(), plan["plan"].as_bool()),
            (Some(condition), Some(true)),
            "{why}: {plan:#}"
        );
        assert!(files(&store.root()).get("meta.db").cloned() == old("meta.db"), "{why}: a plan changes something");
        let done = rebuild(store, &[]);
        assert_eq!(done["condition"], condition, "{why}: {done:#}");
        for field in ["records", "changes", "blobs", "snapshots", "removals", "left"] {
            assert_eq!(done[field], plan[field], "{why}: {field}");
        }
        assert_eq!(done["left"], serde_json::json!([]), "{why}: {done:#}");
        let kept = done["movedTo"].as_str().and_then(|name| files(&store.root()).remove(name));
        assert!(kept == old("meta.db"), "{why}: the old file is not kept as it was");
        // A container's snapshot, which a record would keep that only the database had.
        let held = done["held"].as_array().unwrap();
        assert_eq!(held.len(), 1, "{why}: {done:#}");
        assert_eq!((held[0]["namespace"].as_str(), held[0]["blobs"].as_u64()), (Some("k8s.io"), Some(0)), "{why}");
        is_as_before(&filled, why);
        let after = Fingerprint::of(&store.root().join("snapshots"), &Exactly::default()).unwrap();
        assert_eq!(trees.diff(&after), Vec::<String>::new(), "{why}");
    }
    // What is held goes once somebody says so, and what was removed comes back.
    let leases = store.json(["leases", "ls"]);
    let lease = leases["leases"][0]["id"].as_str().unwrap().to_owned();
    assert!(lease.starts_with("rebuilt-"), "{leases:#}");
    store.ok(["undo"]);
    store.ok(["verify", "-q", "gone:1"]);
    store.ok(["leases", "rm", &lease]);
    store.ok(["snapshots", "rm", "container-1"]);
    store.ok(["gc"]);
    store.is_sound();
    let served = store.serve(&[]);
    store.ok(["rm", "--no-trash", "gone:1", "moved:1", "one:1", "three:1"]);
    drop(served);
    store.is_sound();
}

#[test]
fn a_database_that_lost_its_log_is_behind_and_comes_back_by_force() {
    let Some(registry) = Registry::start(&Options::new()) else { return };
    let store = Orlop::new();
    // Once with all of it in the log, once with a part.
    for (word, condition) in [("one", "lost"), ("two", "behind")] {
        let mut served = store.serve(&[]);
        store.ok(["import", "--no-unpack", &archive(&store, &format!("docker.io/library/{word}:1"), &content(word))]);
        let before = store.records();
        served.process().kill();
        drop(served);
        fs::remove_file(store.root().join("meta.db-wal")).unwrap();
        if condition == "lost" {
            refuses_and_names_the_command(&store.run(["images"]), condition);
        } else {
            let refused = store.run(COMMAND);
            assert_eq!(refused.code, 4, "{}", refused.err);
            assert!(refused.err.contains("history.log") && refused.err.contains("--force"), "{}", refused.err);
        }
        let done = rebuild(&store, &["--force"]);
        assert_eq!(done["condition"], condition, "{done:#}");
        assert_eq!(store.records(), before);
        store.is_sound();
    }
    drop(registry);
}

#[test]
fn a_database_that_is_sound_or_in_use_is_left_alone() {
    let store = Orlop::new();
    let none = store.run(COMMAND);
    assert_eq!(none.code, 3, "{}", none.err);
    assert!(!store.root().exists());
    store.ok(["import", "--no-unpack", &archive(&store, "docker.io/library/one:1", &content("one"))]);
    let before = files(&store.root());
    let sound = store.run(COMMAND);
    assert_eq!(sound.code, 4, "{}", sound.err);
    assert!(sound.err.contains("meta.db is sound") && sound.err.contains("--force"), "{}", sound.err);
    assert!(files(&store.root()) == before, "looking changed a file");
    let served = store.serve(&[]);
    let in_use = store.run([&COMMAND[..], &["--force"]].concat());
    assert_eq!(in_use.code, 4, "{}", in_use.err);
    assert!(in_use.err.contains("is served by process"), "{}", in_use.err);
    drop(served);
    // Another command that has it open, without a daemon.
    let open = fs::File::open(store.root().join("lock")).unwrap();
    rustix::fs::flock(&open, rustix::fs::FlockOperation::LockShared).unwrap();
    let in_use = store.run([&COMMAND[..], &["--force"]].concat());
    assert_eq!(in_use.code, 4, "{}", in_use.err);
    assert!(in_use.err.contains("is in use by another process"), "{}", in_use.err);
    drop(open);
    store.is_sound();
}

/// Killed before each of its calls that change a file, it leaves the old database, or none, which nobody takes for a new
/// one, or the new one; and the next one ends what it began.
#[test]
fn killed_at_any_call_it_leaves_the_old_database_or_the_new_one() {
    if !common::is_root("rebuild") || !Faults::available() {
        return;
    }
    let store = Orlop::new();
    store.ok(["import", &archive(&store, "docker.io/library/one:1", &content("one"))]);
    store.ok(["tag", "one:1", "two:1"]);
    let (records, damaged) = (store.records(), vec![0x5a; 8192]);
    let (mut kills, mut states) = (0, BTreeSet::new());
    for from in 0.. {
        fs::write(database(&store), &damaged).unwrap();
        let mut command = store.command(COMMAND);
        let faults = Faults::over(&mut command, &store.root()).unwrap();
        faults.set(Rule { which: Box::new(Site::changes), from, lasting: false, act: Act::Kill });
        let ended = command.output().unwrap();
        if faults.hit().is_empty() {
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
            break;
        }
        kills += 1;
        assert!(!ended.status.success());
        let copies =
            files(&store.root()).into_iter().filter(|(name, bytes)| !name.contains(".new") && *bytes == damaged);
        assert!(copies.count() > 0, "before {:?} the old file is gone", faults.hit());
        let looked = store.run(["images", "--all", "-o", "name"]);
        if looked.code == 0 {
            states.insert("new");
        } else {
            refuses_and_names_the_command(&looked, &format!("{:?}", faults.hit()));
            states.insert(if database(&store).exists() { "old" } else { "none" });
            store.ok(COMMAND);
        }
        assert_eq!(store.records(), records, "before {:?}", faults.hit());
        store.is_sound();
        for name in files(&store.root()).into_keys().filter(|name| name != "meta.db") {
            fs::remove_file(store.root().join(name)).unwrap();
        }
    }
    eprintln!("{kills} kills; then there was {states:?}");
    assert!(kills >= 8 && states == BTreeSet::from(["new", "none", "old"]), "{kills} kills, {states:?}");
}

/// What the sources do not have is said, and nothing is made of it.
#[test]
fn what_cannot_be_brought_back_is_said_and_kept_on_disk() {
    let Some(filled) = filled() else { return };
    let store = &filled.store;
    let log = store.root().join("history.log");
    fs::remove_file(&log).unwrap();
    fs::remove_file(database(store)).unwrap();
    let overlay = store.root().join("snapshots/overlayfs");
    let numbers = fs::read_dir(&overlay).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap().parse::<u64>());
    let first = numbers.flatten().min().unwrap();
    fs::write(overlay.join(first.to_string()).join("meta"), "{").unwrap();
    let done = rebuild(store, &[]);
    let left = done["left"].as_array().unwrap();
    assert!(left[0].as_str().unwrap().contains(&format!("snapshots/overlayfs/{first}: its meta file")), "{done:#}");
    assert!(left.len() > 1, "what stands on it is said, too: {done:#}");
    assert_eq!(done["records"], 0, "{done:#}");
    // No name, and every blob: for whoever pulls or imports again.
    assert_eq!(store.records(), Vec::<String>::new());
    store.ok(["gc", "--full"]);
    let blobs: BTreeSet<String> = filled.shown.content.values().flatten().cloned().collect();
    let digest = |row: &String| row.split('"').nth(1).unwrap().to_owned();
    let now: BTreeSet<String> = shown(store).content.values().flatten().map(digest).collect();
    assert_eq!(now, blobs.iter().map(digest).collect());
    store.ok(["import", &archive(store, "docker.io/library/one:1", &content("one"))]);
    store.ok(["verify", "-q", "one:1"]);
    store.is_sound();
}
