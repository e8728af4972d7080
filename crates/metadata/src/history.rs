//! The append-only history of image records, in the database and in `history.log`.
//!
//! A line of `history.log` is `<crc32 of the rest, 8 hex digits> <JSON>\n`. Lines are appended and synced inside the
//! transaction, before it commits; so the log may end with lines of a transaction that never committed. A line whose
//! `seq` is not above the last one's voids all earlier lines from that `seq` on. A last line that a crash
//! cut short never committed either; whoever writes next removes it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orlop_oci::{Descriptor, Digest};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use crate::changes::Change;
use crate::db::{from_nanos, unreadable};
use crate::transact::Tx;
use crate::{Error, Image, Labels, ObjectKind, Result, Scope, Store};

/// What happened to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryAction {
    /// It was made.
    Create,
    /// It changed.
    Update,
    /// It was deleted.
    Delete,
}

impl HistoryAction {
    /// `create`, `update`, `delete`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }

    pub(crate) fn from_column(row: &Row<'_>, index: usize) -> rusqlite::Result<Self> {
        match row.get_ref(index)?.as_str()? {
            "create" => Ok(Self::Create),
            "update" => Ok(Self::Update),
            "delete" => Ok(Self::Delete),
            _ => Err(rusqlite::Error::InvalidQuery),
        }
    }
}

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Counts up over the whole root.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What.
    pub action: HistoryAction,
    /// Where.
    pub namespace: String,
    /// Which record.
    pub name: String,
    /// The target before.
    pub old: Option<Digest>,
    /// The target after.
    pub new: Option<Digest>,
    /// The host of a registry that what was written came from.
    pub host: Option<String>,
    /// The record's labels after; empty for a deletion.
    pub labels: Labels,
}

/// A record as it was after a change: enough to make it again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordState {
    /// The target's media type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The target's size in bytes.
    #[serde(default)]
    pub size: u64,
    /// The target's annotations.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub annotations: Labels,
    /// The record's labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The host of a registry that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When the record was made, if that was before this change made it again: `undo` brings it back as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}

/// A line of `history.log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// As in [`HistoryEntry`].
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// What.
    pub action: HistoryAction,
    /// Where.
    pub namespace: String,
    /// Which record.
    pub name: String,
    /// The target before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Digest>,
    /// The target after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Digest>,
    /// The record after; empty for a deletion.
    #[serde(default)]
    pub state: RecordState,
}

/// What is in a `history.log`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedLog {
    /// The lines that hold, by `seq`; voided ones left out.
    pub lines: Vec<LogLine>,
    /// Lines that were voided by later ones.
    pub voided: usize,
    /// Numbers of the lines, counted from 1, whose checksum or JSON is wrong.
    pub damaged: Vec<usize>,
    /// Whether a last line without a line break was left out: a crash cut it short before its change was committed.
    pub torn: bool,
}

impl ParsedLog {
    /// The records as the log leaves them, by namespace and name: for each its last line, unless that is a deletion.
    /// Creation times are those of the first line since the record last came to be.
    pub fn records(&self) -> Vec<(String, Image)> {
        let mut records: BTreeMap<(&str, &str), Image> = BTreeMap::new();
        for line in &self.lines {
            let key = (line.namespace.as_str(), line.name.as_str());
            let Some(digest) = &line.new else {
                records.remove(&key);
                continue;
            };
            let created_at = records.get(&key).map_or(line.state.created_at.unwrap_or(line.at), |r| r.created_at);
            let image = Image {
                name: line.name.clone(),
                target: line.state.target(digest.clone()),
                labels: line.state.labels.clone(),
                created_at,
                updated_at: line.at,
            };
            records.insert(key, image);
        }
        records.into_iter().map(|((namespace, _), image)| (namespace.to_owned(), image)).collect()
    }
}

impl RecordState {
    fn target(&self, digest: Digest) -> Descriptor {
        let mut target = Descriptor::new(self.media_type.clone(), digest, self.size);
        target.annotations = self.annotations.clone();
        target
    }
}

