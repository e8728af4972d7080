//! Bytes that come from a file, and go to one, without being copied; whatever ends in the middle, the other file stays what it is.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use orlop_content::{
    Error, IngestManager as _, IngestOptions, Ingester as _, Linking as _, LocalStore, Manager as _, Provider as _,
    Writer,
};
use orlop_oci::{Algorithm, Digest};
use orlop_testkit::disk::{Disk, FILE_SYSTEMS};

const BYTES: &[u8] = b"bytes that somebody else has";

/// A store, and a file beside it as containerd keeps blobs.
struct Beside {
    store: LocalStore,
    root: PathBuf,
    file: PathBuf,
    digest: Digest,
}

impl Beside {
    fn at(directory: &Path) -> Self {
        let (root, file) = (directory.join("store"), directory.join("theirs"));
        fs::write(&file, BYTES).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(&file).unwrap().set_modified(old).unwrap();
        Self { store: LocalStore::open(&root).unwrap(), root, file, digest: Digest::of(BYTES) }
    }

    fn options(&self, expected: &Digest) -> IngestOptions {
        IngestOptions { reference: "adopt".to_owned(), expected: Some(expected.clone()), ..IngestOptions::default() }
    }

    async fn taking(&self, expected: &Digest) -> Box<dyn Writer> {
        let mut writer = self.store.writer(self.options(expected)).await.unwrap();
        let shared = writer.taking().unwrap().take(File::open(&self.file).unwrap()).await.unwrap();
        assert_eq!(shared.size, BYTES.len() as u64);
        writer
    }

    fn blob(&self) -> PathBuf {
        self.root.join("blobs/sha256").join(self.digest.hex())
    }

    /// The file is as it was.
    #[track_caller]
    fn is_untouched(&self) {
        let found = fs::metadata(&self.file).unwrap();
        assert_eq!(fs::read(&self.file).unwrap(), BYTES);
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o444, 1_000_000_000));
    }
}

/// Where files get two names, and where they share extents, if there is such a place.
fn places() -> Vec<(PathBuf, Box<dyn std::any::Any>)> {
    let directory = tempfile::tempdir().unwrap();
    let mut all: Vec<(PathBuf, Box<dyn std::any::Any>)> = vec![(directory.path().to_owned(), Box::new(directory))];
    all.extend(
        FILE_SYSTEMS.last().and_then(Disk::of).map(|disk| (disk.path(), Box::new(disk) as Box<dyn std::any::Any>)),
    );
    all
}

#[tokio::test]
async fn the_bytes_of_a_file_become_a_blob_and_the_file_stays_as_it_is() {
    for (place, _held) in places() {
        let beside = Beside::at(&place);
        let mut writer = beside.taking(&beside.digest).await;
        assert!(!beside.blob().exists(), "not before the commit");
        writer.commit(0, None).await.unwrap();
        drop(writer);
        assert_eq!(beside.store.info(&beside.digest).await.unwrap().size, BYTES.len() as u64);
        beside.is_untouched();
        let (blob, file) = (fs::metadata(beside.blob()).unwrap(), fs::metadata(&beside.file).unwrap());
        assert_eq!(blob.mode() & 0o7777, 0o444);
        assert_eq!(blob.ino() == file.ino(), file.nlink() == 2, "one inode with two names, or two inodes");
        assert_eq!(fs::read_dir(beside.root.join("ingest")).unwrap().count(), 0);
        // Each is deleted by itself.
        beside.store.delete(&beside.digest).await.unwrap();
        beside.is_untouched();
    }
}

#[tokio::test]
async fn what_is_not_what_was_expected_is_never_visible() {
    for (place, _held) in places() {
        let beside = Beside::at(&place);
        let other = Digest::of(b"something else");
        let mut writer = beside.taking(&other).await;
        let refused = writer.commit(0, None).await.unwrap_err();
        assert!(matches!(&refused, Error::DigestMismatch { actual, .. } if *actual == beside.digest), "{refused}");
        assert!(beside.store.list().await.unwrap().is_empty());
        beside.is_untouched();
        drop(writer);
        beside.store.abort("adopt").await.unwrap();
        beside.is_untouched();
    }
}

