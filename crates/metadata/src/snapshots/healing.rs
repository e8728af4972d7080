//! A fresh tree in the place of a damaged one, under the same number: nothing that names the snapshot changes.
//!
//! A number is taken as for any new snapshot, by a `doomed` row that lies in the future; a tree is made there, filled from the layer and
//! committed. Then, within one transaction that saw that nobody stands on the damaged tree, the two directories change places.
//!
//! # Invariants
//! - Whoever makes a snapshot publishes its row before anybody learns how to mount it. So either the transaction sees the row, and
//!   nothing changes, or whoever mounts finds the fresh tree.
//! - Killed before the change, the damaged tree is in its place and the fresh one goes when the time of its `doomed` row is up. Killed
//!   after it, that row is about the damaged tree; the row of `damage` goes when the tree is compared again.
//! - A damaged tree that was replaced stays as long as its `doomed` row says: a copy of it that was begun comes to its end.

use orlop_snapshot::{ApplyTarget, Meta, SnapshotId};
use rusqlite::{Connection, params};

use super::{ScopedSnapshots, SnapshotKind, chain, failed, not_found, number};
use crate::images::size_column;
use crate::{Result, damage};

/// A fresh tree that is being made.
#[derive(Debug)]
pub struct Healing {
    id: SnapshotId,
    fresh: SnapshotId,
    parents: Vec<SnapshotId>,
    meta: Meta,
}

impl ScopedSnapshots {
    /// Keys of the snapshots and views that are mounted, or may be, with the tree of `key` below them.
    pub fn standing_on(&self, key: &str) -> Result<Vec<String>> {
        self.store.read(|conn| standing_on(conn, self.require(conn, key)?.id))
    }

    /// Takes a number for a fresh tree of a committed snapshot and makes it, empty.
    pub fn begin_healing(&self, key: &str) -> Result<Healing> {
        let (found, parents, fresh) = self.store.bring_together("heal snapshot", |tx| {
            let found = self.require(tx, key)?;
            if found.info.kind != SnapshotKind::Committed {
                let kind = found.info.kind.as_str();
                return Err(failed(key, &format!("it is {kind}; only a committed snapshot can be healed")));
            }
            let parents = chain(tx, found.parent_id)?;
            Ok((found, parents, self.take_number(tx)?))
        })?;
        let (parent, labels) = (parents.first().copied(), found.info.labels);
        let meta = self.meta(key, SnapshotKind::Committed, parent, labels);
        let healing = Healing { id: found.id, fresh, parents, meta };
        let active = Meta { kind: SnapshotKind::Active.as_str().to_owned(), ..healing.meta.clone() };
        match self.driver()?.create(fresh, &healing.parents, &active) {
            Ok(()) => Ok(healing),
            Err(error) => {
                self.abandon(&[fresh]);
                Err(error.into())
            }
        }
    }

    /// Where the layer is applied to.
    pub fn healing_target(&self, healing: &Healing) -> Result<ApplyTarget> {
        Ok(self.driver()?.apply_target(healing.fresh))
    }

    /// Leaves a fresh tree that could not be filled to the next collection.
    pub fn abandon_healing(&self, healing: Healing) {
        self.abandon(&[healing.fresh]);
    }

    /// Puts the fresh tree, which is filled, in the place of the damaged one; gives the keys of those who stand on that, if there are any:
    /// then nothing was changed.
    ///
    /// # Durability
    /// When this returns that nobody stands on it, the fresh tree is in its place after a power cut too.
    pub fn end_healing(&self, healing: Healing) -> Result<Vec<String>> {
        let fresh = healing.fresh;
        let ended = self.put_in_place(&healing);
        if !matches!(&ended, Ok(standing) if standing.is_empty()) {
            self.abandon(&[fresh]);
        }
        ended
    }

    fn put_in_place(&self, healing: &Healing) -> Result<Vec<String>> {
        let Healing { id, fresh, parents, meta } = healing;
        let driver = self.driver()?;
        let usage = self.store.with_room(|| Ok(driver.commit(*fresh, parents, meta)?))?;
        self.store.write("heal snapshot", |tx| {
            let found =
                self.find(tx, &meta.key)?.filter(|found| found.id == *id).ok_or_else(|| not_found(&meta.key))?;
            let is_same = found.info.kind == SnapshotKind::Committed && found.info.labels == meta.labels;
            if chain(tx, found.parent_id)? != *parents || !is_same {
                return Err(failed(&meta.key, "it is another one than it was when its healing began"));
            }
            let standing = standing_on(tx, *id)?;
            if !standing.is_empty() {
                return Ok(standing);
            }
            let mut reserved =
                tx.prepare_cached("SELECT 1 FROM doomed WHERE kind = ?1 AND name = ?2 AND after > ?3")?;
            if !reserved.exists(params![self.kind(), fresh.0.to_string(), tx.now()])? {
                return Err(failed(&meta.key, "making a fresh tree took more than an hour; try again"));
            }
            driver.exchange(*fresh, *id)?;
            tx.prepare_cached("UPDATE snapshot SET bytes = ?2, inodes = ?3 WHERE id = ?1")?.execute(params![
                number(*id),
                size_column(usage.bytes),
                size_column(usage.inodes)
            ])?;
            damage::mended(tx, &self.kind(), &id.0.to_string())?;
            Ok(standing)
        })
    }
}

fn standing_on(conn: &Connection, id: SnapshotId) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(
        "WITH RECURSIVE above(id, kind, name) AS (
           SELECT id, kind, name FROM snapshot WHERE parent = ?1
           UNION SELECT s.id, s.kind, s.name FROM snapshot s JOIN above ON s.parent = above.id)
         SELECT name FROM above WHERE kind != 'committed' ORDER BY name",
    )?;
    let names = query.query_map([number(id)], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}
