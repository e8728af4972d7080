//! What all snapshots of a driver take together.

use orlop_snapshot::Usage;
use rusqlite::params;

use super::{ScopedSnapshots, SnapshotKind};
use crate::images::size_from_column;
use crate::{Result, Store};

/// What the snapshots of one driver take in one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotTotals {
    /// All committed ones together, as they were when committed.
    pub committed: Usage,
    /// Keys and kinds of the others; what they take changes without a word to the database.
    pub open: Vec<(String, SnapshotKind)>,
}

impl Store {
    /// Numbers of the trees of a driver of which nothing changes any more, in any namespace, in order: those that are committed,
    /// and whose labels are those of the commit (`meta`, beside the tree, says them).
    pub fn lasting_trees(&self, driver: &str) -> Result<Vec<u64>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT id FROM snapshot WHERE driver = ?1 AND kind = 'committed' AND updated = created ORDER BY id",
            )?;
            let rows = query.query_map([driver], |row| row.get::<_, i64>(0).map(i64::unsigned_abs))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

impl ScopedSnapshots {
    /// Adds up what the database knows; looks at no file.
    pub fn totals(&self) -> Result<SnapshotTotals> {
        let of = params![self.scope.namespace, self.driver];
        self.store.read(|conn| {
            let mut sums = conn.prepare_cached(
                "SELECT coalesce(sum(bytes), 0), coalesce(sum(inodes), 0) FROM snapshot
                 WHERE namespace = ?1 AND driver = ?2 AND kind = 'committed'",
            )?;
            let committed = sums.query_row(of, |row| {
                Ok(Usage { bytes: size_from_column(row.get(0)?), inodes: size_from_column(row.get(1)?) })
            })?;
            let mut others = conn.prepare_cached(
                "SELECT name, kind FROM snapshot
                 WHERE namespace = ?1 AND driver = ?2 AND kind != 'committed' ORDER BY name",
            )?;
            let rows = others.query_map(of, |row| Ok((row.get(0)?, SnapshotKind::from_column(row, 1)?)))?;
            Ok(SnapshotTotals { committed, open: rows.collect::<Result<_, _>>()? })
        })
    }
}
