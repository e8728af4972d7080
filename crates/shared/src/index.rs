//! The index of a registry in PostgreSQL.
//!
//! A repository has a blob if it has a link to the generation that is live; a link to another is as good as none. A manifest
//! and everything that its push says is one transaction, which locks the rows of its blobs first, in the order of their
//! digests, then those of tags, in the order of their names: pushes wait for each other and never in a circle.
//!
//! [`SharedIndex::move_tag`] changes a tag only if it still means what the caller thinks it means.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use deadpool_postgres::Transaction;
use orlop_oci::Digest;
use orlop_registry::{BlobIndex, Held, IndexError, IndexResult, ManifestIndex, ManifestKey, ManifestRecord, TagIndex};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;

use crate::blobs::{digest as parse_digest, unsigned};
use crate::database::{Database, Statements as _, again};
use crate::{Error, Result};

/// The index of a registry in PostgreSQL.
#[derive(Clone)]
pub struct SharedIndex {
    database: Database,
    lease: f64,
}

/// What became of a manifest that was to be committed.
enum Put {
    Done,
    /// The first of its own bytes and its children that is not there.
    Missing(Digest),
}

impl SharedIndex {
    pub(crate) const fn new(database: Database, lease: std::time::Duration) -> Self {
        Self { database, lease: lease.as_secs_f64() }
    }

    /// Moves a tag from one manifest to another, in one step: nothing is changed, and the answer is `false`, if the tag does
    /// not mean `from` any more; `None` is a tag that is not there. The manifest must be in the repository.
    ///
    /// # Errors
    /// [`IndexError::NoRepository`], [`IndexError::NoManifest`] if `to` is not in it.
    pub async fn move_tag(&self, repository: &str, tag: &str, from: Option<&Digest>, to: &Digest) -> IndexResult<bool> {
        let id = self.repository(repository).await?;
        let to = to.as_str();
        let moved = match from {
            Some(from) => {
                let sql = "UPDATE tags SET manifest = $4, version = nextval('tag_versions'), updated_at = now() \
                           WHERE repository = $1 AND name = $2 AND manifest = $3";
                self.database.execute(sql, &[&id, &tag, &from.as_str(), &to]).await
            }
            None => {
                let sql = "INSERT INTO tags (repository, name, manifest) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
                self.database.execute(sql, &[&id, &tag, &to]).await
            }
        };
        match moved {
            Ok(rows) => Ok(rows > 0),
            Err(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) => Err(IndexError::NoManifest),
            Err(error) => Err(error.into()),
        }
    }

    async fn repository(&self, name: &str) -> IndexResult<i64> {
        let row = self.database.query_opt("SELECT id FROM repositories WHERE name = $1", &[&name]).await?;
        let row = row.ok_or(IndexError::NoRepository)?;
        Ok(row.try_get(0).map_err(Error::from)?)
    }

