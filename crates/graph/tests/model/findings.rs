//! What is wrong in small stores, and that what is safe to mend takes nothing that somebody keeps.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use orlop_graph::model::{Class, Facts, Finding, Inventory, Labels, MANAGED, Mend, Model, NodeId, NodeKind, Resource};
use proptest::prelude::*;

use crate::naive::{self, plan};
use crate::store::{Store, digest, labels};

fn managed() -> Labels {
    labels(&[(MANAGED, "managed")])
}

fn facts() -> Facts {
    Facts { managed: Some("k8s.io".into()), ..Facts::default() }
}

fn by_digest(repository: &str, target: &str) -> String {
    format!("{repository}@{}", digest(target))
}

/// An image with the three records that CRI writes.
fn pulled(store: &mut Store, name: &str, layers: &[&str]) {
    store.image(name, layers).record("k8s.io", &format!("r.example/{name}:1"), name, managed());
    store.record("k8s.io", &by_digest(&format!("r.example/{name}"), name), name, managed());
    store.record("k8s.io", digest(&format!("{name}.config")).as_str(), name, managed());
}

fn classes(model: &Model, facts: &Facts) -> Vec<Class> {
    model.findings(facts).into_iter().map(|finding| finding.class).collect()
}

fn without(store: &mut Store, name: &str) {
    let before = store.0.records.len();
    store.0.records.retain(|row| *row.name != *name);
    assert_eq!(store.0.records.len() + 1, before, "{name}");
}

fn only(model: &Model, facts: &Facts) -> Finding {
    let mut found = model.findings(facts);
    assert_eq!(found.len(), 1, "{found:?}");
    found.pop().unwrap()
}

#[test]
fn a_sound_store_has_nothing_wrong() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a", "b"]);
    store.snapshot("web", Some("a/b"), 7, Labels::default()).container("web-1", "r.example/m:1", "web");
    store.ingest("young", 5, 23, None);
    assert_eq!(model_classes(&store), []);
}

fn model_classes(store: &Store) -> Vec<Class> {
    classes(&store.model(), &facts())
}

#[test]
fn hash_references_alone_are_stranded_unless_somebody_wants_them() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a", "b"]);
    without(&mut store, "r.example/m:1");
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.things.len(), found.frees.bytes()), (Class::Stranded, 2, 2_215));
    assert!(!found.class.is_safe());
    store.lease("pulling", Labels::default(), vec![Resource::Content(digest("m"))]);
    assert_eq!(model_classes(&store), []);
    store.0.leases.clear();
    let users = store.0.containers.clone();
    store.snapshot("web", Some("a/b"), 7, Labels::default()).container("web-1", "of another name", "web");
    assert_eq!(model_classes(&store), []);
    store.0.containers.clone_from(&users);
    store.0.snapshots.pop();
    store.snapshot("other", Some("a"), 7, Labels::default()).container("o", "of another name", "other");
    assert_eq!(model_classes(&store), [Class::Stranded], "a layer that is shared is no use");
    store.0.containers = users;
    store.0.snapshots.pop();
    store.0.records[0].labels = labels(&[(MANAGED, "managed"), ("io.cri-containerd.pinned", "pinned")]);
    assert_eq!(model_classes(&store), []);
    assert_eq!(classes(&store.model(), &Facts::default()), [], "where no CRI runs, somebody asked by digest");
}

#[test]
fn hash_references_that_are_missing_are_named_as_they_have_to_be_written() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a"]);
    store.record("k8s.io", "r.example/m:2", "m", managed());
    let name = by_digest("r.example/m", "m");
    without(&mut store, &name);
    without(&mut store, digest("m.config").as_str());
    let model = store.model();
    let found = model.findings(&facts());
    let written: Vec<(Class, &Mend)> = found.iter().map(|f| (f.class, &f.mend)).collect();
    let like = found[0].subject;
    assert_eq!(
        written,
        [
            (Class::MissingDigest, &Mend::Write { name, like }),
            (Class::MissingId, &Mend::Write { name: digest("m.config").to_string(), like })
        ],
        "each once, however many tags there are"
    );
}

