//! Several writes and several snapshots at once: what is done together stands or falls as if each had been done by itself, and between
//! the steps nothing is lost to a collection, to another writer or to a crash.

use crate::support::{Root, digest, labels, refused, scope, texts};
use bytes::Bytes;
use orlop_content::{self as content, IngestManager, IngestOptions, Manager, Writer, read_verified};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Brought, Error, Scope, ScopedContent, SnapshotKind, Store};
use orlop_oci::Digest;
use orlop_snapshot::Driver;

const ALL: [&str; 3] = ["first", "second", "third"];

fn reference(text: &str) -> String {
    format!("layer-{}", digest(text))
}

fn announce(content: &ScopedContent) {
    content.announce(&ALL.map(|text| (reference(text), digest(text)))).unwrap();
}

async fn bring(content: &ScopedContent, text: &'static str) -> content::Result<Option<Brought>> {
    let (expected, total) = (Some(digest(text)), text.len() as u64);
    let mut writer = content.scoped_writer(IngestOptions { reference: reference(text), total, expected }).await?;
    if writer.status().offset == 0 {
        writer.write(Bytes::from_static(text.as_bytes())).await?;
    }
    writer.bring(total, Some(&digest(text))).await
}

async fn bring_all(content: &ScopedContent) -> Vec<Brought> {
    announce(content);
    let mut brought = Vec::new();
    for text in ALL {
        brought.extend(bring(content, text).await.unwrap());
    }
    assert_eq!(brought.len(), ALL.len());
    brought
}

async fn collect(store: &Store) {
    let store = store.clone();
    tokio::task::spawn_blocking(move || store.collect_full(Disposal::Reclaim)).await.unwrap().unwrap();
}

async fn names(content: &ScopedContent) -> Vec<Digest> {
    content.list().await.unwrap().into_iter().map(|info| info.digest).collect()
}

fn leased(root: &Root) -> Scope {
    scope().with_lease(root.store.create_lease("test", "mine", labels([])).unwrap().id)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_wait_to_be_shown_are_held_and_are_nobodys_blob_yet() {
    let root = Root::new();
    let content = root.store.content(&leased(&root));
    let brought = bring_all(&content).await;
    assert_eq!(names(&content).await, []);
    collect(&root.store).await;
    let shown = content.show_all(brought).await.unwrap();
    assert!(shown.iter().all(Result::is_ok), "{shown:?}");
    assert_eq!(names(&content).await.len(), ALL.len());
    assert_eq!(content.statuses().await.unwrap(), [], "their writes have ended");
    // The lease holds them as what they are now.
    collect(&root.store).await;
    for text in ALL {
        assert_eq!(read_verified(&content, &digest(text), 100).await.unwrap(), text);
    }
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

/// What a killed process has brought and not shown another one shows, without the bytes coming again.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_showed_is_found_by_the_next() {
    let root = Root::new();
    drop(bring_all(&root.store.content(&scope())).await);
    let store = root.reopened();
    collect(&store).await;
    let content = store.content(&scope());
    for text in ALL {
        let (expected, total) = (Some(digest(text)), text.len() as u64);
        let options = IngestOptions { reference: reference(text), total, expected };
        let mut writer = content.scoped_writer(options).await.unwrap();
        assert_eq!(writer.status().offset, total, "all of it is here");
        assert_eq!(writer.commit(total, None).await.unwrap(), digest(text));
    }
    assert_eq!(names(&content).await.len(), ALL.len());
    assert_eq!(store.check_metadata().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_told_how_its_write_ended() {
    let root = Root::new();
    let content = root.store.content(&leased(&root));
    let brought = bring_all(&content).await;
    // Another shows the first, the second is aborted and its bytes go.
    let mut theirs = content
        .scoped_writer(IngestOptions { reference: reference("first"), total: 0, expected: Some(digest("first")) })
        .await
        .unwrap();
    theirs.commit(0, None).await.unwrap();
    content.abort(&reference("second")).await.unwrap();
    collect(&root.store).await;
    let shown = content.show_all(brought).await.unwrap();
    assert!(matches!(&shown[..], [Ok(()), Err(content::Error::NotFound { kind: "ingest", .. }), Ok(())]), "{shown:?}");
    let mut there = [digest("first"), digest("third")];
    there.sort();
    assert_eq!(names(&content).await, there);
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

/// They end as other writes without a lease: by time, which is tested elsewhere, or when they are aborted.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_were_announced_and_never_opened_are_none() {
    let root = Root::new();
    let content = root.store.content(&scope());
    announce(&content);
    assert_eq!(content.statuses().await.unwrap(), []);
    assert!(matches!(content.status(&reference("first")).await, Err(content::Error::NotFound { .. })));
    for text in ALL {
        content.abort(&reference(text)).await.unwrap();
    }
    collect(&root.store).await;
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

#[test]
fn snapshots_are_made_together_or_not_at_all() {
    let root = Root::new();
    let snapshots = root.store.snapshots(&leased(&root), "").unwrap();
    let all = texts(["a", "b", "c"]);
    root.driver.hook(|call| if call == "create" { Err(refused()) } else { Ok(()) });
    assert!(matches!(snapshots.prepare_all(&all), Err(Error::Snapshot(_))));
    root.driver.unhook();
    assert!(matches!(snapshots.prepare_all(&texts(["a", ""])), Err(Error::Invalid { .. })));
    snapshots.prepare("b", "", labels([])).unwrap();
    assert!(matches!(snapshots.prepare_all(&all), Err(Error::AlreadyExists { name, .. }) if name == "b"));
    assert!(snapshots.stat("a").is_err());
    snapshots.remove("b").unwrap();

    snapshots.prepare_all(&all).unwrap();
    root.store.collect_full(Disposal::Reclaim).unwrap();
    for key in &all {
        assert_eq!(snapshots.stat(key).unwrap().kind, SnapshotKind::Active, "the lease holds it");
    }
    assert_eq!(root.driver.list().unwrap().len(), all.len(), "what was begun in vain is gone");
    snapshots.remove("c").unwrap();
    snapshots.remove_all(&all).unwrap();
    assert!(all.iter().all(|key| snapshots.stat(key).is_err()));
    root.store.collect_full(Disposal::Reclaim).unwrap();
    assert_eq!(root.driver.list().unwrap(), []);
    assert_eq!(root.store.check_metadata().unwrap(), []);
}
