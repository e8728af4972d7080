//! What takes how much disk, measured from the file system; and giving it back.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_metadata::gc::{self, Disposal};
use orlop_metadata::{CountedImage, Scope, Store};
use orlop_oci::classify;

use crate::allocated::Walk;
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
    /// Bytes of the trash reclaimed.
    pub trash_bytes: u64,
    /// Expired leases removed.
    pub leases: u64,
    /// Expired writes removed.
    pub ingests: u64,
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
        let measured = self.blocking(measure).await?;
        Ok(DiskUsage { images, ..measured })
    }
}

fn outcome(report: &gc::Report) -> GcOutcome {
    GcOutcome {
        blobs: distinct(report) as u64,
        blob_bytes: report.blob_bytes,
        snapshots: report.snapshots.len() as u64,
        snapshot_bytes: report.snapshot_bytes,
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

fn measure(store: &Store) -> Result<DiskUsage> {
    // While the files are looked at.
    std::thread::scope(|scope| {
        let hash_references = scope.spawn(|| hash_references(store));
        let usage = measure_files(store.root());
        let hash_references = hash_references.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(DiskUsage { hash_references, ..usage? })
    })
}

fn measure_files(root: &Path) -> Result<DiskUsage> {
    let mut walk = Walk::new(root);
    let mut usage = DiskUsage {
        content: walk.below("content/blobs")?,
        ingests: walk.below("content/ingest")?,
        snapshots: walk.below("snapshots")?,
        trash: walk.below("trash")?,
        quarantine: walk.below("quarantine")?,
        ..DiskUsage::default()
    };
    // Whatever else is in the root: database, history, locks, the directories between.
    usage.metadata = walk.rest()?;
    let stored = usage.content + usage.ingests + usage.snapshots;
    usage.total = stored + usage.trash + usage.quarantine + usage.metadata;
    Ok(usage)
}

/// What would go if only the hash references went: planned, less what would go anyway.
fn hash_references(store: &Store) -> Result<HashReferenceUsage> {
    let mut usage = HashReferenceUsage::default();
    let mut records = Vec::new();
    for image in store.counted_images()? {
        if !is_name_of(classify(&image.name), &image.labels) {
            usage.records += 1;
            usage.metadata_bytes += row_bytes(&image);
            records.push((image.namespace.to_string(), image.name));
        }
    }
    usage.content_bytes = store.bytes_kept_by(&records)?;
    Ok(usage)
}

/// The bytes of a record's columns, as text.
fn row_bytes(image: &CountedImage) -> u64 {
    let labels: usize = image.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
    // Size and the two times are integers of eight bytes.
    image.text_bytes + (labels + 3 * 8) as u64
}
