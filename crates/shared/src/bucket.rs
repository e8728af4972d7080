//! The bucket: how it is reached, and the keys in it.
//!
//! Requests are retried by `object_store` when the server is busy or a connection breaks, for a while that is shorter than a
//! client of the registry waits; what then still fails is said. Bodies are signed with their SHA-256, so that the server
//! refuses what changed on its way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, ObjectStoreExt as _, RetryConfig};
use orlop_oci::Digest;
use url::Url;

use crate::{Error, Result};

/// How a bucket is reached.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    /// `s3://BUCKET[/PREFIX][?endpoint=URL&region=REGION]`; more in docs/operations/shared.md.
    pub url: String,
    /// Variables of the environment whose names begin with `AWS_`: credentials, region, endpoint.
    pub variables: Vec<(String, String)>,
    /// Certificate authorities in PEM, beside the system's.
    pub authorities: Option<Vec<u8>>,
    /// For how long a request is tried again before it is said that the bucket is away.
    pub patience: Duration,
    /// Objects up to this many bytes are copied by the server in one request; S3 allows 5 GiB.
    pub copy_limit: u64,
}

impl BucketOptions {
    /// The usual limits.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            variables: Vec::new(),
            authorities: None,
            patience: Duration::from_secs(15),
            copy_limit: 5 << 30,
        }
    }
}

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a server may say nothing. Copying an object within the bucket takes a while.
const SILENCE: Duration = Duration::from_secs(60);

/// How much is read and sent at once of an object that is too large for a copy by the server.
const COPY_PART: u64 = 64 << 20;

/// For how long a URL works that is given away. Shorter than objects stay that are being deleted.
const URL_LIFE: Duration = Duration::from_secs(15 * 60);

/// The bucket, or a part of it below a prefix.
#[derive(Clone)]
pub(crate) struct Bucket {
    s3: Arc<AmazonS3>,
    prefix: Path,
    copy_limit: u64,
}

/// Query parameters of the URL that are not options of the S3 client by these names.
const ENDPOINT: &str = "endpoint";

impl Bucket {
    pub(crate) fn new(options: &BucketOptions) -> Result<Self> {
        let wrong = |why: String| Error::Option { option: "the bucket's URL", why };
        let url = Url::parse(&options.url).map_err(|e| wrong(format!("{:?}: {e}: write s3://BUCKET", options.url)))?;
        let name = url.host_str().filter(|_| url.scheme() == "s3");
        let name =
            name.ok_or_else(|| wrong(format!("{:?} is not s3://BUCKET[/PREFIX][?endpoint=URL]", options.url)))?;
        let mut builder = AmazonS3Builder::new().with_bucket_name(name).with_region("us-east-1");
        for (variable, value) in &options.variables {
            if let Ok(key) = variable.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        for (key, value) in url.query_pairs() {
            let known = if key == ENDPOINT { Ok(AmazonS3ConfigKey::Endpoint) } else { key.parse() };
            let known = known.map_err(|_| wrong(format!("no such parameter: {key}")))?;
            builder = builder.with_config(known, value);
        }
        let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
        let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut client = ClientOptions::new()
            .with_allow_http(plain)
            .with_connect_timeout(CONNECT)
            .with_read_timeout(SILENCE)
            .with_timeout_disabled();
        if let Some(pem) = &options.authorities {
            for certificate in Certificate::from_pem_bundle(pem).map_err(|e| Error::Authorities(e.to_string()))? {
                client = client.with_root_certificate(certificate);
            }
        }
        let backoff = BackoffConfig { max_backoff: Duration::from_secs(3), ..BackoffConfig::default() };
        let retry = RetryConfig { backoff, max_retries: 10, retry_timeout: options.patience };
        let s3 = builder.with_client_options(client).with_retry(retry).build()?;
        let prefix = Path::from_url_path(url.path()).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { s3: Arc::new(s3), prefix, copy_limit: options.copy_limit })
    }

    fn key(&self, parts: &[&str]) -> Path {
        parts.iter().fold(self.prefix.clone(), |path, part| path.join(*part))
    }

    /// Of a blob. The first two digits spread blobs over prefixes, as S3 serves each at its own rate.
    pub(crate) fn blob(&self, digest: &Digest, generation: i64) -> Path {
        let generation = format!("{generation:016x}");
        self.key(&["blobs", digest.algorithm().as_str(), &digest.hex()[..2], digest.hex(), &generation])
    }

    /// The digest and generation in a key, if it is that of a blob.
    pub(crate) fn parse_blob(&self, key: &Path) -> Option<(Digest, i64)> {
        let parts: Vec<_> = key.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        let [blobs, algorithm, _, hex, generation] = parts.as_slice() else { return None };
        let digest = format!("{algorithm}:{hex}").parse().ok()?;
        (blobs == "blobs").then_some((digest, i64::from_str_radix(generation, 16).ok()?))
    }

