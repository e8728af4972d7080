//! Whether a connection on which a blob is given is still taken from.
//!
//! Who asks for a blob and does not read it would keep a place that others wait for. HTTP has no word for that, so it is
//! counted how often the next piece was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts on one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Bodies that are given now.
    open: AtomicU64,
    /// Pieces that were asked for, ever.
    beats: AtomicU64,
}

/// A body is given as long as this lives.
#[derive(Debug)]
pub(super) struct Beating(Pulse);

impl Pulse {
    pub(super) fn begin(&self) -> Beating {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Beating(self.clone())
    }

    /// Ends when a body was open for `patience` and nothing of it was asked for.
    pub(super) async fn stops(&self, patience: Duration) {
        loop {
            let before = self.0.beats.load(Ordering::Relaxed);
            tokio::time::sleep(patience).await;
            if self.0.open.load(Ordering::Relaxed) > 0 && self.0.beats.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Beating {
    pub(super) fn beat(&self) {
        self.0.0.beats.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.beat();
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_open_body_that_nobody_takes_from_stops_it() {
        let (pulse, patience) = (Pulse::default(), Duration::from_millis(10));
        let goes_on = async || tokio::time::timeout(patience * 5, pulse.stops(patience)).await.is_err();
        assert!(goes_on().await, "nothing is given");
        let beating = pulse.begin();
        beating.beat();
        pulse.stops(patience).await;
        drop(beating);
        assert!(goes_on().await, "it is over");
    }
}
