//! Content in a namespace: the contract of a content store, and what namespaces and leases add.

use std::sync::Arc;

use crate::support::{Root, digest, labels, scope, texts};
use bytes::Bytes;
use orlop_content::suite::Fixture;
use orlop_content::{
    Error, IngestManager, IngestOptions, Ingester, LocalStore, Manager, Provider, Writer, read_verified,
};
use orlop_metadata::{OpenOptions, Resource, ResourceKind, Scope, Store};
use orlop_oci::Digest;

mod over_memory {
    use super::*;

    async fn fixture() -> Fixture {
        let root = Root::new();
        Fixture::keeping(root.store.content(&scope()), root.directory)
    }

    orlop_content::content_suite!(fixture);
}

mod over_files {
    use super::*;

    async fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let content = Arc::new(LocalStore::open(directory.path().join("content")).unwrap());
        let options = OpenOptions { content, drivers: Vec::new(), read_only: false };
        let store = Store::open(directory.path(), options).unwrap();
        Fixture::keeping(store.content(&scope()), directory)
    }

    orlop_content::content_suite!(fixture);
}

fn named(reference: &str, expected: Option<&Digest>) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), total: 0, expected: expected.cloned() }
}

async fn put(store: &Store, scope: &Scope, text: &'static str) -> Digest {
    let content = store.content(scope);
    let mut writer = content.writer(named(text, None)).await.unwrap();
    writer.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    writer.commit(text.len() as u64, None).await.unwrap()
}

fn failure<T>(result: Result<T, Error>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

fn other() -> Scope {
    Scope::new("other", "tests")
}

fn resource(kind: ResourceKind, name: &str) -> Resource {
    Resource { kind, name: name.to_owned() }
}

#[tokio::test]
async fn one_namespace_does_not_see_the_content_of_another() {
    let root = Root::new();
    let digest = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&other());
    assert!(matches!(failure(content.open(&digest).await), Error::NotFound { kind: "blob", .. }));
    assert!(matches!(failure(content.info(&digest).await), Error::NotFound { kind: "blob", .. }));
    assert!(content.list().await.unwrap().is_empty());
    assert!(content.stat(&digest).is_err());
    drop(root.store.content(&scope()).writer(named("mine", None)).await.unwrap());
    assert!(content.statuses().await.unwrap().is_empty());
    assert!(matches!(failure(content.abort("mine").await), Error::NotFound { kind: "ingest", .. }));
}

#[tokio::test]
async fn what_another_namespace_has_is_adopted_without_bytes() {
    let root = Root::new();
    let digest = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&other());
    let mut writer = content.writer(named("fetch", Some(&digest))).await.unwrap();
    let status = writer.status();
    assert_eq!((status.offset, status.total, status.expected), (5, 5, Some(digest.clone())));
    assert_eq!(writer.digest(), digest);
    assert!(content.stat(&digest).is_err(), "not before the commit");
    assert_eq!(writer.commit(5, Some(&digest)).await.unwrap(), digest);
    assert_eq!(read_verified(&content, &digest, 10).await.unwrap(), "bytes");
    assert_eq!(content.stat(&digest).unwrap().size, 5);
    assert!(matches!(failure(content.status("fetch").await), Error::NotFound { .. }), "the ref is free");
    assert!(root.content.statuses().await.unwrap().is_empty());
    assert!(matches!(failure(writer.commit(5, None).await), Error::NotFound { kind: "ingest", .. }));
}

#[tokio::test]
async fn an_adopted_writer_checks_what_it_is_asked_for() {
    let root = Root::new();
    let there = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&other());
    let mut writer = content.writer(named("fetch", Some(&there))).await.unwrap();
    assert!(matches!(failure(writer.commit(6, None).await), Error::SizeMismatch { expected: 6, actual: 5, .. }));
    let wrong = digest("wrong");
    assert!(matches!(failure(writer.commit(5, Some(&wrong)).await), Error::DigestMismatch { .. }));
    assert!(content.stat(&there).is_err());
    writer.commit(0, None).await.unwrap();
}

