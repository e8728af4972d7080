//! Image records, leases, namespaces, manifest summaries.

use crate::support::{Root, digest, image, labels, scope, target, texts};
use orlop_metadata::{
    Error, Image, ImageChange, ManifestSummary, ObjectKind, Resource, ResourceKind, Result, Scope, Store,
};
use orlop_oci::Descriptor;

fn is_missing<T>(result: Result<T>, kind: ObjectKind, wanted: &str) -> bool {
    matches!(result, Err(Error::NotFound { kind: k, name }) if k == kind && name == wanted)
}

fn is_invalid<T>(result: Result<T>, wanted: &str) -> bool {
    matches!(result, Err(Error::Invalid { what, .. }) if what == wanted)
}

fn names(images: Vec<Image>) -> Vec<String> {
    images.into_iter().map(|i| i.name).collect()
}

#[test]
fn an_image_is_created_once() {
    let root = Root::new();
    let store = &root.store;
    let mut given = image("docker.io/library/a:1", "a");
    given.labels = labels([("k", "v"), ("empty", "")]);
    given.target.annotations = labels([("org.opencontainers.image.ref.name", "1")]);
    given.target.urls = vec!["https://example.com".to_owned()];
    given.created_at = jiff::Timestamp::UNIX_EPOCH;
    let made = store.create_image(&scope(), given.clone()).unwrap();
    assert_eq!(made, store.image("test", "docker.io/library/a:1").unwrap());
    assert_eq!(made.labels, labels([("k", "v")]));
    assert_eq!(made.target.annotations, given.target.annotations);
    assert!(made.target.urls.is_empty(), "containerd keeps no more of a target either");
    assert!(made.created_at > jiff::Timestamp::UNIX_EPOCH && made.created_at == made.updated_at);
    let again = store.create_image(&scope(), given);
    assert!(matches!(again, Err(Error::AlreadyExists { kind: ObjectKind::Image, .. })));
    assert!(is_missing(store.image("other", "docker.io/library/a:1"), ObjectKind::Image, "docker.io/library/a:1"));
    assert!(store.images("other", &[]).unwrap().is_empty());
}

/// A list takes over from row to row what is the same; all that may differ does here, between neighbours and again further on.
#[test]
fn a_list_shows_each_record_as_it_is_by_itself() {
    let root = Root::new();
    for n in 0..16 {
        let mut given = image(&format!("name {n:02}"), if n % 2 == 0 { "even" } else { "odd" });
        given.target.media_type = format!("type {}", n % 3);
        given.target.size = 100 - n;
        given.labels = if n % 4 < 2 { labels([("k", "v"), ("more", "w")]) } else { labels([("k", "w")]) };
        given.target.annotations = if n % 8 < 4 { labels([("x", "1")]) } else { labels([]) };
        root.store.create_image(&scope(), given).unwrap();
    }
    let listed = root.store.images("test", &[]).unwrap();
    assert_eq!(listed.len(), 16);
    for image in listed {
        assert_eq!(image, root.store.image("test", &image.name).unwrap());
    }
    let filtered = root.store.images("test", &["labels.k==w".to_owned()]).unwrap();
    assert_eq!(filtered.len(), 8);
}

#[test]
fn what_is_no_image_is_refused() {
    let root = Root::new();
    let create = |change: fn(&mut Image)| {
        let mut given = image("name", "a");
        change(&mut given);
        root.store.create_image(&scope(), given)
    };
    assert!(is_invalid(create(|i| i.name.clear()), "image name"));
    assert!(is_invalid(create(|i| i.target.media_type.clear()), "image target"));
    assert!(is_invalid(create(|i| i.target.size = 0), "image target"));
    assert!(is_invalid(create(|i| i.labels = labels([("k", &"x".repeat(4096))])), "label"));
    assert!(root.store.images("test", &[]).unwrap().is_empty());
    create(|i| i.name = "any text\n\0 is a name — really".to_owned()).unwrap();
    root.store.image("test", "any text\n\0 is a name — really").unwrap();
    let nowhere = root.store.create_image(&Scope::new("not/valid", "tests"), image("a", "a"));
    assert!(is_invalid(nowhere, "namespace"));
}

