//! The configuration file.
//!
//! # Invariants
//! - `default.toml` names every key once, and says what [`Config::default`] says; a test holds both together.
//! - A key that is not in it is refused, with file, line and the nearest key that is.

mod limits;
mod mirror;
mod peers;
mod read;
mod registry;
mod traces;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use limits::Limits;
pub(crate) use mirror::Mirror;
use orlop_remote::{ClientOptions, Providers};
use orlop_server::{Background, BesideMode, BesideSettings, CriSettings, Owner, OwnerError, ServeOptions};
pub(crate) use peers::Peers;
#[cfg(test)]
pub(crate) use read::keys;
pub(crate) use read::{DEFAULT_FILE, mode, read};
pub(crate) use registry::{Authentication, Registry, name_of as registry_name};
use serde::{Deserialize, Serialize};
pub(crate) use traces::{Protocol, SamplerKind, Traces};

use crate::error::{Class, CliError};

/// The commented file with all defaults.
pub(crate) const DEFAULT: &str = include_str!("default.toml");

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) root: Option<PathBuf>,
    pub(crate) address: Option<PathBuf>,
    pub(crate) hosts_dir: String,
    pub(crate) snapshotter: Option<String>,
    pub(crate) serve: Serve,
    pub(crate) log: Log,
    pub(crate) images: Images,
    pub(crate) limits: Limits,
    pub(crate) verify: Verify,
    pub(crate) cri: Cri,
    pub(crate) credentials: Credentials,
    pub(crate) containerd: Containerd,
    pub(crate) registry: Registry,
    pub(crate) mirror: Mirror,
    pub(crate) gc: Gc,
    pub(crate) scrub: Scrub,
    pub(crate) repair: Repair,
    pub(crate) peers: Peers,
    pub(crate) traces: Traces,
}

/// `[serve]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Serve {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) socket_mode: String,
    pub(crate) group: Option<String>,
    pub(crate) raw_sockets: BTreeMap<String, PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) max_connections: usize,
    pub(crate) max_calls: usize,
    pub(crate) keepalive_seconds: u64,
    pub(crate) keepalive_timeout_seconds: u64,
    pub(crate) shutdown_seconds: u64,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    pub(crate) concurrency: usize,
    pub(crate) cri_namespaces: Vec<String>,
    pub(crate) pinned: Vec<String>,
    pub(crate) pin_unsupplied: bool,
    pub(crate) grace_seconds: u32,
}

/// `[verify]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Verify {
    pub(crate) policy: Option<PathBuf>,
    pub(crate) verifiers: Option<PathBuf>,
    pub(crate) max_verifiers: i64,
    pub(crate) verifier_seconds: u32,
}

/// `[cri]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Cri {
    pub(crate) parallel_pulls: usize,
    pub(crate) progress_timeout_seconds: u64,
    pub(crate) runtime_snapshotters: BTreeMap<String, String>,
}

/// `[credentials]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Credentials {
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) provider_config: Option<PathBuf>,
    pub(crate) provider_bin_dir: Option<PathBuf>,
    pub(crate) provider_seconds: u32,
}

/// `[containerd]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Containerd {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) images: BesideImages,
    pub(crate) snapshotter: String,
    pub(crate) owner: String,
}

/// Who pulls what kubelet asks for, where a containerd is beside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BesideImages {
    #[default]
    Share,
    Pass,
}

/// `[gc]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gc {
    pub(crate) full_hours: u32,
    pub(crate) trash_days: u32,
    pub(crate) trash_free_percent: u8,
}

/// `[scrub]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Scrub {
    pub(crate) every_days: u32,
    pub(crate) delay_seconds: u32,
    pub(crate) bytes_per_second: u64,
}

/// `[repair]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Repair {
    pub(crate) retry_seconds: u32,
    pub(crate) quarantine_days: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: None,
            address: None,
            hosts_dir: "/etc/containerd/certs.d".into(),
            snapshotter: None,
            serve: Serve::default(),
            log: Log::default(),
            images: Images::default(),
            limits: Limits::default(),
            verify: Verify::default(),
            cri: Cri::default(),
            credentials: Credentials::default(),
            containerd: Containerd::default(),
            registry: Registry::default(),
            mirror: Mirror::default(),
            gc: Gc::default(),
            scrub: Scrub::default(),
            repair: Repair::default(),
            peers: Peers::default(),
            traces: Traces::default(),
        }
    }
}

