//! Which containerd is to be configured, where its configuration is, and what restarts it.
//!
//! The running containerd itself tells: its socket whose process it is, that process's command line its file. What a product makes
//! that file of, and with which command it is restarted, is known of each product.
//!
//! # Invariants
//! - Nothing is changed here.
//! - Paths are those of this process; those that containerd reads are made from them by [`Target::theirs`].

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use orlop_api::version::numbers;

use super::{Args, files};
use crate::error::{Class, CliError, Result};
use crate::find;
use crate::find::places::{Place, Product, at_host, places};
use crate::find::probe::{self, Found, Server, State};
use crate::settings::Settings;

/// Read by a containerd that was not told another.
const DEFAULT_FILE: &str = "/etc/containerd/config.toml";
const MICROK8S_TEMPLATE: &str = "/var/snap/microk8s/current/args/containerd-template.toml";
const K3S: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
const RKE2: &str = "/var/lib/rancher/rke2/agent/etc/containerd";

/// The oldest that is tested: [`crate::install`]'s documentation says with which.
const OLDEST: (u64, u64) = (1, 6);

/// What the configuration consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// A file that containerd reads, or that a product fills variables into: TOML either way.
    File(PathBuf),
    /// The directory of k3s and rke2, which write the file themselves, from a template that they may be given, and have it
    /// import others.
    Generated(PathBuf),
}

/// A containerd.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) product: Product,
    /// As this process reaches it; none if only a file was named.
    pub(super) socket: Option<PathBuf>,
    /// Who answers there; none: nobody does now.
    pub(super) server: Option<Server>,
    /// Its root, if that is known.
    pub(super) root: Option<PathBuf>,
    pub(super) layout: Layout,
    /// Its program, where this process can run it.
    pub(super) program: Option<PathBuf>,
    pub(super) restart: String,
    /// Where the host's file system is, if it is not this one.
    host: Option<PathBuf>,
}

impl Target {
    /// Finds the containerd that is meant.
    ///
    /// # Errors
    /// [`Class::NotFound`] if there is none, [`Class::Conflict`] if Orlop does not configure one of this kind,
    /// [`Class::Unavailable`] if it does not answer and nobody says where its file is.
    pub(super) async fn find(settings: &Settings, args: &Args) -> Result<Self> {
        let host = settings.around.host.as_deref();
        let found = match &settings.address {
            Some(address) => Some(find::given(address, settings).await),
            None if args.containerd_config.is_some() => None,
            None => Some(search(settings, host).await?),
        };
        let product = found.as_ref().map_or(Product::Containerd, |found| found.product);
        let running = match found.as_ref().map(|found| &found.state) {
            Some(State::Running(server)) => Some(server.clone()),
            _ => None,
        };
        refuse(product, found.as_ref())?;
        let process = match &found {
            Some(found) if running.is_some() => Process::behind(&found.socket).await,
            _ => None,
        };
        let layout = match &args.containerd_config {
            Some(file) => Layout::File(resolved(file)),
            None => layout(product, process.as_ref(), host),
        };
        // What was cut short can be undone while nobody answers.
        if running.is_none() && args.containerd_config.is_none() && !files::has_journal(&file(&layout)) {
            return Err(silent(found.as_ref()));
        }
        let restart = args.restart_command.clone().unwrap_or_else(|| restart(product, host));
        let program = process.filter(|_| host.is_none()).map(|process| process.program);
        let (socket, root) = (found.as_ref().map(|f| f.socket.clone()), found.and_then(|f| f.root));
        let host = host.map(Path::to_owned);
        Ok(Self { product, socket, server: running, root, layout, program, restart, host })
    }

    /// The file that is edited, beside which everything else of the installation lies.
    pub(super) fn file(&self) -> PathBuf {
        file(&self.layout)
    }

    /// A path as containerd itself has it.
    pub(super) fn theirs(&self, path: &Path) -> PathBuf {
        let host = self.host.as_deref().and_then(|host| host.canonicalize().ok());
        let inside = host.and_then(|host| path.strip_prefix(host).ok().map(|inside| Path::new("/").join(inside)));
        inside.unwrap_or_else(|| path.to_owned())
    }

