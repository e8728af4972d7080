//! What goes when names go.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::{NAMESPACES, NS, Store, digest, two_images};
use orlop_graph::{Held, InUse, Manifest, PlanError, PlanRequest, Why};
use orlop_oci::{ChainId, Digest, Platform, PlatformMatcher};
use proptest::prelude::*;

/// A plan in words.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    records: Vec<String>,
    returns: Vec<(String, String)>,
    blobs: BTreeSet<Digest>,
    snapshots: usize,
    bytes: u64,
    in_use: Vec<(String, usize, u64)>,
    shared: u64,
}

fn request(store: &Store, namespace: &str, names: &[&str], managed: bool) -> Result<Plan, PlanError> {
    let plan = store.graph(PlatformMatcher::all()).plan(&PlanRequest { namespace, names, managed })?;
    let name = |r: usize| store.records[r].1.clone();
    let why = |why| match why {
        Why::Name(name) => format!("name {name}"),
        Why::Pinned(name) => format!("pin {name}"),
        Why::Holder(name) => name,
    };
    Ok(Plan {
        records: plan.records.iter().map(|r| name(*r)).collect(),
        returns: plan.returns.into_iter().map(|r| (name(r.record), why(r.why))).collect(),
        blobs: plan.blobs.into_iter().map(|(d, _)| d).collect(),
        snapshots: plan.snapshots.len(),
        bytes: plan.bytes,
        in_use: plan.in_use.into_iter().map(|InUse { holder, objects, bytes }| (holder, objects, bytes)).collect(),
        shared: plan.shared,
    })
}

fn plan(store: &Store, names: &[&str]) -> Plan {
    request(store, NS, names, true).unwrap()
}

fn a_digest() -> String {
    format!("docker.io/library/a@{}", digest("a"))
}

#[test]
fn the_last_name_takes_its_hash_references_along() {
    let store = two_images();
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(plan.records, ["docker.io/library/a:1", &a_digest(), &store.id(&digest("a"))]);
    assert_eq!(plan.returns, []);
    assert_eq!(plan.blobs, BTreeSet::from(["a", "config of a", "a1"].map(digest)));
    assert_eq!((plan.snapshots, plan.bytes, plan.shared), (1, 10 + 5 + 50 + 100, 1000 + 100));
}

#[test]
fn outside_of_managed_namespaces_only_the_name_goes() {
    let store = two_images();
    let plan = request(&store, NS, &["docker.io/library/a:1"], false).unwrap();
    assert_eq!(plan.records, ["docker.io/library/a:1"]);
    assert_eq!((plan.bytes, plan.shared), (0, 1065 + 200));
    let all = ["docker.io/library/a:1", &a_digest(), &store.id(&digest("a"))];
    assert_eq!(request(&store, NS, &all, false).unwrap().bytes, 165);
}

#[test]
fn one_of_two_names_frees_nothing() {
    let mut store = two_images();
    store.record(NS, "docker.io/library/a:2", &digest("a"));
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(plan.records, ["docker.io/library/a:1"]);
    assert_eq!((plan.bytes, plan.returns.len()), (0, 0));
}

#[test]
fn the_last_name_of_a_repository_takes_its_digest_along() {
    let mut store = two_images();
    store.pulled(NS, "quay.io/x/a:1", &digest("a"), &digest("a"));
    let plan = plan(&store, &["quay.io/x/a:1"]);
    assert_eq!(plan.records, ["quay.io/x/a:1".to_owned(), format!("quay.io/x/a@{}", digest("a"))]);
    assert_eq!(plan.bytes, 0);
}

#[test]
fn a_hash_reference_that_a_name_needs_returns() {
    let store = two_images();
    let id = store.id(&digest("a"));
    let plan = plan(&store, &[&a_digest(), &id]);
    assert_eq!(plan.records, [a_digest(), id.clone()]);
    let why = "name docker.io/library/a:1".to_owned();
    assert_eq!(plan.returns, [(a_digest(), why.clone()), (id, why)]);
    assert_eq!((plan.bytes, plan.blobs.len()), (0, 0));
    // All three at once: nothing is left that needs them.
    let all = ["docker.io/library/a:1", &a_digest(), &store.id(&digest("a"))];
    let plan = self::plan(&store, &all);
    assert_eq!((plan.returns.len(), plan.bytes), (0, 165));
}

