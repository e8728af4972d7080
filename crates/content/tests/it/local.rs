//! What is particular to local files: the layout, foreign and damaged directories, races within one process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use orlop_content::{
    Error, Flaw, IngestManager as _, IngestOptions, Ingester as _, LocalStore, Manager as _, Provider as _,
    Quarantine as _, Trash as _, examine, read_verified,
};
use orlop_oci::Digest;

fn named(reference: &str) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), ..IngestOptions::default() }
}

fn open(directory: &tempfile::TempDir) -> LocalStore {
    LocalStore::open(directory.path()).unwrap()
}

fn ingest_directory(root: &Path, reference: &str) -> PathBuf {
    root.join("ingest").join(Digest::of(reference.as_bytes()).hex())
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

async fn put(store: &LocalStore, reference: &str, bytes: &'static [u8]) -> Digest {
    let mut writer = store.writer(named(reference)).await.unwrap();
    writer.write(Bytes::from_static(bytes)).await.unwrap();
    writer.commit(bytes.len() as u64, Some(&Digest::of(bytes))).await.unwrap()
}

#[tokio::test]
async fn what_is_written_is_read_while_more_is_and_whatever_becomes_of_it() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    for (reference, is_kept) in [("kept", true), ("dropped", false)] {
        let mut writer = store.writer(IngestOptions { total: 6, ..named(reference) }).await.unwrap();
        let reader = writer.written().unwrap();
        assert_eq!((reader.size(), reader.read_at(0, 10).await.unwrap().len()), (6, 0));
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(reader.read_at(1, 10).await.unwrap(), "bc");
        writer.write(Bytes::from_static(b"def")).await.unwrap();
        if is_kept {
            writer.commit(6, None).await.unwrap();
        } else {
            store.abort(reference).await.unwrap();
        }
        assert_eq!(reader.read_at(2, 10).await.unwrap(), "cdef", "{reference}");
    }
}

#[tokio::test]
async fn the_layout_is_as_documented() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = Digest::of(b"bytes");
    let options = IngestOptions { total: 5, expected: Some(digest.clone()), ..named("layer-1") };
    let mut writer = store.writer(options).await.unwrap();
    writer.write(Bytes::from_static(b"byt")).await.unwrap();
    let ingest = ingest_directory(root.path(), "layer-1");
    let started = writer.status().started_at;
    let meta: serde_json::Value = serde_json::from_slice(&fs::read(ingest.join("meta")).unwrap()).unwrap();
    let stated = serde_json::json!({ "ref": "layer-1", "startedAt": started, "total": 5, "expected": digest });
    assert_eq!(meta, stated);
    assert_eq!(fs::read_to_string(ingest.join("data")).unwrap(), "byt");
    assert_eq!(fs::read_dir(&ingest).unwrap().count(), 2);
    writer.write(Bytes::from_static(b"es")).await.unwrap();
    writer.commit(5, None).await.unwrap();
    let metadata = fs::metadata(blob_path(root.path(), &digest)).unwrap();
    assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (5, 0o444));
    assert!(!ingest.exists());
}

/// As containerd writes it: no `expected`, times with an offset and nine digits.
#[tokio::test]
async fn an_ingest_of_containerd_is_resumed() {
    let root = tempfile::tempdir().unwrap();
    let ingest = ingest_directory(root.path(), "manifest-sha256:1");
    fs::create_dir_all(&ingest).unwrap();
    for (name, text) in [
        ("ref", "manifest-sha256:1"),
        ("data", "first half, "),
        ("startedat", "2023-05-01T10:00:00.123456789+02:00"),
        ("updatedat", "2023-05-01T10:00:01.5Z"),
        ("total", "23"),
    ] {
        fs::write(ingest.join(name), text).unwrap();
    }
    let store = open(&root);
    let status = store.status("manifest-sha256:1").await.unwrap();
    assert_eq!((status.offset, status.total, status.expected), (12, 23, None));
    assert_eq!(status.started_at, "2023-05-01T08:00:00.123456789Z".parse().unwrap());
    let mut writer = store.writer(named("manifest-sha256:1")).await.unwrap();
    writer.write(Bytes::from_static(b"second half")).await.unwrap();
    let digest = writer.commit(0, None).await.unwrap();
    assert_eq!(read_verified(&store, &digest, 100).await.unwrap(), "first half, second half");
}

