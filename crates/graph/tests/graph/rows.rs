//! One row an image, and what it takes.

use std::sync::Arc;

use crate::store::{NS, Store, digest, two_images};
use orlop_graph::{Graph, Image, Manifest, Sizes};
use orlop_oci::{Platform, PlatformMatcher};

fn amd64() -> PlatformMatcher {
    PlatformMatcher::only(&"linux/amd64".parse().unwrap())
}

fn check(store: &Store, test: impl FnOnce(&Graph, &[Image])) {
    let graph = store.graph(amd64());
    test(&graph, graph.images());
}

fn names<'g>(graph: &'g Graph, image: &'g Image) -> Vec<&'g str> {
    graph.names(image).collect()
}

fn references<'g>(graph: &'g Graph, image: &'g Image) -> Vec<&'g str> {
    graph.hash_references(image).collect()
}

#[test]
fn records_of_an_image_collapse() {
    let mut store = two_images();
    store.record(NS, "docker.io/library/a:2", &digest("a"));
    store.record(NS, "made-up name", &digest("a"));
    store.pinned.push("docker.io/library/a:2".to_owned());
    check(&store, |graph, rows| {
        assert_eq!(rows.len(), 2);
        let a = &rows[0];
        assert_eq!(names(graph, a), ["docker.io/library/a:1", "docker.io/library/a:2", "made-up name"]);
        assert_eq!(references(graph, a), [format!("docker.io/library/a@{}", digest("a")), store.id(&digest("a"))]);
        assert_eq!(a.targets, [digest("a")]);
        assert_eq!(a.image_id.as_ref().unwrap().to_string(), store.id(&digest("a")));
        assert_eq!(a.platforms, [Arc::new("linux/amd64".parse::<Platform>().unwrap())]);
        assert!(a.pinned && !a.incomplete && !rows[1].pinned);
        assert_eq!(a.records.len(), 5);
    });
}

#[test]
fn sizes_tell_shared_from_unique() {
    check(&two_images(), |graph, rows| {
        let a = Sizes { compressed: 1065, unpacked: 200, shared: 1100, unique: 165 };
        let b = Sizes { compressed: 1022, unpacked: 200, shared: 1100, unique: 122 };
        assert_eq!([rows[0].sizes, rows[1].sizes], [a, b]);
        assert_eq!(graph.total_bytes(), 1087 + 300);
        assert_eq!(graph.total_bytes(), a.unique + b.unique + 1100);
        assert_eq!(graph.users(&digest("base")), [0, 1]);
        assert_eq!(graph.users(&digest("b1")), [1]);
        assert_eq!(graph.users(&digest("nothing")), [] as [usize; 0]);
    });
}

#[test]
fn hash_references_change_no_size() {
    let mut store = two_images();
    let with: Vec<Sizes> = store.graph(amd64()).images().iter().map(|r| r.sizes).collect();
    store.records.retain(|r| r.1.ends_with(":1"));
    let without: Vec<Sizes> = store.graph(amd64()).images().iter().map(|r| r.sizes).collect();
    assert_eq!(with, without);
}

#[test]
fn an_image_known_only_by_hash_references_is_a_row_without_names() {
    let mut store = two_images();
    // The tag moved from a to b; a's hash references stay.
    store.records[0].2 = digest("b");
    check(&store, |graph, rows| {
        assert_eq!(names(graph, &rows[0]), ["docker.io/library/a:1", "docker.io/library/b:1"]);
        assert_eq!(references(graph, &rows[0]).len(), 2);
        assert!(names(graph, &rows[1]).is_empty(), "rows without names come last");
        assert_eq!(references(graph, &rows[1]).len(), 2);
        assert_eq!(rows[1].targets, [digest("a")]);
    });
}

