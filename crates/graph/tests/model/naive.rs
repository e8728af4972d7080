//! Random stores against a recount that follows every edge until nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use orlop_graph::model::{Labels, Model, Node, NodeId, NodeKind, Resource};
use proptest::prelude::*;

use crate::store::{Store, digest};

/// Blob or snapshot, by a small number.
#[derive(Debug, Clone, Copy)]
enum Thing {
    Blob(u8),
    Snapshot(u8),
}

type Refs = Vec<(bool, Thing)>;

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Number, labels (whether backwards, and what they name), and whether it is a root.
    blobs: Vec<(u8, Refs, bool)>,
    parents: Vec<Option<u8>>,
    records: Vec<u8>,
    leases: Vec<(bool, Vec<Thing>)>,
}

const NAMES: u8 = 8;

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![(0..NAMES).prop_map(Thing::Blob), (0..NAMES).prop_map(Thing::Snapshot)]
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let refs = proptest::collection::vec((any::<bool>(), thing()), 0..3);
    let blobs = proptest::collection::vec((0..NAMES, refs, proptest::bool::weighted(0.1)), 0..8);
    let parents = proptest::collection::vec(proptest::option::of(0..NAMES), 0..usize::from(NAMES));
    let records = proptest::collection::vec(0..NAMES, 0..4);
    let leases = proptest::collection::vec((any::<bool>(), proptest::collection::vec(thing(), 0..3)), 0..2);
    (blobs, parents, records, leases).prop_map(|(blobs, parents, records, leases)| Plan {
        blobs,
        parents,
        records,
        leases,
    })
}

fn blob(n: u8) -> String {
    format!("b{n}")
}

fn key(n: u8) -> String {
    format!("s{n}")
}

pub(crate) fn store(plan: &Plan) -> Store {
    let mut store = Store::new();
    let mut made = BTreeSet::new();
    for (n, refs, root) in plan.blobs.iter().filter(|(n, ..)| made.insert(*n)) {
        let mut labels = Vec::new();
        for (at, (back, thing)) in refs.iter().enumerate() {
            let word = if *back { "bref" } else { "ref" };
            let (kind, value) = match thing {
                Thing::Blob(to) => (format!("content.{at}"), digest(&blob(*to)).to_string()),
                Thing::Snapshot(to) => (format!("snapshot.overlayfs/{at}"), key(*to)),
            };
            labels.push((format!("containerd.io/gc.{word}.{kind}"), value));
        }
        labels.extend(root.then(|| ("containerd.io/gc.root".to_owned(), String::new())));
        store.blob("k8s.io", &blob(*n), 1 << n, labels.into_iter().collect());
    }
    for (n, parent) in plan.parents.iter().enumerate() {
        // Parents lie below: no cycles among snapshots.
        let parent = parent.filter(|p| usize::from(*p) < n).map(key);
        store.snapshot(&key(n as u8), parent.as_deref(), 1 << (8 + n), Labels::default());
    }
    for (n, target) in plan.records.iter().enumerate() {
        store.record("k8s.io", &format!("r{n}"), &blob(*target), Labels::default());
    }
    for (n, (flat, things)) in plan.leases.iter().enumerate() {
        let resource = |thing: &Thing| match thing {
            Thing::Blob(n) => Resource::Content(digest(&blob(*n))),
            Thing::Snapshot(n) => Resource::Snapshot { snapshotter: "overlayfs".into(), key: key(*n).into() },
        };
        let labels = flat.then_some(("containerd.io/gc.flat", "")).into_iter().collect();
        store.lease(&format!("l{n}"), labels, things.iter().map(resource).collect());
    }
    store
}