#[test]
fn a_record_without_the_label_of_cri_is_told_of_and_not_mended() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a"]);
    store.0.records[0].labels = Labels::default();
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.mend, found.class.is_safe()), (Class::Unmanaged, Mend::Label, false));
}

#[test]
fn a_part_that_is_not_here_is_named_and_other_platforms_are_not_looked_at() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a", "b"]);
    store.0.blobs.retain(|row| row.digest != digest("b"));
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.mend, found.things.len()), (Class::Partial, Mend::Fetch, 1));
    assert_eq!(model.kind(found.things[0]), NodeKind::Missing);
    // An index of which another platform's manifest was never fetched.
    let mut store = Store::new();
    let named = [
        ("containerd.io/gc.ref.content.m.0", digest("m").to_string()),
        ("containerd.io/gc.ref.content.m.1", digest("of another platform").to_string()),
    ];
    store.image("m", &["a"]).blob("other", "m", 1, Labels::default());
    store.blob("k8s.io", "index", 3, named.into_iter().collect()).record("default", "x", "m", Labels::default());
    store.0.records.clear();
    store.record("k8s.io", "i", "index", managed());
    let model = store.model();
    let namespace = 0;
    let (index, host) =
        (model.blob(namespace, &digest("index")).unwrap(), model.blob(namespace, &digest("m")).unwrap());
    let mut known = facts();
    known.hosts.insert(index, host);
    let partial = |facts: &Facts| model.findings(facts).iter().filter(|f| f.class == Class::Partial).count();
    assert_eq!(partial(&known), 0);
    known.hosts.insert(index, model.manifests(index)[1]);
    assert_eq!(partial(&known), 1, "this platform's manifest is not here");
    known.hosts.clear();
    assert_eq!(partial(&known), 0, "unknown is not wrong");
}

#[test]
fn layers_that_are_fetched_as_they_are_read_are_no_fault() {
    let mut store = Store::new();
    pulled(&mut store, "m", &["a"]);
    for snapshot in &mut store.0.snapshots {
        snapshot.snapshotter = "stargz".into();
    }
    let config = store.0.blobs.iter_mut().find(|row| row.digest == digest("m.config")).unwrap();
    config.labels = labels(&[("containerd.io/gc.ref.snapshot.stargz", "a")]);
    store.0.blobs.retain(|row| row.digest != digest("a"));
    assert_eq!(model_classes(&store), []);
}

#[test]
fn leases_are_leaked_only_without_an_end_when_they_are_old_and_not_where_they_are_kept_on_purpose() {
    let old = |store: &mut Store, hours| {
        let made = store.0.taken - SignedDuration::from_hours(hours);
        store.0.leases.iter_mut().for_each(|lease| lease.created = Some(made));
    };
    let mut store = Store::new();
    store.blob("k8s.io", "held", 9, Labels::default());
    store.lease("l", Labels::default(), vec![Resource::Content(digest("held"))]);
    assert_eq!(model_classes(&store), [], "of unknown age");
    old(&mut store, 23);
    assert_eq!(model_classes(&store), []);
    old(&mut store, 25);
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.frees.bytes(), found.class.is_safe()), (Class::Lease, 9, false));
    store.0.leases[0].labels = labels(&[("containerd.io/gc.expire", "2026-03-02T12:00:00Z")]);
    assert_eq!(model_classes(&store), []);
    store.0.leases[0].labels = Labels::default();
    store.container("l", "", "");
    assert_eq!(model_classes(&store), [], "Docker names a container's lease after it");
    store.0.containers.clear();
    store.0.namespaces[0].name = "buildkit".into();
    assert_eq!(model_classes(&store), []);
}

#[test]
fn orphans_are_told_with_what_lies_on_them_in_an_order_in_which_they_can_be_removed() {
    let root = || labels(&[("containerd.io/gc.root", "x")]);
    let mut store = Store::new();
    pulled(&mut store, "m", &["a"]);
    store.snapshot("by-hand", Some("a"), 5, root()).snapshot("above", Some("by-hand"), 6, root());
    store.0.snapshots.iter_mut().find(|row| *row.key == *"a").unwrap().labels = root();
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.frees.bytes()), (Class::OrphanSnapshot, 11));
    assert_eq!(found.things, [model.find("above")[0].node, model.find("by-hand")[0].node]);
}

