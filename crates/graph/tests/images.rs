//! Rows, sizes and removals against small stores and against a naive recount.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use orlop_graph::{Builder, Freed, Graph, Image, Manifest, Record};
use orlop_oci::{ChainId, Digest, ImageId, Platform, PlatformMatcher};
use proptest::prelude::*;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn record(name: &str, target: &str) -> Record {
    Record { namespace: "k8s.io".into(), name: name.into(), target: digest(target), pinned: false }
}

fn builder() -> Builder {
    Builder::new(PlatformMatcher::only(&Platform::new("linux", "amd64", None)))
}

/// An image whose layers are 100 bytes each, all present, with snapshots of 1,000 bytes.
fn add_image(builder: &mut Builder, name: &str, layers: &[&str], platform: Option<Platform>) {
    add_image_to("k8s.io", builder, name, layers, platform);
}

fn add_image_to(namespace: &str, builder: &mut Builder, name: &str, layers: &[&str], platform: Option<Platform>) {
    builder.blob(namespace, &digest(name), 10);
    builder.blob(namespace, &digest(&format!("{name}-config")), 5);
    let mut chain = Vec::new();
    for layer in layers {
        builder.blob(namespace, &digest(layer), 100);
        chain.push(ChainId::new(digest(&format!("{chain:?}{layer}"))));
    }
    builder.manifest(
        &digest(name),
        &Manifest {
            size: 10,
            image_id: Some(ImageId::new(digest(&format!("{name}-config")))),
            config_size: 5,
            platform,
            chain,
            layers: layers.iter().map(|l| (digest(l), 100)).collect(),
            manifests: Vec::new(),
        },
    );
}

fn amd64() -> Option<Platform> {
    Some(Platform::new("linux", "amd64", None))
}

fn names<'g>(graph: &'g Graph, image: &'g Image) -> Vec<&'g str> {
    graph.names(image).collect()
}

#[test]
fn the_three_records_are_one_image() {
    let mut b = builder();
    add_image(&mut b, "m", &["l1", "l2"], amd64());
    let id = format!("{}", digest("m-config"));
    let by_digest = format!("docker.io/library/a@{}", digest("m"));
    for name in ["docker.io/library/a:1", &by_digest, &id] {
        b.record(record(name, "m"));
    }
    let graph = b.build();
    let [image] = graph.images() else { panic!("one image, not {:?}", graph.images()) };
    assert_eq!(names(&graph, image), ["docker.io/library/a:1"]);
    assert_eq!(graph.hash_references(image).collect::<Vec<_>>(), [by_digest, id.clone()]);
    assert_eq!(image.image_id.as_ref().map(ToString::to_string), Some(id));
    assert_eq!((image.sizes.compressed, image.sizes.unique, image.sizes.shared), (215, 215, 0));
    assert!(graph.records().iter().all(|r| r.listed_size == 215));
}

#[test]
fn shared_layers_are_nobodys_own() {
    let mut b = builder();
    add_image(&mut b, "a", &["base", "a1"], amd64());
    add_image(&mut b, "b", &["base", "b1"], amd64());
    b.record(record("docker.io/library/a:1", "a"));
    b.record(record("docker.io/library/b:1", "b"));
    let graph = b.build();
    for image in graph.images() {
        assert_eq!((image.sizes.shared, image.sizes.unique), (100, 115));
    }
    assert_eq!(graph.freed_by(&[0]), Freed { items: 3, bytes: 115 });
    assert_eq!(graph.freed_by(&[0, 1, 1]), Freed { items: 7, bytes: 330 });
}

#[test]
fn an_index_stands_for_the_wanted_platform() {
    let mut b = builder();
    let arm = Platform::new("linux", "arm64", None);
    add_image(&mut b, "x86", &["lx"], amd64());
    add_image(&mut b, "arm", &["la"], Some(arm.clone()));
    b.blob("k8s.io", &digest("index"), 7);
    let manifests = vec![
        (digest("arm"), 10, Some(arm.clone())),
        (digest("x86"), 10, amd64()),
        (digest("absent"), 10, Some(Platform::new("linux", "s390x", None))),
    ];
    b.manifest(&digest("index"), &Manifest { size: 7, manifests, ..Manifest::default() });
    b.record(record("docker.io/library/a:1", "index"));
    let graph = b.build();
    let image = &graph.images()[0];
    assert_eq!(image.image_id, Some(ImageId::new(digest("x86-config"))));
    assert_eq!(image.platforms, [arm, amd64().unwrap()].map(Arc::new));
    assert!(!image.incomplete);
    assert_eq!(graph.records().get(0).listed_size, 7 + 10 + 5 + 100);
    assert_eq!(image.sizes.compressed, 7 + 2 * 115);
}

