//! Whether the database agrees with itself and with `history.log`.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use crate::db::from_nanos;
use crate::edges::{self, Edges};
use crate::{ParsedLog, Result, Store, labels};

/// Something in `meta.db` or `history.log` that contradicts the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetadataProblem {
    /// SQLite finds the file damaged.
    Damaged {
        /// What SQLite says.
        detail: String,
    },
    /// The edges of an object are not what it states: collection could delete what is needed, or keep what is not.
    Edges {
        /// Namespace of the object.
        namespace: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// A line of `history.log` does not check.
    LogLine {
        /// Its number, counted from 1.
        line: usize,
    },
    /// A change that the database knows is not in `history.log`, or is there otherwise.
    LogMissing {
        /// The change.
        seq: i64,
    },
}

impl Store {
    /// Checks the database and `history.log` against each other; an empty list is good. Reads everything.
    pub fn check_metadata(&self) -> Result<Vec<MetadataProblem>> {
        let (mut problems, known) = self.read(|conn| {
            let mut problems = sqlite_problems(conn)?;
            problems.extend(edge_problems(conn)?);
            Ok((problems, changes(conn)?))
        })?;
        // Read after the database: every change that was committed when the snapshot was taken is in it.
        problems.extend(log_problems(&self.read_log()?, &known));
        Ok(problems)
    }
}

fn sqlite_problems(conn: &Connection) -> Result<Vec<MetadataProblem>> {
    let mut problems = Vec::new();
    let mut query = conn.prepare("PRAGMA integrity_check")?;
    let lines = query.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    problems.extend(lines.into_iter().filter(|l| l != "ok").map(|detail| MetadataProblem::Damaged { detail }));
    let mut query = conn.prepare("PRAGMA foreign_key_check")?;
    let lines = query.query_map([], |row| row.get::<_, Option<i64>>(1))?.collect::<Result<Vec<_>, _>>()?;
    problems.extend(lines.into_iter().map(|row| MetadataProblem::Damaged {
        detail: format!("snapshot {} has a parent that does not exist", row.unwrap_or_default()),
    }));
    Ok(problems)
}

type Object = (String, String, String);

fn edge_problems(conn: &Connection) -> Result<Vec<MetadataProblem>> {
    let mut stated: BTreeMap<Object, Edges> = BTreeMap::new();
    let mut query = conn.prepare(
        "SELECT namespace, 'images', name, labels, 'content', digest FROM image
         UNION ALL SELECT namespace, 'content', digest, labels, NULL, NULL FROM blob
         UNION ALL SELECT namespace, 'ingests', ref, '{}', 'content', expected FROM ingest
         UNION ALL SELECT namespace, 'containers', id, labels, 'snapshots/' || snapshotter,
                   CASE WHEN snapshotter <> '' AND snapshot_key <> '' THEN snapshot_key END FROM container
         UNION ALL SELECT namespace, 'mounts', name, labels, NULL, NULL FROM mount
         UNION ALL SELECT s.namespace, 'snapshots/' || s.driver, s.name, s.labels, 'snapshots/' || s.driver, p.name
                   FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let kind: String = row.get(1)?;
        let mut edges = Edges::of_labels(&kind, &labels::column(row, 3)?);
        if let Some(target) = row.get::<_, Option<String>>(5)? {
            edges = edges.to(&row.get::<_, String>(4)?, &target);
        }
        stated.insert((row.get(0)?, kind, row.get(2)?), edges);
    }
    let mut objects: BTreeSet<Object> = stated.keys().cloned().collect();
    let mut query = conn.prepare(
        "SELECT namespace, from_kind, from_name FROM edge WHERE back = 0
         UNION SELECT namespace, to_kind, to_name FROM edge WHERE back = 1
         UNION SELECT namespace, from_kind, from_name FROM condition
         UNION SELECT namespace, kind, name FROM used",
    )?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    objects.extend(rows.collect::<Result<Vec<_>, _>>()?);
    let mut problems = Vec::new();
    for object in objects {
        let (namespace, kind, name) = &object;
        if edges::stated(conn, namespace, kind, name)? != *stated.entry(object.clone()).or_default() {
            let (namespace, kind, name) = object;
            problems.push(MetadataProblem::Edges { namespace, kind, name });
        }
    }
    Ok(problems)
}

/// Every change by its number: time, namespace, name.
fn changes(conn: &Connection) -> Result<BTreeMap<i64, (jiff::Timestamp, String, String)>> {
    let mut query = conn.prepare("SELECT seq, at, namespace, name FROM history")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, (from_nanos(row.get(1)?), row.get(2)?, row.get(3)?))))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn log_problems(log: &ParsedLog, known: &BTreeMap<i64, (jiff::Timestamp, String, String)>) -> Vec<MetadataProblem> {
    let logged: BTreeMap<i64, _> = log.lines.iter().map(|l| (l.seq, (l.at, &l.namespace, &l.name))).collect();
    let missing: Vec<MetadataProblem> = known
        .iter()
        .filter(|(seq, (at, namespace, name))| logged.get(seq) != Some(&(*at, namespace, name)))
        .map(|(&seq, _)| MetadataProblem::LogMissing { seq })
        .collect();
    // Where all that was committed is there, what is damaged never was: a power cut tore it while it was written.
    let damaged = if missing.is_empty() { &[][..] } else { &log.damaged };
    damaged.iter().map(|&line| MetadataProblem::LogLine { line }).chain(missing).collect()
}
