//! Snapshots as one namespace sees them: containerd's kinds, keys, labels and parent rules over a driver.
//!
//! A snapshot is a row with a number; the driver knows only the number. What is on disk and what is in the table never
//! contradict each other:
//!
//! - **Making** one reserves a number, by a `doomed` row that lies in the future; makes the tree; lets the row of the
//!   snapshot take the place of the doomed one. Killed in between, the collector removes the tree when the time is up.
//! - **Committing** makes the tree durable first and changes the row then. Killed in between, it is still active.
//! - **Healing** puts a fresh tree in the place of a damaged one, under the same number (`healing`).
//! - **Removing** puts a doomed row in place of the snapshot's; the collector removes the tree.
//!
//! No driver is called within a transaction, but for the one call that lets two trees change places.

mod healing;
mod making;
mod several;
mod totals;

use std::collections::HashMap;
use std::path::Path;

pub use healing::Healing;
use jiff::Timestamp;
pub use making::Commit;
use orlop_snapshot::{ApplyTarget, Driver, Linked, Mount, SnapshotId, Usage};
use rusqlite::{Connection, OptionalExtension, Row, params};
pub use totals::SnapshotTotals;

use crate::db::from_nanos;
use crate::edges::{self, Edges};
use crate::filter::{Filter, in_map};
use crate::images::{size_column, size_from_column};
use crate::transact::Tx;
use crate::{Error, Labels, ObjectKind, Result, Scope, Store, labels};

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

impl SnapshotKind {
    /// `view`, `active`, `committed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    fn from_column(row: &Row<'_>, index: usize) -> rusqlite::Result<Self> {
        match row.get_ref(index)?.as_str()? {
            "view" => Ok(Self::View),
            "active" => Ok(Self::Active),
            "committed" => Ok(Self::Committed),
            _ => Err(rusqlite::Error::InvalidQuery),
        }
    }
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
    /// When it was made; for a committed one, when it was committed.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// The snapshots of one driver in one namespace, on behalf of a [`Scope`]. All methods block.
#[derive(Clone)]
pub struct ScopedSnapshots {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
    pub(crate) driver: String,
}

/// A row with what only this module needs.
#[derive(Debug, Clone)]
struct Found {
    id: SnapshotId,
    parent_id: Option<SnapshotId>,
    usage: Option<Usage>,
    info: SnapshotInfo,
}

const SELECT: &str =
    "SELECT s.id, s.parent, s.bytes, s.inodes, s.name, coalesce(p.name, ''), s.kind, s.labels, s.created,
                             s.updated
                      FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent WHERE s.namespace = ?1 AND s.driver = ?2";

impl Store {
    /// Snapshots of a driver; empty name: the default one.
    ///
    /// # Errors
    /// NotFound if this store has no such driver.
    pub fn snapshots(&self, scope: &Scope, driver: &str) -> Result<ScopedSnapshots> {
        let driver = match self.drivers().first() {
            Some(default) if driver.is_empty() => default.name(),
            _ => self.driver(driver)?.name(),
        };
        Ok(ScopedSnapshots { store: self.clone(), scope: scope.clone(), driver: driver.to_owned() })
    }
}

