//! What policies take of small stores, and of random ones against a recount by hand.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use orlop_graph::model::{
    BlobRow, LabelRule, Labels, Model, Node, NodeId, NodeKind, PINNED, Pattern, Policy, Resource, Selection, Sign,
    SnapshotKind, SnapshotRow, Spare,
};
use proptest::prelude::*;

use crate::store::{Store, digest, labels};

const SOURCE: &str = "containerd.io/distribution.source.r.example";

fn ago(store: &Store, hours: i64) -> Timestamp {
    store.0.taken - SignedDuration::from_hours(hours)
}

/// An image that was pulled some hours ago, with the records that CRI writes.
fn pulled(store: &mut Store, tag: &str, name: &str, layers: &[&str], hours: i64) {
    if !store.0.blobs.iter().any(|row| row.digest == digest(name)) {
        store.image(name, layers);
    }
    let (at, from) = (ago(store, hours), store.0.records.len());
    let repository = tag.rsplit_once(':').unwrap().0;
    store.record("k8s.io", tag, name, Labels::default());
    for reference in [format!("{repository}@{}", digest(name)), digest(&format!("{name}.config")).to_string()] {
        if !store.0.records.iter().any(|row| *row.name == *reference) {
            store.record("k8s.io", &reference, name, Labels::default());
        }
    }
    store.0.records[from..].iter_mut().for_each(|row| (row.created, row.updated) = (Some(at), Some(at)));
    add_label(store, name, SOURCE, "app");
}

fn add_label(store: &mut Store, blob: &str, key: &str, value: &str) {
    let row = store.0.blobs.iter_mut().find(|row| row.digest == digest(blob)).unwrap();
    row.labels = row.labels.iter().chain([(key, value)]).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
}

fn label_record(store: &mut Store, name: &str, key: &str, value: &str) {
    let row = store.0.records.iter_mut().find(|row| *row.name == *name).unwrap();
    row.labels = labels(&[(key, value)]);
}

fn policy() -> Policy {
    Policy { block: 1, ..Policy::default() }
}

