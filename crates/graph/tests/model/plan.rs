use orlop_graph::model::{Labels, Model, Node, NodeId, Removal};

use crate::store::{Store, digest, labels};

fn none() -> Labels {
    Labels::default()
}

fn by_digest(repository: &str, target: &str) -> String {
    format!("{repository}@{}", digest(target))
}

/// Two images that share a layer: `m` with its three records and `n` with one.
fn store() -> Store {
    let mut store = Store::new();
    store.image("m", &["a", "b"]).image("n", &["a", "c"]);
    store.record("k8s.io", "r.example/m:1", "m", none());
    store.record("k8s.io", &by_digest("r.example/m", "m"), "m", none());
    store.record("k8s.io", digest("m.config").as_str(), "m", none());
    store.record("k8s.io", "r.example/n:1", "n", none());
    store
}

fn removal(model: &Model, names: &[&str]) -> Removal {
    let asked: Vec<NodeId> = names.iter().map(|name| model.record(0, name).unwrap()).collect();
    model.removal(&asked)
}

fn names(model: &Model, nodes: &[NodeId]) -> Vec<String> {
    let name = |node: &NodeId| match model.node(*node) {
        Node::Record(row) => row.name.to_string(),
        Node::Container(row) => row.id.to_string(),
        Node::Lease(row) => row.id.to_string(),
        other => panic!("{other:?}"),
    };
    let mut all: Vec<String> = nodes.iter().map(name).collect();
    all.sort();
    all
}

#[test]
fn the_last_name_takes_the_hash_references_and_what_only_they_keep() {
    let model = store().model();
    let plan = removal(&model, &["r.example/m:1"]);
    assert_eq!(plan.records.len(), 3);
    assert_eq!(plan.freed.bytes(), 10 + 5 + 100 + 1_000, "manifest, config, layer b, the upper snapshot");
    assert_eq!((plan.garbage.bytes(), plan.in_use.len()), (0, 0));
}

#[test]
fn another_tag_keeps_the_image_and_the_hash_references() {
    let mut store = store();
    store.record("k8s.io", "r.example/m:2", "m", none());
    let model = store.model();
    let plan = removal(&model, &["r.example/m:1"]);
    assert_eq!(names(&model, &plan.records), ["r.example/m:1"]);
    assert_eq!(plan.freed.bytes(), 0);
    // Of another repository: the digest reference that was written beside the tag goes with it.
    let mut store = self::store();
    store.record("k8s.io", "other.example/m:1", "m", none());
    let model = store.model();
    let plan = removal(&model, &["r.example/m:1"]);
    assert_eq!(names(&model, &plan.records), ["r.example/m:1".to_owned(), by_digest("r.example/m", "m")]);
}

#[test]
fn what_was_asked_for_by_digest_is_a_name() {
    let mut store = store();
    store.record("k8s.io", &by_digest("other.example/m", "m"), "m", none());
    let model = store.model();
    let plan = removal(&model, &["r.example/m:1"]);
    assert_eq!(plan.freed.bytes(), 0, "{:?}", names(&model, &plan.records));
    let both = removal(&model, &["r.example/m:1", &by_digest("other.example/m", "m")]);
    assert_eq!((both.records.len(), both.freed.bytes()), (4, 1_115));
}

#[test]
fn a_hash_reference_that_is_asked_for_goes_alone() {
    let model = store().model();
    let plan = removal(&model, &[digest("m.config").as_str()]);
    assert_eq!((plan.records.len(), plan.freed.bytes()), (1, 0));
}

#[test]
fn containers_and_leases_are_named_and_what_they_keep_stays() {
    let mut store = store();
    store.snapshot("web", Some("a/b"), 7, none()).container("web-1", "r.example/m:1", "web");
    store.lease("pulling", none(), vec![orlop_graph::model::Resource::Content(digest("b"))]);
    let model = store.model();
    let plan = removal(&model, &["r.example/m:1"]);
    assert_eq!(names(&model, &plan.in_use), ["pulling", "web-1"]);
    assert_eq!(plan.freed.bytes(), 10 + 5, "manifest and config");
}

#[test]
fn garbage_of_before_goes_too_and_is_told_apart() {
    let mut store = store();
    store.blob("k8s.io", "stray", 50, none());
    let model = store.model();
    let plan = removal(&model, &["r.example/n:1"]);
    assert_eq!((plan.garbage.bytes(), plan.freed.bytes()), (50, 10 + 5 + 100 + 1_000 + 50));
}

#[test]
fn what_no_registry_is_known_to_have_is_named() {
    let source = [("containerd.io/distribution.source.r.example", "m")];
    let mut store = Store::new();
    store.blob("k8s.io", "pulled", 1, labels(&source)).record("k8s.io", "pulled:1", "pulled", none());
    store.blob("k8s.io", "built", 1, none()).record("k8s.io", "built:1", "built", none());
    let model = store.model();
    let plan = removal(&model, &["pulled:1", "built:1"]);
    assert_eq!(names(&model, &plan.unpullable), ["built:1"]);
    assert_eq!(plan.freed.bytes(), 2);
}

#[test]
fn bytes_that_another_namespace_keeps_are_not_freed() {
    let mut store = Store::new();
    store.blob("k8s.io", "x", 100, none()).record("k8s.io", "one", "x", none());
    store.blob("other", "x", 100, none()).record("other", "two", "x", none());
    let model = store.model();
    let plan = removal(&model, &["one"]);
    assert_eq!((plan.freed.bytes(), plan.blobs.len(), plan.unpullable.len()), (0, 0, 0));
}
