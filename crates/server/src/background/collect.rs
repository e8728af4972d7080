//! Collects garbage in the background of a server: at its start, soon after something was deleted, and when something
//! expires.
//!
//! Not after other changes: clients that hold no lease, as `ctr` does in places, count on their objects staying while
//! nobody deletes anything, as they do with containerd.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orlop_metadata::Store;
use orlop_metadata::gc::{Disposal, Report};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::Few;
use crate::blocking::blocking;
use crate::{ServeOptions, Server};

/// How long a burst of deletions may take to become one collection.
const SETTLE: Duration = Duration::from_millis(100);

/// How often the next expiry is looked up: other processes may have brought it forward.
const LOOK: Duration = Duration::from_secs(60);

/// How long after its start a daemon marks everything for the first time: what was busy starting is done by then.
const FIRST_FULL: Duration = Duration::from_secs(600);

/// Asks for collections. Without a server that runs them, asking does nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collector {
    wanted: Arc<Notify>,
}

impl Collector {
    /// Something was deleted.
    pub(crate) fn request(&self) {
        self.wanted.notify_one();
    }

    /// Collects when there is something to, for ever.
    pub(super) async fn run(self, server: Server, mut options: watch::Receiver<ServeOptions>) {
        start(&server).await;
        let (mut since, mut latest) = (Instant::now(), FIRST_FULL);
        loop {
            let full_every = options.borrow_and_update().background.full_collection;
            let next_full = full_every.map(|every| since + every.min(latest));
            let pause = pause(server.store().clone()).await;
            let until_full = async {
                match next_full {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wanted.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    collect(&server).await;
                }
                Ok(()) = options.changed() => {}
                // There may be nothing to do yet: a collection without work costs one look.
                () = tokio::time::sleep(pause) => collect(&server).await,
                () = until_full => {
                    check(&server).await;
                    (since, latest) = (Instant::now(), Duration::MAX);
                }
            }
        }
    }
}

/// What an earlier process left: its leases, what is no longer mounted of its activations, what it had not finished collecting.
async fn start(server: &Server) {
    // Who starts with the daemon asks for its images: this comes after that.
    server.cri().prepare().await;
    let store = server.store().clone();
    if let Err(status) = blocking(move || store.settle_mounts()).await {
        tracing::warn!(error = status.message(), "cannot tell which activations are still mounted");
    }
    match server.images().settle().instrument(span("start")).await {
        Ok(outcome) => server.metrics().collection("start", outcome.freed()),
        Err(error) => tracing::warn!(%error, "the first garbage collection failed; it is tried again"),
    }
}

/// How long until something expires, or is to be looked up again.
async fn pause(store: Store) -> Duration {
    let next = blocking(move || store.next_expiry()).await.ok().flatten();
    let until = next.map(|at| at.duration_since(Timestamp::now()));
    // A second more: what expires now has not expired yet.
    let until = until.map(|until| Duration::try_from(until).unwrap_or_default() + Duration::from_secs(1));
    until.map_or(LOOK, |until| until.min(LOOK))
}

async fn collect(server: &Server) {
    let store = server.store().clone();
    match blocking(move || store.collect(Disposal::Reclaim)).instrument(span("incremental")).await {
        Ok(report) if report == Report::default() => {}
        Ok(report) => told(server, "incremental", &report),
        Err(status) => tracing::warn!(error = status.message(), "garbage collection failed; it is tried again"),
    }
}

/// Marks everything from the roots: the incremental collection must have left nothing.
async fn check(server: &Server) {
    let store = server.store().clone();
    match blocking(move || store.collect_full(Disposal::Reclaim)).instrument(span("full")).await {
        Ok(report) => {
            server.metrics().missed.inc_by(report.missed.len() as u64);
            if !report.missed.is_empty() {
                let missed: Vec<String> = report.missed.iter().cloned().collect();
                tracing::error!(missed = %Few(&missed), "the incremental collection had missed garbage: please report this");
            }
            told(server, "full", &report);
        }
        Err(status) => tracing::warn!(error = status.message(), "the full collection failed; it is tried again"),
    }
}

fn span(kind: &'static str) -> Span {
    tracing::info_span!("collect", kind)
}

fn told(server: &Server, kind: &'static str, report: &Report) {
    server.metrics().collection(kind, report.freed());
    tracing::info!(
        kind,
        blobs = report.content.len(),
        snapshots = report.snapshots.len(),
        leases = report.leases.len(),
        ingests = report.ingests.len(),
        images = report.images.len(),
        mounts = report.mounts.len(),
        orphans = report.orphans.len(),
        bytes = report.freed(),
        "collected"
    );
}
