//! One peer giving one blob: whether to go on with it.

use std::time::Duration;

use super::{Moment, Rules};

/// What to do with a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is well; to be judged again at this moment, if nothing comes before.
    GoOn(Moment),
    /// Nothing came for too long.
    Stalled,
    /// Too little comes.
    Slow,
}

/// A transfer, as far as it has come. Only the time in which bytes were waited for counts: a reader that is slow itself
/// makes no peer slow.
#[derive(Debug, Clone, Default)]
pub struct Transfer {
    bytes: u64,
    /// Time that was spent waiting for the peer.
    waited: Duration,
    /// Since when it is waited for now.
    waiting: Option<Moment>,
    /// The stretch that is measured: bytes, and time waited.
    stretch: (u64, Duration),
}

impl Transfer {
    /// The next bytes are waited for from now on.
    pub fn wait(&mut self, now: Moment) {
        self.waiting.get_or_insert(now);
    }

    /// Bytes came.
    pub fn came(&mut self, now: Moment, bytes: u64, rules: &Rules) {
        let waited = self.waiting.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.bytes += bytes;
        self.waited += waited;
        // A stretch that was fast enough to its end is over, and the next one is measured.
        if self.stretch.1 >= rules.slow_after {
            self.stretch = (0, Duration::ZERO);
        }
        self.stretch = (self.stretch.0 + bytes, self.stretch.1 + waited);
    }

    /// What to do with it now.
    pub fn judge(&self, now: Moment, rules: &Rules) -> Verdict {
        let waiting = self.waiting.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if waiting >= rules.stall {
            return Verdict::Stalled;
        }
        let (bytes, waited) = (self.stretch.0, self.stretch.1 + waiting);
        if waited >= rules.slow_after && (bytes as f64) < rules.slow as f64 * waited.as_secs_f64() {
            return Verdict::Slow;
        }
        let stall = self.waiting.unwrap_or(now) + rules.stall;
        let slow = now + rules.slow_after.saturating_sub(waited);
        Verdict::GoOn(if slow > now { stall.min(slow) } else { stall })
    }

    /// Bytes so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The time spent waiting for bytes: what a rate is to be computed of.
    pub const fn waited(&self) -> Duration {
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn one_that_stands_still_is_given_up_at_the_moment_that_was_named() {
        let rules = Rules::default();
        let mut transfer = Transfer::default();
        transfer.wait(ms(0));
        transfer.came(ms(10), 1 << 20, &rules);
        transfer.wait(ms(10));
        let Verdict::GoOn(at) = transfer.judge(ms(10), &rules) else { panic!("given up") };
        assert_eq!(at, ms(10) + rules.stall);
        assert_eq!(transfer.judge(at, &rules), Verdict::Stalled);
    }

    #[test]
    fn a_slow_reader_makes_no_slow_peer() {
        let rules = Rules::default();
        let mut transfer = Transfer::default();
        let mut now = ms(0);
        for _ in 0..100 {
            transfer.wait(now);
            transfer.came(now + ms(1), 4096, &rules);
            // The disk takes its time.
            now += ms(1000);
            assert!(matches!(transfer.judge(now, &rules), Verdict::GoOn(_)));
        }
        assert_eq!(transfer.waited(), ms(100));
    }

    proptest! {
        /// Below the limit it ends within two stretches; above it never.
        #[test]
        fn the_limit_parts_slow_from_fast(factor in prop_oneof![0.05f64..0.8, 1.3f64..8.0], step in 20u64..900) {
            let rules = Rules::default();
            let mut transfer = Transfer::default();
            let (mut now, mut ended) = (ms(0), None);
            while now < rules.slow_after * 4 {
                transfer.wait(now);
                now += ms(step);
                transfer.came(now, (rules.slow as f64 * factor * step as f64 / 1000.0) as u64, &rules);
                if transfer.judge(now, &rules) == Verdict::Slow {
                    ended = Some(now);
                    break;
                }
            }
            match ended {
                Some(at) => prop_assert!(factor < 1.0 && at <= rules.slow_after * 2 + ms(step)),
                None => prop_assert!(factor > 1.0),
            }
        }
    }
}