/// Reads the content of a `history.log`; any bytes give a result.
pub fn parse_log(bytes: &[u8]) -> ParsedLog {
    let mut parsed = ParsedLog::default();
    for (index, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else {
            parsed.torn = true;
            break;
        };
        let Some(line) = parse_line(line) else {
            parsed.damaged.push(index + 1);
            continue;
        };
        let keep = parsed.lines.partition_point(|l| l.seq < line.seq);
        parsed.voided += parsed.lines.len() - keep;
        parsed.lines.truncate(keep);
        parsed.lines.push(line);
    }
    parsed
}

fn parse_line(line: &[u8]) -> Option<LogLine> {
    let (sum, json) = line.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    let canonical = sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !canonical || u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

/// `history.log`, which is written only while the database's write lock is held.
pub(crate) struct Log {
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(root: &Path) -> Self {
        Self { path: root.join("history.log") }
    }

    /// Whether this is its path.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        self.path == path
    }

    /// Appends lines and syncs them; if that fails, takes back what it can.
    pub(crate) fn append(&self, lines: &[String]) -> Result<()> {
        self.try_append(lines).map_err(|source| Error::Io { operation: "append to", path: self.path.clone(), source })
    }

    fn try_append(&self, lines: &[String]) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&self.path)?;
        let end = end_of_last_line(&mut file)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        let text: String =
            lines.iter().map(|line| format!("{:08x} {line}\n", crc32fast::hash(line.as_bytes()))).collect();
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
        if written.is_err() {
            let _ = file.set_len(end);
        } else if end == 0 {
            self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
        }
        written
    }
}

/// Where the next line starts: after the last line break.
fn end_of_last_line(file: &mut File) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut part = [0; 4096];
    while end > 0 {
        let length = end.min(part.len() as u64);
        file.seek(SeekFrom::Start(end - length))?;
        let part = &mut part[..usize::try_from(length).unwrap_or(0)];
        file.read_exact(part)?;
        if let Some(at) = part.iter().rposition(|&b| b == b'\n') {
            return Ok(end - length + at as u64 + 1);
        }
        end -= length;
    }
    Ok(0)
}

/// A record before or after a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct State<'a> {
    pub(crate) target: &'a Descriptor,
    pub(crate) labels: &'a Labels,
    /// When it was made, if not by the change that is told.
    pub(crate) created: Option<i64>,
}

impl State<'_> {
    fn record(&self) -> RecordState {
        RecordState {
            media_type: self.target.media_type.clone(),
            size: self.target.size,
            annotations: self.target.annotations.clone(),
            labels: self.labels.clone(),
            host: None,
            created_at: self.created.map(from_nanos),
        }
    }
}

/// Who changes a record, and from where what it becomes comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Author<'a> {
    pub(crate) actor: &'a str,
    pub(crate) host: Option<&'a str>,
}

impl<'a> From<&'a Scope> for Author<'a> {
    fn from(scope: &'a Scope) -> Self {
        Self { actor: &scope.actor, host: scope.host.as_deref() }
    }
}

