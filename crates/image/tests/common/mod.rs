//! A root in a temporary directory, a registry over loopback, and images made on the spot.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod proxy;
pub mod sign;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use orlop_content::{LocalStore, MemoryStore};
use orlop_image::{Event, Images, Outcome, PullRequest, Settings};
use orlop_metadata::{OpenOptions, Scope, Store};
use orlop_oci::{Descriptor, Digest, Document, Reference, media_type};
use orlop_registry::{MemoryIndex, Registry, ServeOptions, Server};
use orlop_remote::{Client, ClientOptions};
use orlop_snapshot::{Driver, NativeDriver, OverlayDriver};
use orlop_testkit::compress;
pub use orlop_testkit::tar::Entry;
use orlop_testkit::tar::tar;
use serde_json::{Value, json};

/// A root with its own store.
pub struct Node {
    pub root: PathBuf,
    pub images: Images,
    pub scope: Scope,
    _directory: Option<tempfile::TempDir>,
}

impl Node {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = open(directory.path(), settings);
        Self { root: directory.path().to_owned(), images, scope: scope(), _directory: Some(directory) }
    }

    pub fn store(&self) -> &Store {
        self.images.store()
    }

    pub fn names(&self) -> Vec<String> {
        self.store().images(&self.scope.namespace, &[]).unwrap().into_iter().map(|i| i.name).collect()
    }

    pub async fn pull(&self, reference: &str) -> orlop_image::Result<Outcome> {
        self.pull_with(reference, PullRequest::default()).await
    }

    pub async fn pull_with(&self, reference: &str, request: PullRequest) -> orlop_image::Result<Outcome> {
        let request = PullRequest { reference: reference.to_owned(), ..request };
        self.images.pull(&self.scope, &client(), &request, &|_| {}).await
    }

    /// Keys of committed snapshots of the default driver.
    pub fn snapshots(&self) -> Vec<String> {
        let all = self.store().snapshots(&self.scope, "").unwrap().list(&[]).unwrap();
        all.into_iter().map(|s| s.name).collect()
    }

    pub fn blobs(&self) -> usize {
        self.store().content(&self.scope).find(&[]).unwrap().len()
    }

    /// No problem is found, deep; nothing is garbage.
    pub async fn is_sound(&self) {
        let request = orlop_image::CheckRequest { deep: true, name: None };
        let problems = self.images.check(&self.scope, &request).await.unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }
}

pub fn scope() -> Scope {
    Scope::new("k8s.io", "test")
}

pub fn open(root: &std::path::Path, settings: Settings) -> Images {
    let content = Arc::new(LocalStore::open(root.join("content")).unwrap());
    let mut drivers: Vec<Arc<dyn Driver>> = Vec::new();
    match OverlayDriver::open(root.join("snapshots/overlayfs")) {
        Ok(driver) => drivers.push(Arc::new(driver)),
        Err(error) => eprintln!("no overlayfs here, native is used: {error}"),
    }
    drivers.push(Arc::new(NativeDriver::open(root.join("snapshots/native")).unwrap()));
    let store = Store::open(root, OpenOptions { content, drivers, read_only: false }).unwrap();
    Images::new(store, settings)
}

pub fn client() -> Client {
    Client::new(ClientOptions::default())
}

/// A registry over loopback.
pub struct Shelf {
    pub server: Server,
}

impl Shelf {
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    /// An empty one at an address.
    pub async fn start_at(address: std::net::SocketAddr) -> Self {
        let registry = Registry::new(Arc::new(MemoryStore::new()), Arc::new(MemoryIndex::new()));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        Self { server: registry.serve(listener, ServeOptions::default()).unwrap() }
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.server.address())
    }

    /// Pushes everything that was made, children first, and puts `target` under a name.
    pub async fn push(&self, made: &Made, name: &str, target: &Descriptor) {
        let reference: Reference = self.name(name).parse().unwrap();
        let repository = reference.repository().unwrap();
        let client = client();
        for (digest, (media_type, bytes)) in &made.blobs {
            let descriptor = Descriptor::new(media_type, digest.clone(), bytes.len() as u64);
            let (is_document, bytes) = (is_document(media_type), bytes.clone());
            if !is_document {
                let source = move |offset: u64| -> orlop_remote::BlobStream {
                    let rest = bytes.slice(offset as usize..);
                    Box::pin(futures::stream::iter([Ok(rest)]))
                };
                client.push_blob(repository, &descriptor, &[], &source, &|_| {}).await.unwrap();
            }
        }
        let mut documents: Vec<_> = made.blobs.iter().filter(|(_, (m, _))| is_document(m)).collect();
        documents.sort_by_key(|(digest, _)| made.order.iter().position(|d| d == *digest));
        for (digest, (media_type, bytes)) in documents {
            let document = Document::parse(bytes.clone(), Some(media_type)).unwrap();
            client.push_document(&repository.with_digest(digest), &document).await.unwrap();
            if *digest == target.digest {
                client.push_document(&reference, &document).await.unwrap();
            }
        }
    }
}