/// What a kill leaves of an ingest: its name, the small files, `data` and its mode (0: none), whether the blob is there.
type Step<'a> = (&'a str, &'a [&'a str], &'a [u8], u32, bool);

/// Every state in which a kill can leave a write, made by hand.
#[tokio::test]
async fn every_step_of_a_killed_write_can_be_continued() {
    let whole = b"the whole blob";
    let digest = Digest::of(whole);
    let steps: [Step<'_>; 11] = [
        ("directory made", &[], b"", 0, false),
        ("data made", &[], b"", 0o600, false),
        ("not described", &["empty meta"], b"the wh", 0o600, false),
        ("described", &["meta"], b"the wh", 0o600, false),
        ("described, read-only", &["meta"], whole, 0o444, false),
        ("described, renamed", &["meta"], b"", 0, true),
        ("half described", &["ref"], b"", 0o600, false),
        ("half written", &["ref", "startedat", "updatedat", "total", "expected"], b"the wh", 0o600, false),
        ("read-only, not renamed", &["ref", "startedat", "updatedat", "total"], whole, 0o444, false),
        ("renamed, not cleaned up", &["ref", "startedat", "updatedat", "total", "expected"], b"", 0, true),
        ("half cleaned up", &["total"], b"", 0, true),
    ];
    for (step, files, data, mode, committed) in steps {
        let root = tempfile::tempdir().unwrap();
        let ingest = ingest_directory(root.path(), "r");
        fs::create_dir_all(&ingest).unwrap();
        for name in files {
            let text = match *name {
                "ref" => "r".to_owned(),
                "total" => "14".to_owned(),
                "expected" => digest.to_string(),
                "empty meta" => {
                    fs::write(ingest.join("meta"), "").unwrap();
                    continue;
                }
                "meta" => {
                    let started = "2026-01-01T00:00:00Z";
                    serde_json::json!({ "ref": "r", "startedAt": started, "total": 14, "expected": digest }).to_string()
                }
                _ => "2026-01-01T00:00:00Z".to_owned(),
            };
            fs::write(ingest.join(name), text).unwrap();
        }
        if mode != 0 {
            fs::write(ingest.join("data"), data).unwrap();
            fs::set_permissions(ingest.join("data"), fs::Permissions::from_mode(mode)).unwrap();
        }
        if committed {
            fs::create_dir_all(root.path().join("blobs/sha256")).unwrap();
            fs::write(blob_path(root.path(), &digest), whole).unwrap();
        }
        let store = open(&root);
        assert_eq!(store.list().await.unwrap().len(), usize::from(committed), "{step}");
        store.statuses().await.unwrap();
        let mut writer = match store.writer(IngestOptions { expected: Some(digest.clone()), ..named("r") }).await {
            Ok(writer) => writer,
            Err(Error::AlreadyExists(_)) if committed => {
                assert!(!ingest.exists(), "{step}: the ref is freed");
                continue;
            }
            Err(error) => panic!("{step}: {error}"),
        };
        let offset = writer.status().offset;
        assert_eq!(offset, data.len() as u64, "{step}");
        writer.write(Bytes::copy_from_slice(&whole[data.len()..])).await.unwrap();
        assert_eq!(writer.commit(14, Some(&digest)).await.unwrap(), digest, "{step}");
        assert_eq!(read_verified(&store, &digest, 100).await.unwrap(), &whole[..]);
    }
}

