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

use std::collections::{BTreeSet, HashSet};

use orlop_oci::Digest;
use rusqlite::{Connection, OptionalExtension, params};

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
    /// Whether every blob that was there at `earlier` is still there, with at least the labels that it had.
    pub fn kept_content_since(&self, earlier: &Self) -> bool {
        self.content == earlier.content
    }
}

/// Records that changed.
#[derive(Debug, Clone, PartialEq)]
pub enum ChangedImages {
    /// All there are: there was nothing to compare with.
    All(Vec<Image>),
    /// These changed or were made, and those names are gone.
    Some(Vec<Image>, Vec<String>),
}

/// One snapshot of the database, as one namespace sees it.
pub struct Look<'c> {
    conn: &'c Connection,
    namespace: &'c str,
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

    /// The same for who asks about most of what there is.
    pub fn look_through<T>(&self, namespace: &str, ask: impl FnOnce(&Look<'_>) -> Result<T>) -> Result<T> {
        self.scan(|conn| ask(&Look { conn, namespace }))
    }
}

impl Look<'_> {
    /// Where the root is.
    pub fn mark(&self) -> Result<Mark> {
        let mut history = self.conn.prepare_cached("SELECT coalesce(max(seq), 0) FROM history")?;
        let history = history.query_row([], |row| row.get(0))?;
        let mut content = self.conn.prepare_cached("SELECT value FROM sequence WHERE name = 'content'")?;
        let content = content.query_row([], |row| row.get(0)).optional()?.unwrap_or(0);
        Ok(Mark { history, content })
    }

    /// The records that changed since a mark; without one, all.
    pub fn images_since(&self, mark: Option<&Mark>) -> Result<ChangedImages> {
        let Some(mark) = mark else { return Ok(ChangedImages::All(images::all(self.conn, self.namespace)?)) };
        let mut query = self.conn.prepare_cached("SELECT name FROM history WHERE seq > ?1 AND namespace = ?2")?;
        let names = query.query_map(params![mark.history, self.namespace], |row| row.get(0))?;
        let names: BTreeSet<String> = names.collect::<Result<_, _>>()?;
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for name in names {
            match images::get(self.conn, self.namespace, &name)? {
                Some(image) => changed.push(image),
                None => gone.push(name),
            }
        }
        Ok(ChangedImages::Some(changed, gone))
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
    pub fn blobs(&self) -> Result<HashSet<String>> {
        let mut query = self.conn.prepare_cached("SELECT digest FROM blob WHERE namespace = ?1")?;
        let rows = query.query_map([self.namespace], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
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

/// Moves the counter of dropped and relabelled blobs.
pub(crate) fn content_changed(tx: &Tx<'_>) -> Result<()> {
    tx.prepare_cached("INSERT INTO sequence VALUES ('content', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1")?
        .execute([])?;
    Ok(())
}
