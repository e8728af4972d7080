//! What a daemon does beside its calls: it brings hash references in order, collects garbage, empties the trash, looks for
//! damage and mends it.
//!
//! # Concurrency
//! Each is one task that ends with the server. All of it may run in several processes on one root; they wait for each
//! other where they must.

mod changes;
mod collect;
mod health;
mod reconcile;
mod repair;
mod scrub;
mod trash;

use std::fmt;
use std::time::Duration;

pub(crate) use collect::Collector;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use orlop_metadata::Store;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::events::Exchange;
use crate::{ServeOptions, Server};

/// How many names a line of the log has: enough to know what it is about, whatever there is.
const SHOWN: usize = 3;

/// Names, the first few of them in words.
struct Few<'a>(&'a [String]);

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "{shown:?}")?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What goes on beside the calls.
#[derive(Debug, Clone)]
pub struct Background {
    /// How often everything is marked from the roots, as a check of the incremental collection; it also finds what a
    /// crash left on the disk.
    pub full_collection: Option<Duration>,
    /// How often all hash references are looked through, for what no change announces: periods of grace that end.
    pub full_reconciliation: Duration,
    /// How long what was removed can be undone.
    pub trash_age: Duration,
    /// The trash gives way while less than this part of the file system is free, in percent.
    pub trash_free_percent: u8,
    /// How long after the end of a scrub the next one begins; `None`: never.
    pub scrub: Option<Duration>,
    /// How long after its start a daemon scrubs at the earliest.
    pub scrub_delay: Duration,
    /// How many bytes a scrub reads a second; 0: as many as the disk gives.
    pub scrub_bytes_per_second: u64,
    /// How soon it is tried again to mend what is damaged, at first; twice as long after each failure. `None`: never.
    pub repair: Option<Duration>,
    /// How long damaged bytes are kept since they were set aside, at least until sound ones have taken their place.
    pub quarantine_age: Duration,
}

impl Default for Background {
    fn default() -> Self {
        Self {
            full_collection: Some(Duration::from_secs(24 * 3600)),
            full_reconciliation: Duration::from_secs(3600),
            trash_age: Duration::from_secs(7 * 24 * 3600),
            trash_free_percent: 10,
            scrub: Some(Duration::from_secs(7 * 24 * 3600)),
            scrub_delay: Duration::from_secs(600),
            scrub_bytes_per_second: 20 << 20,
            repair: Some(Duration::from_secs(60)),
            quarantine_age: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Starts everything, by options that may change. A root that cannot be written needs none of it, and one whose disk fails no more.
pub(crate) async fn spawn(server: &Server, options: &watch::Receiver<ServeOptions>, tasks: &mut JoinSet<()>) {
    tasks.spawn(Exchange::follow(server.store().clone()));
    health::tell(server).await;
    tasks.spawn(health::follow(server.clone()));
    if let Some(reason) = server.store().read_only_reason() {
        tracing::warn!(reason, "the root cannot be written: nothing is reconciled or collected");
        return;
    }
    let mut spawn = |work| tasks.spawn(while_written(server.store().clone(), work));
    spawn(server.collector().clone().run(server.clone(), options.clone()).boxed());
    spawn(reconcile::run(server.clone(), options.borrow().background.full_reconciliation).boxed());
    spawn(trash::run(server.clone(), options.clone()).boxed());
    spawn(scrub::run(server.clone(), options.clone()).boxed());
    spawn(repair::run(server.clone(), options.clone()).boxed());
    if let Some(beside) = server.beside().filter(|beside| beside.is_shared()) {
        spawn(beside.clone().follow(server.clone()).boxed());
    }
}

/// Works until the store stops writes: from then on it could only fail, again and again.
async fn while_written(store: Store, work: BoxFuture<'static, ()>) {
    tokio::select! {
        () = store.until_stopped() => {}
        () = work => {}
    }
}
