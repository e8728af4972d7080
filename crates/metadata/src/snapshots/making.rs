//! Making, committing and removing snapshots.

use orlop_snapshot::{Meta, Mount, SnapshotId, Usage};
use rusqlite::params;

use super::{Found, ScopedSnapshots, SnapshotKind, chain, exists, failed, id_column, not_found, number};
use crate::changes::Change;
use crate::content::doom;
use crate::images::size_column;
use crate::transact::Tx;
use crate::{Error, Labels, Result, edges, labels, leases, namespaces};

/// Label of a snapshot being made: the committed one that it is to become.
const TARGET: &str = "containerd.io/snapshot.ref";

/// How long making a tree may take; copying a large parent on a slow disk takes minutes.
const MAKING_NANOS: i64 = 3600 * 1_000_000_000;

/// A number that is taken, and what is below it.
pub(super) struct Reserved {
    pub(super) id: SnapshotId,
    pub(super) parents: Vec<SnapshotId>,
}

/// An active snapshot that is to be committed.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What it is called then.
    pub name: String,
    /// What it is called now.
    pub key: String,
    /// What takes the place of its labels.
    pub labels: Labels,
}

impl Commit {
    pub(super) fn checked(self) -> Result<Self> {
        if self.name.is_empty() {
            return Err(Error::Invalid { what: "snapshot name", reason: "it is empty".to_owned() });
        }
        labels::validate(&self.labels)?;
        Ok(Self { labels: labels::without_empty(self.labels), ..self })
    }
}

/// What a commit found.
pub(super) struct Planned {
    pub(super) found: Found,
    pub(super) parent: String,
    pub(super) parents: Vec<SnapshotId>,
    pub(super) meta: Meta,
}

