//! The real `ctr` against the services on a Unix socket.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::common;
use crate::common::Node;
use orlop_testkit::archive::is_whole;
use orlop_testkit::containerd::Programs;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// The services on a socket, until dropped.
struct Daemon {
    node: Node,
    socket: PathBuf,
    ctr: PathBuf,
    /// What makes `ctr` 2.x do the work of images itself, as 1.6 does.
    local: &'static [&'static str],
    _stop: oneshot::Sender<()>,
}

impl Daemon {
    /// Debian's `ctr`, of containerd 1.6.
    fn debian() -> Option<Self> {
        Some(Self::start(Programs::debian()?.ctr, &[]))
    }

    /// A `ctr` of containerd 2.x, which leaves the work to the Transfer service.
    fn current() -> Option<Self> {
        Some(Self::start(Programs::current()?.ctr, &[]))
    }

    /// The same, doing the work itself.
    fn current_local() -> Option<Self> {
        Some(Self::start(Programs::current()?.ctr, &["--local"]))
    }

    fn start(ctr: PathBuf, local: &'static [&'static str]) -> Self {
        let node = Node::new();
        let socket = node.directory.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = node.server.clone();
        tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.serve_unix(listener, stopped).await.unwrap();
        });
        Self { node, socket, ctr, local, _stop: stop }
    }

    async fn run(&self, arguments: &[&str], input: Option<Vec<u8>>) -> Output {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(&self.socket).args(arguments);
        let run = move || {
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            std::io::Write::write_all(&mut stdin, &input.unwrap_or_default()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// Standard output of `ctr images COMMAND`, which may be one that 2.x hands to the server.
    async fn images(&self, command: &str, arguments: &[&str]) -> String {
        let all: Vec<_> = ["images", command].iter().chain(self.local).chain(arguments).copied().collect();
        self.ok(&all).await
    }

    /// Standard output of a command that succeeds.
    async fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, None).await
    }

    async fn ok_with(&self, arguments: &[&str], input: Option<Vec<u8>>) -> String {
        let output = self.run(arguments, input).await;
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "ctr {arguments:?}: {out}{err}");
        out
    }

    /// Collects garbage: a lease that is removed synchronously is answered after that.
    async fn collect(&self) {
        self.ok(&["leases", "create", "--id", "collect"]).await;
        self.ok(&["leases", "rm", "--sync", "collect"]).await;
    }

    /// Standard error of a command that fails.
    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, None).await;
        assert!(!output.status.success(), "ctr {arguments:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

type Start = fn() -> Option<Daemon>;

/// Each case with each `ctr`.
macro_rules! with_each_ctr {
    ($($case:ident)*) => {
        mod debian {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(super::Daemon::debian).await;
                }
            )*
        }
        mod current {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(super::Daemon::current).await;
                }
            )*
        }
        mod current_local {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    super::$case(super::Daemon::current_local).await;
                }
            )*
        }
    };
}

with_each_ctr! {
    an_image_is_imported_unpacked_exported_and_collected
    content_is_ingested_read_labelled_and_deleted
    snapshots_are_prepared_committed_viewed_and_removed
    namespaces_are_made_labelled_and_removed
    containers_are_made_labelled_and_removed
    who_serves_is_told
}

fn contains(bytes: &[u8], name: &str) -> bool {
    bytes.windows(name.len()).any(|part| part == name.as_bytes())
}

/// Lines of a table without its head, in columns.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

