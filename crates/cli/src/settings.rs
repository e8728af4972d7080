//! What comes from options, environment and the configuration file, in this order of precedence.

use std::path::{Path, PathBuf};

use crate::args::Global;
use crate::config::{self, Config};
use crate::error::{Class, CliError, Result};
use crate::find::places::{OWN_ROOT, OWN_SOCKET, Surroundings, at_host, runtime_directories};

/// Everything a command needs to know of its surroundings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The store's directory.
    pub(crate) root: PathBuf,
    /// Whether that directory was asked for, not only assumed.
    pub(crate) root_given: bool,
    /// The server's socket, if one was asked for.
    pub(crate) address: Option<PathBuf>,
    /// Where a daemon listens by default; none if this user has no such place.
    pub(crate) default_socket: Option<PathBuf>,
    /// The namespace that was asked for; without one it follows the store.
    pub(crate) namespace: Option<String>,
    /// Where other stores may be.
    pub(crate) around: Surroundings,
    /// Docker's config.json; empty: there is none.
    pub(crate) docker_config: String,
    /// What the configuration file says, or would say by default; `[traces]` with what the environment says.
    pub(crate) config: Config,
    /// What of the environment was left out, for whoever it concerns.
    pub(crate) left_out: Vec<String>,
}

impl Settings {
    /// Reads the environment and the configuration file.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let mut config = read_file(global.config.as_deref())?;
        let (traces, left_out) = config.traces.with_environment(|name| std::env::var(name).ok());
        config.traces = traces;
        let address = address(global, config.address.clone());
        let given = global.root.clone().or_else(|| config.root.clone());
        let root_given = given.is_some();
        let host = global.host.as_deref().filter(|host| !host.as_os_str().is_empty());
        if let Some(host) = host.filter(|host| !host.is_dir()) {
            return Err(CliError::new(Class::Usage, format!("--host {}: no such directory", host.display()))
                .hint("expected the directory at which a host's file system is mounted, such as /host"));
        }
        let root = match (given, host) {
            (Some(root), _) => root,
            (None, Some(_)) => at_host(host, Path::new(OWN_ROOT)),
            (None, None) => default_root()?,
        };
        let socket = match host {
            Some(_) => Some(at_host(host, Path::new(OWN_SOCKET))),
            None => config.serve.socket.clone().or_else(default_socket),
        };
        Ok(Self {
            root,
            root_given,
            address: address.map(strip_unix_scheme),
            default_socket: socket,
            namespace: global.namespace.clone().filter(|namespace| !namespace.is_empty()),
            around: surroundings(host),
            docker_config: docker_config().map(|p| p.display().to_string()).unwrap_or_default(),
            config,
            left_out,
        })
    }
}

/// What was said more directly wins: an option over the environment, that over the configuration file; and what names
/// Orlop's root over containerd's variable.
fn address(global: &Global, configured: Option<PathBuf>) -> Option<PathBuf> {
    if global.address_by_option {
        return global.address.clone();
    }
    if global.root_by_option {
        return None;
    }
    let containerd = || global.root.is_none().then(|| non_empty("CONTAINERD_ADDRESS")).flatten();
    global.address.clone().or_else(containerd).or(configured.filter(|_| global.root.is_none()))
}

/// `unix:///run/x.sock`, as other tools write it, is the path.
fn strip_unix_scheme(address: PathBuf) -> PathBuf {
    match address.to_str().and_then(|a| a.strip_prefix("unix://")) {
        Some(path) => PathBuf::from(path),
        None => address,
    }
}

/// The file that was named, or the one at the usual place if there is one.
fn read_file(named: Option<&Path>) -> Result<Config> {
    let usual = Path::new(config::DEFAULT_FILE);
    match named {
        Some(path) => config::read(path),
        None if usual.exists() => config::read(usual),
        None => Ok(Config::default()),
    }
}

/// Where other stores may be. Those of a mounted host belong to users whose variables nobody knows here.
fn surroundings(host: Option<&Path>) -> Surroundings {
    if let Some(host) = host {
        let host = Some(host.to_owned());
        return Surroundings { others: runtime_directories(host.as_deref()), host, ..Surroundings::default() };
    }
    let others = if is_system_root() { runtime_directories(None) } else { Vec::new() };
    Surroundings { host: None, runtime_dir: non_empty("XDG_RUNTIME_DIR"), data_home: data_home(), others }
}

fn data_home() -> Option<PathBuf> {
    non_empty("XDG_DATA_HOME").or_else(|| non_empty("HOME").map(|home| home.join(".local/share")))
}

fn default_root() -> Result<PathBuf> {
    if is_system_root() {
        return Ok(PathBuf::from(OWN_ROOT));
    }
    data_home().map(|dir| dir.join("orlop")).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the store: neither XDG_DATA_HOME nor HOME is set")
            .hint("give --root DIR")
    })
}

/// Whether this user is root of a system, and not only of a user namespace in which the system belongs to others
/// (`unshare --map-root-user`). A container's root whose `/var/lib` is its own is root of a system.
fn is_system_root() -> bool {
    let mapped = || std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everybody(&map));
    let foreign = || rustix::fs::access("/var/lib", rustix::fs::Access::WRITE_OK).is_err();
    rustix::process::geteuid().is_root() && !(mapped() && foreign())
}

/// A user namespace's map that says that everybody is who he is: the first namespace of a system.
fn maps_everybody(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Where the daemon listens if nothing is said.
fn default_socket() -> Option<PathBuf> {
    if is_system_root() {
        return Some(PathBuf::from(OWN_SOCKET));
    }
    non_empty("XDG_RUNTIME_DIR").map(|dir| dir.join("orlop/orlop.sock"))
}

fn docker_config() -> Option<PathBuf> {
    let dir = non_empty("DOCKER_CONFIG").or_else(|| non_empty("HOME").map(|home| home.join(".docker")))?;
    let path = dir.join("config.json");
    path.exists().then_some(path)
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}
