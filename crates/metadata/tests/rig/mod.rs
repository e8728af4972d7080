//! A root in a temporary directory, with a clock that tests turn and a snapshot driver that only makes directories.
#![allow(dead_code, unreachable_pub, reason = "no test program uses all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use jiff::Timestamp;
use orlop_content::{IngestOptions, Ingester, LocalStore};
use orlop_metadata::{Container, Image, Labels, OpenOptions, Scope, ScopedSnapshots, Store, TypedBytes};
use orlop_oci::{Algorithm, Descriptor, Digest, Digester};
use orlop_snapshot::{ApplyTarget, Driver, Meta, Mount, SnapshotId, Usage, Whiteouts};

/// The driver's name.
pub const DRIVER: &str = "plain";

/// When the clock starts: far from now, so that nothing mixes up the two. In seconds.
pub const START: i64 = 2_000_000_000;

/// Snapshots that are directories without anything to mount.
pub struct PlainDriver {
    /// Where they are.
    pub root: PathBuf,
}

impl PlainDriver {
    fn path(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.0.to_string())
    }
}

fn io<T>(path: &Path, result: std::io::Result<T>) -> orlop_snapshot::Result<T> {
    result.map_err(|source| orlop_snapshot::Error::Io { operation: "test", path: path.to_owned(), source })
}

impl Driver for PlainDriver {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn create(&self, id: SnapshotId, _: &[SnapshotId], _: &Meta) -> orlop_snapshot::Result<()> {
        let path = self.path(id);
        io(&path, std::fs::create_dir_all(&path))?;
        io(&path, std::fs::write(path.join("file"), id.0.to_string()))
    }

    fn mounts(&self, _: SnapshotId, _: &[SnapshotId], _: bool) -> orlop_snapshot::Result<Vec<Mount>> {
        Ok(Vec::new())
    }

    fn commit(&self, _: SnapshotId, _: &[SnapshotId], _: &Meta) -> orlop_snapshot::Result<Usage> {
        Ok(Usage { bytes: 4096, inodes: 2 })
    }

    fn usage(&self, _: SnapshotId) -> orlop_snapshot::Result<Usage> {
        Ok(Usage { bytes: 4096, inodes: 2 })
    }

    fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> orlop_snapshot::Result<()> {
        let path = self.path(id);
        if !path.exists() {
            return Ok(());
        }
        match trash {
            Some(trash) => io(&path, std::fs::rename(&path, trash.join(id.0.to_string()))),
            None => io(&path, std::fs::remove_dir_all(&path)),
        }
    }

    fn list(&self) -> orlop_snapshot::Result<Vec<(SnapshotId, Option<Meta>)>> {
        let mut found = Vec::new();
        for entry in io(&self.root, std::fs::read_dir(&self.root))? {
            let name = io(&self.root, entry)?.file_name();
            found.extend(name.to_str().and_then(|n| n.parse().ok()).map(|id| (SnapshotId(id), None)));
        }
        Ok(found)
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn supports_rebase(&self) -> bool {
        true
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        ApplyTarget { root: self.path(id), whiteouts: Whiteouts::Delete, deferred: None, applied: None, image: None }
    }
}

/// A root and what it is used with.
pub struct Rig {
    pub directory: Arc<tempfile::TempDir>,
    pub store: Store,
    /// Seconds since 1970.
    pub clock: Arc<AtomicI64>,
    pub runtime: Arc<tokio::runtime::Runtime>,
}

impl Rig {
    /// A new root, in memory if the machine has such a file system: these tests do not cut the power.
    pub fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let directory = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let directory = Arc::new(directory.expect("a temporary directory"));
        let clock = Arc::new(AtomicI64::new(START));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let store = open(directory.path(), &clock);
        Self { directory, store, clock, runtime: Arc::new(runtime) }
    }

    /// A new root with the system's clock.
    pub fn at_real_time() -> Self {
        let mut rig = Self::new();
        rig.store = open_at_real_time(rig.directory.path());
        rig
    }

    /// What a new process would see.
    pub fn reopen(&mut self) {
        self.store = open(self.directory.path(), &self.clock);
    }

    /// The same root as another process has it.
    pub fn another(&self) -> Store {
        open(self.directory.path(), &self.clock)
    }

