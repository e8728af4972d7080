//! SIGTERM and SIGINT: the first asks the daemon to finish what runs, the second ends it. SIGHUP: it is to read its configuration
//! anew.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Result};

/// The signals that end a daemon, from when this was made.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// SIGHUP, from now on. Must be called as early as [`Signals::listen`].
pub(crate) fn hangups() -> Result<Signal> {
    signal(SignalKind::hangup()).map_err(|e| CliError::io("listen for signals", None, e))
}

impl Signals {
    /// Must be called before anybody can know that the daemon runs: an early signal would kill it.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|e| CliError::io("listen for signals", None, e));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for one; tells which.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
