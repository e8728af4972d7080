//! What a collection removes: the rows, read before they go; and their going.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use orlop_oci::Descriptor;
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::Report;
use super::bytes::INGEST;
use super::graph::driver_of;
use super::mark::Node;
use crate::changes::Change;
use crate::edges::{self, CONTENT, IMAGES, INGESTS, MOUNTS};
use crate::history::{self, Author, State, digest_column};
use crate::transact::Tx;
use crate::{Result, labels, leases};

/// Who the history says removed an expired record.
const ACTOR: &str = "gc";

/// A row of `image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) media_type: String,
    pub(crate) size: i64,
    pub(crate) annotations: String,
    pub(crate) labels: String,
    pub(crate) created: i64,
}

/// A row of `blob`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlobRow {
    pub(crate) namespace: String,
    pub(crate) digest: String,
    pub(crate) size: i64,
    pub(crate) labels: String,
    pub(crate) created: i64,
}

/// A row of `snapshot`, with the parent's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRow {
    pub(crate) id: i64,
    pub(crate) namespace: String,
    pub(crate) driver: String,
    pub(crate) name: String,
    pub(crate) parent: Option<i64>,
    pub(crate) parent_name: Option<String>,
    pub(crate) kind: String,
    pub(crate) labels: String,
    pub(crate) bytes: Option<i64>,
    pub(crate) inodes: Option<i64>,
    pub(crate) created: i64,
}

/// A row of `ingest`.
#[derive(Debug, Clone)]
struct IngestRow {
    namespace: String,
    reference: String,
    backend: String,
    expected: Option<String>,
}

/// Digests of blobs that no namespace has after a collection, with their sizes.
pub(super) type LastBlobs<'a> = BTreeMap<&'a str, i64>;

/// Everything one collection removes.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    pub(crate) images: Vec<ImageRow>,
    pub(crate) blobs: Vec<BlobRow>,
    /// Children before their parents.
    pub(crate) snapshots: Vec<SnapshotRow>,
    ingests: Vec<IngestRow>,
    /// Activations: namespace, name, number.
    mounts: Vec<(String, String, i64)>,
    leases: BTreeSet<(String, String)>,
    visited: u64,
}

impl Removal {
    /// Reads the rows of what is garbage.
    pub(super) fn load(
        conn: &Connection,
        found: super::mark::Found,
        leases: BTreeSet<(String, String)>,
    ) -> Result<Self> {
        let mut removal = Self { leases, visited: found.visited, ..Self::default() };
        // In order, so that a plan and its execution agree, and a trash entry reads well.
        let nodes: BTreeSet<Node> = found.garbage.into_iter().collect();
        for node in &nodes {
            match node.kind.as_str() {
                IMAGES => removal.images.extend(image(conn, &node.namespace, &node.name)?),
                CONTENT => removal.blobs.extend(blob(conn, node)?),
                INGESTS => removal.ingests.extend(ingest(conn, node)?),
                MOUNTS => removal.mounts.extend(mount(conn, node)?),
                _ => removal.snapshots.extend(snapshot(conn, node)?),
            }
        }
        children_first(&mut removal.snapshots);
        Ok(removal)
    }

    /// Says what goes. Snapshots whose size no row knows count nothing yet.
    pub(super) fn report(&self, last_blobs: &LastBlobs<'_>) -> Report {
        let pairs = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        Report {
            content: self.blobs.iter().map(|b| pairs(&b.namespace, &b.digest)).collect(),
            snapshots: self.snapshots.iter().map(|s| (s.namespace.clone(), s.driver.clone(), s.name.clone())).collect(),
            leases: self.leases.clone(),
            ingests: self.ingests.iter().map(|i| pairs(&i.namespace, &i.reference)).collect(),
            images: self.images.iter().map(|i| pairs(&i.namespace, &i.name)).collect(),
            mounts: self.mounts.iter().map(|(namespace, name, _)| pairs(namespace, name)).collect(),
            blob_bytes: last_blobs.values().map(|&size| bytes(size)).sum(),
            snapshot_bytes: self.snapshots.iter().filter_map(|s| s.bytes).map(bytes).sum(),
            visited: self.visited,
            ..Report::default()
        }
    }

