//! Both sides: a containerd with a registry, Orlop with another, and the same images in each registry.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use orlop_oci::{Compression, chain_ids};
use orlop_testkit::archive::{self, is_whole};
use orlop_testkit::containerd::{Containerd, Options};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::mounts::Cleaned;
use orlop_testkit::registry::{self, Registry};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;

use crate::answer::Answer;
use crate::client::Client;
use crate::common::{Orlop, binary};
use crate::step::{Look, Step};
use crate::words;

/// How long both may take to agree about what they do by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a side is asked for a layer or an archive until it comes whole.
const ASKED: usize = 5;

/// One server with what belongs to it.
pub(crate) struct Side {
    socket: PathBuf,
    directory: tempfile::TempDir,
    registry: Registry,
}

/// containerd and Orlop, ready.
pub(crate) struct Pair {
    // Ended before what they use.
    _containerd: Containerd,
    _orlop: Served,
    /// What a client has the daemon mount stays mounted when the daemon ends.
    _cleaned: Cleaned,
    pub(crate) theirs: Side,
    pub(crate) ours: Side,
    pub(crate) client: Client,
    program: PathBuf,
    files: tempfile::TempDir,
    names: Vec<(&'static str, String)>,
    _store: Orlop,
}

impl Pair {
    /// Starts both; or says that the rows are skipped.
    pub(crate) fn start(client: Client) -> Option<Self> {
        if !crate::common::is_root(client.name()) {
            return None;
        }
        let (program, programs) = client.find()?;
        let registries = [Registry::start(&registry::Options::new())?, Registry::start(&registry::Options::new())?];
        let files = directory();
        let store = Orlop::new();
        let names = shelve(&store, files.path(), &registries);
        let containerd = Containerd::start(&programs, &Options { cri: true, ..Options::default() });
        let root = store.path("served");
        let orlop = Served::start(binary(), &root, &[]);
        let [theirs, ours] = registries;
        let theirs = Side::new(containerd.socket(), theirs);
        let ours = Side::new(orlop.socket(), ours);
        Some(Self {
            _containerd: containerd,
            _orlop: orlop,
            _cleaned: Cleaned(root),
            theirs,
            ours,
            client,
            program,
            files,
            names,
            _store: store,
        })
    }

    /// Both answers to a step.
    pub(crate) fn run(&self, namespace: &str, step: &Step, agree: &dyn Fn(&Answer, &Answer) -> bool) -> [Answer; 2] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let [theirs, ours] = std::thread::scope(|scope| {
                [&self.theirs, &self.ours]
                    .map(|side| scope.spawn(|| self.ask(side, namespace, step)))
                    .map(|asking| asking.join().expect("a client runs"))
            });
            if !step.settles || agree(&theirs, &ours) || Instant::now() > deadline {
                return [theirs, ours];
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ask(&self, side: &Side, namespace: &str, step: &Step) -> Answer {
        // `ctr` writes what a transfer sends in a goroutine that it does not wait for when the server has answered: of any
        // server it may end before it has written all.
        let mut asked = 1;
        let said = loop {
            let command = self.command(side, namespace, step.line);
            let file = archive(&command);
            let terminal = step.look == Look::Terminal;
            let said = output(if terminal { on_a_terminal(&command) } else { command }, step.input);
            let whole = match file {
                Some(file) => is_whole(&std::fs::read(file).unwrap_or_default()),
                None => step.look != Look::Layer || is_whole(&said.stdout),
            };
            if whole || !said.status.success() || asked == ASKED {
                break said;
            }
            asked += 1;
        };
        self.read(side, &said, step.look)
    }

    /// A command of the client's, for one side.
    pub(crate) fn command(&self, side: &Side, namespace: &str, line: &str) -> Command {
        let mut line = line.replace("$REGISTRY", &side.registry.host());
        line = line.replace("$DIRECTORY", &side.path()).replace("$FILES", &path(self.files.path()));
        for (name, value) in &self.names {
            line = line.replace(name, value);
        }
        let mut command = self.client.command(&self.program, &side.socket, namespace, &line);
        command.current_dir(side.directory.path());
        command
    }

    /// What was said, made comparable.
    pub(crate) fn read(&self, side: &Side, output: &Output, look: Look) -> Answer {
        let own = [
            (side.path(), "$DIRECTORY"),
            (path(self.files.path()), "$FILES"),
            (path(&side.socket), "$SOCKET"),
            (side.registry.host(), "$REGISTRY"),
        ];
        Answer::read(output, &own, look)
    }

    /// The client itself.
    pub(crate) fn program(&self) -> &Path {
        &self.program
    }
}

impl Side {
    fn new(socket: PathBuf, registry: Registry) -> Self {
        let directory = directory();
        for place in ["one", "two", "three", "four"] {
            std::fs::create_dir(directory.path().join(place)).expect("a writable directory");
        }
        Self { socket, directory, registry }
    }

