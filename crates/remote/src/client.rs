//! The client: which hosts to ask, in which order, and what is remembered of them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use orlop_oci::{Descriptor, Digest, Document, Reference, RepositoryName};

use crate::auth::Authenticator;
use crate::endpoint::{Endpoint, Patience};
use crate::error::{Error, Result};
use crate::hosts::{self, HostConfig};
use crate::hosts_toml::Capability;
use crate::{
    BlobSource, BlobStream, ClientOptions, Resolved, Tuning, UploadProgress, Uploaded, blob, push, referrers, resolve,
};

/// Registries that are remembered with their connections: a daemon is asked for names of any registry, for years. One that is
/// forgotten is made anew when it is asked for, and lives as long as somebody speaks to it.
const MAX_REGISTRIES: usize = 64;

/// The hosts of a registry.
struct Known {
    configs: Vec<HostConfig>,
    endpoints: Vec<Arc<Endpoint>>,
    used: Instant,
}

/// Talks to registries.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    options: Arc<ClientOptions>,
    tuning: Tuning,
    auth: Authenticator,
    known: Mutex<HashMap<String, Known>>,
    /// Mirrors that could not be reached, by host, and when.
    dead: Mutex<HashMap<String, Instant>>,
    /// Held while a referrers tag is read, extended and written.
    referrers: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A client; configuration files are read when a host is needed, so that changes count from the next operation on.
    pub fn new(options: ClientOptions) -> Self {
        Self::with_tuning(options, Tuning::default())
    }

    /// A client with other times and sizes than the usual ones.
    pub fn with_tuning(options: ClientOptions, tuning: Tuning) -> Self {
        let auth = Authenticator::new(&options);
        Self {
            inner: Arc::new(Inner {
                options: Arc::new(options),
                tuning,
                auth,
                known: Mutex::default(),
                dead: Mutex::default(),
                referrers: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Asks what a tag or digest reference means: HEAD, then GET where the answer lacks digest, length or a media type
    /// that is known.
    ///
    /// # Errors
    /// [`Error::NotFound`] only if every host says so; [`Error::ImageId`] for an image ID.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        resolve::resolve(self, reference).await
    }

    /// Fetches a manifest or index and checks its digest and size.
    pub async fn document(&self, repository: &RepositoryName, descriptor: &Descriptor) -> Result<Document> {
        resolve::document(self, repository, descriptor).await
    }

    /// Streams a blob from `offset` to its end; for non-distributable layers `descriptor.urls` are tried too.
    /// Large blobs may be fetched by several ranges at once, still delivered in order.
    ///
    /// The stream ends with an error if the blob has fewer or more bytes than its descriptor says. After an error it ends.
    pub async fn blob(&self, repository: &RepositoryName, descriptor: &Descriptor, offset: u64) -> Result<BlobStream> {
        blob::open(self, repository, descriptor, offset).await
    }

    /// Whether the registry has a blob in this repository.
    pub async fn has_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool> {
        blob::exists(self, repository, digest).await
    }

    /// How many bytes a blob of this repository has, as the registry says.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not there.
    pub async fn blob_size(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
        blob::size(self, repository, digest).await
    }

    /// Makes a blob present: HEAD, mount from one of `mount_from` (same host), else upload.
    ///
    /// The first host that may be pushed to gets it. An upload is resumed where the host says that it broke.
    pub async fn push_blob(
        &self,
        repository: &RepositoryName,
        descriptor: &Descriptor,
        mount_from: &[RepositoryName],
        source: BlobSource<'_>,
        progress: UploadProgress<'_>,
    ) -> Result<Uploaded> {
        push::push_blob(self, repository, descriptor, mount_from, source, progress).await
    }

    /// Pushes a manifest or index under a tag or its digest. Where it has a subject and the registry does not keep
    /// referrers itself, the referrers tag is updated too (distribution-spec, "Pushing Manifests with Subject").
    pub async fn push_document(&self, reference: &Reference, document: &Document) -> Result<()> {
        push::push_document(self, reference, document).await
    }

    /// Manifests whose subject is `digest`: referrers API, else the tag fallback. None is an empty list.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        referrers::list(self, repository, digest, artifact_type).await
    }

    pub(crate) fn auth(&self) -> &Authenticator {
        &self.inner.auth
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.inner.tuning
    }

    pub(crate) async fn lock_referrers(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.referrers.lock().await
    }

    /// The hosts of a registry that can do something, in the order in which they are to be asked.
    pub(crate) async fn tour(&self, registry: &str, capability: Capability) -> Result<Tour> {
        let mut endpoints = self.endpoints(registry).await?;
        endpoints.retain(|endpoint| endpoint.can(capability));
        if endpoints.is_empty() {
            return Err(Error::NoHost { registry: registry.to_owned(), capability: capability.as_str() });
        }
        Ok(Tour { client: self.clone(), endpoints, next: 0, errors: Vec::new(), revisit: Vec::new() })
    }

    /// The host that takes pushes.
    pub(crate) async fn push_endpoint(&self, registry: &str) -> Result<Arc<Endpoint>> {
        let tour = self.tour(registry, Capability::Push).await?;
        tour.endpoints
            .into_iter()
            .next()
            .ok_or_else(|| Error::NoHost { registry: registry.to_owned(), capability: Capability::Push.as_str() })
    }

    async fn endpoints(&self, registry: &str) -> Result<Vec<Arc<Endpoint>>> {
        let (options, name) = (self.inner.options.clone(), registry.to_owned());
        let configs = match tokio::task::spawn_blocking(move || hosts::load(&options, &name)).await {
            Ok(loaded) => loaded?,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down: nobody will ask again.
                Err(_) => std::future::pending().await,
            },
        };
        let mut known = self.inner.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get_mut(registry).filter(|found| found.configs == configs) {
            found.used = Instant::now();
            return Ok(found.endpoints.clone());
        }
        let last = configs.len() - 1;
        let (tuning, options) = (&self.inner.tuning, &self.inner.options);
        let endpoints = configs
            .iter()
            .enumerate()
            .map(|(at, config)| Endpoint::new(config.clone(), registry, at != last, tuning, options).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        if known.len() >= MAX_REGISTRIES && !known.contains_key(registry) {
            let oldest = known.iter().min_by_key(|(_, found)| found.used).map(|(name, _)| name.clone());
            oldest.and_then(|name| known.remove(&name));
        }
        known.insert(registry.to_owned(), Known { configs, endpoints: endpoints.clone(), used: Instant::now() });
        Ok(endpoints)
    }

    fn is_dead(&self, host: &str) -> bool {
        let dead = self.inner.dead.lock().unwrap_or_else(PoisonError::into_inner);
        dead.get(host).is_some_and(|since| since.elapsed() < self.inner.tuning.dead_time)
    }

    fn mark(&self, host: &str, is_dead: bool) {
        let mut dead = self.inner.dead.lock().unwrap_or_else(PoisonError::into_inner);
        if is_dead {
            dead.insert(host.to_owned(), Instant::now());
        } else {
            dead.remove(host);
        }
    }
}

/// Asks one host after the other.
///
/// A mirror that could not be reached a moment ago is passed over, and asked at the end after all if nobody else could
/// be reached either.
pub(crate) struct Tour {
    client: Client,
    endpoints: Vec<Arc<Endpoint>>,
    next: usize,
    errors: Vec<Error>,
    revisit: Vec<Arc<Endpoint>>,
}

impl Tour {
    /// The next host and how patient to be with it.
    pub(crate) fn next(&mut self) -> Option<(Arc<Endpoint>, Patience)> {
        while let Some(endpoint) = self.endpoints.get(self.next).cloned() {
            self.next += 1;
            if endpoint.is_mirror() && self.client.is_dead(endpoint.host()) {
                self.revisit.push(endpoint);
                continue;
            }
            let last = self.next == self.endpoints.len();
            return Some((endpoint, if last { Patience::Patient } else { Patience::Hasty }));
        }
        if self.errors.iter().all(Error::is_temporary) {
            return self.revisit.pop().map(|endpoint| (endpoint, Patience::Hasty));
        }
        None
    }

    /// This host did not give it.
    pub(crate) fn failed(&mut self, endpoint: &Endpoint, error: Error) {
        if endpoint.is_mirror() && error.is_unreachable() {
            tracing::warn!(host = endpoint.host(), %error, "mirror cannot be reached, left out for a while");
            self.client.mark(endpoint.host(), true);
        }
        tracing::debug!(host = endpoint.host(), %error, "did not give what was asked");
        self.errors.push(error);
    }

    /// This host gave it.
    pub(crate) fn succeeded(&self, endpoint: &Endpoint) {
        if endpoint.is_mirror() {
            self.client.mark(endpoint.host(), false);
        }
    }

    /// What all of them said.
    pub(crate) fn into_error(mut self, what: &str) -> Error {
        self.take_error(what)
    }

    /// The same, where the tour cannot be given away.
    pub(crate) fn take_error(&mut self, what: &str) -> Error {
        // The last error is the one that counts: see `Error::principal`.
        let mut errors: Vec<Error> =
            self.revisit.drain(..).map(|e| Error::Skipped { host: e.host().to_owned() }).collect();
        errors.append(&mut self.errors);
        Error::of_hosts(what, errors)
    }
}
