//! The content store over a bucket: what [`crate::protocol`] says, behind the traits of `orlop-content`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use orlop_content::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Manager, Provider, Result, Status, Writer,
};
use orlop_oci::Digest;
use tokio::sync::Semaphore;

use crate::blobs::Blobs;
use crate::bucket::Bucket;
use crate::cache::Cache;
use crate::ingests::{Ingest, Ingests, Opened, Tail};
use crate::protocol::DELETE_AFTER;
use crate::reader::BucketReader;
use crate::writer::{SharedWriter, State};

/// Parts on their way to the bucket from this process at once: with those being filled, the memory that uploads take.
const PARTS_AT_ONCE: usize = 32;

/// The content store over a bucket and the rows of its blobs.
#[derive(Clone)]
pub struct SharedStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) bucket: Bucket,
    pub(crate) blobs: Blobs,
    pub(crate) ingests: Ingests,
    pub(crate) cache: Option<Cache>,
    /// From how many bytes on readers are sent to the bucket.
    pub(crate) redirect_from: Option<u64>,
    pub(crate) slots: Arc<Semaphore>,
    /// Writers of this process, by ref.
    open: Mutex<HashMap<String, Arc<Open>>>,
    /// Writers that were dropped and whose state is being written down, by ref.
    settling: Mutex<HashMap<String, (u64, Settling)>>,
    /// Tells one that settles from the next of its ref.
    settled: AtomicU64,
}

type Settling = Shared<BoxFuture<'static, ()>>;

/// What others may know of a writer of this process.
pub(crate) struct Open {
    /// Names the writer in the row.
    pub(crate) token: String,
    pub(crate) status: Mutex<Status>,
    /// The ingest was aborted.
    pub(crate) gone: AtomicBool,
}

impl Open {
    pub(crate) fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settling(&self) -> MutexGuard<'_, HashMap<String, (u64, Settling)>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a writer off the list, if it is still the one of its ref.
    pub(crate) fn close(&self, reference: &str, open: &Arc<Open>) {
        let mut all = self.open();
        if all.get(reference).is_some_and(|found| Arc::ptr_eq(found, open)) {
            all.remove(reference);
        }
    }

    /// Writes down the state of a writer that was dropped; whoever asks for its ref waits for that.
    pub(crate) fn settle(self: &Arc<Self>, mut state: State) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let reference = state.reference().to_owned();
        let before = self.settling().get(&reference).map(|(_, settling)| settling.clone());
        let number = self.settled.fetch_add(1, Ordering::Relaxed);
        let inner = self.clone();
        let work = runtime.spawn(async move {
            if let Some(before) = before {
                before.await;
            }
            if let Err(error) = state.let_go().await {
                tracing::debug!(%error, "an upload goes on from where it was written down before");
            }
        });
        let name = reference.clone();
        let forget = move |_| {
            let mut settling = inner.settling();
            if settling.get(&name).is_some_and(|(last, _)| *last == number) {
                settling.remove(&name);
            }
        };
        let settled = work.map(forget).boxed().shared();
        self.settling().insert(reference, (number, settled.clone()));
        runtime.spawn(settled);
    }

    async fn settled(&self, reference: &str) {
        let settling = self.settling().get(reference).map(|(_, settling)| settling.clone());
        if let Some(settling) = settling {
            settling.await;
        }
    }

    pub(crate) async fn all_settled(&self) {
        let settling: Vec<_> = self.settling().values().map(|(_, settling)| settling.clone()).collect();
        futures::future::join_all(settling).await;
    }

    /// Drops what an upload has in the bucket. What cannot be is for the sweep.
    pub(crate) async fn clean(&self, ingest: &Ingest) {
        let data = self.bucket.data(&ingest.id);
        if let Some(upload) = &ingest.upload {
            drop(self.bucket.abort(&data, upload).await);
            drop(self.bucket.delete(&data).await);
        }
        if let Tail::There(number) = ingest.tail {
            drop(self.bucket.delete(&self.bucket.tail(&ingest.id, number)).await);
        }
    }
}