fn is_document(media_type: &str) -> bool {
    media_type.contains("manifest") || media_type.contains("index")
}

/// Blobs made on the spot.
#[derive(Default, Clone)]
pub struct Made {
    pub blobs: BTreeMap<Digest, (String, Bytes)>,
    /// In the order in which they were made: children first.
    pub order: Vec<Digest>,
}

impl Made {
    pub fn add(&mut self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
        self.blobs.insert(descriptor.digest.clone(), (media_type.to_owned(), bytes));
        self.order.push(descriptor.digest.clone());
        descriptor
    }

    /// An image of gzip layers; `architecture` also makes its config differ.
    pub fn image(&mut self, architecture: &str, layers: &[Vec<Entry>]) -> Descriptor {
        let tars: Vec<Vec<u8>> = layers.iter().map(tar).collect();
        self.image_of(architecture, &tars)
    }

    pub fn image_of(&mut self, architecture: &str, tars: &[Vec<u8>]) -> Descriptor {
        let diff_ids: Vec<String> = tars.iter().map(|t| Digest::of(t).to_string()).collect();
        let layers: Vec<Descriptor> =
            tars.iter().map(|t| self.add(media_type::OCI_LAYER_GZIP, compress::gzip(t))).collect();
        self.image_with(architecture, &diff_ids, &layers)
    }

    pub fn image_with(&mut self, architecture: &str, diff_ids: &[String], layers: &[Descriptor]) -> Descriptor {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.add(media_type::OCI_CONFIG, config.to_string());
        self.manifest(&config, layers)
    }

    /// An image for amd64 whose config alone says who made it.
    pub fn image_by(&mut self, author: &str, tars: &[Vec<u8>]) -> Descriptor {
        let diff_ids: Vec<String> = tars.iter().map(|t| Digest::of(t).to_string()).collect();
        let layers: Vec<Descriptor> =
            tars.iter().map(|t| self.add(media_type::OCI_LAYER_GZIP, compress::gzip(t))).collect();
        let config = json!({
            "author": author, "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.add(media_type::OCI_CONFIG, config.to_string());
        self.manifest(&config, &layers)
    }

    pub fn manifest(&mut self, config: &Descriptor, layers: &[Descriptor]) -> Descriptor {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        self.add(media_type::OCI_MANIFEST, manifest.to_string())
    }

    pub fn index(&mut self, manifests: &[Value]) -> Descriptor {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        self.add(media_type::OCI_INDEX, index.to_string())
    }

    pub fn bytes(&self, digest: &Digest) -> &Bytes {
        &self.blobs[digest].1
    }

    /// The config's digest of a manifest.
    pub fn image_id(&self, manifest: &Descriptor) -> String {
        let manifest: Value = serde_json::from_slice(self.bytes(&manifest.digest)).unwrap();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    }
}

/// An entry of an index.
pub fn on(descriptor: &Descriptor, architecture: &str) -> Value {
    let mut entry = serde_json::to_value(descriptor).unwrap();
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    entry
}

/// Layers that shadow, delete and link.
pub fn layers() -> Vec<Vec<Entry>> {
    let noise: Vec<u8> = (0..700_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    vec![
        vec![
            Entry::dir("etc"),
            Entry::file("etc/passwd", "root:x:0:0\n"),
            Entry::file("etc/gone", "soon"),
            Entry::dir("bin"),
            Entry::file("bin/tool", noise),
        ],
        vec![Entry::file("etc/hosts", "127.0.0.1 localhost\n"), Entry::whiteout("etc/gone")],
        vec![Entry::hardlink("bin/link", "bin/tool"), Entry::file("etc/passwd", "root:x:0:0:changed\n")],
    ]
}

/// Gathers events.
#[derive(Default)]
pub struct Events(pub Mutex<Vec<Event>>);

impl Events {
    pub fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}
