//! An S3 server: `versitygw` over a directory, which `scripts/peers` builds; and what makes it busy for a while.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process::{Tied, need_peer};

/// Access key and secret of every server that is started here.
pub const ACCESS_KEY: &str = "orlop";
/// See [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "orlop-secret";

const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);

/// A running server with a directory of its own, in which each directory is a bucket.
#[derive(Debug)]
pub struct S3 {
    // Ended before its directory is removed.
    _server: Tied,
    address: SocketAddr,
    dir: tempfile::TempDir,
    buckets: AtomicU32,
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
        let program = need_peer("versitygw")?;
        let dir = tempfile::Builder::new().prefix("orlop-s3").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("buckets")).expect("a directory");
        // Another process may take a port that is free now.
        for _ in 0..10 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
            let address = free.expect("a free port");
            let mut server = start(&program, dir.path(), address);
            if answers(&mut server, address) {
                return Some(Self { _server: server, address, dir, buckets: AtomicU32::new(0) });
            }
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("versitygw does not come up:\n{log}");
    }

    /// Makes an empty bucket; returns its name.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn bucket(&self) -> String {
        let name = format!("bucket-{}", self.buckets.fetch_add(1, Ordering::Relaxed));
        std::fs::create_dir(self.directory(&name)).expect("a bucket can be made");
        name
    }

    /// Where a bucket's objects are, as files called by their keys.
    pub fn directory(&self, bucket: &str) -> PathBuf {
        self.dir.path().join("buckets").join(bucket)
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

fn start(program: &Path, dir: &Path, address: SocketAddr) -> Tied {
    let mut command = Command::new(program);
    command.arg("--port").arg(address.to_string()).args(["--quiet", "--access", ACCESS_KEY, "--secret", SECRET_KEY]);
    command.arg("posix").arg(dir.join("buckets"));
    Tied::start(&command, dir, &dir.join("log"), |_| {}).unwrap_or_else(|e| panic!("versitygw: {e}"))
}

/// Whether it takes connections; not if it has ended.
fn answers(server: &mut Tied, address: SocketAddr) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && server.runs() {
        if TcpStream::connect(address).is_ok() {
            // Not another program's port: ours is still there when it is taken.
            std::thread::sleep(STEP);
            return server.runs();
        }
        std::thread::sleep(STEP);
    }
    false
}