#[test]
fn what_was_asked_for_by_digest_is_a_name() {
    let mut store = two_images();
    store.wanted.push(a_digest());
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(plan.records, ["docker.io/library/a:1"]);
    assert_eq!(plan.bytes, 0);
    let both = self::plan(&store, &["docker.io/library/a:1", &a_digest()]);
    assert_eq!((both.records.len(), both.bytes), (3, 165));
}

#[test]
fn stranded_hash_references_go_when_they_are_named() {
    let mut store = two_images();
    store.records[0].2 = digest("b");
    let id = store.id(&digest("a"));
    // Nothing needs them, and removing one takes the other along: no name is left.
    let plan = plan(&store, &[&id]);
    assert_eq!(plan.records, [a_digest(), id]);
    assert_eq!((plan.returns.len(), plan.bytes), (0, 165));
}

#[test]
fn a_container_keeps_hash_references_and_snapshots() {
    let mut store = two_images();
    let id = store.id(&digest("a"));
    store.hold("container web", NS, Held::Record(id.clone()));
    let removed = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(removed.records, ["docker.io/library/a:1"]);
    assert_eq!(removed.bytes, 0);
    let named = plan(&store, &["docker.io/library/a:1", &id]);
    assert_eq!(named.returns, [(id, "container web".to_owned())]);
    assert_eq!(named.bytes, 0);

    // All three at once: both hash references return, and hold the image.
    let all = plan(&store, &["docker.io/library/a:1", &a_digest(), &store.id(&digest("a"))]);
    assert_eq!((all.returns.len(), all.bytes), (2, 0));

    // The same container by its snapshot only.
    let mut store = two_images();
    let top = store.summaries[&digest("a")].chain[1].clone();
    store.hold("container web", NS, Held::Chain(top));
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(plan.in_use, [("container web".to_owned(), 1, 100)]);
    assert_eq!((plan.snapshots, plan.bytes), (0, 65));
}

#[test]
fn a_lease_keeps_what_it_reaches() {
    let mut store = two_images();
    store.hold("lease x", NS, Held::Blob(digest("a1")));
    store.hold("lease x", NS, Held::Blob(digest("config of a")));
    let part = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(part.in_use, [("lease x".to_owned(), 2, 55)]);
    assert_eq!(part.bytes, 10 + 100);
    store.hold("lease y", NS, Held::Blob(digest("a")));
    let whole = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(whole.in_use, [("lease x".to_owned(), 2, 55), ("lease y".to_owned(), 4, 165)]);
    assert_eq!(whole.bytes, 0);
}

#[test]
fn pins() {
    let mut store = two_images();
    store.pulled(NS, "quay.io/x/a:1", &digest("a"), &digest("a"));
    store.pinned.push("quay.io/x/a:1".to_owned());
    // The pin is on another name: this name goes, its digest stays since the pin keeps the image as it is.
    assert_eq!(plan(&store, &["docker.io/library/a:1"]).records, ["docker.io/library/a:1"]);

    // CRI writes the pin on all three records; it goes with the name.
    let mut store = two_images();
    store.pinned.extend(["docker.io/library/a:1".to_owned(), a_digest(), store.id(&digest("a"))]);
    assert_eq!(plan(&store, &["docker.io/library/a:1"]).bytes, 165);
    // A pinned image known by hash references only keeps them.
    store.records.remove(0);
    let id = store.id(&digest("a"));
    let kept = plan(&store, &[&id]);
    assert_eq!(kept.returns, [(id, format!("pin {}", a_digest()))]);
    assert_eq!(kept.bytes, 0);
}

#[test]
fn another_namespace_keeps_the_blobs() {
    let mut store = two_images();
    store.record("moby", "docker.io/library/a:1", &digest("a"));
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!((plan.records.len(), plan.blobs.len(), plan.bytes), (3, 0, 100));
}