    /// Its version's first two numbers.
    ///
    /// # Errors
    /// [`Class::Conflict`] if it is older than what Orlop can lie beneath, or says no version.
    pub(super) fn version(&self) -> Result<(u64, u64)> {
        let said = self.server.as_ref().and_then(|server| server.version.clone()).unwrap_or_default();
        let Some(version) = numbers(&said) else {
            let message = format!("{}: expected a version like 2.1.0, found {said:?}", self.name());
            return Err(
                CliError::new(Class::Conflict, message).hint("which program answers there? `orlop stores` tells")
            );
        };
        if version < OLDEST {
            let message = format!(
                "{}: expected containerd {}.{} or later, found {said}: older ones do not name the image to a snapshotter",
                self.name(),
                OLDEST.0,
                OLDEST.1
            );
            return Err(CliError::new(Class::Conflict, message)
                .hint("update containerd; or use Orlop beside it: `orlop images`, `orlop pull`"));
        }
        Ok(version)
    }

    /// The directory that every run on this containerd finds.
    pub(super) fn directory(&self) -> PathBuf {
        match &self.layout {
            Layout::File(file) => file.parent().unwrap_or(Path::new("/")).to_owned(),
            Layout::Generated(directory) => directory.clone(),
        }
    }

    /// How it is called in messages.
    pub(super) fn name(&self) -> String {
        let version = self.server.as_ref().and_then(|server| server.version.as_deref()).unwrap_or_default();
        let version = version.trim_start_matches('v');
        match &self.socket {
            Some(socket) if version.is_empty() => format!("{} at {}", self.product.name(), socket.display()),
            Some(socket) => format!("{} {version} at {}", self.product.name(), socket.display()),
            None => self.product.name().to_owned(),
        }
    }

    /// Which process serves its socket now, if this process may know.
    pub(super) async fn identity(&self) -> Option<(i32, String)> {
        Some(Process::behind(self.socket.as_deref()?).await?.identity)
    }

    /// Asks again whether somebody answers.
    pub(super) async fn look(&self) -> State {
        let Some(socket) = self.socket.clone() else { return State::Absent };
        probe::look(Place { product: self.product, socket, root: None }, None).await.state
    }
}

fn file(layout: &Layout) -> PathBuf {
    match layout {
        Layout::File(file) => file.clone(),
        Layout::Generated(directory) => directory.join("config-v3.toml.d/orlop.toml"),
    }
}

/// The first that answers of those that Orlop configures.
async fn search(settings: &Settings, host: Option<&Path>) -> Result<Found> {
    let mut other = None;
    for place in places(&settings.around).into_iter().filter(|place| place.product != Product::Orlop) {
        let found = probe::look(place, host).await;
        match &found.state {
            State::Absent => {}
            State::Running(server) if server.is_orlop() => {}
            State::Running(_) if is_configured(found.product) => return Ok(found),
            State::NotPermitted(why) => {
                return Err(CliError::new(Class::NotPermitted, format!("{}: {why}", found.product.name()))
                    .hint("run it as root (sudo)"));
            }
            _ => other = other.or(Some(found)),
        }
    }
    match other {
        Some(found) => Ok(found),
        None => Err(CliError::new(Class::NotFound, "no containerd was found on this machine")
            .hint("`orlop stores` shows what is looked at; name one: --address SOCKET")),
    }
}

const fn is_configured(product: Product) -> bool {
    matches!(product, Product::MicroK8s | Product::K3s | Product::Rke2 | Product::Containerd)
}

fn refuse(product: Product, found: Option<&Found>) -> Result<()> {
    let Some(found) = found else { return Ok(()) };
    let at = found.socket.display();
    let (message, hint) = match (product, &found.state) {
        (Product::Orlop, _) => (
            format!("{at}: expected a containerd, found Orlop"),
            "give --address of the containerd that Orlop is to lie beneath",
        ),
        (_, State::NotPermitted(why)) => {
            return Err(CliError::new(Class::NotPermitted, format!("{at}: {why}")).hint("run it as root (sudo)"));
        }
        (product, _) if !is_configured(product) => (
            format!("{} at {at}: Orlop does not configure this one", product.name()),
            "expected MicroK8s, k3s, rke2, or a containerd with a configuration file; docs/operations/containerd.md has what to \
             add by hand",
        ),
        _ => return Ok(()),
    };
    Err(CliError::new(Class::Conflict, message).hint(hint))
}

fn silent(found: Option<&Found>) -> CliError {
    let name = found.map_or("containerd", |found| found.product.name());
    let at = found.map(|found| format!(" at {}", found.socket.display())).unwrap_or_default();
    let class = if found.is_some_and(|found| matches!(found.state, State::Absent)) {
        Class::NotFound
    } else {
        Class::Unavailable
    };
    let start = found.map_or("start it", |found| found.product.start());
    CliError::new(class, format!("{name}{at} does not answer")).hint(format!(
        "{start}; to take back an installation that was cut short while it is down: --revert --containerd-config FILE"
    ))
}

