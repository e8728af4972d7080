//! One rule of garbage collection per test, on a real root.

use std::os::unix::fs::PermissionsExt;

use crate::rig;
use crate::rig::{DRIVER, Rig, at, digest, image, labels};
use orlop_content::{IngestOptions, Ingester};
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{Resource, ResourceKind};

const REF: &str = "containerd.io/gc.ref.content";
const NS: &str = "default";

fn collect(rig: &Rig) -> Report {
    rig.store.collect(Disposal::Reclaim).expect("a collection")
}

fn content(name: &orlop_oci::Digest) -> Resource {
    Resource { kind: ResourceKind::Content, name: name.to_string() }
}

#[test]
fn an_image_keeps_what_it_reaches_and_no_more() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let layer = rig.put(&scope, b"layer", &[]).expect("a blob");
    let manifest = rig.put(&scope, b"manifest", &[(&format!("{REF}.l.0"), layer.as_str())]).expect("a blob");
    let other = rig.put(&scope, b"other", &[]).expect("a blob");
    rig.image(NS, "a", &manifest);
    let report = collect(&rig);
    assert_eq!(report.content, [(NS.to_owned(), other.to_string())].into());
    assert_eq!(report.blob_bytes, 5);
    assert_eq!(rig.blobs_on_disk(), [layer.to_string(), manifest.to_string()].into());
    rig.store.delete_image(&scope, "a", None).expect("it is there");
    assert_eq!(collect(&rig).content.len(), 2);
    assert!(rig.blobs_on_disk().is_empty());
}

#[test]
fn a_cycle_of_labels_dies_together() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let (a, b) = (digest(b"a"), digest(b"b"));
    rig.put(&scope, b"a", &[(REF, b.as_str())]).expect("a blob");
    rig.put(&scope, b"b", &[(REF, a.as_str())]).expect("a blob");
    rig.image(NS, "holds", &a);
    assert_eq!(collect(&rig).content.len(), 0);
    rig.store.delete_image(&scope, "holds", None).expect("it is there");
    assert_eq!(collect(&rig).content.len(), 2);
}

#[test]
fn what_does_not_exist_passes_life_on() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let absent = digest(b"never written");
    let attached =
        rig.put(&scope, b"signature", &[("containerd.io/gc.bref.content", absent.as_str())]).expect("a blob");
    rig.image(NS, "a", &absent);
    assert!(collect(&rig).content.is_empty());
    assert!(rig.store.collect_full(Disposal::Reclaim).expect("a collection").content.is_empty());
    rig.store.delete_image(&scope, "a", None).expect("it is there");
    assert_eq!(collect(&rig).content, [(NS.to_owned(), attached.to_string())].into());
}

#[test]
fn a_flat_lease_holds_blobs_alone_but_snapshots_with_their_parents() {
    let rig = Rig::new();
    rig.store.create_lease(NS, "flat", labels(&[("containerd.io/gc.flat", "true")])).expect("a lease");
    let scope = rig.scope(NS, None);
    let child = rig.put(&scope, b"child", &[]).expect("a blob");
    let parent = rig.put(&scope, b"parent", &[(REF, child.as_str())]).expect("a blob");
    let snapshots = rig.snapshots(NS, None);
    snapshots.prepare("a", "", labels(&[])).expect("a snapshot");
    snapshots.commit("base", "a", None, labels(&[(REF, child.as_str())])).expect("committed");
    snapshots.prepare("top", "base", labels(&[])).expect("a snapshot");
    let kind = ResourceKind::Snapshots(DRIVER.to_owned());
    rig.store.add_resource(NS, "flat", &content(&parent)).expect("leased");
    rig.store.add_resource(NS, "flat", &Resource { kind, name: "top".to_owned() }).expect("leased");
    assert_eq!(collect(&rig).content, [(NS.to_owned(), child.to_string())].into());
    assert_eq!(rig.keys(NS), ["base".to_owned(), "top".to_owned()].into());
    assert_eq!(rig.blobs(NS), [parent].into());
}

