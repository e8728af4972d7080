//! Deleting what nothing needs any more: the collector and the sweep of [`crate::protocol`].
//!
//! Any gateway may run them; one does at a time, which holds an advisory lock of the database on a connection of its own, so
//! that a killed gateway's lock ends with its connection. Two at once would do no harm but work twice.

use std::collections::HashSet;
use std::time::Duration;

use deadpool_postgres::Client;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::{SignedDuration, Timestamp};
use object_store::ObjectMeta;
use object_store::path::Path;
use orlop_oci::Digest;

use crate::blobs::digest as parse_digest;
use crate::bucket::Bucket;
use crate::database::{Database, Statements as _};
use crate::{Result, SharedStore};

/// Rows that one transaction collects.
const BATCH: i64 = 500;

/// Objects that are deleted at once.
const DELETIONS: usize = 16;

/// Keys that the database is asked about at once.
const KEYS: usize = 1_000;

/// Drawn once; nobody else on this database uses it.
const LOCK: i64 = 0x6f72_6c6f_7002;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) delete_after: Duration,
    pub(crate) orphan_age: Duration,
    pub(crate) upload_age: Duration,
}

/// Deletes what nothing needs any more.
#[derive(Clone)]
pub struct Collector {
    database: Database,
    bucket: Bucket,
    store: SharedStore,
    limits: Limits,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Uploads that were dropped because nobody went on with them.
    pub uploads: usize,
    /// Blobs that were given up: their objects are deleted later.
    pub given_up: usize,
    /// Objects that were deleted.
    pub deleted: usize,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that were looked at.
    pub seen: usize,
    /// Those that no row names, and that were old enough.
    pub deleted: usize,
    /// Those that no row names, and that were not.
    pub young: usize,
}

impl Collector {
    pub(crate) const fn new(database: Database, bucket: Bucket, store: SharedStore, limits: Limits) -> Self {
        Self { database, bucket, store, limits }
    }

    /// Collects once; `None` if another gateway is at it.
    ///
    /// # Errors
    /// Of the first thing that went wrong; what was done until then stays done.
    pub async fn collect(&self) -> Result<Option<Collected>> {
        let Some(lock) = self.lock().await? else { return Ok(None) };
        let done = self.collect_alone().await;
        unlock(lock).await;
        done.map(Some)
    }

    async fn collect_alone(&self) -> Result<Collected> {
        let mut collected = Collected { uploads: self.drop_uploads().await?, ..Collected::default() };
        loop {
            let given_up = self.give_up().await?;
            collected.given_up += given_up;
            if given_up == 0 {
                break;
            }
        }
        loop {
            let due = self.due().await?;
            if due.is_empty() {
                return Ok(collected);
            }
            collected.deleted += self.delete(due).await?;
        }
    }

    async fn drop_uploads(&self) -> Result<usize> {
        let inner = &self.store.inner;
        let stale = inner.ingests.stale(self.limits.upload_age).await?;
        for ingest in &stale {
            inner.ingests.remove(&ingest.id, None).await?;
            inner.clean(ingest).await;
        }
        Ok(stale.len())
    }

    /// Moves rows to `deleting` that nothing refers to and nobody holds.
    async fn give_up(&self) -> Result<usize> {
        let mut client = self.database.client().await?;
        let transaction = client.transaction().await?;
        // That no manifest refers to them only narrows what is locked; it is asked again below.
        let lock = "SELECT digest, generation FROM blobs b WHERE state IN ('live', 'reserved') AND held_until < now() \
                    AND NOT EXISTS (SELECT FROM manifests m WHERE m.digest = b.digest AND m.generation = b.generation) \
                    AND NOT EXISTS (SELECT FROM manifest_blobs r WHERE r.digest = b.digest AND r.generation = b.generation) \
                    ORDER BY held_until LIMIT $1 FOR UPDATE SKIP LOCKED";
        let locked = transaction.rows(lock, &[&BATCH]).await?;
        let (mut digests, mut generations) = (Vec::new(), Vec::new());
        for row in &locked {
            digests.push(row.try_get::<_, String>(0)?);
            generations.push(row.try_get::<_, i64>(1)?);
        }
        // A statement sees what was committed before it began: all that was, before the locks were had.
        let collect = "UPDATE blobs b SET state = 'deleting', delete_at = now() + make_interval(secs => $3) \
                       FROM unnest($1::text[], $2::bigint[]) AS locked (digest, generation) \
                       WHERE b.digest = locked.digest AND b.generation = locked.generation \
                       AND b.state IN ('live', 'reserved') AND b.held_until < now() \
                       AND NOT EXISTS (SELECT FROM manifests m WHERE m.digest = b.digest AND m.generation = b.generation) \
                       AND NOT EXISTS \
                       (SELECT FROM manifest_blobs r WHERE r.digest = b.digest AND r.generation = b.generation)";
        let wait = self.limits.delete_after.as_secs_f64();
        let given_up = transaction.change(collect, &[&digests, &generations, &wait]).await?;
        let links = "DELETE FROM links l USING blobs b, unnest($1::text[], $2::bigint[]) AS locked (digest, generation) \
                     WHERE b.digest = locked.digest AND b.generation = locked.generation AND b.state = 'deleting' \
                     AND l.digest = b.digest AND l.generation = b.generation";
        transaction.change(links, &[&digests, &generations]).await?;
        transaction.commit().await?;
        Ok(usize::try_from(given_up).unwrap_or(usize::MAX))
    }

