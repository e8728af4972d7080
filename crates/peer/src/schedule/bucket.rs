//! A limit on bytes per second that lets a short burst through.

use std::time::Duration;

use super::Moment;

/// A token bucket that may be overdrawn: what was taken is taken, and the next one waits until it is made good. So
/// pieces of any size pass, and on average no more than the rate.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Bytes a second; 0: no limit.
    rate: u64,
    /// How far ahead of the rate the past may be.
    burst: Duration,
    /// When everything that was taken has been paid for.
    paid: Moment,
}

impl Bucket {
    /// A limit of `rate` bytes a second, 0 for none, with a quarter of a second in advance.
    pub const fn new(rate: u64) -> Self {
        Self { rate, burst: Duration::from_millis(250), paid: Duration::ZERO }
    }

    /// Takes `bytes`, and says how long to wait before they may go.
    pub fn take(&mut self, now: Moment, bytes: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let from = self.paid.max(now.saturating_sub(self.burst));
        let wait = from.saturating_sub(now);
        self.paid = from + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is taken in whatever pieces, no stretch of time lets through more than the rate, the burst and one piece.
        #[test]
        fn no_more_than_the_rate(rate in 1_000u64..1_000_000, pieces in prop::collection::vec((1u64..100_000, 0u64..500), 1..60)) {
            let mut bucket = Bucket::new(rate);
            let (mut now, mut sent) = (Duration::from_secs(10), Vec::new());
            for (bytes, idle) in pieces {
                now += Duration::from_millis(idle);
                now += bucket.take(now, bytes);
                sent.push((now, bytes));
            }
            for first in 0..sent.len() {
                let mut total = 0;
                for &(at, bytes) in &sent[first..] {
                    let seconds = (at - sent[first].0).as_secs_f64() + 0.25;
                    prop_assert!(total as f64 <= rate as f64 * seconds + 1.0, "{total} bytes in {seconds} s");
                    total += bytes;
                }
            }
        }
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = Bucket::new(0);
        assert_eq!(bucket.take(Duration::ZERO, u64::MAX), Duration::ZERO);
        assert_eq!(bucket.take(Duration::ZERO, u64::MAX), Duration::ZERO);
    }
}
