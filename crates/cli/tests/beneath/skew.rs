//! Versions that do not fit each other are refused, or explained: what was expected, what was found, what to do.

use std::path::{Path, PathBuf};

use orlop_api::containerd::services::snapshots::v1 as pb;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::services::version::v1::VersionResponse;
use orlop_api::containerd::services::version::v1::version_server::{Version, VersionServer};
use orlop_testkit::containerd::Programs;
use tokio::runtime::Runtime;
use tonic::{Request, Response, Status};

use crate::common::{Orlop, binary};
use crate::stack::{By, Of, Stack, image, options};

/// A server that says a version and has no other call.
struct Other {
    runtime: Runtime,
    dir: tempfile::TempDir,
}

struct Says(&'static str);

#[tonic::async_trait]
impl Version for Says {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: self.0.to_owned(), revision: String::new() }))
    }
}

impl Other {
    fn start(version: &'static str) -> Self {
        let dir = tempfile::Builder::new().prefix("other").tempdir_in("/tmp").unwrap();
        let other = Self { runtime: Runtime::new().unwrap(), dir };
        let _context = other.runtime.enter();
        let listener = tokio::net::UnixListener::bind(other.socket()).unwrap();
        let connections = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(VersionServer::new(Says(version)));
        other.runtime.spawn(server.serve_with_incoming(connections));
        other
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }
}

#[test]
fn a_containerd_that_is_too_old_is_refused() {
    for (version, found) in [("v1.4.13", "found v1.4.13"), ("", "found \"\""), ("unknown", "found \"unknown\"")] {
        let other = Other::start(version);
        let config = other.dir.path().join("config.toml");
        std::fs::write(&config, "version = 2\n").unwrap();
        let mut install = binary();
        install.arg("--address").arg(other.socket()).args(["install", "--dry-run", "--containerd-config"]).arg(&config);
        let done = install.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(4), "{said}");
        assert!(said.contains("expected") && said.contains(found) && said.contains("  hint: "), "{said}");
    }
}

#[test]
fn a_daemon_of_another_version_that_lacks_a_call_is_named() {
    let other = Other::start("2.3.0+orlop.9.9.9");
    let store = Orlop::new();
    let address = other.socket().display().to_string();
    for command in [&["undo", "--list"][..], &["check"]] {
        let done = store.run([&["--address", address.as_str()], command].concat());
        assert_ne!(done.code, 0, "{done:?}");
        let expected = format!("the daemon is orlop 9.9.9, this command is orlop {}", env!("CARGO_PKG_VERSION"));
        assert!(done.err.contains(&expected) && done.err.contains("start the daemon again"), "{done:?}");
    }
}

#[test]
fn a_store_of_a_newer_orlop_is_refused_by_the_daemon_and_by_commands() {
    let store = Orlop::new();
    drop(store.serve(&[]));
    rusqlite::Connection::open(store.root().join("meta.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let raw = store.path("raw").display().to_string();
    for command in [&["serve", "--socket", "/nonexistent/s", "--raw-socket", raw.as_str()][..], &["images"], &["check"]]
    {
        let done = store.run(command);
        assert_ne!(done.code, 0, "{done:?}");
        for word in ["meta.db has format 99", "reads up to format", "use a newer orlop"] {
            assert!(done.err.contains(word), "{command:?}: {word:?} is not in\n{}", done.err);
        }
    }
    assert!(!Path::new(&raw).exists(), "nobody is served from such a store");
}

/// Labels of a containerd that is newer than anybody here.
fn unknown_labels() -> [(String, String); 3] {
    [
        ("containerd.io/snapshot/cri.layer-future".to_owned(), "x".to_owned()),
        ("containerd.io/snapshot.future".to_owned(), "y".to_owned()),
        ("example.org/mine".to_owned(), String::from("z")),
    ]
}

#[test]
fn labels_that_the_snapshotter_does_not_know_are_kept_and_change_nothing() {
    let store = Orlop::new();
    let raw = store.path("raw");
    let served = store.serve(&["--raw-socket", raw.to_str().unwrap()]);
    let runtime = Runtime::new().unwrap();
    let shown = runtime.block_on(async {
        let channel = orlop_api::channel::unix(&raw).await.unwrap();
        let mut client = SnapshotsClient::new(channel);
        let asked = pb::PrepareSnapshotRequest {
            snapshotter: "orlop-overlay".into(),
            key: "default/1/extract-1 sha256:a".into(),
            labels: unknown_labels().into_iter().collect(),
            ..Default::default()
        };
        let mounts = client.prepare(asked.clone()).await.unwrap().into_inner().mounts;
        assert_eq!(mounts.len(), 1);
        let stat = pb::StatSnapshotRequest { snapshotter: "orlop-overlay".into(), key: asked.key.clone() };
        let shown = client.stat(stat).await.unwrap().into_inner().info.unwrap().labels;
        // A name of a plugin that nobody has here.
        let other = pb::PrepareSnapshotRequest { snapshotter: "orlop-future".into(), ..asked };
        let refused = client.prepare(other).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        assert!(refused.message().contains("here are orlop-overlay, orlop-erofs and orlop-native"), "{refused:?}");
        shown
    });
    assert_eq!(shown, unknown_labels().into_iter().collect());
    drop(served);
    store.is_sound();
}

#[test]
fn a_containerd_that_does_not_name_the_image_brings_it_itself_and_the_log_says_how_to_change_that() {
    let Some(programs) = Programs::debian().filter(|_| orlop_testkit::process::need_root()) else { return };
    let Some(content) = image() else { return };
    let Some(mut stack) = Stack::start_with(&programs, Of::Snapshotter, By::Cri, &content, "") else { return };
    // As containerd 1.6 is without being told otherwise.
    let mut silent = options(&programs, Of::Snapshotter, By::Cri, &stack.store.path("raw"), &stack.store);
    silent.config = silent.config.replace("disable_snapshot_annotations = false\n", "");
    stack.containerd = orlop_testkit::containerd::Containerd::start(&programs, &silent);
    stack.pull().ok();
    assert_eq!(stack.layers_in_containerd().len(), 3, "containerd brings them");
    assert_eq!(stack.fallbacks(), [""; 0]);
    let log = stack.served.log();
    let said = log.lines().filter(|line| line.contains("disable_snapshot_annotations = false for CRI")).count();
    assert_eq!(said, 1, "{log}");
    if let Some(said) = stack.run("one", &["--rm"], "cat /etc/kept") {
        assert_eq!(said, "kept");
    }
    stack.remove();
    stack.is_emptied();
}
