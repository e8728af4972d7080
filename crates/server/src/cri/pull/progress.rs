//! Whether a pull still gets on.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orlop_image::{Event, Stage};
use orlop_oci::Digest;
use tokio::time::Instant;

/// What a pull has told.
pub(crate) struct Progress {
    seen: Mutex<Seen>,
}

struct Seen {
    /// When something last came, or nothing was waited for.
    last: Instant,
    /// Whether the registry has said what the name means.
    resolved: bool,
    /// Blobs that are coming, with how much of each is there.
    coming: HashMap<Digest, u64>,
}

impl Default for Progress {
    fn default() -> Self {
        let seen = Seen { last: Instant::now(), resolved: false, coming: HashMap::new() };
        Self { seen: Mutex::new(seen) }
    }
}

impl Progress {
    /// Takes an event.
    pub(crate) fn note(&self, event: &Event) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let got_on = match event {
            Event::Target(_) => !std::mem::replace(&mut seen.resolved, true),
            Event::Blob(blob) if blob.stage == Stage::Fetching => {
                seen.coming.insert(blob.digest.clone(), blob.offset) != Some(blob.offset)
            }
            Event::Blob(blob) => {
                seen.coming.remove(&blob.digest);
                true
            }
            Event::Document(..) | Event::Message(_) => false,
        };
        if got_on {
            seen.last = Instant::now();
        }
    }

    /// Ends when nothing came for `timeout` although something was waited for, and says what; zero: never.
    pub(crate) async fn stalled(&self, timeout: Duration) -> String {
        if timeout.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let until = match self.waits_since() {
                (since, Some(what)) if since.elapsed() >= timeout => return what,
                (since, _) => since + timeout,
            };
            tokio::time::sleep_until(until).await;
        }
    }

    /// Since when, and for what.
    fn waits_since(&self) -> (Instant, Option<String>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.resolved {
            return (seen.last, Some("the registry did not say what the name means".to_owned()));
        }
        if seen.coming.is_empty() {
            seen.last = Instant::now();
            return (seen.last, None);
        }
        let mut coming: Vec<String> = seen.coming.iter().map(|(blob, at)| format!("{blob} at byte {at}")).collect();
        coming.sort();
        (seen.last, Some(format!("waited for {}", coming.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use orlop_image::{BlobEvent, Limit};

    use super::*;

    fn blob(name: &str, stage: Stage, offset: u64) -> Event {
        let digest = Digest::of(name.as_bytes());
        Event::Blob(BlobEvent { digest, kind: "layer", stage, offset, total: 100, unpacked: 0, limit: Limit::Unknown })
    }

    fn target() -> Event {
        Event::Target(orlop_oci::Descriptor::new("", Digest::of(b""), 0))
    }

    #[tokio::test(start_paused = true)]
    async fn only_waiting_for_the_network_counts() {
        let (progress, timeout) = (Progress::default(), Duration::from_secs(60));
        let nearly = Duration::from_secs(50);
        let within = |time| tokio::time::timeout(time, progress.stalled(timeout));

        assert!(within(nearly).await.is_err());
        progress.note(&target());
        progress.note(&blob("a", Stage::Fetching, 0));
        assert!(within(nearly).await.is_err(), "the answer of the registry counts");
        progress.note(&blob("a", Stage::Fetching, 5));
        assert!(within(nearly).await.is_err(), "each byte counts");
        progress.note(&blob("a", Stage::Verifying, 100));
        assert!(within(timeout * 10).await.is_err(), "unpacking may take its time");
        progress.note(&blob("b", Stage::Fetching, 7));
        assert!(within(nearly).await.is_err(), "a new transfer has the whole time");
        progress.note(&blob("b", Stage::Fetching, 7));
        let what = within(Duration::from_secs(11)).await.expect("saying the same again is no progress");
        assert!(what.contains("at byte 7"), "{what}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_says_nothing_is_given_up_and_without_a_limit_never() {
        let progress = Progress::default();
        let what = progress.stalled(Duration::from_secs(5)).await;
        assert!(what.contains("what the name means"), "{what}");
        let forever = progress.stalled(Duration::ZERO);
        assert!(tokio::time::timeout(Duration::from_secs(3600), forever).await.is_err());
    }
}
