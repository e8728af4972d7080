//! Brings hash references in order as records change, whoever changes them, and from time to time all of them.
//!
//! A change that comes in as a call is followed before its answer; what is left for this task is what other processes
//! do, what failed, and what time does.
//!
//! # Invariants
//! - How far changes were followed is remembered in the store, and never ahead of what was done: after a stop, however
//!   abrupt, the next start goes on from there and does at most some of it again.
//! - All records are looked through where nothing is remembered, or by other rules, and as often as the options say,
//!   whatever stops and starts there were.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use orlop_image::{RECONCILER, Reconciled};
use orlop_metadata::{HistoryAction, HistoryEntry, Progress};
use tokio::time::Instant;
use tonic::Status;

use super::Few;
use super::changes::Changes;
use crate::Server;
use crate::blocking::blocking;
use crate::status::ToStatus;

/// How long after a change it is remembered that it was followed, and all that came meanwhile: that costs a commit.
const REMEMBER: Duration = Duration::from_secs(1);

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

async fn follow(server: &Server, full_every: Duration, backoff: &mut Duration) -> Result<Infallible, Status> {
    // Who starts with the daemon asks for its images: looking at the records for another reason comes after that.
    server.cri().prepare().await;
    let rules = server.images().settings().reconciler_rules();
    let store = server.store().clone();
    let remembered = blocking(move || store.progress()).await?.filter(|progress| progress.rules == rules);
    let mut progress = match remembered {
        Some(progress) => progress,
        None => everything(server).await?,
    };
    let mut changes = Changes::after(server.store().clone(), progress.change);
    let mut unremembered: Option<Instant> = None;
    loop {
        let remember = unremembered.unwrap_or_else(Instant::now);
        tokio::select! {
            changed = changes.next() => {
                let changed = changed?;
                some(server, &changed).await?;
                progress.change = changed.last().map_or(progress.change, |last| last.seq.max(progress.change));
                unremembered.get_or_insert_with(|| Instant::now() + REMEMBER);
            }
            () = server.reconfigured() => progress = everything(server).await?,
            () = tokio::time::sleep(until(progress.whole, full_every)) => progress = everything(server).await?,
            () = tokio::time::sleep_until(remember), if unremembered.is_some() => {
                remember_that(server, progress).await;
                unremembered = None;
            }
        }
        *backoff = BACKOFF.0;
    }
}

/// How long until something is due again. A clock that was put back does not put it off for longer than that.
fn until(last: Timestamp, every: Duration) -> Duration {
    let passed = Duration::try_from(Timestamp::now().duration_since(last)).unwrap_or_default();
    every.saturating_sub(passed)
}

/// All CRI-managed namespaces. What it returns is remembered already.
async fn everything(server: &Server) -> Result<Progress, Status> {
    let (store, whole) = (server.store().clone(), Timestamp::now());
    // First the place in the history and the rules, then everything: no change of either falls between.
    let rules = server.images().settings().reconciler_rules();
    let (change, namespaces) =
        blocking(move || Ok::<_, orlop_metadata::Error>((store.last_change()?, store.namespaces()?))).await?;
    for namespace in namespaces {
        let done = server.images().reconcile(&namespace.name).await.map_err(|e| e.to_status())?;
        told(server, &namespace.name, &done);
    }
    let progress = Progress { change, rules, whole };
    remember_that(server, progress).await;
    Ok(progress)
}

/// What is not remembered is done again after the next start.
async fn remember_that(server: &Server, progress: Progress) {
    let store = server.store().clone();
    if let Err(status) = blocking(move || store.put_progress(&progress)).await {
        tracing::debug!(error = status.message(), "which changes were followed could not be remembered");
    }
}

async fn some(server: &Server, changed: &[HistoryEntry]) -> Result<(), Status> {
    if changed.iter().any(|change| change.action == HistoryAction::Delete) {
        server.collector().request();
    }
    for namespace in &server.images().settings().cri_namespaces {
        // The reconciler's own changes need no second look.
        let others = changed.iter().filter(|change| change.namespace == *namespace && change.actor != RECONCILER);
        let others: Vec<HistoryEntry> = others.cloned().collect();
        let done = server.images().reconcile_changes(namespace, &others).await.map_err(|e| e.to_status())?;
        told(server, namespace, &done);
    }
    Ok(())
}

fn told(server: &Server, namespace: &str, done: &Reconciled) {
    if *done == Reconciled::default() {
        return;
    }
    server.metrics().reconciled.inc();
    let [created, updated, removed] = [&done.created, &done.updated, &done.removed].map(|names| Few(names));
    tracing::info!(namespace, %created, %updated, %removed, "hash references brought in order");
    if !done.removed.is_empty() {
        server.collector().request();
    }
}