async fn an_image_is_imported_unpacked_exported_and_collected(start: Start) {
    let Some(daemon) = start() else { return };
    let (image, bytes) = common::image::archive("example.org/hello:1.0");
    let archive = daemon.node.directory.path().join("image.tar");
    std::fs::write(&archive, bytes).unwrap();
    let imported = daemon.images("import", &[archive.to_str().unwrap()]).await;
    assert!(imported.contains("example.org/hello:1.0") || imported.contains(image.root.digest.as_str()), "{imported}");

    let listed = daemon.ok(&["images", "ls"]).await;
    assert_eq!(
        rows(&listed)[0][..3],
        ["example.org/hello:1.0", "application/vnd.oci.image.manifest.v1+json", image.root.digest.as_str()]
    );
    let checked = daemon.ok(&["images", "check"]).await;
    assert!(checked.contains("complete (3/3)") && checked.trim_end().ends_with("true"), "{checked}");
    // The archive's own index is no part of the image: it goes with the import's lease, at the next collection.
    daemon.collect().await;
    assert_eq!(rows(&daemon.ok(&["content", "ls"]).await).len(), 4);
    let snapshots = daemon.ok(&["snapshots", "ls"]).await;
    assert_eq!(rows(&snapshots).len(), 2);
    assert!(rows(&daemon.ok(&["leases", "ls"]).await).is_empty(), "the import's lease is gone");

    let chain = rows(&snapshots).into_iter().find(|row| row.len() == 3).unwrap();
    let layer = daemon
        .run(&["snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", chain[0]], None)
        .await;
    let names: Vec<_> = ["etc/.wh.gone", "new"].iter().map(|name| contains(&layer.stdout, name)).collect();
    assert_eq!(names, [true, true], "{}", String::from_utf8_lossy(&layer.stderr));

    let exported = daemon.node.directory.path().join("exported.tar");
    for attempt in 1.. {
        daemon.images("export", &[exported.to_str().unwrap(), "example.org/hello:1.0"]).await;
        if is_whole(&std::fs::read(&exported).unwrap()) {
            break;
        }
        assert!(attempt < 5, "ctr exports in part only");
    }

    daemon.images("tag", &["example.org/hello:1.0", "example.org/hello:2.0"]).await;
    daemon.ok(&["images", "label", "example.org/hello:2.0", "a.b/c=d"]).await;
    let filtered = daemon.ok(&["images", "ls", "-q", "labels.\"a.b/c\"==d"]).await;
    assert_eq!(filtered, "example.org/hello:2.0\n");
    daemon.ok(&["images", "rm", "example.org/hello:1.0"]).await;
    assert_eq!(daemon.ok(&["images", "ls", "-q"]).await, "example.org/hello:2.0\n");
    // The layer that the diff made goes too.
    daemon.collect().await;
    assert_eq!(rows(&daemon.ok(&["content", "ls"]).await).len(), 4, "the other name keeps everything");
    daemon.ok(&["images", "rm", "--sync", "example.org/hello:2.0"]).await;
    assert_eq!(daemon.ok(&["content", "ls", "-q"]).await, "");
    assert!(rows(&daemon.ok(&["snapshots", "ls"]).await).is_empty());
}

async fn content_is_ingested_read_labelled_and_deleted(start: Start) {
    let Some(daemon) = start() else { return };
    let digest = orlop_oci::Digest::of(b"some bytes");
    let ingest = ["content", "ingest", "--expected-digest", digest.as_str(), "--expected-size", "10", "the-ref"];
    daemon.ok_with(&ingest, Some(b"some bytes".to_vec())).await;
    assert_eq!(daemon.ok(&["content", "get", digest.as_str()]).await, "some bytes");
    daemon.ok(&["content", "label", digest.as_str(), "containerd.io/gc.root=yes"]).await;
    assert!(daemon.ok(&["content", "ls"]).await.contains("containerd.io/gc.root=yes"));

    let other = orlop_oci::Digest::of(b"other");
    let wrong = ["content", "ingest", "--expected-digest", other.as_str(), "--expected-size", "5", "wrong"];
    let output = daemon.run(&wrong, Some(b"bytes".to_vec())).await;
    assert!(!output.status.success());
    let active = daemon.ok(&["content", "active"]).await;
    assert!(active.contains("wrong"), "the ingest survives a wrong digest: {active}");

    daemon.ok(&["content", "rm", digest.as_str()]).await;
    let error = daemon.fails(&["content", "get", digest.as_str()]).await;
    assert!(error.contains("not found"), "{error}");
}

async fn snapshots_are_prepared_committed_viewed_and_removed(start: Start) {
    for snapshotter in common::snapshotters() {
        let Some(daemon) = start() else { return };
        let ctr = |arguments: &[&'static str]| {
            let arguments: Vec<&str> =
                ["snapshots", "--snapshotter", snapshotter].into_iter().chain(arguments.iter().copied()).collect();
            let daemon = &daemon;
            async move { daemon.ok(&arguments).await }
        };
        daemon.ok(&["leases", "create", "--id", snapshotter]).await;
        ctr(&["prepare", "one"]).await;
        ctr(&["commit", "base", "one"]).await;
        ctr(&["prepare", "two", "base"]).await;
        // Without a lease or label it stays only while nothing is deleted: it is the first to be removed.
        ctr(&["view", "three", "base"]).await;
        let listed = ctr(&["ls"]).await;
        let mut kinds: Vec<_> = rows(&listed).into_iter().map(|row| (row[0], *row.last().unwrap())).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [("base", "Committed"), ("three", "View"), ("two", "Active")]);
        assert!(ctr(&["mounts", "/target", "two"]).await.starts_with("mount "));
        assert!(ctr(&["info", "base"]).await.contains("\"Committed\""));
        ctr(&["usage", "base"]).await;
        ctr(&["label", "two", "a=b"]).await;
        let error = daemon.fails(&["snapshots", "--snapshotter", snapshotter, "rm", "base"]).await;
        assert!(error.contains("it is the parent of"), "{error}");
        for key in ["three", "two", "base"] {
            daemon.ok(&["snapshots", "--snapshotter", snapshotter, "rm", key]).await;
        }
        daemon.ok(&["leases", "rm", "--sync", snapshotter]).await;
        let error = daemon.fails(&["snapshots", "--snapshotter", "zfs", "ls"]).await;
        assert!(error.contains("zfs"), "{error}");
    }
}

