//! The store as a mirror of other registries, and as a cache of them that fills itself.
//!
//! A client asks for what `docker.io/library/busybox` has. [`Mirror`] gives what the records of that repository lead to; of
//! repositories that it may fetch from ([`MirrorSettings::fetch`]) it also brings what is not here, as far as it is asked for:
//!
//! - **A tag** is asked of its registry, by HEAD, unless that was done a moment ago ([`MirrorSettings::fresh`]). What it means is
//!   remembered apart from the node's own records (`orlop_metadata::Mirrored`): to ask a mirror changes no name of the node. While the
//!   registry cannot be asked, the last meaning is given, and it is said that it may be old.
//! - **A manifest** is fetched once, the gate is asked as for a pull, and it gets a record `repository@digest`, labelled
//!   `io.orlop.cached`. What an index of the repository has needs none.
//! - **A blob** is fetched by one task, a *flight* ([`blobs`]), whoever asks and however many; all are given the bytes as they come.
//!
//! A record with that label is a name like any other: while its image lacks blobs nothing counts it as there, and when all of it has
//! come, hash references are made for it as after a pull. A pull, a push or an import of the same takes the label away. What keeps the
//! label goes when nobody asked for it for a while ([`keep`]), by `orlop rm`, or by kubelet's collection when its image is complete.
//!
//! # Invariants
//! - Nothing is visible through a repository but what a record of it leads to, or what its registry said to have when it was asked for
//!   this request. Having a digest somewhere in the store opens nothing.
//! - No repository is fetched from that no pattern names, nobody's secrets are used but this node's own, and the gate is asked
//!   before a record is written. A blob whose manifest did not come by here is fetched only where the gate lets in everything.
//! - A blob counts as here when its bytes were hashed. Who is given bytes of a flight never gets the last one before that.
//! - Two mirrors that ask each other do not wait for each other: requests say through which mirrors they came ([`Via`]).
//!
//! # Concurrency
//! [`Mirror`] is cheap to clone. Of those who ask for the same manifest one asks the registry and the others wait. Dropping a request
//! stops nothing that others wait for.

mod blobs;
mod keep;
mod manifests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orlop_metadata::{self as metadata, Mirrored, Repositories, Scope};
use orlop_oci::{Descriptor, Digest, Document, Reference, RepositoryName};
use orlop_remote::{Client, ClientOptions, Turns};

use crate::{Images, Pattern, Result};
use blobs::Flights;

/// What the history calls whoever has records written.
const ACTOR: &str = "mirror";
/// Mirrors that a request may have come through.
const MAX_VIA: usize = 4;
/// Other mirrors that this one has clients for.
const MAX_CLIENTS: usize = 16;
/// Tags and records of which it is known when they were last asked for; then they are forgotten.
const MAX_KNOWN: usize = 8192;
/// How often it is written down that a record is used.
const USE_EVERY: Duration = Duration::from_secs(300);

/// What a mirror gives and fetches.
#[derive(Debug, Clone)]
pub struct MirrorSettings {
    /// The namespace whose records it has.
    pub namespace: String,
    /// Repositories that are given to clients, as far as they are here.
    pub give: Vec<Pattern>,
    /// Repositories that are given, and fetched where they are not here.
    pub fetch: Vec<Pattern>,
    /// For how long a tag is believed to mean what its registry said.
    pub fresh: Duration,
    /// For how long what was fetched stays without being asked for; zero: as long as there is room.
    pub keep: Duration,
    /// How many bytes it may take; zero: any number.
    pub keep_bytes: u64,
    /// How registries are reached, with this node's own secrets.
    pub registry: ClientOptions,
}

/// Through which mirrors a request came, the last one last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Via(Vec<String>);

impl Via {
    /// Reads a header's value; what is no name of a mirror is left out.
    pub fn parse(value: &str) -> Self {
        let names = value.split(',').map(str::trim);
        let is_name =
            |name: &&str| !name.is_empty() && name.len() <= 32 && name.bytes().all(|b| b.is_ascii_alphanumeric());
        Self(names.filter(is_name).take(MAX_VIA + 1).map(str::to_owned).collect())
    }
}

/// How a manifest is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorKey {
    /// By tag.
    Tag(String),
    /// By digest.
    Digest(Digest),
}

/// A manifest that is given.
#[derive(Debug, Clone)]
pub struct MirroredManifest {
    /// What it is.
    pub document: Document,
    /// The registry could not be asked whether the tag still means it; why.
    pub stale: Option<String>,
}

/// How often requests had which end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MirrorCounts {
    /// Given from here, without asking anybody.
    pub hits: u64,
    /// Fetched for it, or asked of the registry.
    pub misses: u64,
    /// Given although the registry could not be asked.
    pub stale: u64,
    /// Neither here nor to be had.
    pub failures: u64,
    /// Blobs that are being fetched now.
    pub fetching: u64,
}

/// A mirror over the images of a node.
#[derive(Clone)]
pub struct Mirror {
    inner: Arc<Inner>,
}

