//! Commands that look change nothing: after each of them the store's lists, labels, times and files are what they were
//! before, and no event has been published.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::containers::v1::{self as containers, containers_client::ContainersClient};
use orlop_api::containerd::services::content::v1::{self as content, content_client::ContentClient};
use orlop_api::containerd::services::images::v1::{self as images, images_client::ImagesClient};
use orlop_api::containerd::services::leases::v1::{self as leases, leases_client::LeasesClient};
use orlop_api::containerd::services::namespaces::v1::{self as namespaces, namespaces_client::NamespacesClient};
use orlop_api::containerd::services::snapshots::v1::{self as snapshots, snapshots_client::SnapshotsClient};
use orlop_testkit::containerd::Programs;
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::image::Content;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::Request;
use tonic::transport::Channel;

use crate::common::{self, Done, Orlop, binary};
use crate::node::{generations, image};
use crate::terminal::Terminal;
use crate::ward::Ward;

const PATIENCE: Duration = Duration::from_secs(60);
const FORMATS: [&str; 5] = ["table", "wide", "json", "yaml", "name"];

/// A look: its words, and how it may end.
struct Row(&'static [&'static str], &'static [i32]);

/// Words in capitals stand for what a store has: [`Known`].
const LOOKS: &[Row] = &[
    Row(&["images"], &[0]),
    Row(&["images", "--all"], &[0]),
    Row(&["images", "-A", "--all", "--filter", "name~=cni"], &[0]),
    Row(&["explain", "TAG"], &[0]),
    Row(&["explain", "ID"], &[0]),
    Row(&["explain", "LAYER"], &[0]),
    Row(&["explain", "LEASE"], &[0]),
    Row(&["explain", "KEY"], &[0]),
    Row(&["why", "TAG"], &[0]),
    Row(&["why", "LAYER"], &[0]),
    Row(&["resolve", "TAG"], &[0]),
    Row(&["resolve", "ID"], &[0]),
    Row(&["resolve", "KEY"], &[0]),
    Row(&["resolve", "0000000000000000"], &[3]),
    Row(&["tree"], &[0]),
    Row(&["tree", "TAG"], &[0]),
    Row(&["df"], &[0]),
    Row(&["df", "--by", "image"], &[0]),
    Row(&["df", "--by", "namespace"], &[0]),
    Row(&["df", "--by", "repository"], &[0]),
    Row(&["df", "--by", "layer"], &[0]),
    Row(&["doctor"], &[0, 5]),
    Row(&["doctor", "--deep"], &[0, 5]),
    Row(&["doctor", "--fix"], &[0]),
    Row(&["doctor", "--fix", "--class", "stranded,lease,ingest,orphan-blob"], &[0]),
    Row(&["rm", "--plan", "TAG"], &[0]),
    Row(&["rm", "--plan", "--force", "ID"], &[0]),
    Row(&["prune"], &[0]),
    Row(&["prune", "--plan", "--untagged"], &[0]),
    Row(&["prune", "--keep-last", "1"], &[0]),
    Row(&["stores"], &[0]),
    Row(&["history", "TAG"], &[0]),
    Row(&["content", "ls"], &[0]),
    Row(&["content", "get", "MANIFEST"], &[0]),
    Row(&["content", "active"], &[0]),
    Row(&["snapshots", "ls"], &[0]),
    Row(&["snapshots", "tree"], &[0]),
    Row(&["snapshots", "usage"], &[0]),
    Row(&["snapshots", "info", "KEY"], &[0]),
    Row(&["leases", "ls"], &[0]),
    Row(&["leases", "resources", "LEASE"], &[0]),
    Row(&["namespaces", "ls"], &[0]),
];

/// Formats that are refused: a sum has no name, and bytes are no document.
fn has_not(words: &[&str], format: &str) -> bool {
    matches!((words, format), (["df"], "name") | (["content", "get", ..], "json" | "yaml" | "name"))
}

/// On a containerd these say that it lacks what they need.
const ON_OWN_STORE: &[Row] = &[
    Row(&["inspect", "TAG"], &[0]),
    Row(&["log"], &[0]),
    Row(&["log", "TAG"], &[0]),
    Row(&["check"], &[0]),
    Row(&["check", "--deep"], &[0]),
    Row(&["verify", "--offline", "TAG"], &[0]),
    Row(&["undo", "--list"], &[0]),
];

/// What a store has.
struct Known {
    tag: String,
    content: Content,
    lease: &'static str,
    key: String,
}

