//! Where a process can die between what it does to bytes and what it does to rows: a content store and a driver that panic at
//! a call of the test's choice, before it or after it. What the process had open is rolled back by that, as by its death.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use orlop_content::{
    BlobReader, Flaw, Info, IngestManager, IngestOptions, Ingester, LocalStore, Manager, Provider, Quarantine, Result,
    Status, Trash, Writer,
};
use orlop_oci::Digest;
use orlop_snapshot::{ApplyTarget, Driver, Meta, Mount, SnapshotId, Usage};

use crate::rig::PlainDriver;

/// Counts what changes bytes; burnt, it lets nothing more happen.
#[derive(Debug, Clone, Default)]
pub struct Fuse(Arc<AtomicI64>);

/// Not set.
const NEVER: i64 = 0;
const BURNT: i64 = -1;

impl Fuse {
    /// Dies at the `steps`-th step from now; each call that changes bytes is two, before and after.
    pub fn set(&self, steps: u8) {
        self.0.store(i64::from(steps) + 1, Ordering::SeqCst);
    }

    /// Takes it out; true if it was burnt.
    pub fn take(&self) -> bool {
        self.0.swap(NEVER, Ordering::SeqCst) == BURNT
    }

    fn step(&self) {
        let left = self.0.load(Ordering::SeqCst);
        if left == NEVER {
            return;
        }
        if left > 1 {
            self.0.store(left - 1, Ordering::SeqCst);
            return;
        }
        self.0.store(BURNT, Ordering::SeqCst);
        // Without a message: it is no failure.
        std::panic::resume_unwind(Box::new("the process died"));
    }

    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        self.step();
        let done = call.await;
        self.step();
        done
    }

    fn within<T>(&self, call: impl FnOnce() -> T) -> T {
        self.step();
        let done = call();
        self.step();
        done
    }
}

/// The local store, with a fuse.
pub struct FusedContent(pub LocalStore, pub Fuse);

#[async_trait]
impl Provider for FusedContent {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        self.0.open(digest).await
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.0.info(digest).await
    }
}

#[async_trait]
impl Ingester for FusedContent {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        let writer = self.1.around(self.0.writer(options)).await?;
        Ok(Box::new(FusedWriter(writer, self.1.clone())))
    }
}

#[async_trait]
impl IngestManager for FusedContent {
    async fn status(&self, reference: &str) -> Result<Status> {
        self.0.status(reference).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.0.statuses().await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.1.around(self.0.abort(reference)).await
    }

    async fn remove_debris(&self, limit: jiff::Timestamp) -> Result<usize> {
        self.0.remove_debris(limit).await
    }
}

#[async_trait]
impl Manager for FusedContent {
    async fn list(&self) -> Result<Vec<Info>> {
        self.0.list().await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.1.around(self.0.delete(digest)).await
    }

    fn trash(&self) -> Option<&dyn Trash> {
        Some(self)
    }

    fn quarantine(&self) -> Option<&dyn Quarantine> {
        Some(self)
    }
}

#[async_trait]
impl Trash for FusedContent {
    async fn discard(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        self.1.around(Trash::discard(&self.0, digest, bin)).await
    }

    async fn restore(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        self.1.around(Trash::restore(&self.0, digest, bin)).await
    }
}

#[async_trait]
impl Quarantine for FusedContent {
    async fn set_aside(&self, digest: &Digest, size: Option<u64>, bin: &Path) -> Result<Option<Flaw>> {
        self.1.around(Quarantine::set_aside(&self.0, digest, size, bin)).await
    }
}

struct FusedWriter(Box<dyn Writer>, Fuse);

#[async_trait]
impl Writer for FusedWriter {
    fn status(&self) -> Status {
        self.0.status()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.1.around(self.0.write(bytes)).await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.0.truncate(size).await
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        self.1.around(self.0.commit(size, expected)).await
    }

    fn digest(&self) -> Digest {
        self.0.digest()
    }
}

/// The driver, with a fuse.
pub struct FusedDriver(pub PlainDriver, pub Fuse);

impl Driver for FusedDriver {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> orlop_snapshot::Result<()> {
        self.1.within(|| self.0.create(id, parents, meta))
    }

    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> orlop_snapshot::Result<Vec<Mount>> {
        self.0.mounts(id, parents, writable)
    }

    fn commit(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> orlop_snapshot::Result<Usage> {
        self.1.within(|| self.0.commit(id, parents, meta))
    }

    fn usage(&self, id: SnapshotId) -> orlop_snapshot::Result<Usage> {
        self.0.usage(id)
    }

    fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> orlop_snapshot::Result<()> {
        self.1.within(|| self.0.remove(id, trash))
    }

    fn restore(&self, id: SnapshotId, trash: &Path) -> orlop_snapshot::Result<()> {
        self.1.within(|| self.0.restore(id, trash))
    }

    fn list(&self) -> orlop_snapshot::Result<Vec<(SnapshotId, Option<Meta>)>> {
        self.0.list()
    }

    fn root(&self) -> &Path {
        self.0.root()
    }

    fn supports_rebase(&self) -> bool {
        self.0.supports_rebase()
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        self.0.apply_target(id)
    }
}