fn first_name(model: &Model, records: &[NodeId]) -> String {
    match model.node(records[0]) {
        Node::Record(row) => row.name.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The labels of all images: none.
fn unlabelled(model: &Model) -> BTreeMap<NodeId, Labels> {
    let records: Vec<NodeId> = model.nodes(NodeKind::Record).collect();
    model.configs(&records).into_iter().map(|config| (config, Labels::default())).collect()
}

fn chosen(model: &Model, policy: &Policy) -> Vec<String> {
    let selection = model.selection(policy, &unlabelled(model));
    selection.chosen.iter().map(|chosen| tag(model, &chosen.image.records)).collect()
}

/// The first tag among records.
fn tag(model: &Model, records: &[NodeId]) -> String {
    let is_name = |record: &&NodeId| !model.record_kind(**record).is_hash_reference();
    records.iter().find(is_name).map_or_else(|| first_name(model, records), |name| first_name(model, &[*name]))
}

fn why(model: &Model, policy: &Policy, name: &str) -> Spare {
    let selection = model.selection(policy, &unlabelled(model));
    let spared = selection.kept.into_iter().find(|spared| tag(model, &spared.image.records) == name);
    spared.unwrap_or_else(|| panic!("{name} is not kept")).why
}

/// Three releases, a day apart, of one base.
fn releases() -> Store {
    let mut store = Store::new();
    for (n, hours) in [(1, 72), (2, 48), (3, 24)] {
        let (name, own) = (format!("m{n}"), format!("own{n}"));
        pulled(&mut store, &format!("r.example/app:v{n}"), &name, &["base", &own], hours);
    }
    store
}

#[test]
fn what_is_unused_goes_whole_least_recently_used_first() {
    let store = releases();
    let model = store.model();
    let selection = model.selection(&policy(), &BTreeMap::new());
    let names: Vec<String> = selection.chosen.iter().map(|c| tag(&model, &c.image.records)).collect();
    assert_eq!(names, ["r.example/app:v1", "r.example/app:v2", "r.example/app:v3"]);
    assert!(selection.chosen.iter().all(|chosen| chosen.image.records.len() == 3));
    // The base goes with the last of them.
    let frees: Vec<u64> = selection.chosen.iter().map(|chosen| chosen.frees).collect();
    assert_eq!(frees, [1_115, 1_115, 1_115 + 1_100]);
}

#[test]
fn what_is_used_pinned_or_leased_stays() {
    let mut store = releases();
    store.snapshot("web", Some("base/own1"), 7, Labels::default()).container("web-1", "r.example/app:v1", "web");
    label_record(&mut store, digest("m2.config").as_str(), PINNED, "pinned");
    store.lease("pulling", Labels::default(), vec![Resource::Content(digest("m3"))]);
    let model = store.model();
    assert_eq!(chosen(&model, &policy()), [""; 0]);
    assert!(matches!(why(&model, &policy(), "r.example/app:v1"), Spare::InUse(users) if users.len() == 1));
    assert!(matches!(why(&model, &policy(), "r.example/app:v2"), Spare::Pinned(_)));
    assert!(matches!(why(&model, &policy(), "r.example/app:v3"), Spare::Held(_)));
}

#[test]
fn what_a_kept_file_system_stands_on_stays_without_a_container() {
    let mut store = releases();
    pulled(&mut store, "r.example/base:1", "m0", &["base"], 100);
    store.snapshot("stopped", Some("base/own1"), 7, Labels::default());
    store.snapshot("by hand", Some("base/own2"), 7, Labels::default());
    assert_eq!(chosen(&store.model(), &policy()).len(), 4, "nobody keeps it");
    let listed = vec![Resource::Snapshot { snapshotter: "overlayfs".into(), key: "stopped".into() }];
    store.lease("of a stopped container", Labels::default(), listed);
    store.0.snapshots.last_mut().unwrap().labels = labels(&[("containerd.io/gc.root", "")]);
    assert_eq!(chosen(&store.model(), &policy()).len(), 4, "what is committed is a layer");
    let by_name = |row: &&mut SnapshotRow| ["stopped", "by hand"].contains(&&*row.key);
    store.0.snapshots.iter_mut().filter(by_name).for_each(|row| row.kind = SnapshotKind::Active);
    let model = store.model();
    assert_eq!(chosen(&model, &policy()), ["r.example/base:1", "r.example/app:v3"], "a layer that is shared is no use");
    assert!(matches!(why(&model, &policy(), "r.example/app:v1"), Spare::Held(by) if model.kind(by) == NodeKind::Lease));
    assert!(
        matches!(why(&model, &policy(), "r.example/app:v2"), Spare::Held(by) if model.kind(by) == NodeKind::Snapshot)
    );
}

#[test]
fn a_last_copy_stays_unless_that_was_said() {
    let mut store = releases();
    store.image("built", &["base", "made"]).record("k8s.io", "built:1", "built", Labels::default());
    // It came from a repository that has it no more.
    add_label(&mut store, "m1", "io.orlop.gone.r.example", "app");
    let model = store.model();
    assert_eq!(chosen(&model, &policy()), ["r.example/app:v2", "r.example/app:v3"]);
    assert!(matches!(why(&model, &policy(), "r.example/app:v1"), Spare::LastCopy(_)));
    assert!(matches!(why(&model, &policy(), "built:1"), Spare::LastCopy(_)));
    let told = Policy { last_copies: true, ..policy() };
    assert_eq!(chosen(&model, &told).len(), 4);
    // Pulled again, from elsewhere or into another namespace.
    add_label(&mut store, "m1", "containerd.io/distribution.source.mirror.example", "app");
    store.blob("other", "built", 1, labels(&[(SOURCE, "app")]));
    assert_eq!(chosen(&store.model(), &policy()).len(), 4);
}

#[test]
fn a_use_is_what_records_and_snapshots_tell() {
    let mut store = releases();
    let week = Policy { unused_since: Some(SignedDuration::from_hours(36)), ..policy() };
    assert_eq!(chosen(&store.model(), &week), ["r.example/app:v1", "r.example/app:v2"]);
    // Unpacked an hour ago; and used, as a label says.
    let at = ago(&store, 1);
    let top = store.0.snapshots.iter_mut().find(|row| &*row.key == "base/own1").unwrap();
    top.created = Some(at);
    let model = store.model();
    assert!(matches!(why(&model, &week, "r.example/app:v1"), Spare::Recent(last) if last.sign == Sign::Snapshot));
    let top = store.0.snapshots.iter_mut().find(|row| &*row.key == "base/own1").unwrap();
    top.created = None;
    top.labels = labels(&[("containerd.io/gc.cond.value-usedat.node", &at.to_string())]);
    let model = store.model();
    assert!(matches!(why(&model, &week, "r.example/app:v1"), Spare::Recent(last) if last.sign == Sign::Label));
    // What nothing tells of is not taken for old.
    store.0.records.iter_mut().for_each(|row| (row.created, row.updated) = (None, None));
    assert_eq!(why(&store.model(), &week, "r.example/app:v2"), Spare::UseUnknown);
}

#[test]
fn the_newest_names_of_each_repository_stay_and_keep_their_images() {
    let mut store = releases();
    pulled(&mut store, "r.example/other:1", "o", &["o"], 500);
    // Another name of the oldest, which is the newest of its own repository.
    pulled(&mut store, "mirror.example/app:v1", "m1", &["base", "own1"], 72);
    let last = |n| Policy { keep_last: Some(n), ..policy() };
    let model = store.model();
    assert_eq!(chosen(&model, &last(1)), ["r.example/app:v2"]);
    assert!(matches!(why(&model, &last(1), "r.example/other:1"), Spare::AmongLast(_)));
    store.0.records.retain(|row| !row.name.starts_with("mirror.example"));
    let model = store.model();
    assert_eq!(chosen(&model, &last(1)), ["r.example/app:v1", "r.example/app:v2"]);
    assert_eq!(chosen(&model, &last(2)), ["r.example/app:v1"]);
    assert_eq!(chosen(&model, &last(9)), [""; 0]);
    // Written at the same time: versions are compared as people count.
    pulled(&mut store, "r.example/app:v10", "m10", &["base", "own10"], 24);
    assert_eq!(chosen(&store.model(), &last(1)), ["r.example/app:v1", "r.example/app:v2", "r.example/app:v3"]);
    // An image that only its ID names is of no repository.
    store.image("n", &["n"]).record("k8s.io", digest("n.config").as_str(), "n", Labels::default());
    assert_eq!(why(&store.model(), &last(1), digest("n.config").as_str()), Spare::NoRepository);
}

#[test]
fn repositories_labels_and_missing_tags_narrow_it_down() {
    let mut store = releases();
    pulled(&mut store, "docker.io/library/tool:1", "t", &["t"], 10);
    pulled(&mut store, "r.example/tool:1", "t", &["t"], 10);
    let of = |pattern: &str| Policy { repositories: vec![Pattern::new(pattern)], ..policy() };
    let model = store.model();
    assert_eq!(chosen(&model, &of("r.example/app")).len(), 3);
    assert!(matches!(why(&model, &of("tool"), "docker.io/library/tool:1"), Spare::OtherRepository(_)), "both names");
    let both = Policy { repositories: ["tool", "r.example/t*"].map(Pattern::new).to_vec(), ..policy() };
    assert_eq!(chosen(&model, &both), ["docker.io/library/tool:1"]);
    let rule =
        |key: &str, value: Option<&str>, wanted| LabelRule { key: key.into(), value: value.map(str::to_owned), wanted };
    label_record(&mut store, "r.example/app:v1", "keep", "yes");
    let model = store.model();
    let with = |rules: &[LabelRule]| Policy { labels: rules.to_vec(), ..policy() };
    assert_eq!(chosen(&model, &with(&[rule("keep", None, true)])), ["r.example/app:v1"]);
    assert_eq!(chosen(&model, &with(&[rule("keep", Some("no"), true)])), [""; 0]);
    assert_eq!(chosen(&model, &with(&[rule("keep", Some("yes"), false)])).len(), 3);
    assert_eq!(
        why(&model, &with(&[rule("keep", None, false), rule("x", None, true)]), "r.example/app:v1"),
        Spare::Label(0)
    );
    // Labels of the image itself count as those of its records.
    let config = model.blob(0, &digest("m2.config")).unwrap();
    let of_images = BTreeMap::from([(config, labels(&[("tier", "test")]))]);
    let selection = model.selection(&with(&[rule("tier", Some("test"), true)]), &of_images);
    assert_eq!(selection.chosen.len(), 1);
    assert!(selection.kept.iter().all(|spared| spared.why == Spare::LabelsUnknown), "what is not known is not taken");
    let selection = model.selection(&with(&[rule("tier", None, false)]), &of_images);
    assert_eq!((selection.chosen.len(), &selection.kept[0].why), (0, &Spare::LabelsUnknown));
    let untagged = Policy { untagged: true, ..policy() };
    assert_eq!(chosen(&model, &untagged), [""; 0]);
    store.0.records.retain(|row| &*row.name != "r.example/app:v1");
    assert_eq!(chosen(&store.model(), &untagged).len(), 1);
}

#[test]
fn a_number_of_bytes_takes_no_image_more_than_it_needs_and_none_that_helps_nothing() {
    let mut store = releases();
    // The oldest of all, of which an image that stays has everything but ten and five bytes that another namespace has too.
    pulled(&mut store, "r.example/app:v0", "m0", &["base", "own3"], 100);
    store.blob("other", "m0", 10, Labels::default()).blob("other", "m0.config", 5, Labels::default());
    store.record("other", "a", "m0", Labels::default()).record("other", "b", "m0.config", Labels::default());
    label_record(&mut store, "r.example/app:v3", PINNED, "pinned");
    let model = store.model();
    let free = |bytes| Policy { free: Some(bytes), ..policy() };
    assert_eq!(chosen(&model, &free(0)), [""; 0]);
    assert_eq!(chosen(&model, &free(1)), ["r.example/app:v1"]);
    assert_eq!(why(&model, &free(1), "r.example/app:v0"), Spare::FreesNothing);
    assert_eq!(why(&model, &free(1), "r.example/app:v2"), Spare::Enough);
    assert_eq!(chosen(&model, &free(1_115)), ["r.example/app:v1"]);
    assert_eq!(chosen(&model, &free(1_116)), ["r.example/app:v1", "r.example/app:v2"]);
    assert_eq!(chosen(&model, &free(u64::MAX)), ["r.example/app:v1", "r.example/app:v2"]);
    assert_eq!(chosen(&model, &Policy { block: 4096, ..free(2_230) }), ["r.example/app:v1"], "in whole blocks");
}

#[test]
fn what_a_flat_lease_lists_stays_and_what_points_at_a_record_brings_nothing_back() {
    let frees = |store: &Store| {
        let model = store.model();
        let selection = model.selection(&policy(), &BTreeMap::new());
        let records: Vec<NodeId> = selection.chosen.iter().flat_map(|c| c.image.records.clone()).collect();
        let frees: Vec<u64> = selection.chosen.iter().map(|chosen| chosen.frees).collect();
        assert_eq!(model.removal(&records).freed.bytes(), frees.iter().sum::<u64>());
        frees
    };
    let mut store = releases();
    // The config itself stays, and nothing that its labels name.
    let listed = vec![Resource::Content(digest("m1.config"))];
    store.lease("flat", labels(&[("containerd.io/gc.flat", "")]), listed);
    assert_eq!(frees(&store), [1_110, 1_115, 2_215]);
    // The newest names the oldest, which goes before it.
    let mut store = releases();
    add_label(&mut store, "m3", "containerd.io/gc.ref.image", "r.example/app:v1");
    assert_eq!(frees(&store), [1_115, 1_115, 2_215]);
}

#[test]
fn images_of_one_index_go_together_or_not_at_all() {
    let mut store = Store::new();
    store.image("amd", &["a"]).image("arm", &["b"]);
    let named = [
        ("containerd.io/gc.ref.content.m.0", digest("amd").to_string()),
        ("containerd.io/gc.ref.content.m.1", digest("arm").to_string()),
    ];
    store.blob("k8s.io", "index", 3, named.into_iter().collect());
    for name in ["r.example/app:1", digest("amd.config").as_str(), digest("arm.config").as_str()] {
        store.record("k8s.io", name, "index", Labels::default());
    }
    label_record(&mut store, digest("arm.config").as_str(), PINNED, "pinned");
    let told = Policy { last_copies: true, ..policy() };
    assert_eq!(chosen(&store.model(), &told), [""; 0]);
    label_record(&mut store, digest("arm.config").as_str(), "x", "y");
    let model = store.model();
    let selection = model.selection(&told, &BTreeMap::new());
    assert_eq!((selection.chosen.len(), selection.chosen[0].image.records.len()), (1, 3));
}

#[derive(Debug, Clone)]
struct Item {
    layers: Vec<u8>,
    hours: Option<i64>,
    repository: u8,
    pinned: bool,
    used: bool,
    leased: bool,
    sourced: bool,
    elsewhere: bool,
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let rare = proptest::bool::weighted(0.15);
    let item = (
        proptest::collection::vec(0..5_u8, 1..4),
        proptest::option::weighted(0.9, 0..200_i64),
        0..2_u8,
        (rare, rare, rare, proptest::bool::weighted(0.8), rare),
    );
    let item = item.prop_map(|(layers, hours, repository, (pinned, used, leased, sourced, elsewhere))| Item {
        layers,
        hours,
        repository,
        pinned,
        used,
        leased,
        sourced,
        elsewhere,
    });
    proptest::collection::vec(item, 0..8)
}

fn layer_name(n: u8) -> String {
    format!("l{n}")
}

fn chain(item: &Item, height: usize) -> String {
    item.layers[..height].iter().map(|n| layer_name(*n)).collect::<Vec<_>>().join("/")
}

fn name_of(n: usize, item: &Item) -> String {
    format!("r.example/app{}:{n}", item.repository)
}

fn random_store(items: &[Item]) -> Store {
    let mut store = Store::new();
    for (n, item) in items.iter().enumerate() {
        let (manifest, names) = (format!("m{n}"), item.layers.iter().map(|n| layer_name(*n)).collect::<Vec<_>>());
        let layers: Vec<&str> = names.iter().map(String::as_str).collect();
        store.image(&manifest, &layers);
        let pin = if item.pinned { labels(&[(PINNED, "pinned")]) } else { Labels::default() };
        store.record("k8s.io", &name_of(n, item), &manifest, pin);
        let hours = item.hours.map(|hours| ago(&store, hours));
        store.0.records.last_mut().unwrap().updated = hours;
        let parts = || [manifest.clone(), format!("{manifest}.config")].into_iter().chain(names.clone());
        if item.sourced {
            add_label(&mut store, &manifest, SOURCE, "app");
        }
        if item.elsewhere {
            let other = store.0.namespace("other");
            for part in parts() {
                let row = store.0.blobs.iter().find(|row| row.digest == digest(&part)).unwrap().clone();
                if !store.0.blobs.iter().any(|b| b.namespace == other && b.digest == row.digest) {
                    let kept: Labels = row.labels.iter().filter(|(key, _)| !key.contains("source")).collect();
                    store.0.blobs.push(BlobRow { namespace: other, labels: kept, ..row });
                }
            }
            store.record("other", &format!("o{n}"), &manifest, Labels::default());
        }
        if item.used {
            let key = format!("web{n}");
            store.snapshot(&key, Some(&chain(item, layers.len())), 7, Labels::default());
            store.container(&format!("c{n}"), &name_of(n, item), &key);
        }
        if item.leased {
            store.lease(&format!("lease{n}"), Labels::default(), vec![Resource::Content(digest(&manifest))]);
        }
    }
    // Each layer has a size of its own.
    for n in 0..5_u8 {
        let of_layer = |row: &&mut BlobRow| row.digest == digest(&layer_name(n));
        store.0.blobs.iter_mut().filter(of_layer).for_each(|row| row.size = 100 << n);
    }
    store
}

/// What is on disk by hand if some images have gone.
fn on_disk(items: &[Item], gone: &BTreeSet<usize>) -> u64 {
    let mut kept: BTreeMap<String, u64> = BTreeMap::new();
    let blobs = |n: usize, item: &Item| {
        let own = [(format!("m{n}"), 10), (format!("m{n}.config"), 5)];
        own.into_iter().chain(item.layers.iter().map(|l| (layer_name(*l), 100 << l))).collect::<Vec<_>>()
    };
    for (n, item) in items.iter().enumerate() {
        let stays = !gone.contains(&n) || item.leased;
        if stays || item.elsewhere {
            kept.extend(blobs(n, item));
        }
        if stays || item.used {
            kept.extend((1..=item.layers.len()).map(|height| (format!("snapshot {}", chain(item, height)), 1_000)));
        }
    }
    kept.values().sum()
}

fn numbers(model: &Model, selection: &Selection) -> Vec<usize> {
    let number = |records: &[NodeId]| tag(model, records).rsplit_once(':').unwrap().1.parse().unwrap();
    selection.chosen.iter().map(|chosen| number(&chosen.image.records)).collect()
}

proptest! {
    #[test]
    fn what_goes_is_what_a_recount_takes(
        items in items(),
        since in proptest::option::of(1..200_i64),
        last in proptest::option::of(1..4_usize),
        last_copies in any::<bool>(),
    ) {
        let model = random_store(&items).model();
        let policy = Policy { unused_since: since.map(SignedDuration::from_hours), keep_last: last, last_copies, ..policy() };
        let selection = model.selection(&policy, &BTreeMap::new());
        prop_assert_eq!(selection.chosen.len() + selection.kept.len(), items.len());
        let same_layers = |item: &Item| items.iter().any(|other| other.used && other.layers == item.layers);
        let place = |n: usize, item: &Item| {
            let newer = |m: usize, other: &Item| {
                other.repository == item.repository && (other.hours.is_some() && other.hours < item.hours || other.hours == item.hours && m > n)
            };
            items.iter().enumerate().filter(|(m, other)| newer(*m, other)).count()
        };
        let goes = |n: usize, item: &Item| {
            let shielded = item.pinned || item.leased || same_layers(item);
            let old = since.is_none_or(|since| item.hours.is_some_and(|hours| hours >= since));
            let among = last.is_some_and(|last| item.hours.is_none() || place(n, item) < last);
            let lost = !last_copies && !item.sourced;
            !shielded && old && !among && !lost
        };
        let expected: BTreeSet<usize> = (0..items.len()).filter(|n| goes(*n, &items[*n])).collect();
        let taken = numbers(&model, &selection);
        prop_assert_eq!(taken.iter().copied().collect::<BTreeSet<_>>(), expected);
        let uses: Vec<_> = taken.iter().map(|n| items[*n].hours.map_or(i64::MIN, |hours| hours)).collect();
        prop_assert!(uses.is_sorted_by(|a, b| a >= b), "least recently used first: {:?}", uses);
    }

    #[test]
    fn a_number_of_bytes_is_reached_and_not_without_the_last_image(items in items(), part in 0..130_u64) {
        let model = random_store(&items).model();
        let all = model.selection(&policy(), &BTreeMap::new());
        let before = on_disk(&items, &BTreeSet::new());
        let possible = before - on_disk(&items, &numbers(&model, &all).into_iter().collect());
        prop_assert_eq!(all.chosen.iter().map(|c| c.frees).sum::<u64>(), possible);
        let wanted = possible * part / 100;
        let selection = model.selection(&Policy { free: Some(wanted), ..policy() }, &BTreeMap::new());
        let taken = numbers(&model, &selection);
        let freed = |taken: &[usize]| before - on_disk(&items, &taken.iter().copied().collect());
        prop_assert!(freed(&taken) >= wanted.min(possible));
        if let Some((_, rest)) = taken.split_last() {
            prop_assert!(freed(rest) < wanted, "{:?} would do", rest);
        }
        prop_assert_eq!(selection.chosen.iter().map(|c| c.frees).sum::<u64>(), freed(&taken));
        // The plan is of the same bytes, and of no other records.
        let records: BTreeSet<NodeId> = selection.chosen.iter().flat_map(|c| c.image.records.clone()).collect();
        let removal = model.removal(&records.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(removal.freed.bytes() - removal.garbage.bytes(), freed(&taken));
        prop_assert_eq!(removal.records.into_iter().collect::<BTreeSet<_>>(), records);
        prop_assert!(taken.iter().all(|n| numbers(&model, &all).contains(n)));
    }
}
