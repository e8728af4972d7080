//! Several writes at once: one transaction where each would have its own.
//!
//! The order of a write (see the parent module) is kept for each of them. Its first step is done for many before any is opened; its
//! last waits for company, and until then the row of the write protects bytes that are in the raw store already. Whoever else opens
//! such a write, in another process or after a crash, finds them there and does that step himself.

use orlop_content as content;
use orlop_oci::Digest;

use super::ScopedContent;
use super::ingests::{self, Finished};
use super::roles::renamed;
use crate::transact::Tx;
use crate::{Labels, Result, Scope};

/// How often blobs are shown anew whose writes did not protect them for a while.
const ROUNDS: usize = 16;

/// A write whose bytes are in the raw store, and whose blob is not visible yet.
#[derive(Debug)]
pub struct Brought {
    pub(super) reference: String,
    pub(super) backend: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) labels: Labels,
    /// By this write, not by another one of the same blob.
    pub(super) brought: bool,
    /// Another namespace had them.
    pub(super) adopted: bool,
    /// The namespace has the blob, and its bytes were lost.
    pub(super) refill: bool,
}

impl Brought {
    /// What the blob is called.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(super) fn finish(&self, tx: &Tx<'_>, scope: &Scope) -> Result<Finished> {
        let Self { reference, backend, digest, size, labels, brought, .. } = self;
        let ended = ingests::finish(tx, scope, reference, backend, digest, *size, labels, *brought)?;
        if self.adopted {
            ingests::leave(tx, backend)?;
        }
        Ok(ended)
    }
}

impl ScopedContent {
    /// Begins writes that are about to be opened, by ref and digest, in one transaction: opening each of them then changes nothing, and
    /// does not wait for the disk. What is there already is leased. One that is never opened has no bytes, and ends as any other. Blocks.
    pub fn announce(&self, writes: &[(String, Digest)]) -> Result<()> {
        self.store.bring_together("open ingests", |tx| {
            let mut all = writes.iter();
            all.try_for_each(|(reference, digest)| {
                ingests::open(tx, &self.scope, reference, Some(digest), false).map(drop)
            })
        })
    }

    /// Makes blobs visible whose bytes are here, in one transaction. Says of each how that ended, in their order: NotFound where the write
    /// was aborted meanwhile, and the bytes may be gone.
    ///
    /// # Durability
    /// As [`Writer::commit`](content::Writer::commit).
    pub async fn show_all(&self, writes: Vec<Brought>) -> content::Result<Vec<content::Result<()>>> {
        let mut results: Vec<Option<content::Result<()>>> = writes.iter().map(|_| None).collect();
        let mut waiting: Vec<(usize, Brought)> = writes.into_iter().enumerate().collect();
        for _ in 0..ROUNDS {
            if waiting.is_empty() {
                break;
            }
            for (at, write, ended) in self.finish_all(std::mem::take(&mut waiting)).await? {
                match ended {
                    Finished::Committed => results[at] = Some(Ok(())),
                    Finished::Exists => results[at] = Some(self.tidied(&write).await),
                    Finished::Aborted => results[at] = Some(Err(no_ingest(&write.reference))),
                    // It protects the bytes now: are they still there?
                    Finished::Unprotected => match self.is_lost(&write.digest).await? {
                        true => results[at] = Some(Err(no_ingest(&write.reference))),
                        false => waiting.push((at, write)),
                    },
                }
            }
        }
        for (at, write) in waiting {
            results[at] = Some(Err(content::Error::Locked(write.reference)));
        }
        Ok(results.into_iter().flatten().collect())
    }

    async fn finish_all(&self, writes: Vec<(usize, Brought)>) -> content::Result<Vec<(usize, Brought, Finished)>> {
        self.blocking(move |this| {
            let ended: Vec<Finished> = this.store.bring_together("commit content", |tx| {
                writes.iter().map(|(_, write)| write.finish(tx, &this.scope)).collect()
            })?;
            Ok(writes.into_iter().zip(ended).map(|((at, write), ended)| (at, write, ended)).collect())
        })
        .await
    }

    /// Frees what the raw store has of a write whose blob another has shown.
    async fn tidied(&self, write: &Brought) -> content::Result<()> {
        if write.brought && write.refill {
            return Ok(());
        }
        match self.store.raw_content().abort(&write.backend).await {
            Ok(()) | Err(content::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(renamed(error, &write.reference)),
        }
    }
}

fn no_ingest(reference: &str) -> content::Error {
    content::Error::NotFound { kind: "ingest", name: reference.to_owned() }
}
