//! What the tests share: a real docker-registry, images of random bytes, clients that do not wait long.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use orlop_oci::media_type::{OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use orlop_oci::{Descriptor, Digest, Document, Reference, RepositoryName};
use orlop_remote::{BlobStream, Client, ClientOptions, Error, Tuning};

/// Debian's docker-registry, ended and deleted when dropped.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Registry {
    /// Starts one, with more lines for its configuration; `None`, with a word why, where it is not installed.
    pub(crate) fn start(http: &str, top: &str) -> Option<Self> {
        let program = "/usr/bin/docker-registry";
        if !std::path::Path::new(program).exists() {
            eprintln!("skipped: {program} is not installed (apt-get install docker-registry)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..5 {
            let address = free_address();
            let config = directory.path().join("config.yml");
            let storage = directory.path().join("data");
            let text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    \
                 enabled: true\nhttp:\n  addr: {address}\n{http}\n{top}\n",
                storage.display()
            );
            std::fs::write(&config, text).unwrap();
            let log = std::fs::File::create(directory.path().join("log")).unwrap();
            let mut child = Command::new(program)
                .arg("serve")
                .arg(&config)
                .env_clear()
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            if listens(address, &mut child) {
                return Some(Self { child, address, _directory: directory });
            }
            // Somebody else took the port in between.
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start: {}", std::fs::read_to_string(directory.path().join("log")).unwrap());
    }

    pub(crate) fn repository(&self, path: &str) -> RepositoryName {
        RepositoryName::parse(&format!("{}/{path}", self.address)).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn listens(address: SocketAddr, child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Times that make a test of failures short.
pub(crate) fn quick() -> Tuning {
    Tuning {
        backoff: Duration::from_millis(5),
        backoff_limit: Duration::from_millis(20),
        attempts: 4,
        ..Tuning::default()
    }
}

pub(crate) fn client() -> Client {
    Client::with_tuning(ClientOptions::default(), quick())
}

/// Bytes that no compressor likes, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn layer(bytes: &Bytes) -> Descriptor {
    Descriptor::new(OCI_LAYER_GZIP, Digest::of(bytes), bytes.len() as u64)
}

/// A manifest of a config and one layer, which need not exist.
pub(crate) fn manifest(config: &Bytes, layer: &Descriptor, extra: &str) -> Document {
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]{extra}}}"#,
        Digest::of(config),
        config.len(),
        layer.media_type,
        layer.digest,
        layer.size
    );
    Document::parse(Bytes::from(text), Some(OCI_MANIFEST)).unwrap()
}

/// Pieces of `bytes` from an offset on.
pub(crate) fn pieces(bytes: &Bytes, offset: u64) -> BlobStream {
    let rest = bytes.slice(offset as usize..);
    let parts: Vec<_> = rest.chunks(60_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    Box::pin(futures::stream::iter(parts))
}

/// Everything a stream gives, with its error if it has one.
pub(crate) async fn collect(stream: BlobStream) -> (Vec<u8>, Option<Error>) {
    let mut stream = stream;
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(bytes) => all.extend_from_slice(&bytes),
            Err(error) => return (all, Some(error)),
        }
    }
    (all, None)
}

/// Pushes bytes; what it came to and how many bytes were reported.
pub(crate) async fn push(client: &Client, repository: &RepositoryName, bytes: &Bytes) -> (orlop_remote::Uploaded, u64) {
    let sent = AtomicU64::new(0);
    let uploaded = client
        .push_blob(repository, &layer(bytes), &[], &|offset| pieces(bytes, offset), &|n| {
            sent.store(n, Ordering::Relaxed)
        })
        .await
        .unwrap();
    (uploaded, sent.into_inner())
}

/// Pushes config, layer and manifest under a tag.
pub(crate) async fn push_image(client: &Client, repository: &RepositoryName, tag: &str, bytes: &Bytes) -> Document {
    let config = Bytes::from_static(b"{}");
    push(client, repository, &config).await;
    push(client, repository, bytes).await;
    let document = manifest(&config, &layer(bytes), "");
    client.push_document(&repository.with_tag(tag).unwrap(), &document).await.unwrap();
    document
}

/// Reads an image back: reference, manifest, layer.
pub(crate) async fn pull_image(client: &Client, reference: &Reference) -> Result<Vec<u8>, Error> {
    let repository = reference.repository().unwrap();
    let resolved = client.resolve(reference).await?;
    let document = client.document(repository, &resolved.descriptor).await?;
    let layer = &document.manifest().unwrap().layers[0];
    match collect(client.blob(repository, layer, 0).await?).await {
        (bytes, None) => Ok(bytes),
        (_, Some(error)) => Err(error),
    }
}

/// A `certs.d` directory with a hosts.toml for each registry.
pub(crate) fn hosts(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (registry, text) in files {
        write_hosts(root.path(), registry, text);
    }
    root
}

pub(crate) fn write_hosts(root: &std::path::Path, registry: &str, text: &str) {
    let name = match registry.split_once(':') {
        Some((host, port)) => format!("{host}_{port}_"),
        None => (*registry).to_owned(),
    };
    let directory = root.join(name);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

/// A client that looks into this directory.
pub(crate) fn client_with_hosts(root: &tempfile::TempDir) -> Client {
    let options = ClientOptions { hosts_dirs: vec![root.path().to_owned()], ..ClientOptions::default() };
    Client::with_tuning(options, quick())
}

/// A client with a user and a password.
pub(crate) fn client_with_user(user: &str, password: &str) -> Client {
    let options =
        ClientOptions { credentials: Some((user.to_owned(), password.to_owned())), ..ClientOptions::default() };
    Client::with_tuning(options, quick())
}

/// What `Authorization` holds for a user.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}