    /// A scratch directory of this side.
    fn path(&self) -> String {
        path(self.directory.path())
    }

    /// The same, to keep files in.
    pub(crate) fn scratch(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // A test that failed may have left images mounted.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
            if Path::new(point).starts_with(self.directory.path()) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

fn output(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A client that ends without reading is no failure here.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("a child can be waited for")
}

/// The file that a command exports to.
fn archive(command: &Command) -> Option<PathBuf> {
    let args: Vec<&Path> = command.get_args().map(Path::new).collect();
    let exports = args.iter().any(|arg| *arg == Path::new("export"));
    args.into_iter().find(|arg| exports && arg.extension().is_some_and(|e| e == "tar")).map(Path::to_owned)
}

/// The same command with a terminal for its output.
fn on_a_terminal(command: &Command) -> Command {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let line: Vec<String> = words.map(|word| words::quote(&word.to_string_lossy())).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.current_dir(command.get_current_dir().expect("it has one"));
    script
}

fn directory() -> tempfile::TempDir {
    // Of one length, short enough for a socket's path.
    tempfile::Builder::new().prefix("side").tempdir_in("/tmp").expect("a temporary directory")
}

fn path(path: &Path) -> String {
    path.to_str().expect("a plain path").to_owned()
}

/// An image of two layers for a platform; the second layer is the platform's own.
fn image(platform: &str) -> Image {
    let base =
        [Entry::dir("etc"), Entry::file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), Entry::file("gone", "soon")];
    let base = base.map(|entry| entry.mtime(1_600_000_000, 0));
    let own = [Entry::file(format!("etc/{}", platform.replace('/', "-")), platform), Entry::whiteout("gone")];
    let own = own.map(|entry| entry.mtime(1_600_000_000, 0));
    Image::new(platform)
        .layer(Layer::new(base).packed(Compression::Gzip))
        .layer(Layer::new(own).packed(Compression::Gzip))
        .config("Cmd", serde_json::json!(["/bin/sh"]))
}

/// Writes the archives, puts the images into both registries, and says what is called how.
fn shelve(store: &Orlop, files: &Path, registries: &[Registry; 2]) -> Vec<(&'static str, String)> {
    let (host, other) = match std::env::consts::ARCH {
        "aarch64" => ("linux/arm64", "linux/amd64"),
        _ => ("linux/amd64", "linux/arm64"),
    };
    let made = image(host);
    let app = Content::image(&made);
    // Nothing shared between the two, so that each belongs to one place.
    let foreign = Image::new(other).layer(Layer::new([Entry::file("other", other)]));
    let multi = Content::index(&[app.clone(), Content::image(&foreign)]);
    let docker = Content::image(&made.clone().docker());
    for (name, content) in [("app", &app), ("multi", &multi), ("docker", &docker)] {
        let file = files.join(format!("{name}.tar"));
        let reference = format!("example.org/{name}:1");
        std::fs::write(&file, archive::oci_archive(&[(&reference, content)])).expect("a writable file");
        store.ok(["import", "--no-unpack", &path(&file)]);
        for registry in registries {
            store.ok(["push", &reference, &format!("{}/{name}:1", registry.host())]);
        }
    }
    std::fs::write(files.join("text"), "no archive").expect("a writable file");
    let diff_ids: Vec<_> = made.layers().iter().map(Layer::diff_id).collect();
    let chain = chain_ids(&diff_ids);
    let layers = app.layers();
    vec![
        ("$OTHER", other.to_owned()),
        ("$INDEX", multi.root.digest.to_string()),
        ("$MANIFEST", app.root.digest.to_string()),
        ("$CONFIG", app.image_id().expect("it is an image").to_string()),
        ("$LAYER", layers[0].to_string()),
        ("$LOWER", chain[0].to_string()),
        ("$TOP", chain[1].to_string()),
        ("$HELLO", orlop_oci::Digest::of(b"hello").to_string()),
        ("$ABSENT", orlop_oci::Digest::of(b"nobody has this").to_string()),
    ]
}