/// Records one change of one record: a row, and a line of the log when the transaction commits.
pub(crate) fn record(
    tx: &Tx<'_>,
    author: Author<'_>,
    namespace: &str,
    name: &str,
    old: Option<State<'_>>,
    new: Option<State<'_>>,
) -> Result<()> {
    let action = match (&old, &new) {
        (None, _) => HistoryAction::Create,
        (Some(_), Some(_)) => HistoryAction::Update,
        (Some(_), None) => HistoryAction::Delete,
    };
    let seq: i64 =
        tx.prepare_cached("SELECT coalesce(max(seq), 0) + 1 FROM history")?.query_row([], |row| row.get(0))?;
    let line = LogLine {
        seq,
        at: from_nanos(tx.now()),
        actor: author.actor.to_owned(),
        action,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        old: old.map(|s| s.target.digest.clone()),
        new: new.map(|s| s.target.digest.clone()),
        state: new.map(|s| RecordState { host: author.host.map(str::to_owned), ..s.record() }).unwrap_or_default(),
    };
    let state = serde_json::to_string(&line.state).expect("strings and numbers are JSON");
    let (old, new) = (line.old.as_ref().map(Digest::as_str), line.new.as_ref().map(Digest::as_str));
    tx.prepare_cached("INSERT INTO history VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?.execute(params![
        seq,
        tx.now(),
        author.actor,
        action.as_str(),
        namespace,
        name,
        old,
        new,
        state
    ])?;
    tx.log_line(serde_json::to_string(&line).expect("strings and numbers are JSON"));
    tx.made(seq);
    tx.tell(namespace, change(action, name, line.state.labels));
    Ok(())
}

fn change(action: HistoryAction, name: &str, labels: Labels) -> Change {
    let name = name.to_owned();
    match action {
        HistoryAction::Create => Change::ImageCreate { name, labels },
        HistoryAction::Update => Change::ImageUpdate { name, labels },
        HistoryAction::Delete => Change::ImageDelete { name },
    }
}

/// The labels that a record had after a change, from the column `detail`.
pub(crate) fn labels_after(row: &Row<'_>, index: usize) -> rusqlite::Result<Labels> {
    let state: Result<RecordState, _> = serde_json::from_str(row.get_ref(index)?.as_str()?);
    state.map(|state| state.labels).map_err(|e| unreadable(index, e))
}

/// A digest column.
pub(crate) fn digest_column(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    let text = row.get_ref(index)?.as_str()?;
    text.parse().map_err(|e: orlop_oci::DigestError| unreadable(index, e))
}

/// A digest column that may be empty.
pub(crate) fn optional_digest(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Digest>> {
    match row.get_ref(index)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => digest_column(row, index).map(Some),
    }
}

/// A row of the history, in the order of its fields.
pub(crate) fn entry(row: &Row<'_>) -> rusqlite::Result<HistoryEntry> {
    let state: Result<RecordState, _> = serde_json::from_str(row.get_ref(8)?.as_str()?);
    let RecordState { host, labels, .. } = state.map_err(|e| unreadable(8, e))?;
    Ok(HistoryEntry {
        seq: row.get(0)?,
        at: from_nanos(row.get(1)?),
        actor: row.get(2)?,
        action: HistoryAction::from_column(row, 3)?,
        namespace: row.get(4)?,
        name: row.get(5)?,
        old: optional_digest(row, 6)?,
        new: optional_digest(row, 7)?,
        host,
        labels,
    })
}

/// Left alone, SQLite goes through the whole history of the namespace, by the index that begins with it.
pub(crate) const SINCE: &str = "SELECT seq, at, actor, action, namespace, name, old, new, detail FROM history
    WHERE seq > ?2 AND +namespace = ?1 ORDER BY seq";

pub(crate) const OF_ALL: &str = "SELECT seq, at, actor, action, namespace, name, old, new, detail FROM history
    WHERE +namespace = ?1 AND ?2 IS NULL ORDER BY seq DESC LIMIT ?3";

pub(crate) const OF_ONE: &str = "SELECT seq, at, actor, action, namespace, name, old, new, detail FROM history
    WHERE namespace = ?1 AND name = ?2 ORDER BY seq DESC LIMIT ?3";

