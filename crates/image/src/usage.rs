//! What takes how much disk, measured from the file system; and giving it back.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use orlop_metadata::gc::{self, Disposal};
use orlop_metadata::{Scope, Store};
use orlop_oci::classify;

use crate::allocated::{Lasting, Names, Walk};
use crate::reconcile::is_name_of;
use crate::{ImageRow, Images, ListRequest, Result, lease};

/// What to collect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcRequest {
    /// Mark everything instead of what changed.
    pub full: bool,
    /// Empty the trash too.
    pub trash: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// What a collection gave back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOutcome {
    /// Blobs removed.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Snapshots removed.
    pub snapshots: u64,
    /// Their bytes.
    pub snapshot_bytes: u64,
    /// Of both: what the file system does not get back, since files outside this store have it too.
    pub elsewhere_bytes: u64,
    /// Bytes of the trash reclaimed.
    pub trash_bytes: u64,
    /// Expired leases removed.
    pub leases: u64,
    /// Expired writes removed.
    pub ingests: u64,
}

impl GcOutcome {
    /// Bytes that the file system got back, without those of the trash.
    pub fn freed(&self) -> u64 {
        (self.blob_bytes + self.snapshot_bytes).saturating_sub(self.elsewhere_bytes)
    }
}

/// What the hash references cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HashReferenceUsage {
    /// How many there are.
    pub records: u64,
    /// What the file system would get back if only they went.
    pub content_bytes: u64,
    /// Their rows in the database.
    pub metadata_bytes: u64,
}

/// What takes how much disk, in allocated bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DiskUsage {
    /// The whole root.
    pub total: u64,
    /// Blobs.
    pub content: u64,
    /// Trees.
    pub snapshots: u64,
    /// Writes in progress.
    pub ingests: u64,
    /// What can be undone.
    pub trash: u64,
    /// Damaged bytes that were set aside.
    pub quarantine: u64,
    /// Database and history.
    pub metadata: u64,
    /// Of the total: what files outside the root have too, so that it is not given back when it goes.
    pub elsewhere: u64,
    /// What the hash references cost.
    pub hash_references: HashReferenceUsage,
    /// Each image, if they were asked for.
    pub images: Vec<ImageRow>,
}

impl Images {
    /// Reconciles every CRI-managed namespace, then collects garbage.
    pub async fn gc(&self, _scope: &Scope, request: GcRequest) -> Result<GcOutcome> {
        if request.dry_run {
            return self.blocking(move |store| dry_run(store, request)).await;
        }
        for namespace in self.blocking(|store| Ok(store.namespaces()?)).await? {
            if self.settings().is_cri(&namespace.name) {
                self.reconcile(&namespace.name).await?;
            }
            self.blocking(move |store| lease::end_orphans(store, &namespace.name)).await?;
        }
        self.blocking(move |store| {
            let report = match request.full {
                true => store.collect_full(Disposal::Reclaim)?,
                false => store.collect(Disposal::Reclaim)?,
            };
            let trash_bytes = if request.trash { store.empty_trash(0, 0)? } else { 0 };
            Ok(GcOutcome { trash_bytes, ..outcome(&report) })
        })
        .await
    }

    /// Ends the leases of operations whose process is no more, and collects what nothing keeps then: with this a daemon
    /// starts. Its hash references it brings in order by what has changed.
    pub async fn settle(&self) -> Result<GcOutcome> {
        self.blocking(move |store| {
            for namespace in store.namespaces()? {
                lease::end_orphans(store, &namespace.name)?;
            }
            Ok(outcome(&store.collect(Disposal::Reclaim)?))
        })
        .await
    }

    /// Measures the root. Allocated blocks are counted, hard links once. Each image is told with what it takes if `images`
    /// says so: that reads much more.
    pub async fn disk_usage(&self, scope: &Scope, images: bool) -> Result<DiskUsage> {
        let request = ListRequest { filters: Vec::new(), all_namespaces: true };
        let images = if images { self.images(scope, &request).await? } else { Vec::new() };
        let memory = self.clone();
        let measured = self.blocking(move |store| measure(store, &memory.inner.measured)).await?;
        Ok(DiskUsage { images, ..measured })
    }
}