struct Inner {
    images: Images,
    settings: MirrorSettings,
    repositories: Repositories,
    mirrored: Mirrored,
    /// What this mirror is called in a [`Via`].
    id: String,
    clients: Mutex<HashMap<Via, Client>>,
    turns: Turns<String>,
    /// When tags were last asked of their registry, and what it said if that was no answer.
    asked: Mutex<HashMap<String, Asked>>,
    /// When it was last written down that a record is used.
    used: Mutex<HashMap<String, Instant>>,
    flights: Flights,
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    failures: AtomicU64,
}

/// A tag was asked of its registry.
#[derive(Debug, Clone)]
struct Asked {
    at: Instant,
    /// Why it could not be.
    failed: Option<String>,
}

impl Mirror {
    /// A mirror over these images. Blocks.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn open(images: &Images, settings: MirrorSettings) -> metadata::Result<Self> {
        let repositories = images.store().repositories(&settings.namespace)?;
        let mirrored = images.store().mirrored(&settings.namespace)?;
        let id: String = uuid();
        let inner = Inner {
            images: images.clone(),
            settings,
            repositories,
            mirrored,
            id,
            clients: Mutex::default(),
            turns: Turns::default(),
            asked: Mutex::default(),
            used: Mutex::default(),
            flights: Flights::default(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The repository of a registry that clients mean, if it is mirrored: `docker.io` and `busybox` mean
    /// `docker.io/library/busybox`.
    pub fn repository(&self, registry: &str, path: &str) -> Option<RepositoryName> {
        let registry = match registry {
            "registry-1.docker.io" | "index.docker.io" => "docker.io",
            other => other,
        };
        let name = RepositoryName::parse(&format!("{registry}/{path}")).ok()?;
        (name.domain() == registry && self.gives(&name)).then_some(name)
    }

    /// What happened so far.
    pub fn counts(&self) -> MirrorCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Inner { hits, misses, stale, failures, flights, .. } = &*self.inner;
        let fetching = flights.count();
        MirrorCounts { hits: get(hits), misses: get(misses), stale: get(stale), failures: get(failures), fetching }
    }

    fn gives(&self, repository: &RepositoryName) -> bool {
        self.fetches(repository) || self.inner.settings.give.iter().any(|pattern| pattern.matches(repository))
    }

    fn fetches(&self, repository: &RepositoryName) -> bool {
        self.inner.settings.fetch.iter().any(|pattern| pattern.matches(repository))
    }

    /// Whoever may be asked on behalf of a request that came through these mirrors; nobody if this is one of them.
    fn client(&self, repository: &RepositoryName, via: &Via) -> Option<Client> {
        let Inner { settings, id, clients, .. } = &*self.inner;
        if !self.fetches(repository) || via.0.len() >= MAX_VIA || via.0.contains(id) {
            return None;
        }
        let mut clients = lock(clients);
        if let Some(client) = clients.get(via) {
            return Some(client.clone());
        }
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        let mut options = settings.registry.clone();
        let names: Vec<&str> = via.0.iter().map(String::as_str).chain([&**id]).collect();
        options.via = names.join(",");
        let client = Client::new(options);
        clients.insert(via.clone(), client.clone());
        Some(client)
    }

    fn scope(&self) -> Scope {
        Scope::new(&*self.inner.settings.namespace, ACTOR)
    }

    /// The name of a record of the repository that leads to a digest.
    async fn leading_to(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<String>> {
        let (known, repository, digest) = (self.inner.repositories.clone(), repository.to_string(), digest.clone());
        self.inner.images.blocking(move |_| Ok(known.leading_to(&repository, &digest)?)).await
    }

    /// What the record of this name points at.
    async fn record(&self, name: &Reference) -> Result<Option<Descriptor>> {
        let record = self.inner.images.named_record(&self.scope(), &name.to_string()).await?;
        Ok(record.map(|record| record.target))
    }

    async fn remembered<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Mirrored) -> metadata::Result<T> + Send + 'static,
    ) -> Result<T> {
        let mirrored = self.inner.mirrored.clone();
        self.inner.images.blocking(move |_| Ok(call(&mirrored)?)).await
    }

    /// A record is used, and is not to go soon.
    async fn touch(&self, name: &str) {
        {
            let mut used = lock(&self.inner.used);
            if used.get(name).is_some_and(|at| at.elapsed() < USE_EVERY) {
                return;
            }
            if used.len() >= MAX_KNOWN {
                used.clear();
            }
            used.insert(name.to_owned(), Instant::now());
        }
        let owned = name.to_owned();
        if let Err(error) = self.remembered(move |mirrored| mirrored.put_use(&owned)).await {
            tracing::warn!(%error, name, "that it is used could not be written down");
        }
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A name that no other process has.
fn uuid() -> String {
    let mut bytes = [0u8; 8];
    // What is left as it was makes two mirrors one to each other: they do without each other then.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics between two changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_with_bounds() {
        assert_eq!(Via::parse("a1, b2"), Via(vec!["a1".into(), "b2".into()]));
        assert_eq!(Via::parse(""), Via::default());
        assert_eq!(Via::parse("a b, \u{7f}, ok"), Via(vec!["ok".into()]));
        assert_eq!(Via::parse(&"x,".repeat(1000)).0.len(), MAX_VIA + 1);
    }
}
