//! Empties the trash: what has rested long enough, and, when the disk gets full, the oldest first. Looks again when the options
//! change.

use std::time::Duration;

use orlop_metadata::{Result, Store};

use tokio::sync::watch;

use super::Background;
use crate::blocking::blocking;
use crate::{ServeOptions, Server};

/// How often the disk and the trash are looked at.
const EVERY: Duration = Duration::from_secs(60);

/// Looks after the trash, for ever.
pub(super) async fn run(server: Server, mut options: watch::Receiver<ServeOptions>) {
    loop {
        let (store, bounds) = (server.store().clone(), options.borrow_and_update().background.clone());
        match blocking(move || empty(&store, &bounds)).await {
            Ok(0) => {}
            Ok(bytes) => {
                server.metrics().collection("trash", bytes);
                tracing::info!(bytes, "emptied the trash");
            }
            Err(status) => {
                tracing::warn!(error = status.message(), "the trash could not be emptied; it is tried again")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            Ok(()) = options.changed() => {}
        }
    }
}

/// Returns the bytes given back.
fn empty(store: &Store, options: &Background) -> Result<u64> {
    let trash = store.trash()?;
    if trash.is_empty() {
        return Ok(0);
    }
    let held = trash.iter().map(|entry| entry.bytes).sum();
    let keep = room(store, held, options.trash_free_percent);
    store.empty_trash(options.trash_age.as_secs(), keep)
}

/// How much of the trash may stay so that enough of the file system is free.
fn room(store: &Store, held: u64, free_percent: u8) -> u64 {
    let Ok(disk) = rustix::fs::statvfs(store.root()) else { return u64::MAX };
    let wanted = u128::from(disk.f_blocks) * u128::from(disk.f_frsize) * u128::from(free_percent) / 100;
    let free = u128::from(disk.f_bavail) * u128::from(disk.f_frsize);
    let lacking = wanted.saturating_sub(free);
    match lacking {
        0 => u64::MAX,
        lacking => held.saturating_sub(u64::try_from(lacking).unwrap_or(u64::MAX)),
    }
}
