//! Runs the real `orlop` binary on a root of its own.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod document;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use orlop_oci::Digest;
use orlop_testkit::archive;
use orlop_testkit::image::Content;
use orlop_testkit::mounts::Cleaned;
use orlop_testkit::registry::{Options, Registry};
use orlop_testkit::served::Served;
use serde_json::Value;
use tempfile::TempDir;

/// A store in a temporary directory.
pub(crate) struct Orlop {
    /// Images of layers that a daemon has mounted go before the directory; a daemon that ends by itself takes them along.
    cleaned: Cleaned,
    dir: TempDir,
    root: PathBuf,
    namespace: &'static str,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Done {
    /// Names the layer that was refused and says what to do: it is at fault, or this machine cannot unpack it.
    #[track_caller]
    pub(crate) fn refuses_a_layer(&self, case: &str) {
        assert!(self.err.contains("orlop: layer sha256:"), "{case}: {}", self.err);
        let says_why = match self.code {
            5 => self.err.contains("  hint: "),
            1 => self.err.contains("is not possible here"),
            _ => false,
        };
        assert!(says_why, "{case}: {}: {}", self.code, self.err);
    }
}

impl Orlop {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { cleaned: Cleaned(dir.path().to_owned()), root: dir.path().join("root"), dir, namespace: "k8s.io" }
    }

    /// A store below a directory that the test provides.
    pub(crate) fn below(directory: &Path) -> Self {
        let root = directory.join("root");
        Self { cleaned: Cleaned(root.clone()), root, ..Self::new() }
    }

    /// The same in another namespace.
    pub(crate) fn in_namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The file of a blob.
    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root().join("content/blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// A place beside the root for archives and the like.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command, to be run or fed.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = binary();
        command.arg("--root").arg(self.root()).args(["--namespace", self.namespace]).args(args);
        command
    }

    /// Runs a command, however it ends.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        Done::of(&self.command(args).output().expect("orlop starts"))
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let command = self.command(args);
        let shown = format!("{command:?}");
        let done = Done::of(&{ command }.output().expect("orlop starts"));
        assert_eq!(done.code, 0, "{shown}\nstdout: {}\nstderr: {}", done.out, done.err);
        done.out
    }

    /// Runs a command that must succeed, and parses its JSON.
    #[track_caller]
    pub(crate) fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let mut command = self.command(args);
        command.args(["-o", "json"]);
        let done = Done::of(&command.output().expect("orlop starts"));
        assert_eq!(done.code, 0, "{command:?}\n{}", done.err);
        serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{command:?} printed no JSON: {e}\n{}", done.out))
    }

    /// The names of all records, sorted.
    #[track_caller]
    pub(crate) fn records(&self) -> Vec<String> {
        let mut names: Vec<String> = self.ok(["images", "--all", "-o", "name"]).lines().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// The store has no damage and no contradiction, and every byte hashes to its name.
    #[track_caller]
    pub(crate) fn is_sound(&self) {
        let done = self.run(["check", "--deep", "-o", "json"]);
        assert_eq!(done.code, 0, "check finds something: {}\n{}", done.out, done.err);
    }

    /// Starts a daemon on this store and waits until it takes connections.
    #[track_caller]
    pub(crate) fn serve(&self, options: &[&str]) -> Served {
        Served::start(binary(), &self.root, options)
    }

    /// Runs a command as a user who owns nothing; needs root.
    pub(crate) fn run_as_nobody(&self, args: &[&str]) -> Done {
        const NOBODY: u32 = 65534;
        let binary = self.path("orlop");
        if !binary.exists() {
            publish(&binary);
        }
        let mut command = clean(Command::new(binary));
        command.arg("--root").arg(self.root()).args(["--namespace", self.namespace]).args(args);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        Done::of(&command.output().expect("orlop starts"))
    }

    /// Bytes on standard input.
    pub(crate) fn fed(&self, args: &[&str], input: &Path) -> Done {
        let file = std::fs::File::open(input).expect("the input opens");
        Done::of(&self.command(args).stdin(Stdio::from(file)).output().expect("orlop starts"))
    }
}

/// Imports an image into a store, so that it can be pushed.
pub(crate) fn import(store: &Orlop, name: &str, content: &Content) {
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).expect("the archive is written");
    store.ok(["import", "--no-unpack", file.to_str().expect("a plain path")]);
}

/// A registry that has an image as `HOST/app:1`.
pub(crate) fn registry_with(content: &Content) -> Option<Registry> {
    let registry = Registry::start(&Options::new())?;
    let store = Orlop::new();
    import(&store, "docker.io/library/app:1", content);
    store.ok(["push", "app:1", &format!("{}/app:1", registry.host())]);
    Some(registry)
}

/// An HTTP answer, headers and all.
pub(crate) fn get(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("somebody listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("a request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer comes");
    answer
}

/// Where a daemon that was started with `--metrics 127.0.0.1:0` has them.
#[track_caller]
pub(crate) fn metrics_address(served: &mut Served) -> String {
    served.process().wait_for(|daemon| {
        let log = daemon.log();
        let at = log.find("address=")? + "address=".len();
        Some(log[at..].split_whitespace().next()?.to_owned())
    })
}

/// Where the registry of a daemon that has one listens.
#[track_caller]
pub(crate) fn registry_address(served: &mut Served) -> String {
    served.process().wait_for(|daemon| registry_of(&daemon.log()))
}

/// The same from what a daemon has said; `None`: not yet.
pub(crate) fn registry_of(log: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains("serving the registry"))?;
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("address="));
    address.map(str::to_owned)
}

/// Puts the binary where anybody may execute it. A copy cannot be run while a process that another test has just begun
/// still holds the descriptor that it was written through; a link was never written.
pub(crate) fn publish(at: &Path) {
    let own = env!("CARGO_BIN_EXE_orlop");
    std::fs::hard_link(own, at).or_else(|_| std::fs::copy(own, at).map(drop)).expect("the binary is copied");
}

/// The binary, away from the environment of whoever runs the tests.
pub(crate) fn binary() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_orlop")))
}

fn clean(mut command: Command) -> Command {
    for variable in [
        "ORLOP_ROOT",
        "ORLOP_ADDRESS",
        "ORLOP_CONFIG",
        "ORLOP_HOST",
        "CONTAINERD_ADDRESS",
        "CONTAINERD_NAMESPACE",
        "COLUMNS",
    ] {
        command.env_remove(variable);
    }
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(variable);
    }
    command.env("DOCKER_CONFIG", "/nonexistent").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Whether the tests run as root; without it those that mount, chown or make devices say that they skip.
pub(crate) fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("{test}: skipped, it needs root");
    }
    root
}
