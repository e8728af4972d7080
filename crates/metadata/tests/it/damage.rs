//! Damaged blobs: set aside with a row of what is wrong, never given out, kept by their other rows, and over as soon as
//! somebody writes the digest again, in whatever namespace and by whatever way.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use orlop_content::{Error, IngestOptions, LocalStore, Manager as _, Provider as _, Writer as _, read_verified};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Change, Damage, Damaged, ImageChange, Labels, Notice, OpenOptions, Scope, Store, Watcher};
use orlop_oci::Digest;

const TEXT: &[u8] = b"bytes of a layer";

struct Root {
    store: Store,
    told: Arc<Mutex<Vec<Change>>>,
    directory: tempfile::TempDir,
    _watcher: Arc<Watcher>,
}

impl Root {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        let told: Arc<Mutex<Vec<Change>>> = Arc::default();
        let heard = told.clone();
        let watcher: Arc<Watcher> = Arc::new(move |notices: &[Notice]| {
            heard.lock().unwrap().extend(notices.iter().map(|notice| notice.change.clone()));
        });
        store.watch(&watcher);
        Self { store, told, directory, _watcher: watcher }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.path().join("content/blobs/sha256").join(digest.hex())
    }

    fn damage(&self, digest: &Digest, bytes: &[u8]) {
        fs::remove_file(self.path(digest)).unwrap();
        fs::write(self.path(digest), bytes).unwrap();
    }

    /// What was told of damage since the last time.
    fn told(&self) -> Vec<&'static str> {
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        let word = |change: &Change| match change {
            Change::DamageFound { .. } => Some("found"),
            Change::DamageMended { .. } => Some("mended"),
            _ => None,
        };
        told.iter().filter_map(word).collect()
    }

    async fn put(&self, scope: &Scope, text: &'static [u8], expected: bool) -> Result<Digest, Error> {
        let digest = Digest::of(text);
        let options =
            IngestOptions { reference: "write".to_owned(), total: 0, expected: expected.then(|| digest.clone()) };
        let content = self.store.content(scope);
        let mut writer = content.scoped_writer(options).await?;
        writer.set_labels(Labels::from([("containerd.io/gc.root".to_owned(), "yes".to_owned())])).unwrap();
        writer.truncate(0).await?;
        writer.write(Bytes::from_static(text)).await?;
        writer.commit(text.len() as u64, Some(&digest)).await
    }

    fn quarantine(&self, digest: &Digest) -> Option<Damage> {
        self.store.quarantine_blob(digest).unwrap()
    }
}

fn open(directory: &tempfile::TempDir) -> Store {
    let content = Arc::new(LocalStore::open(directory.path().join("content")).unwrap());
    Store::open(directory.path(), OpenOptions { content, drivers: Vec::new(), read_only: false }).unwrap()
}

fn scope() -> Scope {
    Scope::new("test", "tests")
}

fn other() -> Scope {
    Scope::new("other", "tests")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_set_aside_and_whoever_writes_it_mends_it() {
    let root = Root::new();
    let digest = root.put(&scope(), TEXT, true).await.unwrap();
    let labels = root.store.content(&scope()).stat(&digest).unwrap().labels;
    assert_eq!(root.quarantine(&digest), None);
    // With the digest known from the first, and only at the end; a second namespace has the blob from the third round on.
    for (round, expected) in [true, false, true, false].into_iter().enumerate() {
        root.damage(&digest, b"bytes of a layef");
        let damage = root.quarantine(&digest).unwrap();
        assert_eq!((damage.fault.as_str(), &damage.what), ("damaged", &Damaged::Blob(digest.clone())));
        let aside = root.store.quarantine_directory(damage.quarantine.as_ref().unwrap());
        assert_eq!(fs::read(aside.join("blobs/sha256").join(digest.hex())).unwrap(), b"bytes of a layef");
        assert!(!root.path(&digest).exists());
        let content = root.store.content(&scope());
        assert!(matches!(content.open(&digest).await, Err(Error::NotFound { kind: "blob", .. })));
        assert_eq!(root.quarantine(&digest).unwrap(), damage, "what is known stays as it was");
        assert_eq!(root.store.damages().unwrap(), std::slice::from_ref(&damage));
        root.store.collect_full(Disposal::Reclaim).unwrap();
        assert_eq!(content.stat(&digest).unwrap().labels, labels, "its row stays, whatever is collected");
        let of = if round < 2 { scope() } else { other() };
        root.put(&of, TEXT, expected).await.unwrap();
        // Each namespace that has it is told.
        let told: &[&str] = match round {
            0 | 1 => &["found", "mended"],
            2 => &["found", "mended", "mended"],
            _ => &["found", "found", "mended", "mended"],
        };
        assert_eq!(root.told(), told);
        assert_eq!(root.store.damages().unwrap(), []);
        assert_eq!(read_verified(&content, &digest, 1 << 20).await.unwrap(), TEXT);
        assert_eq!(content.stat(&digest).unwrap().labels, labels);
    }
    assert!(
        matches!(root.put(&scope(), TEXT, true).await, Err(Error::AlreadyExists(_))),
        "a sound blob is not written again"
    );
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

/// A file of another size is not given to anybody, found or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_short_is_not_given_out() {
    let root = Root::new();
    let digest = root.put(&scope(), TEXT, true).await.unwrap();
    for (bytes, fault) in [(&b""[..], "size"), (b"bytes", "size")] {
        root.damage(&digest, bytes);
        let content = root.store.content(&scope());
        let Err(Error::Resized { expected, actual, .. }) = content.open(&digest).await else {
            panic!("it is given out")
        };
        assert_eq!((expected, actual), (TEXT.len() as u64, bytes.len() as u64));
        assert_eq!(root.quarantine(&digest).unwrap().fault, fault);
        root.put(&scope(), TEXT, true).await.unwrap();
    }
}

/// A file that is gone leaves nothing to set aside; a row that says damage does not survive a look at sound bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_damage_and_a_sound_one_is_none() {
    let root = Root::new();
    let digest = root.put(&scope(), TEXT, true).await.unwrap();
    fs::remove_file(root.path(&digest)).unwrap();
    let damage = root.quarantine(&digest).unwrap();
    assert_eq!((damage.fault.as_str(), damage.quarantine), ("missing", None));
    assert!(root.store.quarantined_entries().unwrap().is_empty());
    fs::write(root.path(&digest), TEXT).unwrap();
    assert_eq!(root.quarantine(&digest), None);
    assert_eq!((root.store.damages().unwrap(), root.told()), (Vec::new(), vec!["found", "mended"]));
    assert_eq!(root.quarantine(&Digest::of(b"nothing that is here")), None);
}

