//! Rows of a rebuilt database: history, records, blobs, the trash, and the lease that holds the rest.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use orlop_oci::Digest;
use orlop_snapshot::Driver;
use rusqlite::{Connection, params};

use super::{Held, NeededBlob, files};
use crate::db::{from_nanos, to_nanos};
use crate::edges::{self, CONTENT, Edges};
use crate::images::size_column;
use crate::{Image, Labels, LogLine, Result, gc, images, labels, trash};

/// The fault of what was set aside; its own words are lost.
const FAULT: &str = "damaged";

pub(super) fn history(conn: &Connection, lines: &[LogLine]) -> Result<()> {
    let mut insert = conn.prepare("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for line in lines {
        insert.execute(params![
            line.seq,
            to_nanos(line.at),
            line.actor,
            line.action.as_str(),
            line.namespace,
            line.name,
            line.old.as_ref().map(Digest::as_str),
            line.new.as_ref().map(Digest::as_str),
            serde_json::to_string(&line.state).expect("strings and numbers are JSON")
        ])?;
    }
    Ok(())
}

pub(super) fn images(conn: &Connection, records: &[(String, Image)]) -> Result<()> {
    for (namespace, image) in records {
        ensure_namespace(conn, namespace)?;
        images::write_row(conn, namespace, image)?;
    }
    Ok(())
}

pub(super) fn ensure_namespace(conn: &Connection, name: &str) -> Result<()> {
    conn.prepare_cached("INSERT OR IGNORE INTO namespace VALUES (?1, '{}')")?.execute([name])?;
    Ok(())
}

pub(super) fn namespaces(conn: &Connection) -> Result<Vec<String>> {
    let mut query = conn.prepare("SELECT name FROM namespace ORDER BY name")?;
    let rows = query.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn blob(conn: &Connection, namespace: &str, digest: &Digest, blob: &NeededBlob, at: i64) -> Result<()> {
    ensure_namespace(conn, namespace)?;
    let root = blob.labels.contains_key(edges::ROOT);
    conn.prepare_cached("INSERT INTO blob VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)")?.execute(params![
        namespace,
        digest.as_str(),
        size_column(blob.size),
        labels::to_json(&blob.labels),
        root,
        at
    ])?;
    edges::put(conn, namespace, CONTENT, digest.as_str(), &Edges::of_labels(CONTENT, &blob.labels))
}

pub(super) fn count_blobs(conn: &Connection) -> Result<usize> {
    let count: i64 = conn.query_row("SELECT count(DISTINCT digest) FROM blob", [], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What was known of a damaged blob, as far as the place that it was put says it.
pub(super) fn damage(conn: &Connection, digest: &Digest, entry: &str, now: i64) -> Result<()> {
    let detail = "it was found damaged and set aside before meta.db was rebuilt";
    conn.prepare_cached("INSERT OR REPLACE INTO damage VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
        CONTENT,
        digest.as_str(),
        FAULT,
        detail,
        entry,
        now
    ])?;
    Ok(())
}

/// Removals that can be undone. Returns how many.
pub(super) fn trash(conn: &Connection, root: &Path, left: &mut Vec<String>) -> Result<usize> {
    let mut count = 0;
    for (id, path) in files::directory(&root.join("trash"))? {
        match trash::described(&path) {
            Ok(entry) => {
                trash::insert(conn, &id, &entry)?;
                count += 1;
            }
            Err(why) => left.push(format!("trash/{id}: {why}: it cannot be undone")),
        }
    }
    Ok(count)
}

/// Numbers go on above all that are taken.
pub(super) fn sequences(conn: &Connection, root: &Path, drivers: &[Arc<dyn Driver>]) -> Result<()> {
    let number = |(name, _): (String, _)| name.parse::<i64>().ok();
    let mut last = 0;
    for driver in drivers {
        last = files::directory(driver.root())?.into_iter().filter_map(number).fold(last, i64::max);
        for (_, bin) in files::directory(&root.join("trash"))? {
            let trees = files::directory(&gc::tree_directory(&bin, driver.name()))?;
            last = trees.into_iter().filter_map(number).fold(last, i64::max);
        }
    }
    conn.execute("UPDATE sequence SET value = ?1 WHERE name = 'snapshot'", [last])?;
    let mounts = files::directory(&root.join("mounts"))?.into_iter().filter_map(number).max().unwrap_or(0);
    conn.execute("INSERT INTO sequence VALUES ('mount', ?1)", [mounts])?;
    Ok(())
}

/// Has a lease of each namespace hold what would be garbage, and says what that is.
pub(super) fn hold(conn: &Connection, lease: &str, label: &str, now: i64) -> Result<Vec<Held>> {
    let mut held: BTreeMap<String, Held> = BTreeMap::new();
    for node in gc::unkept(conn, now)? {
        let is_blob = node.kind == CONTENT;
        if !is_blob && gc::driver_of(&node.kind).is_none() {
            continue;
        }
        let namespace = node.namespace.clone();
        let lease = lease.to_owned();
        let held = held.entry(node.namespace.clone()).or_insert(Held { namespace, lease, blobs: 0, snapshots: 0 });
        *if is_blob { &mut held.blobs } else { &mut held.snapshots } += 1;
        conn.prepare_cached("INSERT INTO lease_resource VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            node.namespace,
            held.lease,
            node.kind,
            node.name
        ])?;
    }
    let since = from_nanos(now).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let labels = labels::to_json(&Labels::from([(label.to_owned(), since)]));
    for held in held.values() {
        conn.prepare_cached("INSERT INTO lease VALUES (?1, ?2, ?3, 0, NULL, ?4)")?.execute(params![
            held.namespace,
            held.lease,
            labels,
            now
        ])?;
    }
    // What is kept today may be kept by nothing tomorrow, and nobody suspects it yet.
    conn.execute_batch(
        "INSERT OR IGNORE INTO suspect SELECT namespace, 'content', digest FROM blob;
         INSERT OR IGNORE INTO suspect SELECT namespace, 'snapshots/' || driver, name FROM snapshot;",
    )?;
    Ok(held.into_values().collect())
}
