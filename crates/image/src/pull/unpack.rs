//! From layers to committed snapshots.
//!
//! With a driver that can rebase, every layer is applied on its own while it comes in, and the snapshots are committed
//! in order. Otherwise layers are applied one after the other from the stored blobs.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use orlop_content::{BlockingReader, Provider};
use orlop_metadata::{self as metadata, Commit, Labels, Resource, ResourceKind, ScopedSnapshots, SnapshotKind};
use orlop_oci::{ChainId, Descriptor, DiffId};
use orlop_snapshot::apply;
use tokio::sync::oneshot;
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::Session;
use super::together::Trees;
use crate::span::entered;
use crate::{BlobEvent, Error, Event, Limit, Result, Stage, labels};

/// A layer of an image that is to be unpacked.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) layer: Descriptor,
    pub(crate) diff_id: DiffId,
    pub(crate) chain: ChainId,
}

/// A layer that was applied, and may be committed once those below it may.
struct Applied {
    step: Step,
    /// Its active snapshot.
    key: String,
    span: Span,
}

/// How a layer is ready for its turn.
#[derive(Debug)]
pub(crate) enum Ready {
    /// Applied without its parent, in this active snapshot.
    Applied(String),
    /// Only stored.
    Stored,
}

/// Snapshots that were prepared and not committed yet; those that are left when an operation fails are removed.
#[derive(Debug, Default)]
pub(crate) struct Actives {
    state: Mutex<(BTreeSet<String>, bool)>,
}

/// A reader that fails as soon as the operation has.
struct WhileOpen<'a, R> {
    actives: &'a Actives,
    reader: R,
}

impl<R: Read> Read for WhileOpen<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.actives.is_closed() {
            return Err(io::Error::other("the operation was stopped"));
        }
        self.reader.read(buffer)
    }
}

impl Actives {
    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// Remembers a key; false if the operation has failed already.
    fn add(&self, key: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.insert(key.to_owned());
        !state.1
    }

    /// Remembers keys, unless the operation has failed already.
    pub(super) fn add_all(&self, keys: &[String]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.1 {
            state.0.extend(keys.iter().cloned());
        }
        !state.1
    }

    fn done(&self, key: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.remove(key);
    }

    /// Takes no more keys; gives those that are left.
    fn close(&self) -> Vec<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = true;
        std::mem::take(&mut state.0).into_iter().collect()
    }
}

/// Stops the threads that unpack when the operation is dropped; what they have made goes with its lease.
pub(crate) struct Stop<'a>(pub(crate) &'a Unpacker);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.actives.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    }
}

/// Unpacks into one driver on behalf of one operation.
#[derive(Clone)]
pub(crate) struct Unpacker {
    pub(crate) snapshots: ScopedSnapshots,
    pub(crate) actives: Arc<Actives>,
    pub(super) trees: Arc<Trees>,
    pub(crate) options: apply::Options,
}

