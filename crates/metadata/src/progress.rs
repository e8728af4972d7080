//! How far the changes of records were followed by who brings hash references in order, so that a start goes on from there.
//!
//! # Invariants
//! - It is kept in the database whose history it is about: a root that was put back from a copy has the progress of then.
//! - It never names a change that the history beside it does not have.

use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use crate::db::{from_nanos, to_nanos};
use crate::{Result, Store};

/// Names in the table `sequence`.
const CHANGE: &str = "followed";
const RULES: &str = "followed-rules";
const WHOLE: &str = "followed-whole";

/// How far changes were followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The change up to which, in all namespaces, every record is as the rules want it.
    pub change: i64,
    /// A number for the rules.
    pub rules: i64,
    /// When all records were last looked through, for what no change announces.
    pub whole: Timestamp,
}

impl Store {
    /// What was remembered last; `None` if nothing was, or it cannot be about this history.
    pub fn progress(&self) -> Result<Option<Progress>> {
        self.read(|conn| {
            let value = |name: &str| {
                let mut query = conn.prepare_cached("SELECT value FROM sequence WHERE name = ?1")?;
                query.query_row([name], |row| row.get::<_, i64>(0)).optional()
            };
            let (Some(change), Some(rules), Some(whole)) = (value(CHANGE)?, value(RULES)?, value(WHOLE)?) else {
                return Ok(None);
            };
            let newest: i64 = conn.query_row("SELECT coalesce(max(seq), 0) FROM history", [], |row| row.get(0))?;
            Ok((0..=newest).contains(&change).then_some(Progress { change, rules, whole: from_nanos(whole) }))
        })
    }

    /// Remembers how far changes were followed; not further than there are any.
    pub fn put_progress(&self, progress: &Progress) -> Result<()> {
        self.lent_together("remember which changes were followed", |tx| {
            let newest: i64 = tx.query_row("SELECT coalesce(max(seq), 0) FROM history", [], |row| row.get(0))?;
            let mut put = tx.prepare_cached("INSERT OR REPLACE INTO sequence VALUES (?1, ?2)")?;
            put.execute(params![CHANGE, progress.change.min(newest)])?;
            put.execute(params![RULES, progress.rules])?;
            put.execute(params![WHOLE, to_nanos(progress.whole)])?;
            Ok(())
        })
    }
}
