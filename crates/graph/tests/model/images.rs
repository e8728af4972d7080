use orlop_graph::model::{Labels, Model, Node, NodeId, Role};

use crate::store::{Store, digest, labels, only};

fn none() -> Labels {
    Labels::default()
}

fn names(model: &Model, records: &[NodeId]) -> Vec<String> {
    let name = |node: &NodeId| match model.node(*node) {
        Node::Record(row) => row.name.to_string(),
        Node::Container(row) => row.id.to_string(),
        other => panic!("{other:?}"),
    };
    records.iter().map(name).collect()
}

/// An index `i` of manifest `m`, which is here, and of another platform's, which is not.
fn with_index() -> Store {
    let mut store = Store::new();
    store.image("m", &["a", "b"]);
    let (m, other) = (digest("m"), digest("elsewhere"));
    let children = labels(&[
        ("containerd.io/gc.ref.content.m.0", other.as_str()),
        ("containerd.io/gc.ref.content.m.1", m.as_str()),
    ]);
    store.blob("k8s.io", "i", 20, children);
    store
}

#[test]
fn the_three_records_of_an_index_are_one_image() {
    let mut store = with_index();
    let id = digest("m.config").to_string();
    let by_digest = format!("r.example/m@{}", digest("i"));
    store.record("k8s.io", "r.example/m:1", "i", none()).record("k8s.io", &by_digest, "i", none());
    let model = store.model();
    // Without an ID record: only one of the index's manifests is here.
    assert_eq!(model.image_id(only(&model, "r.example/m:1")).unwrap().to_string(), id);
    store.record("k8s.io", &id, "i", none()).record("other", "elsewhere:1", "m", none());
    let model = store.model();
    let images = model.images();
    assert_eq!(images.len(), 2);
    assert_eq!(names(&model, &images[0].records), ["r.example/m:1", &by_digest, &id]);
    // In another namespace the same image by another target: nothing of it is here but its record.
    let family = model.family(model.record(0, &id).unwrap());
    assert_eq!(names(&model, &family), ["r.example/m:1", &by_digest, &id]);
    assert_eq!(model.sizes(&images)[0].compressed, 20 + 10 + 5 + 200);
    assert_eq!(model.sizes(&images)[0].missing, 1);
}

#[test]
fn blobs_have_the_role_that_labels_tell() {
    let mut store = with_index();
    store.blob("k8s.io", "stray", 1, none());
    let model = store.model();
    let role = |name: &str| model.role(only(&model, digest(name).as_str()));
    assert_eq!(
        [role("i"), role("m"), role("m.config"), role("a"), role("stray")],
        [Role::Index, Role::Manifest, Role::Config, Role::Layer, Role::Other]
    );
}

#[test]
fn sizes_count_what_two_images_share_in_both_and_alone_in_neither() {
    let mut store = Store::new();
    store.image("m", &["a", "b"]).image("n", &["a", "c"]);
    store.record("k8s.io", "m:1", "m", none()).record("k8s.io", "n:1", "n", none());
    let model = store.model();
    let sizes = model.sizes(&model.images());
    for size in &sizes {
        assert_eq!((size.compressed, size.unpacked), (215, 2_000));
        assert_eq!((size.shared, size.unique), (1_100, 1_115));
    }
}

#[test]
fn a_chain_is_the_images_snapshots_from_the_lowest() {
    let mut store = Store::new();
    store.image("m", &["a", "b", "c"]);
    let model = store.model();
    let keys: Vec<_> = model.snapshots_of(only(&model, digest("m.config").as_str()));
    let expected = ["a", "a/b", "a/b/c"].map(|key| only(&model, key));
    assert_eq!(keys, expected);
}

#[test]
fn a_container_uses_the_image_it_names_and_the_image_it_lies_on() {
    let mut store = Store::new();
    store.image("m", &["a"]).image("n", &["c"]);
    store.record("k8s.io", "m:1", "m", none()).record("k8s.io", "n:1", "n", none());
    store.snapshot("web", Some("a"), 1, none()).container("web", "gone:1", "web");
    store.container("job", "n:1", "");
    // An image on top of the same layers, and the one that has them as its own.
    store.image("above", &["a", "b"]).record("k8s.io", "above:1", "above", none());
    // The tag has moved since the container was made.
    store.image("old", &["d"]).record("k8s.io", "old@digest", "old", none());
    store.snapshot("late", Some("d"), 1, none()).container("late", "above:1", "late");
    let model = store.model();
    let users = |name: &str| names(&model, &model.users(&[model.record(0, name).unwrap()]));
    assert_eq!((users("m:1"), users("n:1")), (vec!["web".to_owned()], vec!["job".to_owned()]));
    assert_eq!((users("above:1"), users("old@digest")), (vec![], vec!["late".to_owned()]));
    // Asked of all at once, the same.
    let all = model.all_users();
    for record in model.nodes(orlop_graph::model::NodeKind::Record) {
        assert_eq!(all.get(&record).cloned().unwrap_or_default(), model.users(&[record]));
    }
}
