//! Collects garbage in the background of a server: soon after something was deleted, and now and then for what expires.
//!
//! Not after other changes: clients that hold no lease, as `ctr` does in places, count on their objects staying while
//! nobody deletes anything, as they do with containerd.

use std::sync::Arc;
use std::time::Duration;

use orlop_metadata::Store;
use orlop_metadata::gc::Disposal;
use tokio::sync::Notify;

use crate::blocking::blocking;

/// How long a burst of deletions may take to become one collection.
const SETTLE: Duration = Duration::from_millis(100);

/// How often leases and ingests that nobody deletes are looked at; they live for a day or so.
const IDLE: Duration = Duration::from_secs(3600);

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

    /// Collects when asked, for ever.
    pub(crate) async fn run(self, store: Store) {
        loop {
            if tokio::time::timeout(IDLE, self.wanted.notified()).await.is_ok() {
                tokio::time::sleep(SETTLE).await;
            }
            let store = store.clone();
            if let Err(status) = blocking(move || store.collect(Disposal::Reclaim)).await {
                tracing::warn!(error = status.message(), "garbage collection failed; it is tried again");
            }
        }
    }
}
