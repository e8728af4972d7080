//! Trees of committed snapshots, as those see them who compare them with what was recorded when they were committed.
//!
//! # Invariants
//! - What a comparison found is remembered only of the tree that was compared: not of a snapshot that went meanwhile, nor of one whose
//!   tree is another by now.
//! - A damaged tree stays where it is: containers may stand on it.

use std::collections::{BTreeSet, HashMap};

use orlop_snapshot::{Comparison, SnapshotId};
use rusqlite::{OptionalExtension as _, params};

use crate::damage::{self, Damage, Damaged};
use crate::gc::driver_of;
use crate::images::size_from_column;
use crate::{Result, Store};

/// A number of a snapshot, and of its parent.
type Parents = HashMap<SnapshotId, Option<SnapshotId>>;

/// The tree of a committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The driver.
    pub driver: String,
    /// Its number.
    pub id: SnapshotId,
    /// The namespace of the snapshot.
    pub namespace: String,
    /// The snapshot's key.
    pub key: String,
    /// What it stands on, nearest first.
    pub parents: Vec<SnapshotId>,
    /// Bytes that it took on disk when it was committed.
    pub bytes: u64,
}

impl Tree {
    /// The same for whoever knows damage.
    pub fn damaged(&self) -> Damaged {
        Damaged::Snapshot { driver: self.driver.clone(), id: self.id }
    }
}

impl Store {
    /// The trees of all namespaces and drivers, by number.
    pub fn trees(&self) -> Result<Vec<Tree>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT driver, id, namespace, name, bytes, parent FROM snapshot WHERE kind = 'committed' ORDER BY id",
            )?;
            let mut parents = Parents::new();
            let rows = query.query_map([], |row| {
                let id = SnapshotId(size_from_column(row.get(1)?));
                parents.insert(id, row.get::<_, Option<i64>>(5)?.map(|id| SnapshotId(size_from_column(id))));
                Ok(Tree {
                    driver: row.get(0)?,
                    id,
                    parents: Vec::new(),
                    namespace: row.get(2)?,
                    key: row.get(3)?,
                    bytes: row.get::<_, Option<i64>>(4)?.map_or(0, size_from_column),
                })
            })?;
            let mut trees = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            for tree in &mut trees {
                let above = |id: &SnapshotId| parents.get(id).copied().flatten();
                tree.parents = std::iter::successors(above(&tree.id), above).collect();
            }
            Ok(trees)
        })
    }

    /// Snapshots, as driver and key, that an image record reaches: those that its image was unpacked to, and what these stand on.
    pub fn reached_snapshots(&self, namespace: &str, image: &str) -> Result<BTreeSet<(String, String)>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "WITH RECURSIVE down(kind, name) AS (
                   SELECT 'images', ?2
                   UNION SELECT e.to_kind, e.to_name FROM edge e JOIN down ON e.from_kind = down.kind AND e.from_name = down.name
                   WHERE e.namespace = ?1)
                 SELECT kind, name FROM down WHERE kind LIKE 'snapshots/%'",
            )?;
            let rows = query.query_map([namespace, image], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let named = rows.into_iter().filter_map(|(kind, key)| Some((driver_of(&kind)?.to_owned(), key)));
            Ok(named.collect())
        })
    }

    /// Begins to compare a tree; `None` if nothing was recorded of it, or this process has no such driver.
    pub fn compare_tree(&self, tree: &Tree) -> Result<Option<Comparison>> {
        match self.drivers().iter().find(|driver| driver.name() == tree.driver) {
            Some(driver) => Ok(driver.compare(tree.id)?),
            None => Ok(None),
        }
    }

    /// Remembers what a comparison that is over has found; damage, if there is any.
    pub fn note_tree(&self, tree: &Tree, comparison: &Comparison) -> Result<Option<Damage>> {
        let (what, compared) = (tree.damaged(), comparison.compared());
        if compared.fault().is_none() && self.damage_of(&what)?.is_none() {
            return Ok(None);
        }
        self.lent_together("note damage", |tx| {
            let mut query =
                tx.prepare_cached("SELECT 1 FROM snapshot WHERE id = ?1 AND driver = ?2 AND kind = 'committed'")?;
            let there = query.query_row(params![what.name(), tree.driver], |_| Ok(())).optional()?;
            if there.is_none() || !comparison.is_current() {
                return Ok(());
            }
            match compared.fault() {
                Some(fault) => damage::put(tx, &what, fault, &compared.detail(), None),
                None => damage::mended(tx, &what.kind(), &what.name()),
            }
        })?;
        match compared.fault() {
            Some(_) => self.damage_of(&what),
            None => Ok(None),
        }
    }
}
