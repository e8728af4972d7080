//! Following a store: whether anything changed, what did, and many small questions answered from one snapshot.
//!
//! Who keeps a picture of a namespace in memory asks [`Store::version`] first. If that moved, [`Store::look`] says which
//! records changed since a [`Mark`] and whether blobs were dropped or relabelled; everything asked within one look is
//! answered from the same snapshot of the database.
//!
//! # Invariants
//! - Whatever process commits, the version moves.
//! - A record changes in no other way than with a line in the history (see [`crate::HistoryEntry`]).
//! - The counter `content` moves in every transaction that deletes blob rows or replaces their labels. What only adds
//!   (a new blob, more labels) leaves it alone: whoever waits for something missing asks again at every version.

use std::collections::BTreeSet;

use jiff::Timestamp;
use orlop_oci::{Digest, DigestTable};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::{from_nanos, unreadable};
use crate::history::digest_column;
use crate::images::size_from_column;
use crate::transact::Tx;
use crate::{Image, Labels, ManifestSummary, Result, Store, images, labels, summary};

/// A point in the life of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The newest line of the history.
    history: i64,
    /// The counter of dropped and relabelled blobs.
    content: i64,
}

impl Mark {
    /// The last change of a record that it knows of.
    pub const fn change(&self) -> i64 {
        self.history
    }

    /// Whether every blob that was there at `earlier` is still there, with at least the labels that it had.
    pub fn kept_content_since(&self, earlier: &Self) -> bool {
        self.content == earlier.content
    }
}

/// A record at a glance: what a picture of many shows of each.
#[derive(Debug, Clone)]
pub struct Glance<'r> {
    /// The name.
    pub name: &'r str,
    /// The target's digest.
    pub digest: Digest,
    /// The target's media type.
    pub media_type: &'r str,
    /// The target's size in bytes.
    pub size: u64,
    /// When the record was made.
    pub created_at: Timestamp,
    /// As the database has them.
    labels: &'r str,
}

impl<'r> Glance<'r> {
    fn new(row: &'r Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get_ref(0)?.as_str()?,
            digest: digest_column(row, 1)?,
            media_type: row.get_ref(2)?.as_str()?,
            size: size_from_column(row.get(3)?),
            created_at: from_nanos(row.get(4)?),
            labels: row.get_ref(5)?.as_str()?,
        })
    }

    /// The value of a label. `key` is one that JSON writes as it is.
    pub fn label(&self, key: &str) -> Option<String> {
        // Most records have labels that nobody asks for: looking at the text first costs little.
        let said = self.labels.contains(key).then(|| labels::from_json(self.labels).ok()).flatten();
        said.and_then(|mut all| all.remove(key))
    }
}

/// One snapshot of the database, as one namespace sees it.
pub struct Look<'c> {
    pub(crate) conn: &'c Connection,
    pub(crate) namespace: &'c str,
}

impl Store {
    /// A number that is another one after any commit, of this process or another. It says nothing else, and means
    /// nothing to another process.
    pub fn version(&self) -> Result<i64> {
        self.data_version()
    }

    /// Answers many questions from one snapshot.
    pub fn look<T>(&self, namespace: &str, ask: impl FnOnce(&Look<'_>) -> Result<T>) -> Result<T> {
        self.read(|conn| ask(&Look { conn, namespace }))
    }
}

/// Left alone, SQLite goes through the whole history of the namespace, by the index that begins with it.
pub(crate) const CHANGED_SINCE: &str = "SELECT name FROM history WHERE seq > ?1 AND +namespace = ?2";

impl Look<'_> {
    /// Where the root is.
    pub fn mark(&self) -> Result<Mark> {
        mark(self.conn)
    }

    /// Shows all records, by name.
    pub fn each_image(&self, mut see: impl FnMut(&Glance<'_>)) -> Result<()> {
        let mut query = self.conn.prepare_cached(
            "SELECT name, digest, media_type, size, created, labels FROM image WHERE namespace = ?1 ORDER BY name",
        )?;
        let mut rows = query.query([self.namespace])?;
        while let Some(row) = rows.next()? {
            see(&Glance::new(row)?);
        }
        Ok(())
    }

    /// The records that changed or were made since a mark, and the names that are gone since.
    pub fn images_since(&self, mark: &Mark) -> Result<(Vec<Image>, Vec<String>)> {
        let mut query = self.conn.prepare_cached(CHANGED_SINCE)?;
        let names = query.query_map(params![mark.history, self.namespace], |row| row.get(0))?;
        let names: BTreeSet<String> = names.collect::<Result<_, _>>()?;
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for name in names {
            match images::get(self.conn, self.namespace, &name)? {
                Some(image) => changed.push(image),
                None => gone.push(name),
            }
        }
        Ok((changed, gone))
    }

    /// What is known of a manifest or index, in whatever namespace it was read.
    pub fn summary(&self, digest: &Digest) -> Result<Option<ManifestSummary>> {
        summary::get(self.conn, digest)
    }

    /// Whether the namespace has a blob.
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        let mut query = self.conn.prepare_cached("SELECT 1 FROM blob WHERE namespace = ?1 AND digest = ?2")?;
        Ok(query.exists(params![self.namespace, digest.as_str()])?)
    }

    /// Every blob that the namespace has: cheaper than asking for most of them.
    pub fn blobs(&self) -> Result<DigestTable> {
        // Answered from an index that has little else.
        let mut query =
            self.conn.prepare_cached("SELECT digest FROM blob INDEXED BY blob_digest WHERE namespace = ?1")?;
        let mut rows = query.query([self.namespace])?;
        let mut table = DigestTable::default();
        while let Some(row) = rows.next()? {
            let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            table.add_text(text).map_err(|e| unreadable(0, e))?;
        }
        Ok(table)
    }

    /// A blob's labels that start with any of `prefixes`; `None` if the namespace does not have it.
    pub fn labels(&self, digest: &Digest, prefixes: &[&str]) -> Result<Option<Labels>> {
        let mut query = self.conn.prepare_cached("SELECT labels FROM blob WHERE namespace = ?1 AND digest = ?2")?;
        let found = query.query_row(params![self.namespace, digest.as_str()], |row| {
            // Most blobs have labels that nobody asks for: looking at the text first costs little.
            let text = row.get_ref(0)?.as_str()?;
            if !prefixes.iter().any(|prefix| text.contains(prefix)) {
                return Ok(Labels::new());
            }
            let mut all = labels::column(row, 0)?;
            all.retain(|key, _| prefixes.iter().any(|prefix| key.starts_with(prefix)));
            Ok(all)
        });
        Ok(found.optional()?)
    }
}

/// Where the root is.
pub(crate) fn mark(conn: &Connection) -> Result<Mark> {
    let mut history = conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM history")?;
    let history = history.query_row([], |row| row.get(0))?;
    let mut content = conn.prepare_cached("SELECT value FROM sequence WHERE name = 'content'")?;
    let content = content.query_row([], |row| row.get(0)).optional()?.unwrap_or(0);
    Ok(Mark { history, content })
}

/// Moves the counter of dropped and relabelled blobs.
pub(crate) fn content_changed(tx: &Tx<'_>) -> Result<()> {
    tx.prepare_cached("INSERT INTO sequence VALUES ('content', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")?
        .execute([])?;
    Ok(())
}