async fn namespaces_are_made_labelled_and_removed(start: Start) {
    let Some(daemon) = start() else { return };
    daemon.ok(&["namespaces", "create", "mine", "a=b"]).await;
    daemon.ok(&["namespaces", "label", "mine", "c=d"]).await;
    let listed = daemon.ok(&["namespaces", "ls"]).await;
    assert!(listed.contains("mine") && listed.contains("a=b,c=d"), "{listed}");
    let error = daemon.fails(&["namespaces", "create", "mine"]).await;
    assert!(error.contains("already exists"), "{error}");
    daemon.ok(&["namespaces", "rm", "mine"]).await;
    assert!(!daemon.ok(&["namespaces", "ls", "-q"]).await.contains("mine"));
}

/// A container holds its snapshot, and the image's layers below it, after the image itself has gone.
async fn containers_are_made_labelled_and_removed(start: Start) {
    let Some(daemon) = start() else { return };
    let (_, bytes) = common::image::archive("example.org/hello:1.0");
    let archive = daemon.node.directory.path().join("image.tar");
    std::fs::write(&archive, bytes).unwrap();
    daemon.images("import", &[archive.to_str().unwrap()]).await;
    daemon.ok(&["containers", "create", "--label", "k=v", "example.org/hello:1.0", "web", "sh"]).await;

    let listed = daemon.ok(&["containers", "ls"]).await;
    assert_eq!(rows(&listed)[0][..2], ["web", "example.org/hello:1.0"], "{listed}");
    assert_eq!(daemon.ok(&["containers", "ls", "-q", "labels.k==v"]).await.trim(), "web");
    assert_eq!(daemon.ok(&["containers", "ls", "-q", "labels.k==w"]).await.trim(), "");
    daemon.ok(&["containers", "label", "web", "k=w"]).await;
    assert_eq!(daemon.ok(&["containers", "ls", "-q", "labels.k==w"]).await.trim(), "web");
    let info = daemon.ok(&["containers", "info", "web"]).await;
    assert!(info.contains("\"SnapshotKey\": \"web\"") && info.contains("\"args\""), "{info}");
    let again =
        daemon.fails(&["containers", "create", "--snapshotter", "native", "example.org/hello:1.0", "web"]).await;
    assert!(again.contains("already exists"), "{again}");

    daemon.ok(&["images", "rm", "--sync", "example.org/hello:1.0"]).await;
    daemon.collect().await;
    assert_eq!(rows(&daemon.ok(&["snapshots", "ls"]).await).len(), 3, "web, and the two layers below it");
    daemon.ok(&["containers", "rm", "web"]).await;
    daemon.collect().await;
    assert!(rows(&daemon.ok(&["snapshots", "ls"]).await).is_empty());
    assert!(daemon.fails(&["containers", "info", "web"]).await.contains("not found"));
}

async fn who_serves_is_told(start: Start) {
    let Some(daemon) = start() else { return };
    let plugins = daemon.ok(&["plugins", "ls", "type==io.containerd.snapshotter.v1"]).await;
    let ids: Vec<_> = rows(&plugins).into_iter().map(|row| (row[1], *row.last().unwrap())).collect();
    assert_eq!(ids[..2], [("overlayfs", "ok"), ("native", "ok")]);
    let erofs = if common::snapshotters().contains(&"erofs") { "ok" } else { "skip" };
    assert_eq!(ids[2..], [("erofs", erofs)]);
    let plugins = daemon.ok(&["plugins", "ls"]).await;
    let unloaded = rows(&plugins).into_iter().filter(|row| row.last() != Some(&"ok") && row[1] != "erofs");
    let unloaded: Vec<_> = unloaded.collect();
    assert_eq!(unloaded, [["io.containerd.runtime.v2", "task", "-", "skip"]], "{plugins}");
    let told = daemon.ok(&["plugins", "ls", "-d", "id==walking"]).await;
    assert!(told.contains("Requires") && told.contains("io.containerd.metadata.v1"), "{told}");
    assert!(daemon.ok(&["version"]).await.contains("+orlop."));
}
