//! A containerd of its own for one test: own root, state and socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_oci::ChainId;
use rustix::process::Signal;

use crate::archive::is_whole;
use crate::process::{Daemon, Output, output};

/// Which containerd is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `containerd`.
    pub containerd: PathBuf,
    /// The `ctr` that belongs to it.
    pub ctr: PathBuf,
}

impl Programs {
    /// Debian's containerd, or says that the test is skipped.
    pub fn debian() -> Option<Self> {
        let found = Self { containerd: "/usr/bin/containerd".into(), ctr: "/usr/bin/ctr".into() };
        found.or_skip("apt-get install containerd")
    }

    /// A containerd 2.x that was built from source into `~/go/bin`, or says that the test is skipped.
    pub fn current() -> Option<Self> {
        let bin = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join("go/bin");
        let found = Self { containerd: bin.join("containerd"), ctr: bin.join("ctr") };
        found.or_skip("scripts/peers")
    }

    fn or_skip(self, how: &str) -> Option<Self> {
        let found = self.containerd.exists() && self.ctr.exists();
        if !found {
            eprintln!("skipped: {} is not installed ({how})", self.containerd.display());
        }
        found.then_some(self)
    }

    /// `containerd --version`.
    pub fn version(&self) -> String {
        output(Command::new(&self.containerd).arg("--version")).ok().stdout.trim().to_owned()
    }

    fn is_version_1(&self) -> bool {
        self.version().split_whitespace().any(|word| word.trim_start_matches('v').starts_with("1."))
    }
}

/// What a containerd is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Load the CRI plugin, which writes hash references in `k8s.io`.
    pub cri: bool,
    /// Plugins that it is to go without.
    pub disabled: Vec<&'static str>,
    /// The image that holds pods, if CRI is to make any: the default one would come from the network.
    pub sandbox_image: Option<String>,
    /// Lines to add to the configuration.
    pub config: String,
    /// Where its content and snapshots are to be, if not below its own directory: a file system of a test's own.
    pub root: Option<PathBuf>,
}

/// A running containerd; it and its directories go when it is dropped.
#[derive(Debug)]
pub struct Containerd {
    // Ended before its directory is removed.
    daemon: Daemon,
    programs: Programs,
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl Containerd {
    /// Starts one. Needs root.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(programs: &Programs, options: &Options) -> Self {
        // A socket's path must be short.
        let dir = tempfile::Builder::new().prefix("ctrd").tempdir_in("/tmp").expect("a temporary directory");
        let config = dir.path().join("config.toml");
        std::fs::write(&config, configuration(programs, options, dir.path())).expect("a writable directory");
        let daemon = spawned(programs, dir.path());
        let root = options.root.clone().unwrap_or_else(|| dir.path().join("root"));
        let mut running = Self { daemon, programs: programs.clone(), root, dir };
        running.wait_until_it_answers();
        running
    }

    /// Ends it by a signal and starts it again on what it left.
    ///
    /// # Panics
    /// If it does not end or does not start.
    pub fn restart(&mut self, signal: Signal) {
        self.stop(signal);
        self.start_again();
    }