#[test]
fn the_image_of_an_index_is_the_hosts() {
    let mut store = Store::default();
    let arm = store.manifest("arm", "linux/arm64", &[("arm layer", 30)]);
    let amd = store.manifest("amd", "linux/amd64", &[("amd layer", 40)]);
    let attestation = store.manifest("attestation", "unknown/unknown", &[("statement", 3)]);
    let nested = store.index("nested", &[&amd]);
    let top = store.index("top", &[&arm, &attestation, &nested]);
    store.record(NS, "docker.io/library/x:1", &top);
    check(&store, |graph, rows| {
        assert_eq!(rows[0].image_id.as_ref().unwrap().to_string(), store.id(&amd));
        let platforms: Vec<String> = rows[0].platforms.iter().map(ToString::to_string).collect();
        assert_eq!(platforms, ["linux/arm64", "linux/amd64"]);
        // Two indexes, three manifests, three configs, three layers.
        assert_eq!(rows[0].sizes.compressed, 40 + 30 + 15 + 73);
        // As ctr counts: the top index, the host's manifest, its config and layer.
        assert_eq!(graph.records().get(0).listed_size, 20 + 10 + 5 + 40);
    });
}

#[test]
fn a_pull_of_one_platform_is_complete_though_the_index_names_more() {
    let mut store = Store::default();
    let amd = store.manifest("amd", "linux/amd64", &[("amd layer", 40)]);
    let top = store.index("top", &[&digest("never fetched"), &amd]);
    store.record(NS, "docker.io/library/x:1", &top);
    check(&store, |_, rows| {
        assert!(!rows[0].incomplete);
        assert_eq!(rows[0].platforms.len(), 1);
    });
}

#[test]
fn a_foreign_image_goes_by_what_is_there() {
    let mut store = Store::default();
    let arm = store.manifest("arm", "linux/arm64", &[("arm layer", 30)]);
    let top = store.index("top", &[&digest("amd64, not fetched"), &arm]);
    store.record(NS, "docker.io/library/x:1", &top);
    check(&store, |_, rows| {
        assert_eq!(rows[0].image_id.as_ref().unwrap().to_string(), store.id(&arm));
        assert!(!rows[0].incomplete);
    });
}

#[test]
fn what_is_missing_makes_a_row_incomplete() {
    for missing in ["a1", "config of a", "a"] {
        let mut store = two_images();
        store.blobs.remove(&digest(missing));
        check(&store, |graph, rows| {
            let a = rows.iter().find(|r| names(graph, r) == ["docker.io/library/a:1"]).unwrap();
            assert!(a.incomplete, "{missing}");
            assert!(a.platforms.is_empty(), "{missing}");
            // The record of the image ID says which image it is even without the manifest.
            assert_eq!(a.image_id.as_ref().unwrap().to_string(), store.id(&digest("a")), "{missing}");
            assert_eq!(references(graph, a).len(), 2);
            assert!(graph.records().get(0).incomplete);
        });
    }
    let mut store = Store::default();
    store.record(NS, "docker.io/library/gone:1", &digest("gone"));
    check(&store, |_, rows| {
        assert!(rows[0].incomplete && rows[0].image_id.is_none());
        assert_eq!(rows[0].sizes, Sizes::default());
    });
}

#[test]
fn artifacts_go_by_their_target() {
    let mut store = Store::default();
    store.blobs.extend([(digest("{}"), 2), (digest("sbom"), 70)]);
    let layers = vec![(digest("{}"), 2), (digest("sbom"), 70)];
    let artifact = Manifest { size: 9, layers, ..Manifest::default() };
    for seed in ["one", "two"] {
        let target = store.document(seed, artifact.clone());
        store.record(NS, &format!("docker.io/library/{seed}:1"), &target);
    }
    check(&store, |_, rows| {
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|r| r.image_id.is_none() && !r.incomplete));
        assert_eq!(rows[0].sizes, Sizes { compressed: 81, unpacked: 0, shared: 72, unique: 9 });
    });
}

#[test]
fn one_image_id_under_two_manifests_is_one_row() {
    let mut store = two_images();
    let mut summary = store.summaries[&digest("a")].clone();
    summary.layers[1] = (digest("a1 as zstd"), 44);
    store.blobs.insert(digest("a1 as zstd"), 44);
    let other = store.document("a with zstd", summary);
    store.record(NS, "docker.io/library/a:zstd", &other);
    check(&store, |_, rows| {
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].targets.len(), 2);
        assert_eq!(rows[0].sizes.compressed, 1065 + 10 + 44);
    });
}

