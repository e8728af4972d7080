//! A full disk, a file system that was mounted read-only, and a power cut, on a small ext4 of their own. Needs root.

use std::io::ErrorKind;
use std::path::Path;

use bytes::Bytes;
use orlop_content::{
    Error, IngestManager as _, IngestOptions, Ingester as _, LocalStore, Manager as _, Trash as _, read_verified,
};
use orlop_oci::Digest;
use orlop_testkit::disk::Disk;

fn named(reference: &str) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), ..IngestOptions::default() }
}

fn check(error: &Error, kind: ErrorKind, path: &Path) {
    assert_eq!(error.io_kind(), Some(kind), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error} should name {}", path.display());
}

async fn put(store: &LocalStore, reference: &str, bytes: Bytes) -> Digest {
    let mut writer = store.writer(named(reference)).await.unwrap();
    writer.write(bytes).await.unwrap();
    writer.commit(0, None).await.unwrap()
}

#[tokio::test]
async fn a_full_disk_keeps_what_was_written_and_the_write_goes_on_later() {
    let Some(disk) = Disk::new(16) else { return };
    let store = LocalStore::open(disk.path().join("content")).unwrap();
    let ballast = put(&store, "ballast", Bytes::from(vec![7; 4 << 20])).await;
    let whole: Bytes = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into();
    let mut writer = store.writer(named("big")).await.unwrap();
    let mut written = 0;
    let error = loop {
        assert!(written < whole.len(), "the disk is not full");
        // No divisor of the space there is, so that the last write fits in part.
        let piece = whole.slice(written..(written + 700_001).min(whole.len()));
        match writer.write(piece.clone()).await {
            Ok(()) => written += piece.len(),
            Err(error) => break error,
        }
    };
    check(&error, ErrorKind::StorageFull, &disk.path());
    assert_eq!(writer.status().offset, written as u64);
    assert_eq!(writer.digest(), Digest::of(&whole[..written]));
    drop(writer);
    assert_eq!(store.status("big").await.unwrap().offset, written as u64, "nothing half-written stays");
    assert_eq!(store.list().await.unwrap().len(), 1);

    store.delete(&ballast).await.unwrap();
    let mut writer = store.writer(named("big")).await.unwrap();
    writer.write(whole.slice(written..)).await.unwrap();
    let digest = writer.commit(whole.len() as u64, Some(&Digest::of(&whole))).await.unwrap();
    assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), whole);
}

/// With no space for even the smallest file a store still opens, reads, lists, aborts and deletes.
#[tokio::test]
async fn a_disk_without_a_byte_left_can_still_be_emptied() {
    let Some(disk) = Disk::new(16) else { return };
    let store = LocalStore::open(disk.path().join("content")).unwrap();
    let kept = put(&store, "kept", Bytes::from_static(b"kept")).await;
    let mut writer = store.writer(named("filler")).await.unwrap();
    for size in [1 << 20, 4096, 1] {
        while writer.write(Bytes::from(vec![1; size])).await.is_ok() {}
    }
    drop(writer);
    let mut count = 0;
    let error = loop {
        match store.writer(named(&format!("another {count}"))).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 100_000, "the disk is not full");
    };
    check(&error, ErrorKind::StorageFull, &disk.path());
    let store = LocalStore::open(disk.path().join("content")).unwrap();
    assert_eq!(read_verified(&store, &kept, 10).await.unwrap(), "kept");
    store.abort("filler").await.unwrap();
    assert_eq!(put(&store, "after", Bytes::from_static(b"after")).await, Digest::of(b"after"));
    store.delete(&kept).await.unwrap();
}

#[tokio::test]
async fn a_read_only_file_system_can_be_read() {
    let Some(disk) = Disk::new(16) else { return };
    let root = disk.path().join("content");
    let store = LocalStore::open(&root).unwrap();
    let digest = put(&store, "r", Bytes::from_static(b"readable")).await;
    drop(store.writer(named("half")).await.unwrap());
    disk.remount("ro");
    let store = LocalStore::open(&root).unwrap();
    assert_eq!(read_verified(&store, &digest, 100).await.unwrap(), "readable");
    assert_eq!((store.list().await.unwrap().len(), store.statuses().await.unwrap().len()), (1, 1));
    let exists = IngestOptions { expected: Some(digest.clone()), ..named("again") };
    assert!(matches!(store.writer(exists).await, Err(Error::AlreadyExists(_))));
    let failures = [
        store.writer(named("new")).await.err().unwrap(),
        store.writer(named("half")).await.err().unwrap(),
        store.abort("half").await.unwrap_err(),
        store.delete(&digest).await.unwrap_err(),
        store.discard(&digest, &disk.path().join("trash")).await.unwrap_err(),
        LocalStore::open(disk.path().join("other")).unwrap_err(),
    ];
    for error in failures {
        check(&error, ErrorKind::ReadOnlyFilesystem, &disk.path());
    }
    disk.remount("rw");
    let mut writer = store.writer(named("half")).await.unwrap();
    writer.write(Bytes::from_static(b"whole")).await.unwrap();
    assert_eq!(writer.commit(5, None).await.unwrap(), Digest::of(b"whole"));
}

/// Whatever a commit or a restore has answered for is there after a power cut, whole; and what is there is right.
#[tokio::test]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let Some(disk) = Disk::new(64) else { return };
    let store = LocalStore::open(disk.path().join("content")).unwrap();
    let bin = disk.path().join("bin");
    let mut acknowledged = Vec::new();
    for round in 0..8_usize {
        let options = IngestOptions { reference: format!("unfinished {round}"), ..IngestOptions::default() };
        let mut unfinished = store.writer(options).await.unwrap();
        unfinished.write(Bytes::from(vec![1; 100_000])).await.unwrap();
        // One that another process could just have renamed: being told that it exists is as good as a commit.
        for reference in ["first", "second"] {
            let bytes = Bytes::from(format!("blob {round} ").repeat(1 << (2 * round)));
            let mut writer = store.writer(named(reference)).await.unwrap();
            writer.write(bytes).await.unwrap();
            match writer.commit(0, None).await {
                Ok(digest) => acknowledged.push(digest),
                Err(Error::AlreadyExists(digest)) => assert!(acknowledged.contains(&digest)),
                Err(error) => panic!("{error}"),
            }
        }
        if round % 3 == 2 {
            store.discard(&acknowledged[round - 1], &bin).await.unwrap();
            store.restore(&acknowledged[round - 1], &bin).await.unwrap();
        }
        let cut = disk.after_power_cut();
        let store = LocalStore::open(cut.path().join("content")).unwrap();
        let listed: Vec<_> = store.list().await.unwrap().into_iter().map(|info| info.digest).collect();
        for digest in &acknowledged {
            assert!(listed.contains(digest), "round {round}: {digest} is gone");
        }
        for digest in &listed {
            read_verified(&store, digest, 1 << 30).await.unwrap();
        }
        for status in store.statuses().await.unwrap() {
            store.writer(named(&status.reference)).await.unwrap();
        }
    }
}