#[tokio::test]
async fn an_adopted_writer_can_be_written_on() {
    let root = Root::new();
    let there = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&other());
    let mut writer = content.writer(named("again", Some(&there))).await.unwrap();
    writer.truncate(0).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"bytes")).await.unwrap();
    assert_eq!(writer.commit(5, Some(&there)).await.unwrap(), there, "as good as any writer");

    let mut writer =
        root.store.content(&Scope::new("third", "tests")).writer(named("more", Some(&there))).await.unwrap();
    writer.write(Bytes::from_static(b" and more")).await.unwrap();
    assert_eq!(writer.status().offset, 14);
    assert_eq!(writer.commit(14, None).await.unwrap(), digest("bytes and more"));
}

#[tokio::test]
async fn a_size_that_does_not_fit_is_no_reason_to_adopt() {
    let root = Root::new();
    let there = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&other());
    let options = IngestOptions { total: 99, ..named("fetch", Some(&there)) };
    let mut writer = content.writer(options).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"bytes")).await.unwrap();
    assert!(matches!(failure(writer.commit(99, Some(&there)).await), Error::SizeMismatch { .. }));
    assert!(content.stat(&there).is_err());
}

#[tokio::test]
async fn bytes_that_another_namespace_has_under_another_ref_are_shared() {
    let root = Root::new();
    put(&root.store, &scope(), "bytes").await;
    let there = put(&root.store, &other(), "bytes").await;
    assert_eq!(root.content.list().await.unwrap().len(), 1);
    root.store.content(&scope()).forget(&there).unwrap();
    assert_eq!(read_verified(&root.store.content(&other()), &there, 10).await.unwrap(), "bytes");
    assert_eq!(root.content.list().await.unwrap().len(), 1, "only a collection deletes bytes");
}

#[tokio::test]
async fn what_is_written_is_leased() {
    let root = Root::new();
    root.store.create_lease("test", "held", labels([])).unwrap();
    let held = scope().with_lease("held");
    let content = root.store.content(&held);
    let mut writer = content.writer(named("ref", None)).await.unwrap();
    let ingest = resource(ResourceKind::Ingests, "ref");
    assert_eq!(root.store.resources("test", "held").unwrap(), [ingest]);
    writer.write(Bytes::from_static(b"leased")).await.unwrap();
    let there = writer.commit(6, None).await.unwrap();
    let blob = resource(ResourceKind::Content, there.as_str());
    assert_eq!(
        root.store.resources("test", "held").unwrap(),
        std::slice::from_ref(&blob),
        "the blob takes the place of the ingest"
    );

    root.store.create_lease("test", "second", labels([])).unwrap();
    let second = root.store.content(&scope().with_lease("second"));
    assert!(matches!(failure(second.writer(named("r", Some(&there))).await), Error::AlreadyExists(_)));
    assert_eq!(root.store.resources("test", "second").unwrap(), [blob], "what exists already is leased too");
}

#[tokio::test]
async fn an_unknown_lease_is_not_found() {
    let root = Root::new();
    let there = put(&root.store, &scope(), "bytes").await;
    let content = root.store.content(&scope().with_lease("nowhere"));
    for expected in [None, Some(&there)] {
        let error = failure(content.writer(named("ref", expected)).await);
        let error = orlop_metadata::Error::from(error);
        assert!(
            matches!(&error, orlop_metadata::Error::NotFound { kind: orlop_metadata::ObjectKind::Lease, name } if name == "nowhere"),
            "{error:?}"
        );
    }
    assert!(content.statuses().await.unwrap().is_empty());
}

#[tokio::test]
async fn labels_follow_the_mask() {
    let root = Root::new();
    let content = root.store.content(&scope());
    let there = put(&root.store, &scope(), "bytes").await;
    let made = content.stat(&there).unwrap();
    let info = content.update(&there, labels([("a", "1"), ("b.c/d", "2"), ("gone", "")]), &[]).unwrap();
    assert_eq!(info.labels, labels([("a", "1"), ("b.c/d", "2")]));
    assert_eq!((info.created_at, info.size), (made.created_at, 5));
    assert!(info.updated_at >= made.updated_at);
    let given = labels([("b.c/d", "3"), ("ignored", "x")]);
    let info = content.update(&there, given, &texts(["labels.b.c/d", "labels.a"])).unwrap();
    assert_eq!(info.labels, labels([("b.c/d", "3")]), "a key that is not given is deleted");
    assert_eq!(content.stat(&there).unwrap(), info);
    assert!(content.update(&there, labels([]), &texts(["size"])).is_err());
    assert!(content.update(&digest("none"), labels([]), &[]).is_err());
    let long = "x".repeat(4096);
    assert!(content.update(&there, labels([("k", &long)]), &[]).is_err(), "4097 bytes");
    content.update(&there, labels([("k", &long[1..])]), &[]).unwrap();
}