#[test]
fn leases_and_images_expire() {
    let rig = Rig::new();
    let end = at(rig.seconds() + 60);
    let expires = [("containerd.io/gc.expire", end.as_str())];
    rig.store.create_lease(NS, "l", labels(&expires)).expect("a lease");
    let leased = rig.put(&rig.scope(NS, Some("l")), b"leased", &[]).expect("a blob");
    let target = rig.put(&rig.scope(NS, None), b"target", &[]).expect("a blob");
    rig.store.create_image(&rig.scope(NS, None), image("i", &target, &expires)).expect("a record");
    rig.advance(60);
    let nothing = collect(&rig);
    assert_eq!(nothing, Report { visited: nothing.visited, ..Report::default() });
    rig.advance(1);
    let report = collect(&rig);
    assert_eq!(report.content, [leased, target].map(|d| (NS.to_owned(), d.to_string())).into());
    assert_eq!(report.leases, [(NS.to_owned(), "l".to_owned())].into());
    assert_eq!(report.images, [(NS.to_owned(), "i".to_owned())].into());
    let last = rig.store.history(NS, Some("i"), 1).expect("history").remove(0);
    assert_eq!((last.actor.as_str(), last.new), ("gc", None));
    assert_eq!(collect(&rig), Report::default());
}

#[test]
fn a_write_holds_what_it_expects_for_a_day() {
    let rig = Rig::new();
    let content = rig.store.content(&rig.scope(NS, None));
    let options = IngestOptions { reference: "w".to_owned(), total: 0, expected: Some(digest(b"later")) };
    drop(rig.runtime.block_on(content.writer(options)).expect("a writer"));
    assert!(collect(&rig).ingests.is_empty());
    rig.advance(24 * 3600 + 1);
    assert_eq!(collect(&rig).ingests, [(NS.to_owned(), "w".to_owned())].into());
    assert_eq!(rig.writes_on_disk(), 0);
}

/// What an operation that failed had fetched was lost to the next try: no lease held the write any more.
#[test]
fn a_released_lease_leaves_its_writes_for_a_day_and_a_deleted_one_does_not() {
    let rig = Rig::new();
    let write = |lease: &str| {
        rig.store.create_lease(NS, lease, labels(&[])).expect("a lease");
        let content = rig.store.content(&rig.scope(NS, Some(lease)));
        let options = IngestOptions { reference: lease.to_owned(), ..IngestOptions::default() };
        drop(rig.runtime.block_on(content.writer(options)).expect("a writer"));
    };
    write("released");
    write("deleted");
    rig.store.release_lease(NS, "released").expect("it is there");
    rig.store.delete_lease(NS, "deleted").expect("it is there");
    assert!(rig.store.release_lease(NS, "released").is_err(), "it is gone");
    assert_eq!(collect(&rig).ingests, [(NS.to_owned(), "deleted".to_owned())].into(), "as with containerd");
    rig.advance(24 * 3600 + 1);
    assert_eq!(collect(&rig).ingests, [(NS.to_owned(), "released".to_owned())].into());
    assert_eq!(rig.writes_on_disk(), 0);
}

#[test]
fn bytes_stay_as_long_as_one_namespace_has_them() {
    let rig = Rig::new();
    let blob = rig.put(&rig.scope("one", None), b"shared", &[]).expect("a blob");
    rig.put(&rig.scope("two", None), b"shared", &[]).expect("a blob");
    rig.image("two", "keeps", &blob);
    let report = collect(&rig);
    assert_eq!((report.content.len(), report.blob_bytes), (1, 0));
    assert!(rig.reads(&blob));
    rig.store.delete_image(&rig.scope("two", None), "keeps", None).expect("it is there");
    assert_eq!(collect(&rig).blob_bytes, 6);
    assert!(!rig.reads(&blob));
}