    async fn try_link(&self, repository: &str, digest: &Digest) -> Result<bool> {
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        let Some(generation) = hold(&transaction, digest, self.lease).await? else { return Ok(false) };
        let id = ensure_repository(&transaction, repository).await?;
        let sql = "INSERT INTO links (repository, digest, generation) VALUES ($1, $2, $3) \
                   ON CONFLICT (repository, digest) DO UPDATE SET generation = $3, linked_at = now()";
        transaction.change(sql, &[&id, &digest.as_str(), &generation]).await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn try_put(&self, repository: &str, record: &ManifestRecord, tags: &[String]) -> Result<Put> {
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        let live = lock_live(&transaction, record).await?;
        let id = ensure_repository(&transaction, repository).await?;
        let visible = visible(&transaction, id, record).await?;
        let Some(own) = live.get(record.digest.as_str()) else { return Ok(Put::Missing(record.digest.clone())) };
        let mut kept = BTreeMap::new();
        for child in &record.children {
            match (live.get(child.as_str()), visible.get(child.as_str())) {
                (Some(live), Some(visible)) if visible.contains(live) => drop(kept.insert(child.as_str(), *live)),
                _ if record.elsewhere.contains(child) => {}
                _ => return Ok(Put::Missing(child.clone())),
            }
        }
        insert_manifest(&transaction, id, record, *own).await?;
        refer(&transaction, id, &record.digest, &kept).await?;
        point(&transaction, id, &record.digest, tags).await?;
        transaction.commit().await?;
        Ok(Put::Done)
    }

    async fn find(&self, repository: &str, key: &ManifestKey) -> Result<Option<ManifestRecord>> {
        let row = match key {
            ManifestKey::Digest(digest) => {
                let params: crate::database::Params<'_> = &[&repository, &digest.as_str()];
                match self.database.query_replica(BY_DIGEST, params).await?.into_iter().next() {
                    None if self.database.has_replica() => self.database.query_opt(BY_DIGEST, params).await?,
                    found => found,
                }
            }
            ManifestKey::Tag(tag) => self.database.query_opt(BY_TAG, &[&repository, &tag.as_str()]).await?,
        };
        row.as_ref().map(record).transpose()
    }
}

const BY_DIGEST: &str = "SELECT m.digest, m.media_type, m.size, m.subject, m.artifact_type, m.annotations, m.children, \
                         m.elsewhere FROM manifests m JOIN repositories r ON r.id = m.repository \
                         WHERE r.name = $1 AND m.digest = $2";
const BY_TAG: &str = "SELECT m.digest, m.media_type, m.size, m.subject, m.artifact_type, m.annotations, m.children, \
                      m.elsewhere FROM tags t JOIN repositories r ON r.id = t.repository \
                      JOIN manifests m ON m.repository = t.repository AND m.digest = t.manifest \
                      WHERE r.name = $1 AND t.name = $2";
const BY_SUBJECT: &str = "SELECT m.digest, m.media_type, m.size, m.subject, m.artifact_type, m.annotations, m.children, \
                          m.elsewhere FROM manifests m JOIN repositories r ON r.id = m.repository \
                          WHERE r.name = $1 AND m.subject = $2 ORDER BY m.digest";

/// Holds the live generation of a blob and keeps the collector from it until the transaction ends.
async fn hold(transaction: &Transaction<'_>, digest: &Digest, lease: f64) -> Result<Option<i64>> {
    let sql = "UPDATE blobs SET held_until = greatest(held_until, now() + make_interval(secs => $2)) \
               WHERE digest = $1 AND state = 'live' RETURNING generation";
    let rows = transaction.rows(sql, &[&digest.as_str(), &lease]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

async fn ensure_repository(transaction: &Transaction<'_>, name: &str) -> Result<i64> {
    let find = "SELECT id FROM repositories WHERE name = $1";
    if let Some(row) = transaction.rows(find, &[&name]).await?.first() {
        return Ok(row.try_get(0)?);
    }
    // Of two that make one at once the second waits here, and then finds it.
    transaction.change("INSERT INTO repositories (name) VALUES ($1) ON CONFLICT DO NOTHING", &[&name]).await?;
    let rows = transaction.rows(find, &[&name]).await?;
    let row = rows.first().ok_or_else(|| Error::Nonsense { what: "no repository", value: name.to_owned() })?;
    Ok(row.try_get(0)?)
}

/// Locks the live generations of the manifest's own bytes and of its children, so that none is collected meanwhile.
async fn lock_live(transaction: &Transaction<'_>, record: &ManifestRecord) -> Result<HashMap<String, i64>> {
    let digests: Vec<&str> = record.children.iter().chain([&record.digest]).map(Digest::as_str).collect();
    let sql =
        "SELECT digest, generation FROM blobs WHERE digest = ANY($1) AND state = 'live' ORDER BY digest FOR SHARE";
    let rows = transaction.rows(sql, &[&digests]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The generations in which the repository has the children, as blobs or as manifests.
async fn visible(
    transaction: &Transaction<'_>,
    repository: i64,
    record: &ManifestRecord,
) -> Result<HashMap<String, Vec<i64>>> {
    let digests: Vec<&str> = record.children.iter().map(Digest::as_str).collect();
    let sql = "SELECT digest, generation FROM links WHERE repository = $1 AND digest = ANY($2) \
               UNION SELECT digest, generation FROM manifests WHERE repository = $1 AND digest = ANY($2)";
    let mut visible = HashMap::<_, Vec<_>>::new();
    for row in transaction.rows(sql, &[&repository, &digests]).await? {
        visible.entry(row.try_get(0)?).or_default().push(row.try_get(1)?);
    }
    Ok(visible)
}

async fn insert_manifest(
    transaction: &Transaction<'_>,
    repository: i64,
    record: &ManifestRecord,
    generation: i64,
) -> Result<()> {
    let annotations = serde_json::to_string(&record.annotations).unwrap_or_default();
    let texts = |digests: &[Digest]| digests.iter().map(|d| d.as_str().to_owned()).collect::<Vec<_>>();
    let sql = "INSERT INTO manifests (repository, digest, generation, media_type, size, subject, artifact_type, \
               annotations, children, elsewhere) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
               ON CONFLICT (repository, digest) DO UPDATE SET generation = $3, media_type = $4, size = $5, subject = $6, \
               artifact_type = $7, annotations = $8, children = $9, elsewhere = $10";
    transaction
        .change(
            sql,
            &[
                &repository,
                &record.digest.as_str(),
                &generation,
                &record.media_type,
                &(record.size as i64),
                &record.subject.as_ref().map(Digest::as_str),
                &record.artifact_type,
                &annotations,
                &texts(&record.children),
                &texts(&record.elsewhere),
            ],
        )
        .await?;
    Ok(())
}

/// Says what a manifest keeps.
async fn refer(
    transaction: &Transaction<'_>,
    repository: i64,
    manifest: &Digest,
    kept: &BTreeMap<&str, i64>,
) -> Result<()> {
    let drop = "DELETE FROM manifest_blobs WHERE repository = $1 AND manifest = $2";
    transaction.change(drop, &[&repository, &manifest.as_str()]).await?;
    let (digests, generations): (Vec<_>, Vec<_>) =
        kept.iter().map(|(digest, generation)| (*digest, *generation)).unzip();
    let sql = "INSERT INTO manifest_blobs (repository, manifest, digest, generation) \
               SELECT $1, $2, d, g FROM unnest($3::text[], $4::bigint[]) AS kept (d, g)";
    transaction.change(sql, &[&repository, &manifest.as_str(), &digests, &generations]).await?;
    Ok(())
}

/// Points tags at a manifest.
async fn point(transaction: &Transaction<'_>, repository: i64, manifest: &Digest, tags: &[String]) -> Result<()> {
    let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    tags.sort_unstable();
    tags.dedup();
    for tag in tags {
        let sql = "INSERT INTO tags (repository, name, manifest) VALUES ($1, $2, $3) ON CONFLICT (repository, name) \
                   DO UPDATE SET manifest = $3, version = nextval('tag_versions'), updated_at = now() \
                   WHERE tags.manifest <> $3";
        transaction.change(sql, &[&repository, &tag, &manifest.as_str()]).await?;
    }
    Ok(())
}

fn record(row: &Row) -> Result<ManifestRecord> {
    let annotations: &str = row.try_get(5)?;
    let digests = |column: usize| -> Result<Vec<Digest>> {
        row.try_get::<_, Vec<&str>>(column)?.into_iter().map(parse_digest).collect()
    };
    Ok(ManifestRecord {
        digest: parse_digest(row.try_get(0)?)?,
        media_type: row.try_get(1)?,
        size: unsigned("a size", row.try_get(2)?)?,
        subject: row.try_get::<_, Option<&str>>(3)?.map(parse_digest).transpose()?,
        artifact_type: row.try_get(4)?,
        annotations: serde_json::from_str(annotations)
            .map_err(|_| Error::Nonsense { what: "annotations", value: annotations.to_owned() })?,
        children: digests(6)?,
        elsewhere: digests(7)?,
    })
}

#[async_trait]
impl BlobIndex for SharedIndex {
    async fn hold(&self, digests: &[Digest]) -> IndexResult<Held> {
        let mut digests: Vec<&str> = digests.iter().map(Digest::as_str).collect();
        digests.sort_unstable();
        // Only those that are held for less than half of a lease: a push names each of its blobs several times. Locked in one
        // order, as a manifest's transaction does.
        let sql = "UPDATE blobs b SET held_until = greatest(b.held_until, now() + make_interval(secs => $2)) FROM \
                   (SELECT digest, generation FROM blobs WHERE digest = ANY($1) AND state = 'live' \
                   AND held_until < now() + make_interval(secs => $2::float8 / 2) ORDER BY digest FOR NO KEY UPDATE) AS short \
                   WHERE b.digest = short.digest AND b.generation = short.generation";
        again!(self.database.execute(sql, &[&digests, &self.lease]))?;
        Ok(Held::default())
    }

    async fn link_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        if again!(self.try_link(repository, digest))? { Ok(()) } else { Err(IndexError::NoBlob) }
    }

    /// Who asks may be about to push a manifest: half of a lease is left to him at least.
    async fn has_blob(&self, repository: &str, digest: &Digest) -> IndexResult<bool> {
        let sql = "SELECT b.held_until < now() + make_interval(secs => $3::float8 / 2) FROM links l \
                   JOIN repositories r ON r.id = l.repository \
                   JOIN blobs b ON b.digest = l.digest AND b.generation = l.generation \
                   WHERE r.name = $1 AND l.digest = $2 AND b.state = 'live'";
        let row = self.database.query_opt(sql, &[&repository, &digest.as_str(), &self.lease]).await?;
        let Some(row) = row else { return Ok(false) };
        if !row.try_get::<_, bool>(0).map_err(Error::from)? {
            return Ok(true);
        }
        let hold = "UPDATE blobs SET held_until = greatest(held_until, now() + make_interval(secs => $2)) \
                    WHERE digest = $1 AND state = 'live'";
        Ok(self.database.execute(hold, &[&digest.as_str(), &self.lease]).await? > 0)
    }

    async fn unlink_blob(&self, repository: &str, digest: &Digest) -> IndexResult<()> {
        let sql = "DELETE FROM links WHERE digest = $2 AND repository = (SELECT id FROM repositories WHERE name = $1)";
        let found = self.database.execute(sql, &[&repository, &digest.as_str()]).await?;
        if found > 0 { Ok(()) } else { Err(IndexError::NoBlob) }
    }
}

#[async_trait]
impl ManifestIndex for SharedIndex {
    async fn put_manifest(&self, repository: &str, record: ManifestRecord, tags: &[String]) -> IndexResult<()> {
        match again!(self.try_put(repository, &record, tags))? {
            Put::Done => Ok(()),
            Put::Missing(digest) => Err(IndexError::NoChild(digest)),
        }
    }

    async fn manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<ManifestRecord> {
        match self.find(repository, key).await? {
            Some(record) => Ok(record),
            None => {
                self.repository(repository).await?;
                Err(IndexError::NoManifest)
            }
        }
    }

    async fn delete_manifest(&self, repository: &str, key: &ManifestKey) -> IndexResult<()> {
        let id = self.repository(repository).await?;
        let found = match key {
            ManifestKey::Tag(tag) => {
                self.database.execute("DELETE FROM tags WHERE repository = $1 AND name = $2", &[&id, tag]).await?
            }
            ManifestKey::Digest(digest) => {
                let sql = "DELETE FROM manifests WHERE repository = $1 AND digest = $2";
                self.database.execute(sql, &[&id, &digest.as_str()]).await?
            }
        };
        if found > 0 { Ok(()) } else { Err(IndexError::NoManifest) }
    }

    async fn referrers(&self, repository: &str, subject: &Digest) -> IndexResult<Vec<ManifestRecord>> {
        let rows = self.database.query(BY_SUBJECT, &[&repository, &subject.as_str()]).await?;
        Ok(rows.iter().map(record).collect::<Result<_>>()?)
    }
}

#[async_trait]
impl TagIndex for SharedIndex {
    async fn tags(&self, repository: &str, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        let id = self.repository(repository).await?;
        let sql =
            "SELECT name FROM tags WHERE repository = $1 AND ($2::text IS NULL OR name > $2) ORDER BY name LIMIT $3";
        names(self.database.query_current(sql, &[&id, &after, &page(limit)]).await?)
    }

    async fn repositories(&self, after: Option<&str>, limit: usize) -> IndexResult<Vec<String>> {
        let sql = "SELECT name FROM repositories WHERE ($1::text IS NULL OR name > $1) ORDER BY name LIMIT $2";
        names(self.database.query_current(sql, &[&after, &page(limit)]).await?)
    }
}

fn page(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn names(rows: Vec<Row>) -> IndexResult<Vec<String>> {
    Ok(rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<_>>()?)
}
