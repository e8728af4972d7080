//! Telling whoever listens in this process what was changed, in the order of the commits.
//!
//! # Invariants
//! - A change is told once its transaction has committed, never otherwise, and before any later change of this process.
//! - Changes that other processes made to image records are found in the history by a [`Follower`]; what this process
//!   made itself, and has told, it leaves out. Of their other changes nothing is known.
//!
//! # Concurrency
//! Watchers are called with the writer's lock held: they must neither block nor use the store.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use jiff::Timestamp;
use orlop_oci::Digest;
use rusqlite::Row;

use crate::db::from_nanos;
use crate::{Labels, Result, Store, TypedBytes, history};

/// What happened to one object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of the objects")]
pub enum Change {
    /// An image record was made.
    ImageCreate { name: String, labels: Labels },
    /// An image record points elsewhere, or has other labels: those after the change.
    ImageUpdate { name: String, labels: Labels },
    /// An image record is gone; also one that expired and was collected.
    ImageDelete { name: String },
    /// A blob came into a namespace.
    ContentCreate { digest: Digest, size: u64 },
    /// A client took a blob out of a namespace. Collections do not tell.
    ContentDelete { digest: Digest },
    /// An active snapshot was made; its parent may be empty.
    SnapshotPrepare { driver: String, key: String, parent: String },
    /// The active snapshot `key` became the committed `name`.
    SnapshotCommit { driver: String, key: String, name: String },
    /// A snapshot is gone; also one that was collected.
    SnapshotRemove { driver: String, key: String },
    /// A container's record was made.
    ContainerCreate { id: String, image: String, runtime: String, options: Option<TypedBytes> },
    /// A container's record changed; as it is after the change.
    ContainerUpdate { id: String, image: String, labels: Labels, snapshot_key: String },
    /// A container's record is gone.
    ContainerDelete { id: String },
    /// A client made a namespace.
    NamespaceCreate { name: String, labels: Labels },
    /// A client gave a namespace these labels.
    NamespaceUpdate { name: String, labels: Labels },
    /// A client deleted a namespace.
    NamespaceDelete { name: String },
    /// A blob or the tree of a snapshot was found not to be what it was.
    DamageFound {
        kind: String,
        name: String,
        fault: String,
        detail: String,
        images: Vec<String>,
        containers: Vec<String>,
    },
    /// It is what it was again.
    DamageMended { kind: String, name: String },
}

/// One change, with where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// When: the time of its transaction.
    pub at: Timestamp,
    /// In which namespace.
    pub namespace: String,
    /// What.
    pub change: Change,
}

/// Takes the changes of one transaction; must neither block nor use the store.
pub type Watcher = dyn Fn(&[Notice]) + Send + Sync;

/// Who listens to a database.
#[derive(Default)]
pub(crate) struct Watchers {
    watchers: RwLock<Vec<Weak<Watcher>>>,
    /// Changes in the history that this process made and a follower has not passed yet; `None` while nobody follows.
    own: Mutex<Option<BTreeSet<i64>>>,
}

impl Watchers {
    pub(crate) fn tell(&self, notices: &[Notice]) {
        if notices.is_empty() {
            return;
        }
        for watcher in self.watchers.read().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            watcher(notices);
        }
    }

    pub(crate) fn add(&self, watcher: &Arc<Watcher>) {
        let mut watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|w| w.strong_count() > 0);
        watchers.push(Arc::downgrade(watcher));
    }

    /// Before the commit, so that no follower takes them for another's.
    pub(crate) fn claim(&self, changes: &[i64]) {
        self.with_own(|own| own.extend(changes));
    }

    /// The transaction failed: another process may use these numbers.
    pub(crate) fn release(&self, changes: &[i64]) {
        self.with_own(|own| own.retain(|seq| !changes.contains(seq)));
    }

    fn with_own(&self, f: impl FnOnce(&mut BTreeSet<i64>)) {
        if let Some(own) = &mut *self.own.lock().unwrap_or_else(PoisonError::into_inner) {
            f(own);
        }
    }
}

impl Store {
    /// Has `watcher` told of every change that this process makes, as long as it lives.
    pub fn watch(&self, watcher: &Arc<Watcher>) {
        self.watchers().add(watcher);
    }

    /// Follows what other processes do to image records from now on. There is at most one follower for each open root.
    pub fn follow(&self) -> Result<Follower> {
        *self.watchers().own.lock().unwrap_or_else(PoisonError::into_inner) = Some(BTreeSet::new());
        let last = self.read(|conn| {
            Ok(conn.query_row("SELECT coalesce(max(seq), 0) FROM history", [], |row| row.get::<_, i64>(0))?)
        })?;
        Ok(Follower { store: self.clone(), last })
    }
}

/// Tells the watchers what other processes do to image records.
pub struct Follower {
    store: Store,
    last: i64,
}

impl Follower {
    /// Tells what came since the last time. Costs one look-up if nothing did. Blocks.
    pub fn step(&mut self) -> Result<()> {
        let last = self.last;
        let rows = self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT seq, at, namespace, name, action, detail FROM history WHERE seq > ?1 ORDER BY seq",
            )?;
            let rows = query.query_map([last], |row| Ok((row.get::<_, i64>(0)?, notice(row)?)))?;
            Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
        })?;
        let Some(&(newest, _)) = rows.last() else { return Ok(()) };
        let watchers = self.store.watchers();
        let mut foreign = rows;
        watchers.with_own(|own| {
            foreign.retain(|(seq, _)| !own.contains(seq));
            own.retain(|seq| *seq > newest);
        });
        self.last = newest;
        let notices: Vec<Notice> = foreign.into_iter().map(|(_, notice)| notice).collect();
        watchers.tell(&notices);
        Ok(())
    }
}

/// A row of the history: `_, at, namespace, name, action, detail`.
fn notice(row: &Row<'_>) -> rusqlite::Result<Notice> {
    let name: String = row.get(3)?;
    let labels = || history::labels_after(row, 5);
    let change = match history::HistoryAction::from_column(row, 4)? {
        history::HistoryAction::Create => Change::ImageCreate { labels: labels()?, name },
        history::HistoryAction::Update => Change::ImageUpdate { labels: labels()?, name },
        history::HistoryAction::Delete => Change::ImageDelete { name },
    };
    Ok(Notice { at: from_nanos(row.get(1)?), namespace: row.get(2)?, change })
}