impl ScopedSnapshots {
    /// How to mount an active snapshot or view.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let (found, parents) = self.store.read(|conn| {
            let found = self.require(conn, key)?;
            let parents = chain(conn, found.parent_id)?;
            Ok((found, parents))
        })?;
        let writable = match found.info.kind {
            SnapshotKind::Active => true,
            SnapshotKind::View => false,
            SnapshotKind::Committed => return Err(failed(key, "it is committed; mount a snapshot or view made on it")),
        };
        Ok(self.driver()?.mounts(found.id, &parents, writable)?)
    }

    /// One snapshot.
    pub fn stat(&self, key: &str) -> Result<SnapshotInfo> {
        self.store.read(|conn| Ok(self.require(conn, key)?.info))
    }

    /// Changes labels; mask as for content.
    pub fn update(&self, key: &str, labels: Labels, mask: &[String]) -> Result<SnapshotInfo> {
        let (found, labelled) = self.relabel(key, labels, mask)?;
        if labelled.kind == SnapshotKind::Committed {
            // Nothing but a rebuild of the database reads it: the label is set, whatever comes of that.
            let meta = self.meta(key, labelled.kind, found.parent_id, labelled.labels.clone());
            let described = self.driver().and_then(|driver| Ok(driver.describe(found.id, &meta)?));
            if let Err(error) = described {
                tracing::warn!(%error, key, "the labels of a snapshot are not written beside its tree");
            }
        }
        Ok(labelled)
    }

    fn relabel(&self, key: &str, labels: Labels, mask: &[String]) -> Result<(Found, SnapshotInfo)> {
        self.store.bring_together("label snapshot", |tx| {
            let found = self.require(tx, key)?;
            let labels = labels::masked(found.info.labels.clone(), labels.clone(), mask)?;
            let root = labels.contains_key(edges::ROOT);
            tx.prepare_cached("UPDATE snapshot SET labels = ?2, root = ?3, updated = ?4 WHERE id = ?1")?
                .execute(params![number(found.id), labels::to_json(&labels), root, tx.now()])?;
            self.state(tx, key, &found.info.parent, &labels)?;
            if !root && found.info.labels.contains_key(edges::ROOT) {
                self.suspect(tx, key)?;
            }
            let labelled = SnapshotInfo { labels, updated_at: from_nanos(tx.now()), ..found.info.clone() };
            Ok((found, labelled))
        })
    }

    /// All that match any of `filters` (fields `name`, `parent`, `kind`, `labels.<key>`), parents first.
    pub fn list(&self, filters: &[String]) -> Result<Vec<SnapshotInfo>> {
        let filter = Filter::parse(filters)?;
        let all: Vec<Found> = self.store.read(|conn| {
            let mut query = conn.prepare_cached(&format!("{SELECT} ORDER BY s.id"))?;
            let rows = query.query_map(params![self.scope.namespace, self.driver], found)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })?;
        Ok(parents_first(all).into_iter().map(|f| f.info).filter(|info| info.matches(&filter)).collect())
    }

    /// What it alone takes on disk: of a committed snapshot as it was when committed, of others now.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let found = self.store.read(|conn| self.require(conn, key))?;
        match found.usage {
            Some(usage) => Ok(usage),
            None => Ok(self.driver()?.usage(found.id)?),
        }
    }

    /// Committed snapshots with what each alone took on disk when it was committed, by age.
    pub fn usages(&self) -> Result<Vec<(SnapshotInfo, Usage)>> {
        let committed = self.all()?.into_iter().filter(|f| f.info.kind == SnapshotKind::Committed);
        Ok(committed.filter_map(|f| f.usage.map(|usage| (f.info, usage))).collect())
    }

    /// Every snapshot with the driver's number for it, by age.
    pub fn ids(&self) -> Result<Vec<(SnapshotId, SnapshotInfo)>> {
        Ok(self.all()?.into_iter().map(|found| (found.id, found.info)).collect())
    }

    fn all(&self) -> Result<Vec<Found>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(&format!("{SELECT} ORDER BY s.id"))?;
            let rows = query.query_map(params![self.scope.namespace, self.driver], found)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Where a layer is applied to an active snapshot.
    pub fn apply_target(&self, key: &str) -> Result<ApplyTarget> {
        let found = self.store.read(|conn| self.require(conn, key))?;
        if found.info.kind != SnapshotKind::Active {
            return Err(failed(key, "it is not active: only an active snapshot can be written"));
        }
        Ok(self.driver()?.apply_target(found.id))
    }

    /// Lets an active snapshot that is still empty be what a directory of the same file system is, without copying content; see
    /// [`orlop_snapshot::linked`]. The directory must have the driver's form.
    pub fn take_in(&self, key: &str, from: &Path) -> Result<Linked> {
        let found = self.store.read(|conn| self.require(conn, key))?;
        if found.info.kind != SnapshotKind::Active {
            return Err(failed(key, "it is not active: only an active snapshot can be filled"));
        }
        Ok(self.driver()?.take_in(found.id, from)?)
    }

    /// Lets the empty directory `to` be what a committed snapshot is, likewise.
    pub fn give(&self, key: &str, to: &Path) -> Result<Linked> {
        let found = self.store.read(|conn| self.require(conn, key))?;
        if found.info.kind != SnapshotKind::Committed {
            return Err(failed(key, "it is not committed: only what does not change can be shared"));
        }
        Ok(self.driver()?.give(found.id, to)?)
    }

    /// Whether layers can be applied before their parents.
    pub fn supports_rebase(&self) -> bool {
        self.store.driver(&self.driver).is_ok_and(|d| d.supports_rebase())
    }

    /// The driver's name.
    pub fn driver_name(&self) -> &str {
        &self.driver
    }

    fn driver(&self) -> Result<&dyn Driver> {
        Ok(&**self.store.driver(&self.driver)?)
    }

    /// The kind of these objects in leases, edges and suspects.
    fn kind(&self) -> String {
        edges::snapshots(&self.driver)
    }

    fn find(&self, conn: &Connection, key: &str) -> Result<Option<Found>> {
        let mut query = conn.prepare_cached(&format!("{SELECT} AND s.name = ?3"))?;
        Ok(query.query_row(params![self.scope.namespace, self.driver, key], found).optional()?)
    }

    fn require(&self, conn: &Connection, key: &str) -> Result<Found> {
        self.find(conn, key)?.ok_or_else(|| not_found(key))
    }

    /// Makes the edges of a snapshot what its parent and labels state.
    fn state(&self, tx: &Tx<'_>, name: &str, parent: &str, labels: &Labels) -> Result<()> {
        let kind = self.kind();
        let stated = Edges::of_labels(&kind, labels);
        let stated = if parent.is_empty() { stated } else { stated.to(&kind, parent) };
        edges::put(tx, &self.scope.namespace, &kind, name, &stated)
    }

    fn suspect(&self, tx: &Tx<'_>, name: &str) -> Result<()> {
        edges::suspect(tx, &self.scope.namespace, &self.kind(), name)
    }
}

