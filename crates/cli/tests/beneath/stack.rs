//! A registry, an Orlop with a raw socket, and a containerd above it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_oci::Compression;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{Output, need, need_peer, need_root, output};
use orlop_testkit::proxy::Proxy;
use orlop_testkit::registry::Registry;
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;

use crate::common::{Orlop, binary, registry_with};

/// The name of the snapshotter.
pub(crate) const SNAPSHOTTER: &str = "orlop-overlay";
/// Of the one whose layers are images.
const IMAGES: &str = "orlop-erofs";

/// Where containerd's own CRI looks for registries.
const THEIR_HOSTS: &str = "containerds-hosts";

/// What containerd has of Orlop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Nothing,
    Snapshotter,
    /// The same with images for layers.
    Images,
    Content,
    Both,
    /// Snapshotter that applies many layers at once, and content; who applies them: `walking`, which is containerd, or `orlop`.
    Differ(&'static str),
    /// Snapshotter that is to do both, hand snapshots over and apply many layers at once, which cannot be.
    Mixed,
}

impl Of {
    const fn snapshots(self) -> bool {
        !matches!(self, Self::Content | Self::Nothing)
    }

    const fn content(self) -> bool {
        !matches!(self, Self::Snapshotter | Self::Images | Self::Mixed | Self::Nothing)
    }

    /// The name of the snapshotter, and where it keeps what it has.
    const fn snapshotter(self) -> (&'static str, &'static str) {
        if matches!(self, Self::Images) { (IMAGES, "snapshots/erofs") } else { (SNAPSHOTTER, "snapshots/overlayfs") }
    }
}

/// Who has containerd pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Ctr,
    /// As kubelet does.
    Cri,
}

/// The parts; containerd ends before Orlop.
pub(crate) struct Stack {
    pub(crate) containerd: Containerd,
    pub(crate) served: Served,
    pub(crate) store: Orlop,
    /// Between all of them and the registry.
    pub(crate) proxy: Proxy,
    _registry: Registry,
    programs: Programs,
    of: Of,
    by: By,
}

/// An image with a shell, of three layers, one with a whiteout.
pub(crate) fn image() -> Option<Content> {
    let shell = std::fs::read(need("busybox", "busybox-static")?).expect("a program");
    let base = [
        Entry::dir("bin"),
        Entry::file("bin/busybox", shell).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
        Entry::dir("etc"),
        Entry::file("etc/gone", "soon"),
        Entry::file("etc/kept", "kept"),
    ];
    let above = [Entry::whiteout("etc/gone"), Entry::file("etc/new", "new")];
    let image = Image::host()
        .layer(Layer::new(base).packed(Compression::Gzip))
        .layer(Layer::new(above).packed(Compression::Zstd))
        .layer(Layer::noise("big", 7, 2 << 20).packed(Compression::Gzip));
    Some(Content::image(&image))
}

/// Every containerd with each of its ways to pull that name the image to the snapshotter: `ctr` of 1.6 does not.
pub(crate) fn ways() -> Vec<(Programs, By)> {
    let of = |programs: Programs| {
        let by = if is_old(&programs) { vec![By::Cri] } else { vec![By::Ctr, By::Cri] };
        by.into_iter().map(move |by| (programs.clone(), by))
    };
    generations().into_iter().flat_map(of).collect()
}

pub(crate) fn is_old(programs: &Programs) -> bool {
    programs.version().contains(" 1.")
}