    /// The prefix of all blobs, or of all uploads.
    pub(crate) fn all(&self, kind: &str) -> Path {
        self.key(&[kind])
    }

    /// Of an upload's object that is put together of parts.
    pub(crate) fn data(&self, ingest: &str) -> Path {
        self.key(&["uploads", ingest, "data"])
    }

    /// Of what an upload has beyond whole parts, by the number that its writer drew.
    pub(crate) fn tail(&self, ingest: &str, number: i64) -> Path {
        self.key(&["uploads", ingest, &format!("tail-{number}")])
    }

    /// The upload that a key belongs to.
    pub(crate) fn parse_upload(&self, key: &Path) -> Option<String> {
        let mut parts = key.prefix_match(&self.prefix)?;
        (parts.next()?.as_ref() == "uploads").then(|| parts.next()).flatten().map(|id| id.as_ref().to_owned())
    }

    /// Of the object that says whose bucket this is.
    pub(crate) fn marker(&self) -> Path {
        self.key(&["orlop-registry"])
    }

    pub(crate) async fn put(&self, key: &Path, bytes: Bytes) -> Result<()> {
        self.s3.put(key, bytes.into()).await?;
        Ok(())
    }

    /// A whole object, which is known to be small.
    pub(crate) async fn get(&self, key: &Path) -> Result<Bytes> {
        Ok(self.s3.get(key).await?.bytes().await?)
    }

    pub(crate) async fn get_range(&self, key: &Path, range: std::ops::Range<u64>) -> Result<Bytes> {
        Ok(self.s3.get_range(key, range).await?)
    }

    /// An object from an offset on.
    pub(crate) async fn stream(&self, key: &Path, from: u64) -> Result<Pieces> {
        // Of an empty object there is no range.
        let range = (from > 0).then_some(object_store::GetRange::Offset(from));
        let options = object_store::GetOptions::new().with_range(range);
        Ok(Box::pin(self.s3.get_opts(key, options).await?.into_stream().map_err(Error::from)))
    }

    /// Bytes of an object; `None` if it is not there.
    pub(crate) async fn size(&self, key: &Path) -> Result<Option<u64>> {
        match self.s3.head(key).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object; that it is not there is no error.
    pub(crate) async fn delete(&self, key: &Path) -> Result<()> {
        match self.s3.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Every object below a prefix: its key, bytes and age.
    pub(crate) fn list(&self, prefix: &Path) -> impl futures::Stream<Item = Result<object_store::ObjectMeta>> + use<> {
        self.s3.list(Some(prefix)).map_err(Error::from)
    }

    pub(crate) async fn begin(&self, key: &Path) -> Result<String> {
        Ok(self.s3.create_multipart(key).await?)
    }

    /// Parts but the last have 5 MiB at least.
    pub(crate) async fn part(&self, key: &Path, upload: &str, number: usize, bytes: Bytes) -> Result<String> {
        Ok(self.s3.put_part(key, &upload.to_owned(), number, bytes.into()).await?.content_id)
    }

    pub(crate) async fn complete(&self, key: &Path, upload: &str, parts: &[String]) -> Result<()> {
        let parts = parts.iter().map(|id| PartId { content_id: id.clone() }).collect();
        self.s3.complete_multipart(key, &upload.to_owned(), parts).await?;
        Ok(())
    }

    /// Drops the parts of an upload; that there is none is no error.
    pub(crate) async fn abort(&self, key: &Path, upload: &str) -> Result<()> {
        match self.s3.abort_multipart(key, &upload.to_owned()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies an object whose size is known: by the server, or, if it is too large for that, piece by piece through here.
    pub(crate) async fn copy(&self, from: &Path, to: &Path, size: u64) -> Result<()> {
        if size <= self.copy_limit {
            return Ok(self.s3.copy(from, to).await?);
        }
        let upload = self.begin(to).await?;
        let copied = self.copy_parts(from, to, size, &upload).await;
        if copied.is_err() {
            // What is left of it otherwise is for the bucket's lifecycle rules.
            let _ = self.abort(to, &upload).await;
        }
        copied
    }

    async fn copy_parts(&self, from: &Path, to: &Path, size: u64, upload: &str) -> Result<()> {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < size {
            let end = size.min(start + COPY_PART);
            let bytes = self.get_range(from, start..end).await?;
            parts.push(self.part(to, upload, parts.len(), bytes).await?);
            start = end;
        }
        self.complete(to, upload, &parts).await
    }

    /// A URL from which anybody may read the object for a while.
    pub(crate) async fn url(&self, key: &Path) -> Result<String> {
        Ok(self.s3.signed_url(object_store::signer::Method::GET, key, URL_LIFE).await?.into())
    }
}

/// An object as it comes.
pub(crate) type Pieces = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Bytes>> + Send>>;
