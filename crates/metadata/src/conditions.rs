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
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::to_nanos;
use crate::edges;
use crate::gc::Node;
use crate::{Labels, Result};

const LABEL: &str = "containerd.io/gc.cond.snapshot";
const VALUE: &str = "containerd.io/gc.cond.value-usedat";

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
        let (since, age) = (i128::from(now) - i128::from(used), i128::from(self.age));
        if self.newer { since < age } else { since > age }
    }
}

/// What the labels of an image or blob state.
pub(crate) fn of_labels(labels: &Labels) -> BTreeSet<Condition> {
    let stated = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(LABEL)?, value)));
    stated.flat_map(|(rest, value)| of_label(rest, value)).collect()
}

fn of_label(rest: &str, value: &str) -> Vec<Condition> {
    let driver = rest.trim_start_matches(['.', '/']).split('/').next().unwrap_or_default();
    let Some((conditions, key)) = value.split_once('|').filter(|_| !driver.is_empty()) else { return Vec::new() };
    let parsed = conditions.split(',').filter_map(one);
    parsed.map(|(newer, age)| Condition { kind: edges::snapshots(driver), name: key.to_owned(), newer, age }).collect()
}

/// `usedat<AGE` or `usedat>AGE`: no other name, no other operator.
fn one(text: &str) -> Option<(bool, i64)> {
    let rest = text.strip_prefix("usedat")?;
    match (rest.strip_prefix('<'), rest.strip_prefix('>')) {
        (Some(age), _) => Some((true, duration(age)?)),
        (_, Some(age)) => Some((false, duration(age)?)),
        _ => None,
    }
}

/// The times in the labels of a snapshot.
pub(crate) fn uses(labels: &Labels) -> BTreeSet<i64> {
    let values = labels.iter().filter(|(key, _)| key.starts_with(VALUE)).map(|(_, value)| value);
    values.filter_map(|value| value.parse::<Timestamp>().ok()).map(to_nanos).collect()
}

/// Nanoseconds of a duration as Go writes it: `24h`, `1h30m`, `-1.5s`. `None` for what Go does not take.
fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0i128;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        sum = sum.checked_add(scaled(number, nanos_of(unit)?)?)?;
        rest = tail;
    }
    i64::try_from(if negative { -sum } else { sum }).ok()
}

/// A decimal number times a unit, what is less than a nanosecond cut off.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // More digits than these say nothing: an hour has fewer than 10^13 nanoseconds.
    let fraction = &fraction[..fraction.len().min(18)];
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let below = parse(fraction)?.checked_mul(unit)? / 10i128.pow(u32::try_from(fraction.len()).ok()?);
    parse(whole)?.checked_mul(unit)?.checked_add(below)
}

fn nanos_of(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        // Two characters look like it: the micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let hour = 3_600_000_000_000;
        for (text, nanos) in [
            ("24h", Some(24 * hour)),
            ("1h30m", Some(hour + hour / 2)),
            ("-1.5h", Some(-hour * 3 / 2)),
            ("+.5h", Some(hour / 2)),
            ("1.s", Some(1_000_000_000)),
            ("1h1h", Some(2 * hour)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1\u{b5}s1\u{3bc}s1us1ns", Some(3001)),
            ("0.3333333333333333333333h", Some(1_199_999_999_999)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("-9223372036854775808ns", Some(i64::MIN)),
            ("9223372036854775808ns", None),
            ("99999999999999999999999999999999999999999999h", None),
            ("", None),
            ("-", None),
            ("3", None),
            (".h", None),
            ("h", None),
            ("1.2.3h", None),
            ("1d", None),
            (" 1h", None),
            ("1h ", None),
        ] {
            assert_eq!(duration(text), nanos, "{text:?}");
        }
    }

    #[test]
    fn a_label_says_which_snapshot_and_when() {
        let key = |newer, age| Condition { kind: "snapshots/overlayfs".into(), name: "a|b".into(), newer, age };
        let second = 1_000_000_000;
        for (label, value, expected) in [
            (".overlayfs", "usedat<1s|a|b", vec![key(true, second)]),
            ("/overlayfs/any/name", "usedat>1s|a|b", vec![key(false, second)]),
            ("./.overlayfs", "usedat<1s,usedat>3s|a|b", vec![key(true, second), key(false, 3 * second)]),
            ("overlayfs", "other<1s,usedat<x,usedat<1s|a|b", vec![key(true, second)]),
            (".overlayfs", "usedat<=1s,usedat==1s,usedat!1s, usedat<1s,usedat |a|b", Vec::new()),
            (".overlayfs", "usedat<1s", Vec::new()),
            (".", "usedat<1s|a", Vec::new()),
        ] {
            assert_eq!(of_label(label, value), expected, "{label} {value}");
        }
    }
}
