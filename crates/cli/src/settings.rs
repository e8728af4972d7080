//! What comes from options, environment and the configuration file, in this order of precedence.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::args::Global;
use crate::error::{Class, CliError, Result};

/// Where containerd keeps registry configuration; used when no `--hosts-dir` is given.
const DEFAULT_HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// The configuration file; unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    address: Option<PathBuf>,
    hosts_dir: Option<String>,
    snapshotter: Option<String>,
}

/// Everything a command needs to know of its surroundings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The store's directory.
    pub(crate) root: PathBuf,
    /// The daemon's socket; none: embedded.
    pub(crate) address: Option<PathBuf>,
    /// `certs.d` directories, joined by colons.
    pub(crate) hosts_dir: String,
    /// Docker's config.json; empty: there is none.
    pub(crate) docker_config: String,
    /// The default snapshotter.
    pub(crate) snapshotter: Option<String>,
}

impl Settings {
    /// Reads the environment and the configuration file.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let file = match &global.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let root = match global.root.clone().or(file.root) {
            Some(root) => root,
            None => default_root()?,
        };
        let address = global.address.clone().or(file.address);
        Ok(Self {
            root,
            address: address.map(strip_unix_scheme),
            hosts_dir: file.hosts_dir.unwrap_or_else(|| DEFAULT_HOSTS_DIR.to_owned()),
            docker_config: docker_config().map(|p| p.display().to_string()).unwrap_or_default(),
            snapshotter: file.snapshotter,
        })
    }
}

/// `unix:///run/x.sock`, as other tools write it, is the path.
fn strip_unix_scheme(address: PathBuf) -> PathBuf {
    match address.to_str().and_then(|a| a.strip_prefix("unix://")) {
        Some(path) => PathBuf::from(path),
        None => address,
    }
}

fn read_file(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path).map_err(CliError::at("read configuration", path))?;
    toml::from_str(&text)
        .map_err(|error| CliError::new(Class::Usage, format!("configuration {}: {error}", path.display())))
}

fn default_root() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/orlop"));
    }
    let data = non_empty("XDG_DATA_HOME").or_else(|| non_empty("HOME").map(|home| home.join(".local/share")));
    data.map(|dir| dir.join("orlop")).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the store: neither XDG_DATA_HOME nor HOME is set")
            .hint("give --root DIR")
    })
}

/// Where the daemon listens if nothing is said.
pub(crate) fn default_socket() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/run/orlop/orlop.sock"));
    }
    non_empty("XDG_RUNTIME_DIR").map(|dir| dir.join("orlop/orlop.sock")).ok_or_else(|| {
        CliError::new(Class::Usage, "no place for the socket: XDG_RUNTIME_DIR is not set").hint("give --socket PATH")
    })
}

fn docker_config() -> Option<PathBuf> {
    let dir = non_empty("DOCKER_CONFIG").or_else(|| non_empty("HOME").map(|home| home.join(".docker")))?;
    let path = dir.join("config.json");
    path.exists().then_some(path)
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from)
}
