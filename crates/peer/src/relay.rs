//! Blobs that are still coming to this node, and are given on meanwhile.
//!
//! A blob that is fetched is announced at once, under a key of Orlop's own: under Spegel's key others expect all of it. Who asks is given what
//! is written, and the rest as it comes; the answer has the length of the whole. So an image goes through a fleet as a stream, and not layer by
//! layer.
//!
//! # Invariants
//! - Nobody waits for himself, over however many others: bytes are given only to who has fewer of the blob ([`Coming::stands`]), or as many while the registry
//!   gives them here. What is here never becomes less, and whoever takes from another never has more than him; so who is ahead of
//!   all others takes from a registry, or from nobody.
//! - The last byte is given when the whole was hashed and is right. If it is wrong, or does not come to its end, all who take it are broken off
//!   before; so whoever gave all of a blob that is wrong has lied, also if he has it from others.
//! - A blob of a repository that is withheld is not given.
//! - Bounded by [`MAX_COMING`], each with one open file.
//!
//! # Concurrency
//! Whoever fetches a blob tells of it through [`Coming`]; whoever gives it follows that through a channel which keeps the newest state.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_content::BlobReader;
use orlop_image::{Relay, Source, Wanted};
use orlop_oci::Digest;
use tokio::sync::watch;

use crate::net::Net;
use crate::shelf::Shelf;

/// Blobs that come at once; more are not given on.
const MAX_COMING: usize = 512;
/// Smaller ones come sooner than anybody hears of them.
const LEAST: u64 = 128 << 10;
/// How long a blob that is whole is given from here, until it is found under its name.
const LINGER: Duration = Duration::from_secs(15);

/// How far a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Bytes that can be read, from the first on.
    pub(crate) has: u64,
    /// Whoever gives it here.
    pub(crate) fed: Option<Source>,
    /// Whether it is right, once that is known.
    pub(crate) is_right: Option<bool>,
}

/// How a blob that is coming stands to somebody who has some of it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It can be had from here.
    Gives,
    /// As much is here, and somebody is looked for.
    Waits,
    /// As much is here, and another peer gives it.
    Follows,
    /// Less is here.
    Behind,
}

/// A blob that is coming.
pub(crate) struct Coming {
    pub(crate) size: u64,
    pub(crate) bytes: Arc<dyn BlobReader>,
    stage: watch::Sender<Stage>,
    /// Whether others can have heard of it.
    announced: watch::Receiver<bool>,
    /// Where whoever gives it is.
    feeder: Mutex<Option<IpAddr>>,
}

impl Coming {
    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Tells of every change.
    pub(crate) fn follow(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Waits until others can have heard that it is coming.
    pub(crate) async fn announced(&self) {
        // That the sender is gone means that nobody can hear it.
        drop(self.announced.clone().wait_for(|announced| *announced).await);
    }

    /// Where whoever gives it is, if that is a peer.
    pub(crate) fn feeder(&self) -> Option<IpAddr> {
        *self.feeder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands to somebody who has the first `bytes` of it.
    pub(crate) fn stands(&self, bytes: u64) -> Stand {
        let Stage { has, fed, is_right } = self.stage();
        match fed {
            _ if is_right == Some(true) || has > bytes => Stand::Gives,
            _ if has < bytes => Stand::Behind,
            Some(Source::Registry) => Stand::Gives,
            Some(Source::Neighbour) => Stand::Follows,
            None => Stand::Waits,
        }
    }
}

#[cfg(test)]
impl Coming {
    /// One that is at this stage, of which nobody has heard.
    pub(crate) fn at(stage: Stage, bytes: Arc<dyn BlobReader>) -> Self {
        let (size, stage) = (bytes.size(), watch::Sender::new(stage));
        Self { size, bytes, stage, announced: watch::channel(false).1, feeder: Mutex::default() }
    }

    pub(crate) fn tell(&self, stage: Stage) {
        self.stage.send_replace(stage);
    }
}

/// All blobs that are coming. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Relays {
    inner: Arc<Inner>,
}

struct Inner {
    net: Net,
    shelf: Shelf,
    enabled: bool,
    coming: Mutex<HashMap<Digest, Arc<Coming>>>,
    moved: AtomicU64,
}

impl Inner {
    fn coming(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Coming>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is not given from here any more.
    fn forget(&self, digest: &Digest, coming: &Arc<Coming>) {
        let mut all = self.coming();
        if all.get(digest).is_some_and(|found| Arc::ptr_eq(found, coming)) {
            all.remove(digest);
            drop(all);
            self.net.goes(digest);
        }
    }
}

impl Relays {
    pub(crate) fn new(net: Net, shelf: Shelf, enabled: bool) -> Self {
        Self { inner: Arc::new(Inner { net, shelf, enabled, coming: Mutex::default(), moved: AtomicU64::new(0) }) }
    }

