//! What was found damaged and is not mended yet.
//!
//! # Invariants
//! - A row says that bytes were once read and were not what they should be. It goes in the transaction that follows sound bytes:
//!   a write of the blob, a new tree of the snapshot.
//! - What is damaged keeps its other rows: names, labels, edges. So it is not collected, and what mends it needs nothing else.
//! - A row whose blob or snapshot is no more says nothing, and is dropped by the next collection of the quarantine.

use jiff::Timestamp;
use orlop_content::Flaw;
use orlop_oci::{Descriptor, Digest};
use orlop_snapshot::SnapshotId;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::changes::Change;
use crate::db::from_nanos;
use crate::edges::{self, CONTAINERS, CONTENT, IMAGES};
use crate::gc::driver_of;
use crate::transact::Tx;
use crate::{Labels, Result, Store, labels};

/// On a layer: its diff ID; on a snapshot that unpacks one: the same.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const SNAPSHOT_DIFF: &str = "containerd.io/snapshot/diff-id";

/// The fault of what is not there at all.
const MISSING: &str = "missing";

/// What is damaged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damaged {
    /// A blob, in all namespaces.
    Blob(Digest),
    /// The tree of a committed snapshot.
    Snapshot {
        /// The driver.
        driver: String,
        /// Its number.
        id: SnapshotId,
    },
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Snapshot { driver, id } => write!(f, "snapshot {driver}/{}", id.0),
        }
    }
}

impl Damaged {
    /// The kind that garbage collection and `damage` have it under.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Blob(_) => CONTENT.to_owned(),
            Self::Snapshot { driver, .. } => edges::snapshots(driver),
        }
    }

    /// The name in `damage`.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Blob(digest) => digest.to_string(),
            Self::Snapshot { id, .. } => id.0.to_string(),
        }
    }
}

/// Damage that was found and is not mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// To what.
    pub what: Damaged,
    /// `missing`, `size`, `damaged`, `unreadable`.
    pub fault: String,
    /// What was expected and what was found.
    pub detail: String,
    /// The entry of the quarantine that has the bytes; `None`: they are in their place, or nowhere.
    pub quarantine: Option<String>,
    /// When it was found.
    pub found_at: Timestamp,
}

/// Whom damage concerns, in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// The namespace.
    pub namespace: String,
    /// What the object is called there: the digest of a blob, the key of a snapshot.
    pub name: String,
    /// Names of image records that need it.
    pub images: Vec<String>,
    /// Snapshots, as `<driver>/<key>`, that are unpacked from the blob, or that the damaged snapshot is.
    pub snapshots: Vec<String>,
    /// Containers that stand on an image that needs it.
    pub containers: Vec<String>,
}

impl Store {
    /// Damage that is not mended, blobs first.
    pub fn damages(&self) -> Result<Vec<Damage>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT kind, name, fault, detail, quarantine, found FROM damage d
                 WHERE EXISTS (SELECT 1 FROM blob WHERE d.kind = 'content' AND digest = d.name)
                    OR EXISTS (SELECT 1 FROM snapshot s WHERE d.kind = 'snapshots/' || s.driver AND s.id = CAST(d.name AS INTEGER))
                 ORDER BY kind, name",
            )?;
            let rows = query.query_map([], damage)?.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(rows.into_iter().flatten().collect())
        })
    }

    /// Damage to one thing, if it is known.
    pub fn damage_of(&self, what: &Damaged) -> Result<Option<Damage>> {
        self.read(|conn| get(conn, what))
    }

    /// Whom damage to something concerns: one entry for each namespace that has it.
    pub fn affected(&self, what: &Damaged) -> Result<Vec<Affected>> {
        self.read(|conn| affected(conn, what))
    }

    /// The sizes and labels of a blob in all namespaces that have it.
    pub fn blob_rows(&self, digest: &Digest) -> Result<Vec<(String, u64, Labels)>> {
        self.read(|conn| {
            let mut query =
                conn.prepare_cached("SELECT namespace, size, labels FROM blob WHERE digest = ?1 ORDER BY namespace")?;
            let row = |row: &Row<'_>| {
                Ok((row.get(0)?, crate::images::size_from_column(row.get(1)?), labels::column(row, 2)?))
            };
            Ok(query.query_map([digest.as_str()], row)?.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Blobs that an image record reaches: what it points at and all that hangs on that.
    pub fn reached_blobs(&self, namespace: &str, image: &str) -> Result<Vec<Digest>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "WITH RECURSIVE down(name) AS (
                   SELECT to_name FROM edge WHERE namespace = ?1 AND from_kind = 'images' AND from_name = ?2 AND to_kind = 'content'
                   UNION SELECT e.to_name FROM edge e JOIN down ON e.from_name = down.name
                   WHERE e.namespace = ?1 AND e.from_kind = 'content' AND e.to_kind = 'content')
                 SELECT name FROM down ORDER BY name",
            )?;
            let names = query.query_map([namespace, image], |row| row.get::<_, String>(0))?;
            let names = names.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        })
    }

    /// What an image record that points at a blob says it is; `None` if none does.
    pub fn target(&self, namespace: &str, digest: &Digest) -> Result<Option<Descriptor>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT media_type, size FROM image WHERE namespace = ?1 AND digest = ?2 ORDER BY name LIMIT 1",
            )?;
            let row = |row: &Row<'_>| {
                let size = crate::images::size_from_column(row.get(1)?);
                Ok(Descriptor::new(row.get::<_, String>(0)?, digest.clone(), size))
            };
            Ok(query.query_row([namespace, digest.as_str()], row).optional()?)
        })
    }

    /// Blobs whose labels name a blob: the documents that it is part of.
    pub fn naming_documents(&self, namespace: &str, digest: &Digest) -> Result<Vec<Digest>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT from_name FROM edge
                 WHERE namespace = ?1 AND from_kind = 'content' AND to_kind = 'content' AND to_name = ?2 ORDER BY from_name",
            )?;
            let names = query.query_map([namespace, digest.as_str()], |row| row.get::<_, String>(0))?;
            let names = names.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        })
    }

    /// Remembers damage, and tells of it if it was not known. What is not there any more is left out.
    pub(crate) fn put_damage(&self, what: &Damaged, flaw: &Flaw, quarantine: Option<&str>) -> Result<()> {
        self.lent_together("note damage", |tx| put(tx, what, flaw.as_str(), &flaw.to_string(), quarantine))
    }

    /// Forgets damage: the bytes are what they were.
    pub(crate) fn forget_damage(&self, what: &Damaged) -> Result<()> {
        self.lent_together("forget damage", |tx| mended(tx, &what.kind(), &what.name()))
    }
}

