//! What this node has and gives: every blob of every namespace, but for what is withheld.
//!
//! # Invariants
//! - A blob is given only while a namespace has it: such a blob was hashed when it came in, and one that was found damaged is set
//!   aside. It is looked up for every request, since announcements outlive blobs.
//! - With patterns of withheld repositories, a blob is given only if an image of another repository has it; what no named
//!   image has is withheld. The bytes of one image that is withheld and one that is not are given.
//! - Reading here changes nothing and holds nothing: a blob may go at any time, and a reader that is open goes on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use orlop_content::{BlobReader, read_verified};
use orlop_image::Pattern;
use orlop_metadata::{Change, Notice, Scope, Store, Watcher};
use orlop_oci::{Digest, Document, MAX_MANIFEST_BYTES, Reference};
use tokio::sync::Notify;

use crate::net::Net;

/// Who asks the store.
const ACTOR: &str = "peers";
/// How often it is looked whether anything changed that nobody told of: collections, and other processes.
const LOOK: Duration = Duration::from_secs(5);
/// How long after a change more of them are waited for.
const GATHER: Duration = Duration::from_millis(50);
/// Documents whose type is remembered.
const MAX_TYPES: usize = 4096;

/// The blobs of a store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Shelf {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    withheld: Vec<Pattern>,
    /// What may be given, where anything is withheld.
    allowed: RwLock<HashSet<Digest>>,
    /// Media types of documents that were asked for.
    types: Mutex<HashMap<Digest, Option<String>>>,
    changed: Arc<Notify>,
    _watcher: Arc<Watcher>,
}

impl Shelf {
    /// Everything that the store has, but what belongs to `withheld` repositories alone.
    pub(crate) fn new(store: Store, withheld: Vec<Pattern>) -> Self {
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        let watcher: Arc<Watcher> = Arc::new(move |notices: &[Notice]| {
            if notices.iter().any(|notice| matters(&notice.change)) {
                told.notify_one();
            }
        });
        store.watch(&watcher);
        let (allowed, types) = (RwLock::default(), Mutex::default());
        Self { inner: Arc::new(Inner { store, withheld, allowed, types, changed, _watcher: watcher }) }
    }

    /// Whether blobs of a repository are kept from peers, and not asked of them.
    pub(crate) fn withholds(&self, repository: &orlop_oci::RepositoryName) -> bool {
        self.inner.withheld.iter().any(|pattern| pattern.matches(repository))
    }

    /// Opens a blob, if it is here and given.
    pub(crate) async fn open(&self, digest: &Digest) -> Option<Arc<dyn BlobReader>> {
        if !self.gives(digest).await {
            return None;
        }
        self.inner.store.raw_content().open(digest).await.ok()
    }

    async fn gives(&self, digest: &Digest) -> bool {
        if !self.inner.withheld.is_empty() {
            let allowed = self.inner.allowed.read().unwrap_or_else(PoisonError::into_inner);
            if !allowed.contains(digest) {
                return false;
            }
        }
        let (store, digest) = (self.inner.store.clone(), digest.clone());
        let rows = tokio::task::spawn_blocking(move || store.blob_rows(&digest)).await;
        matches!(rows, Ok(Ok(rows)) if !rows.is_empty())
    }

    /// The media type of a document; `None` if the blob is none.
    pub(crate) async fn document_type(&self, digest: &Digest) -> Option<String> {
        if let Some(found) = self.known_type(digest) {
            return found;
        }
        // What cannot be read now may be mended: of that nothing is remembered.
        let raw = read_verified(self.inner.store.raw_content().as_ref(), digest, MAX_MANIFEST_BYTES).await.ok()?;
        let document = Document::parse_as(raw, None, digest.algorithm()).ok();
        let found = document.map(|document| document.media_type().to_owned());
        let mut known = self.inner.types.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_TYPES {
            known.clear();
        }
        known.insert(digest.clone(), found.clone());
        found
    }

    fn known_type(&self, digest: &Digest) -> Option<Option<String>> {
        let known = self.inner.types.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(digest).cloned()
    }

    /// Everything that is given now.
    async fn all(&self) -> Option<BTreeSet<Digest>> {
        let inner = Arc::clone(&self.inner);
        let all = tokio::task::spawn_blocking(move || inner.list()).await.ok()?;
        match all {
            Ok(all) => {
                if !self.inner.withheld.is_empty() {
                    *self.inner.allowed.write().unwrap_or_else(PoisonError::into_inner) = all.iter().cloned().collect();
                }
                Some(all)
            }
            Err(error) => {
                tracing::warn!(%error, "what is here cannot be told to peers; it is tried again");
                None
            }
        }
    }

    /// Tells others what comes and goes, from everything that is here on, for ever.
    pub(crate) async fn follow(self, net: Net) {
        let (mut before, mut version) = (BTreeSet::new(), None);
        loop {
            let store = self.inner.store.clone();
            let now = tokio::task::spawn_blocking(move || store.version()).await.ok().and_then(Result::ok);
            if (now.is_none() || now != version)
                && let Some(all) = self.all().await
            {
                let have: Vec<Digest> = all.difference(&before).cloned().collect();
                let lost: Vec<Digest> = before.difference(&all).cloned().collect();
                if !have.is_empty() || !lost.is_empty() {
                    tracing::debug!(have = have.len(), lost = lost.len(), "telling peers what is here");
                    net.change(&have, &lost).await;
                }
                (before, version) = (all, now);
            }
            if tokio::time::timeout(LOOK, self.inner.changed.notified()).await.is_ok() {
                tokio::time::sleep(GATHER).await;
            }
        }
    }
}

impl Inner {
    fn list(&self) -> orlop_metadata::Result<BTreeSet<Digest>> {
        let mut all = BTreeSet::new();
        for namespace in self.store.namespaces()? {
            if self.withheld.is_empty() {
                all.extend(self.store.content(&Scope::new(&namespace.name, ACTOR)).sizes()?.into_keys());
                continue;
            }
            let here = self.store.content(&Scope::new(&namespace.name, ACTOR)).sizes()?;
            let mut names = Vec::new();
            self.store.look(&namespace.name, |look| look.each_image(|image| names.push(image.name.to_owned())))?;
            for name in names.iter().filter(|name| self.may_give(name)) {
                let reached = self.store.reached_blobs(&namespace.name, name)?;
                all.extend(reached.into_iter().filter(|digest| here.contains_key(digest)));
            }
        }
        Ok(all)
    }

    /// Whether what an image record names may be given. An image ID says of no repository that it may.
    fn may_give(&self, name: &str) -> bool {
        let Ok(reference) = name.parse::<Reference>() else { return false };
        reference.repository().is_some_and(|repository| !self.withheld.iter().any(|p| p.matches(repository)))
    }
}

/// Whether a change may put something on the shelf or take it off.
fn matters(change: &Change) -> bool {
    matches!(
        change,
        Change::ContentCreate { .. }
            | Change::ContentDelete { .. }
            | Change::ImageCreate { .. }
            | Change::ImageUpdate { .. }
            | Change::ImageDelete { .. }
            | Change::DamageFound { .. }
            | Change::DamageMended { .. }
    )
}
