//! The database as the graph that [`mark`](super::mark) walks, one row at a time.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use rusqlite::{Connection, OptionalExtension, params};

use super::mark::{self, Found, Graph, Hold, Link, Node};
use super::whole::Whole;
use crate::conditions;
use crate::edges::{CONTAINERS, CONTENT, IMAGES, INGESTS, MOUNTS};
use crate::{Error, Result};

/// From so many edges on for each suspect, looking at the suspects' own costs less than reading all there are.
const EDGES_A_SUSPECT: i64 = 4;

/// A container is a root as long as it exists.
const CONTAINER: &str = "SELECT 1 FROM container WHERE namespace = ?1 AND id = ?2";

/// One snapshot of the database at one time, perhaps without some image records.
pub(super) struct Rows<'a> {
    pub(super) conn: &'a Connection,
    /// Nanoseconds since 1970; what expires before this has expired.
    pub(super) now: i64,
    /// Images taken for deleted: (namespace, name).
    pub(super) without: &'a BTreeSet<(String, String)>,
}

impl Rows<'_> {
    /// All that is garbage, found in the way that costs less.
    pub(super) fn garbage(&self) -> Result<Found> {
        if self.suspects_are_many()? { Whole::load(self)?.garbage() } else { mark::garbage(self) }
    }

    /// Whether what is suspected is a good part of all there is: as in a store that was filled and never collected, or
    /// where many records are taken for deleted.
    fn suspects_are_many(&self) -> Result<bool> {
        let mut suspects = self.conn.prepare_cached("SELECT count(*) FROM suspect")?;
        let suspects: i64 = suspects.query_row([], |row| row.get(0))?;
        let suspects = suspects.saturating_add(i64::try_from(self.without.len()).unwrap_or(i64::MAX));
        let limit = suspects.saturating_mul(EDGES_A_SUSPECT);
        let mut edges = self.conn.prepare_cached("SELECT count(*) FROM (SELECT 1 FROM edge LIMIT ?1)")?;
        Ok(edges.query_row([limit], |row| row.get::<_, i64>(0))? < limit)
    }

    pub(super) fn deleted(&self, node: &Node) -> bool {
        node.kind == IMAGES
            && !self.without.is_empty()
            && self.without.contains(&(node.namespace.clone(), node.name.clone()))
    }

    /// Whether collecting could find anything.
    pub(super) fn has_work(&self) -> Result<bool> {
        let mut query = self.conn.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM suspect) OR EXISTS (SELECT 1 FROM image WHERE expires < ?1)
                 OR EXISTS (SELECT 1 FROM ingest WHERE expires < ?1) OR EXISTS (SELECT 1 FROM lease WHERE expires < ?1)",
        )?;
        Ok(query.query_row([self.now], |row| row.get(0))? || !conditions::turned(self.conn, self.now)?.is_empty())
    }

    /// What the deletion of a record makes suspect: what it had edges to, and its place.
    fn lost(&self, seeds: &mut Vec<Node>) -> Result<()> {
        for (namespace, name) in self.without {
            let image = Node::new(namespace, IMAGES, name);
            let mut query = self.conn.prepare_cached(
                "SELECT namespace, to_kind, to_name FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3",
            )?;
            let rows = query.query_map(params![namespace, IMAGES, name], node)?;
            for row in rows {
                seeds.push(row?);
            }
            seeds.extend(conditions::kept_by(self.conn, &image, self.now)?);
            seeds.push(image);
        }
        Ok(())
    }

    /// Whether a row of its own keeps it.
    fn is_root(&self, node: &Node) -> Result<bool> {
        let sql = match node.kind.as_str() {
            CONTENT => "SELECT 1 FROM blob WHERE namespace = ?1 AND digest = ?2 AND root = 1",
            IMAGES => "SELECT 1 FROM image WHERE namespace = ?1 AND name = ?2 AND (expires IS NULL OR expires >= ?3)",
            INGESTS => "SELECT 1 FROM ingest WHERE namespace = ?1 AND ref = ?2 AND expires >= ?3",
            CONTAINERS => CONTAINER,
            MOUNTS => return Ok(false),
            _ => "SELECT 1 FROM snapshot WHERE namespace = ?1 AND name = ?2 AND driver = ?3 AND root = 1",
        };
        let mut query = self.conn.prepare_cached(sql)?;
        Ok(match (node.kind.as_str(), driver_of(&node.kind)) {
            (CONTENT | CONTAINERS, _) => query.exists(params![node.namespace, node.name])?,
            (IMAGES | INGESTS, _) => query.exists(params![node.namespace, node.name, self.now])?,
            (_, Some(driver)) => query.exists(params![node.namespace, node.name, driver])?,
            _ => false,
        })
    }

    /// How unexpired leases hold it.
    fn leased(&self, node: &Node) -> Result<Option<Hold>> {
        let mut query = self.conn.prepare_cached(
            "SELECT min(l.flat) FROM lease_resource r JOIN lease l ON l.namespace = r.namespace AND l.id = r.lease
             WHERE r.namespace = ?1 AND r.kind = ?2 AND r.name = ?3 AND (l.expires IS NULL OR l.expires >= ?4)",
        )?;
        let flat: Option<bool> =
            query.query_row(params![node.namespace, node.kind, node.name, self.now], |row| row.get(0))?;
        Ok(flat.map(|flat| hold(flat, &node.kind)))
    }
}

/// A flat lease holds a write in progress as any lease does: with the digest it expects.
pub(super) fn hold(flat: bool, kind: &str) -> Hold {
    if flat && kind != INGESTS { Hold::Flat } else { Hold::Full }
}

