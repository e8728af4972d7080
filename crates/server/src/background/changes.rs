//! Hears of changes of image records, whoever makes them: this process or another on the same root.
//!
//! Every change appends a line to `history.log` just before it is committed. So the file is watched (inotify), and the
//! history is then asked until the change is there. Without inotify, and for a log that was replaced, it is also asked
//! now and then.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use orlop_metadata::{HistoryEntry, Store};
use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tonic::Status;

use crate::blocking::blocking;

/// Changes taken at once.
const BATCH: usize = 1000;

/// How often the history is asked anyway.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is asked after the log has grown, until the transaction is committed or was given up: after 2 ms, 4 ms,
/// and so on.
const TRIES: u32 = 8;

/// The changes after a certain one.
pub(super) struct Changes {
    store: Store,
    last: i64,
    log: Option<pipe::Receiver>,
}

impl Changes {
    /// Changes after the one numbered `last`.
    pub(super) fn after(store: Store, last: i64) -> Self {
        let log = watch(&store.root().join("history.log"));
        if log.is_none() {
            tracing::info!("changes of other processes are seen within a second: the history cannot be watched");
        }
        Self { store, last, log }
    }

    /// Waits for changes; at least one, oldest first. They count as taken only if this ends.
    pub(super) async fn next(&mut self) -> Result<Vec<HistoryEntry>, Status> {
        loop {
            let found = self.ask().await?;
            if !found.is_empty() {
                return Ok(found);
            }
            if !self.grown().await {
                continue;
            }
            for attempt in 1..=TRIES {
                tokio::time::sleep(Duration::from_millis(1 << attempt)).await;
                let found = self.ask().await?;
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
    }

    async fn ask(&mut self) -> Result<Vec<HistoryEntry>, Status> {
        let (store, last) = (self.store.clone(), self.last);
        let found = blocking(move || store.changes_since(last, BATCH)).await?;
        if let Some(newest) = found.last() {
            self.last = newest.seq;
        }
        Ok(found)
    }

    /// Waits until the log has grown, or it is time to ask; tells which.
    async fn grown(&mut self) -> bool {
        let Some(log) = &mut self.log else {
            tokio::time::sleep(LOOK).await;
            return false;
        };
        // That something happened is all there is to know.
        let mut events = [0; 4096];
        matches!(tokio::time::timeout(LOOK, log.read(&mut events)).await, Ok(Ok(_)))
    }
}

/// An inotify descriptor, which reads like a pipe.
fn watch(log: &Path) -> Option<pipe::Receiver> {
    // A root without a change has no log yet.
    let _ = File::options().create(true).append(true).open(log);
    let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).ok()?;
    inotify::add_watch(&fd, log, inotify::WatchFlags::MODIFY).ok()?;
    pipe::Receiver::from_file_unchecked(File::from(fd)).ok()
}