    /// The blobs that no namespace has afterwards.
    pub(super) fn last_blobs(&self, conn: &Connection) -> Result<LastBlobs<'_>> {
        let mut going: HashMap<&str, (i64, i64)> = HashMap::new();
        for blob in &self.blobs {
            going.entry(&blob.digest).or_insert((0, blob.size)).0 += 1;
        }
        let mut last = BTreeMap::new();
        for (digest, (count, size)) in going {
            let mut query = conn.prepare_cached("SELECT count(*) FROM blob WHERE digest = ?1")?;
            if query.query_row([digest], |row| row.get::<_, i64>(0))? == count {
                last.insert(digest, size);
            }
        }
        Ok(last)
    }

    /// Removes the rows; bytes become doomed, for the trash entry if one is given.
    pub(super) fn apply(&self, tx: &Tx<'_>, last_blobs: &LastBlobs<'_>, trash: Option<&str>) -> Result<()> {
        for digest in last_blobs.keys() {
            doom(tx, CONTENT, digest, trash)?;
        }
        if !self.blobs.is_empty() {
            crate::look::content_changed(tx)?;
        }
        for blob in &self.blobs {
            tx.prepare_cached("DELETE FROM blob WHERE namespace = ?1 AND digest = ?2")?
                .execute(params![blob.namespace, blob.digest])?;
            edges::remove(tx, &blob.namespace, CONTENT, &blob.digest)?;
        }
        for snapshot in &self.snapshots {
            let kind = edges::snapshots(&snapshot.driver);
            doom(tx, &kind, &snapshot.id.to_string(), trash)?;
            tx.prepare_cached("DELETE FROM snapshot WHERE id = ?1")?.execute([snapshot.id])?;
            edges::remove(tx, &snapshot.namespace, &kind, &snapshot.name)?;
            let (driver, key) = (snapshot.driver.clone(), snapshot.name.clone());
            tx.tell(&snapshot.namespace, Change::SnapshotRemove { driver, key });
        }
        for (namespace, name, id) in &self.mounts {
            crate::mounts::remove(tx, namespace, name, *id)?;
        }
        for ingest in &self.ingests {
            doom(tx, INGEST, &ingest.backend, None)?;
            if let Some(digest) = &ingest.expected {
                // Its writer may have renamed the bytes, and cannot make the row any more.
                crate::content::doom(tx, CONTENT, digest)?;
            }
            tx.prepare_cached("DELETE FROM ingest WHERE namespace = ?1 AND ref = ?2")?
                .execute(params![ingest.namespace, ingest.reference])?;
            edges::remove(tx, &ingest.namespace, INGESTS, &ingest.reference)?;
        }
        for image in &self.images {
            self.remove_image(tx, image)?;
        }
        for (namespace, id) in &self.leases {
            leases::remove(tx, namespace, id)?;
        }
        Ok(())
    }

    fn remove_image(&self, tx: &Tx<'_>, image: &ImageRow) -> Result<()> {
        tx.prepare_cached("DELETE FROM image WHERE namespace = ?1 AND name = ?2")?
            .execute(params![image.namespace, image.name])?;
        edges::remove(tx, &image.namespace, IMAGES, &image.name)?;
        let target = image.target()?;
        let labels = json(&image.labels)?;
        let state = State { target: &target, labels: &labels, created: None };
        history::record(tx, Author { actor: ACTOR, host: None }, &image.namespace, &image.name, Some(state), None)
    }
}

impl ImageRow {
    /// What it points at.
    pub(crate) fn target(&self) -> Result<Descriptor> {
        let digest = self.digest.parse().map_err(|e: orlop_oci::DigestError| crate::Error::Invalid {
            what: "image record",
            reason: format!("{}: {e}", self.name),
        })?;
        let mut target = Descriptor::new(self.media_type.clone(), digest, bytes(self.size));
        target.annotations = json(&self.annotations)?;
        Ok(target)
    }
}

/// Labels as a row has them.
pub(crate) fn json(text: &str) -> Result<crate::Labels> {
    labels::from_json(text).map_err(|e| crate::Error::Invalid { what: "labels in meta.db", reason: e.to_string() })
}