/// The driver in a kind of snapshots.
pub(crate) fn driver_of(kind: &str) -> Option<&str> {
    kind.strip_prefix("snapshots/")
}

fn node(row: &rusqlite::Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node { namespace: row.get(0)?, kind: row.get(1)?, name: row.get(2)? })
}

impl Graph for Rows<'_> {
    type Error = Error;
    type Node = Node;

    fn seeds(&self) -> Result<Vec<Node>> {
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, kind, name FROM suspect
             UNION SELECT namespace, 'images', name FROM image WHERE expires < ?1
             UNION SELECT namespace, 'ingests', ref FROM ingest WHERE expires < ?1
             UNION SELECT r.namespace, r.kind, r.name FROM lease l
                     JOIN lease_resource r ON r.namespace = l.namespace AND r.lease = l.id WHERE l.expires < ?1
             UNION SELECT r.namespace, r.kind, r.name FROM lease l
                     JOIN lease_resource r ON r.namespace = l.namespace AND r.lease = l.id WHERE l.flat = 1",
        )?;
        let mut seeds = query.query_map([self.now], node)?.collect::<rusqlite::Result<Vec<_>>>()?;
        seeds.extend(conditions::turned(self.conn, self.now)?);
        self.lost(&mut seeds)?;
        Ok(seeds)
    }

    fn exists(&self, node: &Node) -> Result<bool> {
        if self.deleted(node) {
            return Ok(false);
        }
        let of_kind = |sql: &str| -> Result<bool> {
            Ok(self.conn.prepare_cached(sql)?.exists(params![node.namespace, node.name])?)
        };
        match node.kind.as_str() {
            CONTENT => of_kind("SELECT 1 FROM blob WHERE namespace = ?1 AND digest = ?2"),
            IMAGES => of_kind("SELECT 1 FROM image WHERE namespace = ?1 AND name = ?2"),
            INGESTS => of_kind("SELECT 1 FROM ingest WHERE namespace = ?1 AND ref = ?2"),
            CONTAINERS => of_kind(CONTAINER),
            MOUNTS => of_kind("SELECT 1 FROM mount WHERE namespace = ?1 AND name = ?2"),
            kind => match driver_of(kind) {
                Some(driver) => Ok(self
                    .conn
                    .prepare_cached("SELECT 1 FROM snapshot WHERE namespace = ?1 AND driver = ?2 AND name = ?3")?
                    .exists(params![node.namespace, driver, node.name])?),
                None => Ok(false),
            },
        }
    }

    fn held(&self, node: &Node) -> Result<Option<Hold>> {
        if !self.deleted(node) && self.is_root(node)? {
            return Ok(Some(Hold::Full));
        }
        self.leased(node)
    }

    fn links(&self, node: &Node) -> Result<Vec<Link>> {
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, to_kind, to_name, label, back FROM edge
             WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3 AND back >= ?4",
        )?;
        // Of a deleted record only what others state stays, and what it states itself of others goes with it.
        let deleted = self.deleted(node);
        let mut rows = query.query(params![node.namespace, node.kind, node.name, deleted])?;
        let mut links = Vec::new();
        while let Some(row) = rows.next()? {
            let (to, stated_there) = (self::node(row)?, row.get(4)?);
            if !(stated_there && self.deleted(&to)) {
                links.push(Link { to, label: row.get(3)? });
            }
        }
        if !deleted && matches!(node.kind.as_str(), CONTENT | IMAGES) {
            let kept = conditions::kept_by(self.conn, node, self.now)?;
            links.extend(kept.into_iter().map(|to| Link { to, label: true }));
        }
        Ok(links)
    }

    fn sources(&self, target: &Node, visit: &mut dyn FnMut(Node) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, from_kind, from_name, back FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3",
        )?;
        let deleted = self.deleted(target);
        let mut rows = query.query(params![target.namespace, target.kind, target.name])?;
        while let Some(row) = rows.next()? {
            let (source, back) = (node(row)?, row.get::<_, bool>(3)?);
            let stated_by_deleted = if back { deleted } else { self.deleted(&source) };
            if !stated_by_deleted && visit(source)?.is_break() {
                return Ok(());
            }
        }
        if driver_of(&target.kind).is_some() {
            for source in conditions::keepers(self.conn, target, self.now)? {
                if !self.deleted(&source) && visit(source)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Leases that have expired: (namespace, id).
pub(super) fn expired_leases(conn: &Connection, now: i64) -> Result<BTreeSet<(String, String)>> {
    let mut query = conn.prepare_cached("SELECT namespace, id FROM lease WHERE expires < ?1")?;
    let rows = query.query_map([now], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether any row still needs the bytes of a blob: a blob row of any namespace, or a write that expects it.
pub(super) fn blob_needed(conn: &Connection, digest: &str) -> Result<Option<Need>> {
    if conn.prepare_cached("SELECT 1 FROM blob WHERE digest = ?1")?.exists([digest])? {
        return Ok(Some(Need::Blob));
    }
    if conn.prepare_cached("SELECT 1 FROM ingest WHERE expected = ?1")?.exists([digest])? {
        return Ok(Some(Need::Ingest));
    }
    Ok(None)
}

/// Why bytes may not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A namespace has it.
    Blob,
    /// A write may be about to rename them into place.
    Ingest,
}

/// The row of a driver's snapshot, if there is one.
pub(super) fn snapshot_row(conn: &Connection, driver: &str, id: i64) -> Result<bool> {
    let mut query = conn.prepare_cached("SELECT 1 FROM snapshot WHERE id = ?1 AND driver = ?2")?;
    Ok(query.query_row(params![id, driver], |_| Ok(())).optional()?.is_some())
}