impl Default for Serve {
    fn default() -> Self {
        let options = ServeOptions::default();
        Self {
            socket: None,
            socket_mode: "0660".into(),
            group: None,
            raw_sockets: BTreeMap::new(),
            metrics: None,
            max_connections: options.max_connections,
            max_calls: options.max_calls,
            keepalive_seconds: options.keepalive.as_secs(),
            keepalive_timeout_seconds: options.keepalive_timeout.as_secs(),
            shutdown_seconds: options.shutdown_limit.as_secs(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Images {
    fn default() -> Self {
        let settings = orlop_image::Settings::default();
        Self {
            concurrency: settings.concurrency,
            cri_namespaces: settings.cri_namespaces,
            pinned: settings.pinned_images,
            pin_unsupplied: settings.pin_unsupplied,
            grace_seconds: u32::try_from(settings.grace_seconds).unwrap_or(u32::MAX),
        }
    }
}

impl Default for Verify {
    fn default() -> Self {
        Self { policy: None, verifiers: None, max_verifiers: 10, verifier_seconds: 10 }
    }
}

impl Default for Cri {
    fn default() -> Self {
        let settings = CriSettings::default();
        Self {
            parallel_pulls: settings.parallel_pulls,
            progress_timeout_seconds: settings.progress_timeout.as_secs(),
            runtime_snapshotters: settings.runtime_snapshotters,
        }
    }
}

impl Default for Credentials {
    fn default() -> Self {
        Self { docker_config: None, provider_config: None, provider_bin_dir: None, provider_seconds: 60 }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        Self {
            socket: None,
            images: BesideImages::default(),
            snapshotter: "orlop-overlay".into(),
            owner: Owner::default().to_string(),
        }
    }
}

/// How many whole units of so many seconds a time has.
fn whole(duration: Duration, seconds: u64) -> u32 {
    u32::try_from(duration.as_secs() / seconds).unwrap_or(u32::MAX)
}

impl Default for Gc {
    fn default() -> Self {
        let background = Background::default();
        let full = background.full_collection.unwrap_or_default();
        Self {
            full_hours: whole(full, 3600),
            trash_days: whole(background.trash_age, 24 * 3600),
            trash_free_percent: background.trash_free_percent,
        }
    }
}

impl Default for Scrub {
    fn default() -> Self {
        let background = Background::default();
        Self {
            every_days: whole(background.scrub.unwrap_or_default(), 24 * 3600),
            delay_seconds: whole(background.scrub_delay, 1),
            bytes_per_second: background.scrub_bytes_per_second,
        }
    }
}

impl Default for Repair {
    fn default() -> Self {
        let background = Background::default();
        Self {
            retry_seconds: whole(background.repair.unwrap_or_default(), 1),
            quarantine_days: whole(background.quarantine_age, 24 * 3600),
        }
    }
}

impl Config {
    /// Checks `[registry]` once more where an option took the place of a key.
    pub(crate) fn check_registry(&self) -> crate::error::Result<()> {
        let wrong = |(key, message)| CliError::new(Class::Usage, format!("{key}: {message}"));
        self.registry.check().map_err(wrong)
    }

    /// How images are worked with.
    pub(crate) fn images(&self) -> orlop_image::Settings {
        let Images { concurrency, cri_namespaces, pinned, pin_unsupplied, grace_seconds } = self.images.clone();
        orlop_image::Settings {
            concurrency,
            cri_namespaces,
            pinned_images: pinned,
            pin_unsupplied,
            grace_seconds: grace_seconds.into(),
            snapshotter: self.snapshotter.clone().unwrap_or_default(),
            limits: self.limits.to_image(),
            ..orlop_image::Settings::default()
        }
    }

    /// How CRI's calls are answered. The user's own config.json is left out: what the daemon's user may pull is no pod's right. What
    /// `[credentials]` names is the node's.
    pub(crate) fn cri(&self, providers: Providers) -> CriSettings {
        let hosts_dirs = std::env::split_paths(&self.hosts_dir).filter(|path| !path.as_os_str().is_empty()).collect();
        let docker_config = self.credentials.docker_config.clone().filter(|path| !path.as_os_str().is_empty());
        CriSettings {
            registry: ClientOptions { hosts_dirs, docker_config, providers, ..ClientOptions::default() },
            unpack: self.containerd.socket.is_none(),
            parallel_pulls: self.cri.parallel_pulls,
            progress_timeout: Duration::from_secs(self.cri.progress_timeout_seconds),
            runtime_snapshotters: self.cri.runtime_snapshotters.clone(),
        }
    }

    /// The containerd beside, if there is one.
    pub(crate) fn beside(&self) -> Result<Option<BesideSettings>, OwnerError> {
        let Containerd { socket, images, snapshotter, owner } = &self.containerd;
        let Some(socket) = socket.clone().filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
        let mode = match images {
            BesideImages::Share => BesideMode::Share,
            BesideImages::Pass => BesideMode::Pass,
        };
        Ok(Some(BesideSettings { socket, mode, snapshotter: snapshotter.clone(), owner: Owner::new(owner)? }))
    }

    /// How the daemon serves.
    pub(crate) fn serve(&self) -> ServeOptions {
        let hours = |n: u32| Duration::from_secs(u64::from(n) * 3600);
        ServeOptions {
            max_connections: self.serve.max_connections,
            max_calls: self.serve.max_calls,
            keepalive: Duration::from_secs(self.serve.keepalive_seconds),
            keepalive_timeout: Duration::from_secs(self.serve.keepalive_timeout_seconds),
            shutdown_limit: Duration::from_secs(self.serve.shutdown_seconds),
            background: Background {
                full_collection: (self.gc.full_hours > 0).then(|| hours(self.gc.full_hours)),
                trash_age: hours(self.gc.trash_days) * 24,
                trash_free_percent: self.gc.trash_free_percent,
                scrub: (self.scrub.every_days > 0).then(|| hours(self.scrub.every_days) * 24),
                scrub_delay: Duration::from_secs(self.scrub.delay_seconds.into()),
                scrub_bytes_per_second: self.scrub.bytes_per_second,
                repair: (self.repair.retry_seconds > 0).then(|| Duration::from_secs(self.repair.retry_seconds.into())),
                quarantine_age: hours(self.repair.quarantine_days) * 24,
                ..Background::default()
            },
        }
    }
}