    /// Rows whose objects may go now.
    async fn due(&self) -> Result<Vec<(Digest, i64)>> {
        let sql = "SELECT digest, generation FROM blobs WHERE state = 'deleting' AND delete_at <= now() LIMIT $1";
        let rows = self.database.query(sql, &[&BATCH]).await?;
        rows.iter().map(|row| Ok((parse_digest(row.try_get(0)?)?, row.try_get(1)?))).collect()
    }

    /// Deletes objects, and then the rows of those that the bucket said are gone.
    async fn delete(&self, due: Vec<(Digest, i64)>) -> Result<usize> {
        let count = due.len();
        futures::stream::iter(due.into_iter().map(Ok))
            .try_for_each_concurrent(DELETIONS, |(digest, generation)| async move {
                self.bucket.delete(&self.bucket.blob(&digest, generation)).await?;
                let sql = "DELETE FROM blobs WHERE digest = $1 AND generation = $2 AND state = 'deleting'";
                self.database.execute(sql, &[&digest.as_str(), &generation]).await?;
                Ok::<_, crate::Error>(())
            })
            .await?;
        Ok(count)
    }

    /// Deletes objects that no row names and that are old enough; `None` if another gateway is at it.
    ///
    /// # Errors
    /// Of the first thing that went wrong; what was done until then stays done.
    pub async fn sweep(&self) -> Result<Option<Swept>> {
        let Some(lock) = self.lock().await? else { return Ok(None) };
        let done = self.sweep_alone().await;
        unlock(lock).await;
        done.map(Some)
    }

    async fn sweep_alone(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        for kind in ["blobs", "uploads"] {
            let prefix = self.bucket.all(kind);
            let mut pages = Box::pin(self.bucket.list(&prefix).try_chunks(KEYS));
            while let Some(page) = pages.next().await {
                let page = page.map_err(|error| error.1)?;
                let keys: Vec<_> = page.iter().map(|object| object.location.clone()).collect();
                let known =
                    if kind == "blobs" { self.known_blobs(&keys).await? } else { self.known_uploads(&keys).await? };
                swept.seen += page.len();
                self.sweep_page(page, &known, &mut swept).await?;
            }
        }
        Ok(swept)
    }

    async fn sweep_page(&self, page: Vec<ObjectMeta>, known: &HashSet<Path>, swept: &mut Swept) -> Result<()> {
        let age = SignedDuration::try_from(self.limits.orphan_age).unwrap_or(SignedDuration::MAX);
        let limit = Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN);
        for object in page {
            if known.contains(&object.location) {
                continue;
            }
            let written =
                Timestamp::from_millisecond(object.last_modified.timestamp_millis()).unwrap_or(Timestamp::MAX);
            if written > limit {
                swept.young += 1;
                continue;
            }
            tracing::info!(key = %object.location, size = object.size, "deleting an object that no row names");
            self.bucket.delete(&object.location).await?;
            swept.deleted += 1;
        }
        Ok(())
    }

    /// Those of the keys that rows name. A row is there before its object is written, and after it was listed here.
    async fn known_blobs(&self, keys: &[Path]) -> Result<HashSet<Path>> {
        let named = keys.iter().filter_map(|key| self.bucket.parse_blob(key));
        let (digests, generations): (Vec<_>, Vec<_>) =
            named.map(|(digest, generation)| (digest.as_str().to_owned(), generation)).unzip();
        let sql = "SELECT b.digest, b.generation FROM blobs b \
                   JOIN unnest($1::text[], $2::bigint[]) AS k (digest, generation) \
                   ON b.digest = k.digest AND b.generation = k.generation";
        let rows = self.database.query(sql, &[&digests, &generations]).await?;
        rows.iter().map(|row| Ok(self.bucket.blob(&parse_digest(row.try_get(0)?)?, row.try_get(1)?))).collect()
    }

    async fn known_uploads(&self, keys: &[Path]) -> Result<HashSet<Path>> {
        let ids: Vec<String> = keys.iter().filter_map(|key| self.bucket.parse_upload(key)).collect();
        let known: HashSet<String> = self.store.inner.ingests.known(&ids).await?.into_iter().collect();
        let is_known = |key: &&Path| self.bucket.parse_upload(key).is_some_and(|id| known.contains(&id));
        Ok(keys.iter().filter(is_known).cloned().collect())
    }

    async fn lock(&self) -> Result<Option<Client>> {
        let client = self.database.client().await?;
        let row = client.query_one("SELECT pg_try_advisory_lock($1)", &[&LOCK]).await?;
        Ok(row.try_get::<_, bool>(0)?.then_some(client))
    }
}

/// A connection that cannot even say this is lost, and its locks with it.
async fn unlock(client: Client) {
    if client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await.is_err() {
        drop(deadpool_postgres::Object::take(client));
    }
}
