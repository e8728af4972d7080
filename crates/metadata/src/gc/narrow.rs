//! Which of the records that are taken for deleted can make a difference to what is garbage.
//!
//! Let r be one of them and s a record of its namespace that stays, both unexpired and with the same target. Both are roots, so
//! the target and all that it leads to is kept as strongly by s as by r. If an edge to that target is the only one that begins
//! at r, and r has no condition, nothing else hangs on r: with s there, what is garbage is the same whether r is there or
//! not. Edges that end at r do not matter, for r itself is garbage in neither case. Each such r can be left out, however many
//! others are: what makes up for it is a record that stays.
//!
//! All this is asked of all records at once, from indexes in the order in which they lie.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::{Connection, params};

use crate::Result;
use crate::edges::IMAGES;

/// Namespace and name of records.
pub(super) type Records = BTreeSet<(String, String)>;

/// From so many records on for each that is taken for deleted, asking for what each of these leads to costs less.
const RECORDS_EACH: i64 = 4;

/// Leaves out records that make no difference, where they are a good part of all.
pub(super) fn narrow(conn: &Connection, now: i64, mut without: Records) -> Result<Records> {
    if !are_many(conn, &without)? {
        return Ok(without);
    }
    let mut names: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for (namespace, name) in &without {
        names.entry(namespace).or_default().insert(name);
    }
    let mut idle = Vec::new();
    for (namespace, deleted) in &names {
        let stating = stating(conn, namespace)?;
        idle.extend(replaced(conn, namespace, now, deleted)?.into_iter().filter(|(_, name)| !stating.contains(name)));
    }
    for record in &idle {
        without.remove(record);
    }
    Ok(without)
}

fn are_many(conn: &Connection, without: &Records) -> Result<bool> {
    let limit = i64::try_from(without.len()).unwrap_or(i64::MAX).saturating_mul(RECORDS_EACH);
    let mut records = conn.prepare_cached("SELECT count(*) FROM (SELECT 1 FROM image LIMIT ?1)")?;
    Ok(records.query_row([limit], |row| row.get::<_, i64>(0))? < limit)
}

/// Records that state more than a target, or that another object keeps itself alive by.
pub(super) fn stating(conn: &Connection, namespace: &str) -> Result<HashSet<String>> {
    let mut query = conn.prepare_cached(
        "SELECT from_name FROM edge WHERE namespace = ?1 AND from_kind = ?2 AND (label = 1 OR back = 1)
         UNION ALL SELECT from_name FROM condition WHERE namespace = ?1 AND from_kind = ?2",
    )?;
    let rows = query.query_map([namespace, IMAGES], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Unexpired records among the deleted whose target an unexpired record that stays has too.
fn replaced(conn: &Connection, namespace: &str, now: i64, deleted: &HashSet<&str>) -> Result<Vec<(String, String)>> {
    let mut expired = conn.prepare_cached("SELECT name FROM image WHERE namespace = ?1 AND expires < ?2")?;
    let expired: HashSet<String> =
        expired.query_map(params![namespace, now], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    // Answered from an index that has just these columns.
    let mut query = conn.prepare_cached("SELECT digest, name FROM image WHERE namespace = ?1 ORDER BY digest")?;
    let mut rows = query.query([namespace])?;
    let (mut found, mut going, mut target, mut stays) = (Vec::new(), Vec::new(), String::new(), false);
    while let Some(row) = rows.next()? {
        let digest = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let name = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        if digest != target {
            if stays {
                found.append(&mut going);
            }
            going.clear();
            (target, stays) = (digest.to_owned(), false);
        }
        match deleted.contains(name) {
            _ if expired.contains(name) => {}
            true => going.push((namespace.to_owned(), name.to_owned())),
            false => stays = true,
        }
    }
    if stays {
        found.append(&mut going);
    }
    Ok(found)
}
