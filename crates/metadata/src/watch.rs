//! What somebody asks who looks after a root: what changed, when something expires, how much there is.

use jiff::Timestamp;
use rusqlite::{Row, params};

use crate::conditions;
use crate::db::from_nanos;
use crate::history::{HistoryEntry, entry};
use crate::{Result, Store};

/// How many rows of each kind there are, in all namespaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Image records.
    pub images: u64,
    /// Blobs, once for each namespace that has them.
    pub blobs: u64,
    /// Writes in progress.
    pub ingests: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Leases.
    pub leases: u64,
    /// Blobs and snapshots that are damaged.
    pub damage: u64,
}

impl Store {
    /// The number of the last change of a record; 0 if there was none.
    pub fn last_change(&self) -> Result<i64> {
        self.read(|conn| {
            let mut query = conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM history")?;
            Ok(query.query_row([], |row| row.get(0))?)
        })
    }

    /// Changes of records in all namespaces after the one numbered `seq`, whoever made them; oldest first, at most
    /// `limit`. Numbers are given in the order of commits: none is missed by asking again from the last one.
    pub fn changes_since(&self, seq: i64, limit: usize) -> Result<Vec<HistoryEntry>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT seq, at, actor, action, namespace, name, old, new, detail FROM history
                 WHERE seq > ?1 ORDER BY seq LIMIT ?2",
            )?;
            let rows = query.query_map(params![seq, limit], entry)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// When the next lease, write or record expires, or a condition turns; it may be past already.
    pub fn next_expiry(&self) -> Result<Option<Timestamp>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT min(expires) FROM (
                     SELECT min(expires) AS expires FROM lease WHERE expires IS NOT NULL
                     UNION ALL SELECT min(expires) FROM ingest WHERE expires IS NOT NULL
                     UNION ALL SELECT min(expires) FROM image WHERE expires IS NOT NULL)",
            )?;
            let expires: Option<i64> = query.query_row([], |row| row.get(0))?;
            let turns = conditions::next(conn)?;
            Ok(expires.into_iter().chain(turns).min().map(from_nanos))
        })
    }

    /// Counts rows.
    pub fn counts(&self) -> Result<Counts> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT (SELECT count(*) FROM image), (SELECT count(*) FROM blob), (SELECT count(*) FROM ingest),
                        (SELECT count(*) FROM snapshot), (SELECT count(*) FROM lease), (SELECT count(*) FROM damage)",
            )?;
            let count = |row: &Row<'_>, index| row.get::<_, i64>(index).map(i64::unsigned_abs);
            Ok(query.query_row([], |row| {
                Ok(Counts {
                    images: count(row, 0)?,
                    blobs: count(row, 1)?,
                    ingests: count(row, 2)?,
                    snapshots: count(row, 3)?,
                    leases: count(row, 4)?,
                    damage: count(row, 5)?,
                })
            })?)
        })
    }
}
