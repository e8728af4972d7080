//! The repositories of the node's own registry: which records they are, and the little that no record says.
//!
//! A repository is called `HOST/path`. Its tags are the records `HOST/path:tag`, its manifests by digest the records
//! `HOST/path@digest`, and what these lead to. Beside them two tables, which are made when a registry is first served, and
//! which older programs pass over:
//!
//! - `repository_blob`: what was uploaded to a repository or mounted into it, for a while. A manifest that has it comes next;
//!   from then on the record says it.
//! - `repository_manifest`: what a manifest says of itself, and its subject. Manifests are found by their subject here alone.
//!
//! # Invariants
//! - Neither table keeps bytes: records and leases do. Both may be lost without losing anything that was pushed; a manifest
//!   without a row is read again by whoever finds it.
//! - A row opens its own repository only, and only until its time is up.

use std::collections::BTreeSet;

use jiff::Timestamp;
use orlop_oci::Digest;
use rusqlite::{Connection, OptionalExtension, params};

use crate::db::{from_nanos, to_nanos};
use crate::edges::{self, CONTENT};
use crate::history::digest_column;
use crate::{Result, Store};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS repository_blob (
  namespace  TEXT NOT NULL,
  repository TEXT NOT NULL,              -- HOST/path
  digest     TEXT NOT NULL,
  expires    INTEGER NOT NULL,
  PRIMARY KEY (namespace, repository, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS repository_blob_digest ON repository_blob (namespace, digest);
CREATE TABLE IF NOT EXISTS repository_manifest (
  namespace  TEXT NOT NULL,
  repository TEXT NOT NULL,
  digest     TEXT NOT NULL,
  subject    TEXT,                       -- the manifest that it is about
  body       TEXT NOT NULL,              -- JSON, the registry's
  expires    INTEGER,                    -- NULL: as long as a record leads to it
  PRIMARY KEY (namespace, repository, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS repository_subject ON repository_manifest (namespace, repository, subject)
  WHERE subject IS NOT NULL;
CREATE INDEX IF NOT EXISTS repository_manifest_expires ON repository_manifest (expires) WHERE expires IS NOT NULL;";

/// The repositories in one namespace. Cheap to clone; every method blocks.
#[derive(Clone)]
pub struct Repositories {
    store: Store,
    namespace: String,
}

/// What a repository says of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRow {
    /// What the registry wrote.
    pub body: String,
    /// Until when it counts without a record; none: it does not.
    pub until: Option<Timestamp>,
}

impl Store {
    /// The repositories of a namespace; makes their tables where there are none.
    pub fn repositories(&self, namespace: &str) -> Result<Repositories> {
        self.bring("make the tables of repositories", |tx| Ok(tx.execute_batch(TABLES)?))?;
        Ok(Repositories { store: self.clone(), namespace: namespace.to_owned() })
    }
}

impl Repositories {
    /// Says that a repository has a blob, until a time.
    pub fn link(&self, repository: &str, digest: &Digest, until: Timestamp) -> Result<()> {
        self.store.bring_together("link blob", |tx| {
            tx.prepare_cached(
                "INSERT INTO repository_blob VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET expires = max(expires, excluded.expires)",
            )?
            .execute(params![self.namespace, repository, digest.as_str(), to_nanos(until)])?;
            Ok(())
        })
    }

    /// Lets go of what a push to a repository has brought and a record keeps now: the leases whose names begin with `leases`
    /// hold these blobs no more, but for those that another repository has for a while, and those that `is_counted_on` says
    /// somebody counts on. That is asked when no lease can change any more.
    pub fn settle<'a>(
        &self,
        repository: &str,
        digests: impl IntoIterator<Item = &'a Digest>,
        leases: &str,
        is_counted_on: impl Fn(&Digest) -> bool,
    ) -> Result<()> {
        let now = self.store.now();
        self.store.lent_together("settle push", |tx| {
            for digest in digests.into_iter().filter(|digest| !is_counted_on(digest)) {
                let gone = tx
                    .prepare_cached(
                        "DELETE FROM lease_resource WHERE namespace = ?1 AND kind = ?2 AND name = ?3
                         AND substr(lease, 1, length(?4)) = ?4
                         AND NOT EXISTS (SELECT 1 FROM repository_blob AS other WHERE other.namespace = ?1
                             AND other.digest = ?3 AND other.repository <> ?5 AND other.expires > ?6)
                         AND NOT EXISTS (SELECT 1 FROM repository_manifest AS other WHERE other.namespace = ?1
                             AND other.digest = ?3 AND other.repository <> ?5 AND other.expires > ?6)",
                    )?
                    .execute(params![self.namespace, CONTENT, digest.as_str(), leases, repository, now])?;
                if gone > 0 {
                    edges::suspect(tx, &self.namespace, CONTENT, digest.as_str())?;
                }
            }
            Ok(())
        })
    }

    /// Says that it has it no more. Returns whether it was said that it had.
    pub fn unlink(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let now = self.store.now();
        self.store.lent_together("unlink blob", |tx| {
            let is_linked = linked(tx, [&self.namespace, repository], digest, now)?;
            tx.prepare_cached("DELETE FROM repository_blob WHERE namespace = ?1 AND repository = ?2 AND digest = ?3")?
                .execute(params![self.namespace, repository, digest.as_str()])?;
            Ok(is_linked)
        })
    }

    /// Whether it was said that a repository has a blob.
    pub fn is_linked(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let now = self.store.now();
        self.store.read(|conn| linked(conn, [&self.namespace, repository], digest, now))
    }

    /// The name of a record of the repository that points at this blob, or at something that has it. Costs what leads to the
    /// blob, whosever it is.
    pub fn leading_to(&self, repository: &str, digest: &Digest) -> Result<Option<String>> {
        self.store.read(|conn| leading_to(conn, &self.namespace, repository, digest))
    }

    /// Notes what a manifest says. `until`: without a record it counts until then.
    pub fn put_manifest(
        &self,
        repository: &str,
        digest: &Digest,
        subject: Option<&Digest>,
        row: &ManifestRow,
    ) -> Result<()> {
        self.store.bring_together("note manifest", |tx| {
            tx.prepare_cached("INSERT OR REPLACE INTO repository_manifest VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
                params![
                    self.namespace,
                    repository,
                    digest.as_str(),
                    subject.map(Digest::as_str),
                    row.body,
                    row.until.map(to_nanos)
                ],
            )?;
            Ok(())
        })
    }

    /// What was noted of a manifest, whether or not the repository still has it.
    pub fn manifest(&self, repository: &str, digest: &Digest) -> Result<Option<ManifestRow>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT body, expires FROM repository_manifest WHERE namespace = ?1 AND repository = ?2 AND digest = ?3",
            )?;
            let row = query.query_row(params![self.namespace, repository, digest.as_str()], |row| {
                Ok(ManifestRow { body: row.get(0)?, until: row.get::<_, Option<i64>>(1)?.map(from_nanos) })
            });
            Ok(row.optional()?)
        })
    }

    /// Forgets what was noted of a manifest. Returns whether anything was.
    pub fn forget_manifest(&self, repository: &str, digest: &Digest) -> Result<bool> {
        self.store.lent_together("forget manifest", |tx| {
            let gone = tx
                .prepare_cached(
                    "DELETE FROM repository_manifest WHERE namespace = ?1 AND repository = ?2 AND digest = ?3",
                )?
                .execute(params![self.namespace, repository, digest.as_str()])?;
            Ok(gone > 0)
        })
    }

    /// What was noted of the manifests that are about another one, by digest; of those that the repository has.
    pub fn referrers(&self, repository: &str, subject: &Digest) -> Result<Vec<String>> {
        let now = self.store.now();
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT body, digest, expires FROM repository_manifest INDEXED BY repository_subject
                 WHERE namespace = ?1 AND repository = ?2 AND subject = ?3 ORDER BY digest",
            )?;
            let mut rows = query.query(params![self.namespace, repository, subject.as_str()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let digest = digest_column(row, 1)?;
                let counts = row.get::<_, Option<i64>>(2)?.is_some_and(|until| until > now);
                if counts || leading_to(conn, &self.namespace, repository, &digest)?.is_some() {
                    found.push(row.get(0)?);
                }
            }
            Ok(found)
        })
    }

    /// Records of a repository that nothing was noted of: another program made them. Name and target.
    pub fn unnoted(&self, repository: &str) -> Result<Vec<(String, Digest)>> {
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT name, digest FROM image WHERE namespace = ?1
                 AND (name > ?2 || ':' AND name < ?2 || ';' OR name > ?2 || '@' AND name < ?2 || 'A')
                 AND NOT EXISTS (SELECT 1 FROM repository_manifest AS noted WHERE noted.namespace = image.namespace
                     AND noted.repository = ?2 AND noted.digest = image.digest)",
            )?;
            let rows =
                query.query_map([&self.namespace, repository], |row| Ok((row.get(0)?, digest_column(row, 1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// At most `limit` tags of a repository after `after`, in the order of their bytes.
    pub fn tags(&self, repository: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>> {
        let start = format!("{repository}:{}", after.unwrap_or_default());
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT substr(name, length(?2) + 2) FROM image
                 WHERE namespace = ?1 AND name > ?3 AND name < ?2 || ';' ORDER BY name LIMIT ?4",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = query.query_map(params![self.namespace, repository, start, limit], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The tags of a repository that point at a manifest.
    pub fn tags_of(&self, repository: &str, digest: &Digest) -> Result<Vec<String>> {
        let names = self.store.read(|conn| names_of(conn, &self.namespace, digest.as_str()))?;
        let tag = |name: &String| name.strip_prefix(repository)?.strip_prefix(':').map(str::to_owned);
        Ok(names.iter().filter_map(tag).collect())
    }

    /// Whether there is anything of a repository.
    pub fn exists(&self, repository: &str) -> Result<bool> {
        let now = self.store.now();
        self.store.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM image WHERE namespace = ?1 AND name > ?2 || ':' AND name < ?2 || ';')
                     OR EXISTS (SELECT 1 FROM image WHERE namespace = ?1 AND name > ?2 || '@' AND name < ?2 || 'A')
                     OR EXISTS (SELECT 1 FROM repository_blob WHERE namespace = ?1 AND repository = ?2 AND expires > ?3)
                     OR EXISTS (SELECT 1 FROM repository_manifest WHERE namespace = ?1 AND repository = ?2 AND expires > ?3)",
            )?;
            Ok(query.query_row(params![self.namespace, repository, now], |row| row.get(0))?)
        })
    }

    /// The names of all repositories that begin with `host` and a slash, without these; in the order of their bytes.
    pub fn all(&self, host: &str) -> Result<BTreeSet<String>> {
        let now = self.store.now();
        self.store.read(|conn| {
            let mut found = BTreeSet::new();
            let mut query = conn.prepare_cached(
                "SELECT name FROM image WHERE namespace = ?1 AND name > ?2 || '/' AND name < ?2 || '0'",
            )?;
            let mut rows = query.query([&self.namespace, host])?;
            while let Some(row) = rows.next()? {
                let name = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                // A record's name may be any text.
                if let Some(path) = path_of(&name[host.len() + 1..])
                    && !found.contains(path)
                {
                    found.insert(path.to_owned());
                }
            }
            let mut query = conn.prepare_cached(
                "SELECT DISTINCT repository FROM repository_blob
                 WHERE namespace = ?1 AND repository > ?2 || '/' AND repository < ?2 || '0' AND expires > ?3
                 UNION SELECT DISTINCT repository FROM repository_manifest
                 WHERE namespace = ?1 AND repository > ?2 || '/' AND repository < ?2 || '0' AND expires > ?3",
            )?;
            let mut rows = query.query(params![self.namespace, host, now])?;
            while let Some(row) = rows.next()? {
                let name: String = row.get(0)?;
                found.insert(name[host.len() + 1..].to_owned());
            }
            Ok(found)
        })
    }

    /// Drops rows whose time is up, and what was noted of manifests that no record of their repository points at any more: if
    /// something else leads to them, they are read again. Returns how many.
    pub fn sweep(&self) -> Result<usize> {
        let now = self.store.now();
        self.store.write("sweep repositories", |tx| {
            let blobs = tx
                .prepare_cached("DELETE FROM repository_blob WHERE namespace = ?1 AND expires <= ?2")?
                .execute(params![self.namespace, now])?;
            let manifests = tx
                .prepare_cached(
                    "DELETE FROM repository_manifest WHERE namespace = ?1 AND (expires IS NULL OR expires <= ?2)
                     AND NOT EXISTS (SELECT 1 FROM image WHERE namespace = ?1
                         AND name = repository_manifest.repository || '@' || repository_manifest.digest)
                     AND NOT EXISTS (SELECT 1 FROM image INDEXED BY image_target WHERE namespace = ?1
                         AND digest = repository_manifest.digest
                         AND substr(name, 1, length(repository_manifest.repository) + 1) = repository_manifest.repository || ':')",
                )?
                .execute(params![self.namespace, now])?;
            Ok(blobs + manifests)
        })
    }
}

/// The path in `path:tag` or `path@digest`.
fn path_of(name: &str) -> Option<&str> {
    match name.split_once('@') {
        Some((path, _)) => {
            Some(path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(path, |(path, _)| path))
        }
        None => name.rsplit_once(':').map(|(path, _)| path),
    }
}

fn linked(conn: &Connection, [namespace, repository]: [&str; 2], digest: &Digest, now: i64) -> Result<bool> {
    let mut query = conn.prepare_cached(
        "SELECT 1 FROM repository_blob WHERE namespace = ?1 AND repository = ?2 AND digest = ?3 AND expires > ?4",
    )?;
    Ok(query.exists(params![namespace, repository, digest.as_str(), now])?)
}

/// The records that point at a blob.
fn names_of(conn: &Connection, namespace: &str, digest: &str) -> Result<Vec<String>> {
    let mut query =
        conn.prepare_cached("SELECT name FROM image INDEXED BY image_target WHERE namespace = ?1 AND digest = ?2")?;
    let names = query.query_map([namespace, digest], |row| row.get(0))?;
    Ok(names.collect::<rusqlite::Result<_>>()?)
}

fn is_of(name: &str, repository: &str) -> bool {
    name.strip_prefix(repository).is_some_and(|rest| rest.starts_with([':', '@']))
}

/// Goes from the blob upwards, along the edges that garbage collection keeps, until a record of the repository is met.
fn leading_to(conn: &Connection, namespace: &str, repository: &str, digest: &Digest) -> Result<Option<String>> {
    let mut documents = conn.prepare_cached(
        "SELECT from_name FROM edge WHERE namespace = ?1 AND to_kind = ?2 AND to_name = ?3 AND from_kind = ?2",
    )?;
    let mut open = vec![digest.to_string()];
    let mut seen = BTreeSet::from([digest.to_string()]);
    while let Some(blob) = open.pop() {
        if let Some(name) = names_of(conn, namespace, &blob)?.into_iter().find(|name| is_of(name, repository)) {
            return Ok(Some(name));
        }
        for above in documents.query_map([namespace, CONTENT, blob.as_str()], |row| row.get::<_, String>(0))? {
            let above = above?;
            if seen.insert(above.clone()) {
                open.push(above);
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_name() {
        assert_eq!(path_of("a/b:1"), Some("a/b"));
        assert_eq!(path_of("a/b@sha256:00"), Some("a/b"));
        assert_eq!(path_of("a:1@sha256:00"), Some("a"));
        assert_eq!(path_of("a"), None);
    }
}
