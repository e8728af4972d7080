//! What the layers of one operation do together, since each transaction and each new tree waits for the disk.
//!
//! - The rows of writes are made for many blobs before the first of them is opened ([`Ahead`]).
//! - Active snapshots are made for many layers when the first of them is applied ([`Trees`]).
//! - Blobs whose bytes are here become visible together ([`Session::show_brought`]): at the latest when somebody reads one of them, and
//!   before the operation ends, whatever became of it.
//!
//! # Invariants
//! - A write's row is committed before its bytes are in the content store, and holds them until the blob's row takes its place; both are
//!   held by the lease of the operation. So a blob that waits is as safe from a collection and from a crash as one that is visible; who
//!   opens the same write afterwards finds the bytes and does not fetch them.
//! - Every active snapshot that was made is in [`Actives`], until it is committed or removed.
//!
//! # Concurrency
//! Whoever comes first does it for the others, who wait for him. Of what is ahead only so much is made at once: a manifest may name any
//! number of layers.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use orlop_content as content;
use orlop_metadata::{Brought, ScopedSnapshots};
use orlop_oci::{ChainId, Descriptor, Digest};

use super::Session;
use super::blobs::{ingest_name, was_ended};
use super::unpack::{Actives, active_key};
use crate::walk::kind_word;
use crate::{Error, Result};

/// So many are made together at most.
const AT_ONCE: usize = 64;

/// The writes of blobs that are about to be brought, in this order.
pub(super) struct Ahead {
    writes: Vec<(String, Digest)>,
    /// How many of them have their rows.
    announced: tokio::sync::Mutex<usize>,
}

impl Ahead {
    pub(super) fn new<'a>(blobs: impl Iterator<Item = &'a Descriptor>) -> Self {
        let writes = blobs.map(|blob| (ingest_name(blob, kind_word(blob)), blob.digest.clone())).collect();
        Self { writes, announced: tokio::sync::Mutex::default() }
    }
}

impl Session<'_> {
    /// Makes the rows of the write of blob number `at` and of those that follow, unless they are there.
    pub(super) async fn announce(&self, ahead: &Ahead, at: usize) -> Result<()> {
        let mut announced = ahead.announced.lock().await;
        while *announced <= at && *announced < ahead.writes.len() {
            let end = ahead.writes.len().min(*announced + AT_ONCE);
            let (content, next) = (self.content.clone(), ahead.writes[*announced..end].to_vec());
            self.images.blocking(move |_| Ok(content.announce(&next)?)).await?;
            *announced = end;
        }
        Ok(())
    }

    /// Lets a blob be shown with others.
    pub(super) async fn show_later(&self, descriptor: &Descriptor, brought: Brought) -> Result<()> {
        let enough = {
            let mut waiting = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.push((descriptor.clone(), brought));
            waiting.len() >= AT_ONCE
        };
        if enough { self.show_brought().await } else { Ok(()) }
    }

    /// Makes all blobs visible whose bytes are here. Those whose writes somebody has aborted since are fetched again.
    pub(crate) async fn show_brought(&self) -> Result<()> {
        loop {
            // Whoever waits here for another to show his blob finds it shown.
            let showing = self.showing.lock().await;
            let waiting = std::mem::take(&mut *self.brought.lock().unwrap_or_else(PoisonError::into_inner));
            if waiting.is_empty() {
                return Ok(());
            }
            let (blobs, writes): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
            let mut lost = Vec::new();
            for (blob, shown) in blobs.iter().zip(self.content.show_all(writes).await?) {
                match shown.map_err(Error::from) {
                    Err(Error::Content(content::Error::Locked(_))) => lost.push(blob),
                    Err(error) if was_ended(&error) => lost.push(blob),
                    shown => shown?,
                }
            }
            drop(showing);
            for blob in lost {
                self.bring_again(blob).await?;
            }
        }
    }

    /// Boxed, since bringing one may show others.
    fn bring_again<'a>(&'a self, blob: &'a Descriptor) -> futures::future::BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.bring_blob(blob, &mut || None).await })
    }
}

/// Active snapshots without parents, for layers that are applied while they come.
#[derive(Debug, Default)]
pub(super) struct Trees(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Layers that have none yet.
    planned: VecDeque<ChainId>,
    /// Keys that nobody has taken yet.
    made: Vec<(ChainId, String)>,
}

impl Trees {
    /// Has trees made for these layers too, when the first is wanted.
    pub(super) fn plan(&self, chains: impl Iterator<Item = ChainId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).planned.extend(chains);
    }

    /// The key of a layer's active snapshot; `None` if none was planned for it, or it was taken. Blocks.
    pub(super) fn take(
        &self,
        chain: &ChainId,
        snapshots: &ScopedSnapshots,
        actives: &Actives,
    ) -> Result<Option<String>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = state.made.iter().position(|(made, _)| made == chain) {
            return Ok(Some(state.made.swap_remove(at).1));
        }
        let Some(at) = state.planned.iter().position(|planned| planned == chain) else { return Ok(None) };
        let own = state.planned.remove(at);
        let others = state.planned.len().min(AT_ONCE - 1);
        let next: Vec<ChainId> = own.into_iter().chain(state.planned.drain(..others)).collect();
        let mut made: Vec<_> = next.into_iter().map(|chain| (chain.clone(), active_key(&chain))).collect();
        let keys: Vec<String> = made.iter().map(|(_, key)| key.clone()).collect();
        snapshots.prepare_all(&keys)?;
        if !actives.add_all(&keys) {
            // The operation has failed meanwhile, and nobody would remove them.
            snapshots.remove_all(&keys)?;
            return Err(Error::Interrupted);
        }
        let own = made.swap_remove(0).1;
        state.made.append(&mut made);
        Ok(Some(own))
    }
}
