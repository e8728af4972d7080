//! An S3 server for tests: `versitygw`, or, by `ORLOP_TEST_S3`, Ceph's gateway or Garage; each is brought up by `scripts/s3`.
//!
//! What a test does behind everybody's back, it does by S3 too, so that it holds for all of them.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::signer::Signer as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use crate::process::{Tied, need_peer, which};

/// Access key of every server that is started here, of the form that Garage wants.
pub const ACCESS_KEY: &str = "GK6f726c6f702d7465737473aa";
/// Its secret.
pub const SECRET_KEY: &str = "6f726c6f702d736563726574006f726c6f702d736563726574006f726c6f702d73";

/// A cluster takes a while.
const PATIENCE: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_millis(20);

/// A running server with a directory of its own.
#[derive(Debug)]
pub struct S3 {
    // Ended before its directory is removed.
    _server: Tied,
    address: SocketAddr,
    _dir: tempfile::TempDir,
    buckets: AtomicU32,
}

/// The server that tests are to have, if it is there. One that was asked for by name must be.
fn kind() -> Option<String> {
    match std::env::var("ORLOP_TEST_S3") {
        Ok(kind) if !kind.is_empty() => Some(kind),
        _ => need_peer("versitygw").map(|_| "versitygw".to_owned()),
    }
}

impl S3 {
    /// The server that all tests of this program share; `None`, with a word on standard error, where none is installed.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<S3>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// A server of its own.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start() -> Option<Self> {
        let kind = kind()?;
        // Ceph wants short paths for its sockets.
        let dir = tempfile::Builder::new().prefix("orlop-s3").tempdir_in("/tmp").expect("a temporary directory");
        // Another process may take a port that is free now.
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let address = free.expect("a free port");
            let mut server = start(&kind, dir.path(), address);
            if is_ready(&mut server, dir.path()) {
                return Some(Self { _server: server, address, _dir: dir, buckets: AtomicU32::new(0) });
            }
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("{kind} does not come up:\n{log}");
    }

    /// Makes an empty bucket; returns its name.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn bucket(&self) -> String {
        let name = format!("bucket-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        let client = self.client(&name);
        let put = object_store::signer::Method::PUT;
        let url = block(async move { client.signed_url(put, &Key::default(), PATIENCE).await }).expect("a URL");
        let answer = self.ask(&format!("PUT {}?{} HTTP/1.1", url.path(), url.query().unwrap_or_default()));
        let answer = answer.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "a bucket is not made: {answer}");
        name
    }

    /// What object_store has no call for: a request without a body.
    fn ask(&self, request: &str) -> io::Result<String> {
        let (mut stream, mut answer) = (TcpStream::connect(self.address)?, String::new());
        write!(stream, "{request}\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", self.address)?;
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The keys of all objects below a prefix, in their order.
    ///
    /// # Panics
    /// If the server does not say.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        use futures::TryStreamExt as _;
        let (client, prefix) = (self.client(bucket), Key::from(prefix));
        let listed =
            async move { client.list(Some(&prefix)).map_ok(|object| object.location.into()).try_collect().await };
        let mut keys: Vec<String> = block(listed).expect("a list");
        keys.sort();
        keys
    }

    /// Puts an object there, whatever was.
    ///
    /// # Panics
    /// If the server does not take it.
    pub fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        let (client, key) = (self.client(bucket), Key::from(key));
        block(async move { client.put(&key, bytes.into()).await }).expect("an object can be put");
    }

    /// Deletes an object.
    ///
    /// # Panics
    /// If the server does not.
    pub fn delete(&self, bucket: &str, key: &str) {
        let (client, key) = (self.client(bucket), Key::from(key));
        block(async move { client.delete(&key).await }).expect("an object can be deleted");
    }

    fn client(&self, bucket: &str) -> AmazonS3 {
        let builder = AmazonS3Builder::new().with_bucket_name(bucket).with_region("us-east-1").with_allow_http(true);
        let builder = builder.with_endpoint(format!("http://{}", self.address));
        builder.with_access_key_id(ACCESS_KEY).with_secret_access_key(SECRET_KEY).build().expect("a client")
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a bucket by which `orlop registry` reaches it, at this server or at a proxy of it.
    pub fn url(bucket: &str, address: SocketAddr) -> String {
        format!("s3://{bucket}?endpoint=http://{address}&region=us-east-1")
    }

    /// The credentials as variables of the environment.
    pub fn variables() -> Vec<(String, String)> {
        let of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![of("AWS_ACCESS_KEY_ID", ACCESS_KEY), of("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
    }
}

/// Runs something to its end on a runtime of its own: tests have one, or none.
fn block<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(work)
        };
        scope.spawn(run).join().expect("it does not panic")
    })
}

fn start(kind: &str, dir: &Path, address: SocketAddr) -> Tied {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/s3");
    // A shell that was started with SIGINT ignored, as in the background, could not heed it.
    let mut command = Command::new(which("env").expect("coreutils"));
    command.arg("--default-signal=INT");
    command.args(S3::variables().iter().map(|(name, value)| format!("{name}={value}")));
    command.arg(script).arg(kind).arg(dir).arg(address.to_string());
    Tied::start(&command, dir, &dir.join("log"), |_| {}).unwrap_or_else(|e| panic!("{kind}: {e}"))
}

/// Whether it takes requests; not if it has ended.
fn is_ready(server: &mut Tied, dir: &Path) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && server.runs() {
        if dir.join("ready").exists() {
            return true;
        }
        std::thread::sleep(STEP);
    }
    false
}