impl Known {
    fn word(&self, word: &str) -> String {
        match word {
            "TAG" => self.tag.clone(),
            "ID" => self.content.image_id().unwrap().to_string(),
            "MANIFEST" => self.content.root.digest.to_string(),
            "LAYER" => self.content.layers().pop().unwrap().to_string(),
            "LEASE" => self.lease.to_owned(),
            "KEY" => self.key.clone(),
            other => other.to_owned(),
        }
    }
}

/// A store that is looked at.
struct Shown {
    socket: PathBuf,
    root: PathBuf,
    /// Files that the daemon writes to by itself, whoever looks: their rows are compared.
    own: &'static [&'static str],
    ctr: PathBuf,
    known: Known,
    runtime: Runtime,
    channel: Channel,
}

impl Shown {
    fn new(socket: PathBuf, root: PathBuf, own: &'static [&'static str], programs: &Programs, known: Known) -> Self {
        let runtime = Runtime::new().unwrap();
        let channel = runtime.block_on(orlop_api::channel::unix(&socket)).unwrap();
        Self { socket, root, own, ctr: programs.ctr.clone(), known, runtime, channel }
    }

    fn command(&self, args: &[String]) -> Command {
        let mut command = binary();
        command.arg("--address").arg(&self.socket).args(["-n", "k8s.io"]).args(args);
        command
    }

    fn state(&self) -> Vec<String> {
        let mut lines = self.runtime.block_on(listed(&self.channel));
        let files = Fingerprint::of(&self.root, &fingerprint::Options::default()).unwrap();
        let others = files.lines.into_iter().filter(|(path, _)| !self.own.contains(&path.as_str()));
        lines.extend(others.map(|(path, line)| format!("{path}: {line}")));
        lines
    }

    /// Runs all looks in all formats; after each the store is what it was.
    fn is_not_changed_by(&self, rows: &[&Row]) {
        let mut events = Events::subscribe(self);
        let before = self.state();
        assert!(before.iter().any(|line| line.contains(&self.known.tag)), "{before:#?}");
        for Row(words, codes) in rows {
            for format in FORMATS {
                let args: Vec<String> = words.iter().map(|word| self.known.word(word)).collect();
                let done =
                    Done::of(&self.command(&[&args[..], &["-o".into(), format.into()]].concat()).output().unwrap());
                let codes = if has_not(words, format) { &[2][..] } else { codes };
                assert!(codes.contains(&done.code), "{args:?} -o {format}: {}\n{}{}", done.code, done.out, done.err);
                unchanged(&before, &self.state(), &format!("{args:?} -o {format}"));
                events.none(&format!("{args:?} -o {format}"));
            }
        }
        self.is_not_changed_by_top();
        unchanged(&before, &self.state(), "top");
        events.watch_ends();
        unchanged(&before, &self.state(), "watch");
        events.end(self);
    }

    /// Everything on the terminal that changes nothing: each view, an explanation, a plan that is given up.
    fn is_not_changed_by_top(&self) {
        let mut screen = Terminal::start(self.command(&["top".into()]), 100, 30);
        screen.shows(&["1 Images", "cni"]);
        screen.keys("/cni");
        screen.shows(&["/cni"]);
        screen.keys("\r\r");
        screen.shows(&["Deleting all its names frees"]);
        screen.keys("q2");
        screen.shows(&["LAYER"]);
        screen.keys("4");
        screen.shows(&["content (compressed layers"]);
        screen.keys("1d");
        screen.shows(&["Records that go", "y delete exactly this"]);
        screen.keys("n");
        screen.shows(&["nothing was changed"]);
        screen.keys("q");
        assert_eq!(screen.ends(), 0);
    }
}

fn unchanged(before: &[String], after: &[String], by: &str) {
    let only = |these: &[String], those: &[String], sign: char| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    let differs = [only(before, after, '-'), only(after, before, '+')].concat();
    assert!(differs.is_empty() && before.len() == after.len(), "{by} has changed the store:\n{}", differs.join("\n"));
}

fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, namespace.parse().unwrap());
    request
}

/// Every row of every list, with labels and times.
async fn listed(channel: &Channel) -> Vec<String> {
    let mut client = NamespacesClient::new(channel.clone());
    let all = client.list(namespaces::ListNamespacesRequest::default()).await.unwrap().into_inner().namespaces;
    let mut lines: Vec<String> = all.iter().map(|namespace| format!("{namespace:?}")).collect();
    for namespace in all {
        let mut rows = of_images_and_containers(channel, &namespace.name).await;
        rows.extend(of_content(channel, &namespace.name).await);
        rows.extend(of_leases(channel, &namespace.name).await);
        rows.extend(of_snapshots(channel, &namespace.name).await);
        lines.extend(rows.into_iter().map(|row| format!("{}: {row}", namespace.name)));
    }
    lines.sort();
    lines
}

