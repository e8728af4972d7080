//! A content directory that a real containerd wrote.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use orlop_content::{
    IngestManager as _, IngestOptions, Ingester as _, LocalStore, Manager as _, Status, read_verified,
};
use orlop_oci::Digest;

/// How long a containerd may take to answer, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A containerd with nothing but its stores, killed when dropped.
struct Containerd {
    child: Child,
    address: String,
}

impl Containerd {
    /// Says why there is none.
    fn start(directory: &Path) -> Option<Self> {
        for program in ["containerd", "ctr"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: containerd needs root");
            return None;
        }
        let address = directory.join("socket").display().to_string();
        // Nothing refers to the blobs of this test: the first collection would take them.
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"]\n[grpc]\n  address = {address:?}\n\
             [plugins.\"io.containerd.gc.v1.scheduler\"]\n  startup_delay = \"24h\"\n",
            directory.join("root"),
            directory.join("state"),
        );
        std::fs::write(directory.join("config.toml"), config).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(directory.join("config.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        let containerd = Self { child: command.spawn().unwrap(), address };
        let start = Instant::now();
        while !containerd.ctr(&["version"]).output().unwrap().status.success() {
            assert!(start.elapsed() < PATIENCE, "containerd does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(containerd)
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.address]).args(arguments);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ingest_of(store: &LocalStore, bytes: u64) -> Status {
    let start = Instant::now();
    loop {
        if let Some(status) = store.statuses().await.unwrap().into_iter().find(|status| status.offset == bytes) {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "containerd has not written {bytes} bytes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn a_directory_of_containerd_is_read_and_its_ingests_are_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let Some(containerd) = Containerd::start(directory.path()) else { return };
    let whole: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let feed = |reference: &str, size: usize, bytes: &[u8]| {
        let arguments = ["content", "ingest", "--expected-size", &size.to_string(), reference];
        let mut child = containerd.ctr(&arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut pipe, bytes).unwrap();
        (child, pipe)
    };
    let (mut child, pipe) = feed("whole", whole.len(), &whole);
    drop(pipe);
    assert!(child.wait().unwrap().success());

    let content = directory.path().join("root/io.containerd.content.v1.content");
    let store = LocalStore::open(&content).unwrap();
    let digest = Digest::of(&whole);
    let listed = store.list().await.unwrap();
    assert_eq!(listed.iter().map(|info| (&info.digest, info.size)).collect::<Vec<_>>(), [(&digest, 2_000_000)]);
    assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), whole);

    // Half a blob, and containerd is killed. ctr sends whole mebibytes.
    let other: Vec<u8> = whole.iter().rev().copied().chain(whole.iter().copied()).collect();
    let (mut child, pipe) = feed("half", other.len(), &other[..1 << 20]);
    let status = ingest_of(&store, 1 << 20).await;
    drop(containerd);
    drop(pipe);
    child.wait().unwrap();
    assert!(status.reference.ends_with("/half") && status.total == other.len() as u64, "{status:?}");
    let mut writer = store.writer(IngestOptions { reference: status.reference, ..Default::default() }).await.unwrap();
    assert_eq!(writer.status().offset, 1 << 20);
    writer.write(Bytes::copy_from_slice(&other[1 << 20..])).await.unwrap();
    let resumed = writer.commit(other.len() as u64, Some(&Digest::of(&other))).await.unwrap();
    assert_eq!(read_verified(&store, &resumed, 1 << 30).await.unwrap(), other);

    // containerd opens the directory again and reads from it.
    let containerd = Containerd::start(directory.path()).unwrap();
    let read = containerd.ctr(&["content", "get", digest.as_str()]).output().unwrap();
    assert!(read.status.success() && read.stdout == whole);
}