#[tokio::test]
async fn labels_of_many_blobs_are_merged_at_once_or_not_at_all() {
    let root = Root::new();
    let content = root.store.content(&scope());
    let (one, two) = (put(&root.store, &scope(), "one").await, put(&root.store, &scope(), "two").await);
    content.update(&one, labels([("old", "1")]), &[]).unwrap();
    content.label_all(&[(one.clone(), labels([("new", "2")])), (two.clone(), labels([("new", "3")]))]).unwrap();
    assert_eq!(content.stat(&one).unwrap().labels, labels([("new", "2"), ("old", "1")]));
    let missing = (digest("none"), labels([("new", "4")]));
    assert!(content.label_all(&[(two.clone(), labels([("new", "9")])), missing]).is_err());
    assert_eq!(content.stat(&two).unwrap().labels, labels([("new", "3")]));
}

#[tokio::test]
async fn blobs_are_found_by_filter() {
    let root = Root::new();
    let content = root.store.content(&scope());
    let (one, two) = (put(&root.store, &scope(), "one").await, put(&root.store, &scope(), "two").await);
    content.update(&one, labels([("containerd.io/distribution.source.docker.io", "library/a")]), &[]).unwrap();
    let found = |filter: &str| {
        let found = content.find(&texts([filter])).unwrap();
        found.into_iter().map(|i| i.digest).collect::<Vec<_>>()
    };
    assert_eq!(found(r#"labels."containerd.io/distribution.source.docker.io"==library/a"#), [one]);
    assert_eq!(found(&format!("digest=={two}")), [two]);
    assert_eq!(found("").len(), 2);
    assert!(found("size==3").is_empty(), "as in containerd, size is no field");
    assert!(content.find(&texts(["digest="])).is_err());
}

#[tokio::test]
async fn an_abort_frees_the_bytes_and_the_lease() {
    let root = Root::new();
    root.store.create_lease("test", "held", labels([])).unwrap();
    let content = root.store.content(&scope().with_lease("held"));
    let mut writer = content.writer(named("ref", None)).await.unwrap();
    writer.write(Bytes::from_static(b"half")).await.unwrap();
    drop(writer);
    content.abort("ref").await.unwrap();
    assert!(root.store.resources("test", "held").unwrap().is_empty());
    assert!(root.content.statuses().await.unwrap().is_empty());
}

/// Two namespaces may use one ref, and one ref may be used again while an aborted writer still lives.
#[tokio::test]
async fn refs_are_a_namespaces_own() {
    let root = Root::new();
    let (mine, theirs) = (root.store.content(&scope()), root.store.content(&other()));
    let mut one = mine.writer(named("ref", None)).await.unwrap();
    let mut two = theirs.writer(named("ref", None)).await.unwrap();
    one.write(Bytes::from_static(b"one")).await.unwrap();
    two.write(Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(one.commit(3, None).await.unwrap(), digest("one"));
    assert_eq!(two.commit(3, None).await.unwrap(), digest("two"));
    assert_eq!(theirs.list().await.unwrap().len(), 1);
}

/// A second opener that names another digest must not take away what the first one's commit relies on.
#[tokio::test]
async fn an_opener_with_another_digest_does_not_disturb_the_writer() {
    let root = Root::new();
    let there = put(&root.store, &other(), "theirs").await;
    let content = root.store.content(&scope());
    let mut first: Box<dyn Writer> = content.writer(named("ref", Some(&digest("mine")))).await.unwrap();
    first.write(Bytes::from_static(b"mine")).await.unwrap();
    let mut second = content.writer(named("ref", Some(&there))).await.unwrap();
    assert_eq!(second.commit(6, Some(&there)).await.unwrap(), there);
    assert!(matches!(failure(first.commit(4, None).await), Error::NotFound { kind: "ingest", .. }));
    assert!(content.stat(&digest("mine")).is_err());
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

#[tokio::test]
async fn a_store_that_lost_a_blob_says_so_when_it_is_read() {
    let root = Root::new();
    let there = put(&root.store, &scope(), "bytes").await;
    root.content.delete(&there).await.unwrap();
    let content = root.store.content(&scope());
    assert_eq!(content.info(&there).await.unwrap().size, 5);
    assert!(matches!(failure(content.open(&there).await), Error::NotFound { .. }));
}