#[tokio::test]
async fn whoever_opens_the_write_again_cannot_reach_the_file() {
    for (place, _held) in places() {
        let beside = Beside::at(&place);
        // Ended in the middle.
        drop(beside.taking(&beside.digest).await);
        beside.is_untouched();
        let mut writer =
            beside.store.writer(IngestOptions { total: 3, ..beside.options(&beside.digest) }).await.unwrap();
        writer.truncate(0).await.unwrap();
        writer.write(Bytes::from_static(b"abc")).await.unwrap();
        beside.is_untouched();
        // What was written does not count, nor can anything be added.
        writer.taking().unwrap().take(File::open(&beside.file).unwrap()).await.unwrap();
        assert_eq!(writer.digest(), beside.digest);
        let added = writer.write(Bytes::from_static(b"more")).await;
        let cloned = added.is_ok();
        beside.is_untouched();
        if cloned {
            writer.truncate(BYTES.len() as u64).await.unwrap();
        }
        writer.truncate(0).await.unwrap();
        assert_eq!(writer.digest(), Digest::of(b""));
        writer.write(Bytes::from_static(b"own")).await.unwrap();
        writer.commit(3, Some(&Digest::of(b"own"))).await.unwrap();
        beside.is_untouched();
    }
}

#[tokio::test]
async fn a_file_that_has_lost_its_name_and_one_that_is_none_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let beside = Beside::at(directory.path());
    let mut writer = beside.taking(&beside.digest).await;
    fs::remove_file(&beside.file).unwrap();
    match writer.commit(0, None).await {
        Err(error) => assert_eq!(error.io_kind(), Some(ErrorKind::NotFound), "{error}"),
        // It has extents of its own.
        Ok(_) => assert!(beside.blob().exists()),
    }
    let mut writer =
        beside.store.writer(IngestOptions { reference: "other".into(), ..Default::default() }).await.unwrap();
    let refused = writer.taking().unwrap().take(File::open(directory.path()).unwrap()).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
}

#[tokio::test]
async fn other_algorithms_are_hashed_too() {
    let directory = tempfile::tempdir().unwrap();
    let beside = Beside::at(directory.path());
    let mut digester = orlop_oci::Digester::new(Algorithm::Sha512);
    digester.update(BYTES);
    let digest = digester.finish();
    beside.taking(&digest).await.commit(0, None).await.unwrap();
    assert_eq!(beside.store.info(&digest).await.unwrap().size, BYTES.len() as u64);
}

#[tokio::test]
async fn a_blob_is_given_a_second_place_if_it_is_sound() {
    for (place, _held) in places() {
        let beside = Beside::at(&place);
        beside.taking(&beside.digest).await.commit(0, None).await.unwrap();
        let to = place.join("given");
        let shared = beside.store.give(&beside.digest, &to).await.unwrap();
        assert_eq!(fs::read(&to).unwrap(), BYTES);
        let (blob, given) = (fs::metadata(beside.blob()).unwrap(), fs::metadata(&to).unwrap());
        assert_eq!(given.mode() & 0o7777, 0o444);
        assert_eq!(blob.ino() != given.ino(), shared.cloned);
        let again = beside.store.give(&beside.digest, &to).await.unwrap_err();
        assert!(matches!(again, Error::AlreadyExists(_)), "{again}");
        let absent = beside.store.give(&Digest::of(b"absent"), &place.join("never")).await.unwrap_err();
        assert!(matches!(absent, Error::NotFound { .. }), "{absent}");

        fs::remove_file(beside.blob()).unwrap();
        fs::write(beside.blob(), b"damaged by the disk somehow").unwrap();
        let damaged = beside.store.give(&beside.digest, &place.join("never")).await.unwrap_err();
        assert!(matches!(damaged, Error::Damaged { .. }), "{damaged}");
        assert!(!place.join("never").exists());
    }
}
