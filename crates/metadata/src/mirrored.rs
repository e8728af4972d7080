//! What a mirror of other registries remembers beside records: what their tags meant last, and when each of its records was last
//! asked for.
//!
//! Two tables, which are made when a mirror is first opened, and which older programs pass over:
//!
//! - `mirrored_tag`: the target that a registry last said a tag has. It is no record: what a node's own names mean does not change
//!   because somebody asked a mirror.
//! - `mirrored_use`: the last use of a record, by its name.
//!
//! # Invariants
//! - Neither table keeps bytes. Both may be lost: then tags are asked for again, and uses count from the record's last change.

use std::collections::BTreeMap;

use jiff::Timestamp;
use orlop_oci::{Descriptor, Digest};
use rusqlite::{OptionalExtension, params};

use crate::db::{from_nanos, to_nanos};
use crate::edges::CONTENT;
use crate::history::digest_column;
use crate::images::{size_column, size_from_column};
use crate::{Result, Store};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS mirrored_tag (
  namespace  TEXT NOT NULL,
  repository TEXT NOT NULL,              -- HOST/path
  tag        TEXT NOT NULL,
  media_type TEXT NOT NULL,
  digest     TEXT NOT NULL,
  size       INTEGER NOT NULL,
  PRIMARY KEY (namespace, repository, tag)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mirrored_use (
  namespace TEXT NOT NULL,
  name      TEXT NOT NULL,               -- of a record
  used      INTEGER NOT NULL,
  PRIMARY KEY (namespace, name)
) WITHOUT ROWID;";

/// What a mirror remembers in one namespace. Cheap to clone; every method blocks.
#[derive(Clone)]
pub struct Mirrored {
    store: Store,
    namespace: String,
}

impl Store {
    /// What a mirror remembers in a namespace; makes its tables where there are none.
    pub fn mirrored(&self, namespace: &str) -> Result<Mirrored> {
        self.bring("make the tables of a mirror", |tx| Ok(tx.execute_batch(TABLES)?))?;
        Ok(Mirrored { store: self.clone(), namespace: namespace.to_owned() })
    }
}

impl Mirrored {
    /// What a tag meant last.
    pub fn tag(&self, repository: &str, tag: &str) -> Result<Option<Descriptor>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT media_type, digest, size FROM mirrored_tag WHERE namespace = ?1 AND repository = ?2 AND tag = ?3",
            )?;
            let found = query.query_row(params![self.namespace, repository, tag], |row| {
                Ok(Descriptor::new(row.get::<_, String>(0)?, digest_column(row, 1)?, size_from_column(row.get(2)?)))
            });
            Ok(found.optional()?)
        })
    }

    /// Remembers what a tag means.
    pub fn put_tag(&self, repository: &str, tag: &str, target: &Descriptor) -> Result<()> {
        self.store.bring_together("note mirrored tag", |tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO mirrored_tag VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
                params![
                    self.namespace,
                    repository,
                    tag,
                    target.media_type,
                    target.digest.as_str(),
                    size_column(target.size)
                ],
            )?;
            Ok(())
        })
    }

    /// Forgets a tag.
    pub fn forget_tag(&self, repository: &str, tag: &str) -> Result<()> {
        self.store.lent_together("forget mirrored tag", |tx| {
            tx.prepare_cached("DELETE FROM mirrored_tag WHERE namespace = ?1 AND repository = ?2 AND tag = ?3")?
                .execute(params![self.namespace, repository, tag])?;
            Ok(())
        })
    }

    /// Remembers that a record was asked for now.
    pub fn put_use(&self, name: &str) -> Result<()> {
        self.store.bring_together("note use of a mirror", |tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO mirrored_use VALUES (?1, ?2, ?3)")?.execute(params![
                self.namespace,
                name,
                tx.now()
            ])?;
            Ok(())
        })
    }

    /// When records were last asked for, by name.
    pub fn uses(&self) -> Result<BTreeMap<String, Timestamp>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached("SELECT name, used FROM mirrored_use WHERE namespace = ?1")?;
            let rows = query.query_map([&self.namespace], |row| Ok((row.get(0)?, from_nanos(row.get(1)?))))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Drops what is said of records that are gone, if it was last said before `limit`, and of tags whose target no record of their
    /// repository is called after any more.
    pub fn sweep(&self, limit: Timestamp) -> Result<usize> {
        self.store.write("sweep mirror", |tx| {
            let uses = tx
                .prepare_cached(
                    "DELETE FROM mirrored_use WHERE namespace = ?1 AND used < ?2
                     AND NOT EXISTS (SELECT 1 FROM image WHERE namespace = ?1 AND name = mirrored_use.name)",
                )?
                .execute(params![self.namespace, to_nanos(limit)])?;
            let tags = tx
                .prepare_cached(
                    "DELETE FROM mirrored_tag WHERE namespace = ?1
                     AND NOT EXISTS (SELECT 1 FROM image INDEXED BY image_target WHERE namespace = ?1
                         AND digest = mirrored_tag.digest
                         AND substr(name, 1, length(mirrored_tag.repository)) = mirrored_tag.repository)",
                )?
                .execute([&self.namespace])?;
            Ok(uses + tags)
        })
    }

    /// The documents that name a blob as their own.
    pub fn above(&self, digest: &Digest) -> Result<Vec<Digest>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT from_name FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3 AND from_kind = ?2",
            )?;
            let rows =
                query.query_map(params![self.namespace, CONTENT, digest.as_str()], |row| digest_column(row, 0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}