#[test]
fn namespaces_share_blobs_but_not_snapshots() {
    let mut store = two_images();
    store.pulled("moby", "docker.io/library/a:1", &digest("a"), &digest("a"));
    check(&store, |graph, rows| {
        assert_eq!(rows.iter().map(|r| &*r.namespace).collect::<Vec<_>>(), [NS, NS, "moby"]);
        assert_eq!(rows[2].sizes, Sizes { compressed: 1065, unpacked: 0, shared: 1065, unique: 0 });
        assert_eq!(rows[0].sizes.unique, 100, "its own snapshot");
        assert_eq!(graph.total_bytes(), 1087 + 300);
    });
}

#[test]
fn only_a_whole_stack_counts_as_unpacked() {
    let mut store = two_images();
    let top = store.summaries[&digest("b")].chain[1].clone();
    store.snapshots.retain(|s| s.chain != top);
    check(&store, |_, rows| assert_eq!(rows[1].sizes.unpacked, 0));
}

#[test]
fn an_index_in_itself_ends() {
    let mut store = Store::default();
    let loops = digest("loop");
    store.blobs.insert(loops.clone(), 3);
    let manifests = vec![(loops.clone(), 3, None), (loops.clone(), 3, None)];
    store.summaries.insert(loops.clone(), Manifest { size: 3, manifests, ..Manifest::default() });
    store.record(NS, "docker.io/library/loop:1", &loops);
    check(&store, |_, rows| assert_eq!(rows[0].sizes.compressed, 3));
}

#[test]
fn links_count_like_children() {
    let mut store = two_images();
    let signature = store.document("signature", Manifest { size: 8, ..Manifest::default() });
    store.links.push((digest("a"), signature));
    check(&store, |_, rows| assert_eq!(rows[0].sizes.compressed, 1065 + 8));
}

#[test]
fn nothing_is_nothing() {
    check(&Store::default(), |graph, rows| {
        assert!(rows.is_empty());
        assert_eq!(graph.total_bytes(), 0);
    });
}

/// A complete attestation used to be taken for the image when the image itself lacked a layer.
#[test]
fn an_attestation_never_stands_for_the_image() {
    let mut store = Store::default();
    let amd = store.manifest("amd", "linux/amd64", &[("amd layer", 40)]);
    let attestation = store.manifest("attestation", "unknown/unknown", &[("statement", 3)]);
    let top = store.index("top", &[&attestation, &amd]);
    store.record(NS, "docker.io/library/x:1", &top);
    store.blobs.remove(&digest("amd layer"));
    check(&store, |_, rows| {
        assert_eq!(rows[0].image_id.as_ref().unwrap().to_string(), store.id(&amd));
        assert!(rows[0].incomplete);
    });
}

/// What another namespace has used to make an image look complete.
#[test]
fn a_blob_of_another_namespace_is_not_there() {
    let mut store = two_images();
    store.pulled("moby", "docker.io/library/a:1", &digest("a"), &digest("a"));
    store.hidden.insert(("moby".to_owned(), digest("a1")));
    check(&store, |graph, rows| {
        assert_eq!(rows.iter().map(|r| r.incomplete).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(rows[2].sizes, Sizes { compressed: 1015, unpacked: 0, shared: 1015, unique: 0 });
        assert_eq!(rows[0].sizes, Sizes { compressed: 1065, unpacked: 200, shared: 1000 + 15 + 100, unique: 150 });
        assert!(graph.records().iter().all(|r| r.incomplete == (r.namespace == "moby")));
    });
}

#[test]
fn documents_of_which_nothing_is_known_are_told() {
    let mut store = two_images();
    store.record(NS, "docker.io/library/other:1", &digest("other"));
    store.record(NS, "docker.io/library/other:2", &digest("other"));
    store.record(NS, "docker.io/library/gone:1", &digest("gone"));
    let top = store.index("top", &[&digest("a"), &digest("other"), &digest("gone")]);
    store.record(NS, "docker.io/library/top:1", &top);
    assert_eq!(store.graph(amd64()).records().unknown(), [] as [usize; 0], "what is not here cannot be known");
    store.blobs.insert(digest("other"), 9);
    store.hidden.insert(("moby".to_owned(), digest("other")));
    store.record("moby", "docker.io/library/other:1", &digest("other"));
    assert_eq!(store.graph(amd64()).records().unknown(), [6, 9]);
}
