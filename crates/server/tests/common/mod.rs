//! A root with its services, for tests.
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of this")]

pub mod image;
pub mod mounts;
pub mod raw;
pub mod remote;

use std::path::Path;
use std::sync::Arc;

use orlop_api::{LEASE_HEADER, NAMESPACE_HEADER};
use orlop_content::LocalStore;
use orlop_image::{Images, Settings};
use orlop_metadata::{OpenOptions, Store};
use orlop_server::Server;
use orlop_snapshot::{Driver, ErofsDriver, NativeDriver, OverlayDriver};
use orlop_testkit::mounts::Cleaned;
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::Channel;

/// A root in a temporary directory, served in memory.
pub struct Node {
    /// What is mounted goes before its directory.
    _cleaned: Cleaned,
    pub directory: TempDir,
    pub store: Store,
    pub images: Images,
    pub server: Server,
    pub channel: Channel,
}

impl Node {
    pub fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), Settings::default())
    }

    /// The root in a directory, as it is.
    pub fn at(directory: TempDir, settings: Settings) -> Self {
        let root = directory.path().join("root");
        let (cleaned, store) = (Cleaned(root.clone()), open(&root));
        let images = Images::new(store.clone(), settings);
        let server = Server::new(images.clone());
        let channel = server.in_process();
        Self { _cleaned: cleaned, directory, store, images, server, channel }
    }
}

pub fn open(root: &Path) -> Store {
    let content = Arc::new(LocalStore::open(root.join("content")).unwrap());
    let drivers: Vec<Arc<dyn Driver>> = vec![
        Arc::new(OverlayDriver::open(root.join("snapshots/overlayfs")).unwrap()),
        Arc::new(NativeDriver::open(root.join("snapshots/native")).unwrap()),
        Arc::new(ErofsDriver::open(root.join("snapshots/erofs")).unwrap()),
    ];
    Store::open(root, OpenOptions { content, drivers, read_only: false }).unwrap()
}

/// A request in the namespace `test`.
pub fn request<T>(message: T) -> Request<T> {
    request_in("test", message)
}

pub fn request_in<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, namespace.parse().unwrap());
    request
}

pub fn leased<T>(lease: &str, message: T) -> Request<T> {
    let mut request = request(message);
    request.metadata_mut().insert(LEASE_HEADER, lease.parse().unwrap());
    request
}

/// A map of labels.
pub fn labels(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// The snapshotters that this machine has.
pub fn snapshotters() -> Vec<&'static str> {
    let erofs = rustix::process::geteuid().is_root() && orlop_testkit::mounts::need_file_system("erofs");
    ["overlayfs", "native"].into_iter().chain(erofs.then_some("erofs")).collect()
}