/// All that is needed, or the test says why it is skipped.
pub(crate) fn generations() -> Vec<Programs> {
    if !need_root() {
        return Vec::new();
    }
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

impl Stack {
    /// Starts all of it; `None` where there is no registry or no shell.
    pub(crate) fn start(programs: &Programs, of: Of, by: By) -> Option<Self> {
        Self::start_with(programs, of, by, &image()?, "")
    }

    /// The same with another image, and lines for Orlop's configuration.
    pub(crate) fn start_with(programs: &Programs, of: Of, by: By, content: &Content, config: &str) -> Option<Self> {
        Self::start_on(programs, of, by, registry_with(content)?, config)
    }

    /// The same with a registry that has the image. In the configuration, `STORE` is a directory of this test, and `STORE/containerd` the
    /// socket of its containerd.
    pub(crate) fn start_on(programs: &Programs, of: Of, by: By, registry: Registry, config: &str) -> Option<Self> {
        if by == By::Cri {
            need_peer("crictl")?;
        }
        let (store, proxy) = (Orlop::new(), Proxy::start(registry.address()));
        let raw = store.path("raw");
        ["hosts", THEIR_HOSTS].into_iter().for_each(|place| hosts(&store, place, &proxy.host()));
        let config = config.replace("STORE", text(&store.path("")).trim_end_matches('/'));
        std::fs::write(store.path("config.toml"), config).expect("a file");
        let served = serve(&store);
        let mut options = options(programs, of, by, &raw, &store);
        if by == By::Cri {
            options.sandbox_image = Some(format!("{}/app:1", proxy.host()));
        }
        let containerd = Containerd::start(programs, &options);
        std::os::unix::fs::symlink(containerd.socket(), store.path("containerd")).expect("a link");
        let (_registry, programs) = (registry, programs.clone());
        Some(Self { containerd, served, store, proxy, _registry, programs, of, by })
    }

    /// Another Orlop in the place of one that has ended.
    pub(crate) fn again(&self) -> Served {
        serve(&self.store)
    }

    /// The image's name.
    pub(crate) fn name(&self) -> String {
        format!("{}/app:1", self.proxy.host())
    }

    /// Which snapshotter has the images.
    pub(crate) const fn snapshotter(&self) -> &'static str {
        if self.of.snapshots() { self.of.snapshotter().0 } else { "overlayfs" }
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> Output {
        let namespace = if self.by == By::Cri { "k8s.io" } else { "default" };
        self.containerd.ctr(namespace, args)
    }

    fn crictl(&self, args: &[&str]) -> Command {
        crictl(&self.containerd.socket(), args)
    }

    /// `crictl` on Orlop's socket.
    pub(crate) fn through(&self, args: &[&str]) -> Command {
        crictl(&self.served.socket(), args)
    }

    /// Pulls the image.
    pub(crate) fn pull(&self) -> Output {
        output(&mut self.pulling())
    }

    /// Tries again until a program succeeds with what is wanted of it: containerd dials Orlop again in its own time, and finds its
    /// containers again in its own time; kubelet tries again too.
    #[track_caller]
    pub(crate) fn until(&self, command: &mut Command, wanted: &str) -> Output {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let said = output(command);
            if said.status.success() && said.stdout.contains(wanted) {
                return said;
            }
            let logs = || format!("--- containerd\n{}\n--- Orlop\n{}", self.containerd.log(), self.served.log());
            assert!(Instant::now() < deadline, "{said:?}\n{}", logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `ctr`, in its default namespace.
    pub(crate) fn calling(&self, args: &[&str]) -> Command {
        let mut ctr = Command::new(&self.programs.ctr);
        ctr.arg("-a").arg(self.containerd.socket()).args(args);
        ctr
    }

    /// What lists containers that run.
    pub(crate) fn tasks(&self) -> Command {
        self.calling(&["tasks", "ls"])
    }

    /// What pulls the image.
    pub(crate) fn pulling(&self) -> Command {
        if self.by == By::Cri {
            return self.crictl(&["pull", &self.name()]);
        }
        self.calling(&["images", "pull", "--plain-http", "--snapshotter", self.snapshotter(), &self.name()])
    }

    /// The ID of a container of this containerd: runc has those of all containerds of the machine in one place.
    pub(crate) fn id(&self, name: &str) -> String {
        let own = self.containerd.socket();
        let own = own.parent().and_then(Path::file_name).expect("a directory of its own");
        format!("{name}-{}", own.to_string_lossy())
    }

    /// Runs a command in a new container; `None` where this machine runs none, which is said.
    pub(crate) fn run(&self, id: &str, options: &[&str], command: &str) -> Option<String> {
        let (name, snapshotter) = (self.name(), self.snapshotter());
        let id = self.id(id);
        let args = [&["run"], options, &["--snapshotter", snapshotter, &name, &id, "/bin/sh", "-c", command]].concat();
        let done = self.ctr(&args);
        if !done.status.success() && !self.runs_without_orlop() {
            eprintln!("skipped: this machine runs no containers: {}", done.stderr.trim());
            return None;
        }
        Some(done.ok().stdout)
    }

    /// Whether a containerd that has nothing of Orlop runs the image here.
    pub(crate) fn runs_without_orlop(&self) -> bool {
        let plain = Containerd::start(&self.programs, &Options::default());
        plain.ctr("default", &["images", "pull", "--plain-http", &self.name()]).ok();
        let own = plain.socket().display().to_string().replace('/', "-");
        plain
            .ctr("default", &["run", "--rm", &self.name(), own.trim_matches('-'), "/bin/sh", "-c", "true"])
            .status
            .success()
    }

    /// Removes the image and has containerd collect what it had.
    pub(crate) fn remove(&self) {
        if self.by == By::Ctr {
            self.ctr(&["images", "rm", "--sync", &self.name()]).ok();
            return;
        }
        output(&mut self.crictl(&["rmi", &self.name()])).ok();
        self.collect();
    }

    /// Has containerd collect its garbage.
    pub(crate) fn collect(&self) {
        // Whoever waits for the end of a lease waits for a collection.
        self.ctr(&["leases", "create", "--id", "collect"]).ok();
        self.ctr(&["leases", "rm", "--sync", "collect"]).ok();
    }

    /// Ends the leases of pulls that a killed containerd left, which keep what they had for a day.
    pub(crate) fn end_leases(&self) {
        for lease in self.ctr(&["leases", "ls", "-q"]).ok().stdout.lines() {
            self.ctr(&["leases", "rm", "--sync", lease]).ok();
        }
    }

    /// The names of blobs and trees on Orlop's disk.
    pub(crate) fn on_disk(&self) -> BTreeSet<String> {
        let names = |part: &str| {
            let found = std::fs::read_dir(self.store.root().join(part)).into_iter().flatten().flatten();
            let part = part.to_owned();
            found.map(move |entry| format!("{part}/{}", entry.file_name().to_string_lossy())).collect::<Vec<_>>()
        };
        ["content/blobs/sha256", self.of.snapshotter().1].into_iter().flat_map(names).collect()
    }

    /// Waits until nothing of the image is left on Orlop's disk.
    #[track_caller]
    pub(crate) fn is_emptied(&self) {
        self.is_left_with(|entry| entry.ends_with("overlayfs/l"));
    }

    /// Waits until no blob is left on Orlop's disk, and no snapshot in its lists.
    #[track_caller]
    pub(crate) fn has_nothing(&self) {
        self.is_left_with(|entry| entry.starts_with("snapshots/"));
        let keys = self.own(&["snapshots", "ls"]);
        assert_eq!(keys.lines().count(), 1, "{keys}");
    }

    /// What a command says of what Orlop brought for containerd.
    fn own(&self, args: &[&str]) -> String {
        let socket = self.served.socket();
        let at = ["--address", text(&socket), "--namespace", "raw.containerd.snapshots"];
        output(binary().args(at).args(args)).ok().stdout
    }

    #[track_caller]
    fn is_left_with(&self, may_stay: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left: Vec<String> = self.on_disk().into_iter().filter(|entry| !may_stay(entry)).collect();
            if left.is_empty() {
                return;
            }
            let held =
                || [["leases", "ls"], ["snapshots", "ls"], ["content", "ls"]].map(|what| self.own(&what)).concat();
            assert!(Instant::now() < deadline, "left: {left:?}\n{}\n{}", held(), self.served.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The layers that containerd asked the registry for by itself, as far as the registry knows.
    pub(crate) fn layers_in_containerd(&self) -> Vec<String> {
        let listed = self.ctr(&["content", "ls", "-q"]).ok().stdout;
        let layers: BTreeSet<String> = image().expect("a shell").layers().iter().map(ToString::to_string).collect();
        listed.lines().filter(|line| layers.contains(*line)).map(str::to_owned).collect()
    }

    /// What Orlop has logged of layers that it left to containerd.
    pub(crate) fn fallbacks(&self) -> Vec<String> {
        self.served.log().lines().filter(|line| line.contains("left to containerd")).map(str::to_owned).collect()
    }
}

impl Drop for Stack {
    /// A container that a test which failed left goes on for ever.
    fn drop(&mut self) {
        for id in self.ctr(&["tasks", "ls", "-q"]).stdout.lines() {
            drop(self.ctr(&["tasks", "rm", "--force", id]));
        }
    }
}

/// `crictl` with both services on a socket.
pub(crate) fn crictl(socket: &Path, args: &[&str]) -> Command {
    let at = format!("unix://{}", socket.display());
    let mut command = Command::new(need_peer("crictl").expect("it was there"));
    command.args(["--timeout", "60s", "-r", &at, "-i", &at]).args(args);
    command
}

/// Says that the registry speaks no TLS.
pub(crate) fn hosts(store: &Orlop, place: &str, registry: &str) {
    let of = store.path(place).join(registry);
    std::fs::create_dir_all(&of).expect("a directory");
    std::fs::write(of.join("hosts.toml"), format!("server = \"http://{registry}\"\n")).expect("a file");
}

/// Orlop as it is configured for its containerd.
fn serve(store: &Orlop) -> Served {
    let [raw, hosts, config] = ["raw", "hosts", "config.toml"].map(|name| store.path(name));
    store.serve(&["--raw-socket", text(&raw), "--hosts-dir", text(&hosts), "--config", text(&config)])
}

/// containerd's configuration with Orlop below it.
pub(crate) fn options(programs: &Programs, of: Of, by: By, raw: &Path, store: &Orlop) -> Options {
    let raw = raw.display();
    let (snapshotter, root) = of.snapshotter();
    let root = store.root().join(root);
    let mut config = String::new();
    if of.snapshots() {
        config += &format!("[proxy_plugins.{snapshotter}]\ntype = \"snapshot\"\naddress = \"{raw}\"\n");
        config += match of {
            Of::Differ(_) | Of::Mixed => "capabilities = [\"rebase\"]\n",
            _ => "",
        };
        config += &format!("[proxy_plugins.{snapshotter}.exports]\nroot = \"{}\"\n", root.display());
        config += match of {
            Of::Differ(_) => "",
            _ => "enable_remote_snapshot_annotations = \"true\"\n",
        };
    }
    if of.content() {
        config += &format!("[proxy_plugins.orlop-content]\ntype = \"content\"\naddress = \"{raw}\"\n");
    }
    let old = is_old(programs);
    if by == By::Cri {
        let (images, more) = match old {
            true => ("io.containerd.grpc.v1.cri\".containerd", "disable_snapshot_annotations = false\n"),
            false => ("io.containerd.cri.v1.images\"", ""),
        };
        if of.snapshots() {
            config += &format!("[plugins.\"{images}]\nsnapshotter = \"{snapshotter}\"\n{more}");
        }
        let registry = if old { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.images" };
        let hosts = store.path(THEIR_HOSTS);
        config += &format!("[plugins.\"{registry}\".registry]\nconfig_path = \"{}\"\n", hosts.display());
    }
    if !old && of.snapshots() {
        let differ = if let Of::Differ(differ) = of { differ } else { "walking" };
        if differ == "orlop" {
            config += &format!("[proxy_plugins.orlop]\ntype = \"diff\"\naddress = \"{raw}\"\n");
        }
        config += &format!(
            "[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_unpacks = 4\n\
             [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/{}\"\n\
             snapshotter = \"{snapshotter}\"\ndiffer = \"{differ}\"\n",
            arch()
        );
    }
    let disabled = if of.content() { vec!["io.containerd.content.v1.content"] } else { Vec::new() };
    Options { config, disabled, cri: by == By::Cri, ..Options::default() }
}

const fn arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
