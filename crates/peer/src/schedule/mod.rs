//! Whom to ask for a blob, how many at once, and when to give one up. Pure: no I/O, no clock, no global state.
//!
//! Whoever drives it says what time it is ([`Moment`]) and what happened; [`Fetch::next`] says what to do. The daemon drives
//! it with sockets, tests with what they make up. Two boards with one seed that are told the same things decide the same.
//!
//! ```text
//! Board      what is known of every peer: distance, rate, load, failures, exclusion
//! Fetch      one blob: from the first look-up until somebody gives it, or the registry is to be asked
//! Transfer   one peer giving: whether it is fast enough to go on with
//! Bucket     a limit on bytes per second
//! ```
//!
//! # Who asks the registry
//! Nodes that begin at the same moment find nobody who has the blob, but each other: each has announced that it is coming to it. Each asks
//! those that it found. Whoever has any of it, or asks the registry already, gives it on as it comes, to [`Rules::fan_out`] at once; they
//! give it on in turn. Of those who have nothing the one of the lowest rank goes to the registry, and the others wait for him, no longer than
//! for anybody. Those who saw different peers may all be the lowest that they know; then each finds, while the registry gives it,
//! somebody who is ahead, and goes on with him.
//!
//!
//! # Invariants
//! - A fetch ends: with a peer that gives, or with [`Step::Upstream`] no later than [`Rules::budget`] after it began, or
//!   [`Rules::busy_wait`] while peers that have the blob say that they are busy. Of nodes that wait for each other each next one waits
//!   [`Rules::hedge`] longer, so that not all go to the registry when the first one does not.
//! - No peer is asked that is excluded, and none twice for one blob unless it said that it is busy, or has no more of it yet.
//! - Never more than [`Rules::at_once`] answers are waited for.
//! - A peer whose bytes were wrong, and nobody else's among them, is excluded at once. Every exclusion ends, and each next
//!   one is longer unless the peer was good in between.
//! - Memory is bounded by [`Rules::peers`], whatever is reported.

mod board;
mod bucket;
mod fetch;
mod transfer;

use std::time::Duration;

pub use board::{Board, Conduct, End};
pub use bucket::Bucket;
pub use fetch::{Fetch, Step, Why};
pub use transfer::{Transfer, Verdict};

/// A point in time: how long after some beginning that the driver chose.
pub type Moment = Duration;

/// The numbers that decisions are made by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// So long after it began a fetch goes to the registry if no peer gives.
    pub budget: Duration,
    /// The same while peers have the blob and are busy: waiting for them spares the registry.
    pub busy_wait: Duration,
    /// How long to leave a busy peer alone that does not say how long.
    pub busy_pause: Duration,
    /// How long one answer is waited for before the next peer is asked as well.
    pub hedge: Duration,
    /// Answers that are waited for at once.
    pub at_once: usize,
    /// Peers that are asked for one blob, at most.
    pub tries: usize,
    /// A transfer that brings fewer bytes a second, over [`Rules::slow_after`], is given up; 0: never.
    pub slow: u64,
    /// How long a transfer is measured.
    pub slow_after: Duration,
    /// A transfer that brings nothing for so long is given up.
    pub stall: Duration,
    /// What a peer is taken for that nothing was had from yet, in bytes a second.
    pub prior_rate: u64,
    /// By how much a peer that is not near looks slower than it is.
    pub far: f64,
    /// By how much equal peers may be told apart by chance, so that not everybody asks the same one: 0.5 is by half.
    pub spread: f64,
    /// The first exclusion of a peer that cannot be reached or breaks off.
    pub exclude_failed: Duration,
    /// The first exclusion of a peer that is too slow.
    pub exclude_slow: Duration,
    /// The first exclusion of a peer that gave wrong bytes.
    pub exclude_liar: Duration,
    /// No exclusion is longer.
    pub exclude_most: Duration,
    /// After so long without a failure, a peer's last failure counts half.
    pub forgive: Duration,
    /// Peers that are remembered.
    pub peers: usize,
    /// Nodes that are given one blob at once and can give it on; more are told of those.
    pub fan_out: usize,
    /// So long after a fetch began it is decided who goes to the registry, though the search for peers is not over.
    pub settle: Duration,
    /// How long a peer is left alone that has no more of a blob than this node; twice and four times as long the next times.
    pub equal_pause: Duration,
    /// Peers that were asked before are asked again no faster.
    pub poll: Duration,
    /// A transfer from a peer to which the blob itself is coming is given up when it brings nothing for so long,
    pub relay_stall: Duration,
    /// or this part of [`Rules::slow`]: the registry may be slow to all of them.
    pub relay_slow: f64,
    /// So long after the registry began to give it is first looked for a peer that is ahead; twice as long each next time.
    pub ahead_after: Duration,
    /// And no longer.
    pub ahead_most: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            budget: Duration::from_millis(900),
            busy_wait: Duration::from_secs(5),
            busy_pause: Duration::from_millis(250),
            hedge: Duration::from_millis(150),
            at_once: 3,
            tries: 6,
            slow: 256 << 10,
            slow_after: Duration::from_secs(5),
            stall: Duration::from_secs(2),
            prior_rate: 50_000_000,
            far: 4.0,
            spread: 0.5,
            exclude_failed: Duration::from_secs(5),
            exclude_slow: Duration::from_secs(60),
            exclude_liar: Duration::from_secs(3600),
            exclude_most: Duration::from_secs(24 * 3600),
            forgive: Duration::from_secs(600),
            peers: 10_000,
            fan_out: 2,
            settle: Duration::from_millis(600),
            equal_pause: Duration::from_millis(100),
            poll: Duration::from_millis(25),
            relay_stall: Duration::from_secs(5),
            relay_slow: 0.25,
            ahead_after: Duration::from_millis(250),
            ahead_most: Duration::from_secs(2),
        }
    }
}

impl Rules {
    /// Those by which a transfer is judged from a peer to which the blob itself is coming.
    #[must_use]
    pub fn for_relays(&self) -> Self {
        Self { stall: self.relay_stall, slow: (self.slow as f64 * self.relay_slow) as u64, ..self.clone() }
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0 and below 1.
    pub(crate) fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
