//! Reads the store again, slowly, once in a while.

use std::time::Duration;

use jiff::Timestamp;
use orlop_image::{Bandwidth, Scrubbing};
use orlop_metadata::Scrub;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::blocking::blocking;
use crate::status::ToStatus;
use crate::{ServeOptions, Server};

/// How long a failure, or another process that scrubs, puts the next try off.
const AGAIN: Duration = Duration::from_secs(600);

/// Scrubs, for ever. A pass that an earlier process began goes on.
pub(super) async fn run(server: Server, mut options: watch::Receiver<ServeOptions>) {
    let begun = Instant::now();
    loop {
        let background = options.borrow_and_update().background.clone();
        let pause = match background.scrub {
            None => None,
            Some(every) => {
                // What was busy starting is done by then.
                let delay = background.scrub_delay.saturating_sub(begun.elapsed());
                Some(due(&server, every).await.unwrap_or(AGAIN).max(delay))
            }
        };
        let wait = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            Ok(()) = options.changed() => continue,
        }
        let Some(every) = background.scrub else { continue };
        let is_due = due(&server, every).await.is_ok_and(|due| due.is_zero());
        if is_due && !pass(&server, &mut options).await {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// How long until the next pass.
async fn due(server: &Server, every: Duration) -> Result<Duration, Status> {
    let store = server.store().clone();
    let ended = blocking(move || store.scrub()).await?.and_then(|scrub| scrub.ended);
    let Some(ended) = ended else { return Ok(Duration::ZERO) };
    // A clock that was put back does not put it off for longer than that.
    let passed = Duration::try_from(Timestamp::now().duration_since(ended)).unwrap_or_default();
    Ok(every.saturating_sub(passed))
}

/// One pass; false if it could not be made.
async fn pass(server: &Server, options: &mut watch::Receiver<ServeOptions>) -> bool {
    let bandwidth = Bandwidth::new(options.borrow_and_update().background.scrub_bytes_per_second);
    let told = |event: Scrubbing<'_>| server.metrics().scrubbing(&event);
    let scrub = server.images().scrub(&bandwidth, false, &told);
    tokio::pin!(scrub);
    let done = loop {
        tokio::select! {
            done = &mut scrub => break done,
            Ok(()) = options.changed() => {
                let background = &options.borrow_and_update().background;
                bandwidth.set(background.scrub_bytes_per_second);
                if background.scrub.is_none() {
                    return true;
                }
            }
        }
    };
    match done.map_err(|error| error.to_status()) {
        Ok(scrub) => {
            server.metrics().scrubs.inc();
            let Scrub { blobs, bytes, found, trees, tree_bytes, unrecorded, .. } = scrub;
            tracing::info!(blobs, bytes, trees, tree_bytes, unrecorded, found, "read the store again");
            true
        }
        Err(status) => {
            tracing::warn!(error = status.message(), "the store could not be read again; it is tried later");
            false
        }
    }
}
