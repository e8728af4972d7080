//! Snapshots as their directories describe them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use orlop_snapshot::{Driver, Meta, SnapshotId, Usage};
use rusqlite::{Connection, params};

use super::rows::ensure_namespace;
use crate::edges::{self, Edges};
use crate::images::size_column;
use crate::{Result, labels, validate_namespace};

/// A snapshot whose directory says what it is.
#[derive(Debug)]
pub(super) struct Found {
    driver: &'static str,
    id: u64,
    meta: Meta,
    /// Of a committed one.
    usage: Option<Usage>,
    /// When it was described.
    at: i64,
}

/// Snapshots that can be used, parents before what stands on them. What cannot be used is added to `left`.
pub(super) fn find(drivers: &[Arc<dyn Driver>], left: &mut Vec<String>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for driver in drivers {
        let mut described = Vec::new();
        for (id, meta) in driver.list()? {
            match described_by(driver.as_ref(), id, meta) {
                Ok(snapshot) => described.push(snapshot),
                Err(why) => left.push(format!("snapshots/{}/{}: {why}", driver.name(), id.0)),
            }
        }
        found.extend(connected(only_one_of_each(described, left), left));
    }
    Ok(found)
}

fn described_by(driver: &dyn Driver, id: SnapshotId, meta: Option<Meta>) -> Result<Found, String> {
    let meta = meta.ok_or("its meta file is missing or cannot be read: what it is is not known")?;
    if validate_namespace(&meta.namespace).is_err() || meta.key.is_empty() {
        return Err(format!("its meta file names {:?} in namespace {:?}", meta.key, meta.namespace));
    }
    if !["active", "view", "committed"].contains(&meta.kind.as_str()) {
        return Err(format!("its meta file calls it {:?}; expected active, view or committed", meta.kind));
    }
    let path = driver.root().join(id.0.to_string()).join("meta");
    let about = std::fs::metadata(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let usage = driver.usage(id).map_err(|error| error.to_string())?;
    Ok(Found {
        driver: driver.name(),
        id: id.0,
        usage: (meta.kind == "committed").then_some(usage),
        meta,
        at: about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec()),
    })
}

/// Of several with one key the one that others stand on, or the oldest: the others were too late to be committed. What
/// stands on those has the same below it in this one.
fn only_one_of_each(mut all: Vec<Found>, left: &mut Vec<String>) -> Vec<Found> {
    let parents: HashSet<u64> = all.iter().filter_map(|found| found.meta.parent).collect();
    all.sort_by_key(|f| (f.meta.kind != "committed", !parents.contains(&f.id), f.id));
    let mut first: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut instead: HashMap<u64, u64> = HashMap::new();
    let mut kept = Vec::new();
    for found in all {
        let key = (found.meta.namespace.clone(), found.meta.key.clone());
        match first.get(&key) {
            Some(&of) => {
                left.push(format!("snapshots/{}/{}: number {of} has the same key", found.driver, found.id));
                instead.insert(found.id, of);
            }
            None => {
                first.insert(key, found.id);
                kept.push(found);
            }
        }
    }
    for found in &mut kept {
        found.meta.parent = found.meta.parent.map(|parent| *instead.get(&parent).unwrap_or(&parent));
    }
    kept
}

/// Those that stand on committed ones down to the bottom, from there upwards.
fn connected(all: Vec<Found>, left: &mut Vec<String>) -> Vec<Found> {
    let mut done: HashSet<u64> = HashSet::new();
    let (mut waiting, mut ordered) = (all, Vec::new());
    loop {
        let stands = |found: &Found| found.meta.parent.is_none_or(|parent| done.contains(&parent));
        let (ready, rest): (Vec<_>, Vec<_>) = waiting.into_iter().partition(stands);
        waiting = rest;
        if ready.is_empty() {
            break;
        }
        done.extend(ready.iter().filter(|found| found.meta.kind == "committed").map(|found| found.id));
        ordered.extend(ready);
    }
    left.extend(waiting.iter().map(|found| {
        let parent = found.meta.parent.unwrap_or_default();
        format!("snapshots/{}/{}: number {parent}, which it stands on, is not there", found.driver, found.id)
    }));
    ordered
}

/// Writes the rows.
pub(super) fn put(conn: &Connection, all: &[Found]) -> Result<()> {
    let keys: HashMap<(&str, u64), &str> = all.iter().map(|f| ((f.driver, f.id), f.meta.key.as_str())).collect();
    for found in all {
        let meta = &found.meta;
        ensure_namespace(conn, &meta.namespace)?;
        conn.prepare_cached(
            "INSERT INTO snapshot (id, namespace, driver, name, parent, kind, labels, root, bytes, inodes, created, updated)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11)",
        )?
        .execute(params![
            size_column(found.id),
            meta.namespace,
            found.driver,
            meta.key,
            meta.parent.map(size_column),
            meta.kind,
            labels::to_json(&meta.labels),
            meta.labels.contains_key(edges::ROOT),
            found.usage.map(|usage| size_column(usage.bytes)),
            found.usage.map(|usage| size_column(usage.inodes)),
            found.at
        ])?;
        let kind = edges::snapshots(found.driver);
        let mut stated = Edges::of_labels(&kind, &meta.labels);
        if let Some(name) = meta.parent.and_then(|parent| keys.get(&(found.driver, parent))) {
            stated = stated.to(&kind, name);
        }
        edges::put(conn, &meta.namespace, &kind, &meta.key, &stated)?;
    }
    Ok(())
}