#[test]
fn a_plan_changes_nothing_and_comes_true() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let shared = rig.put(&scope, b"base layer", &[]).expect("a blob");
    for name in ["a", "b"] {
        let target = rig.put(&scope, name.as_bytes(), &[(REF, shared.as_str())]).expect("a blob");
        rig.image(NS, name, &target);
        let snapshots = rig.snapshots(NS, None);
        let back = [("containerd.io/gc.bref.image", name)];
        snapshots.prepare(&format!("on {name}"), "", labels(&back)).expect("a snapshot");
    }
    collect(&rig);
    let before = rig::tree(rig.directory.path());
    let plan = rig.store.plan_collection(&[(NS.to_owned(), "a".to_owned())]).expect("a plan");
    assert_eq!((plan.content.len(), plan.snapshots.len()), (1, 1));
    assert_eq!(rig.store.plan_collection(&[]).expect("a plan").content.len(), 0);
    assert_eq!(before, rig::tree(rig.directory.path()), "planning wrote something");
    rig.store.delete_image(&scope, "a", None).expect("it is there");
    let done = collect(&rig);
    assert_eq!(plan, Report { visited: plan.visited, ..done });
    let both = [(NS.to_owned(), "b".to_owned())];
    assert_eq!(rig.store.plan_collection(&both).expect("a plan").content.len(), 2);
}

/// Of many records that go together those make no difference whose target a record that stays has too: one that has expired,
/// or that is in another namespace, does not stay, and neither goes what hangs on more of a record than its target.
#[test]
fn a_plan_without_many_records_looks_at_what_each_of_them_keeps() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let image = |name: &str, blob: &str, labels: &[(&str, &str)]| {
        let target = rig.put(&scope, blob.as_bytes(), &[]).expect("a blob");
        rig.store.create_image(&scope, rig::image(name, &target, labels)).expect("a new record");
        target
    };
    let end = rig::at(rig.seconds() + 60);
    image("tag", "one", &[]);
    image("hash", "one", &[]);
    let two = image("passing", "two", &[("containerd.io/gc.expire", &end)]);
    image("hash of two", "two", &[]);
    let extra = rig.put(&scope, b"extra", &[]).expect("a blob");
    image("hash with more", "one", &[(REF, extra.as_str())]);
    let back = rig.put(&scope, b"back", &[("containerd.io/gc.bref.image", "hash asked for")]).expect("a blob");
    image("hash asked for", "one", &[]);
    rig.put(&rig.scope("other", None), b"three", &[]).expect("a blob");
    let three = rig.put(&scope, b"three", &[]).expect("a blob");
    rig.image("other", "tag of three", &three);
    rig.image(NS, "hash of three", &three);
    collect(&rig);
    rig.advance(120);
    let media_type = |name: &str| rig.store.image(NS, name).expect("a record").target.media_type;
    let names = ["hash", "hash of two", "hash with more", "hash asked for", "hash of three"];
    let without: Vec<_> = names.map(|name| (NS.to_owned(), name.to_owned())).to_vec();
    let plan = rig.store.plan_collection(&without).expect("a plan");
    let gone = [two, extra, back, three].map(|digest| (NS.to_owned(), digest.to_string()));
    assert_eq!(plan.content, gone.into_iter().collect());
    assert_eq!(plan.images, [(NS.to_owned(), "passing".to_owned())].into_iter().collect());
    assert_eq!(rig.store.bytes_kept_by(&without).expect("a plan"), 12, "three is another namespace's too");
    assert_eq!(rig.store.bytes_kept_by(&without[..1]).expect("a plan"), 0);
    let cost = |wanted: &[&str]| rig.store.cost_of_records(|name, _| wanted.contains(&name)).expect("a sum");
    assert_eq!((cost(&names).records, cost(&names).kept_bytes), (5, 12));
    // Namespace, name, target's digest and media type, a size and two times.
    let row_bytes = NS.len() + "hash".len() + "sha256:".len() + 64 + media_type("hash").len() + 24;
    assert_eq!((cost(&["hash"]).row_bytes, cost(&["hash"]).kept_bytes), (row_bytes as u64, 0));
    // The record has expired, and is garbage whoever asks; so is what it alone kept.
    let plan = rig.store.plan_collection(&[(NS.to_owned(), "hash of two".to_owned())]).expect("a plan");
    assert_eq!((plan.content.len(), plan.images.len()), (1, 1));
}

