//! Conditions: labels `containerd.io/gc.cond.snapshot.<driver>` of images and blobs, each an edge to a snapshot that is
//! there only at times.
//!
//! A value is `usedat<AGE|KEY`, or several conditions joined by commas before the `|`, of which one is enough. It is about
//! the times in labels of the snapshot that begin with `containerd.io/gc.cond.value-usedat`: `usedat<AGE` holds while less
//! than AGE has passed since one of them, `usedat>AGE` once more than AGE has. What does not parse says nothing.
//!
//! The rows of `condition` are what images and blobs state, those of `used` what snapshots state; which edges there are
//! follows from both and the time, and is written nowhere. An edge may go although nobody writes anything. So each
//! collection remembers when it was (`sequence`), and the next one takes for suspects all snapshots for which a condition
//! has turned since ([`turned`]), in whichever direction the clock went.

use std::collections::BTreeSet;

use jiff::Timestamp;
use orlop_oci::condition::{self, Conditional};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::to_nanos;
use crate::edges;
use crate::gc::Node;
use crate::{Labels, Result};

/// The time of the last collection, among the sequences.
const LAST: &str = "condition";

/// The oldest of `conditions`' ages, then always the next one: few, however many conditions there are.
const AGES: &str = "WITH RECURSIVE ages (age) AS (
     SELECT min(age) FROM condition
     UNION ALL SELECT (SELECT min(c.age) FROM condition c WHERE c.age > ages.age) FROM ages WHERE age IS NOT NULL)";

/// That `c` holds at `?4` for a use `u`.
const HOLDS: &str = "(CASE c.newer WHEN 1 THEN ?4 - u.at < c.age ELSE ?4 - u.at > c.age END)";

/// That some condition of this age is about the use `u`.
const CONDITIONED: &str = "EXISTS (SELECT 1 FROM condition c WHERE c.namespace = u.namespace AND c.to_kind = u.kind
                                   AND c.to_name = u.name AND c.age = ages.age)";

/// One condition, seen from the object that states it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Condition {
    /// Kind of the snapshot.
    pub(crate) kind: String,
    /// Its key.
    pub(crate) name: String,
    /// Whether it holds while less than `age` has passed since the use, or once more has.
    newer: bool,
    /// Nanoseconds.
    age: i64,
}

impl Condition {
    /// Whether it holds at `now` for a snapshot that was used at `used`.
    pub(crate) fn holds(&self, used: i64, now: i64) -> bool {
        condition::Condition { newer: self.newer, age: self.age }.holds(used, now)
    }
}

/// What the labels of an image or blob state.
pub(crate) fn of_labels(labels: &Labels) -> BTreeSet<Condition> {
    labels.iter().filter_map(|(key, value)| Conditional::parse(key, value)).flat_map(stated_by).collect()
}

fn stated_by(label: Conditional<'_>) -> Vec<Condition> {
    let kind = edges::snapshots(label.snapshotter);
    let one = |c: condition::Condition| Condition {
        kind: kind.clone(),
        name: label.key.to_owned(),
        newer: c.newer,
        age: c.age,
    };
    label.conditions.into_iter().map(one).collect()
}

/// The times in the labels of a snapshot.
pub(crate) fn uses(labels: &Labels) -> BTreeSet<i64> {
    let values = labels.iter().filter(|(key, _)| key.starts_with(condition::USED_AT)).map(|(_, value)| value);
    values.filter_map(|value| value.parse::<Timestamp>().ok()).map(to_nanos).collect()
}

/// Makes what an object states as conditions equal `new`, and suspects the snapshots of those that go.
pub(crate) fn put(tx: &Connection, object: [&str; 3], new: &BTreeSet<Condition>) -> Result<()> {
    let [namespace, kind, name] = object;
    let old = stated(tx, object)?;
    for gone in old.difference(new) {
        tx.prepare_cached(
            "DELETE FROM condition WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3 AND to_kind = ?4
             AND to_name = ?5 AND newer = ?6 AND age = ?7",
        )?
        .execute(params![namespace, kind, name, gone.kind, gone.name, gone.newer, gone.age])?;
        edges::suspect(tx, namespace, &gone.kind, &gone.name)?;
    }
    for added in new.difference(&old) {
        tx.prepare_cached("INSERT INTO condition VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
            namespace,
            kind,
            name,
            added.kind,
            added.name,
            added.newer,
            added.age
        ])?;
    }
    Ok(())
}

/// Makes the times that a snapshot states equal `new`, and suspects it if one of them goes.
pub(crate) fn put_uses(tx: &Connection, object: [&str; 3], new: &BTreeSet<i64>) -> Result<()> {
    let [namespace, kind, name] = object;
    let old = stated_uses(tx, object)?;
    if !old.is_subset(new) {
        edges::suspect(tx, namespace, kind, name)?;
    }
    if old != *new {
        tx.prepare_cached("DELETE FROM used WHERE namespace = ?1 AND kind = ?2 AND name = ?3")?
            .execute([namespace, kind, name])?;
    }
    for at in new.iter().filter(|_| old != *new) {
        tx.prepare_cached("INSERT INTO used VALUES (?1, ?2, ?3, ?4)")?.execute(params![namespace, kind, name, at])?;
    }
    Ok(())
}