impl SharedStore {
    pub(crate) fn new(
        bucket: Bucket,
        blobs: Blobs,
        ingests: Ingests,
        cache: Option<Cache>,
        redirect_from: Option<u64>,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(PARTS_AT_ONCE));
        let (open, settling, settled) = (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        let inner = Inner { bucket, blobs, ingests, cache, redirect_from, slots, open, settling, settled };
        Self { inner: Arc::new(inner) }
    }
}

#[async_trait]
impl Provider for SharedStore {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        let inner = &self.inner;
        let live = inner.blobs.live(digest).await?.ok_or_else(|| Error::no_blob(digest))?;
        let (key, size) = (inner.bucket.blob(digest, live.generation), live.info.size);
        let redirects = inner.redirect_from.is_some_and(|from| size >= from);
        if let Some(cache) = inner.cache.as_ref().filter(|_| !redirects)
            && let Some(reader) = cache.read(digest, size, || inner.bucket.stream(&key, 0)).await?
        {
            return Ok(reader);
        }
        let (bucket, digest, sequel) = (inner.bucket.clone(), digest.clone(), Arc::default());
        Ok(Arc::new(BucketReader { bucket, digest, key, size, redirects, sequel }))
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        Ok(self.inner.blobs.live(digest).await?.ok_or_else(|| Error::no_blob(digest))?.info)
    }
}

#[async_trait]
impl Ingester for SharedStore {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        let inner = &self.inner;
        if options.reference.is_empty() {
            return Err(Error::Invalid("an ingest needs a ref that is not empty"));
        }
        inner.settled(&options.reference).await;
        if let Some(expected) = &options.expected
            && inner.blobs.hold(expected).await?
        {
            let is_open = inner.open().contains_key(&options.reference);
            if !is_open && let Some(ingest) = inner.ingests.find(&options.reference).await? {
                inner.ingests.remove(&ingest.id, None).await?;
                inner.clean(&ingest).await;
            }
            return Err(Error::AlreadyExists(expected.clone()));
        }
        let token = format!("{:032x}", rand::random::<u128>());
        let (ingest, restart) = match inner.ingests.open(&options, &token).await? {
            Opened::Yes { ingest, restart } => (*ingest, restart),
            Opened::Locked => return Err(Error::Locked(options.reference)),
        };
        let status = Mutex::new(ingest.status.clone());
        let open = Arc::new(Open { token, status, gone: AtomicBool::new(false) });
        inner.open().insert(options.reference.clone(), open.clone());
        Ok(Box::new(SharedWriter::open(inner.clone(), open, ingest, options.expected, restart).await?))
    }
}

#[async_trait]
impl IngestManager for SharedStore {
    async fn status(&self, reference: &str) -> Result<Status> {
        self.inner.settled(reference).await;
        let open = self.inner.open().get(reference).map(|open| open.status());
        if let Some(status) = open {
            return Ok(status);
        }
        let ingest = self.inner.ingests.find(reference).await?;
        Ok(ingest.ok_or_else(|| Error::no_ingest(reference))?.status)
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.inner.all_settled().await;
        let ingests = self.inner.ingests.all().await?;
        let open = self.inner.open();
        let status = |ingest: Ingest| match open.get(&ingest.status.reference) {
            Some(open) => open.status(),
            None => ingest.status,
        };
        Ok(ingests.into_iter().map(status).collect())
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.inner.settled(reference).await;
        let open = self.inner.open().remove(reference);
        if let Some(open) = open {
            open.gone.store(true, Ordering::SeqCst);
        }
        let ingest = self.inner.ingests.find(reference).await?.ok_or_else(|| Error::no_ingest(reference))?;
        if !self.inner.ingests.remove(&ingest.id, None).await? {
            return Err(Error::no_ingest(reference));
        }
        self.inner.clean(&ingest).await;
        Ok(())
    }
}

#[async_trait]
impl Manager for SharedStore {
    async fn list(&self) -> Result<Vec<Info>> {
        Ok(self.inner.blobs.all().await?.into_iter().map(|live| live.info).collect())
    }

    /// Gives the blob up: the collector deletes its object after [`DELETE_AFTER`].
    async fn delete(&self, digest: &Digest) -> Result<()> {
        if self.inner.blobs.give_up(digest, DELETE_AFTER).await? { Ok(()) } else { Err(Error::no_blob(digest)) }
    }
}
