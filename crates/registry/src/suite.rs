//! The contract of a [`RegistryIndex`] as tests: every implementation passes them unedited.
//!
//! A test file says `orlop_registry::index_suite!(factory);` where `factory` is an async function that makes a
//! [`Fixture`] with an empty index. Each case becomes one test.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use orlop_oci::{Digest, media_type};

use crate::{IndexError, IndexResult, ManifestKey, ManifestRecord, RegistryIndex};

/// An empty index, and what must live as long as it.
pub struct Fixture {
    /// The index.
    pub index: Arc<dyn RegistryIndex>,
    /// A temporary directory or the like, dropped last.
    pub keep: Box<dyn Any + Send + Sync>,
    /// Puts a blob's bytes where an index looks that knows whether they are there.
    pub bring: Arc<dyn Fn(Digest) -> BoxFuture<'static, ()> + Send + Sync>,
}

impl Fixture {
    /// An index and what must live as long as it.
    pub fn new(index: impl RegistryIndex + 'static, keep: impl Any + Send + Sync) -> Self {
        let bring = Arc::new(|_| -> BoxFuture<'static, ()> { Box::pin(async {}) });
        Self { index: Arc::new(index), keep: Box::new(keep), bring }
    }

    /// With what brings the bytes of a blob.
    #[must_use]
    pub fn bringing(mut self, bring: impl Fn(Digest) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        self.bring = Arc::new(bring);
        self
    }

    /// Brings a manifest's bytes and those of its children, as its push would have.
    async fn bring_all(&self, repository: &str, record: &ManifestRecord) {
        (self.bring)(record.digest.clone()).await;
        for child in &record.children {
            (self.bring)(child.clone()).await;
            self.index.link_blob(repository, child).await.unwrap();
        }
    }
}

/// Makes one test of each case of the contract. The argument is an `async fn() -> Fixture`.
#[macro_export]
macro_rules! index_suite {
    ($factory:path) => {
        $crate::index_suite! { @cases $factory,
            blobs_belong_to_repositories
            manifests_are_found_by_tag_and_digest
            a_tag_moves_and_its_manifest_stays
            putting_again_replaces_the_record
            deleting_a_tag_keeps_the_manifest
            deleting_a_manifest_takes_its_tags
            referrers_are_found_by_subject
            lists_come_in_pages_in_lexical_order
            names_that_nobody_put_are_missing
            writers_at_once_lose_nothing
        }
    };
    (@cases $factory:path, $($case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::suite::$case(&$factory().await).await;
            }
        )*
    };
}

fn record(seed: &str) -> ManifestRecord {
    ManifestRecord {
        digest: Digest::of(seed.as_bytes()),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: seed.len() as u64,
        subject: None,
        artifact_type: Some("test/type".to_owned()),
        annotations: BTreeMap::from([("key".to_owned(), seed.to_owned())]),
        children: vec![Digest::of(b"second"), Digest::of(b"first")],
        elsewhere: Vec::new(),
    }
}

fn by_tag(tag: &str) -> ManifestKey {
    ManifestKey::Tag(tag.to_owned())
}

fn by_digest(record: &ManifestRecord) -> ManifestKey {
    ManifestKey::Digest(record.digest.clone())
}

async fn put(fixture: &Fixture, repository: &str, record: &ManifestRecord, tags: &[&str]) {
    fixture.bring_all(repository, record).await;
    let tags: Vec<_> = tags.iter().map(|tag| (*tag).to_owned()).collect();
    fixture.index.put_manifest(repository, record.clone(), &tags).await.unwrap();
}

fn missing<T>(result: IndexResult<T>) -> &'static str {
    match result {
        Ok(_) => "nothing",
        Err(IndexError::NoRepository) => "repository",
        Err(IndexError::NoManifest) => "manifest",
        Err(IndexError::NoBlob) => "blob",
        Err(error) => panic!("{error}"),
    }
}

