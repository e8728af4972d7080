//! What a text may mean. Too much does no harm, too little does: whoever looks decides among what he is given.

use std::collections::HashSet;

use orlop_oci::{Reference, RepositoryName};
use rusqlite::{Connection, ToSql};

use super::LEASES;
use crate::Result;
use crate::edges::{CONTAINERS, CONTENT, IMAGES, INGESTS, snapshots};
use crate::gc::Node;

/// Fewer characters are the beginning of nothing.
const SHORTEST: usize = 4;

/// What sorts behind every text that begins with the one before it.
const END: char = char::MAX;

/// Namespace and name of the records from ?1 to before ?2.
const RECORDS: &str = "SELECT namespace, name FROM image
    WHERE namespace IN (SELECT name FROM namespace) AND name >= ?1 AND name < ?2";

/// Of a kind of things: the query for namespace and name of those from ?1 to before ?2, and whether the beginning of any name
/// means the thing; else only that of a digest does.
const RANGES: [(&str, &str, bool); 5] = [
    (IMAGES, RECORDS, false),
    (CONTENT, "SELECT namespace, digest FROM blob INDEXED BY blob_digest WHERE digest >= ?1 AND digest < ?2", false),
    (
        LEASES,
        "SELECT namespace, id FROM lease WHERE namespace IN (SELECT name FROM namespace) AND id >= ?1 AND id < ?2",
        true,
    ),
    (
        INGESTS,
        "SELECT namespace, ref FROM ingest WHERE namespace IN (SELECT name FROM namespace) AND ref >= ?1 AND ref < ?2",
        false,
    ),
    (
        CONTAINERS,
        "SELECT namespace, id FROM container WHERE namespace IN (SELECT name FROM namespace) AND id >= ?1 AND id < ?2",
        true,
    ),
];

/// The first column of a query's rows.
pub(super) fn texts(conn: &Connection, sql: &str, values: &[&str]) -> Result<Vec<String>> {
    let mut query = conn.prepare_cached(sql)?;
    let rows = query.query_map(rusqlite::params_from_iter(values), |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Everything that a text may mean.
pub(super) fn meant(conn: &Connection, text: &str) -> Result<HashSet<Node>> {
    let text = text.trim();
    let mut found = HashSet::new();
    if text.is_empty() {
        return Ok(found);
    }
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_digits = hex.len() >= SHORTEST && hex.bytes().all(|b| b.is_ascii_hexdigit());
    let digest = format!("sha256:{}", if is_digits { hex.to_ascii_lowercase() } else { text.to_owned() });
    let long = text.len() >= SHORTEST;
    for (kind, sql, any) in RANGES {
        named(conn, kind, sql, text, any && long, &mut found)?;
        named(conn, kind, sql, &digest, is_digits, &mut found)?;
    }
    if let Ok(reference) = text.parse::<Reference>() {
        named(conn, IMAGES, RECORDS, &reference.to_string(), false, &mut found)?;
    }
    for name in by_digest(text) {
        named(conn, IMAGES, RECORDS, &name, true, &mut found)?;
    }
    let drivers = "SELECT DISTINCT namespace, driver FROM snapshot";
    for (namespace, driver) in pairs(conn, drivers, &[])? {
        for (text, begins) in [(text, long), (&*digest, is_digits)] {
            let end = end(text, begins);
            let keys = texts(
                conn,
                "SELECT name FROM snapshot WHERE namespace = ?1 AND driver = ?2 AND name >= ?3 AND name < ?4",
                &[&namespace, &driver, text, &end],
            )?;
            found.extend(keys.iter().map(|key| Node::new(&namespace, &snapshots(&driver), key)));
        }
    }
    if is_digits {
        let label = format!("\"containerd.io/uncompressed\":\"{digest}");
        let blobs = pairs(conn, "SELECT namespace, digest FROM blob WHERE instr(labels, ?1) > 0", &[&label])?;
        found.extend(blobs.iter().map(|(namespace, digest)| Node::new(namespace, CONTENT, digest)));
    }
    Ok(found)
}

/// What is called so, or begins so.
fn named(conn: &Connection, kind: &str, sql: &str, text: &str, begins: bool, found: &mut HashSet<Node>) -> Result<()> {
    let rows = pairs(conn, sql, &[&text, &end(text, begins)])?;
    found.extend(rows.iter().map(|(namespace, name)| Node::new(namespace, kind, name)));
    Ok(())
}

/// The end of the range of what begins with a text, or is it.
fn end(text: &str, begins: bool) -> String {
    // Nothing lies between a text and the same with the least character behind it.
    format!("{text}{}", if begins { END } else { '\0' })
}

/// `alpine@sha256:0123` as it is, and `docker.io/library/alpine@sha256:0123`.
fn by_digest(text: &str) -> Vec<String> {
    let Some((name, digits)) = text.split_once("@sha256:").filter(|(_, digits)| digits.len() >= SHORTEST) else {
        return Vec::new();
    };
    let whole = RepositoryName::parse(name).map(|name| name.to_string());
    let names = [name.to_owned()].into_iter().chain(whole);
    names.map(|name| format!("{name}@sha256:{}", digits.to_ascii_lowercase())).collect()
}

fn pairs(conn: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<(String, String)>> {
    let mut query = conn.prepare_cached(sql)?;
    let rows = query.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
