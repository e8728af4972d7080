//! What happens between the steps of a write: collections, other openers, failures. A raw store stops at the moment
//! when the bytes are visible in it and no namespace has them yet.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support;
use crate::support::{digest, scope};
use async_trait::async_trait;
use bytes::Bytes;
use orlop_content::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Manager, MemoryStore, Provider, Result, Status,
    Trash, Writer, read_verified,
};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{OpenOptions, Scope, Store};
use orlop_oci::Digest;

type Act = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send>;

/// A store in memory that does something before the next write is opened, or after the next commit, before it tells.
#[derive(Clone, Default)]
struct Stopping {
    inner: MemoryStore,
    first: Arc<Mutex<Option<Act>>>,
    then: Arc<Mutex<Option<Act>>>,
}

impl Stopping {
    fn then<F: Future<Output = Result<()>> + Send + 'static>(&self, act: impl FnOnce() -> F + Send + 'static) {
        *self.then.lock().unwrap() = Some(Box::new(|| Box::pin(act())));
    }

    fn first<F: Future<Output = Result<()>> + Send + 'static>(&self, act: impl FnOnce() -> F + Send + 'static) {
        *self.first.lock().unwrap() = Some(Box::new(|| Box::pin(act())));
    }
}

struct StoppingWriter {
    inner: Box<dyn Writer>,
    then: Arc<Mutex<Option<Act>>>,
}

#[async_trait]
impl Writer for StoppingWriter {
    fn status(&self) -> Status {
        self.inner.status()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.inner.write(bytes).await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.inner.truncate(size).await
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let result = self.inner.commit(size, expected).await;
        let act = self.then.lock().unwrap().take();
        if let Some(act) = act {
            act().await?;
        }
        result
    }

    fn digest(&self) -> Digest {
        self.inner.digest()
    }
}

#[async_trait]
impl Ingester for Stopping {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        let act = self.first.lock().unwrap().take();
        if let Some(act) = act {
            act().await?;
        }
        let inner = self.inner.writer(options).await?;
        Ok(Box::new(StoppingWriter { inner, then: self.then.clone() }))
    }
}

#[async_trait]
impl Provider for Stopping {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        self.inner.open(digest).await
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.inner.info(digest).await
    }
}

#[async_trait]
impl IngestManager for Stopping {
    async fn status(&self, reference: &str) -> Result<Status> {
        self.inner.status(reference).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.inner.statuses().await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.inner.abort(reference).await
    }
}

#[async_trait]
impl Manager for Stopping {
    async fn list(&self) -> Result<Vec<Info>> {
        self.inner.list().await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.inner.delete(digest).await
    }

    fn trash(&self) -> Option<&dyn Trash> {
        self.inner.trash()
    }
}

struct World {
    raw: Stopping,
    store: Store,
    _directory: tempfile::TempDir,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let raw = Stopping::default();
    let options = OpenOptions { content: Arc::new(raw.clone()), drivers: Vec::new(), read_only: false };
    let store = Store::open(Path::new(directory.path()), options).unwrap();
    World { raw, store, _directory: directory }
}

fn other() -> Scope {
    Scope::new("other", "tests")
}

fn named(reference: &str, expected: Option<&Digest>) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), total: 0, expected: expected.cloned() }
}

async fn put(store: &Store, scope: &Scope, text: &'static str) -> Result<Digest> {
    let mut writer = store.content(scope).writer(named(text, None)).await?;
    writer.write(Bytes::from_static(text.as_bytes())).await?;
    writer.commit(0, None).await
}

async fn collect(store: &Store) -> Result<()> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || store.collect_full(Disposal::Reclaim)).await.unwrap().unwrap();
    Ok(())
}

/// Every row has its bytes, and all bytes have a row.
async fn sound(world: &World) {
    let mut rows = std::collections::BTreeSet::new();
    for scope in [scope(), other()] {
        let content = world.store.content(&scope);
        for info in content.list().await.unwrap() {
            read_verified(&content, &info.digest, 1000).await.unwrap();
            rows.insert(info.digest.to_string());
        }
    }
    let raw: std::collections::BTreeSet<_> =
        world.raw.list().await.unwrap().into_iter().map(|i| i.digest.to_string()).collect();
    assert_eq!(raw, rows);
    assert_eq!(world.store.check_metadata().unwrap(), []);
}