    pub fn advance(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    pub fn seconds(&self) -> i64 {
        self.clock.load(Ordering::SeqCst)
    }

    pub fn scope(&self, namespace: &str, lease: Option<&str>) -> Scope {
        let scope = Scope::new(namespace, "test");
        match lease {
            Some(lease) => scope.with_lease(lease),
            None => scope,
        }
    }

    pub fn snapshots(&self, namespace: &str, lease: Option<&str>) -> ScopedSnapshots {
        self.store.snapshots(&self.scope(namespace, lease), DRIVER).expect("the driver is there")
    }

    /// Writes and commits one blob.
    pub fn put(&self, scope: &Scope, bytes: &[u8], labels: &[(&str, &str)]) -> orlop_content::Result<Digest> {
        self.runtime.block_on(put(&self.store, scope, "put", bytes))?;
        let digest = digest(bytes);
        if !labels.is_empty() {
            let content = self.store.content(scope);
            content.update(&digest, self::labels(labels), &[]).expect("the blob was just made");
        }
        Ok(digest)
    }

    pub fn image(&self, namespace: &str, name: &str, target: &Digest) {
        self.store.create_image(&self.scope(namespace, None), image(name, target, &[])).expect("a new record");
    }

    /// Blobs in the raw store.
    pub fn blobs_on_disk(&self) -> BTreeSet<String> {
        let blobs = self.runtime.block_on(self.store.raw_content().list()).expect("a list");
        blobs.into_iter().map(|blob| blob.digest.to_string()).collect()
    }

    /// Trees in the driver's directory.
    pub fn trees_on_disk(&self) -> usize {
        self.store.driver(DRIVER).expect("the driver is there").list().expect("a list").len()
    }

    pub fn writes_on_disk(&self) -> usize {
        self.runtime.block_on(self.store.raw_content().statuses()).expect("a list").len()
    }

    /// Whether a blob can be read and has the right bytes.
    pub fn reads(&self, digest: &Digest) -> bool {
        let raw = self.store.raw_content();
        self.runtime.block_on(orlop_content::read_verified(&**raw, digest, 1 << 20)).is_ok()
    }

    /// Digests a namespace has.
    pub fn blobs(&self, namespace: &str) -> BTreeSet<Digest> {
        let content = self.store.content(&self.scope(namespace, None));
        content.find(&[]).expect("a list").into_iter().map(|info| info.digest).collect()
    }

    /// Keys of the snapshots a namespace has.
    pub fn keys(&self, namespace: &str) -> BTreeSet<String> {
        self.snapshots(namespace, None).list(&[]).expect("a list").into_iter().map(|s| s.name).collect()
    }

    pub fn names(&self, namespace: &str) -> BTreeSet<String> {
        self.store.images(namespace, &[]).expect("a list").into_iter().map(|i| i.name).collect()
    }
}

pub fn options(directory: &Path) -> OpenOptions {
    let trees = directory.join("snapshots").join(DRIVER);
    std::fs::create_dir_all(&trees).expect("a directory");
    OpenOptions {
        content: Arc::new(LocalStore::open(directory.join("content")).expect("a content store")),
        drivers: vec![Arc::new(PlainDriver { root: trees })],
        read_only: false,
    }
}

fn open(directory: &Path, clock: &Arc<AtomicI64>) -> Store {
    let clock = clock.clone();
    let now = move || Timestamp::from_second(clock.load(Ordering::SeqCst)).expect("a time");
    Store::open_with_clock(directory, options(directory), Arc::new(now)).expect("a root")
}

/// A root as any process opens it.
pub fn open_at_real_time(directory: &Path) -> Store {
    Store::open(directory, options(directory)).expect("a root")
}

/// Writes and commits one blob; that it is there already is fine.
pub async fn put(store: &Store, scope: &Scope, reference: &str, bytes: &[u8]) -> orlop_content::Result<()> {
    let content = store.content(scope);
    let options = IngestOptions { reference: reference.to_owned(), total: 0, expected: Some(digest(bytes)) };
    let mut writer = match content.writer(options).await {
        Err(orlop_content::Error::AlreadyExists(_)) => return Ok(()),
        other => other?,
    };
    if writer.status().offset != bytes.len() as u64 {
        writer.truncate(0).await?;
        writer.write(Bytes::copy_from_slice(bytes)).await?;
    }
    match writer.commit(0, Some(&digest(bytes))).await {
        Ok(_) | Err(orlop_content::Error::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    let mut digester = Digester::new(Algorithm::Sha256);
    digester.update(bytes);
    digester.finish()
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub fn image(name: &str, target: &Digest, labels: &[(&str, &str)]) -> Image {
    Image {
        name: name.to_owned(),
        target: Descriptor::new("application/vnd.oci.image.manifest.v1+json", target.clone(), 10),
        labels: self::labels(labels),
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}

/// An expiry label's value.
pub fn at(seconds: i64) -> String {
    Timestamp::from_second(seconds).expect("a time").to_string()
}

/// Every file and directory below, with sizes: two equal ones are the same tree.
pub fn tree(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path(), if meta.is_dir() { 0 } else { meta.len() });
        }
    }
    found
}

/// A container on a snapshot, or on none.
pub fn container(id: &str, key: Option<&str>, labels: &Labels) -> Container {
    Container {
        id: id.to_owned(),
        labels: labels.clone(),
        image: String::new(),
        runtime: "runtime".to_owned(),
        runtime_options: None,
        spec: Some(TypedBytes::default()),
        snapshotter: DRIVER.to_owned(),
        snapshot_key: key.unwrap_or_default().to_owned(),
        sandbox: String::new(),
        extensions: BTreeMap::new(),
        created_at: Timestamp::UNIX_EPOCH,
        updated_at: Timestamp::UNIX_EPOCH,
    }
}
