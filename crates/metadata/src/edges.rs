//! The edges that garbage collection follows, and the suspects it starts from.
//!
//! An object is (namespace, kind, name); the kinds are the constants here and `snapshots/<driver>`. The rows of `edge`
//! always equal what [`Edges`] derives from the objects: every transaction that makes, changes or deletes an object
//! calls [`put`] or [`remove`]. Stated by the object itself: an image's target, a snapshot's parent, a container's snapshot,
//! an ingest's expected digest, its `gc.ref` labels. Stated by the far end (`back = 1`): `gc.bref` labels, which keep the object that
//! carries them as long as what they name exists.
//!
//! Edges that are there only at times, stated by `gc.cond` labels, are in tables of their own: [`conditions`].
//!
//! Suspects: [`put`] marks the targets of the edges it removes; [`remove`] marks everything the object had an edge to;
//! [`suspect`] is called for each new blob, snapshot and ingest, for each image with an expiry, when a `gc.root` label
//! goes, and for each resource that leaves a lease. New images and leases without expiry, and containers, are roots and need no
//! mark.
//! Back edges from an object that does not exist stay (it may come), and count for nothing until it does.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use crate::conditions::{self, Condition};
use crate::gc::Node;
use crate::{Labels, Result, labels};

/// Kind of blobs; the name is the digest.
pub(crate) const CONTENT: &str = "content";
/// Kind of image records.
pub(crate) const IMAGES: &str = "images";
/// Kind of containers; the name is the ID.
pub(crate) const CONTAINERS: &str = "containers";
/// Kind of ingests; the name is the client's ref.
pub(crate) const INGESTS: &str = "ingests";
/// Kind of activations; the name is what the client chose.
pub(crate) const MOUNTS: &str = "mounts";

const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";

/// Label: keeps a blob or snapshot, whatever its value.
pub(crate) const ROOT: &str = "containerd.io/gc.root";
/// Label: an RFC 3339 time after which a lease or image no longer counts.
pub(crate) const EXPIRE: &str = "containerd.io/gc.expire";
/// Label: a lease that does not follow labels, whatever its value.
pub(crate) const FLAT: &str = "containerd.io/gc.flat";

/// What the kinds of snapshots begin with.
const SNAPSHOTS: &str = "snapshots/";

/// Kind of a driver's snapshots; the name is the key.
pub(crate) fn snapshots(driver: &str) -> String {
    format!("{SNAPSHOTS}{driver}")
}

/// One edge, seen from the object that states it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    kind: String,
    name: String,
    back: bool,
    label: bool,
}

/// All edges one object states, and what it says of edges that are there at times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edges {
    edges: BTreeSet<Edge>,
    /// An image's or blob's.
    pub(crate) conditions: BTreeSet<Condition>,
    /// A snapshot's: when it was used.
    pub(crate) uses: BTreeSet<i64>,
}

impl Edges {
    /// What the labels of an object of this kind state.
    pub(crate) fn of_labels(kind: &str, labels: &Labels) -> Self {
        let edges = labels.iter().filter_map(|(key, value)| label_edge(key, value)).collect();
        let mut stated = Self { edges, ..Self::default() };
        match kind {
            CONTENT | IMAGES => stated.conditions = conditions::of_labels(labels),
            // It keeps nothing: what is mounted is in use, and that is enough.
            MOUNTS => stated.edges.retain(|edge| edge.back),
            _ if kind.starts_with(SNAPSHOTS) => stated.uses = conditions::uses(labels),
            _ => {}
        }
        stated
    }

    /// Adds what is no label: a target, a parent, an expected digest.
    pub(crate) fn to(mut self, kind: &str, name: &str) -> Self {
        self.edges.insert(Edge { kind: kind.to_owned(), name: name.to_owned(), back: false, label: false });
        self
    }

    /// From and to of each, stated by `near`.
    pub(crate) fn ends(&self, near: &Node) -> impl Iterator<Item = (Node, Node)> {
        self.edges.iter().map(|edge| {
            let far = Node::new(&near.namespace, &edge.kind, &edge.name);
            if edge.back { (far, near.clone()) } else { (near.clone(), far) }
        })
    }
}

/// What one label states. The part of the key after the kind, and `.` or `/`, only tells labels apart.
fn label_edge(key: &str, value: &str) -> Option<Edge> {
    let (rest, back) = match key.strip_prefix(REF) {
        Some(rest) => (rest, false),
        None => (key.strip_prefix(BACK_REF)?, true),
    };
    if value.is_empty() {
        return None;
    }
    let kind = if let Some(rest) = rest.strip_prefix("snapshot.") {
        snapshots(rest.split('/').next().unwrap_or(rest))
    } else if is_named(rest, "content") {
        CONTENT.to_owned()
    } else if is_named(rest, "image") {
        IMAGES.to_owned()
    } else if !back && is_named(rest, "mount") {
        MOUNTS.to_owned()
    } else if back && is_named(rest, "container") {
        CONTAINERS.to_owned()
    } else {
        return None;
    };
    Some(Edge { kind, name: value.to_owned(), back, label: true })
}

fn is_named(rest: &str, kind: &str) -> bool {
    rest.strip_prefix(kind).is_some_and(|name| name.is_empty() || name.starts_with(['.', '/']))
}

