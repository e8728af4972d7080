//! What a service manager hands over and wants to hear: sockets (`LISTEN_FDS`), readiness, the end, signs of life.
//!
//! Without a manager all of it does nothing.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use listenfd::ListenFd;
use orlop_metadata::Store;
use orlop_server::{Owner, OwnerError, Surface};
use sd_notify::NotifyState;

use crate::error::{Class, CliError, Result};

/// The name (`FileDescriptorName=`) of a TCP socket for metrics.
const METRICS: &str = "metrics";
/// The name of a TCP socket for the registry.
const REGISTRY: &str = "registry";
/// The name of a socket for a containerd above; with `raw-OWNER` of one that has another name.
const RAW: &str = "raw";

/// Sockets that were opened for us.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// For the services.
    pub(super) listeners: Vec<(UnixListener, Surface)>,
    /// Whether there is one for commands and clients.
    pub(super) has_whole: bool,
    /// Whose raw sockets there are.
    pub(super) owners: Vec<Owner>,
    /// For metrics.
    pub(super) metrics: Option<std::net::TcpListener>,
    /// For the registry.
    pub(super) registry: Option<std::net::TcpListener>,
}

/// Takes the sockets that were handed over to this process, if any were.
///
/// # Errors
/// If something else was handed over.
pub(super) fn passed() -> Result<Passed> {
    let mut fds = ListenFd::from_env();
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = Passed::default();
    for index in 0..fds.len() {
        let name = names.next().unwrap_or_default();
        let wrong = |e| CliError::new(Class::Usage, format!("socket {index} ({name:?}) of LISTEN_FDS: {e}"));
        if name == METRICS {
            passed.metrics = fds.take_tcp_listener(index).map_err(wrong)?;
        } else if name == REGISTRY {
            passed.registry = fds.take_tcp_listener(index).map_err(wrong)?;
        } else {
            let owner = owner(name).map_err(|e| CliError::new(Class::Usage, e.to_string()))?;
            let listener = fds.take_unix_listener(index).map_err(wrong)?;
            passed.has_whole |= owner.is_none();
            passed.owners.extend(owner.clone());
            let surface = owner.map_or(Surface::Whole, Surface::Raw);
            passed.listeners.extend(listener.map(|listener| (listener, surface)));
        }
    }
    Ok(passed)
}

/// Whose a socket of this name is; `None`: it is for all.
fn owner(name: &str) -> std::result::Result<Option<Owner>, OwnerError> {
    match name.strip_prefix(RAW) {
        Some("") => Ok(Some(Owner::default())),
        Some(rest) => rest.strip_prefix('-').map(Owner::new).transpose(),
        None => Ok(None),
    }
}

/// Where a socket lies.
pub(super) fn path(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(ToOwned::to_owned)
}

/// Calls are answered from now on.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is read anew (`Type=notify-reload`); [`ready`] or [`ready_as_before`] comes next.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration")]),
        Err(error) => tracing::warn!(%error, "the service manager could not be told"),
    }
}

/// The new configuration is not in force.
pub(super) fn ready_as_before() {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status("serving by the old configuration: the new one is refused, see the log"),
    ]);
}

/// What runs is being finished.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing what runs")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// Gives signs of life for as long as the store answers, if the manager wants them.
pub(super) async fn watchdog(store: Store) {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    // Twice in the time within which it must come.
    let pause = (every / 2).max(Duration::from_millis(1));
    loop {
        let asked = store.clone();
        match tokio::task::spawn_blocking(move || asked.last_change()).await {
            Ok(Ok(_)) => tell(&[NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::error!(%error, "the store does not answer"),
            Err(stopped) => tracing::error!(%stopped, "the store does not answer"),
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_socket_says_whose_it_is() {
        assert_eq!(owner("orlop.socket"), Ok(None));
        assert_eq!(owner("raw"), Ok(Some(Owner::default())));
        assert_eq!(owner("raw-k3s"), Ok(Some(Owner::new("k3s").unwrap())));
        assert!(owner("raw-").is_err() && owner("raw-K3s").is_err());
        assert_eq!(owner("rawhide"), Ok(None), "a name that only begins so");
    }
}