#[test]
fn an_id_record_of_a_target_that_goes_holds_nothing() {
    let mut store = two_images();
    let mut summary = store.summaries[&digest("a")].clone();
    summary.layers[1] = (digest("a1 as zstd"), 44);
    store.blobs.insert(digest("a1 as zstd"), 44);
    let other = store.document("a with zstd", summary);
    store.record(NS, "quay.io/x/a:zstd", &other);
    // The ID stays for the sake of the other name, and will point at what that points at.
    let plan = plan(&store, &["docker.io/library/a:1"]);
    assert_eq!(plan.records, ["docker.io/library/a:1".to_owned(), a_digest()]);
    assert_eq!(plan.blobs, BTreeSet::from([digest("a"), digest("a1")]));
}

#[test]
fn unknown_names_are_refused() {
    let store = two_images();
    let error = request(&store, NS, &["docker.io/library/a:1", "nope"], true).unwrap_err();
    assert_eq!(error.to_string(), "no image record \"nope\" in namespace \"k8s.io\"");
    assert!(request(&store, "moby", &["docker.io/library/a:1"], true).is_err());
}

/// A store of a few images over a few layers, with everything that can tangle them.
fn store() -> impl Strategy<Value = Store> {
    let image = (proptest::collection::vec(0usize..6, 0..4), 0usize..4, any::<bool>(), any::<bool>());
    let record = (0usize..12, 0usize..5, any::<bool>());
    (
        proptest::collection::vec(image, 1..6),
        proptest::collection::vec(record, 0..12),
        proptest::collection::vec(0usize..40, 0..4),
        proptest::collection::vec((0usize..40, any::<bool>()), 0..3),
        proptest::collection::vec((0usize..40, 0usize..2), 0..4),
    )
        .prop_map(|(images, records, missing, held, hidden)| {
            let mut store = tangle(&images, &records, &missing, &held);
            let all: Vec<Digest> = store.blobs.keys().cloned().collect();
            let hide =
                |(which, namespace): (usize, usize)| (NAMESPACES[namespace].to_owned(), all[which % all.len()].clone());
            store.hidden = hidden.into_iter().filter(|_| !all.is_empty()).map(hide).collect();
            store
        })
}

type ImageSpec = (Vec<usize>, usize, bool, bool);

fn tangle(images: &[ImageSpec], records: &[(usize, usize, bool)], missing: &[usize], held: &[(usize, bool)]) -> Store {
    let mut store = Store::default();
    let layers: Vec<(String, u64)> = (0..6).map(|i| (format!("layer {i}"), 1 << (10 + i))).collect();
    let mut targets = Vec::new();
    for (i, (stack, platform, indexed, unpacked)) in images.iter().enumerate() {
        let stack: Vec<(&str, u64)> = stack.iter().map(|l| (layers[*l].0.as_str(), layers[*l].1)).collect();
        let platform = ["linux/amd64", "linux/arm64", "linux/386", "unknown/unknown"][*platform];
        let manifest = store.manifest(&format!("image {i}"), platform, &stack);
        if *unpacked {
            store.unpack(if i % 2 == 0 { NS } else { "moby" }, &manifest);
        }
        let previous = targets.last().cloned();
        targets.push((manifest.clone(), manifest.clone()));
        if *indexed {
            let children: Vec<&Digest> = std::iter::once(&manifest).chain(previous.as_ref().map(|(t, _)| t)).collect();
            targets.push((store.index(&format!("index {i}"), &children), manifest));
        }
    }
    for (target, name, in_moby) in records {
        let (target, image) = targets[target % targets.len()].clone();
        let name =
            ["docker.io/library/a:1", "docker.io/library/a:2", "quay.io/x/y:1", "odd", "docker.io/library/b:1"][*name];
        let namespace = if *in_moby { "moby" } else { NS };
        if store.records.iter().any(|r| r.0 == namespace && r.1 == name) {
            continue;
        }
        if name == "odd" {
            store.record(namespace, name, &target)
        } else {
            store.pulled(namespace, name, &target, &image)
        }
    }
    let all: Vec<Digest> = store.blobs.keys().cloned().collect();
    for m in missing {
        store.blobs.remove(&all[m % all.len()]);
    }
    for (i, (what, snapshot)) in held.iter().enumerate() {
        let (namespace, held) = match store.snapshots.get(what % store.snapshots.len().max(1)) {
            Some(s) if *snapshot => (s.namespace.clone(), Held::Chain(s.chain.clone())),
            _ => (NS.to_owned(), Held::Blob(all[what % all.len()].clone())),
        };
        store.hold(&format!("holder {i}"), &namespace, held);
    }
    store
}