fn bytes(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

/// Notes that bytes have no row any more.
pub(super) fn doom(tx: &Connection, kind: &str, name: &str, trash: Option<&str>) -> Result<()> {
    tx.prepare_cached(
        "INSERT INTO doomed (kind, name, trash) VALUES (?1, ?2, ?3)
         ON CONFLICT (kind, name) DO UPDATE SET trash = excluded.trash, after = 0",
    )?
    .execute(params![kind, name, trash])?;
    Ok(())
}

/// Reads one record.
pub(crate) fn image(conn: &Connection, namespace: &str, name: &str) -> Result<Option<ImageRow>> {
    let sql = "SELECT namespace, name, digest, media_type, size, annotations, labels, created FROM image
               WHERE namespace = ?1 AND name = ?2";
    one(conn, sql, &[&namespace, &name], |row| {
        digest_column(row, 2)?;
        Ok(ImageRow {
            namespace: row.get(0)?,
            name: row.get(1)?,
            digest: row.get(2)?,
            media_type: row.get(3)?,
            size: row.get(4)?,
            annotations: row.get(5)?,
            labels: row.get(6)?,
            created: row.get(7)?,
        })
    })
}

fn blob(conn: &Connection, node: &Node) -> Result<Option<BlobRow>> {
    let sql = "SELECT namespace, digest, size, labels, created FROM blob WHERE namespace = ?1 AND digest = ?2";
    one(conn, sql, &[&node.namespace, &node.name], |row| {
        Ok(BlobRow {
            namespace: row.get(0)?,
            digest: row.get(1)?,
            size: row.get(2)?,
            labels: row.get(3)?,
            created: row.get(4)?,
        })
    })
}

fn ingest(conn: &Connection, node: &Node) -> Result<Option<IngestRow>> {
    let sql = "SELECT namespace, ref, backend, expected FROM ingest WHERE namespace = ?1 AND ref = ?2";
    one(conn, sql, &[&node.namespace, &node.name], |row| {
        Ok(IngestRow { namespace: row.get(0)?, reference: row.get(1)?, backend: row.get(2)?, expected: row.get(3)? })
    })
}

fn mount(conn: &Connection, node: &Node) -> Result<Option<(String, String, i64)>> {
    let sql = "SELECT namespace, name, id FROM mount WHERE namespace = ?1 AND name = ?2";
    one(conn, sql, &[&node.namespace, &node.name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
}

fn snapshot(conn: &Connection, node: &Node) -> Result<Option<SnapshotRow>> {
    let Some(driver) = driver_of(&node.kind) else { return Ok(None) };
    let sql =
        "SELECT s.id, s.namespace, s.driver, s.name, s.parent, p.name, s.kind, s.labels, s.bytes, s.inodes, s.created
               FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent
               WHERE s.namespace = ?1 AND s.driver = ?2 AND s.name = ?3";
    one(conn, sql, &[&node.namespace, &driver, &node.name], |row| {
        Ok(SnapshotRow {
            id: row.get(0)?,
            namespace: row.get(1)?,
            driver: row.get(2)?,
            name: row.get(3)?,
            parent: row.get(4)?,
            parent_name: row.get(5)?,
            kind: row.get(6)?,
            labels: row.get(7)?,
            bytes: row.get(8)?,
            inodes: row.get(9)?,
            created: row.get(10)?,
        })
    })
}

fn one<T>(
    conn: &Connection,
    sql: &str,
    parameters: &[&dyn rusqlite::ToSql],
    f: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>> {
    let mut query = conn.prepare_cached(sql)?;
    let mut rows = query.query(parameters)?;
    Ok(rows.next()?.map(f).transpose()?)
}

/// Orders by depth, deepest first. A child's number may be below its parent's: it may have been made first.
pub(crate) fn children_first(snapshots: &mut [SnapshotRow]) {
    let parents: HashMap<i64, Option<i64>> = snapshots.iter().map(|s| (s.id, s.parent)).collect();
    let depth = |id: i64| {
        let mut seen = HashSet::new();
        let mut at = Some(id);
        while let Some(id) = at.filter(|id| parents.contains_key(id) && seen.insert(*id)) {
            at = parents[&id];
        }
        seen.len()
    };
    snapshots.sort_by_cached_key(|s| (std::cmp::Reverse(depth(s.id)), s.id));
}