/// Changes of a namespace's records after the one numbered `seq`, oldest first.
pub(crate) fn since(conn: &Connection, namespace: &str, seq: i64) -> Result<Vec<HistoryEntry>> {
    let mut query = conn.prepare_cached(SINCE)?;
    let rows = query.query_map(params![namespace, seq], entry)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Store {
    /// Changes of one record, or of all if `name` is `None`; newest first, at most `limit`.
    pub fn history(&self, namespace: &str, name: Option<&str>, limit: usize) -> Result<Vec<HistoryEntry>> {
        let mut entries = Vec::new();
        self.visit_history(namespace, name, limit, |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    }

    /// Shows `each` what [`Store::history`] gives, without holding it all at once, until it breaks.
    pub fn visit_history(
        &self,
        namespace: &str,
        name: Option<&str>,
        limit: usize,
        mut each: impl FnMut(HistoryEntry) -> ControlFlow<()>,
    ) -> Result<()> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|conn| {
            let mut query = conn.prepare_cached(if name.is_some() { OF_ONE } else { OF_ALL })?;
            let mut rows = query.query(params![namespace, name, limit])?;
            while let Some(row) = rows.next()? {
                if each(entry(row)?).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// What `name` pointed at `back` changes of target ago: 0 is now, 1 before the last change. Being deleted is not a
    /// target, yet after a deletion nothing is now.
    pub fn earlier_target(&self, namespace: &str, name: &str, back: usize) -> Result<Descriptor> {
        self.read(|conn| {
            let missing = || Error::NotFound { kind: ObjectKind::Image, name: format!("{name}@{{{back}}}") };
            let mut query = conn.prepare_cached(
                "SELECT new, detail FROM history WHERE namespace = ?1 AND name = ?2 ORDER BY seq DESC",
            )?;
            let mut rows = query.query(params![namespace, name])?;
            let mut last: Option<Digest> = None;
            let mut at = 0;
            let mut first = true;
            while let Some(row) = rows.next()? {
                let Some(digest) = optional_digest(row, 0)? else {
                    at += usize::from(first);
                    if first && back == 0 {
                        return Err(missing());
                    }
                    first = false;
                    continue;
                };
                if last.as_ref().is_some_and(|l| *l != digest) {
                    at += 1;
                }
                if at == back {
                    return descriptor(digest, row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
                }
                (last, first) = (Some(digest), false);
            }
            Err(missing())
        })
    }

    /// Reads `history.log`, from which the names can be rebuilt when `meta.db` is lost.
    pub fn read_log(&self) -> Result<ParsedLog> {
        read_log_at(self.root())
    }
}

/// Reads a root's `history.log`.
pub(crate) fn read_log_at(root: &Path) -> Result<ParsedLog> {
    let path = root.join("history.log");
    match std::fs::read(&path) {
        Ok(bytes) => Ok(parse_log(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(ParsedLog::default()),
        Err(source) => Err(Error::Io { operation: "read", path, source }),
    }
}

fn descriptor(digest: Digest, detail: &str) -> Result<Descriptor> {
    let state: RecordState = serde_json::from_str(detail)
        .map_err(|e| Error::Invalid { what: "row of the history", reason: format!("{digest}: {e}") })?;
    Ok(state.target(digest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{images, look};

    /// Each of these read all records or the whole history of a namespace for one of them, for want of statistics.
    #[test]
    fn what_follows_changes_reads_what_changed_alone() {
        let conn = Connection::open_in_memory().unwrap();
        conn.execute_batch(include_str!("schema.sql")).unwrap();
        let plan = |sql: &str| {
            let mut query = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let nulls = vec![rusqlite::types::Null; query.parameter_count()];
            let steps = query.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>(3)).unwrap();
            steps.collect::<rusqlite::Result<Vec<_>>>().unwrap()
        };
        for sql in [SINCE, look::CHANGED_SINCE] {
            assert_eq!(plan(sql), ["SEARCH history USING INTEGER PRIMARY KEY (rowid>?)"], "{sql}");
        }
        assert_eq!(plan(OF_ALL), ["SCAN history"], "from its end, as far as is asked");
        assert_eq!(plan(OF_ONE), ["SEARCH history USING INDEX history_name (namespace=? AND name=?)"]);
        let records = images::of_target();
        assert_eq!(plan(&records), ["SEARCH image USING INDEX image_target (namespace=? AND digest=?)"]);
    }
}
