//! Which records lead to a blob: found by the edges that garbage collection keeps, from the blob upwards.
//!
//! What keeps a blob leads to it, so of everything that is to last the edges say who has it: a manifest its config and
//! layers, an index its manifests, a record its target. Only where a document was written without the labels that say so,
//! as a client may under a lease, must documents be asked instead: [`Store::has_loose_targets`].

use std::collections::BTreeSet;

use orlop_oci::{Algorithm, Digest};
use rusqlite::{Connection, params};

use crate::db::lock;
use crate::edges::{CONTENT, IMAGES};
use crate::{Image, Look, Mark, Result, Store, images};

impl Store {
    /// The records that point at any of these blobs, or at something that has it, by name. Costs what they are, not what
    /// there is.
    pub fn images_leading_to(&self, namespace: &str, blobs: &BTreeSet<Digest>) -> Result<Vec<Image>> {
        self.read(|conn| {
            let names = names_leading_to(conn, namespace, blobs.iter().map(ToString::to_string).collect())?;
            names.iter().filter_map(|name| images::get(conn, namespace, name).transpose()).collect()
        })
    }

    /// The digests that begin with `hex` among what records and documents of the namespace have.
    pub fn digests_starting(&self, namespace: &str, hex: &str) -> Result<BTreeSet<Digest>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT DISTINCT to_name FROM edge
                 WHERE namespace = ?1 AND to_kind = 'content' AND to_name >= ?2 AND to_name < ?3",
            )?;
            let mut found = BTreeSet::new();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
                let first = format!("{}:{hex}", algorithm.as_str());
                // No digit is above f.
                let end = format!("{first}g");
                for name in query.query_map(params![namespace, first, end], |row| row.get::<_, String>(0))? {
                    found.extend(name?.parse::<Digest>().ok());
                }
            }
            Ok(found)
        })
    }

    /// Whether some record points at a document that is there, and that nobody has read or that does not say what it has.
    ///
    /// All targets are asked once. Then only what records have come to point at since, and whether blobs were dropped or
    /// relabelled, can make a difference: the answer costs what has changed.
    pub fn has_loose_targets(&self, namespace: &str) -> Result<bool> {
        let tight = lock(self.tight()).get(namespace).copied();
        let (loose, known) = self.read(|conn| {
            let now = Look { conn, namespace }.mark()?;
            if let Some(earlier) = tight
                && now.kept_content_since(&earlier)
                && !pointed_since(conn, namespace, &earlier)?
            {
                return Ok((false, Some(now)));
            }
            if !conn.prepare_cached(UNSAID)?.exists([namespace])? {
                return Ok((false, Some(now)));
            }
            // What a record points at may still come, and then say nothing: that is not remembered.
            Ok((conn.prepare_cached(&format!("{UNSAID} AND {PRESENT}"))?.exists([namespace])?, None))
        })?;
        let mut tight = lock(self.tight());
        match known {
            Some(mark) => drop(tight.insert(namespace.to_owned(), mark)),
            None => drop(tight.remove(namespace)),
        }
        Ok(loose)
    }
}

/// Targets that nobody has read or that say nothing of what they have, whether they are there or not.
const UNSAID: &str = "SELECT 1 FROM (SELECT DISTINCT digest FROM image INDEXED BY image_target WHERE namespace = ?1) AS target
     WHERE (NOT EXISTS (SELECT 1 FROM manifest_summary WHERE digest = target.digest)
         OR NOT EXISTS (SELECT 1 FROM edge WHERE namespace = ?1 AND from_kind = 'content' AND from_name = target.digest))";
const PRESENT: &str = "EXISTS (SELECT 1 FROM blob WHERE namespace = ?1 AND digest = target.digest)";

/// Whether any record was made or changed since.
fn pointed_since(conn: &Connection, namespace: &str, mark: &Mark) -> Result<bool> {
    // By number, as everything since is few.
    let mut query =
        conn.prepare_cached("SELECT 1 FROM history WHERE seq > ?1 AND +namespace = ?2 AND action <> 'delete' LIMIT 1")?;
    Ok(query.exists(params![mark.change(), namespace])?)
}

/// The names of the records that point at any of these blobs, or at something that has it.
pub(crate) fn names_leading_to(
    conn: &Connection,
    namespace: &str,
    blobs: BTreeSet<String>,
) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut open: Vec<String> = blobs.iter().cloned().collect();
    let mut seen = blobs;
    while let Some(blob) = open.pop() {
        for (kind, name) in sources(conn, namespace, &blob)? {
            if kind == IMAGES {
                names.insert(name);
            } else if seen.insert(name.clone()) {
                open.push(name);
            }
        }
    }
    Ok(names)
}

/// The records and documents with an edge to a blob: kind and name.
fn sources(conn: &Connection, namespace: &str, blob: &str) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached(
        "SELECT from_kind, from_name FROM edge
         WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3 AND from_kind IN (?2, ?4)",
    )?;
    let rows = query.query_map([namespace, CONTENT, blob, IMAGES], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
