//! Restarting a containerd by the command that its product has for it, and waiting until it is itself again.
//!
//! # Invariants
//! - Orlop ends and starts no process of containerd's by itself: the command does, or nobody.
//! - A containerd is itself again when it is another process, answers, has or has not Orlop's snapshotter as it should, and every plugin that worked
//!   before works.

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::process::Stdio;
use std::time::Duration;

use orlop_api::containerd::services::introspection::v1::PluginsRequest;
use orlop_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::target::Target;
use super::wants::SNAPSHOTTER;
use crate::error::{Class, CliError, Result};
use crate::find::probe::{Server, State};

/// How often a containerd that starts is asked.
const STEP: Duration = Duration::from_millis(100);
/// A plugin that is left out on purpose says this.
const SKIPPED: &str = "skip plugin";
/// How much of a command's output is shown.
const SHOWN: usize = 2_000;

/// The plugins of a containerd: `type/id`, with why one does not work.
#[derive(Debug, Clone, Default)]
pub(super) struct Plugins(BTreeMap<String, Option<String>>);

impl Plugins {
    /// Asks for them.
    pub(super) async fn of(channel: &Channel) -> Result<Self> {
        let asked = IntrospectionClient::new(channel.clone()).plugins(PluginsRequest { filters: Vec::new() }).await?;
        let plugins = asked.into_inner().plugins.into_iter();
        Ok(Self(plugins.map(|plugin| (key(&plugin.r#type, &plugin.id), plugin.init_err.map(|e| e.message))).collect()))
    }

    fn snapshotter(&self, name: &str) -> Option<&Option<String>> {
        self.0.get(&key("io.containerd.snapshotter.v1", name))
    }

    /// Whether a snapshotter works.
    pub(super) fn has(&self, snapshotter: &str) -> bool {
        matches!(self.snapshotter(snapshotter), Some(None))
    }

    /// The snapshotter with which containers are tried before anything is changed.
    pub(super) fn own(&self) -> Option<&'static str> {
        ["overlayfs", "native"].into_iter().find(|name| self.has(name))
    }

    /// What worked before and does not now.
    fn broken_since(&self, before: &Self, beneath: bool) -> Option<String> {
        let own_content = key("io.containerd.content.v1", "content");
        // Its place is taken.
        let left = |key: &str| beneath && key == own_content;
        let worked = before.0.iter().filter(|(key, error)| error.is_none() && !left(key));
        worked.into_iter().find_map(|(key, _)| match self.0.get(key) {
            Some(Some(why)) if !why.contains(SKIPPED) => {
                Some(format!("its plugin {key} does not work any more: {why}"))
            }
            _ => None,
        })
    }
}

fn key(kind: &str, id: &str) -> String {
    format!("{kind}/{id}")
}

/// Runs a command line by the shell.
///
/// # Errors
/// [`Class::Failed`] with what it said, if it fails or does not end in time.
pub(super) async fn command(line: &str, patience: Duration) -> Result<()> {
    let io = |error| CliError::io("run", Some(std::path::Path::new(line)), error);
    // A file, not a pipe: what the command leaves running may keep it for ever.
    let mut said = tempfile::tempfile().map_err(io)?;
    let out = said.try_clone().map_err(io)?;
    let err = said.try_clone().map_err(io)?;
    let mut child = tokio::process::Command::new("/bin/sh");
    child.args(["-c", line]).stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = child.spawn().map_err(io)?;
    let ended = tokio::time::timeout(patience, child.wait()).await;
    let mut text = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut text)).map_err(io)?;
    let shown = text.ceil_char_boundary(text.len().saturating_sub(SHOWN));
    let text = text[shown..].trim();
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(CliError::new(Class::Failed, format!("`{line}` failed ({status}): {text}"))),
        Ok(Err(error)) => Err(io(error)),
        Err(_) => {
            Err(CliError::new(Class::Failed, format!("`{line}` has not ended after {} s: {text}", patience.as_secs())))
        }
    }
}

/// Restarts a containerd and waits until it is itself again, with Orlop's snapshotter or without.
///
/// # Errors
/// [`Class::Failed`] if the command fails, nobody answers in time, or a plugin does not work.
pub(super) async fn restart(target: &Target, before: &Plugins, beneath: bool, patience: Duration) -> Result<Server> {
    let was = target.identity().await;
    command(&target.restart, patience).await?;
    let deadline = Instant::now() + patience;
    loop {
        let why = match target.look().await {
            State::Running(_) if was.is_some() && target.identity().await == was => {
                "it is the same process as before".to_owned()
            }
            State::Running(server) => match is_itself(&server, before, beneath).await {
                Ok(None) => return Ok(server),
                Ok(Some(Missing::ForGood(why))) => return Err(not_itself(target, &why)),
                Ok(Some(Missing::Yet(why))) => why,
                Err(error) => error.message,
            },
            State::NoAnswer(why) | State::NotPermitted(why) => why,
            State::Files | State::Absent => "nobody listens there".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(not_itself(target, &format!("{} s after its restart {why}", patience.as_secs())));
        }
        tokio::time::sleep(STEP).await;
    }
}

fn not_itself(target: &Target, why: &str) -> CliError {
    CliError::new(Class::Failed, format!("{}: {why}", target.name()))
}

/// What a containerd lacks.
enum Missing {
    /// It may be the one that is to end, or one that is starting.
    Yet(String),
    ForGood(String),
}

/// What is missing, if anything is.
async fn is_itself(server: &Server, before: &Plugins, beneath: bool) -> Result<Option<Missing>> {
    let plugins = Plugins::of(&server.channel).await?;
    Ok(match (beneath, plugins.snapshotter(SNAPSHOTTER)) {
        (true, None) => {
            Some(Missing::Yet(format!("it has no snapshotter {SNAPSHOTTER}: it has not read the new configuration")))
        }
        (true, Some(Some(why))) => {
            Some(Missing::ForGood(format!("its snapshotter {SNAPSHOTTER} does not work: {why}")))
        }
        (false, Some(_)) => {
            Some(Missing::Yet(format!("it has the snapshotter {SNAPSHOTTER}: it has not read the old configuration")))
        }
        _ => plugins.broken_since(before, beneath).map(Missing::ForGood),
    })
}