/// Bytes that were set aside stay as long as nobody has others, then for the time that was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn the_quarantine_keeps_what_is_not_mended() {
    let root = Root::new();
    let later = |hours| {
        let content = Arc::new(LocalStore::open(root.directory.path().join("content")).unwrap());
        let options = OpenOptions { content, drivers: Vec::new(), read_only: false };
        let clock = Arc::new(move || jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours));
        Store::open_with_clock(root.directory.path(), options, clock).unwrap()
    };
    let digest = root.put(&scope(), TEXT, true).await.unwrap();
    root.damage(&digest, b"other");
    root.quarantine(&digest).unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(later(1000).empty_quarantine(day).unwrap(), 0, "nobody else has it");
    root.put(&scope(), TEXT, true).await.unwrap();
    assert_eq!(root.store.empty_quarantine(Duration::ZERO).unwrap(), 0, "it is young");
    assert_eq!(later(23).empty_quarantine(day).unwrap(), 0);
    assert_eq!(later(25).empty_quarantine(day).unwrap(), 1);
    assert!(root.store.quarantined_entries().unwrap().is_empty());
    // What was damaged may be removed by whoever has it: then nothing is known of it any more, and its bytes go too.
    root.damage(&digest, b"other");
    root.quarantine(&digest).unwrap();
    root.store.content(&scope()).delete(&digest).await.unwrap();
    root.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(root.store.damages().unwrap(), []);
    assert_eq!(later(25).empty_quarantine(day).unwrap(), 1);
    assert_eq!(root.store.counts().unwrap().damage, 0);
}

/// Killed after the row was written and before the bytes were moved: another look moves them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_moved_is_moved_by_the_next_look() {
    let root = Root::new();
    let digest = root.put(&scope(), TEXT, true).await.unwrap();
    root.damage(&digest, b"bytes of a layef");
    let damage = root.quarantine(&digest).unwrap();
    let aside = root.store.quarantine_directory(&damage.quarantine.unwrap()).join("blobs/sha256").join(digest.hex());
    fs::rename(&aside, root.path(&digest)).unwrap();
    let again = open(&root.directory).quarantine_blob(&digest).unwrap().unwrap();
    let moved = root.store.quarantine_directory(&again.quarantine.unwrap()).join("blobs/sha256").join(digest.hex());
    assert!(moved.exists() && !root.path(&digest).exists());
}

/// Regression: an undo brought sound bytes back, and the blob was called damaged for ever after.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_brings_sound_bytes_back_mends() {
    let root = Root::new();
    let digest = Digest::of(TEXT);
    let target = orlop_oci::Descriptor::new("application/vnd.oci.image.manifest.v1+json", digest.clone(), 16);
    // With sound bytes in the trash, then with bytes that changed there.
    for sound in [true, false] {
        root.put(&scope(), TEXT, true).await.unwrap();
        let content = root.store.content(&scope());
        let change = ImageChange::Upsert { name: "app".to_owned(), target: target.clone(), labels: Labels::new() };
        root.store.write_images(&scope(), &[change]).unwrap();
        content.update(&digest, Labels::new(), &[]).unwrap();
        let gone = ImageChange::Delete { name: "app".to_owned() };
        let trash = Disposal::Trash { reason: "rm app".to_owned() };
        let entry = root.store.delete_images(&scope(), &[gone], &trash, None).unwrap().trash.unwrap();
        let rests = root.directory.path().join("trash").join(&entry).join("blobs/sha256").join(digest.hex());
        if !sound {
            fs::remove_file(&rests).unwrap();
            fs::write(&rests, b"bytes of a layef").unwrap();
        }
        assert!(rests.exists());
        root.put(&scope(), TEXT, true).await.unwrap();
        root.damage(&digest, b"bytes of a layef");
        root.quarantine(&digest).unwrap();
        root.told();
        root.store.undo(&scope(), Some(&entry)).unwrap();
        assert!(root.path(&digest).exists());
        match sound {
            true => {
                assert_eq!((root.store.damages().unwrap(), root.told()), (vec![], vec!["mended"]));
                assert_eq!(read_verified(&content, &digest, 1 << 20).await.unwrap(), TEXT);
                assert_eq!(root.store.check_metadata().unwrap(), []);
            }
            false => assert_eq!((root.store.damages().unwrap().len(), root.told().len()), (1, 0)),
        }
        let gone = ImageChange::Delete { name: "app".to_owned() };
        root.store.write_images(&scope(), &[gone]).unwrap();
        content.update(&digest, Labels::new(), &[]).unwrap();
        root.store.collect(Disposal::Reclaim).unwrap();
    }
}