/// Makes the edges that an object states equal `edges`, and suspects the targets of those that go.
pub(crate) fn put(tx: &Connection, namespace: &str, kind: &str, name: &str, edges: &Edges) -> Result<()> {
    let old = lasting(tx, namespace, kind, name)?;
    put_timed(tx, [namespace, kind, name], edges)?;
    for edge in old.difference(&edges.edges) {
        delete(tx, namespace, kind, name, edge)?;
        if edge.back {
            suspect(tx, namespace, kind, name)?;
        } else {
            suspect(tx, namespace, &edge.kind, &edge.name)?;
        }
    }
    for edge in edges.edges.difference(&old) {
        let ((from_kind, from_name), (to_kind, to_name)) = ends(kind, name, edge);
        tx.prepare_cached("INSERT OR IGNORE INTO edge VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![namespace, from_kind, from_name, to_kind, to_name, edge.back, edge.label])?;
    }
    Ok(())
}

/// The same for what says of edges that they are there at times; each is stated by some kinds alone.
fn put_timed(tx: &Connection, object: [&str; 3], edges: &Edges) -> Result<()> {
    match object[1] {
        CONTENT | IMAGES => conditions::put(tx, object, &edges.conditions),
        kind if kind.starts_with(SNAPSHOTS) => conditions::put_uses(tx, object, &edges.uses),
        _ => Ok(()),
    }
}

/// Removes the edges that an object which is being deleted states, and suspects everything it may have kept.
pub(crate) fn remove(tx: &Connection, namespace: &str, kind: &str, name: &str) -> Result<()> {
    put_timed(tx, [namespace, kind, name], &Edges::default())?;
    tx.prepare_cached(
        "INSERT OR IGNORE INTO suspect SELECT namespace, to_kind, to_name FROM edge
         WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3",
    )?
    .execute(params![namespace, kind, name])?;
    tx.prepare_cached("DELETE FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3 AND back = 0")?
        .execute(params![namespace, kind, name])?;
    tx.prepare_cached("DELETE FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3 AND back = 1")?
        .execute(params![namespace, kind, name])?;
    Ok(())
}

/// Writes the edges to activations that labels state, where the table has none of them.
pub(crate) fn fill_mounts(conn: &Connection) -> Result<()> {
    labelled(conn, "containerd.io/gc.ref.mount", |near, stated| {
        for (from, to) in stated.ends(near).filter(|(_, to)| to.kind == MOUNTS) {
            conn.prepare_cached("INSERT OR IGNORE INTO edge VALUES (?1, ?2, ?3, ?4, ?5, 0, 1)")?.execute(params![
                from.namespace,
                from.kind,
                from.name,
                to.kind,
                to.name
            ])?;
        }
        Ok(())
    })
}

/// Shows `each` the images, blobs, containers and snapshots in whose labels a text stands, with what they state.
pub(crate) fn labelled(conn: &Connection, text: &str, mut each: impl FnMut(&Node, &Edges) -> Result<()>) -> Result<()> {
    let mut query = conn.prepare(
        "SELECT namespace, ?1, name, labels FROM image WHERE instr(labels, ?4)
         UNION ALL SELECT namespace, ?2, digest, labels FROM blob WHERE instr(labels, ?4)
         UNION ALL SELECT namespace, ?3, id, labels FROM container WHERE instr(labels, ?4)
         UNION ALL SELECT namespace, 'snapshots/' || driver, name, labels FROM snapshot WHERE instr(labels, ?4)",
    )?;
    let mut rows = query.query([IMAGES, CONTENT, CONTAINERS, text])?;
    while let Some(row) = rows.next()? {
        let near = Node { namespace: row.get(0)?, kind: row.get(1)?, name: row.get(2)? };
        each(&near, &Edges::of_labels(&near.kind, &labels::column(row, 3)?))?;
    }
    Ok(())
}

/// Marks an object that perhaps nothing keeps.
pub(crate) fn suspect(tx: &Connection, namespace: &str, kind: &str, name: &str) -> Result<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO suspect VALUES (?1, ?2, ?3)")?.execute(params![namespace, kind, name])?;
    Ok(())
}

/// Everything that the tables have as stated by an object.
pub(crate) fn stated(conn: &Connection, namespace: &str, kind: &str, name: &str) -> Result<Edges> {
    Ok(Edges {
        edges: lasting(conn, namespace, kind, name)?,
        conditions: conditions::stated(conn, [namespace, kind, name])?,
        uses: conditions::stated_uses(conn, [namespace, kind, name])?,
    })
}

/// The edges that the table has for an object as its own.
fn lasting(tx: &Connection, namespace: &str, kind: &str, name: &str) -> Result<BTreeSet<Edge>> {
    let mut query = tx.prepare_cached(
        "SELECT to_kind, to_name, back, label FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3 AND back = 0
         UNION ALL
         SELECT from_kind, from_name, back, label FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3 AND back = 1",
    )?;
    let rows = query.query_map(params![namespace, kind, name], |row| {
        Ok(Edge { kind: row.get(0)?, name: row.get(1)?, back: row.get(2)?, label: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn delete(tx: &Connection, namespace: &str, kind: &str, name: &str, edge: &Edge) -> Result<()> {
    let ((from_kind, from_name), (to_kind, to_name)) = ends(kind, name, edge);
    tx.prepare_cached(
        "DELETE FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3 AND to_kind = ?4 AND to_name = ?5
         AND back = ?6 AND label = ?7",
    )?
    .execute(params![namespace, from_kind, from_name, to_kind, to_name, edge.back, edge.label])?;
    Ok(())
}

/// From and to of an edge that (`kind`, `name`) states.
fn ends<'a>(kind: &'a str, name: &'a str, edge: &'a Edge) -> ((&'a str, &'a str), (&'a str, &'a str)) {
    let (near, far) = ((kind, name), (edge.kind.as_str(), edge.name.as_str()));
    if edge.back { (far, near) } else { (near, far) }
}