/// Removing one image of ten thousand must not look at the others, though all share a layer.
#[test]
fn the_cost_follows_what_changed() {
    const IMAGES: usize = 10_000;
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let shared = rig.put(&scope, b"base layer", &[]).expect("a blob");
    let base = [(format!("{REF}.base"), shared.to_string())];
    let own = rig.put(&scope, b"manifest", &[(&format!("{REF}.l.0"), shared.as_str())]).expect("a blob");
    let target = image("x", &own, &[]).target;
    let upsert = |number| {
        // All but one have a target of their own that was never fetched.
        let absent = image("x", &digest(format!("{number}").as_bytes()), &[]).target;
        let target = if number == 1234 { target.clone() } else { absent };
        orlop_metadata::ImageChange::Upsert { name: format!("image {number}"), target, labels: base.clone().into() }
    };
    rig.store.write_images(&scope, &(0..IMAGES).map(upsert).collect::<Vec<_>>()).expect("written");
    assert!(collect(&rig).content.is_empty());
    rig.store.delete_image(&scope, "image 1234", None).expect("it is there");
    let report = collect(&rig);
    assert_eq!(report.content, [(NS.to_owned(), own.to_string())].into());
    // Manifest and layer; the edge between the two; and of the edges into the layer those up to the first that counts.
    assert!(report.visited <= 8, "looked at {} objects and edges", report.visited);
    let full = rig.store.collect_full(Disposal::Reclaim).expect("a collection");
    assert!(full.content.is_empty() && full.visited > IMAGES as u64);
}

#[test]
fn a_full_collection_finds_what_a_crash_left_on_disk() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let kept = rig.put(&scope, b"kept", &[]).expect("a blob");
    rig.image(NS, "keeps", &kept);
    // Around the metadata, as a process that died between the bytes and the row.
    let stray = digest(b"stray");
    let raw = rig.store.raw_content().clone();
    rig.runtime.block_on(async {
        let options = IngestOptions { reference: "stray".to_owned(), total: 0, expected: None };
        let mut writer = raw.writer(options).await.expect("a writer");
        writer.write(b"stray".as_slice().into()).await.expect("written");
        writer.commit(5, Some(&stray)).await.expect("committed");
        let options = IngestOptions { reference: "half".to_owned(), total: 0, expected: None };
        drop(raw.writer(options).await.expect("a writer"));
    });
    std::fs::create_dir_all(rig.directory.path().join("snapshots/plain/999/fs")).expect("a tree");
    std::fs::create_dir_all(rig.directory.path().join("trash/gone/blobs")).expect("a bin");
    // The clock of these tests is far ahead of the files' times: all of this is old.
    assert!(collect(&rig).content.is_empty());
    assert!(rig.reads(&stray), "an incremental collection does not walk the disk");
    let report = rig.store.collect_full(Disposal::Reclaim).expect("a collection");
    let orphans = [
        format!("content {stray}"),
        "ingest half".to_owned(),
        "snapshots/plain 999".to_owned(),
        "trash gone".to_owned(),
    ];
    assert_eq!(report.orphans, orphans.into());
    assert_eq!((rig.reads(&stray), rig.reads(&kept)), (false, true));
    assert_eq!((rig.writes_on_disk(), rig.trees_on_disk()), (0, 0));
    assert!(!rig.directory.path().join("trash/gone").exists());
}

#[test]
fn what_was_just_made_is_not_taken_for_forgotten() {
    let rig = Rig::new();
    rig.clock.store(jiff::Timestamp::now().as_second(), std::sync::atomic::Ordering::SeqCst);
    std::fs::create_dir_all(rig.directory.path().join("snapshots/plain/999")).expect("a tree");
    assert!(rig.store.collect_full(Disposal::Reclaim).expect("a collection").orphans.is_empty());
    assert_eq!(rig.trees_on_disk(), 1);
}

/// A collection that dies between the rows and the bytes is finished by the next one.
#[test]
fn a_killed_collection_is_finished() {
    let mut rig = Rig::new();
    let blob = rig.put(&rig.scope(NS, None), b"doomed", &[]).expect("a blob");
    rig.snapshots(NS, None).prepare("key", "", labels(&[])).expect("a snapshot");
    // A directory in the way of the deletion stands for the kill.
    let path = rig.directory.path().join("content/blobs/sha256").join(blob.hex());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("mode");
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir_all(path.join("in the way")).expect("a directory");
    rig.store.collect(Disposal::Reclaim).expect_err("the file cannot be unlinked");
    assert!(rig.blobs(NS).is_empty(), "the rows are gone");
    std::fs::remove_dir_all(&path).expect("removed");
    std::fs::write(&path, b"doomed").expect("written");
    rig.reopen();
    assert!(rig.reads(&blob));
    assert_eq!(collect(&rig), Report::default());
    assert!(!rig.reads(&blob));
    assert_eq!(rig.trees_on_disk(), 0);
}