impl Unpacker {
    /// How many of the lowest steps are there already. Those are leased, so that they stay.
    pub(crate) fn existing(&self, scope: &metadata::Scope, store: &metadata::Store, steps: &[Step]) -> Result<usize> {
        if let Some(lease) = &scope.lease {
            let kind = ResourceKind::Snapshots(self.snapshots.driver_name().to_owned());
            let resource = |step: &Step| Resource { kind: kind.clone(), name: step.chain.to_string() };
            store.add_resources(&scope.namespace, lease, &steps.iter().map(resource).collect::<Vec<_>>())?;
        }
        for (at, step) in steps.iter().enumerate().rev() {
            match self.snapshots.stat(&step.chain.to_string()) {
                Ok(info) if info.kind == SnapshotKind::Committed => return Ok(at + 1),
                Ok(_) | Err(metadata::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(0)
    }

    /// Applies a layer to a new active snapshot, compares the diff ID, and returns the snapshot's key.
    pub(crate) fn apply(&self, step: &Step, parent: &str, reader: impl Read + Send) -> Result<(String, u64)> {
        let (key, open) = self.prepare(step, parent)?;
        let (digest, diff_id) = (&step.layer.digest, &step.diff_id);
        let span = info_span!("unpack", %digest, %diff_id, error = Empty);
        let applied = entered(span, || self.apply_to(step, &key, WhileOpen { actives: &self.actives, reader }));
        if !open || applied.is_err() {
            self.discard(&key);
        }
        match applied {
            Ok(_) if !open => Err(Error::Interrupted),
            Ok(bytes) => Ok((key, bytes)),
            Err(error) => Err(error),
        }
    }

    /// The active snapshot that a layer is applied to, and whether the operation goes on.
    fn prepare(&self, step: &Step, parent: &str) -> Result<(String, bool)> {
        if parent.is_empty()
            && let Some(key) = self.trees.take(&step.chain, &self.snapshots, &self.actives)?
        {
            return Ok((key, true));
        }
        let key = active_key(&step.chain);
        self.snapshots.prepare(&key, parent, Labels::new())?;
        let open = self.actives.add(&key);
        Ok((key, open))
    }

    fn apply_to(&self, step: &Step, key: &str, reader: impl Read + Send) -> Result<u64> {
        let target = self.snapshots.apply_target(key)?;
        let layer = step.layer.digest.clone();
        let applied = apply::apply(reader, &target, &self.options).map_err(|source| Error::Layer { layer, source })?;
        if applied.diff_id != step.diff_id {
            return Err(Error::DiffId {
                layer: step.layer.digest.clone(),
                expected: step.diff_id.digest().clone(),
                actual: applied.diff_id.into_digest(),
            });
        }
        Ok(applied.tar_bytes)
    }

    /// Commits an active snapshot under its chain ID. Somebody else's equal one is as good.
    fn commit(&self, step: &Step, key: &str, parent: &str) -> Result<()> {
        let Commit { name, labels, .. } = wanted(step, key, parent);
        match self.snapshots.commit(&name, key, Some(parent), labels) {
            Ok(()) => self.actives.done(key),
            Err(metadata::Error::AlreadyExists { .. }) => self.discard(key),
            // Links into the layers below are only made here.
            Err(metadata::Error::Snapshot(source)) => {
                return Err(Error::Layer { layer: step.layer.digest.clone(), source });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Commits those that follow each other on `parent`: with one wait for the disk, if nothing is in the way.
    fn commit_all(&self, ready: Vec<Applied>, parent: &str) -> Result<()> {
        let parents: Vec<String> =
            std::iter::once(parent.to_owned()).chain(ready.iter().map(|layer| layer.step.chain.to_string())).collect();
        if ready.len() > 1 {
            let wanted = |(layer, parent): (&Applied, &String)| wanted(&layer.step, &layer.key, parent);
            let chain = ready.iter().zip(&parents).map(wanted).collect();
            match self.snapshots.commit_chain(parent, chain) {
                Ok(()) => {
                    ready.iter().for_each(|layer| self.actives.done(&layer.key));
                    return Ok(());
                }
                // One by one they tell which layer it is, and take what somebody else has made meanwhile.
                Err(error) => tracing::debug!(%error, "layers are committed one by one"),
            }
        }
        ready
            .into_iter()
            .zip(&parents)
            .try_for_each(|(Applied { step, key, span }, parent)| entered(span, || self.commit(&step, &key, parent)))
    }

    /// Removes an active snapshot; what cannot be removed now goes with its lease.
    fn discard(&self, key: &str) {
        self.actives.done(key);
        if let Err(error) = self.snapshots.remove(key) {
            tracing::warn!(%error, key, "an unfinished snapshot could not be removed");
        }
    }

    /// Removes what a failed operation left.
    pub(crate) fn clean_up(&self) {
        let keys = self.actives.close();
        if !keys.is_empty()
            && let Err(error) = self.snapshots.remove_all(&keys)
        {
            tracing::warn!(%error, ?keys, "unfinished snapshots could not be removed");
        }
    }
}

impl Session<'_> {
    /// Commits the steps from `from` on, in order, as they become ready; those that are ready at the same time, or soon after, together.
    pub(crate) async fn commit_steps(
        &self,
        unpacker: &Unpacker,
        steps: &[Step],
        from: usize,
        ready: Vec<oneshot::Receiver<Ready>>,
    ) -> Result<()> {
        let mut applied = Vec::new();
        for (at, mut receiver) in (from..).zip(ready) {
            let state = match receiver.try_recv() {
                Ok(state) => state,
                Err(_) => {
                    if is_worth_a_wait(steps, &applied) {
                        self.commit_applied(unpacker, steps, std::mem::take(&mut applied)).await?;
                    }
                    // A sender that is gone has failed; its own error is reported.
                    receiver.await.map_err(|_| Error::Interrupted)?
                }
            };
            let key = match state {
                Ready::Applied(key) => key,
                Ready::Stored => {
                    self.commit_applied(unpacker, steps, std::mem::take(&mut applied)).await?;
                    self.apply_stored(unpacker, &steps[at], &below(steps, at)).await?
                }
            };
            applied.push((at, key));
        }
        self.commit_applied(unpacker, steps, applied).await
    }

    /// Commits steps that follow each other.
    async fn commit_applied(&self, unpacker: &Unpacker, steps: &[Step], applied: Vec<(usize, String)>) -> Result<()> {
        let Some((first, _)) = applied.first() else { return Ok(()) };
        let (parent, unpacker) = (below(steps, *first), unpacker.clone());
        let ready = applied.into_iter().map(|(at, key)| {
            let step = steps[at].clone();
            // One a layer, also where they wait together.
            let span = info_span!("commit", snapshot = %step.chain, error = Empty);
            Applied { step, key, span }
        });
        let ready = ready.collect();
        self.images.blocking(move |_| unpacker.commit_all(ready, &parent)).await
    }

    /// Applies a layer from the store. Where the disk is full and something gives way, it is done anew: a tree that is half written
    /// goes, and the threads that write it, which are confined, can ask nobody.
    pub(crate) async fn apply_stored(&self, unpacker: &Unpacker, step: &Step, parent: &str) -> Result<String> {
        let mut asking = self.images.store().asking(step.layer.size);
        loop {
            match self.try_to_apply(unpacker, step, parent).await {
                Err(error) if self.makes_room(&error, &mut asking).await? => {}
                other => return other,
            }
        }
    }

    async fn try_to_apply(&self, unpacker: &Unpacker, step: &Step, parent: &str) -> Result<String> {
        self.show_brought().await?;
        let reader = self.content.open(&step.layer.digest).await?;
        let reader = BlockingReader::new(tokio::runtime::Handle::current(), reader, 0);
        self.tell(&step.layer, "layer", Stage::Unpacking, step.layer.size);
        let (job, unpack, below) = (step.clone(), unpacker.clone(), parent.to_owned());
        let (key, bytes) = self.images.blocking(move |_| unpack.apply(&job, &below, reader)).await?;
        self.unpacked(&step.layer, bytes);
        Ok(key)
    }

    pub(crate) fn unpacked(&self, layer: &Descriptor, bytes: u64) {
        (self.sink)(Event::Blob(BlobEvent {
            digest: layer.digest.clone(),
            kind: "layer",
            stage: Stage::Complete,
            offset: layer.size,
            total: layer.size,
            unpacked: bytes,
            limit: Limit::Unknown,
        }));
    }
}

/// Whether what is ready is written to the disk although more is to come: enough for the disk to be busy with, while the processors are
/// with the next layers. Fewer bytes are sooner there together with others.
fn is_worth_a_wait(steps: &[Step], applied: &[(usize, String)]) -> bool {
    const ENOUGH: (usize, u64) = (16, 16 << 20);
    let bytes: u64 = applied.iter().map(|(at, _)| steps[*at].layer.size).sum();
    applied.len() >= ENOUGH.0 || bytes >= ENOUGH.1
}

/// The chain ID that a step stands on; empty for the lowest.
fn below(steps: &[Step], at: usize) -> String {
    at.checked_sub(1).map(|below| steps[below].chain.to_string()).unwrap_or_default()
}

/// What an active snapshot becomes.
fn wanted(step: &Step, key: &str, parent: &str) -> Commit {
    let name = step.chain.to_string();
    let mut labels = Labels::from([
        (labels::SNAPSHOT_REF.to_owned(), name.clone()),
        (labels::SNAPSHOT_DIFF.to_owned(), step.diff_id.to_string()),
    ]);
    if !parent.is_empty() {
        labels.insert(labels::SNAPSHOT_PARENT.to_owned(), parent.to_owned());
    }
    Commit { name, key: key.to_owned(), labels }
}

/// A key that no other unpacking has: containerd's shape, with time, process and a count before the chain ID.
pub(super) fn active_key(chain: &ChainId) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let nanoseconds = Timestamp::now().subsec_nanosecond();
    format!("extract-{nanoseconds}-{:x}{count:x} {chain}", std::process::id())
}