async fn of_images_and_containers(channel: &Channel, namespace: &str) -> Vec<String> {
    let request = within(namespace, images::ListImagesRequest::default());
    let images = ImagesClient::new(channel.clone()).list(request).await.unwrap().into_inner().images;
    let request = within(namespace, containers::ListContainersRequest::default());
    let containers = ContainersClient::new(channel.clone()).list(request).await.unwrap().into_inner().containers;
    let images = images.iter().map(|image| format!("{image:?}"));
    images.chain(containers.iter().map(|container| format!("{container:?}"))).collect()
}

async fn of_content(channel: &Channel, namespace: &str) -> Vec<String> {
    let mut client = ContentClient::new(channel.clone());
    let request = within(namespace, content::ListStatusesRequest::default());
    let statuses = client.list_statuses(request).await.unwrap().into_inner().statuses;
    let mut rows: Vec<String> = statuses.iter().map(|status| format!("{status:?}")).collect();
    let request = within(namespace, content::ListContentRequest::default());
    let mut listed = client.list(request).await.unwrap().into_inner();
    while let Some(page) = listed.message().await.unwrap() {
        rows.extend(page.info.iter().map(|info| format!("{info:?}")));
    }
    rows
}

async fn of_leases(channel: &Channel, namespace: &str) -> Vec<String> {
    let mut client = LeasesClient::new(channel.clone());
    let all = client.list(within(namespace, leases::ListRequest::default())).await.unwrap().into_inner().leases;
    let mut rows = Vec::new();
    for lease in all {
        let request = within(namespace, leases::ListResourcesRequest { id: lease.id.clone() });
        let mut listed = client.list_resources(request).await.unwrap().into_inner().resources;
        listed.sort_by(|a, b| (&a.r#type, &a.id).cmp(&(&b.r#type, &b.id)));
        rows.push(format!("{lease:?} {listed:?}"));
    }
    rows
}

async fn of_snapshots(channel: &Channel, namespace: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for snapshotter in ["overlayfs", "native"] {
        let wanted = snapshots::ListSnapshotsRequest { snapshotter: snapshotter.to_owned(), ..Default::default() };
        let listed = SnapshotsClient::new(channel.clone()).list(within(namespace, wanted)).await;
        let mut listed = listed.unwrap().into_inner();
        while let Some(page) = listed.message().await.unwrap() {
            rows.extend(page.info.iter().map(|info| format!("{snapshotter}: {info:?}")));
        }
    }
    rows
}

/// What a store publishes, as `ctr events` tells it, while an `orlop watch` runs too. It ends when it is dropped.
struct Events {
    ctr: Child,
    watch: Child,
    told: Receiver<String>,
}

impl Events {
    /// Subscribes, and makes namespaces until both tell of one: a server does not say when a subscription stands.
    fn subscribe(shown: &Shown) -> Self {
        // What it cannot read of an event, it says on standard error.
        let mut ctr = Command::new("sh");
        ctr.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(&shown.ctr);
        ctr.arg("-a").arg(&shown.socket).args(["-n", "k8s.io", "events"]);
        let (ctr, told) = lines(ctr);
        let (watch, watched) = lines(shown.command(&["watch".into(), "-A".into()]));
        let events = Self { ctr, watch, told };
        let deadline = Instant::now() + PATIENCE;
        let (mut by_ctr, mut by_watch) = (false, false);
        for number in 0.. {
            assert!(Instant::now() < deadline, "nothing is told of");
            events.mark(shown, &format!("probe{number}"));
            by_ctr |= events.told.recv_timeout(Duration::from_millis(100)).is_ok();
            by_watch |= watched.recv_timeout(Duration::from_millis(100)).is_ok();
            if by_ctr && by_watch {
                break;
            }
        }
        // What was made so far is told before this.
        events.mark(shown, "begin");
        events.until("begin");
        std::thread::spawn(move || while watched.recv().is_ok() {});
        events
    }

    fn mark(&self, shown: &Shown, namespace: &str) {
        let made = namespaces::Namespace { name: namespace.to_owned(), ..Default::default() };
        let request = within(namespace, namespaces::CreateNamespaceRequest { namespace: Some(made) });
        shown.runtime.block_on(NamespacesClient::new(shown.channel.clone()).create(request)).unwrap();
    }

    /// What is told before this namespace is.
    fn until(&self, namespace: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let line = self.told.recv_timeout(PATIENCE).expect("events go on");
            if line.contains("/namespaces/create") && line.contains(namespace) {
                return before;
            }
            before.push(line);
        }
    }

    /// Nothing has been told up to now; what is late the end finds.
    fn none(&self, by: &str) {
        match self.told.try_recv() {
            Ok(line) => panic!("{by} has published an event: {line}"),
            Err(error) => assert_eq!(error, std::sync::mpsc::TryRecvError::Empty),
        }
    }

    /// Interrupts `orlop watch`.
    fn watch_ends(&mut self) {
        kill_process(Pid::from_child(&self.watch), Signal::INT).unwrap();
        assert_eq!(self.watch.wait().unwrap().code(), Some(130));
    }

    /// Nothing at all was told.
    fn end(self, shown: &Shown) {
        self.mark(shown, "end");
        assert_eq!(self.until("end"), [""; 0]);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for child in [&mut self.ctr, &mut self.watch] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lines(mut command: Command) -> (Child, Receiver<String>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
    let (sender, lines) = channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (child, lines)
}

#[test]
fn no_look_changes_a_containerd() {
    for programs in generations("no_look_changes_a_containerd") {
        let Some(mut ward) = Ward::open(&programs) else { return };
        // Faults to be found, things in another namespace, writes and leases of others.
        ward.write("broken-off", &[7; 50_000], None);
        ward.lease("forgotten", &[], &[]);
        ward.age();
        let stray = image("stray", 60_000);
        let stray_tag = ward.node.pull("stray:1", &stray);
        ward.ctr(&["images", "rm", "--sync", &stray_tag]);
        let blob = ward.loose(&[9; 30_000]);
        ward.ctr(&["content", "label", blob.as_str(), "containerd.io/gc.root=by-hand"]);
        let file = ward.node.containerd.config().with_file_name("other.tar");
        let other = image("other", 30_000);
        std::fs::write(&file, orlop_testkit::archive::oci_archive(&[("r.example/other:1", &other)])).unwrap();
        ward.node.containerd.import("default", &file, "native").ok();
        ward.write("at-work", &[8; 1_000], None);
        ward.collect();
        let classes: Vec<String> = ward.found(&[]).into_iter().map(|(class, _)| class).collect();
        assert_eq!(classes, ["stranded", "lease", "ingest", "orphan-blob"]);
        let known =
            Known { tag: ward.live.clone(), content: image("cni", 200_000), lease: "pulling", key: "web-1".into() };
        let (socket, root) = (ward.node.containerd.socket(), ward.node.containerd.root());
        let shown = Shown::new(socket, root, &[], &programs, known);
        shown.is_not_changed_by(&LOOKS.iter().collect::<Vec<_>>());
        // What needs `orlop.v1` says so, and changes nothing either.
        let before = shown.state();
        for Row(words, _) in ON_OWN_STORE {
            let args: Vec<String> = words.iter().map(|word| shown.known.word(word)).collect();
            let done = Done::of(&shown.command(&args).output().unwrap());
            assert_eq!(done.code, 2, "{args:?}: {}{}", done.out, done.err);
        }
        unchanged(&before, &shown.state(), "a command that needs orlop.v1");
    }
}

#[test]
fn no_look_changes_orlops_own_store() {
    let Some(programs) = Programs::debian().filter(|_| common::is_root("no_look_changes_orlops_own_store")) else {
        return;
    };
    let store = Orlop::new();
    let content = image("cni", 200_000);
    let (tag, other) = ("r.example/calico/cni:v3.25.1", image("other", 30_000));
    for (name, content) in
        [(tag, &content), ("r.example/other:1", &other), ("r.example/third:1", &image("third", 20_000))]
    {
        let file = store.path("image.tar");
        std::fs::write(&file, orlop_testkit::archive::oci_archive(&[(name, content)])).unwrap();
        store.ok(["import", file.to_str().unwrap()]);
    }
    store.ok(["rm", "r.example/third:1"]);
    // However full this machine's disk is, the trash stays; and however slow it is, no scrub begins by itself.
    let config = store.path("config.toml");
    std::fs::write(&config, "[gc]\ntrash_free_percent = 0\n[scrub]\nevery_days = 0\n").unwrap();
    let served = store.serve(&["--config", config.to_str().unwrap()]);
    let ctr = |args: &[&str]| served.ctr(&programs, "k8s.io", args).ok();
    ctr(&["leases", "create", "--id", "pulling"]);
    let chain = store.ok(["snapshots", "ls", "-o", "name"]).lines().next().unwrap().to_owned();
    ctr(&["snapshots", "prepare", "web-1", &chain]);
    let known = Known { tag: tag.to_owned(), content, lease: "pulling", key: "web-1".into() };
    // The daemon collects and looks after hash references when it likes.
    let own = &["meta.db", "meta.db-wal", "meta.db-shm"];
    let shown = Shown::new(served.socket(), served.root().to_owned(), own, &programs, known);
    shown.is_not_changed_by(&LOOKS.iter().chain(ON_OWN_STORE).collect::<Vec<_>>());
}