#[test]
fn a_blob_that_is_wanted_again_survives_its_own_doom() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let blob = rig.put(&scope, b"wanted", &[]).expect("a blob");
    rig.store.content(&scope).forget(&blob).expect("it is there");
    let content = rig.store.content(&scope);
    let options = IngestOptions { reference: "again".to_owned(), total: 0, expected: Some(blob.clone()) };
    let mut writer = rig.runtime.block_on(content.writer(options)).expect("a writer");
    collect(&rig);
    assert!(rig.reads(&blob), "a write expects it");
    rig.runtime.block_on(writer.commit(6, Some(&blob))).expect("committed");
    rig.image(NS, "keeps", &blob);
    collect(&rig);
    assert!(rig.reads(&blob));
}

const CONDITION: &str = "containerd.io/gc.cond.snapshot.plain";
const USED: &str = "containerd.io/gc.cond.value-usedat";

/// A root whose image `i` keeps the snapshot `s`, used now, under a condition. All that may go without it is gone.
fn conditional(condition: &str) -> Rig {
    let rig = Rig::new();
    let now = at(rig.seconds());
    rig.snapshots(NS, None).prepare("s", "", labels(&[(USED, &now)])).expect("a snapshot");
    let labels = [(CONDITION, condition)];
    rig.store.create_image(&rig.scope(NS, None), image("i", &digest(b"x"), &labels)).expect("a record");
    rig
}

/// After a collection, the same by either way of marking.
fn is_kept(rig: &Rig) -> bool {
    collect(rig);
    let kept = !rig.keys(NS).is_empty();
    let oracle = rig.store.collect_full(Disposal::Reclaim).expect("a collection");
    assert!(oracle.snapshots.is_empty() && oracle.missed.is_empty(), "{oracle:?}");
    assert_eq!(rig.store.check_metadata().expect("a check"), []);
    kept
}

#[test]
fn a_condition_keeps_a_snapshot_until_its_time_is_up() {
    let rig = conditional("usedat<1h|s");
    for _ in 0..2 {
        assert!(is_kept(&rig));
        rig.advance(3599);
        assert!(is_kept(&rig));
        // Used again: the time begins anew.
        let now = at(rig.seconds());
        rig.snapshots(NS, None).update("s", labels(&[(USED, &now)]), &[]).expect("labelled");
    }
    rig.advance(3599);
    assert!(is_kept(&rig));
    rig.advance(1);
    // Nobody has written anything.
    assert!(!is_kept(&rig));
}

#[test]
fn a_condition_may_ask_for_age() {
    let mut rig = conditional("usedat>1h|s");
    let lease = Resource { kind: ResourceKind::Snapshots(DRIVER.to_owned()), name: "s".to_owned() };
    rig.store.create_lease(NS, "l", labels(&[])).expect("a lease");
    rig.store.add_resource(NS, "l", &lease).expect("leased");
    rig.advance(3601);
    rig.store.delete_lease(NS, "l").expect("it is there");
    assert!(is_kept(&rig), "more than an hour has passed");
    rig.reopen();
    rig.advance(-1);
    assert!(!is_kept(&rig), "the clock was set back to the hour");
}

#[test]
fn one_condition_of_several_is_enough() {
    let rig = conditional("usedat<1m,nonsense,usedat<x,usedat<=9h,usedat>30m,usedat<10m|s");
    rig.advance(599);
    assert!(is_kept(&rig));
    let used = at(rig.seconds() - 1801);
    rig.snapshots(NS, None).update("s", labels(&[(USED, &used)]), &[]).expect("labelled");
    assert!(is_kept(&rig));
    let second = format!("{USED}.2");
    let used = [(USED, at(rig.seconds() - 700)), (second.as_str(), at(rig.seconds() - 599))];
    let pairs: Vec<(&str, &str)> = used.iter().map(|(key, value)| (*key, value.as_str())).collect();
    rig.snapshots(NS, None).update("s", labels(&pairs), &[]).expect("labelled");
    assert!(is_kept(&rig), "of several times, too");
    rig.advance(1);
    assert!(!is_kept(&rig));
}

