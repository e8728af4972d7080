//! What keeps the blobs of a push until a manifest has them: a lease for each hour in which something was pushed.
//!
//! Everything that is uploaded, mounted, or about to be named by a manifest is in the lease of the hour, which ends a day later.
//! So a restart, a crash or a power cut takes nothing from a push, and what no manifest came for goes by itself. Once a record keeps
//! what a manifest has, the leases let go of it: who removes an image that was just pushed gets its space back.
//!
//! # Invariants
//! - The leases let go of nothing that a request in progress has asked to be held: such are counted ([`Counted`]) before they
//!   are in a lease, and looked at in the transaction that lets go.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use orlop_image::GC_EXPIRE;
use orlop_metadata::{self as metadata, Labels, ObjectKind, Repositories, Resource, ResourceKind, Scope, Store};
use orlop_oci::Digest;

use super::NodeRegistry;

/// How long a repository has a blob that no manifest has.
pub(super) const LINKED: SignedDuration = SignedDuration::from_hours(25);

/// From the begin of its hour until the end of a lease: longer than any of its links.
const HELD: SignedDuration = SignedDuration::from_hours(27);

const HOUR: i64 = 3600;

/// What the names of the leases begin with.
const LEASES: &str = "orlop-registry-";

/// Whose lease it is.
const REGISTRY: &str = "io.orlop.registry";

/// The leases of pushes. Every method blocks.
pub(super) struct Holding {
    store: Store,
    repositories: Repositories,
    namespace: String,
    host: String,
    /// The hour whose lease is known to be there.
    current: Mutex<Option<i64>>,
    counts: Arc<Counts>,
}

/// How many requests count on each blob.
type Counts = Mutex<HashMap<Digest, usize>>;

/// Blobs that a request counts on, until this is dropped.
pub(super) struct Counted {
    counts: Arc<Counts>,
    digests: BTreeSet<Digest>,
}

impl Counted {
    fn new(counts: &Arc<Counts>, digests: &[Digest]) -> Self {
        let digests: BTreeSet<Digest> = digests.iter().cloned().collect();
        let mut all = lock(counts);
        digests.iter().for_each(|digest| *all.entry(digest.clone()).or_default() += 1);
        Self { counts: counts.clone(), digests }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = lock(&self.counts);
        for digest in &self.digests {
            if let Some(count) = all.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    all.remove(digest);
                }
            }
        }
    }
}

impl Holding {
    pub(super) fn new(store: &Store, registry: &NodeRegistry) -> metadata::Result<Self> {
        let NodeRegistry { host, namespace } = registry.clone();
        let repositories = store.repositories(&namespace)?;
        let (current, counts) = (Mutex::default(), Arc::default());
        Ok(Self { store: store.clone(), repositories, namespace, host, current, counts })
    }

    pub(super) fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// Keeps blobs for a day, whether or not they are there yet; and from what other requests settle until what it returns is
    /// dropped.
    pub(super) fn hold(&self, digests: &[Digest]) -> metadata::Result<Counted> {
        let counted = Counted::new(&self.counts, digests);
        let resource = |digest: &Digest| Resource { kind: ResourceKind::Content, name: digest.to_string() };
        let resources: Vec<Resource> = digests.iter().map(resource).collect();
        if resources.is_empty() {
            return Ok(counted);
        }
        let add = |lease: &str| self.store.add_resources(&self.namespace, lease, &resources);
        match add(&self.lease()?) {
            Err(error) if is_lease_gone(&error) => {
                self.forget();
                add(&self.lease()?)
            }
            done => done,
        }?;
        Ok(counted)
    }

    /// Lets go of a manifest that a record keeps now, and of what it has; not of what other requests than the caller's, which has
    /// held it all and still does, count on.
    pub(super) fn settle(&self, repository: &str, manifest: &Digest, children: &[Digest]) -> metadata::Result<()> {
        let noted = self.repositories.manifest(repository, manifest)?;
        if noted.is_none_or(|row| row.until.is_some()) {
            return Ok(());
        }
        let others_count = |digest: &Digest| lock(&self.counts).get(digest).is_some_and(|count| *count > 1);
        self.repositories.settle(repository, children.iter().chain([manifest]), LEASES, others_count)
    }

    /// A scope in which everything that is written is kept for a day.
    pub(super) fn scope(&self) -> metadata::Result<Scope> {
        Ok(Scope::new(&*self.namespace, "registry").with_lease(self.lease()?))
    }

    /// Forgets that the lease is there: somebody has ended it.
    pub(super) fn forget(&self) {
        *lock(&self.current) = None;
    }

    /// The lease of this hour. The first push of an hour makes it, and sweeps out what earlier ones left.
    fn lease(&self) -> metadata::Result<String> {
        let hour = Timestamp::now().as_second().div_euclid(HOUR);
        let begin = Timestamp::from_second(hour * HOUR).unwrap_or(Timestamp::UNIX_EPOCH);
        let id = format!("{LEASES}{}", begin.strftime("%Y%m%dT%HZ"));
        if *lock(&self.current) == Some(hour) {
            return Ok(id);
        }
        let end = begin.saturating_add(HELD).unwrap_or(Timestamp::MAX);
        let labels = Labels::from([
            (GC_EXPIRE.to_owned(), end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            (REGISTRY.to_owned(), self.host.clone()),
        ]);
        match self.store.create_lease(&self.namespace, &id, labels) {
            Ok(_) => drop(self.repositories.sweep()?),
            Err(metadata::Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        *lock(&self.current) = Some(hour);
        Ok(id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether somebody has ended the lease that was used.
pub(super) fn is_lease_gone(error: &metadata::Error) -> bool {
    matches!(error, metadata::Error::NotFound { kind: ObjectKind::Lease, .. })
}

/// Runs a call that blocks.
pub(super) async fn blocking<T: Send + 'static>(
    holding: &Arc<Holding>,
    call: impl FnOnce(&Holding) -> metadata::Result<T> + Send + 'static,
) -> metadata::Result<T> {
    let holding = holding.clone();
    match tokio::task::spawn_blocking(move || call(&holding)).await {
        Ok(done) => done,
        Err(_) => Err(metadata::Error::Content(orlop_content::Error::Stopped)),
    }
}