impl ScopedSnapshots {
    /// Makes an active snapshot on `parent` (empty: on nothing). An existing key is AlreadyExists, yet leased. So is the
    /// snapshot that the label `containerd.io/snapshot.ref` names.
    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.make(SnapshotKind::Active, key, parent, labels)
    }

    /// Makes a read-only view of a committed snapshot; otherwise as [`ScopedSnapshots::prepare`].
    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        self.make(SnapshotKind::View, key, parent, labels)
    }

    fn make(&self, kind: SnapshotKind, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>> {
        if key.is_empty() {
            return Err(Error::Invalid { what: "snapshot key", reason: "it is empty".to_owned() });
        }
        labels::validate(&labels)?;
        let labels = labels::without_empty(labels);
        self.store.with_room(|| self.try_to_make(kind, key, parent, &labels))
    }

    fn try_to_make(&self, kind: SnapshotKind, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>> {
        let reserved = self.store.bring_together("prepare snapshot", |tx| self.reserve(tx, key, parent, labels))??;
        let driver = self.driver()?;
        let meta = self.meta(key, kind, reserved.parents.first().copied(), labels.clone());
        let mounts = driver
            .create(reserved.id, &reserved.parents, &meta)
            .and_then(|()| driver.mounts(reserved.id, &reserved.parents, kind == SnapshotKind::Active));
        let made = match mounts {
            Ok(mounts) => self
                .store
                .bring_together("prepare snapshot", |tx| self.publish(tx, &reserved, kind, key, parent, labels))
                .and_then(|published| published)
                .map(|()| mounts),
            Err(error) => Err(error.into()),
        };
        if made.is_err() {
            self.abandon(&[reserved.id]);
        }
        made
    }

    /// Takes a number, and marks it so that the tree goes should nobody claim it. The outer error rolls back; the inner
    /// one is an answer that comes with a lease.
    pub(super) fn reserve(&self, tx: &Tx<'_>, key: &str, parent: &str, labels: &Labels) -> Result<Result<Reserved>> {
        namespaces::ensure(tx, &self.scope.namespace)?;
        leases::check_scope(tx, &self.scope)?;
        for name in labels.get(TARGET).map(String::as_str).into_iter().chain([key]) {
            if self.find(tx, name)?.is_some() {
                leases::add(tx, &self.scope, &self.kind(), name)?;
                return Ok(Err(exists(name)));
            }
        }
        let parents = chain(tx, self.committed(tx, parent)?.map(|p| p.id))?;
        Ok(Ok(Reserved { id: self.take_number(tx)?, parents }))
    }

    /// Takes a number for a tree, with a mark so that it goes should nobody claim it.
    pub(super) fn take_number(&self, tx: &Tx<'_>) -> Result<SnapshotId> {
        tx.execute("UPDATE sequence SET value = value + 1 WHERE name = 'snapshot'", [])?;
        let id = tx.query_row("SELECT value FROM sequence WHERE name = 'snapshot'", [], |row| id_column(row, 0))?;
        tx.prepare_cached("INSERT INTO doomed (kind, name, after) VALUES (?1, ?2, ?3)")?.execute(params![
            self.kind(),
            id.0.to_string(),
            tx.now().saturating_add(MAKING_NANOS)
        ])?;
        Ok(id)
    }

    /// Lets the snapshot's row take the place of the mark.
    pub(super) fn publish(
        &self,
        tx: &Tx<'_>,
        reserved: &Reserved,
        kind: SnapshotKind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Result<()>> {
        leases::add(tx, &self.scope, &self.kind(), key)?;
        if self.find(tx, key)?.is_some() {
            return Ok(Err(exists(key)));
        }
        let parent_id = self.committed(tx, parent)?.map(|p| p.id);
        if parent_id != reserved.parents.first().copied() {
            return Err(not_found(parent));
        }
        let claimed = tx
            .prepare_cached("DELETE FROM doomed WHERE kind = ?1 AND name = ?2 AND after > ?3")?
            .execute(params![self.kind(), reserved.id.0.to_string(), tx.now()])?;
        if claimed == 0 {
            return Err(failed(key, "making its tree took more than an hour; try again"));
        }
        namespaces::ensure(tx, &self.scope.namespace)?;
        tx.prepare_cached(
            "INSERT INTO snapshot (id, namespace, driver, name, parent, kind, labels, root, created, updated)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9)",
        )?
        .execute(params![
            number(reserved.id),
            self.scope.namespace,
            self.driver,
            key,
            parent_id.map(number),
            kind.as_str(),
            labels::to_json(labels),
            labels.contains_key(edges::ROOT),
            tx.now()
        ])?;
        self.state(tx, key, parent, labels)?;
        self.suspect(tx, key)?;
        if kind == SnapshotKind::Active {
            let (driver, key, parent) = (self.driver.clone(), key.to_owned(), parent.to_owned());
            tx.tell(&self.scope.namespace, Change::SnapshotPrepare { driver, key, parent });
        }
        Ok(Ok(()))
    }

    /// Leaves trees that nobody will claim to the next collection. If even that fails, the marks' time does it.
    pub(super) fn abandon(&self, trees: &[SnapshotId]) {
        let marked = self.store.lent_together("abandon snapshot", |tx| {
            let mut mark = tx.prepare_cached("UPDATE doomed SET after = 0 WHERE kind = ?1 AND name = ?2")?;
            trees.iter().try_for_each(|id| mark.execute(params![self.kind(), id.0.to_string()]).map(drop))?;
            Ok(())
        });
        if let Err(error) = marked {
            tracing::warn!(?trees, %error, "snapshots that were not finished stay on disk for up to an hour");
        }
    }

    /// Turns the active snapshot `key` into the committed `name`; labels replace those it had. `parent` is given when
    /// it was prepared without one (containerd's `rebase`). The tree is durable before the row is. If `name` exists, it
    /// is AlreadyExists, yet leased.
    pub fn commit(&self, name: &str, key: &str, parent: Option<&str>, labels: Labels) -> Result<()> {
        let link = Commit { name: name.to_owned(), key: key.to_owned(), labels }.checked()?;
        let parent = parent.filter(|p| !p.is_empty());
        let Some(planned) = self.store.read(|conn| self.plan(conn, &link, parent, None))? else {
            self.store.lent_together("lease snapshot", |tx| leases::add(tx, &self.scope, &self.kind(), name))?;
            return Err(exists(name));
        };
        let Planned { found, parents, meta, .. } = &planned;
        let usage = self.store.with_room(|| Ok(self.driver()?.commit(found.id, parents, meta)?))?;
        self.store.bring_together("commit snapshot", |tx| self.record_planned(tx, &link, &planned, usage))?
    }

    /// What committing is about, with what is below, perhaps planned too; `None` if the name is taken.
    pub(super) fn plan(
        &self,
        conn: &rusqlite::Connection,
        link: &Commit,
        parent: Option<&str>,
        below: Option<&Planned>,
    ) -> Result<Option<Planned>> {
        if self.find(conn, &link.name)?.is_some() {
            return Ok(None);
        }
        let found = self.active(conn, &link.key)?;
        let parent = self.parent_at_commit(&found, parent)?;
        let parents = match below {
            Some(below) => std::iter::once(below.found.id).chain(below.parents.iter().copied()).collect(),
            None => chain(conn, self.committed(conn, &parent)?.map(|p| p.id))?,
        };
        let meta = self.meta(&link.name, SnapshotKind::Committed, parents.first().copied(), link.labels.clone());
        Ok(Some(Planned { found, parent, parents, meta }))
    }

    /// Writes what was planned, if it is still so. The outer error rolls back; the inner one is an answer that comes with a lease.
    pub(super) fn record_planned(
        &self,
        tx: &Tx<'_>,
        link: &Commit,
        planned: &Planned,
        usage: Usage,
    ) -> Result<Result<()>> {
        let Planned { found, parent, parents, .. } = planned;
        leases::add(tx, &self.scope, &self.kind(), &link.name)?;
        if self.find(tx, &link.name)?.is_some() {
            return Ok(Err(exists(&link.name)));
        }
        let now_active = self.active(tx, &link.key)?;
        let parent_id = self.committed(tx, parent)?.map(|p| p.id);
        if now_active.id != found.id || parent_id != parents.first().copied() {
            return Err(failed(&link.key, "it, or its parent, was replaced while it was being committed"));
        }
        self.record_commit(tx, &link.name, &now_active, parent, parent_id, &link.labels, usage).map(Ok)
    }

    #[allow(clippy::too_many_arguments, reason = "the columns of one row")]
    fn record_commit(
        &self,
        tx: &Tx<'_>,
        name: &str,
        active: &Found,
        parent: &str,
        parent_id: Option<SnapshotId>,
        labels: &Labels,
        usage: Usage,
    ) -> Result<()> {
        tx.prepare_cached(
            "UPDATE snapshot SET name = ?2, parent = ?3, kind = 'committed', labels = ?4, root = ?5, bytes = ?6,
                 inodes = ?7, created = ?8, updated = ?8 WHERE id = ?1",
        )?
        .execute(params![
            number(active.id),
            name,
            parent_id.map(number),
            labels::to_json(labels),
            labels.contains_key(edges::ROOT),
            size_column(usage.bytes),
            size_column(usage.inodes),
            tx.now()
        ])?;
        let key = &active.info.name;
        edges::remove(tx, &self.scope.namespace, &self.kind(), key)?;
        leases::take(tx, &self.scope, &self.kind(), key)?;
        let (driver, key, committed) = (self.driver.clone(), key.clone(), name.to_owned());
        tx.tell(&self.scope.namespace, Change::SnapshotCommit { driver, key, name: committed });
        self.state(tx, name, parent, labels)?;
        self.suspect(tx, name)
    }

    /// Removes a snapshot without children; a parent is FailedPrecondition. The tree goes at the next collection.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.store.lent_together("remove snapshot", |tx| self.remove_row(tx, key))
    }

    pub(super) fn remove_row(&self, tx: &Tx<'_>, key: &str) -> Result<()> {
        let found = self.require(tx, key)?;
        let child = tx
            .prepare_cached("SELECT name FROM snapshot WHERE parent = ?1 LIMIT 1")?
            .query_map([number(found.id)], |row| row.get::<_, String>(0))?
            .next()
            .transpose()?;
        if let Some(child) = child {
            return Err(failed(key, &format!("it is the parent of {child:?}; remove that first")));
        }
        tx.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([number(found.id)])?;
        edges::remove(tx, &self.scope.namespace, &self.kind(), key)?;
        leases::take(tx, &self.scope, &self.kind(), key)?;
        let (driver, key) = (self.driver.clone(), key.to_owned());
        tx.tell(&self.scope.namespace, Change::SnapshotRemove { driver, key });
        doom(tx, &self.kind(), &found.id.0.to_string())
    }

    fn active(&self, conn: &rusqlite::Connection, key: &str) -> Result<Found> {
        let found = self.require(conn, key)?;
        if found.info.kind != SnapshotKind::Active {
            return Err(failed(
                key,
                &format!("it is {}; only an active snapshot can be committed", found.info.kind.as_str()),
            ));
        }
        Ok(found)
    }

    /// The parent that a commit gives or confirms.
    fn parent_at_commit(&self, found: &Found, given: Option<&str>) -> Result<String> {
        let (key, had) = (&found.info.name, &found.info.parent);
        match given {
            None => Ok(had.clone()),
            Some(given) if given == had => Ok(had.clone()),
            Some(given) if !had.is_empty() => {
                Err(failed(key, &format!("it was made on {had:?} and cannot be committed on {given:?}")))
            }
            Some(_) if !self.supports_rebase() => Err(failed(
                key,
                &format!("{} cannot give a parent to a snapshot that was made without one", self.driver),
            )),
            Some(given) => Ok(given.to_owned()),
        }
    }

    /// A parent by key; `None` for the empty key.
    fn committed(&self, conn: &rusqlite::Connection, parent: &str) -> Result<Option<Found>> {
        if parent.is_empty() {
            return Ok(None);
        }
        let found = self.require(conn, parent)?;
        if found.info.kind != SnapshotKind::Committed {
            let reason = format!("{parent:?} is {}; only a committed snapshot can be one", found.info.kind.as_str());
            return Err(Error::Invalid { what: "parent snapshot", reason });
        }
        Ok(Some(found))
    }

    pub(super) fn meta(&self, key: &str, kind: SnapshotKind, parent: Option<SnapshotId>, labels: Labels) -> Meta {
        Meta {
            namespace: self.scope.namespace.clone(),
            key: key.to_owned(),
            kind: kind.as_str().to_owned(),
            parent: parent.map(|p| p.0),
            labels,
        }
    }
}
