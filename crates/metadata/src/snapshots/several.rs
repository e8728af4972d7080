//! Making, committing and removing several snapshots: one transaction and one wait for the disk where each would have its own.
//!
//! The order of rows and trees is that of one (see the parent module). All are there or, with the first error, none; what a killed
//! process leaves of them goes as if each had been made by itself.

use orlop_snapshot::{Link, SnapshotId};

use super::making::{Commit, Planned, Reserved};
use super::{ScopedSnapshots, SnapshotKind, exists};
use crate::{Error, Labels, Result};

impl ScopedSnapshots {
    /// Makes active snapshots without parents or labels, as [`ScopedSnapshots::prepare`] does it, in two transactions and one wait for
    /// the disk. A key that exists is AlreadyExists.
    pub fn prepare_all(&self, keys: &[String]) -> Result<()> {
        if keys.iter().any(String::is_empty) {
            return Err(Error::Invalid { what: "snapshot key", reason: "it is empty".to_owned() });
        }
        self.store.with_room(|| self.try_to_prepare_all(keys))
    }

    fn try_to_prepare_all(&self, keys: &[String]) -> Result<()> {
        let none = Labels::new();
        let reserved: Vec<Reserved> = self.store.bring_together("prepare snapshots", |tx| {
            keys.iter().map(|key| self.reserve(tx, key, "", &none)?).collect()
        })?;
        let tree = |(key, reserved): (&String, &Reserved)| Link {
            id: reserved.id,
            parents: reserved.parents.clone(),
            meta: self.meta(key, SnapshotKind::Active, None, Labels::new()),
        };
        let trees: Vec<Link> = keys.iter().zip(&reserved).map(tree).collect();
        let made = self.driver()?.create_all(&trees).map_err(Error::from).and_then(|()| {
            self.store.bring_together("prepare snapshots", |tx| {
                let mut all = keys.iter().zip(&reserved);
                all.try_for_each(|(key, one)| self.publish(tx, one, SnapshotKind::Active, key, "", &none)?)
            })
        });
        if made.is_err() {
            self.abandon(&reserved.iter().map(|one| one.id).collect::<Vec<SnapshotId>>());
        }
        made
    }

    /// Commits several, each on the one before and the first on `parent`, as [`ScopedSnapshots::commit`] does it: all of them or, with
    /// the first error, none; what is in their trees may be settled then, and each can still be committed alone.
    pub fn commit_chain(&self, parent: &str, chain: Vec<Commit>) -> Result<()> {
        let chain = chain.into_iter().map(Commit::checked).collect::<Result<Vec<_>>>()?;
        let planned = self.store.read(|conn| {
            let mut planned: Vec<Planned> = Vec::new();
            let mut below = parent;
            for link in &chain {
                let next = self.plan(conn, link, Some(below).filter(|p| !p.is_empty()), planned.last())?;
                planned.push(next.ok_or_else(|| exists(&link.name))?);
                below = &link.name;
            }
            Ok(planned)
        })?;
        let link = |p: &Planned| Link { id: p.found.id, parents: p.parents.clone(), meta: p.meta.clone() };
        let links: Vec<Link> = planned.iter().map(link).collect();
        let usages = self.store.with_room(|| Ok(self.driver()?.commit_chain(&links)?))?;
        self.store.bring_together("commit snapshots", |tx| {
            let mut all = chain.iter().zip(&planned).zip(&usages);
            all.try_for_each(|((link, planned), usage)| self.record_planned(tx, link, planned, *usage)?)
        })
    }

    /// Removes snapshots that others may have removed. The trees go at the next collection.
    pub fn remove_all(&self, keys: &[String]) -> Result<()> {
        self.store.lent_together("remove snapshots", |tx| {
            keys.iter().try_for_each(|key| match self.remove_row(tx, key) {
                Err(Error::NotFound { .. }) => Ok(()),
                removed => removed,
            })
        })
    }
}