#[test]
fn missing_content_is_said_and_costs_nothing() {
    let mut b = builder();
    b.record(record("docker.io/library/a:1", "gone"));
    let id = format!("{}", digest("some-config"));
    b.record(record(&id, "gone"));
    let graph = b.build();
    let [image] = graph.images() else { panic!("one image") };
    assert!(image.incomplete);
    assert_eq!(image.sizes.compressed, 0);
    assert_eq!(image.image_id.as_ref().map(ToString::to_string), Some(id));
}

#[test]
fn an_index_that_lists_itself_ends() {
    let mut b = builder();
    b.blob("k8s.io", &digest("loop"), 7);
    b.manifest(&digest("loop"), &Manifest { manifests: vec![(digest("loop"), 7, None)], ..Manifest::default() });
    b.record(record("docker.io/library/a:1", "loop"));
    assert_eq!(b.build().images()[0].sizes.compressed, 7);
}

#[test]
fn namespaces_have_images_and_snapshots_of_their_own() {
    let mut b = builder();
    add_image(&mut b, "m", &["l1"], amd64());
    add_image_to("other", &mut b, "m", &["l1"], amd64());
    let chain = digest("[]l1");
    b.snapshot("k8s.io", &chain, 1000);
    b.snapshot("other", &chain, 1000);
    b.record(record("docker.io/library/a:1", "m"));
    b.record(Record { namespace: "other".into(), ..record("docker.io/library/a:1", "m") });
    let graph = b.build();
    assert_eq!(graph.images().len(), 2);
    for image in graph.images() {
        assert_eq!((image.sizes.unpacked, image.sizes.unique, image.sizes.shared), (1000, 1000, 115));
    }
}

/// Images as sets of layer numbers.
fn stores() -> impl Strategy<Value = Vec<BTreeSet<u8>>> {
    prop::collection::vec(prop::collection::btree_set(0u8..12, 0..6), 1..12)
}

fn build(images: &[BTreeSet<u8>]) -> Graph {
    let mut b = builder();
    for (n, layers) in images.iter().enumerate() {
        let names: Vec<String> = layers.iter().map(|l| format!("layer{l}")).collect();
        add_image(&mut b, &format!("m{n}"), &names.iter().map(String::as_str).collect::<Vec<_>>(), amd64());
        b.record(record(&format!("docker.io/library/i{n}:1"), &format!("m{n}")));
    }
    b.build()
}

proptest! {
    #[test]
    fn sizes_add_up_and_removals_free_what_a_recount_says(images in stores(), picks in prop::collection::vec(any::<bool>(), 12)) {
        let graph = build(&images);
        for image in graph.images() {
            prop_assert_eq!(image.sizes.shared + image.sizes.unique, image.sizes.compressed + image.sizes.unpacked);
        }
        let layers: BTreeSet<u8> = images.iter().flatten().copied().collect();
        prop_assert_eq!(graph.total_bytes(), images.len() as u64 * 15 + layers.len() as u64 * 100);

        let order: BTreeMap<String, usize> =
            graph.images().iter().enumerate().map(|(n, i)| (names(&graph, i)[0].to_owned(), n)).collect();
        let gone: Vec<usize> = (0..images.len()).filter(|n| picks[*n]).collect();
        let left: BTreeSet<u8> = (0..images.len()).filter(|n| !picks[*n]).flat_map(|n| images[n].clone()).collect();
        let positions: Vec<usize> = gone.iter().map(|n| order[&format!("docker.io/library/i{n}:1")]).collect();
        let freed = gone.len() as u64 * 15 + layers.difference(&left).count() as u64 * 100;
        prop_assert_eq!(graph.freed_by(&positions).bytes, freed);
    }
}
