//! Snapshots as one namespace sees them: containerd's kinds, keys, labels and parent rules over a driver.

use jiff::Timestamp;
use orlop_snapshot::{ApplyTarget, Mount, Usage};

use crate::{Labels, Result, Scope, Store};

/// What may be done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Read-only, cannot be committed.
    View,
    /// Being written.
    Active,
    /// Done; may be a parent.
    Committed,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its key: a chain ID for committed layers.
    pub name: String,
    /// The parent's key; empty: none.
    pub parent: String,
    /// Its kind.
    pub kind: SnapshotKind,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// The snapshots of one driver in one namespace, on behalf of a [`Scope`].
#[derive(Clone)]
pub struct ScopedSnapshots {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
    pub(crate) driver: String,
}

impl Store {
    /// Snapshots of a driver; empty name: the default one.
    pub fn snapshots(&self, scope: &Scope, driver: &str) -> Result<ScopedSnapshots> {
        let driver = if driver.is_empty() { self.drivers()[0].name() } else { self.driver(driver)?.name() };
        Ok(ScopedSnapshots { store: self.clone(), scope: scope.clone(), driver: driver.to_owned() })
    }
}

impl ScopedSnapshots {
    /// Makes an active snapshot on `parent` (empty: on nothing). An existing key is AlreadyExists, yet leased.
    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let _ = (&self.store, &self.scope, &self.driver, key, parent, labels);
        todo!()
    }

    /// Makes a read-only view of a committed snapshot.
    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        let _ = (key, parent, labels);
        todo!()
    }

    /// How to mount an active snapshot or view.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let _ = key;
        todo!()
    }

    /// Turns the active snapshot `key` into the committed `name`; labels replace those it had. `parent` is given when
    /// it was prepared without one (containerd's `rebase`). The tree is durable before the row is.
    pub fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<()> {
        let _ = (name, key, parent, labels);
        todo!()
    }

    /// Removes a snapshot without children; a parent is FailedPrecondition. The tree goes at the next collection.
    pub fn remove(&self, key: &str) -> Result<()> {
        let _ = key;
        todo!()
    }

    /// One snapshot.
    pub fn stat(&self, key: &str) -> Result<SnapshotInfo> {
        let _ = key;
        todo!()
    }

    /// Changes labels; mask as for content.
    pub fn update(&self, key: &str, labels: Labels, mask: &[String]) -> Result<SnapshotInfo> {
        let _ = (key, labels, mask);
        todo!()
    }

    /// All that match any of `filters` (fields `name`, `parent`, `kind`, `labels.<key>`), parents first.
    pub fn list(&self, filters: &[String]) -> Result<Vec<SnapshotInfo>> {
        let _ = filters;
        todo!()
    }

    /// What it alone takes on disk.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let _ = key;
        todo!()
    }

    /// Where a layer is applied to an active snapshot.
    pub fn apply_target(&self, key: &str) -> Result<ApplyTarget> {
        let _ = key;
        todo!()
    }

    /// Whether layers can be applied before their parents.
    pub fn supports_rebase(&self) -> bool {
        self.store.driver(&self.driver).is_ok_and(|d| d.supports_rebase())
    }

    /// The driver's name.
    pub fn driver_name(&self) -> &str {
        &self.driver
    }
}