/// The conditions that the table has for an object.
pub(crate) fn stated(conn: &Connection, [namespace, kind, name]: [&str; 3]) -> Result<BTreeSet<Condition>> {
    let mut query = conn.prepare_cached(
        "SELECT to_kind, to_name, newer, age FROM condition WHERE namespace = ?1 AND from_kind = ?2 AND from_name = ?3",
    )?;
    let rows = query.query_map([namespace, kind, name], |row| {
        Ok(Condition { kind: row.get(0)?, name: row.get(1)?, newer: row.get(2)?, age: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The times that the table has for a snapshot.
pub(crate) fn stated_uses(conn: &Connection, [namespace, kind, name]: [&str; 3]) -> Result<BTreeSet<i64>> {
    let mut query = conn.prepare_cached("SELECT at FROM used WHERE namespace = ?1 AND kind = ?2 AND name = ?3")?;
    let rows = query.query_map([namespace, kind, name], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The snapshots that an object keeps at `now`.
pub(crate) fn kept_by(conn: &Connection, from: &Node, now: i64) -> Result<Vec<Node>> {
    across(conn, from, now, ["from", "to"])
}

/// What keeps a snapshot at `now`.
pub(crate) fn keepers(conn: &Connection, to: &Node, now: i64) -> Result<Vec<Node>> {
    across(conn, to, now, ["to", "from"])
}

/// The far ends of the conditions that hold, seen from an object at the near end.
fn across(conn: &Connection, object: &Node, now: i64, [near, far]: [&str; 2]) -> Result<Vec<Node>> {
    let mut query = conn.prepare_cached(&format!(
        "SELECT DISTINCT c.namespace, c.{far}_kind, c.{far}_name FROM condition c
         JOIN used u ON u.namespace = c.namespace AND u.kind = c.to_kind AND u.name = c.to_name
         WHERE c.namespace = ?1 AND c.{near}_kind = ?2 AND c.{near}_name = ?3 AND {HOLDS}"
    ))?;
    let rows = query.query_map(params![object.namespace, object.kind, object.name, now], node)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The snapshots for which some condition turned between the last collection and `now`.
pub(crate) fn turned(conn: &Connection, now: i64) -> Result<Vec<Node>> {
    let last = last(conn)?.unwrap_or(i64::MIN);
    let mut query = conn.prepare_cached(&format!(
        "{AGES} SELECT DISTINCT u.namespace, u.kind, u.name FROM ages JOIN used u
         ON u.at > ?1 - ages.age AND u.at <= ?2 - ages.age OR u.at >= ?2 - ages.age AND u.at < ?1 - ages.age
         WHERE {CONDITIONED}"
    ))?;
    let rows = query.query_map([last, now], node)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// When the first condition turns after the last collection; it may be past already.
pub(crate) fn next(conn: &Connection) -> Result<Option<i64>> {
    let mut query = conn.prepare_cached(&format!(
        "{AGES} SELECT CAST(min(ages.age + (SELECT u.at FROM used u WHERE u.at > ?1 - ages.age AND {CONDITIONED}
                                            ORDER BY u.at LIMIT 1)) AS INTEGER) FROM ages"
    ))?;
    let last = last(conn)?.unwrap_or(i64::MIN);
    Ok(query.query_row([last], |row| row.get(0))?)
}

/// Writes what labels of images, blobs and snapshots state, into tables that are empty.
pub(crate) fn fill(conn: &Connection) -> Result<()> {
    edges::labelled(conn, "containerd.io/gc.cond.", |near, stated| {
        let object = [near.namespace.as_str(), &near.kind, &near.name];
        put(conn, object, &stated.conditions)?;
        put_uses(conn, object, &stated.uses)
    })
}

/// Remembers that everything that was garbage at `now` is gone.
pub(crate) fn collected(tx: &Connection, now: i64) -> Result<()> {
    tx.prepare_cached("INSERT OR REPLACE INTO sequence VALUES (?1, ?2)")?.execute(params![LAST, now])?;
    Ok(())
}

fn last(conn: &Connection) -> Result<Option<i64>> {
    let mut query = conn.prepare_cached("SELECT value FROM sequence WHERE name = ?1")?;
    Ok(query.query_row([LAST], |row| row.get(0)).optional()?)
}

fn node(row: &Row<'_>) -> rusqlite::Result<Node> {
    Ok(Node { namespace: row.get(0)?, kind: row.get(1)?, name: row.get(2)? })
}
