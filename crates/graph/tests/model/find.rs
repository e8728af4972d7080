use orlop_graph::model::{Labels, Matched, NodeKind};

use crate::store::{Store, digest, labels};

fn found(store: &Store, text: &str) -> Vec<(NodeKind, Matched)> {
    let model = store.model();
    model.find(text).into_iter().map(|found| (model.kind(found.node), found.matched)).collect()
}

fn store() -> Store {
    let mut store = Store::new();
    store.image("m", &["a"]);
    store.record("k8s.io", "docker.io/library/m:latest", "m", Labels::default());
    store.record("k8s.io", digest("m.config").as_str(), "m", Labels::default());
    store.blob("k8s.io", "packed", 9, labels(&[("containerd.io/uncompressed", digest("plain").as_str())]));
    store.lease("ctr-pull-4711", Labels::default(), Vec::new());
    store.container("7f9c2b", "docker.io/library/m:latest", "");
    store
}

#[test]
fn one_text_may_mean_several_things() {
    let store = store();
    let id = digest("m.config");
    // The image ID is the name of a record and the digest of the config.
    let both = vec![(NodeKind::Record, Matched::Exactly), (NodeKind::Blob, Matched::Exactly)];
    assert_eq!(found(&store, id.as_str()), both);
    assert_eq!(found(&store, id.hex()), both);
    let prefix = [(NodeKind::Record, Matched::Prefix), (NodeKind::Blob, Matched::Prefix)];
    assert_eq!(found(&store, &id.hex()[..6]), prefix);
    assert_eq!(found(&store, &id.as_str()[..13].to_uppercase().replace("SHA", "sha")), prefix);
}

#[test]
fn what_people_write_for_short_is_found() {
    let store = store();
    assert_eq!(found(&store, "m"), [(NodeKind::Record, Matched::Normalized)]);
    assert_eq!(found(&store, "docker.io/library/m"), [(NodeKind::Record, Matched::Normalized)]);
    assert_eq!(found(&store, digest("plain").as_str()), [(NodeKind::Blob, Matched::DiffId)]);
    assert_eq!(found(&store, "ctr-p"), [(NodeKind::Lease, Matched::Prefix)]);
    assert_eq!(found(&store, "7f9c2b"), [(NodeKind::Container, Matched::Exactly)]);
    assert_eq!(found(&store, "a"), [(NodeKind::Snapshot, Matched::Exactly)]);
    let manifest = digest("m");
    let digits = &manifest.hex()[..4];
    let mut store = store;
    store.record("k8s.io", &format!("docker.io/library/m@{}", digest("m")), "m", Labels::default());
    assert_eq!(found(&store, &format!("m@sha256:{digits}")), [(NodeKind::Record, Matched::Prefix)]);
    assert_eq!(found(&store, &format!("other@sha256:{digits}")), []);
    assert_eq!(found(&store, "sha"), []);
    assert_eq!(found(&store, ""), []);
}