type Alive = (BTreeSet<Digest>, BTreeSet<(String, ChainId)>);

/// Everything that records and holders keep, found the slow and obvious way.
fn naive(store: &Store, gone: &BTreeSet<usize>, holders: bool) -> Alive {
    let blob = |ns: &str, d: &Digest| format!("{ns} {d}");
    let snapshot = |ns: &str, c: &ChainId| format!("{ns} snapshot {c}");
    let is_unpacked = |ns: &str, c: &ChainId| store.snapshots.iter().any(|s| s.namespace == ns && s.chain == *c);
    let mut edges: Vec<(String, String)> = Vec::new();
    for ns in [NS, "moby"] {
        for (digest, m) in store.summaries.iter().filter(|(d, _)| store.has(ns, d)) {
            let children = m.layers.iter().map(|l| &l.0).chain(m.manifests.iter().map(|c| &c.0));
            for child in children.chain(m.image_id.iter().map(|i| i.digest())).filter(|c| store.has(ns, c)) {
                edges.push((blob(ns, digest), blob(ns, child)));
            }
            let top = m.chain.last().filter(|c| is_unpacked(ns, c));
            edges.extend(top.map(|c| (blob(ns, digest), snapshot(ns, c))));
        }
        for s in store.snapshots.iter().filter(|s| s.namespace == ns) {
            edges.extend(s.below.iter().map(|below| (snapshot(ns, &s.chain), snapshot(ns, below))));
        }
    }
    let mut alive: BTreeSet<String> = BTreeSet::new();
    let records = store.records.iter().enumerate().filter(|(i, r)| !gone.contains(i) && store.has(&r.0, &r.2));
    alive.extend(records.map(|(_, (ns, _, target))| blob(ns, target)));
    alive.extend(store.holders.iter().filter(|_| holders).filter_map(|h| match &h.held {
        Held::Blob(d) if store.has(&h.namespace, d) => Some(blob(&h.namespace, d)),
        Held::Chain(c) => Some(snapshot(&h.namespace, c)),
        _ => None,
    }));
    loop {
        let new = edges.iter().filter(|(a, b)| alive.contains(a) && !alive.contains(b));
        let more: Vec<String> = new.map(|e| e.1.clone()).collect();
        if more.is_empty() {
            break;
        }
        alive.extend(more);
    }
    let kept = |d: &&Digest| [NS, "moby"].iter().any(|ns| alive.contains(&blob(ns, d)));
    let blobs = store.blobs.keys().filter(kept).cloned().collect();
    let trees = store.snapshots.iter().filter(|s| alive.contains(&snapshot(&s.namespace, &s.chain)));
    (blobs, trees.map(|s| (s.namespace.clone(), s.chain.clone())).collect())
}

/// What `ctr` would count of a target.
fn listed_size(store: &Store, matcher: &PlatformMatcher, namespace: &str, target: &Digest) -> u64 {
    let known = |d: &Digest| store.summaries.get(d).filter(|_| store.has(namespace, d));
    let Some(top) = known(target) else { return 0 };
    let contents = |m: &Manifest| m.size + m.config_size + m.layers.iter().map(|l| l.1).sum::<u64>();
    if top.manifests.is_empty() {
        return contents(top);
    }
    let (mut leaves, mut open, mut seen) = (Vec::new(), vec![(target.clone(), None)], BTreeSet::new());
    while let Some((digest, platform)) = open.pop() {
        let Some(manifest) = known(&digest).filter(|_| seen.insert(digest.clone())) else { continue };
        match manifest.manifests.is_empty() {
            true => leaves.push((platform.or(manifest.platform.clone()), manifest)),
            false => open.extend(manifest.manifests.iter().rev().map(|(d, _, p)| (d.clone(), p.clone()))),
        }
    }
    let is_image = |(platform, m): &&(Option<Platform>, &Manifest)| {
        m.image_id.is_some() && !platform.as_ref().is_some_and(Platform::is_unknown)
    };
    let rank = |(platform, _): &&(Option<Platform>, &Manifest)| {
        platform.as_ref().and_then(|p| matcher.rank(p)).unwrap_or(usize::MAX)
    };
    top.size + leaves.iter().filter(is_image).min_by_key(rank).map_or(0, |(_, m)| contents(m))
}

