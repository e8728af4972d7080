//! SIGHUP: the configuration, the policy and its keys are read anew.
//!
//! # Invariants
//! - All of a new configuration counts, but for [`FIXED`] keys, or nothing of it. What is wrong with it stands in the log, and
//!   the old one stays in force.
//! - Calls and connections go on; whatever begins from then on goes by the new configuration.
//! - A service manager hears of every reload that it is done, also of a refused one.

use std::collections::{BTreeMap, BTreeSet};

use orlop_image::Gate;
use orlop_remote::{Providers, TraceHeaders};
use orlop_server::{CriSettings, ServeOptions, Server};
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use super::registry::Live;
use super::{Overrides, systemd};
use crate::args::Global;
use crate::config::Config;
use crate::error::{Class, CliError, Result};
use crate::output::LogLevel;
use crate::registry::Rules;
use crate::settings::Settings;
use crate::{credentials, policy};

/// What a daemon is made of when it starts: keys, and sections with all their keys.
const FIXED: &[&str] = &[
    "containerd",
    "log.format",
    "mirror",
    "peers",
    "registry.address",
    "registry.audit",
    "registry.name",
    "registry.namespace",
    "registry.token_key",
    "root",
    "serve.group",
    "serve.metrics",
    "serve.raw_sockets",
    "serve.socket",
    "serve.socket_mode",
    "snapshotter",
    "traces",
];

/// What a new configuration goes to.
pub(super) struct Reload {
    pub(super) global: Global,
    pub(super) overrides: Overrides,
    /// In force.
    pub(super) config: Config,
    pub(super) server: Server,
    pub(super) options: watch::Sender<ServeOptions>,
    pub(super) log: LogLevel,
    pub(super) trace: Option<TraceHeaders>,
    /// The registry, if there is one.
    pub(super) registry: Option<Live>,
}

/// A configuration that was read and is right.
struct Next {
    config: Config,
    gate: Gate,
    providers: Providers,
    /// Of the registry, if there is one.
    rules: Option<Rules>,
    /// Keys that have another value than the one in force.
    changed: BTreeSet<String>,
    /// Those of them that stay as they were.
    kept: BTreeSet<String>,
}

impl Reload {
    /// Reloads at every signal.
    pub(super) async fn run(mut self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            systemd::reloading();
            match self.reload().await {
                Ok(()) => systemd::ready(),
                Err(CliError { message, hint, .. }) => {
                    let hint = hint.unwrap_or_default();
                    tracing::error!(message, hint, "the new configuration is refused; the old one stays in force");
                    systemd::ready_as_before();
                }
            }
        }
    }

    async fn reload(&mut self) -> Result<()> {
        let (global, overrides, old) = (self.global.clone(), self.overrides.clone(), self.config.clone());
        let live = self.registry.clone();
        let stopped = |e| CliError::new(Class::Failed, format!("read the configuration: {e}"));
        let next = tokio::task::spawn_blocking(move || read(&global, &overrides, &old, live.as_ref()))
            .await
            .map_err(stopped)??;
        self.log.set(&next.config.log);
        let mut images = orlop_image::Settings { gate: next.gate, ..next.config.images() };
        images.own_registries = self.registry.iter().map(|registry| registry.host().to_owned()).collect();
        if let (Some(registry), Some(rules)) = (&self.registry, next.rules) {
            registry.apply(rules);
        }
        self.server.reconfigure(images, cri(&next.config, next.providers, self.trace.as_ref()));
        self.options.send_replace(next.config.serve());
        self.config = next.config;
        if !next.kept.is_empty() {
            let keys = words(&next.kept);
            tracing::warn!(keys, "these stay as they were: they change when the daemon is started again");
        }
        let changed = words(next.changed.difference(&next.kept));
        tracing::info!(changed, "the configuration and the policy were read anew");
        Ok(())
    }
}