#[allow(missing_docs, reason = "the names say it; the macro lists them")]
mod cases {
    use super::*;

    pub async fn blobs_belong_to_repositories(fixture: &Fixture) {
        let index = &*fixture.index;
        let digest = Digest::of(b"blob");
        (fixture.bring)(digest.clone()).await;
        for _ in 0..2 {
            index.link_blob("a", &digest).await.unwrap();
        }
        assert!(index.has_blob("a", &digest).await.unwrap());
        assert!(!index.has_blob("b", &digest).await.unwrap());
        assert!(!index.has_blob("a", &Digest::of(b"other")).await.unwrap());
        index.unlink_blob("a", &digest).await.unwrap();
        assert!(!index.has_blob("a", &digest).await.unwrap());
        assert_eq!(missing(index.unlink_blob("a", &digest).await), "blob");
    }

    pub async fn manifests_are_found_by_tag_and_digest(fixture: &Fixture) {
        let index = &*fixture.index;
        let one = record("one");
        put(fixture, "a", &one, &["x", "y"]).await;
        for key in [by_tag("x"), by_tag("y"), by_digest(&one)] {
            assert_eq!(index.manifest("a", &key).await.unwrap(), one);
        }
        assert_eq!(missing(index.manifest("a", &by_tag("z")).await), "manifest");
    }

    pub async fn a_tag_moves_and_its_manifest_stays(fixture: &Fixture) {
        let index = &*fixture.index;
        let (one, two) = (record("one"), record("two"));
        put(fixture, "a", &one, &["x"]).await;
        put(fixture, "a", &two, &["x"]).await;
        assert_eq!(index.manifest("a", &by_tag("x")).await.unwrap(), two);
        assert_eq!(index.manifest("a", &by_digest(&one)).await.unwrap(), one);
    }

    pub async fn putting_again_replaces_the_record(fixture: &Fixture) {
        let index = &*fixture.index;
        let first = record("same bytes");
        let second = ManifestRecord { media_type: media_type::DOCKER_MANIFEST.to_owned(), ..first.clone() };
        put(fixture, "a", &first, &["x"]).await;
        put(fixture, "a", &second, &[]).await;
        assert_eq!(index.manifest("a", &by_tag("x")).await.unwrap(), second);
    }

    pub async fn deleting_a_tag_keeps_the_manifest(fixture: &Fixture) {
        let index = &*fixture.index;
        let one = record("one");
        put(fixture, "a", &one, &["x", "y"]).await;
        index.delete_manifest("a", &by_tag("x")).await.unwrap();
        assert_eq!(missing(index.manifest("a", &by_tag("x")).await), "manifest");
        for key in [by_tag("y"), by_digest(&one)] {
            assert_eq!(index.manifest("a", &key).await.unwrap(), one);
        }
        assert_eq!(missing(index.delete_manifest("a", &by_tag("x")).await), "manifest");
    }

    pub async fn deleting_a_manifest_takes_its_tags(fixture: &Fixture) {
        let index = &*fixture.index;
        let (one, two) = (record("one"), record("two"));
        put(fixture, "a", &one, &["x", "y"]).await;
        put(fixture, "a", &two, &["z"]).await;
        put(fixture, "b", &one, &["x"]).await;
        index.delete_manifest("a", &by_digest(&one)).await.unwrap();
        for key in [by_tag("x"), by_tag("y"), by_digest(&one)] {
            assert_eq!(missing(index.manifest("a", &key).await), "manifest");
        }
        assert_eq!(index.tags("a", None, 10).await.unwrap(), ["z"]);
        assert_eq!(index.manifest("b", &by_tag("x")).await.unwrap(), one, "another repository keeps it");
        assert_eq!(missing(index.delete_manifest("a", &by_digest(&one)).await), "manifest");
    }