#[tokio::test]
async fn garbage_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let good = put(&store, "good", b"good").await;
    drop(store.writer(named("writing")).await.unwrap());
    let (blobs, ingest) = (root.path().join("blobs/sha256"), root.path().join("ingest"));
    fs::create_dir(blobs.join(Digest::of(b"directory").hex())).unwrap();
    symlink("/etc/passwd", blobs.join(Digest::of(b"link").hex())).unwrap();
    for name in ["short", "README", &good.hex().to_uppercase()] {
        fs::write(blobs.join(name), "x").unwrap();
    }
    fs::create_dir(root.path().join("blobs/md5")).unwrap();
    fs::write(ingest.join("a file"), "x").unwrap();
    fs::create_dir(ingest.join("empty")).unwrap();
    symlink("/etc", ingest_directory(root.path(), "link")).unwrap();
    fs::write(ingest_directory(root.path(), "file"), "x").unwrap();
    for (reference, text) in
        [("other", b"not the ref".to_vec()), ("binary", vec![0xff; 40]), ("huge", vec![b'x'; 1 << 20])]
    {
        fs::create_dir(ingest_directory(root.path(), reference)).unwrap();
        fs::write(ingest_directory(root.path(), reference).join("ref"), text).unwrap();
    }
    let fifo = ingest_directory(root.path(), "fifo");
    fs::create_dir(&fifo).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, fifo.join("ref"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();

    let store = open(&root);
    let listed: Vec<_> = store.list().await.unwrap().into_iter().map(|info| info.digest).collect();
    assert_eq!(listed, [good]);
    for name in [b"directory".as_slice(), b"link"] {
        assert!(matches!(store.open(&Digest::of(name)).await, Err(Error::NotFound { .. })));
        assert!(matches!(store.info(&Digest::of(name)).await, Err(Error::NotFound { .. })));
    }
    let writing: Vec<_> = store.statuses().await.unwrap().into_iter().map(|status| status.reference).collect();
    assert_eq!(writing, ["writing"]);
    for reference in ["link", "file"] {
        assert!(matches!(store.status(reference).await, Err(Error::NotFound { .. })));
        assert!(store.writer(named(reference)).await.is_err(), "not followed, not replaced");
    }
    for reference in ["other", "binary", "huge", "fifo"] {
        store.abort(reference).await.unwrap();
    }
    let hour = SignedDuration::from_hours(1);
    assert_eq!(store.remove_debris(Timestamp::now() - hour).await.unwrap(), 0, "nothing that is young");
    assert_eq!(store.remove_debris(Timestamp::now() + hour).await.unwrap(), 4);
    assert!(Path::new("/etc/passwd").exists());
    let left: BTreeSet<_> = fs::read_dir(&ingest).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, BTreeSet::from([ingest_directory(root.path(), "writing")]));
}

#[tokio::test]
async fn values_that_make_no_sense_count_as_unknown() {
    let root = tempfile::tempdir().unwrap();
    let ingest = ingest_directory(root.path(), "odd");
    fs::create_dir_all(ingest.join("a directory of a newer version")).unwrap();
    for (name, text) in [
        ("ref", "odd"),
        ("data", "abc"),
        ("total", "many"),
        ("expected", "sha256:xyz"),
        ("startedat", "yesterday"),
        ("updatedat", ""),
        ("chunks", "a file of a newer version"),
    ] {
        fs::write(ingest.join(name), text).unwrap();
    }
    let store = open(&root);
    let status = store.status("odd").await.unwrap();
    assert_eq!((status.offset, status.total, status.expected), (3, 0, None));
    let mut writer = store.writer(named("odd")).await.unwrap();
    assert_eq!(writer.digest(), Digest::of(b"abc"));
    let digest = writer.commit(3, None).await.unwrap();
    drop(writer);
    assert_eq!(read_verified(&store, &digest, 3).await.unwrap(), "abc");
    // What is left has no data and counts as empty.
    assert_eq!(store.writer(named("odd")).await.unwrap().status().offset, 0);
    store.abort("odd").await.unwrap();
    assert!(!ingest.exists());
}