/// How CRI's calls are answered, and their pulls traced.
pub(super) fn cri(config: &Config, providers: Providers, trace: Option<&TraceHeaders>) -> CriSettings {
    let mut cri = config.cri(providers);
    cri.registry.trace = trace.cloned();
    cri
}

fn words<'a>(keys: impl IntoIterator<Item = &'a String>) -> String {
    keys.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn read(global: &Global, overrides: &Overrides, old: &Config, live: Option<&Live>) -> Result<Next> {
    let mut settings = Settings::load(global)?;
    overrides.apply(&mut settings.config);
    let gate = policy::gate(&settings.config.verify)?;
    let providers = credentials::providers(&settings.config.credentials)?;
    let (config, changed, kept) = merge(old, &settings.config)?;
    let rules = live.map(|live| live.read(&config.registry)).transpose()?;
    Ok(Next { config, gate, providers, rules, changed, kept })
}

/// The new configuration with what cannot change as it was, all keys that differ, and those that are kept.
fn merge(old: &Config, new: &Config) -> Result<(Config, BTreeSet<String>, BTreeSet<String>)> {
    let (before, mut after) = (keys(old)?, keys(new)?);
    let all = before.keys().chain(after.keys()).cloned().collect::<BTreeSet<_>>();
    let changed: BTreeSet<String> = all.into_iter().filter(|key| before.get(key) != after.get(key)).collect();
    let kept: BTreeSet<String> = changed.iter().filter(|key| is_fixed(key)).cloned().collect();
    for key in &kept {
        match before.get(key) {
            Some(value) => drop(after.insert(key.clone(), value.clone())),
            None => drop(after.remove(key)),
        }
    }
    let mut table = toml::Table::new();
    for (key, value) in after {
        match key.split_once('.') {
            None => drop(table.insert(key, value)),
            Some((section, name)) => {
                let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
                section.as_table_mut().map(|section| section.insert(name.to_owned(), value));
            }
        }
    }
    let config = table.try_into().map_err(|e| CliError::new(Class::Failed, format!("the configuration: {e}")))?;
    Ok((config, changed, kept))
}

fn is_fixed(key: &str) -> bool {
    FIXED.iter().any(|fixed| key.strip_prefix(fixed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Every key that has a value, as `section.key`.
fn keys(config: &Config) -> Result<BTreeMap<String, toml::Value>> {
    let table = toml::Table::try_from(config);
    let table = table.map_err(|e| CliError::new(Class::Failed, format!("the configuration: {e}")))?;
    let mut keys = BTreeMap::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(section) => {
                keys.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => drop(keys.insert(name, value)),
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_is_made_of_stays_and_the_rest_changes() {
        let mut old = Config::default();
        old.serve.group = Some("orlop".into());
        old.cri.runtime_snapshotters = [("kata".to_owned(), "native".to_owned())].into();
        let mut new = Config { root: Some("/elsewhere".into()), hosts_dir: "/hosts".into(), ..Config::default() };
        new.serve.max_calls = 7;
        new.traces.ratio = 0.25;
        new.images.pinned = vec!["pause".into()];
        let (merged, changed, kept) = merge(&old, &new).unwrap();
        assert_eq!(words(&kept), "root serve.group traces.ratio");
        let rest = "cri.runtime_snapshotters hosts_dir images.pinned root serve.group serve.max_calls traces.ratio";
        assert_eq!(words(&changed), rest);
        let mut expected = Config { root: None, traces: old.traces.clone(), ..new };
        expected.serve.group = old.serve.group.clone();
        assert_eq!(merged, expected);
        let (same, changed, kept) = merge(&merged, &merged).unwrap();
        assert_eq!((same, changed.len(), kept.len()), (merged, 0, 0));
    }

    #[test]
    fn every_fixed_key_is_a_key_or_a_section() {
        let all = crate::config::keys().collect::<Vec<_>>();
        for fixed in FIXED {
            assert!(all.iter().any(|key| key == fixed || key.starts_with(&format!("{fixed}."))), "{fixed}");
        }
    }
}