impl SnapshotInfo {
    fn matches(&self, filter: &Filter) -> bool {
        filter.matches(|path| match path[0].as_str() {
            "kind" => Some(self.kind.as_str().into()),
            "name" => Some(self.name.as_str().into()),
            "parent" => Some(self.parent.as_str().into()),
            "labels" => in_map(&self.labels, &path[1..]),
            _ => None,
        })
    }
}

fn found(row: &Row<'_>) -> rusqlite::Result<Found> {
    let usage = match (row.get::<_, Option<i64>>(2)?, row.get::<_, Option<i64>>(3)?) {
        (Some(bytes), Some(inodes)) => Some(Usage { bytes: size_from_column(bytes), inodes: size_from_column(inodes) }),
        _ => None,
    };
    Ok(Found {
        id: id_column(row, 0)?,
        parent_id: parent_column(row, 1)?,
        usage,
        info: SnapshotInfo {
            name: row.get(4)?,
            parent: row.get(5)?,
            kind: SnapshotKind::from_column(row, 6)?,
            labels: labels::column(row, 7)?,
            created_at: from_nanos(row.get(8)?),
            updated_at: from_nanos(row.get(9)?),
        },
    })
}

/// An id as the database has it.
fn number(id: SnapshotId) -> i64 {
    size_column(id.0)
}

fn id_column(row: &Row<'_>, index: usize) -> rusqlite::Result<SnapshotId> {
    Ok(SnapshotId(size_from_column(row.get(index)?)))
}

fn parent_column(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<SnapshotId>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(|id| SnapshotId(size_from_column(id))))
}

/// A snapshot and all below it, nearest first.
fn chain(conn: &Connection, mut id: Option<SnapshotId>) -> Result<Vec<SnapshotId>> {
    let mut query = conn.prepare_cached("SELECT parent FROM snapshot WHERE id = ?1")?;
    let mut chain = Vec::new();
    while let Some(current) = id {
        chain.push(current);
        id = query.query_row([number(current)], |row| parent_column(row, 0))?;
    }
    Ok(chain)
}

/// Orders snapshots so that each comes after its parent; a rebased one may have been made before it.
fn parents_first(all: Vec<Found>) -> Vec<Found> {
    let parents: HashMap<u64, Option<u64>> = all.iter().map(|f| (f.id.0, f.parent_id.map(|p| p.0))).collect();
    let depth = |id: u64| std::iter::successors(Some(id), |id| parents.get(id).copied().flatten()).count();
    let mut keyed: Vec<_> = all.into_iter().map(|f| (depth(f.id.0), f)).collect();
    keyed.sort_by_key(|(depth, f)| (*depth, f.id));
    keyed.into_iter().map(|(_, f)| f).collect()
}

fn not_found(key: &str) -> Error {
    Error::NotFound { kind: ObjectKind::Snapshot, name: key.to_owned() }
}

fn exists(key: &str) -> Error {
    Error::AlreadyExists { kind: ObjectKind::Snapshot, name: key.to_owned() }
}

fn failed(key: &str, reason: &str) -> Error {
    Error::FailedPrecondition { kind: ObjectKind::Snapshot, name: key.to_owned(), reason: reason.to_owned() }
}