/// Notes damage.
pub(crate) fn put(tx: &Tx<'_>, what: &Damaged, fault: &str, detail: &str, quarantine: Option<&str>) -> Result<()> {
    let known = get(tx, what)?;
    let quarantine = quarantine.or_else(|| known.as_ref().and_then(|known| known.quarantine.as_deref()));
    // What was set aside is missing since: that it was damaged says more.
    let (fault, detail) = match &known {
        Some(known) if fault == MISSING && known.quarantine.is_some() => (known.fault.as_str(), known.detail.as_str()),
        _ => (fault, detail),
    };
    let found = known.as_ref().map_or_else(|| tx.now(), |known| crate::db::to_nanos(known.found_at));
    tx.prepare_cached("INSERT OR REPLACE INTO damage VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        what.kind(),
        what.name(),
        fault,
        detail,
        quarantine,
        found
    ])?;
    if known.as_ref().is_some_and(|known| known.fault == fault) {
        return Ok(());
    }
    for concerned in affected(tx, what)? {
        let Affected { namespace, name, images, containers, .. } = concerned;
        let (kind, fault, detail) = (what.kind(), fault.to_owned(), detail.to_owned());
        tx.tell(&namespace, Change::DamageFound { kind, name, fault, detail, images, containers });
    }
    Ok(())
}

/// Says in which entry of the quarantine the bytes of something damaged are.
pub(crate) fn place(tx: &Tx<'_>, what: &Damaged, quarantine: Option<&str>) -> Result<()> {
    tx.prepare_cached("UPDATE damage SET quarantine = ?3 WHERE kind = ?1 AND name = ?2")?.execute(params![
        what.kind(),
        what.name(),
        quarantine
    ])?;
    Ok(())
}

/// Forgets damage, and tells that it is mended. Costs a look-up where there was none.
pub(crate) fn mended(tx: &Tx<'_>, kind: &str, name: &str) -> Result<()> {
    let gone = tx.prepare_cached("DELETE FROM damage WHERE kind = ?1 AND name = ?2")?.execute(params![kind, name])?;
    if gone == 0 {
        return Ok(());
    }
    for (namespace, called) in places(tx, kind, name)? {
        tx.tell(&namespace, Change::DamageMended { kind: kind.to_owned(), name: called });
    }
    Ok(())
}

fn get(conn: &Connection, what: &Damaged) -> Result<Option<Damage>> {
    let mut query = conn.prepare_cached(
        "SELECT kind, name, fault, detail, quarantine, found FROM damage WHERE kind = ?1 AND name = ?2",
    )?;
    Ok(query.query_row(params![what.kind(), what.name()], damage).optional()?.flatten())
}