/// Kept names by following edges until nothing changes, without `gone`.
fn kept(plan: &Plan, gone: &BTreeSet<String>) -> BTreeSet<String> {
    let name = |thing: &Thing| match thing {
        Thing::Blob(n) => blob(*n),
        Thing::Snapshot(n) => key(*n),
    };
    let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
    let mut below: BTreeMap<String, String> = BTreeMap::new();
    let mut made = BTreeSet::new();
    let mut kept: BTreeSet<String> = BTreeSet::new();
    for (n, refs, root) in plan.blobs.iter().filter(|(n, ..)| made.insert(*n)) {
        for (back, to) in refs {
            let (from, to) = if *back { (name(to), blob(*n)) } else { (blob(*n), name(to)) };
            edges.insert((from, to));
        }
        kept.extend(root.then(|| blob(*n)));
    }
    for (n, parent) in plan.parents.iter().enumerate() {
        if let Some(parent) = parent.filter(|p| usize::from(*p) < n) {
            edges.insert((key(n as u8), key(parent)));
            below.insert(key(n as u8), key(parent));
        }
    }
    for (n, target) in plan.records.iter().enumerate() {
        kept.insert(format!("r{n}"));
        edges.insert((format!("r{n}"), blob(*target)));
    }
    for (n, (flat, things)) in plan.leases.iter().enumerate() {
        kept.insert(format!("l{n}"));
        if !flat {
            edges.extend(things.iter().map(|t| (format!("l{n}"), name(t))));
        }
    }
    kept.retain(|name| !gone.contains(name));
    loop {
        let more: Vec<String> = edges
            .iter()
            .filter(|(from, to)| kept.contains(from) && !kept.contains(to) && !gone.contains(to))
            .map(|(_, to)| to.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        kept.extend(more);
    }
    let stays = |n: usize| !gone.contains(&format!("l{n}"));
    for (_, (_, things)) in plan.leases.iter().enumerate().filter(|(n, (flat, _))| *flat && stays(*n)) {
        for thing in things {
            let mut next = Some(name(thing)).filter(|t| !gone.contains(t));
            while let Some(at) = next {
                next = below.get(&at).filter(|t| !gone.contains(*t)).cloned();
                kept.insert(at);
            }
        }
    }
    kept
}

fn called(model: &Model, node: NodeId) -> String {
    match model.node(node) {
        Node::Record(row) => row.name.to_string(),
        Node::Blob(row) => (0..NAMES).map(blob).find(|name| digest(name) == row.digest).unwrap(),
        Node::Snapshot(row) => row.key.to_string(),
        Node::Lease(row) => row.id.to_string(),
        _ => unreachable!("not made here"),
    }
}

fn nodes(model: &Model) -> Vec<NodeId> {
    let kinds = [NodeKind::Record, NodeKind::Blob, NodeKind::Snapshot, NodeKind::Lease];
    kinds.into_iter().flat_map(|kind| model.nodes(kind)).collect()
}

proptest! {
    #[test]
    fn kept_is_what_a_recount_keeps(plan in plan()) {
        let model = store(&plan).model();
        let expected = kept(&plan, &BTreeSet::new());
        let now = model.kept();
        for node in nodes(&model) {
            prop_assert_eq!(now.contains(node), expected.contains(&called(&model, node)), "{}", called(&model, node));
        }
    }

    #[test]
    fn without_all_its_keepers_a_node_is_garbage_and_without_all_but_one_it_is_not(plan in plan(), pick in any::<prop::sample::Index>()) {
        let model = store(&plan).model();
        let all = nodes(&model);
        prop_assume!(!all.is_empty());
        let node = all[pick.index(all.len())];
        let keepers = model.keepers(node);
        prop_assert_eq!(!keepers.is_empty(), kept(&plan, &BTreeSet::new()).contains(&called(&model, node)));
        let names: BTreeSet<String> = keepers.iter().map(|k| called(&model, *k)).collect();
        // Roots that only others keep too: a labelled blob below a record stays a root.
        prop_assert!(!kept(&plan, &names).contains(&called(&model, node)));
        for chain in model.chains(node) {
            let last = chain.links.last().map_or(chain.root, |link| link.node);
            prop_assert_eq!(last, node);
        }
    }

    #[test]
    fn what_a_node_costs_alone_is_what_a_recount_would_give_back(plan in plan(), pick in any::<prop::sample::Index>()) {
        let model = store(&plan).model();
        let all = nodes(&model);
        prop_assume!(!all.is_empty());
        let node = all[pick.index(all.len())];
        let gone = BTreeSet::from([called(&model, node)]);
        let (before, after) = (kept(&plan, &BTreeSet::new()), kept(&plan, &gone));
        let reached = model.reached(&[node]);
        // What was garbage before is given back with or without it.
        let lost = all.iter().filter(|n| reached.contains(**n) && !after.contains(&called(&model, **n)));
        let bytes = model.weigh(lost.copied()).bytes();
        prop_assert_eq!(model.cost(&[node]).alone.bytes(), bytes);
        prop_assert!(after.is_subset(&before));
    }
}
