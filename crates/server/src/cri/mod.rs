//! Kubernetes' Container Runtime Interface, v1: the image service whole, and of the runtime service what an image store
//! can answer. Everything is in the namespace `k8s.io`.
//!
//! Which images there are and what names mean is [`orlop_image::CriCatalog`]'s to say; here it is put into messages.
//!
//! # Invariants
//! - What the store committed before a call is in its answer, whoever committed it.
//! - Answers to the same question are made once: as long as nothing changed, listing costs what copying costs.
//! - Secrets are neither logged nor kept longer than the pull that brought them.
//!
//! # Concurrency
//! Calls run at the same time. Pulls of one image with the same secret are one pull: see `pull.rs`.

pub(crate) mod auth;
pub(crate) mod filesystems;
mod images;
mod info;
mod listing;
mod pull;
pub(crate) use pull::Progress;
mod runtime;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use orlop_image::{CriCatalog, Images};
use orlop_metadata::Scope;
use orlop_remote::{Client, ClientOptions, Login};
use tokio::sync::Semaphore;

/// Where kubelet's images are.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// Who the history names.
const ACTOR: &str = "cri";

/// How CRI's calls are answered. What is pinned is a matter of [`orlop_image::Settings`].
#[derive(Debug, Clone)]
pub struct CriSettings {
    /// How pulls reach registries. Secrets of a request go before those named here.
    pub registry: ClientOptions,
    /// How many images may be pulled at once; the others wait in the order in which they came. 1: one after the other;
    /// 0: no limit.
    pub parallel_pulls: usize,
    /// A pull that nothing came from for so long is given up; zero: never. Time in which nothing is asked of the network,
    /// because layers are being unpacked, does not count.
    pub progress_timeout: Duration,
    /// Snapshot drivers of runtime handlers that do not use the default one.
    pub runtime_snapshotters: BTreeMap<String, String>,
    /// Whether what is pulled is unpacked here; if not, a containerd beside does that, or is given it.
    pub unpack: bool,
}

impl Default for CriSettings {
    fn default() -> Self {
        Self {
            registry: ClientOptions::default(),
            parallel_pulls: 0,
            progress_timeout: Duration::from_secs(5 * 60),
            runtime_snapshotters: BTreeMap::new(),
            unpack: true,
        }
    }
}

/// CRI over the images of a root. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cri {
    inner: Arc<Inner>,
}

struct Inner {
    now: RwLock<Arc<Now>>,
    catalog: CriCatalog,
    listing: listing::Listing,
    filesystems: filesystems::Filesystems,
    pulls: pull::Pulls,
}

/// What the settings ask for at the moment.
struct Now {
    settings: CriSettings,
    /// `None`: any number of pulls at once.
    permits: Option<Arc<Semaphore>>,
    /// Of pulls that bring no secret, so that connections and tokens are used again.
    client: Client,
}

impl Now {
    fn new(settings: CriSettings) -> Self {
        let limit = settings.parallel_pulls;
        let permits = (limit > 0).then(|| Arc::new(Semaphore::new(limit)));
        Self { permits, client: Client::new(settings.registry.clone()), settings }
    }

    /// The same with other settings; what has not changed is kept.
    fn with(&self, settings: CriSettings) -> Self {
        let (same, new) = (&self.settings, Self::new(settings));
        let permits =
            if same.parallel_pulls == new.settings.parallel_pulls { self.permits.clone() } else { new.permits };
        let (old, now) = (&same.registry, &new.settings.registry);
        let registry = old.hosts_dirs == now.hosts_dirs && old.asks_nobody() && now.asks_nobody();
        Self { permits, client: if registry { self.client.clone() } else { new.client }, settings: new.settings }
    }
}

impl Cri {
    pub(crate) fn new(images: Images, settings: CriSettings) -> Self {
        let (now, pulls) = (RwLock::new(Arc::new(Now::new(settings))), pull::Pulls::default());
        let (listing, filesystems) = (listing::Listing::default(), filesystems::Filesystems::new(scope(), ""));
        let catalog = CriCatalog::new(images, NAMESPACE);
        Self { inner: Arc::new(Inner { now, catalog, listing, filesystems, pulls }) }
    }

    /// Replaces the settings for pulls that begin from now on; those that wait for their turn go by the bound they came
    /// under.
    pub(crate) fn set(&self, settings: CriSettings) {
        let mut now = self.inner.now.write().unwrap_or_else(PoisonError::into_inner);
        let next = now.with(settings);
        *now = Arc::new(next);
    }

    fn now(&self) -> Arc<Now> {
        self.inner.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How registries are reached when nobody asked for it: without anybody's secrets but the node's own.
    pub(crate) fn client(&self) -> Client {
        self.now().client.clone()
    }

    /// How registries are reached for one operation, with the secret that was brought for it. One that has secrets is nobody else's:
    /// how long those of the node count is their programs' to say.
    pub(crate) fn client_with(&self, login: Option<Login>) -> Client {
        let now = self.now();
        if login.is_none() && now.settings.registry.asks_nobody() {
            return now.client.clone();
        }
        Client::new(ClientOptions { login, ..now.settings.registry.clone() })
    }

    /// How long a pull may stand still.
    pub(crate) fn progress_timeout(&self) -> Duration {
        self.now().settings.progress_timeout
    }

    /// Has the first answer about images made, so that it is there, or on its way, when it is asked for.
    pub(crate) async fn prepare(&self) {
        if let Err(error) = self.catalog().view().await {
            tracing::debug!(%error, "the images could not be looked through; whoever asks for them tries again");
        }
    }

    pub(crate) fn catalog(&self) -> &CriCatalog {
        &self.inner.catalog
    }

    fn images(&self) -> &Images {
        self.inner.catalog.images()
    }
}

fn scope() -> Scope {
    Scope::new(NAMESPACE, ACTOR)
}
