//! Whether a connection on which a blob is given is still taken from.
//!
//! Who asks for a blob and does not read it would keep a place that others wait for. HTTP has no word for that, so it is
//! counted how often the next piece was asked for. The time that this node takes to bring it is not the other's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts on one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Pulse(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Bodies whose next piece is to be asked for.
    waiting: AtomicU64,
    /// Pieces that were asked for, ever.
    beats: AtomicU64,
}

/// A body is given as long as this lives.
#[derive(Debug)]
pub(super) struct Beating {
    pulse: Pulse,
    waits: bool,
}

impl Pulse {
    /// A body whose first piece is to be asked for.
    pub(super) fn begin(&self) -> Beating {
        let mut beating = Beating { pulse: self.clone(), waits: false };
        beating.wait();
        beating
    }

    /// Ends when the next piece of a body was waited for to be asked for, and nothing was for `patience`.
    pub(super) async fn stops(&self, patience: Duration) {
        loop {
            let before = self.0.beats.load(Ordering::Relaxed);
            tokio::time::sleep(patience).await;
            if self.0.waiting.load(Ordering::Relaxed) > 0 && self.0.beats.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Beating {
    /// The next piece is asked for.
    pub(super) fn beat(&mut self) {
        self.pulse.0.beats.fetch_add(1, Ordering::Relaxed);
        if std::mem::take(&mut self.waits) {
            self.pulse.0.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A piece is given, and the next one is to be asked for.
    pub(super) fn wait(&mut self) {
        if !std::mem::replace(&mut self.waits, true) {
            self.pulse.0.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.beat();
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
        let mut beating = pulse.begin();
        pulse.stops(patience).await;
        beating.beat();
        assert!(goes_on().await, "a piece is asked for, and this node takes its time");
        beating.wait();
        pulse.stops(patience).await;
        drop(beating);
        assert!(goes_on().await, "it is over");
    }
}