fn bytes_of(store: &Store, (blobs, trees): &Alive) -> (u64, u64) {
    let snapshots = store.snapshots.iter().filter(|s| trees.contains(&(s.namespace.clone(), s.chain.clone())));
    (blobs.iter().map(|d| store.blobs[d]).sum(), snapshots.map(|s| s.bytes).sum())
}

proptest! {
    /// Listing records takes the short way: without images, sizes on disk, chains and snapshots.
    #[test]
    fn records_alone_say_what_the_whole_graph_says(store in store()) {
        let whole = store.graph(PlatformMatcher::host());
        let mut flat = store.clone();
        flat.snapshots.clear();
        flat.summaries.values_mut().for_each(|m| m.chain.clear());
        let records = flat.builder(PlatformMatcher::host()).build_records();
        prop_assert_eq!(records.len(), store.records.len());
        for (short, long) in records.iter().zip(whole.records().iter()) {
            prop_assert_eq!(short, long);
        }
        // An image is as incomplete and has the platforms as its records say.
        for image in whole.images() {
            let views = || image.records.iter().map(|r| records.get(*r));
            prop_assert_eq!(image.incomplete, views().any(|r| r.incomplete));
            prop_assert!(views().all(|r| r.image_id == image.image_id.as_ref() && r.namespace == &*image.namespace));
            let platforms: BTreeSet<_> = views().flat_map(|r| r.platforms).collect();
            prop_assert_eq!(platforms, image.platforms.iter().collect::<BTreeSet<_>>());
        }
    }

    /// As `ctr` counts: the target, the best manifest, its config and layers, found the slow and obvious way.
    #[test]
    fn listed_sizes_are_those_of_a_recount(store in store()) {
        let matcher = PlatformMatcher::host();
        let records = store.builder(matcher.clone()).build_records();
        for (view, (namespace, _, target)) in records.iter().zip(&store.records) {
            prop_assert_eq!(view.listed_size, listed_size(&store, &matcher, namespace, target));
        }
    }

    #[test]
    fn unique_bytes_and_each_shared_object_once_are_the_total(store in store()) {
        let graph = store.graph(PlatformMatcher::all());
        let unique: u64 = graph.images().iter().map(|r| r.sizes.unique).sum();
        let mut users: BTreeMap<(String, String), usize> = BTreeMap::new();
        for image in graph.images() {
            prop_assert_eq!(image.sizes.compressed + image.sizes.unpacked, image.sizes.shared + image.sizes.unique);
            let others: BTreeSet<usize> = (0..store.records.len()).filter(|r| !image.records.contains(r)).collect();
            let alone = naive(&store, &others, false);
            prop_assert_eq!((image.sizes.compressed, image.sizes.unpacked), bytes_of(&store, &alone));
            alone.0.iter().for_each(|d| *users.entry((String::new(), d.to_string())).or_default() += 1);
            alone.1.iter().for_each(|(ns, c)| *users.entry((ns.clone(), c.to_string())).or_default() += 1);
        }
        let is_shared = |ns: &str, name: String| users.get(&(ns.to_owned(), name)).is_some_and(|u| *u > 1);
        let blobs = store.blobs.iter().filter(|(d, _)| is_shared("", d.to_string())).map(|(_, size)| size);
        let trees = store.snapshots.iter().filter(|s| is_shared(&s.namespace, s.chain.to_string())).map(|s| &s.bytes);
        prop_assert_eq!(unique + blobs.chain(trees).sum::<u64>(), graph.total_bytes());
        let in_rows: usize = graph.images().iter().map(|r| r.records.len()).sum();
        prop_assert_eq!(in_rows, store.records.len());
    }

    #[test]
    fn a_plan_frees_exactly_what_nothing_else_reaches(store in store(), picks in proptest::collection::vec(0usize..40, 1..4)) {
        prop_assume!(!store.records.is_empty());
        let names: Vec<&str> = picks.iter().map(|p| store.records[p % store.records.len()].1.as_str()).collect();
        let namespace = store.records[picks[0] % store.records.len()].0.as_str();
        let graph = store.graph(PlatformMatcher::all());
        let Ok(plan) = graph.plan(&PlanRequest { namespace, names: &names, managed: false }) else {
            return Ok(());
        };
        let gone: BTreeSet<usize> = plan.records.iter().copied().collect();
        let asked: BTreeSet<&str> = names.iter().copied().collect();
        let planned: BTreeSet<&str> = plan.records.iter().map(|r| store.records[*r].1.as_str()).collect();
        prop_assert_eq!(asked, planned);
        let before = naive(&store, &BTreeSet::new(), true);
        let after = naive(&store, &gone, true);
        let freed: BTreeSet<Digest> = plan.blobs.iter().map(|(d, _)| d.clone()).collect();
        prop_assert_eq!(freed, before.0.difference(&after.0).cloned().collect::<BTreeSet<_>>());
        // A plan is about one namespace, so chain IDs alone tell its snapshots apart.
        let freed: BTreeSet<ChainId> = plan.snapshots.iter().map(|(c, _)| c.clone()).collect();
        prop_assert_eq!(freed, before.1.difference(&after.1).map(|(_, c)| c.clone()).collect::<BTreeSet<_>>());
        let (before, after) = (bytes_of(&store, &before), bytes_of(&store, &after));
        prop_assert_eq!(plan.bytes, before.0 + before.1 - after.0 - after.1);
    }

    /// After a removal in a managed namespace no image is held by hash references that no name needs, and what stays
    /// keeps all it had.
    #[test]
    fn a_managed_plan_leaves_nothing_stranded(store in store(), picks in proptest::collection::vec(0usize..40, 1..4)) {
        prop_assume!(!store.records.is_empty());
        let namespace = store.records[picks[0] % store.records.len()].0.as_str();
        let here: Vec<&str> = store.records.iter().filter(|r| r.0 == namespace).map(|r| r.1.as_str()).collect();
        let names: Vec<&str> = picks.iter().map(|p| here[p % here.len()]).collect();
        let graph = store.graph(PlatformMatcher::all());
        let plan = graph.plan(&PlanRequest { namespace, names: &names, managed: true }).unwrap();
        let is_name = |r: &usize| !graph.records().get(*r).kind.is_hash_reference();
        let back: BTreeSet<usize> = plan.returns.iter().map(|r| r.record).collect();
        let gone: BTreeSet<usize> = plan.records.iter().copied().filter(|r| !back.contains(r)).collect();
        for image in graph.images().iter().filter(|image| image.records.iter().any(|r| plan.records.contains(r))) {
            let left: Vec<usize> = image.records.iter().copied().filter(|r| !gone.contains(r)).collect();
            prop_assert!(left.is_empty() || left.iter().any(is_name), "stranded: {:?}", left);
        }
        for name in &names {
            let r = store.records.iter().position(|r| r.0 == namespace && r.1 == *name).unwrap();
            prop_assert!(plan.records.contains(&r));
            prop_assert!(!(back.contains(&r) && is_name(&r)), "only hash references return");
        }
        // What the remaining names reach is not in the plan.
        let others = |r: &usize| gone.contains(r) || !is_name(r);
        let (needed, _) = naive(&store, &(0..store.records.len()).filter(others).collect(), false);
        prop_assert!(plan.blobs.iter().all(|(d, _)| !needed.contains(d)));
    }
}
