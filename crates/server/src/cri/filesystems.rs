//! ImageFsInfo: what images and containers take on which file system.
//!
//! As in containerd the snapshots of the namespace are counted and blobs are not; the default driver comes first, since
//! kubelet looks at the first entry only. What committed snapshots take is in the database, and is added up again when the
//! database has changed, so a removal is seen at once. What is still being written is measured on disk, and again after
//! [`FRESH`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use orlop_api::runtime::v1 as pb;
use orlop_metadata::{Error, Result, Scope, SnapshotKind, Store};
use orlop_snapshot::{Usage, is_unpacking};
use tokio::sync::Mutex;
use tonic::Status;

use crate::blocking::blocking;

/// How old a measurement may be.
const FRESH: Duration = Duration::from_secs(10);

/// The newest answer and what it was made from.
pub(crate) struct Filesystems {
    known: Arc<Mutex<Known>>,
}

struct Known {
    scope: Scope,
    /// The driver whose file system comes first; empty: the store's default.
    first: String,
    answer: Option<(i64, Instant, pb::ImageFsInfoResponse)>,
    /// Snapshots that are being written, by driver and key.
    measured: HashMap<(String, String), (Instant, Usage)>,
}

/// What the snapshots of one driver take.
#[derive(Default)]
struct Sums {
    images: Usage,
    containers: Usage,
}

impl Filesystems {
    /// Of the snapshots that a scope has.
    pub(crate) fn new(scope: Scope, first: &str) -> Self {
        let known = Known { scope, first: first.to_owned(), answer: None, measured: HashMap::new() };
        Self { known: Arc::new(Mutex::new(known)) }
    }

    /// What is used now.
    pub(crate) async fn usage(&self, store: &Store) -> std::result::Result<pb::ImageFsInfoResponse, Status> {
        let mut known = self.known.clone().lock_owned().await;
        let store = store.clone();
        blocking(move || known.usage(&store)).await
    }
}

impl Known {
    fn usage(&mut self, store: &Store) -> Result<pb::ImageFsInfoResponse> {
        let version = store.version()?;
        if let Some((of, at, answer)) = &self.answer
            && *of == version
            && at.elapsed() < FRESH
        {
            return Ok(answer.clone());
        }
        let answer = self.add_up(store)?;
        self.measured.retain(|_, (at, _)| at.elapsed() < FRESH);
        self.answer = Some((version, Instant::now(), answer.clone()));
        Ok(answer)
    }

    fn add_up(&mut self, store: &Store) -> Result<pb::ImageFsInfoResponse> {
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let mut answer = pb::ImageFsInfoResponse::default();
        let mut drivers: Vec<_> = store.drivers().iter().collect();
        drivers.sort_by_key(|driver| driver.name() != self.first);
        for (at, driver) in drivers.into_iter().enumerate() {
            let sums = self.sums(store, driver.name())?;
            let entry = |usage: &Usage| pb::FilesystemUsage {
                timestamp: now,
                fs_id: Some(pb::FilesystemIdentifier { mountpoint: driver.root().display().to_string() }),
                used_bytes: Some(pb::UInt64Value { value: usage.bytes }),
                inodes_used: Some(pb::UInt64Value { value: usage.inodes }),
            };
            // Of the others only those that are used.
            let used = |usage: &Usage| at == 0 || usage.inodes > 0 || usage.bytes > 0;
            answer.image_filesystems.extend(used(&sums.images).then(|| entry(&sums.images)));
            answer.container_filesystems.extend(used(&sums.containers).then(|| entry(&sums.containers)));
        }
        Ok(answer)
    }

    fn sums(&mut self, store: &Store, driver: &str) -> Result<Sums> {
        let snapshots = store.snapshots(&self.scope, driver)?;
        let totals = snapshots.totals()?;
        let mut sums = Sums { images: totals.committed, ..Sums::default() };
        for (key, kind) in totals.open {
            let measured = self.measured.get(&(driver.to_owned(), key.clone())).filter(|(at, _)| at.elapsed() < FRESH);
            let usage = match measured {
                Some((_, usage)) => *usage,
                None => match snapshots.usage(&key) {
                    Ok(usage) => usage,
                    // Committed or removed a moment ago.
                    Err(Error::NotFound { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            self.measured.entry((driver.to_owned(), key.clone())).or_insert((Instant::now(), usage));
            let is_containers = kind == SnapshotKind::Active && !is_unpacking(&key);
            let sum = if is_containers { &mut sums.containers } else { &mut sums.images };
            sum.bytes += usage.bytes;
            sum.inodes += usage.inodes;
        }
        Ok(sums)
    }
}
