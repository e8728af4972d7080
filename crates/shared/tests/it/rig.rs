//! A database and a bucket for one test.

use std::time::Duration;

use bytes::Bytes;
use orlop_content::{IngestOptions, Store};
use orlop_oci::Digest;
use orlop_shared::{BucketOptions, DatabaseOptions, Options, Shared};
use orlop_testkit::postgres::Postgres;
use orlop_testkit::s3::S3;

/// Where a test's rows and objects are.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) database: String,
    pub(crate) bucket: String,
}

impl Place {
    /// A new one; `None`, with a word on standard error, where there are no servers.
    pub(crate) fn new() -> Option<Self> {
        let (postgres, s3) = (Postgres::shared()?, S3::shared()?);
        Some(Self { database: postgres.database(), bucket: s3.bucket() })
    }

    pub(crate) fn database_url(&self) -> String {
        Postgres::shared().unwrap().url(&self.database)
    }

    pub(crate) fn bucket_url(&self) -> String {
        S3::url(&self.bucket, S3::shared().unwrap().address())
    }

    pub(crate) fn options(&self) -> Options {
        let database = DatabaseOptions { connections: 8, ..DatabaseOptions::new(self.database_url()) };
        let patience = Duration::from_secs(5);
        let variables = S3::variables();
        let bucket = BucketOptions { variables, patience, ..BucketOptions::new(self.bucket_url()) };
        Options::new(database, bucket)
    }

    pub(crate) async fn open(&self) -> Shared {
        Shared::open(self.options()).await.unwrap()
    }

    /// With other limits.
    pub(crate) async fn open_with(&self, change: impl FnOnce(&mut Options)) -> Shared {
        let mut options = self.options();
        change(&mut options);
        Shared::open(options).await.unwrap()
    }

    /// Runs a statement behind everybody's back.
    pub(crate) fn sql(&self, sql: &str) -> String {
        Postgres::shared().unwrap().run(&self.database, sql).unwrap_or_else(|| panic!("{sql}"))
    }

    /// Puts an object into the bucket behind everybody's back.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        S3::shared().unwrap().put(&self.bucket, key, bytes.to_vec());
    }

    /// Deletes one behind everybody's back.
    pub(crate) fn delete(&self, key: &str) {
        S3::shared().unwrap().delete(&self.bucket, key);
    }

    /// The keys of all objects below a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        S3::shared().unwrap().keys(&self.bucket, prefix)
    }
}

pub(crate) fn noise(length: usize, seed: u64) -> Bytes {
    orlop_testkit::image::noise(seed, length).into()
}

/// Writes a blob, unless it is there.
pub(crate) async fn put(store: &dyn Store, bytes: &Bytes) -> Digest {
    let reference = format!("put {}", Digest::of(bytes));
    let mut writer = store.writer(IngestOptions { reference, ..IngestOptions::default() }).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    match writer.commit(bytes.len() as u64, None).await {
        Ok(digest) | Err(orlop_content::Error::AlreadyExists(digest)) => digest,
        Err(error) => panic!("{error}"),
    }
}
