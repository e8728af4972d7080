//! A node as the kubelet leaves it: images pulled through CRI, hash references and all.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{self, Registry};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::common::{self, Done, Orlop, binary};

pub(crate) struct Node {
    pub(crate) containerd: Containerd,
    pub(crate) registry: Registry,
    pub(crate) programs: Programs,
    store: Orlop,
}

/// Every containerd there is to test with.
pub(crate) fn generations(test: &str) -> Vec<Programs> {
    if !common::is_root(test) {
        return Vec::new();
    }
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

/// An image of its own layer over a common one.
pub(crate) fn image(own: &str, bytes: usize) -> Content {
    let base = Layer::new([Entry::dir("etc"), Entry::file("etc/base", "common ".repeat(5_000))]);
    let above = Layer::noise(own, own.len() as u64, bytes).packed(Compression::Gzip);
    Content::image(&Image::host().layer(base.packed(Compression::Gzip)).layer(above))
}

impl Node {
    /// None, with a word, if what it needs is not installed.
    pub(crate) fn start(programs: &Programs) -> Option<Self> {
        Self::configured(programs, "")
    }

    /// One whose containerd collects when it is asked to, and at no other time.
    pub(crate) fn that_waits(programs: &Programs) -> Option<Self> {
        let never = "mutation_threshold = 1000000\nstartup_delay = \"24h\"\n";
        Self::configured(programs, &format!("[plugins.\"io.containerd.gc.v1.scheduler\"]\n{never}"))
    }

    fn configured(programs: &Programs, config: &str) -> Option<Self> {
        let crictl = crictl();
        if !crictl.exists() {
            eprintln!("skipped: {} is not installed (scripts/peers)", crictl.display());
            return None;
        }
        let registry = Registry::start(&registry::Options::new())?;
        let containerd =
            Containerd::start(programs, &Options { cri: true, config: config.to_owned(), ..Options::default() });
        Some(Self { containerd, registry, programs: programs.clone(), store: Orlop::new() })
    }

    /// The full name of an image in the node's registry.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// Has CRI pull an image, as the kubelet does; its full name.
    pub(crate) fn pull(&self, name: &str, content: &Content) -> String {
        let full = self.name(name);
        let file = self.store.path("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(&full, content)])).unwrap();
        self.store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
        self.store.ok(["push", "--plain-http", &full]);
        self.crictl(&["pull", &full]);
        full
    }

    /// Runs `crictl`, which must succeed.
    #[track_caller]
    pub(crate) fn crictl(&self, args: &[&str]) -> String {
        let endpoint = format!("unix://{}", self.containerd.socket().display());
        let mut command = Command::new(crictl());
        command.args(["--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint, "--timeout", "60s"]).args(args);
        let done = Done::of(&command.output().unwrap());
        assert_eq!(done.code, 0, "{command:?}\n{}\n{}", done.err, self.containerd.log());
        done.out
    }

    /// Runs `orlop` on it.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.at(&self.containerd.socket(), args)
    }

    /// The same at another socket.
    pub(crate) fn at(&self, socket: &Path, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--address").arg(socket).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}\n{}\n{}", done.out, done.err);
        done.out
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?} printed no JSON: {e}\n{out}"))
    }

    /// Stops containerd: only its files are left.
    pub(crate) fn stop(&mut self) -> Files {
        let root = self.containerd.root();
        self.containerd.stop(rustix::process::Signal::TERM);
        Files(root)
    }

    /// The names of all records of the kubelet's namespace, sorted.
    pub(crate) fn records(&self) -> Vec<String> {
        let out = self.containerd.ctr("k8s.io", &["images", "ls", "-q"]).ok().stdout;
        let mut names: Vec<String> = out.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

/// The root of a containerd that has stopped.
pub(crate) struct Files(PathBuf);

impl Files {
    /// Runs `orlop` on it.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--root").arg(&self.0).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }
}

fn crictl() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join("go/bin/crictl")
}