#[tokio::test]
async fn data_that_is_a_directory_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let ingest = ingest_directory(root.path(), "d");
    fs::create_dir_all(ingest.join("data/inner")).unwrap();
    fs::write(ingest.join("ref"), "d").unwrap();
    let store = open(&root);
    match store.writer(named("d")).await {
        Err(Error::Io { operation: "open", path, .. }) => assert_eq!(path, ingest.join("data")),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("a directory was opened for writing"),
    }
    store.abort("d").await.unwrap();
    assert_eq!(store.writer(named("d")).await.unwrap().status().offset, 0);
}

/// `data` that is a symbolic link must not lead a writer out of the store.
#[tokio::test]
async fn links_are_not_followed() {
    let root = tempfile::tempdir().unwrap();
    let victim = root.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let ingest = ingest_directory(root.path(), "l");
    fs::create_dir_all(&ingest).unwrap();
    symlink(&victim, ingest.join("data")).unwrap();
    let store = open(&root);
    assert!(matches!(store.writer(named("l")).await, Err(Error::Io { .. })));
    fs::remove_file(ingest.join("data")).unwrap();
    symlink(&victim, ingest.join("meta")).unwrap();
    assert!(store.writer(IngestOptions { total: 5, ..named("l") }).await.is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test]
async fn a_truncated_blob_is_reported_as_damaged() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let digest = put(&store, "r", b"0123456789").await;
    let path = blob_path(root.path(), &digest);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let reader = store.open(&digest).await.unwrap();
    fs::write(&path, "01234").unwrap();
    assert_eq!(reader.read_at(0, 10).await.unwrap(), "01234");
    assert!(matches!(read_verified(&store, &digest, 100).await, Err(Error::Damaged { .. })));
    let read = tokio::task::spawn_blocking(move || {
        let handle = tokio::runtime::Handle::current();
        std::io::read_to_string(orlop_content::BlockingReader::new(handle, reader, 0))
    });
    assert!(read.await.unwrap().is_err(), "a short blob is no end of file");
}

#[tokio::test]
async fn the_trash_has_the_layout_of_a_store() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path().join("content")).unwrap();
    let digest = put(&store, "r", b"discarded").await;
    let bin = root.path().join("trash/1");
    store.discard(&digest, &bin).await.unwrap();
    let discarded = LocalStore::open(&bin).unwrap();
    assert_eq!(read_verified(&discarded, &digest, 100).await.unwrap(), "discarded");
    assert_eq!(fs::metadata(blob_path(&bin, &digest)).unwrap().nlink(), 1);
}

#[test]
fn no_runtime_is_needed() {
    let root = tempfile::tempdir().unwrap();
    let digest = async {
        let store = open(&root);
        let digest = put(&store, "r", b"bytes").await;
        assert_eq!(read_verified(&store, &digest, 5).await.unwrap(), "bytes");
        digest
    };
    let digest = digest.now_or_never().expect("done at the first poll");
    assert!(blob_path(root.path(), &digest).exists());
}

/// A caller may drop the future of a write. Whatever it has done by then, bytes do not change places, and offset and
/// digest agree with them. (A write that was dropped used to come after the next one.)
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_write_leaves_a_consistent_writer() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    for round in 0..200_u32 {
        let mut writer = store.writer(named("r")).await.unwrap();
        writer.truncate(0).await.unwrap();
        let (dropped, kept) = (Bytes::from(vec![1; 1 + 2000 * round as usize]), Bytes::from(vec![2; 1000]));
        // Polled once, then dropped.
        let _ = futures::poll!(std::pin::pin!(writer.write(dropped.clone())));
        writer.write(kept.clone()).await.unwrap();
        let whole = [dropped, kept.clone()].concat();
        let expected = if writer.status().offset == 1000 { kept.to_vec() } else { whole };
        assert_eq!(writer.status().offset, expected.len() as u64);
        assert_eq!(writer.digest(), Digest::of(&expected));
    }
}