    /// Transfers that moved from a registry to a peer that was ahead.
    pub(crate) fn moved(&self) -> u64 {
        self.inner.moved.load(Ordering::Relaxed)
    }

    /// A blob that is coming, or has just come.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<Coming>> {
        self.inner.coming().get(digest).cloned()
    }

    /// See [`orlop_image::Neighbours::relay`].
    pub(crate) fn begin(&self, wanted: Wanted<'_>, bytes: Arc<dyn BlobReader>) -> Option<Arc<dyn Relay>> {
        let size = wanted.size.filter(|size| *size >= LEAST && !wanted.is_document)?;
        if !self.inner.enabled || self.inner.shelf.withholds(wanted.repository) {
            return None;
        }
        let mut all = self.inner.coming();
        let is_new = all.get(wanted.digest).is_none_or(|coming| coming.stage().is_right.is_some());
        if !is_new || (all.len() >= MAX_COMING && !all.contains_key(wanted.digest)) {
            return None;
        }
        let announced = self.inner.net.comes(wanted.digest);
        let stage = Stage { has: 0, fed: None, is_right: None };
        let coming =
            Arc::new(Coming { size, bytes, stage: watch::Sender::new(stage), announced, feeder: Mutex::default() });
        all.insert(wanted.digest.clone(), Arc::clone(&coming));
        drop(all);
        Some(Arc::new(Telling { inner: Arc::clone(&self.inner), digest: wanted.digest.clone(), coming }))
    }
}

/// Whoever fetches a blob tells of it.
struct Telling {
    inner: Arc<Inner>,
    digest: Digest,
    coming: Arc<Coming>,
}

impl Relay for Telling {
    fn fed(&self, by: Option<Source>, host: &str) {
        let address = host.rsplit_once('@').and_then(|(_, address)| address.parse().ok());
        *self.coming.feeder.lock().unwrap_or_else(PoisonError::into_inner) = address;
        let before = self.coming.stage().fed;
        self.coming.stage.send_modify(|stage| stage.fed = by);
        if before == Some(Source::Registry) && by == Some(Source::Neighbour) {
            self.inner.moved.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn has(&self, bytes: u64) {
        self.coming.stage.send_modify(|stage| stage.has = bytes);
    }

    fn ended(&self, is_right: bool) {
        let is_first = self.coming.stage.send_if_modified(|stage| {
            let is_first = stage.is_right.is_none();
            *stage = Stage { is_right: stage.is_right.or(Some(is_right)), ..*stage };
            is_first
        });
        if !is_first {
            return;
        }
        let (inner, digest, coming) = (Arc::clone(&self.inner), self.digest.clone(), Arc::clone(&self.coming));
        match tokio::runtime::Handle::try_current() {
            Ok(handle) if is_right => drop(handle.spawn(async move {
                tokio::time::sleep(LINGER).await;
                inner.forget(&digest, &coming);
            })),
            _ => inner.forget(&digest, &coming),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    #[async_trait::async_trait]
    impl BlobReader for Nothing {
        fn size(&self) -> u64 {
            10
        }

        async fn read_at(&self, _offset: u64, _length: usize) -> orlop_content::Result<bytes::Bytes> {
            Ok(bytes::Bytes::new())
        }
    }

    #[test]
    fn only_who_is_behind_is_given_to_or_who_is_level_with_what_the_registry_gives() {
        let stands = |fed, known| Coming::at(Stage { has: 4, fed, is_right: None }, Arc::new(Nothing)).stands(known);
        let feeders = [None, Some(Source::Neighbour), Some(Source::Registry)];
        assert_eq!(feeders.map(|fed| stands(fed, 3)), [Stand::Gives; 3]);
        assert_eq!(feeders.map(|fed| stands(fed, 4)), [Stand::Waits, Stand::Follows, Stand::Gives]);
        assert_eq!(feeders.map(|fed| stands(fed, 5)), [Stand::Behind; 3]);
    }
}