/// A row; `None` if it is of a kind that only a newer program knows.
fn damage(row: &Row<'_>) -> rusqlite::Result<Option<Damage>> {
    let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
    let what = match driver_of(&kind) {
        Some(driver) => name.parse().ok().map(|id| Damaged::Snapshot { driver: driver.to_owned(), id: SnapshotId(id) }),
        None => name.parse().ok().map(Damaged::Blob),
    };
    let Some(what) = what else { return Ok(None) };
    Ok(Some(Damage {
        what,
        fault: row.get(2)?,
        detail: row.get(3)?,
        quarantine: row.get(4)?,
        found_at: from_nanos(row.get(5)?),
    }))
}

/// Namespaces that have an object, with its name there.
fn places(conn: &Connection, kind: &str, name: &str) -> Result<Vec<(String, String)>> {
    let sql = match driver_of(kind) {
        Some(_) => "SELECT namespace, name FROM snapshot WHERE id = CAST(?1 AS INTEGER)",
        None => "SELECT namespace, digest FROM blob WHERE digest = ?1 ORDER BY namespace",
    };
    let mut query = conn.prepare_cached(sql)?;
    let rows = query.query_map([name], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn affected(conn: &Connection, what: &Damaged) -> Result<Vec<Affected>> {
    let (kind, mut found) = (what.kind(), Vec::new());
    for (namespace, name) in places(conn, &kind, &what.name())? {
        let mut containers = Vec::new();
        let (mut snapshots, tops) = match what {
            Damaged::Blob(digest) => (unpacked(conn, &namespace, digest)?, tops(conn, &namespace, digest.as_str())?),
            Damaged::Snapshot { .. } => (vec![(kind.clone(), name.clone())], Vec::new()),
        };
        for (kind, key) in &snapshots {
            containers.extend(upwards(conn, &namespace, kind, key, CONTAINERS)?);
        }
        for (kind, key) in &tops {
            containers.extend(standing_on(conn, &namespace, kind, key)?);
        }
        containers.sort();
        containers.dedup();
        snapshots.sort();
        let images = upwards(conn, &namespace, &kind, &name, IMAGES)?;
        let snapshots =
            snapshots.into_iter().map(|(kind, key)| format!("{}/{key}", driver_of(&kind).unwrap_or(&kind))).collect();
        found.push(Affected { namespace, name, images, snapshots, containers });
    }
    Ok(found)
}

/// What of one kind needs an object, directly or not.
fn upwards(conn: &Connection, namespace: &str, kind: &str, name: &str, wanted: &str) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(
        "WITH RECURSIVE up(kind, name) AS (
           SELECT ?2, ?3
           UNION SELECT e.from_kind, e.from_name FROM edge e JOIN up ON e.to_kind = up.kind AND e.to_name = up.name
           WHERE e.namespace = ?1)
         SELECT name FROM up WHERE kind = ?4 ORDER BY name",
    )?;
    let rows = query.query_map([namespace, kind, name, wanted], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Snapshots, as kind and key, that a document names below it: the uppermost ones of its images.
fn tops(conn: &Connection, namespace: &str, digest: &str) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached(
        "WITH RECURSIVE down(kind, name) AS (
           SELECT 'content', ?2
           UNION SELECT e.to_kind, e.to_name FROM edge e JOIN down ON e.from_kind = down.kind AND e.from_name = down.name
           WHERE e.namespace = ?1 AND down.kind = 'content')
         SELECT kind, name FROM down WHERE kind LIKE 'snapshots/%' ORDER BY kind, name",
    )?;
    let rows = query.query_map([namespace, digest], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Containers whose own snapshot was made on one.
fn standing_on(conn: &Connection, namespace: &str, kind: &str, key: &str) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(
        "SELECT c.id FROM container c
         JOIN snapshot s ON s.namespace = c.namespace AND s.driver = c.snapshotter AND s.name = c.snapshot_key
         JOIN snapshot p ON p.id = s.parent
         WHERE c.namespace = ?1 AND p.driver = ?2 AND p.name = ?3 ORDER BY c.id",
    )?;
    let rows = query.query_map([namespace, driver_of(kind).unwrap_or_default(), key], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Committed snapshots, as kind and key, that were unpacked from a layer.
fn unpacked(conn: &Connection, namespace: &str, layer: &Digest) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached("SELECT labels FROM blob WHERE namespace = ?1 AND digest = ?2")?;
    let known = query.query_row([namespace, layer.as_str()], |row| labels::column(row, 0)).optional()?;
    let Some(diff) = known.as_ref().and_then(|labels| labels.get(UNCOMPRESSED)) else { return Ok(Vec::new()) };
    let mut query = conn.prepare_cached(
        "SELECT driver, name, labels FROM snapshot WHERE namespace = ?1 AND kind = 'committed' ORDER BY id",
    )?;
    let mut rows = query.query([namespace])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if labels::column(row, 2)?.get(SNAPSHOT_DIFF) == Some(diff) {
            found.push((edges::snapshots(&row.get::<_, String>(0)?), row.get(1)?));
        }
    }
    Ok(found)
}
