//! A node for `orlop install`: a containerd that something starts again whenever it ends, as systemd does; below a directory that
//! stands for the host's file system, where its product has its files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_testkit::containerd::Programs;
use orlop_testkit::process::{Daemon, Output, output};
use orlop_testkit::registry::Registry;
use orlop_testkit::served::Served;

use crate::common::{Done, Orlop, binary, registry_with};
use crate::stack::{crictl, hosts, image, is_old, text};

/// Whose containerd it is: where its files are, and what makes the one that containerd reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// kubeadm's and the system's: the file is containerd's own.
    Plain,
    /// A template, into which variables are filled.
    MicroK8s,
    /// The file is written anew from the product's own or from a template that includes it. Whether its own imports others.
    K3s { imports: bool },
}

/// The parts; containerd ends before Orlop.
pub(crate) struct Node {
    // Ended first: it starts no further containerd then.
    supervisor: Daemon,
    pub(crate) served: Served,
    pub(crate) store: Orlop,
    pub(crate) programs: Programs,
    registry: Registry,
    layout: Layout,
    dir: tempfile::TempDir,
}

const K3S: &str = "var/lib/rancher/k3s/agent/etc/containerd";
const MICROK8S: &str = "var/snap/microk8s/current/args";

/// What each configuration here begins with: comments and all of it must survive.
const HEAD: &str = "# The operator's own: do not lose this line.\n";

impl Node {
    /// Starts all of it; `None` where something is missing, which is said.
    pub(crate) fn start(programs: &Programs, layout: Layout) -> Option<Self> {
        Self::start_with(programs, layout, &[])
    }

    /// The same with programs that containerd finds before all others.
    pub(crate) fn start_with(programs: &Programs, layout: Layout, before: &[(&str, &str)]) -> Option<Self> {
        let registry = registry_with(&image()?)?;
        // A socket's path must be short.
        let dir = tempfile::Builder::new().prefix("node").tempdir_in("/tmp").expect("a temporary directory");
        let store = Orlop::new();
        hosts(&store, "hosts", &registry.host());
        let [raw, hosts] = ["raw", "hosts"].map(|name| store.path(name));
        let served = store.serve(&["--raw-socket", text(&raw), "--hosts-dir", text(&hosts)]);
        let files = Files { layout, root: dir.path().to_owned(), programs: programs.clone(), hosts };
        files.write();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("a directory");
        for (name, script) in before {
            std::fs::write(bin.join(name), script).expect("a file");
            std::fs::set_permissions(bin.join(name), std::fs::Permissions::from_mode(0o755)).expect("a mode");
        }
        let supervisor = files.supervise();
        let mut node = Self { supervisor, served, store, programs: programs.clone(), registry, layout, dir };
        node.show_raw();
        let mut version = node.ctr_command("default", &["version"]);
        node.supervisor.wait_for(|_| output(&mut version).status.success().then_some(()));
        Some(node)
    }

    /// Lets the raw socket be reached below the directory that stands for the host too.
    fn show_raw(&self) {
        let (raw, inside) = (self.raw(), self.dir.path().join(self.raw().strip_prefix("/").expect("an absolute path")));
        std::fs::create_dir_all(inside.parent().expect("a directory")).expect("a directory");
        let _ = std::fs::remove_file(&inside);
        std::fs::hard_link(raw, inside).expect("a link");
    }

    pub(crate) fn raw(&self) -> PathBuf {
        self.store.path("raw")
    }