    pub async fn referrers_are_found_by_subject(fixture: &Fixture) {
        let index = &*fixture.index;
        let subject = record("subject");
        let about = |seed| ManifestRecord { subject: Some(subject.digest.clone()), ..record(seed) };
        let (one, two) = (about("one"), about("two"));
        for referrer in [&one, &two] {
            put(fixture, "a", referrer, &[]).await;
        }
        put(fixture, "a", &record("unrelated"), &[]).await;
        put(fixture, "b", &about("elsewhere"), &[]).await;
        let mut expected = vec![one.clone(), two.clone()];
        expected.sort_by(|a, b| a.digest.cmp(&b.digest));
        assert_eq!(index.referrers("a", &subject.digest).await.unwrap(), expected);
        index.delete_manifest("a", &by_digest(&one)).await.unwrap();
        assert_eq!(index.referrers("a", &subject.digest).await.unwrap(), [two]);
        assert!(index.referrers("none", &subject.digest).await.unwrap().is_empty());
    }

    pub async fn lists_come_in_pages_in_lexical_order(fixture: &Fixture) {
        let index = &*fixture.index;
        let one = record("one");
        // By bytes: capitals, then the underscore, then small letters.
        for tag in ["b", "a", "B", "_", "a.1", "10", "9"] {
            put(fixture, "r", &one, &[tag]).await;
        }
        let all = ["10", "9", "B", "_", "a", "a.1", "b"];
        assert_eq!(index.tags("r", None, 100).await.unwrap(), all);
        assert_eq!(index.tags("r", None, 2).await.unwrap(), all[..2]);
        assert_eq!(index.tags("r", Some("9"), 3).await.unwrap(), all[2..5]);
        assert_eq!(index.tags("r", Some("a.0"), 100).await.unwrap(), all[5..], "after a name that is not there");
        assert!(index.tags("r", Some("b"), 100).await.unwrap().is_empty());
        assert!(index.tags("r", None, 0).await.unwrap().is_empty());
        index.link_blob("a/b", &one.digest).await.unwrap();
        put(fixture, "q", &one, &[]).await;
        assert_eq!(index.repositories(None, 100).await.unwrap(), ["a/b", "q", "r"]);
        assert_eq!(index.repositories(Some("a/b"), 1).await.unwrap(), ["q"]);
    }

    pub async fn names_that_nobody_put_are_missing(fixture: &Fixture) {
        let index = &*fixture.index;
        let one = record("one");
        assert_eq!(missing(index.manifest("a", &by_tag("x")).await), "repository");
        assert_eq!(missing(index.delete_manifest("a", &by_digest(&one)).await), "repository");
        assert_eq!(missing(index.tags("a", None, 10).await), "repository");
        assert_eq!(missing(index.unlink_blob("a", &one.digest).await), "blob");
        assert!(!index.has_blob("a", &one.digest).await.unwrap());
        assert!(index.repositories(None, 10).await.unwrap().is_empty());
    }

    pub async fn writers_at_once_lose_nothing(fixture: &Fixture) {
        for (writer, i) in (0..8).flat_map(|writer| (0..10).map(move |i| (writer, i))) {
            fixture.bring_all("r", &record(&format!("{writer} {i}"))).await;
        }
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let index = fixture.index.clone();
                tokio::spawn(async move {
                    for i in 0..10 {
                        let record = record(&format!("{writer} {i}"));
                        let tags = [format!("t{writer}-{i}"), "latest".to_owned()];
                        index.put_manifest("r", record, &tags).await.unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let index = &*fixture.index;
        assert_eq!(index.tags("r", None, 1000).await.unwrap().len(), 81);
        for writer in 0..8 {
            let found = index.manifest("r", &by_tag(&format!("t{writer}-9"))).await.unwrap();
            assert_eq!(found, record(&format!("{writer} 9")));
        }
        let latest = index.manifest("r", &by_tag("latest")).await.unwrap();
        assert!(latest.annotations["key"].ends_with(" 9"), "the last of some writer");
    }
}

pub use cases::*;
