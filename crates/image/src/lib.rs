//! What users mean: pull, push, import, export, tag, remove, pin, check, repair; and the reconciler of hash references.
//!
//! Everything is composed from `metadata` (rows), its scoped content and snapshots (bytes and trees) and `remote` (the
//! registry). Nothing here knows protobuf, HTTP or a terminal.
//!
//! [`Images`] is the one door: it holds a [`metadata::Store`](orlop_metadata::Store) and [`Settings`]; each operation is
//! an async method that takes a [`Scope`](orlop_metadata::Scope) (namespace, actor) and a request.
//!
//! # Invariants
//! - Complete or refuse: a name becomes visible only when every document, config and layer of the wanted platforms is
//!   there and verified.
//! - Everything fetched is held by a lease until the records are written; the three records are written in one
//!   transaction.
//! - Nothing comes in under a name that policy refuses ([`Gate`]).
//! - In CRI-managed namespaces the records converge to design's §7 whatever was created, changed or lost.
//!
//! # Concurrency
//! [`Images`] is cheap to clone and every method may run at the same time as any other, in this process and in others
//! on the same root. Calls to the database run on the blocking pool. Dropping a future stops the operation and ends its
//! lease: parts of blobs stay for a day as ingests to be resumed, the rest goes at the next collection.
//!
//! # Spans
//! What an operation spends its time on is told in spans, also of threads of the blocking pool: `pull` or `import`, within them
//! `resolve`, `admit`, `fetch` and `unpack` for each blob, `commit`; and `reconcile`. One that failed has the `error`.

mod accept;
mod adopt;
mod allocated;
mod beneath;
mod catalog;
mod check;
mod cri;
mod error;
mod event;
mod export;
mod gate;
mod import;
mod labels;
mod lease;
mod mirror;
mod near;
mod overview;
mod place;
mod pull;
mod push;
mod rebuild;
mod reconcile;
mod remove;
mod repair;
mod resolve;
mod rows;
mod scrub;
mod settings;
mod span;
mod supply;
mod tag;
mod transfer;
mod trees;
mod usage;
mod users;
mod walk;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use accept::{Accepted, PushedManifest};
pub use adopt::{ADOPTED, AdoptRequest, Adoption, ChainOf, Foreign, WAITING, plan_adoption};
pub use beneath::Handed;
pub use check::{CheckRequest, Problem};
pub use cri::{CriCatalog, CriImage, CriView, Gist, Pinned};
pub use error::{ArchiveError, Error, ErrorKind, Missing, Result};
pub use event::{BlobEvent, Event, Limit, Outcome, Sink, Stage};
pub use export::{ArchiveFormat, ExportRequest};
pub use gate::{
    Cause, Checked, Flaw, Form, Gate, Identity, KeyError, MAX_KEY_BYTES, Objection, Outcome as SignatureOutcome,
    Pattern, PatternError, Policy, PublicKey, Refusal, Requirement, Rule, Signed, Verdict, VerifierProblem, Verifiers,
    VerifyRequest, verified_by,
};
pub use import::ImportRequest;
pub use labels::{GC_CONTENT, GC_EXPIRE, GC_ROOT, GC_SNAPSHOT, SNAPSHOT_REF};
pub use mirror::{Mirror, MirrorCounts, MirrorKey, MirrorSettings, MirroredManifest, Via};
pub use near::{
    Asking, BlobSource, Given, Ledger, NearStream, Neighbour, Neighbourhood, Neighbours, Opening, Relay, Source, Wanted,
};
pub use place::{ImportAs, NameRule, Place};
pub use pull::PullRequest;
pub use push::PushRequest;
pub use rebuild::rebuild;
pub use reconcile::{RECONCILER, Reconciled};
pub use remove::{Plan, Reason, RemoveRequest, Removed};
pub use repair::{Bringer, End, Mending, RepairRequest, Repaired};
pub use resolve::{DocumentRow, Found, Inspection};
pub use rows::{ImageRow, ListRequest, RecordRow, Sizes, SnapshotRow};
pub use scrub::{Bandwidth, Scrubbing};
pub use settings::{Limits, Settings};
pub use usage::{DiskUsage, GcOutcome, GcRequest, HashReferenceUsage};

/// The operations on images of one root.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

struct Inner {
    store: orlop_metadata::Store,
    /// What [`Settings::platform`] said at first: it is what catalogs were made for.
    platform: orlop_oci::Platform,
    settings: RwLock<Arc<Settings>>,
    pulled: Arc<AtomicU64>,
    neighbours: RwLock<Option<Arc<dyn Neighbours>>>,
    ledger: Ledger,
    /// What listings show; see [`overview`].
    overview: tokio::sync::Mutex<Option<overview::Kept>>,
    /// What was measured of files that do not change.
    measured: Mutex<usage::Memory>,
}

impl Images {
    /// Operations on a root.
    pub fn new(store: orlop_metadata::Store, settings: Settings) -> Self {
        let inner = Inner {
            store,
            platform: settings.platform.clone(),
            settings: RwLock::new(Arc::new(settings)),
            pulled: Arc::default(),
            neighbours: RwLock::default(),
            ledger: Ledger::default(),
            overview: Default::default(),
            measured: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The root.
    pub fn store(&self) -> &orlop_metadata::Store {
        &self.inner.store
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        self.inner.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the settings, for what begins from now on; but not the platform. What they mean for images that are there
    /// (pins, managed namespaces) comes with the next [`Images::reconcile`].
    pub fn set_settings(&self, settings: Settings) {
        let settings = Arc::new(Settings { platform: self.inner.platform.clone(), ..settings });
        *self.inner.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// The platform that images are unpacked for and listed by.
    pub(crate) fn platform(&self) -> &orlop_oci::Platform {
        &self.inner.platform
    }

    /// Asks these for blobs before their registry, from now on.
    pub fn set_nearby(&self, neighbours: Option<Arc<dyn Neighbours>>) {
        *self.inner.neighbours.write().unwrap_or_else(PoisonError::into_inner) = neighbours;
    }

    /// Who is asked for blobs before their registry.
    pub fn nearby(&self) -> Option<Arc<dyn Neighbours>> {
        self.inner.neighbours.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who was asked for which blob lately.
    pub fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    /// Bytes of images that came from registries so far, by whatever kind of pull.
    pub fn pulled_bytes(&self) -> u64 {
        self.inner.pulled.load(Ordering::Relaxed)
    }

    /// Runs a call to the database on the blocking pool. It starts at once, whether or not the future is polled: a
    /// reader of a pipe must run while its writer is awaited.
    pub(crate) fn blocking<T, F>(&self, call: F) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&orlop_metadata::Store) -> Result<T> + Send + 'static,
    {
        self.blocking_within(tracing::Span::current(), call)
    }

    /// The same in a span other than the current one.
    pub(crate) fn blocking_within<T, F>(
        &self,
        span: tracing::Span,
        call: F,
    ) -> impl Future<Output = Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&orlop_metadata::Store) -> Result<T> + Send + 'static,
    {
        let store = self.inner.store.clone();
        let running = tokio::task::spawn_blocking(move || span.in_scope(|| call(&store)));
        async {
            match running.await {
                Ok(result) => result,
                Err(stopped) => match stopped.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(Error::Interrupted),
                },
            }
        }
    }
}