#[test]
fn what_a_condition_needs_may_go() {
    for step in 0..4 {
        let rig = conditional("usedat<1h|s");
        assert!(is_kept(&rig));
        let scope = rig.scope(NS, None);
        match step {
            0 => drop(rig.store.delete_image(&scope, "i", None).expect("it is there")),
            1 => drop(rig.snapshots(NS, None).update("s", labels(&[]), &[]).expect("labelled")),
            2 => {
                let changed = image("i", &digest(b"x"), &[(CONDITION, "usedat<1h|other")]);
                rig.store.update_image(&scope, changed, &["labels".to_owned()]).expect("labelled");
            }
            _ => {
                let plan = rig.store.plan_collection(&[(NS.to_owned(), "i".to_owned())]).expect("a plan");
                assert_eq!(plan.snapshots.len(), 1, "a plan knows it too");
                continue;
            }
        }
        assert!(!is_kept(&rig), "step {step}");
    }
}

#[test]
fn conditions_of_blobs_and_of_expired_images_count_and_those_of_others_do_not() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let (now, past) = (at(rig.seconds()), at(rig.seconds() - 1));
    for key in ["by blob", "by image", "by container", "by snapshot"] {
        rig.snapshots(NS, None).prepare(key, "", labels(&[(USED, &now)])).expect("a snapshot");
    }
    let condition = |key: &str| format!("usedat<1h|{key}");
    let labels_of = |key: &str| labels(&[(CONDITION, &condition(key))]);
    let blob = rig.put(&scope, b"blob", &[(CONDITION, &condition("by blob"))]).expect("a blob");
    let expired = [(CONDITION, condition("by image")), ("containerd.io/gc.expire", past)];
    let pairs: Vec<(&str, &str)> = expired.iter().map(|(key, value)| (*key, value.as_str())).collect();
    rig.store.create_image(&scope, image("expired", &blob, &pairs)).expect("a record");
    let holds = [("containerd.io/gc.ref.image", "expired")];
    rig.store.create_image(&scope, image("holds", &blob, &holds)).expect("a record");
    rig.store.create_container(&scope, rig::container("c", None, &labels_of("by container"))).expect("a container");
    let root = labels(&[(CONDITION, &condition("by snapshot")), ("containerd.io/gc.root", "1")]);
    rig.snapshots(NS, None).prepare("root", "", root).expect("a snapshot");
    collect(&rig);
    assert_eq!(rig.keys(NS), ["by blob", "by image", "root"].map(str::to_owned).into());
    assert!(is_kept(&rig));
}

/// When one of a thousand times is up, the others are not looked at.
#[test]
fn the_cost_of_conditions_follows_those_that_turn() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    for number in 0..1000 {
        let (key, used) = (format!("s{number}"), at(rig.seconds() + number));
        rig.snapshots(NS, None).prepare(&key, "", labels(&[(USED, &used)])).expect("a snapshot");
        let condition = [(CONDITION, format!("usedat<1h|{key}"))].map(|(key, value)| (key, value));
        let condition: Vec<(&str, &str)> = condition.iter().map(|(key, value)| (*key, value.as_str())).collect();
        rig.store.create_image(&scope, image(&key, &digest(b"x"), &condition)).expect("a record");
    }
    assert!(collect(&rig).snapshots.is_empty());
    assert_eq!(collect(&rig).visited, 0);
    rig.advance(3600);
    let report = collect(&rig);
    assert_eq!(report.snapshots, [(NS.to_owned(), DRIVER.to_owned(), "s0".to_owned())].into());
    assert!(report.visited <= 2, "looked at {} objects and edges", report.visited);
    rig.advance(-3600);
    assert_eq!(collect(&rig).snapshots.len(), 0);
}