    /// The directory of all of it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path(socket_of(self.layout))
    }

    /// The file that an operator edits.
    pub(crate) fn config(&self) -> PathBuf {
        self.path(&match self.layout {
            Layout::Plain => "etc/containerd/config.toml".to_owned(),
            Layout::MicroK8s => format!("{MICROK8S}/containerd-template.toml"),
            Layout::K3s { .. } => format!("{K3S}/config-v3.toml.d/orlop.toml"),
        })
    }

    /// What the operator's file says.
    pub(crate) fn configured(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap_or_default()
    }

    /// The names of all that lies beside the operator's file.
    pub(crate) fn beside(&self) -> Vec<String> {
        let found = std::fs::read_dir(self.config().parent().expect("a directory")).into_iter().flatten().flatten();
        let mut names: Vec<String> = found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What restarts its containerd.
    pub(crate) fn restart(&self) -> String {
        format!("kill $(cat {})", self.path("pid").display())
    }

    /// `orlop install` with what finds this node, and further words.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        match self.layout {
            Layout::Plain => command.arg("--address").arg(self.socket()),
            _ => command.arg("--host").arg(self.dir.path()),
        };
        command.arg("install").args(args);
        if !args.contains(&"--restart-command") {
            command.args(["--restart-command", &self.restart()]);
        }
        if !args.contains(&"--revert") && !args.contains(&"--raw-socket") {
            command.arg("--raw-socket").arg(self.raw());
        }
        command
    }

    /// Runs it, however it ends.
    pub(crate) fn install(&self, args: &[&str]) -> Done {
        Done::of(&self.command(args).output().expect("orlop starts"))
    }

    /// Runs it and expects an exit code.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32, args: &[&str]) -> Done {
        let done = self.install(args);
        assert_eq!(done.code, code, "{args:?}\n{}\n{}\n{}", done.out, done.err, self.log());
        done
    }

    fn ctr_command(&self, namespace: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.ctr);
        command.arg("-a").arg(self.socket()).args(["-n", namespace]).args(args);
        command
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> Output {
        output(&mut self.ctr_command("k8s.io", args))
    }

    /// As kubelet does.
    pub(crate) fn crictl(&self, args: &[&str]) -> Output {
        output(&mut crictl(&self.socket(), args))
    }

    /// The image's name.
    pub(crate) fn name(&self) -> String {
        format!("{}/app:1", self.registry.host())
    }

    /// The ID of a container of this node: runc has those of all containerds of the machine in one place.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.dir.path().file_name().expect("a name").to_string_lossy())
    }

    /// Runs a command in a container on a snapshotter.
    pub(crate) fn run(&self, id: &str, snapshotter: &str, options: &[&str], command: &str) -> Output {
        let (name, id) = (self.name(), self.id(id));
        self.ctr(&[&["run"], options, &["--snapshotter", snapshotter, &name, &id, "/bin/sh", "-c", command]].concat())
    }

    /// The process of a container that runs.
    pub(crate) fn pid(&self, id: &str) -> String {
        let (listed, id) = (self.ctr(&["tasks", "ls"]).ok().stdout, self.id(id));
        let row = listed.lines().find(|line| line.starts_with(&id) && line.contains("RUNNING"));
        let pid = row.and_then(|row| row.split_whitespace().nth(1));
        pid.unwrap_or_else(|| panic!("{id} does not run:\n{listed}")).to_owned()
    }

    /// Whether containerd has Orlop's snapshotter.
    pub(crate) fn has_orlop(&self) -> bool {
        self.ctr(&["plugins", "ls"]).ok().stdout.contains("orlop-overlay")
    }

    pub(crate) fn namespaces(&self) -> String {
        self.ctr(&["namespaces", "ls", "-q"]).ok().stdout
    }

    /// What containerd has logged, whichever.
    pub(crate) fn log(&self) -> String {
        self.supervisor.log()
    }

    /// What Orlop's disk holds: names of blobs and trees.
    fn on_disk(&self) -> Vec<String> {
        let names = |part: &str| {
            let found = std::fs::read_dir(self.store.root().join(part)).into_iter().flatten().flatten();
            found
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name != "l")
                .collect::<Vec<_>>()
        };
        ["content/blobs/sha256", "snapshots/overlayfs"].into_iter().flat_map(names).collect()
    }

    /// Waits until nothing of an image is left on Orlop's disk.
    #[track_caller]
    pub(crate) fn is_emptied(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.on_disk().is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}\n{}", self.on_disk(), self.served.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends this node's containerd for good.
    fn end(&mut self) {
        let _ = std::fs::write(self.path("end"), "");
        if let Ok(pid) = std::fs::read_to_string(self.path("pid")) {
            let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
            pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
        }
        self.supervisor.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for id in self.ctr(&["tasks", "ls", "-q"]).stdout.lines() {
            drop(self.ctr(&["tasks", "rm", "--force", id]));
        }
        self.end();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = |line: &str| {
            line.split(' ').nth(1).filter(|p| Path::new(p).starts_with(self.dir.path())).map(str::to_owned)
        };
        for path in mounts.lines().rev().filter_map(below) {
            let _ = rustix::mount::unmount(path.as_str(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

const fn socket_of(layout: Layout) -> &'static str {
    match layout {
        Layout::Plain => "s",
        Layout::MicroK8s => "var/snap/microk8s/common/run/containerd.sock",
        Layout::K3s { .. } => "run/k3s/containerd/containerd.sock",
    }
}

/// The files that are there before Orlop.
struct Files {
    layout: Layout,
    root: PathBuf,
    programs: Programs,
    /// Where CRI looks for registries.
    hosts: PathBuf,
}

impl Files {
    fn write(&self) {
        let etc = match self.layout {
            Layout::Plain => self.root.join("etc/containerd"),
            Layout::MicroK8s => self.root.join(MICROK8S),
            Layout::K3s { .. } => self.root.join(K3S),
        };
        for directory in [&etc, &self.root.join("run/k3s/containerd"), &self.root.join("var/snap/microk8s/common/run")]
        {
            std::fs::create_dir_all(directory).expect("a directory");
        }
        let (name, text) = match self.layout {
            Layout::Plain => ("config.toml", self.config("overlayfs")),
            Layout::MicroK8s => ("containerd-template.toml", self.config("${SNAPSHOTTER}")),
            Layout::K3s { imports } => {
                let directory = format!("/{K3S}/config-v3.toml.d/*.toml");
                let line = if imports { format!("imports = [\"{directory}\"]\n") } else { String::new() };
                ("base", format!("{line}{}", self.config("overlayfs")))
            }
        };
        std::fs::write(etc.join(name), text).expect("a file");
    }

    fn config(&self, snapshotter: &str) -> String {
        let dir = self.root.display();
        let socket = self.root.join(socket_of(self.layout));
        let hosts = self.hosts.display();
        let cri = match is_old(&self.programs) {
            true => format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true # in a container\n  \
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"{snapshotter}\"\n  \
                 [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"{hosts}\"\n"
            ),
            false => format!(
                "[plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true # in a container\n\
                 [plugins.'io.containerd.nri.v1.nri']\n  disable = true\n\
                 [plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"{snapshotter}\"\n\
                 [plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '{hosts}'\n"
            ),
        };
        format!(
            "{HEAD}version = {}\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.internal.v1.opt\", \"io.containerd.tracing.processor.v1.otlp\"]\n\
             [grpc]\n  address = \"{}\"\n[ttrpc]\n  address = \"{dir}/t\"\n[debug]\n  address = \"{dir}/d\"\n{cri}",
            if is_old(&self.programs) { 2 } else { 3 },
            socket.display()
        )
    }

    /// What makes the file that containerd reads, before each start, and its name.
    fn rendering(&self) -> (String, PathBuf) {
        let at = |name: &str| self.root.join(name);
        match self.layout {
            Layout::Plain => (":".to_owned(), at("etc/containerd/config.toml")),
            Layout::MicroK8s => {
                let (from, to) = (at(MICROK8S).join("containerd-template.toml"), at(MICROK8S).join("containerd.toml"));
                (format!("sed 's/${{SNAPSHOTTER}}/overlayfs/' {} > {}", from.display(), to.display()), to)
            }
            Layout::K3s { .. } => {
                let directory = at(K3S);
                let (d, host) = (directory.display(), self.root.display());
                // k3s' own where there is no template; its paths are the host's.
                let line = format!(
                    "if [ -e {d}/config-v3.toml.tmpl ]; then sed -e '/{{{{ template \"base\" . }}}}/{{r {d}/base' -e 'd}}' \
                     {d}/config-v3.toml.tmpl; else cat {d}/base; fi | sed 's|\"/var/lib/rancher|\"{host}/var/lib/rancher|' > \
                     {d}/config.toml"
                );
                (line, directory.join("config.toml"))
            }
        }
    }

    fn supervise(&self) -> Daemon {
        let (render, config) = self.rendering();
        let (root, containerd) = (self.root.display(), self.programs.containerd.display());
        let script = format!(
            "while [ ! -e {root}/end ]; do {render}; {containerd} --config {} & echo $! > {root}/pid; wait $!; sleep 0.05; done",
            config.display()
        );
        let mut command = Command::new("/bin/sh");
        // The shim that belongs to it lies beside it.
        let beside = self.programs.containerd.parent().expect("a directory");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            [self.root.join("bin"), beside.to_owned()].into_iter().chain(std::env::split_paths(&path)),
        );
        command.args(["-c", &script]).env("PATH", path.expect("directories")).stdin(Stdio::null());
        Daemon::start(&mut command, &self.root.join("log")).expect("a shell")
    }
}