/// A commit and an abort of the same ref race: one of them wins, and no blob is ever wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn aborts_and_commits_race_safely() {
    let root = tempfile::tempdir().unwrap();
    let store = open(&root);
    let aborter = {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                match store.abort("r").await {
                    Ok(()) | Err(Error::NotFound { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    let mut writers = Vec::new();
    for id in 0..2_u32 {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            let mut committed = 0;
            for round in 0..300_u32 {
                let bytes = Bytes::from(format!("{id} {round}").repeat(50));
                let mut writer = match store.writer(named("r")).await {
                    Ok(writer) => writer,
                    Err(Error::Locked(_)) => continue,
                    Err(error) => panic!("{error}"),
                };
                let result = async {
                    writer.truncate(0).await?;
                    writer.write(bytes.clone()).await?;
                    writer.commit(0, Some(&Digest::of(&bytes))).await
                };
                match result.await {
                    Ok(_) => committed += 1,
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            committed
        }));
    }
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap();
    }
    aborter.abort();
    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), committed);
    for info in listed {
        read_verified(&store, &info.digest, 1 << 20).await.unwrap();
    }
}

/// Opening a write again once counted as an update; containerd's suite found it.
#[tokio::test]
async fn a_write_that_is_opened_again_was_updated_when_it_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path().join("content")).unwrap();
    let options = IngestOptions { reference: "ref".to_owned(), total: 8, expected: None };
    let mut writer = store.writer(options.clone()).await.unwrap();
    writer.write("half".into()).await.unwrap();
    let before = writer.status();
    drop(writer);
    let after = store.writer(options).await.unwrap().status();
    assert_eq!((after.started_at, after.updated_at), (before.started_at, before.updated_at));
    assert_eq!(store.status("ref").await.unwrap().updated_at, before.updated_at);
}

/// Whatever is in the place of a blob and is not the blob goes; a sound blob stays, and so does what is damaged elsewhere.
#[tokio::test]
async fn what_is_not_the_blob_is_set_aside_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let (store, bin) = (open(&root), root.path().join("bin"));
    let digest = put(&store, "blob", b"bytes").await;
    let path = blob_path(root.path(), &digest);
    assert_eq!(store.set_aside(&digest, Some(5), &bin).await.unwrap(), None);
    assert!(path.exists() && !bin.exists(), "a sound blob stays, and nothing is made");
    let replaced = |make: &dyn Fn(&Path)| {
        fs::remove_file(&path).ok();
        make(&path);
    };
    let size = |actual| Flaw::Size { expected: 5, actual };
    type Make<'a> = &'a dyn Fn(&Path);
    let cases: [(Make<'_>, Flaw); 6] = [
        (&|path| fs::write(path, b"bytez").unwrap(), Flaw::Bytes { actual: Digest::of(b"bytez") }),
        (&|path| fs::write(path, b"byt").unwrap(), size(3)),
        (&|path| fs::write(path, b"").unwrap(), size(0)),
        (&|path| fs::write(path, b"bytes and more").unwrap(), size(14)),
        (&|path| symlink("/etc/passwd", path).unwrap(), Flaw::Missing),
        (&|path| fs::create_dir(path).unwrap(), Flaw::Missing),
    ];
    for (number, (make, flaw)) in cases.into_iter().enumerate() {
        replaced(make);
        assert_eq!(examine(&store, &digest, Some(5), &()).await.unwrap(), Some(flaw.clone()), "case {number}");
        let bin = bin.join(number.to_string());
        assert_eq!(store.set_aside(&digest, Some(5), &bin).await.unwrap(), Some(flaw), "case {number}");
        assert!(bin.join("blobs/sha256").join(digest.hex()).symlink_metadata().is_ok(), "case {number}");
        assert!(path.symlink_metadata().is_err(), "case {number}");
        assert!(store.info(&digest).await.is_err());
    }
    assert_eq!(store.set_aside(&digest, Some(5), &bin.join("none")).await.unwrap(), Some(Flaw::Missing));
    assert!(!bin.join("none").exists());
    // The place is free for sound bytes.
    assert_eq!(put(&store, "blob", b"bytes").await, digest);
    assert_eq!(examine(&store, &digest, None, &()).await.unwrap(), None);
}