fn outcome(report: &gc::Report) -> GcOutcome {
    GcOutcome {
        blobs: distinct(report) as u64,
        blob_bytes: report.blob_bytes,
        snapshots: report.snapshots.len() as u64,
        snapshot_bytes: report.snapshot_bytes,
        elsewhere_bytes: report.elsewhere_bytes,
        trash_bytes: 0,
        leases: report.leases.len() as u64,
        ingests: report.ingests.len() as u64,
    }
}

/// Blobs, however many namespaces dropped them.
fn distinct(report: &gc::Report) -> usize {
    report.content.iter().map(|(_, digest)| digest).collect::<BTreeSet<_>>().len()
}

fn dry_run(store: &Store, request: GcRequest) -> Result<GcOutcome> {
    let report = store.plan_collection(&[])?;
    let in_trash = if request.trash { store.trash()?.iter().map(|entry| entry.bytes).sum() } else { 0 };
    Ok(GcOutcome { trash_bytes: in_trash, ..outcome(&report) })
}

fn measure(store: &Store, memory: &Mutex<Memory>) -> Result<DiskUsage> {
    // While the files are looked at.
    std::thread::scope(|scope| {
        let hash_references = scope.spawn(|| hash_references(store));
        let usage = measure_files(store, &mut memory.lock().unwrap_or_else(PoisonError::into_inner));
        let hash_references = hash_references.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(DiskUsage { hash_references, ..usage? })
    })
}

/// What is remembered of the files of a root.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    blobs: Lasting,
    trees: HashMap<&'static str, Lasting>,
}

/// Where blobs are of which all have such names.
const BLOBS: &str = "content/blobs/sha256";

fn measure_files(store: &Store, memory: &mut Memory) -> Result<DiskUsage> {
    let mut walk = Walk::new(store.root());
    let lasting = store.drivers().iter().filter(|driver| walk.may_remember() && driver.is_lasting());
    let drivers: Vec<&'static str> = lasting.map(|driver| driver.name()).collect();
    if walk.may_remember() {
        walk.leave_out(Path::new(BLOBS));
        drivers.iter().for_each(|driver| walk.leave_out(&trees(driver)));
    }
    let mut usage = DiskUsage {
        content: walk.below("content/blobs")?,
        ingests: walk.below("content/ingest")?,
        snapshots: walk.below("snapshots")?,
        ..DiskUsage::default()
    };
    if walk.may_remember() {
        let (blobs, snapshots) = measure_lasting(store, &walk, &drivers, memory)?;
        usage.content += blobs;
        usage.snapshots += snapshots;
    }
    usage.trash = walk.below("trash")?;
    usage.quarantine = walk.below("quarantine")?;
    // Whatever else is in the root: database, history, locks, the directories between.
    usage.metadata = walk.rest()?;
    usage.elsewhere = walk.elsewhere();
    let stored = usage.content + usage.ingests + usage.snapshots;
    usage.total = stored + usage.trash + usage.quarantine + usage.metadata;
    Ok(usage)
}

/// Where the trees of a driver are, below the root.
fn trees(driver: &str) -> PathBuf {
    Path::new("snapshots").join(driver)
}

/// What blobs and trees take.
fn measure_lasting(
    store: &Store,
    walk: &Walk<'_>,
    drivers: &[&'static str],
    memory: &mut Memory,
) -> Result<(u64, u64)> {
    let Memory { blobs, trees: of_drivers } = memory;
    std::thread::scope(|scope| {
        let blobs = scope.spawn(|| walk.lasting(Path::new(BLOBS), blobs, Names::Hashes));
        let snapshots = drivers.iter().try_fold(0, |bytes, driver| -> Result<u64> {
            // Asked before they are measured.
            let lasting = Names::Numbers(store.lasting_trees(driver)?);
            Ok(bytes + walk.lasting(&trees(driver), of_drivers.entry(driver).or_default(), lasting)?)
        });
        let blobs = blobs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((blobs, snapshots?))
    })
}

/// What would go if only the hash references went: planned, less what would go anyway.
fn hash_references(store: &Store) -> Result<HashReferenceUsage> {
    let gc::RecordsCost { records, row_bytes, kept_bytes } =
        store.cost_of_records(|name, labels| !is_name_of(classify(name), labels))?;
    Ok(HashReferenceUsage { records, content_bytes: kept_bytes, metadata_bytes: row_bytes })
}
