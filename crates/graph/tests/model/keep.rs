use orlop_graph::model::{Labels, Model, Node, NodeId, NodeKind, Resource, Root, Why};

use crate::store::{Store, digest, labels, only};

fn none() -> Labels {
    Labels::default()
}

/// What a node is called.
fn name(model: &Model, node: NodeId) -> String {
    match model.node(node) {
        Node::Record(row) => row.name.to_string(),
        Node::Blob(row) => row.digest.to_string(),
        Node::Snapshot(row) => row.key.to_string(),
        Node::Lease(row) => row.id.to_string(),
        Node::Ingest(row) => row.reference.to_string(),
        Node::Container(row) => row.id.to_string(),
        Node::Missing(missing) => format!("missing {:?}", missing.resource),
    }
}

fn keepers(model: &Model, text: &str) -> Vec<String> {
    let mut names: Vec<String> = model.keepers(only(model, text)).into_iter().map(|n| name(model, n)).collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_is_kept_by_every_record_of_its_image_and_by_its_container() {
    let mut store = Store::new();
    store.image("m", &["a", "b"]).image("n", &["a", "c"]);
    store.record("k8s.io", "r.example/m:1", "m", none()).record("k8s.io", &digest("m.config").to_string(), "m", none());
    store.record("k8s.io", "r.example/n:1", "n", none());
    store.snapshot("web", Some("a/b"), 7, none()).container("web-1", "r.example/m:1", "web");
    let model = store.model();
    let id = digest("m.config").to_string();
    assert_eq!(keepers(&model, "a/b"), ["r.example/m:1", &id, "web-1"]);
    assert_eq!(keepers(&model, "a"), ["r.example/m:1", "r.example/n:1", &id, "web-1"]);
    assert_eq!(keepers(&model, "web"), ["web-1"]);
    // A container does not keep the compressed bytes of its image.
    assert_eq!(keepers(&model, &digest("b").to_string()), ["r.example/m:1", &id]);
    assert_eq!(model.garbage(), []);
}

#[test]
fn a_chain_goes_from_the_root_down_with_the_reason_of_each_step() {
    let mut store = Store::new();
    store.image("m", &["a"]).record("k8s.io", "r.example/m:1", "m", none());
    let model = store.model();
    let chains = model.chains(only(&model, "a"));
    assert_eq!(chains.len(), 1);
    let steps: Vec<(String, Why<'_>)> = chains[0].links.iter().map(|l| (name(&model, l.node), l.why)).collect();
    let expected = [
        (digest("m").to_string(), Why::Target),
        (digest("m.config").to_string(), Why::Label("containerd.io/gc.ref.content.config")),
        ("a".to_owned(), Why::Label("containerd.io/gc.ref.snapshot.overlayfs")),
    ];
    assert_eq!((name(&model, chains[0].root), steps), ("r.example/m:1".to_owned(), expected.to_vec()));
}

#[test]
fn what_has_expired_keeps_nothing_and_what_has_not_does() {
    let past = labels(&[("containerd.io/gc.expire", "2026-03-01T11:59:59Z")]);
    let future = labels(&[("containerd.io/gc.expire", "2026-03-01T12:00:01Z")]);
    let nonsense = labels(&[("containerd.io/gc.expire", "soon")]);
    for (labels, kept) in [(past, false), (future, true), (nonsense, true)] {
        let mut store = Store::new();
        store.image("m", &["a"]).record("k8s.io", "m:1", "m", labels.clone());
        store.blob("k8s.io", "b", 1, none());
        store.lease("l", labels, vec![Resource::Content(digest("b"))]);
        let model = store.model();
        let gone = model.garbage().len();
        // The record, its manifest, config, layer and snapshot; the lease and its blob.
        assert_eq!(gone, if kept { 0 } else { 7 });
    }
}

#[test]
fn a_flat_lease_holds_what_it_lists_and_follows_no_label() {
    let flat = labels(&[("containerd.io/gc.flat", "")]);
    let mut store = Store::new();
    store.image("m", &["a", "b"]);
    let top = Resource::Snapshot { snapshotter: "overlayfs".into(), key: "a/b".into() };
    store.lease("l", flat, vec![Resource::Content(digest("m")), top]);
    let model = store.model();
    assert_eq!(keepers(&model, &digest("m").to_string()), ["l"]);
    assert_eq!(keepers(&model, "a"), ["l"], "of a snapshot also those below");
    assert_eq!(keepers(&model, &digest("a").to_string()), [""; 0]);
    let gone: Vec<String> = model.garbage().into_iter().map(|n| name(&model, n)).collect();
    assert_eq!(gone, [digest("a"), digest("b"), digest("m.config")].map(|d| d.to_string()));
}

#[test]
fn roots_that_are_no_records() {
    let root = labels(&[("containerd.io/gc.root", "2026-01-01T00:00:00Z")]);
    let mut store = Store::new();
    store.blob("k8s.io", "kept", 1, root.clone()).snapshot("s", None, 1, root);
    store.blob("k8s.io", "coming", 1, none()).ingest("young", 5, 23, Some("coming")).ingest("old", 5, 25, None);
    let model = store.model();
    assert_eq!(model.root(only(&model, "s")), Some(Root::Label));
    assert_eq!(keepers(&model, &digest("coming").to_string()), ["young"]);
    assert_eq!(model.garbage(), [only(&model, "old")]);
}

#[test]
fn a_conditional_reference_of_an_image_or_a_blob_keeps_while_it_holds() {
    const USED: &str = "containerd.io/gc.cond.value-usedat";
    let keeps = |key: &str| labels(&[("containerd.io/gc.cond.snapshot.overlayfs", &format!("usedat<2h|{key}"))]);
    // The store is read at 12:00.
    let at = |time: &str| labels(&[(USED, &format!("2026-03-01T{time}Z"))]);
    let mut store = Store::new();
    store.record("k8s.io", "r.example/a:1", "absent", keeps("fresh"));
    store.record("k8s.io", "r.example/b:1", "absent", keeps("stale"));
    store.record("k8s.io", "r.example/c:1", "absent", keeps("never"));
    store.record("k8s.io", "r.example/d:1", "absent", keeps("not there"));
    let root = ("containerd.io/gc.root".into(), "".into());
    let own = |key| {
        keeps(key).iter().map(|(k, v)| (Box::<str>::from(k), Box::<str>::from(v))).chain([root.clone()]).collect()
    };
    store.blob("k8s.io", "blob", 1, own("by-blob")).snapshot("by-blob", None, 1, at("11:59:00"));
    store.snapshot("snapshot", None, 1, own("by-snapshot")).snapshot("by-snapshot", None, 1, at("11:59:00"));
    store.snapshot("fresh", None, 1, at("10:00:01")).snapshot("stale", None, 1, at("10:00:00"));
    store.snapshot("never", None, 1, none());
    let model = store.model();
    let kept = |key: &str| keepers(&model, key);
    assert_eq!(kept("fresh"), ["r.example/a:1"]);
    assert_eq!(kept("by-blob"), [digest("blob").to_string()]);
    for key in ["stale", "never", "by-snapshot"] {
        assert_eq!(kept(key), [""; 0], "{key}");
    }
    let why = model.referrers(only(&model, "fresh")).next().unwrap().why;
    assert_eq!(why, Why::Condition("containerd.io/gc.cond.snapshot.overlayfs"));
}

#[test]
fn what_is_not_there_passes_life_on() {
    let mut store = Store::new();
    store.record("k8s.io", "m:1", "absent", none());
    let attached = labels(&[("containerd.io/gc.bref.content", digest("absent").as_str())]);
    store.blob("k8s.io", "signature", 3, attached);
    let model = store.model();
    assert_eq!(keepers(&model, &digest("signature").to_string()), ["m:1"]);
    let missing = model.nodes(NodeKind::Missing).next().unwrap();
    assert_eq!(name(&model, missing), format!("missing {:?}", Resource::Content(digest("absent"))));
    assert_eq!(model.references(missing).next().unwrap().why, Why::BackLabel("containerd.io/gc.bref.content"));
}

#[test]
fn the_names_of_one_image_cost_nothing_alone_and_everything_together() {
    let mut store = Store::new();
    store.image("m", &["a", "b"]).image("n", &["a"]);
    let id = digest("m.config").to_string();
    store.record("k8s.io", "m:1", "m", none()).record("k8s.io", &id, "m", none());
    store.record("k8s.io", "n:1", "n", none());
    let model = store.model();
    let namespace = 0;
    let (tag, id) = (model.record(namespace, "m:1").unwrap(), model.record(namespace, &id).unwrap());
    let cost = model.cost(&[id]);
    assert_eq!((cost.all.bytes(), cost.alone.bytes()), (2 * 1_000 + 200 + 10 + 5, 0));
    let both = model.cost(&[id, tag]);
    assert_eq!(both.alone.bytes(), 1_000 + 100 + 10 + 5);
    assert_eq!(both.shared_bytes(), 1_000 + 100);
}

#[test]
fn bytes_that_another_namespace_has_are_not_given_back() {
    let mut store = Store::new();
    store.blob("a", "x", 100, none()).record("a", "one", "x", none());
    store.blob("b", "x", 100, none()).record("b", "two", "x", none());
    let model = store.model();
    let (one, two) = (only(&model, "one"), only(&model, "two"));
    assert_eq!(model.cost(&[one]).all.blob_bytes, 100);
    assert_eq!(model.cost(&[one]).alone.blob_bytes, 0);
    assert_eq!(model.cost(&[one, two]).alone.blob_bytes, 100);
    assert_eq!(model.copies(&digest("x")).count(), 2);
    assert_eq!(model.weigh(model.items()).blob_bytes, 100);
}
