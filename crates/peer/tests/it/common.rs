//! A node with its store and its peers, and a registry behind a proxy that counts.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use orlop_content::LocalStore;
use orlop_image::{BlobSource, Images, Neighbourhood, Neighbours, Outcome, PullRequest, Source};
use orlop_metadata::{OpenOptions, Scope, Store};
use orlop_oci::Digest;
use orlop_peer::{Peers, Settings};
use orlop_remote::{Client, ClientOptions};
use orlop_snapshot::{Driver, NativeDriver};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::proxy::Proxy;

/// Where every node of these tests listens and serves.
const LISTEN: u16 = 45_001;
const SERVE: u16 = 45_000;

/// How long something that must happen may take on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Addresses that no other test and no other process of these tests has: one network of loopback for each fleet.
pub(crate) struct Fleet {
    network: [u8; 3],
    next: AtomicU8,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self { network: [127, 64 | ((high ^ count) & 0x3f), low], next: AtomicU8::new(1 + (count & 0x1f) * 7) }
    }

    /// The settings of one more node, which meets those before it.
    pub(crate) fn settings(&self) -> Settings {
        let [a, b, c] = self.network;
        let last = self.next.fetch_add(1, Ordering::Relaxed);
        let ip = IpAddr::from([a, b, c, last]);
        Settings {
            listen: SocketAddr::new(ip, LISTEN),
            serve: SocketAddr::new(ip, SERVE),
            bootstrap: Vec::new(),
            ..Settings::default()
        }
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) images: Images,
    pub(crate) peers: Option<Arc<Peers>>,
    pub(crate) settings: Settings,
    pub(crate) root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Node {
    /// A node with these settings that knows another one, if there is one.
    pub(crate) async fn start(mut settings: Settings, first: Option<&Self>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let content = Arc::new(LocalStore::open(root.join("content")).unwrap());
        let driver: Arc<dyn Driver> = Arc::new(NativeDriver::open(root.join("snapshots/native")).unwrap());
        let store = Store::open(&root, OpenOptions { content, drivers: vec![driver], read_only: false }).unwrap();
        let images = Images::new(store, orlop_image::Settings::default());
        settings.identity = root.join("peer.key");
        settings.bootstrap.extend(first.map(|first| first.settings.listen.to_string().parse().unwrap()));
        let mut node = Self { images, peers: None, settings, root, _dir: dir };
        node.join().await;
        node
    }

    /// Takes part, again if it did before.
    pub(crate) async fn join(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let peers = loop {
            match Peers::start(&self.images, self.settings.clone()).await {
                Ok(peers) => break peers,
                // It left a moment ago, and its sockets are about to close.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.images.set_nearby(Some(peers.clone()));
        self.peers = Some(peers);
    }

    /// Takes no part any more, at once.
    pub(crate) fn leave(&mut self) {
        self.images.set_nearby(None);
        self.peers = None;
    }

    pub(crate) fn report(&self) -> Neighbourhood {
        self.peers.as_ref().unwrap().report()
    }

    pub(crate) fn id(&self) -> String {
        self.report().id
    }

    /// Waits until so many peers are connected.
    pub(crate) async fn meets(&self, count: usize) {
        until("peers meet", || self.report().neighbours.iter().filter(|n| n.is_connected).count() >= count).await;
    }

    /// Waits until it announces so many digests, and a moment for others to hear it.
    pub(crate) async fn announces(&self, content: &Content) {
        let all = content.push_order().len() as u64;
        until("digests are announced", || self.report().announced >= all).await;
    }

    pub(crate) async fn pull(&self, reference: &str) -> orlop_image::Result<Outcome> {
        let client = Client::new(ClientOptions { plain_http: true, ..ClientOptions::default() });
        let request = PullRequest { reference: reference.to_owned(), ..PullRequest::default() };
        self.images.pull(&Scope::new("k8s.io", "test"), &client, &request, &|_| {}).await
    }

    /// Whoever gave each of these blobs, by the ledger.
    pub(crate) fn gave(&self, digest: &Digest) -> Vec<(Source, String)> {
        let blobs: Vec<BlobSource> = self.images.ledger().of(std::slice::from_ref(digest));
        let asked = blobs.into_iter().rev().flat_map(|blob| blob.asked);
        asked.filter(|asking| asking.bytes > 0).map(|asking| (asking.source, asking.said)).collect()
    }

    /// Whether all of a blob came from a peer.
    pub(crate) fn had_from_peers(&self, digest: &Digest) -> bool {
        self.gave(digest).iter().all(|(source, _)| *source == Source::Neighbour) && !self.gave(digest).is_empty()
    }

    /// Every byte in the store hashes to its name.
    pub(crate) async fn is_sound(&self) {
        let request = orlop_image::CheckRequest { deep: true, name: None };
        let problems = self.images.check(&Scope::new("k8s.io", "test"), &request).await.unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// The file of a blob.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("content/blobs/sha256").join(digest.hex())
    }
}

/// Waits for something that must come.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A registry, and how much it gave.
pub(crate) struct Origin {
    registry: Liar,
    pub(crate) proxy: Proxy,
}

impl Origin {
    pub(crate) fn start() -> Self {
        let registry = Liar::start();
        let proxy = Proxy::start(registry.host().parse().unwrap());
        Self { registry, proxy }
    }

    /// Has an image; returns its name.
    pub(crate) fn has(&self, name: &str, content: &Content) -> String {
        self.registry.put(name, "1", content);
        format!("{}/{name}:1", self.proxy.host())
    }

    /// Bytes that it gave.
    pub(crate) fn gave(&self) -> u64 {
        self.proxy.counts().down
    }
}

/// An image of so many layers of so many bytes that cannot be compressed.
pub(crate) fn image(seed: u64, layers: u64, bytes: usize) -> Content {
    let mut image = Image::host();
    for at in 0..layers {
        image = image.layer(Layer::noise(&format!("file-{at}"), seed * 100 + at, bytes));
    }
    Content::image(&image)
}

/// `HOST/NAME@DIGEST` of an image under a name.
pub(crate) fn exact(name: &str, content: &Content) -> String {
    format!("{}@{}", name.rsplit_once(':').unwrap().0, content.root.digest)
}