    /// Starts it again after [`Containerd::stop`], on what it left.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&mut self) {
        self.daemon = spawned(&self.programs, self.dir.path());
        self.wait_until_it_answers();
    }

    /// Starts it again after [`Containerd::stop`].
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart_after_stop(&mut self) {
        self.daemon = spawned(&self.programs, self.dir.path());
        self.wait_until_it_answers();
    }

    /// Ends it, changes its files as a fault would, and starts it again on them.
    ///
    /// # Panics
    /// If it does not end or does not start.
    pub fn changed<T>(&mut self, change: impl FnOnce(&Path) -> T) -> T {
        self.stop(Signal::TERM);
        let changed = change(&self.root);
        self.daemon = spawned(&self.programs, self.dir.path());
        self.wait_until_it_answers();
        changed
    }

    /// Its configuration file, as it was started with.
    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// Ends it; its directories stay until this is dropped.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self, signal: Signal) {
        self.daemon.signal(signal);
        self.daemon.wait();
    }

    fn wait_until_it_answers(&mut self) {
        let probe = self.command("default", &["version"]);
        self.daemon.wait_for(|_| rerun(&probe).status.success().then_some(()));
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Its root directory: content in `io.containerd.content.v1.content`.
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Runs `ctr` against it in a namespace.
    pub fn ctr(&self, namespace: &str, args: &[&str]) -> Output {
        rerun(&self.command(namespace, args))
    }

    /// Unpacks an image if it is not yet, mounts it read-only and looks at its tree; the mount goes again.
    ///
    /// # Errors
    /// What `ctr` said if it cannot unpack and mount it.
    pub fn mounted<T>(&self, namespace: &str, image: &str, look: impl FnOnce(&Path) -> T) -> Result<T, Output> {
        let dir = tempfile::tempdir_in(self.dir.path()).expect("a temporary directory");
        let path = dir.path().to_str().expect("a plain path");
        let mounted = self.ctr(namespace, &["images", "mount", image, path]);
        if !mounted.status.success() {
            return Err(mounted);
        }
        let seen = look(dir.path());
        self.ctr(namespace, &["images", "unmount", "--rm", path]).ok();
        Ok(seen)
    }

    /// Imports an archive and unpacks it with a snapshotter, in the way that lets one be chosen.
    pub fn import(&self, namespace: &str, archive: &Path, snapshotter: &str) -> Output {
        let archive = archive.to_str().expect("a plain path");
        let local: &[&str] = if self.programs.is_version_1() { &[] } else { &["--local"] };
        self.ctr(namespace, &[&["images", "import"], local, &["--snapshotter", snapshotter, archive]].concat())
    }

    /// Exports an image, again where `ctr` did not wait for all of it.
    ///
    /// # Panics
    /// If it fails, or does not come whole in five times.
    pub fn export(&self, namespace: &str, name: &str, archive: &Path) {
        let file = archive.to_str().expect("a plain path");
        let whole = (0..5).any(|_| {
            self.ctr(namespace, &["images", "export", file, name]).ok();
            is_whole(&std::fs::read(archive).expect("an archive"))
        });
        assert!(whole, "ctr exports {name} in part only");
    }

    /// The directory of a tree that the `native` snapshotter has; it is complete, and there until containerd ends.
    ///
    /// # Panics
    /// If there is no such snapshot.
    pub fn native_tree(&self, namespace: &str, chain: &ChainId) -> PathBuf {
        let (key, chain) = (format!("look at {chain}"), chain.to_string());
        let snapshots = ["snapshots", "--snapshotter", "native"];
        let prepared = self.ctr(namespace, &[&snapshots[..], &["prepare", &key, &chain]].concat());
        if !prepared.stderr.contains("already exists") {
            prepared.ok();
        }
        // `mount -t bind SOURCE TARGET -o …`
        let said = self.ctr(namespace, &[&snapshots[..], &["mounts", "/nowhere", &key]].concat()).ok().stdout;
        let source = said.split_whitespace().nth(3).unwrap_or_else(|| panic!("unexpected: {said}"));
        PathBuf::from(source)
    }

    fn command(&self, namespace: &str, args: &[&str]) -> Vec<String> {
        let socket = self.socket();
        let ctr = [self.programs.ctr.as_path(), Path::new("-a"), &socket].map(|p| p.display().to_string());
        let rest = ["-n", namespace].into_iter().chain(args.iter().copied());
        ctr.into_iter().chain(rest.map(str::to_owned)).collect()
    }
}

fn spawned(programs: &Programs, directory: &Path) -> Daemon {
    let mut command = Command::new(&programs.containerd);
    // It unpacks by igzip or pigz where they are installed, which take what its own gzip refuses.
    command.env("CONTAINERD_DISABLE_IGZIP", "1").env("CONTAINERD_DISABLE_PIGZ", "1");
    // The shim that belongs to it lies beside it.
    let beside = programs.containerd.parent().unwrap_or(Path::new("/"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([beside.to_owned()].into_iter().chain(std::env::split_paths(&path)));
    command.env("PATH", path.expect("directories"));
    command.arg("--config").arg(directory.join("config.toml"));
    let daemon = Daemon::start(&mut command, &directory.join("log"));
    daemon.unwrap_or_else(|e| panic!("{}: {e}", programs.containerd.display()))
}

fn rerun(command: &[String]) -> Output {
    output(Command::new(&command[0]).args(&command[1..]))
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.daemon.stop();
        // containerd leaves mounts of its sandboxes' shared memory, and of trees it was looking at.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |line: &str| {
            line.split(' ').nth(1).filter(|p| Path::new(p).starts_with(self.dir.path())).map(str::to_owned)
        };
        for path in mounts.lines().rev().filter_map(below) {
            // One that cannot be unmounted makes the directory stay, which is seen.
            let _ = rustix::mount::unmount(path.as_str(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn configuration(programs: &Programs, options: &Options, dir: &Path) -> String {
    let old = programs.is_version_1();
    let version = if old { 2 } else { 3 };
    let mut disabled = vec!["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"];
    disabled.extend(&options.disabled);
    if !options.cri {
        disabled.push("io.containerd.grpc.v1.cri");
        disabled.push("io.containerd.cri.v1.images");
        disabled.push("io.containerd.cri.v1.runtime");
    }
    let sandbox = |table: &str, key: &str| {
        options.sandbox_image.as_ref().map(|image| format!("{table}{key} = \"{image}\"\n")).unwrap_or_default()
    };
    let cri = match (options.cri, old) {
        (false, _) => String::new(),
        (true, true) => {
            let sandbox = sandbox("", "sandbox_image");
            format!("[plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n{sandbox}")
        }
        // Two that listen on the one socket that NRI has by default end each other.
        (true, false) => {
            let sandbox = sandbox("[plugins.\"io.containerd.cri.v1.images\".pinned_images]\n", "sandbox");
            format!(
                "[plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
                 [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n{sandbox}"
            )
        }
    };
    let root = options.root.clone().unwrap_or_else(|| dir.join("root"));
    let (dir, root) = (dir.display(), root.display());
    format!(
        "version = {version}\nroot = \"{root}\"\nstate = \"{dir}/state\"\ndisabled_plugins = {disabled:?}\n\
         [grpc]\naddress = \"{dir}/s\"\n[ttrpc]\naddress = \"{dir}/t\"\n[debug]\naddress = \"{dir}/d\"\n{cri}{}\n",
        options.config
    )
}