/// A process that serves a socket.
#[derive(Debug)]
struct Process {
    /// Its number, and when it began, for numbers are used again.
    identity: (i32, String),
    program: PathBuf,
    /// As it was told; none: it was not.
    config: Option<PathBuf>,
}

impl Process {
    async fn behind(socket: &Path) -> Option<Self> {
        let stream = tokio::net::UnixStream::connect(socket).await.ok()?;
        let pid = stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)?;
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = std::fs::read(proc.join("cmdline")).ok()?;
        let words: Vec<OsString> =
            line.split(|byte| *byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect();
        let stat = std::fs::read_to_string(proc.join("stat")).ok()?;
        // Behind the name, in which anything may be.
        let began = stat.rsplit(')').next()?.split_whitespace().nth(19)?.to_owned();
        let directory = std::fs::read_link(proc.join("cwd")).unwrap_or_else(|_| "/".into());
        let identity = (pid, began);
        Some(Self {
            identity,
            program: proc.join("exe"),
            config: config_of(&words).map(|config| directory.join(config)),
        })
    }
}

/// The file that a command line names: `--config FILE`, `-c FILE`, `--config=FILE`.
fn config_of(words: &[OsString]) -> Option<PathBuf> {
    let joined = |word: &OsString| {
        let word = word.to_str()?;
        ["--config=", "-config=", "-c="].iter().find_map(|option| word.strip_prefix(option)).map(PathBuf::from)
    };
    let named = |(at, word): (usize, &OsString)| match word.to_str() {
        Some("--config" | "-config" | "-c") => words.get(at + 1).map(PathBuf::from),
        _ => joined(word),
    };
    words.iter().enumerate().find_map(named)
}

fn layout(product: Product, process: Option<&Process>, host: Option<&Path>) -> Layout {
    let fixed = |path: &str| at_host(host, Path::new(path));
    let told = process.and_then(|process| process.config.clone()).filter(|_| host.is_none());
    match product {
        Product::MicroK8s => Layout::File(resolved(&fixed(MICROK8S_TEMPLATE))),
        Product::K3s | Product::Rke2 => {
            let usual = if product == Product::K3s { K3S } else { RKE2 };
            let told = told.and_then(|file| file.parent().map(Path::to_owned));
            Layout::Generated(told.unwrap_or_else(|| fixed(usual)))
        }
        _ => Layout::File(resolved(&told.unwrap_or_else(|| fixed(DEFAULT_FILE)))),
    }
}

/// Where a file really is: what takes its place must not take that of a link.
fn resolved(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| std::path::absolute(file).unwrap_or_else(|_| file.to_owned()))
}

/// What restarts a product's containerd, and nothing but it where that is possible.
fn restart(product: Product, host: Option<&Path>) -> String {
    let unit = |units: [&str; 2]| {
        let is_there = |unit: &&str| {
            ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"]
                .iter()
                .any(|directory| at_host(host, &Path::new(directory).join(format!("{unit}.service"))).exists())
        };
        format!("systemctl restart {}", units.iter().find(|unit| is_there(unit)).unwrap_or(&units[0]))
    };
    let command = match product {
        Product::MicroK8s => "snap restart microk8s.daemon-containerd".to_owned(),
        Product::K3s => unit(["k3s", "k3s-agent"]),
        Product::Rke2 => unit(["rke2-server", "rke2-agent"]),
        _ => "systemctl restart containerd".to_owned(),
    };
    // In a container that shares the host's processes.
    if host.is_some() { format!("nsenter --target 1 --mount -- {command}") } else { command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_file() {
        let of = |line: &str| config_of(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(of("containerd --config /a --log-level debug"), Some("/a".into()));
        assert_eq!(of("containerd -l debug -c /a"), Some("/a".into()));
        assert_eq!(of("containerd --config=/a"), Some("/a".into()));
        assert_eq!(of("containerd"), None);
        assert_eq!(of("containerd --config"), None);
    }

    #[test]
    fn each_product_is_restarted_as_it_wants_it() {
        let host = tempfile::tempdir().unwrap();
        let restart = |product| restart(product, Some(host.path()));
        let enter = "nsenter --target 1 --mount -- ";
        assert_eq!(restart(Product::Containerd), format!("{enter}systemctl restart containerd"));
        assert_eq!(restart(Product::MicroK8s), format!("{enter}snap restart microk8s.daemon-containerd"));
        assert_eq!(restart(Product::K3s), format!("{enter}systemctl restart k3s"));
        std::fs::create_dir_all(host.path().join("etc/systemd/system")).unwrap();
        std::fs::write(host.path().join("etc/systemd/system/rke2-agent.service"), "").unwrap();
        assert_eq!(restart(Product::Rke2), format!("{enter}systemctl restart rke2-agent"));
    }
}