#[test]
fn an_update_changes_what_the_mask_names() {
    let root = Root::new();
    let store = &root.store;
    let mut first = image("name", "one");
    first.labels = labels([("a.b/c", "1"), ("keep", "2")]);
    first.target.annotations = labels([("x", "1")]);
    let made = store.create_image(&scope(), first).unwrap();
    let mut given = image("name", "two");
    given.labels = labels([("a.b/c", "9"), ("new", "8")]);
    given.target.annotations = labels([("x", "2"), ("y.z", "3")]);

    let masked = |mask: &[&str]| {
        let mask: Vec<String> = mask.iter().map(|&m| m.to_owned()).collect();
        store.update_image(&scope(), given.clone(), &mask)
    };
    let updated = masked(&["labels.a.b/c", "labels.absent"]).unwrap();
    assert_eq!(updated.labels, labels([("a.b/c", "9"), ("keep", "2")]));
    assert_eq!(updated.target, made.target);
    assert_eq!(updated.created_at, made.created_at);
    assert!(updated.updated_at > made.updated_at);
    assert_eq!(masked(&["labels.keep"]).unwrap().labels, labels([("a.b/c", "9")]), "not given: deleted");
    assert_eq!(masked(&["annotations.y.z"]).unwrap().target.annotations, labels([("x", "1"), ("y.z", "3")]));
    assert_eq!(masked(&["annotations"]).unwrap().target.annotations, given.target.annotations);
    assert_eq!(masked(&["annotations"]).unwrap().target.digest, digest("one"));
    assert_eq!(masked(&["labels"]).unwrap().labels, given.labels);
    assert_eq!(masked(&["target"]).unwrap().target, given.target);
    assert!(is_invalid(masked(&["name"]), "field mask"));
    assert!(is_invalid(masked(&["labels", "created_at"]), "field mask"));

    let whole = store.update_image(&scope(), image("name", "three"), &[]).unwrap();
    assert!(whole.labels.is_empty() && whole.target == target("three") && whole.created_at == made.created_at);
    let missing = store.update_image(&scope(), image("none", "a"), &[]);
    assert!(is_missing(missing, ObjectKind::Image, "none"));
}

#[test]
fn a_deletion_may_insist_on_the_target() {
    let root = Root::new();
    let store = &root.store;
    store.create_image(&scope(), image("name", "one")).unwrap();
    assert!(is_missing(store.delete_image(&scope(), "name", Some(&digest("two"))), ObjectKind::Image, "name"));
    let gone = store.delete_image(&scope(), "name", Some(&digest("one"))).unwrap();
    assert_eq!(gone.target, target("one"));
    assert!(is_missing(store.delete_image(&scope(), "name", None), ObjectKind::Image, "name"));
}