#[test]
fn what_nothing_keeps_is_one_finding_a_namespace() {
    let mut store = Store::new();
    store.blob("k8s.io", "x", 5, Labels::default()).blob("k8s.io", "y", 6, Labels::default());
    store.blob("other", "x", 5, Labels::default()).record("other", "r:1", "x", Labels::default());
    assert_eq!(model_classes(&store), [], "of unknown age");
    let made = store.0.taken - SignedDuration::from_hours(2);
    store.0.blobs.iter_mut().for_each(|blob| blob.created = Some(made));
    let model = store.model();
    let found = only(&model, &facts());
    assert_eq!((found.class, found.things.len(), found.frees.bytes()), (Class::Garbage, 2, 6), "x stays elsewhere");
}

/// A store after everything was mended that is safe to mend.
fn mended(model: &Model, findings: &[Finding]) -> Inventory {
    let mut rows = model.inventory().clone();
    let gone: BTreeSet<NodeId> = findings
        .iter()
        .flat_map(|finding| match &finding.mend {
            Mend::Remove(nodes) => nodes.clone(),
            _ => Vec::new(),
        })
        .collect();
    let kinds = |kind| model.nodes(kind).map(|node| gone.contains(&node)).collect::<Vec<_>>();
    let keep = |kind| {
        let mut gone = kinds(kind).into_iter();
        move || !gone.next().unwrap()
    };
    let mut stays = keep(NodeKind::Record);
    rows.records.retain(|_| stays());
    let mut stays = keep(NodeKind::Blob);
    rows.blobs.retain(|_| stays());
    let mut stays = keep(NodeKind::Snapshot);
    rows.snapshots.retain(|_| stays());
    let mut stays = keep(NodeKind::Lease);
    rows.leases.retain(|_| stays());
    let mut stays = keep(NodeKind::Ingest);
    rows.ingests.retain(|_| stays());
    rows
}

/// What is kept, but for writes in progress.
fn kept(model: &Model) -> BTreeSet<String> {
    let kept = model.kept();
    let items = model.items().filter(|node| kept.contains(*node) && model.kind(*node) != NodeKind::Ingest);
    items.map(|node| format!("{:?}", model.node(node))).collect()
}

proptest! {
    #[test]
    fn what_is_safe_to_mend_takes_nothing_that_is_kept(plan in plan(), container in proptest::option::of(0..8u8)) {
        let mut store = naive::store(&plan);
        store.ingest("old", 5, 50, None).ingest("young", 5, 1, None);
        if let Some(key) = container {
            store.container("c", "r0", &format!("s{key}"));
        }
        let made = store.0.taken - SignedDuration::from_hours(48);
        store.0.leases.iter_mut().for_each(|lease| lease.created = Some(made));
        let model = store.model();
        let (safe, unsafe_): (Vec<Finding>, Vec<Finding>) =
            model.findings(&facts()).into_iter().partition(|finding| finding.class.is_safe());
        let after = Model::new(mended(&model, &safe));
        prop_assert_eq!(kept(&after), kept(&model));
        prop_assert_eq!(model.nodes(NodeKind::Ingest).count() - after.nodes(NodeKind::Ingest).count(), 1);
        // The rest takes only what no container keeps, and no name of an image that has one.
        let names: Vec<NodeId> = model.nodes(NodeKind::Container).collect();
        let lived = model.reached(&names);
        let taken: Vec<NodeId> = unsafe_.iter().flat_map(|f| match &f.mend {
            Mend::Remove(nodes) => nodes.clone(),
            _ => Vec::new(),
        }).collect();
        let stays = model.kept_without(&taken);
        for item in model.items().filter(|item| lived.contains(*item)) {
            prop_assert!(stays.contains(item), "a container keeps {:?}", model.node(item));
        }
    }
}
