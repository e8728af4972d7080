//! Opening what gateways share, and giving it out.

use std::time::Duration;

use orlop_content::Error as ContentError;

use crate::blobs::Blobs;
use crate::bucket::{Bucket, BucketOptions};
use crate::cache::{Cache, CacheOptions};
use crate::collect::{Collector, Limits};
use crate::database::{Database, DatabaseOptions};
use crate::ingests::Ingests;
use crate::migrate::migrate;
use crate::protocol::{DELETE_AFTER, LEASE, ORPHAN_AGE, UPLOAD_AGE};
use crate::{Error, Result, SharedIndex, SharedStore};

/// What a gateway stands on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is that changes.
    pub database: DatabaseOptions,
    /// Where bytes are.
    pub bucket: BucketOptions,
    /// The gateway's own cache, if it has one.
    pub cache: Option<CacheOptions>,
    /// Blobs of so many bytes and more are read by clients from the bucket itself, which they must reach.
    pub redirect_from: Option<u64>,
    /// For how long a push keeps what no manifest needs yet. The same for all gateways.
    pub lease: Duration,
    /// For how long objects stay that nothing needs any more. Never shorter than what a restored database may miss.
    pub delete_after: Duration,
    /// How old objects must be that no row names to be swept.
    pub orphan_age: Duration,
    /// After how long without a byte an upload is dropped.
    pub upload_age: Duration,
}

impl Options {
    /// The usual times.
    pub const fn new(database: DatabaseOptions, bucket: BucketOptions) -> Self {
        Self {
            database,
            bucket,
            cache: None,
            redirect_from: None,
            lease: LEASE,
            delete_after: DELETE_AFTER,
            orphan_age: ORPHAN_AGE,
            upload_age: UPLOAD_AGE,
        }
    }
}

/// What gateways share, as one of them has it.
#[derive(Clone)]
pub struct Shared {
    pub(crate) database: Database,
    pub(crate) bucket: Bucket,
    store: SharedStore,
    index: SharedIndex,
    collector: Collector,
}

impl Shared {
    /// Opens it: brings the schema up to date, and sees that the bucket is this database's.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Schema`], [`Error::Foreign`]; that the database or the bucket is away, which
    /// [`Error::is_temporary`] tells from what trying again does not change.
    pub async fn open(options: Options) -> Result<Self> {
        let database = Database::new(&options.database)?;
        let bucket = Bucket::new(&options.bucket)?;
        migrate(&database).await?;
        claim(&database, &bucket).await?;
        let cache = match options.cache {
            Some(cache) => Some(Cache::open(cache).await.map_err(unusable)?),
            None => None,
        };
        let (blobs, ingests) = (Blobs::new(database.clone(), options.lease), Ingests::new(database.clone()));
        let store = SharedStore::new(bucket.clone(), blobs, ingests, cache, options.redirect_from);
        let index = SharedIndex::new(database.clone(), options.lease);
        let limits = Limits {
            delete_after: options.delete_after,
            orphan_age: options.orphan_age,
            upload_age: options.upload_age,
        };
        let collector = Collector::new(database.clone(), bucket.clone(), store.clone(), limits);
        Ok(Self { database, bucket, store, index, collector })
    }

    /// The content store.
    pub fn store(&self) -> SharedStore {
        self.store.clone()
    }

    /// The index.
    pub fn index(&self) -> SharedIndex {
        self.index.clone()
    }

    /// What deletes what nothing needs any more.
    pub fn collector(&self) -> Collector {
        self.collector.clone()
    }

    /// Waits until what dropped writers had is written down: before a process ends.
    pub async fn settle(&self) {
        self.store.inner.all_settled().await;
    }
}

fn unusable(error: ContentError) -> Error {
    Error::Option { option: "the cache's directory", why: error.to_string() }
}

/// A bucket has one database, for another would take every object for an orphan. Says so in the bucket if nobody did.
async fn claim(database: &Database, bucket: &Bucket) -> Result<()> {
    let row = database.query_opt("SELECT id FROM identity", &[]).await?;
    let row = row.ok_or_else(|| Error::Nonsense { what: "no identity", value: String::new() })?;
    let own: String = row.try_get(0)?;
    let marker = bucket.marker();
    match bucket.get(&marker).await {
        Ok(found) if found.as_ref() == own.as_bytes() => Ok(()),
        Ok(found) => {
            let found = String::from_utf8_lossy(&found).into_owned();
            Err(Error::Foreign { bucket: found, database: own, marker: marker.to_string() })
        }
        Err(Error::Bucket(object_store::Error::NotFound { .. })) => bucket.put(&marker, own.into()).await,
        Err(error) => Err(error),
    }
}