#[test]
fn images_are_listed_by_name_and_filter() {
    let root = Root::new();
    let store = &root.store;
    for (name, text) in [("c:1", "x"), ("a:1", "y"), ("b@sha256:1", "x")] {
        let mut given = image(name, text);
        given.labels = labels([("io.cri-containerd.image", "managed"), ("of", text)]);
        given.target.annotations = labels([("note", text)]);
        store.create_image(&scope(), given).unwrap();
    }
    let list = |filter: &str| names(store.images("test", &texts([filter])).unwrap());
    assert_eq!(list(""), ["a:1", "b@sha256:1", "c:1"]);
    assert_eq!(list("name==a:1"), ["a:1"]);
    assert_eq!(list("name~=/^[ab]/"), ["a:1", "b@sha256:1"]);
    assert_eq!(list(&format!("target.digest=={}", digest("x"))), ["b@sha256:1", "c:1"]);
    assert_eq!(list("target.mediatype~=oci"), ["a:1", "b@sha256:1", "c:1"]);
    assert_eq!(list(r#"labels."io.cri-containerd.image"==managed,labels.of==y"#), ["a:1"]);
    assert_eq!(list("annotations.note!=x"), ["a:1"]);
    assert!(list("target").is_empty() && list("target.size").is_empty() && list("unknown").is_empty());
    let any = store.images("test", &texts(["name==a:1", "name==c:1"])).unwrap();
    assert_eq!(names(any), ["a:1", "c:1"]);
    assert!(matches!(store.images("test", &texts(["name="])), Err(Error::Filter(_))));
}

#[test]
fn many_changes_are_one() {
    let root = Root::new();
    let store = &root.store;
    let upsert = |name: &str, target: Descriptor, l| ImageChange::Upsert { name: name.to_owned(), target, labels: l };
    let delete = |name: &str| ImageChange::Delete { name: name.to_owned() };
    store
        .write_images(
            &scope(),
            &[upsert("a", target("1"), labels([("k", "1")])), upsert("b", target("1"), labels([])), delete("none")],
        )
        .unwrap();
    let before = store.image("test", "a").unwrap();
    let changes = [upsert("a", target("2"), labels([("l", "2"), ("k", "")])), delete("b")];
    store.write_images(&scope(), &changes).unwrap();
    let after = store.image("test", "a").unwrap();
    assert_eq!((after.target.digest.clone(), &after.labels), (digest("2"), &labels([("l", "2")])));
    assert_eq!(after.created_at, before.created_at);
    assert_eq!(names(store.images("test", &[]).unwrap()), ["a"]);

    let bad = [delete("a"), upsert("", target("1"), labels([]))];
    assert!(is_invalid(store.write_images(&scope(), &bad), "image name"));
    assert_eq!(store.image("test", "a").unwrap(), after, "all or nothing");
    let count = store.history("test", None, 100).unwrap().len();
    store.write_images(&scope(), &[upsert("a", target("2"), labels([("l", "2")]))]).unwrap();
    assert_eq!(store.image("test", "a").unwrap(), after, "what is so already stays untouched");
    assert_eq!(store.history("test", None, 100).unwrap().len(), count);
}

#[test]
fn the_life_of_a_lease() {
    let root = Root::new();
    let store = &root.store;
    let made = store.create_lease("test", "l", labels([("a.b", "1"), ("containerd.io/gc.flat", "yes")])).unwrap();
    assert_eq!(store.leases("test", &[]).unwrap(), std::slice::from_ref(&made));
    let again = store.create_lease("test", "l", labels([]));
    assert!(matches!(again, Err(Error::AlreadyExists { kind: ObjectKind::Lease, .. })));
    let chosen = store.create_lease("test", "", labels([])).unwrap();
    assert!(!chosen.id.is_empty());
    assert_eq!(store.leases("test", &texts(["id==l"])).unwrap(), std::slice::from_ref(&made));
    assert_eq!(store.leases("test", &texts([r#"labels."a.b"==1"#])).unwrap(), [made]);
    assert!(store.leases("other", &[]).unwrap().is_empty());
    store.delete_lease("test", "l").unwrap();
    assert!(is_missing(store.delete_lease("test", "l"), ObjectKind::Lease, "l"));
    assert_eq!(store.leases("test", &[]).unwrap(), [chosen]);
}

#[test]
fn resources_of_a_lease() {
    let root = Root::new();
    let store = &root.store;
    store.create_lease("test", "l", labels([])).unwrap();
    let all: Vec<Resource> = [
        ("content", digest("x").to_string()),
        ("images", "a:1".to_owned()),
        ("ingests", "ref".to_owned()),
        ("snapshots/overlayfs", "key".to_owned()),
    ]
    .into_iter()
    .map(|(kind, name)| Resource { kind: kind.parse().unwrap(), name })
    .collect();
    for resource in all.iter().rev().chain(&all) {
        store.add_resource("test", "l", resource).unwrap();
    }
    assert_eq!(store.resources("test", "l").unwrap(), all, "each once, though they do not exist");
    store.delete_resource("test", "l", &all[0]).unwrap();
    store.delete_resource("test", "l", &all[0]).unwrap();
    assert_eq!(store.resources("test", "l").unwrap(), all[1..]);
    let no_digest = Resource { kind: ResourceKind::Content, name: "x".to_owned() };
    assert!(is_invalid(store.add_resource("test", "l", &no_digest), "content resource"));
    for call in [Store::add_resource, Store::delete_resource] {
        assert!(is_missing(call(store, "test", "none", &all[1]), ObjectKind::Lease, "none"));
    }
    assert!(is_missing(store.resources("test", "none"), ObjectKind::Lease, "none"));
    store.delete_lease("test", "l").unwrap();
    store.create_lease("test", "l", labels([])).unwrap();
    assert!(store.resources("test", "l").unwrap().is_empty());
    for wrong in ["", "content/x", "snapshots", "snapshots/", "snapshots/a/b", "containers"] {
        assert!(is_invalid(wrong.parse::<ResourceKind>(), "resource type"), "{wrong}");
    }
}

#[test]
fn a_scoped_lease_expires_by_itself() {
    let root = Root::new();
    let with = root.store.scoped_lease(&scope(), 3600).unwrap();
    let lease = &root.store.leases("test", &[]).unwrap()[0];
    assert_eq!(with.lease.as_deref(), Some(lease.id.as_str()));
    let expires: jiff::Timestamp = lease.labels["containerd.io/gc.expire"].parse().unwrap();
    let seconds = expires.as_second() - lease.created_at.as_second();
    assert!((3599..=3601).contains(&seconds), "{seconds}");
}

/// containerd leases an image only if it would expire: others are roots themselves.
#[test]
fn an_image_that_expires_is_leased() {
    let root = Root::new();
    let store = &root.store;
    store.create_lease("test", "l", labels([])).unwrap();
    let leased = scope().with_lease("l");
    store.create_image(&leased, image("stays", "a")).unwrap();
    let mut expiring = image("expires", "a");
    expiring.labels = labels([("containerd.io/gc.expire", "2030-01-01T00:00:00Z")]);
    store.create_image(&leased, expiring.clone()).unwrap();
    let held = store.resources("test", "l").unwrap();
    assert_eq!(held, [Resource { kind: ResourceKind::Images, name: "expires".to_owned() }]);
    expiring.name = "other".to_owned();
    let unknown = store.create_image(&scope().with_lease("none"), expiring);
    assert!(is_missing(unknown, ObjectKind::Lease, "none"));
    store.delete_image(&leased, "expires", None).unwrap();
    assert!(store.resources("test", "l").unwrap().is_empty());
}

#[test]
fn a_namespace_comes_with_what_is_in_it() {
    let root = Root::new();
    let store = &root.store;
    assert!(store.namespaces().unwrap().is_empty());
    assert_eq!(store.namespace("unknown").unwrap().labels, labels([]), "an unknown one is empty");
    store.create_image(&scope(), image("a", "a")).unwrap();
    store.create_lease("leases", "l", labels([])).unwrap();
    store.create_namespace("made", labels([("k", "v")])).unwrap();
    let all: Vec<_> = store.namespaces().unwrap().into_iter().map(|n| n.name).collect();
    assert_eq!(all, ["leases", "made", "test"]);
    let again = store.create_namespace("test", labels([]));
    assert!(matches!(again, Err(Error::AlreadyExists { kind: ObjectKind::Namespace, .. })));
    let updated = store.update_namespace("made", labels([("l", "w")]), &texts(["labels.l"])).unwrap();
    assert_eq!(updated.labels, labels([("k", "v"), ("l", "w")]));
    assert_eq!(store.update_namespace("made", labels([("z", "1")]), &[]).unwrap().labels, labels([("z", "1")]));
    assert_eq!(store.namespace("made").unwrap().labels, labels([("z", "1")]));
}

#[test]
fn only_an_empty_namespace_is_deleted() {
    let root = Root::new();
    let store = &root.store;
    store.create_image(&scope(), image("a", "a")).unwrap();
    store.snapshots(&scope(), "").unwrap().prepare("key", "", labels([])).unwrap();
    let refused = store.delete_namespace("test").unwrap_err().to_string();
    assert!(refused.contains("images, snapshots"), "{refused}");
    store.delete_image(&scope(), "a", None).unwrap();
    store.snapshots(&scope(), "").unwrap().remove("key").unwrap();
    store.create_lease("test", "l", labels([])).unwrap();
    store.delete_namespace("test").unwrap();
    assert!(store.leases("test", &[]).unwrap().is_empty());
    assert!(is_missing(store.delete_namespace("test"), ObjectKind::Namespace, "test"));
    assert_eq!(store.check_metadata().unwrap(), []);
}

#[test]
fn namespaces_are_identifiers() {
    let root = Root::new();
    let long = "a".repeat(76);
    for good in ["k8s.io", "moby", "a-b_c.d", "0", &long] {
        root.store.create_namespace(good, labels([])).unwrap();
    }
    let longer = "a".repeat(77);
    for bad in ["", "-a", "a-", "a..b", "a._b", "a/b", "a b", "é", "..", &longer] {
        assert!(is_invalid(root.store.create_namespace(bad, labels([])), "namespace"), "{bad:?}");
    }
}

#[test]
fn summaries_are_remembered() {
    let root = Root::new();
    let store = &root.store;
    let summary = ManifestSummary {
        size: 7,
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        image_id: Some(orlop_oci::ImageId::new(digest("config"))),
        config_size: 3,
        platform: Some("linux/arm/v7".parse().unwrap()),
        user: "65532:65532".to_owned(),
        chain: vec![orlop_oci::ChainId::new(digest("chain"))],
        layers: vec![(digest("layer"), 9)],
        manifests: vec![(digest("child"), 5, None)],
    };
    store.put_summaries(&[(digest("a"), summary.clone()), (digest("b"), summary.clone())]).unwrap();
    assert_eq!(store.summary(&digest("a")).unwrap(), Some(summary));
    assert_eq!(store.summary(&digest("c")).unwrap(), None);
    assert_eq!(store.summaries().unwrap().len(), 2);
}

#[test]
fn records_of_a_target_are_found_by_it() {
    let root = Root::new();
    for (name, text) in [("b", "one"), ("a", "one"), ("c", "two"), ("d", "three")] {
        root.store.create_image(&scope(), image(name, text)).unwrap();
    }
    root.store.create_image(&Scope::new("other", "tests"), image("e", "one")).unwrap();
    let found = |texts: &[&str]| {
        let targets = texts.iter().map(|text| digest(text)).collect();
        root.store.images_of("test", &targets).unwrap().into_iter().map(|image| image.name).collect::<Vec<_>>()
    };
    assert_eq!(found(&["two", "one", "none"]), ["a", "b", "c"]);
    assert!(found(&[]).is_empty());
}