fn keep(store: &Store, digest: &Digest) {
    let root = support::labels([("containerd.io/gc.root", "1")]);
    store.content(&scope()).update(digest, root, &[]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_between_rename_and_row_spares_the_bytes() {
    let world = world();
    let store = world.store.clone();
    world.raw.then(move || async move { collect(&store).await });
    let there = put(&world.store, &scope(), "bytes").await.unwrap();
    keep(&world.store, &there);
    sound(&world).await;
}

/// The bytes were another namespace's, which has let go of them: they are doomed when the write adopts them.
#[tokio::test(flavor = "multi_thread")]
async fn doomed_bytes_that_are_written_again_stay() {
    let world = world();
    let there = put(&world.store, &other(), "bytes").await.unwrap();
    world.store.content(&other()).forget(&there).unwrap();
    let store = world.store.clone();
    world.raw.then(move || async move { collect(&store).await });
    put(&world.store, &scope(), "bytes").await.unwrap();
    keep(&world.store, &there);
    sound(&world).await;
    collect(&world.store).await.unwrap();
    sound(&world).await;
    world.store.content(&scope()).stat(&there).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn adopting_what_is_doomed_is_safe() {
    let world = world();
    let there = put(&world.store, &other(), "bytes").await.unwrap();
    world.store.content(&other()).forget(&there).unwrap();
    let content = world.store.content(&scope());
    let mut writer = content.writer(named("adopt", Some(&there))).await.unwrap();
    assert_eq!(writer.status().offset, 5);
    collect(&world.store).await.unwrap();
    writer.commit(5, None).await.unwrap();
    keep(&world.store, &there);
    collect(&world.store).await.unwrap();
    sound(&world).await;
}

/// Someone aborts the write when its bytes are visible already: nobody gets them, and they go.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_between_rename_and_row_wins() {
    let world = world();
    let content = world.store.content(&scope());
    world.raw.then(move || async move { content.abort("bytes").await });
    let error = put(&world.store, &scope(), "bytes").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { kind: "ingest", .. }), "{error:?}");
    collect(&world.store).await.unwrap();
    sound(&world).await;
    assert!(world.raw.list().await.unwrap().is_empty());
}

/// Another opener of the ref names another blob and is done first. The bytes were not protected for a while and have
/// gone: no row may claim them.
#[tokio::test(flavor = "multi_thread")]
async fn another_opener_between_rename_and_row_leaves_no_row_without_bytes() {
    let world = world();
    let theirs = put(&world.store, &other(), "theirs").await.unwrap();
    let store = world.store.clone();
    world.raw.then(move || async move {
        let mut writer = store.content(&scope()).writer(named("bytes", Some(&theirs))).await?;
        writer.commit(0, None).await?;
        keep(&store, &theirs);
        collect(&store).await
    });
    let error = put(&world.store, &scope(), "bytes").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert!(world.store.content(&scope()).stat(&digest("bytes")).is_err());
    collect(&world.store).await.unwrap();
    sound(&world).await;
}

/// The same, but the other opener fails: the row is there and names his digest. The writer must look whether the bytes
/// are still there before it claims them.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_names_another_digest_is_not_trusted() {
    for lost in [false, true] {
        let world = world();
        let (store, raw) = (world.store.clone(), world.raw.clone());
        world.raw.then(move || async move {
            raw.then(|| async { Err(Error::Stopped) });
            let mut writer = store.content(&scope()).writer(named("bytes", None)).await?;
            writer.write(Bytes::from_static(b"others")).await?;
            assert!(matches!(writer.commit(0, None).await, Err(Error::Stopped)));
            if lost {
                raw.delete(&digest("bytes")).await?;
            }
            Ok(())
        });
        let result = put(&world.store, &scope(), "bytes").await;
        assert_eq!(result.is_ok(), !lost, "{result:?}");
        assert_eq!(world.store.content(&scope()).stat(&digest("bytes")).is_ok(), !lost);
        assert_eq!(world.store.check_metadata().unwrap(), []);
    }
}

