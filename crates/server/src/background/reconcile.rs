//! Brings hash references in order as records change, whoever changes them, and from time to time all of them.
//!
//! A change that comes in as a call is followed before its answer; what is left for this task is what other processes
//! do, what failed, and what time does.

use std::collections::BTreeSet;
use std::time::Duration;

use orlop_image::Reconciled;
use orlop_metadata::{HistoryAction, HistoryEntry};
use tokio::time::Instant;
use tonic::Status;

use super::changes::Changes;
use crate::Server;
use crate::blocking::blocking;
use crate::status::ToStatus;

/// What the reconciler calls itself in the history. Its own changes need no second look.
const ACTOR: &str = "reconciler";

/// Names looked at one by one; for more at once it is cheaper to look through the namespace.
const FEW: usize = 256;

/// How long a failed pass waits before it is tried again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Follows changes, for ever.
pub(super) async fn run(server: Server, full_every: Duration) {
    let mut backoff = BACKOFF.0;
    loop {
        let Err(status) = follow(&server, full_every, &mut backoff).await;
        tracing::warn!(error = status.message(), again = ?backoff, "hash references could not be brought in order");
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

async fn follow(
    server: &Server,
    full_every: Duration,
    backoff: &mut Duration,
) -> Result<std::convert::Infallible, Status> {
    // First the place in the history, then everything: no change falls between.
    let mut changes = Changes::from_now(server.store().clone()).await?;
    // Who starts with the daemon asks for its images: looking through everything for another reason comes after that.
    server.cri().prepare().await;
    everything(server).await?;
    let mut next_full = Instant::now() + full_every;
    loop {
        tokio::select! {
            changed = changes.next() => some(server, &changed?).await?,
            () = server.reconfigured() => everything(server).await?,
            () = tokio::time::sleep_until(next_full) => {
                everything(server).await?;
                next_full = Instant::now() + full_every;
            }
        }
        *backoff = BACKOFF.0;
    }
}

/// All CRI-managed namespaces.
async fn everything(server: &Server) -> Result<(), Status> {
    let store = server.store().clone();
    for namespace in blocking(move || store.namespaces()).await? {
        let done = server.images().reconcile(&namespace.name).await.map_err(|e| e.to_status())?;
        told(server, &namespace.name, &done);
    }
    Ok(())
}

async fn some(server: &Server, changed: &[HistoryEntry]) -> Result<(), Status> {
    if changed.iter().any(|change| change.action == HistoryAction::Delete) {
        server.collector().request();
    }
    let settings = server.images().settings();
    let is_cri = |change: &&HistoryEntry| settings.is_cri(&change.namespace);
    let others = changed.iter().filter(is_cri).filter(|change| change.actor != ACTOR);
    let names: BTreeSet<(&str, &str)> = others.map(|c| (c.namespace.as_str(), c.name.as_str())).collect();
    if names.len() > FEW {
        return everything(server).await;
    }
    for (namespace, name) in names {
        let done = server.images().reconcile_image(namespace, name).await.map_err(|e| e.to_status())?;
        told(server, namespace, &done);
    }
    Ok(())
}

fn told(server: &Server, namespace: &str, done: &Reconciled) {
    if *done == Reconciled::default() {
        return;
    }
    server.metrics().reconciled.inc();
    tracing::info!(namespace, created = ?done.created, updated = ?done.updated, removed = ?done.removed, "hash references brought in order");
    if !done.removed.is_empty() {
        server.collector().request();
    }
}
