//! Reading all blobs and unpacked trees again, slowly, to find what the disk has changed before somebody needs it.
//!
//! # Invariants
//! - Blobs are read in the order of their digests, then trees in the order of their numbers; what came in behind the place where a pass
//!   is waits for the next one.
//! - How far it has come is remembered at least once a second and at its end: a pass that was stopped, however abruptly, goes on there.
//! - A blob that is found damaged is set aside and remembered, a tree is remembered and left in its place, for containers may stand on
//!   it (`repair` says how both are mended); and the pass goes on.

use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use orlop_content::{self as content, Pace};
use orlop_metadata::{Damage, Scrub, Tree};
use orlop_oci::Digest;

use crate::{Error, Images, Result, check};

/// How often it is remembered how far a pass has come.
const REMEMBER: Duration = Duration::from_secs(1);

/// How many bytes are read a second, at most; it may be changed while somebody reads.
#[derive(Debug, Default)]
pub struct Bandwidth {
    per_second: AtomicU64,
    /// When what was read so far is paid for.
    due: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// So many bytes a second; 0: as fast as it goes.
    pub fn new(per_second: u64) -> Self {
        Self { per_second: per_second.into(), due: Mutex::default() }
    }

    /// From now on so many.
    pub fn set(&self, per_second: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }
}

#[async_trait]
impl Pace for Bandwidth {
    async fn read(&self, bytes: u64) {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second == 0 {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / per_second as f64);
        let due = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            // Time in which nothing was read is not saved up.
            let next = due.unwrap_or_else(Instant::now).max(Instant::now()) + cost;
            *due.insert(next)
        };
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Told as a pass goes on.
#[derive(Debug)]
pub enum Scrubbing<'a> {
    /// So many more bytes are read.
    Read(u64),
    /// A blob or a tree is damaged.
    Found(&'a Damage),
}

impl Images {
    /// Reads all blobs and compares all trees, or what is left of them since a pass was stopped; with `anew` all.
    ///
    /// # Errors
    /// [`Error::Scrubbing`] while another process, or another call, scrubs.
    ///
    /// # Cancellation
    /// It goes on where it stopped.
    pub async fn scrub(
        &self,
        bandwidth: &Bandwidth,
        anew: bool,
        told: &(dyn Fn(Scrubbing<'_>) + Send + Sync),
    ) -> Result<Scrub> {
        let Some(_lock) = self.blocking(|store| Ok(store.lock_scrub()?)).await? else {
            return Err(Error::Scrubbing);
        };
        let last = self.blocking(|store| Ok(store.scrub()?)).await?;
        let unfinished = last.filter(|last| last.ended.is_none() && !anew);
        let mut scrub = unfinished.unwrap_or_else(|| Scrub::beginning(Timestamp::now()));
        let mut blobs = self.blocking(check::all_blobs).await?;
        if let Some(after) = &scrub.after {
            blobs = blobs.range((Bound::Excluded(after.clone()), Bound::Unbounded)).map(owned).collect();
        }
        let (mut saved, mut told_bytes) = (Instant::now(), scrub.tree_bytes);
        for (digest, size) in blobs {
            if let Some(damage) = self.scrub_blob(&digest, size, bandwidth).await? {
                scrub.found += 1;
                told(Scrubbing::Found(&damage));
            }
            scrub = Scrub { blobs: scrub.blobs + 1, bytes: scrub.bytes + size, after: Some(digest), ..scrub };
            told(Scrubbing::Read(size));
            self.remember_at_times(&scrub, &mut saved).await?;
        }
        let trees = self.blocking(|store| Ok(store.trees()?)).await?;
        let after = scrub.after_tree;
        for tree in trees.into_iter().filter(|tree| after.is_none_or(|after| tree.id.0 > after)) {
            if let Some(damage) = self.scrub_tree(&tree, bandwidth, &mut scrub).await? {
                scrub.found += 1;
                told(Scrubbing::Found(&damage));
            }
            scrub.after_tree = Some(tree.id.0);
            told(Scrubbing::Read(scrub.tree_bytes - std::mem::replace(&mut told_bytes, scrub.tree_bytes)));
            self.remember_at_times(&scrub, &mut saved).await?;
        }
        scrub.ended = Some(Timestamp::now());
        self.remember(&scrub).await?;
        Ok(scrub)
    }

    async fn remember_at_times(&self, scrub: &Scrub, saved: &mut Instant) -> Result<()> {
        if saved.elapsed() >= REMEMBER {
            self.remember(scrub).await?;
            *saved = Instant::now();
        }
        Ok(())
    }

    async fn remember(&self, scrub: &Scrub) -> Result<()> {
        let scrub = scrub.clone();
        self.blocking(move |store| Ok(store.put_scrub(&scrub)?)).await
    }

    /// Reads one blob; a damaged one is set aside. What went meanwhile is none.
    async fn scrub_blob(&self, digest: &Digest, size: u64, bandwidth: &Bandwidth) -> Result<Option<Damage>> {
        let raw = self.store().raw_content();
        if content::examine(&**raw, digest, Some(size), bandwidth).await?.is_none() {
            return Ok(None);
        }
        let digest = digest.clone();
        self.blocking(move |store| Ok(store.quarantine_blob(&digest)?)).await
    }
}

impl Images {
    /// Compares one tree, and counts it.
    async fn scrub_tree(&self, tree: &Tree, bandwidth: &Bandwidth, scrub: &mut Scrub) -> Result<Option<Damage>> {
        let Some(comparison) = self.compare_tree(tree, bandwidth).await? else {
            scrub.unrecorded += 1;
            return Ok(None);
        };
        scrub.trees += 1;
        scrub.tree_bytes += comparison.compared().bytes;
        let tree = tree.clone();
        self.blocking(move |store| Ok(store.note_tree(&tree, &comparison)?)).await
    }
}

fn owned((digest, size): (&Digest, &u64)) -> (Digest, u64) {
    (digest.clone(), *size)
}