/// A process that dies between rename and row leaves bytes that a full collection finds when the write has expired or
/// is aborted, and a write that can be done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_between_rename_and_row_can_be_repeated() {
    let world = world();
    world.raw.then(|| async { Err(Error::Stopped) });
    let error = put(&world.store, &scope(), "bytes").await.unwrap_err();
    assert!(matches!(error, Error::Stopped), "{error:?}");
    assert!(world.store.content(&scope()).list().await.unwrap().is_empty());
    collect(&world.store).await.unwrap();
    assert_eq!(world.raw.list().await.unwrap().len(), 1, "the write may go on");
    put(&world.store, &scope(), "bytes").await.unwrap();
    keep(&world.store, &digest("bytes"));
    sound(&world).await;
}

/// Regression: a blob that the namespace had when a commit began, and that was collected before its end, made the commit
/// fail: the write has the bytes, and goes on with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_collected_within_a_commit_is_written_anew() {
    let world = world();
    let (store, ended) = (world.store.clone(), Arc::new(AtomicBool::new(false)));
    let until = ended.clone();
    let collecting = tokio::task::spawn_blocking(move || {
        while !until.load(Ordering::SeqCst) {
            store.collect(Disposal::Reclaim).unwrap();
        }
    });
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..3 {
        let store = world.store.clone();
        writing.spawn(async move {
            for round in 0..200 {
                let mut writer = store.content(&scope()).writer(named(&format!("{writer} {round}"), None)).await?;
                writer.write(Bytes::from_static(b"bytes")).await?;
                match writer.commit(0, None).await {
                    Ok(_) | Err(Error::AlreadyExists(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
    }
    let results = writing.join_all().await;
    ended.store(true, Ordering::SeqCst);
    collecting.await.unwrap();
    for result in results {
        result.unwrap();
    }
    sound(&world).await;
}

/// Regression: who opened a ref at the moment when its write ended, and its blob went again, wrote beside every row. He was told in the
/// end that there is no such write, and what he had written stayed on disk for a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_ends_while_its_ref_is_opened_leaves_nothing_without_a_row() {
    let world = world();
    let content = world.store.content(&scope());
    let expected = Digest::of(b"bytes");
    let mut before = content.writer(named("bytes", Some(&expected))).await.unwrap();
    before.write(Bytes::from_static(b"bytes")).await.unwrap();
    let (store, digest) = (world.store.clone(), expected.clone());
    world.raw.first(move || async move {
        before.commit(0, None).await?;
        drop(before);
        store.content(&scope()).forget(&digest).unwrap();
        collect(&store).await
    });
    let mut writer = content.writer(named("bytes", Some(&expected))).await.unwrap();
    assert_eq!(content.statuses().await.unwrap().len(), 1, "it is a write with a row");
    assert_eq!(world.raw.statuses().await.unwrap().len(), 1);
    writer.write(Bytes::from_static(b"bytes")).await.unwrap();
    writer.commit(0, None).await.unwrap();
    assert_eq!(world.raw.statuses().await.unwrap(), []);
    sound(&world).await;
}

/// Regression: a write of what another namespace brought meanwhile was ended by another opener of its ref, who found the blob there; when the
/// blob went again, the bytes of the first stayed on disk for a day.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_another_ended_by_what_was_there_leaves_nothing() {
    for commits in [true, false] {
        let world = world();
        let content = world.store.content(&scope());
        let expected = Digest::of(b"bytes");
        let mut first = content.writer(named("bytes", Some(&expected))).await.unwrap();
        first.write(Bytes::from_static(b"bytes")).await.unwrap();
        assert_eq!(put(&world.store, &other(), "bytes").await.unwrap(), expected);
        let mut second = content.writer(named("bytes", Some(&expected))).await.unwrap();
        second.commit(0, None).await.unwrap();
        for scope in [scope(), other()] {
            world.store.content(&scope).forget(&expected).unwrap();
        }
        collect(&world.store).await.unwrap();
        if commits {
            let error = first.commit(0, None).await.unwrap_err();
            assert!(matches!(error, Error::NotFound { kind: "ingest", .. }), "{error:?}");
        }
        drop(first);
        assert_eq!(world.raw.statuses().await.unwrap(), []);
        sound(&world).await;
    }
}
