//! What is known of every peer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Dice, Moment, Rules};

/// How much the newest measurement counts.
const NEWEST: f64 = 0.3;

/// How long what a peer said of its load is believed.
const LOAD_LIFE: Duration = Duration::from_secs(10);

/// So many suspicions exclude like one certainty.
const SUSPICIONS: f64 = 2.0;

/// How much of a suspicion it is that a peer gave a part of something wrong that was still coming to it.
const RELAYED: f64 = 0.5;

/// No exclusion is doubled more often.
const MOST_LEVELS: u32 = 16;

/// How asking a peer for a blob ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It gave all that was asked of it.
    Given {
        /// Bytes.
        bytes: u64,
        /// How long they were waited for.
        waited: Duration,
    },
    /// It does not have the blob, any more or yet: announcements outlive blobs.
    Missing,
    /// It gives to others, and will later.
    Busy,
    /// The blob is coming to it too, and it has no more of it.
    Equal,
    /// Nothing answers, or something else than a peer does.
    Unreachable,
    /// It broke off.
    Broken,
    /// It was too slow, or stood still.
    Slow,
    /// Somebody else was faster, or nobody wants it any more.
    Dropped,
}

/// What a peer was like so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Conduct {
    /// In the same zone.
    pub near: bool,
    /// How long it takes to answer.
    pub latency: Option<Duration>,
    /// Bytes a second that it gave.
    pub rate: Option<f64>,
    /// How busy it said it was, 0 to 1.
    pub load: f64,
    /// Transfers from it now.
    pub open: u32,
    /// Blobs that it gave.
    pub blobs: u64,
    /// Bytes that it gave.
    pub bytes: u64,
    /// Failures in all.
    pub failures: u64,
    /// Blobs of it whose bytes were wrong.
    pub lies: u64,
    /// Not asked before this moment.
    pub excluded_until: Option<Moment>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    near: bool,
    latency: Option<f64>,
    rate: Option<f64>,
    load: (f64, Moment),
    open: u32,
    blobs: u64,
    bytes: u64,
    failures: u64,
    lies: u64,
    suspicion: f64,
    /// How often exclusions doubled, and when that counted last.
    level: f64,
    leveled: Moment,
    excluded_until: Moment,
    /// When anything was heard of it.
    touched: Moment,
}

/// What is known of all peers. `P` is whatever tells one from another.
#[derive(Debug, Clone)]
pub struct Board<P> {
    rules: Rules,
    known: BTreeMap<P, Known>,
    dice: Dice,
}

impl<P: Ord + Clone> Board<P> {
    /// Knows nobody. Boards of different nodes should have different seeds.
    pub const fn new(rules: Rules, seed: u64) -> Self {
        Self { rules, known: BTreeMap::new(), dice: Dice::new(seed) }
    }

    /// The numbers that it decides by.
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Says whether a peer is in the same zone.
    pub fn place(&mut self, now: Moment, peer: &P, near: bool) {
        self.of(now, peer).near = near;
    }

    /// Whether a peer must not be asked now.
    pub fn is_excluded(&self, now: Moment, peer: &P) -> bool {
        self.known.get(peer).is_some_and(|known| known.excluded_until > now)
    }

    /// The peers that may be asked for `size` bytes, the best first. Among equals chance decides.
    pub fn rank(&mut self, now: Moment, size: u64, candidates: &[P]) -> Vec<P> {
        let mut costs: Vec<(f64, P)> = Vec::with_capacity(candidates.len());
        for peer in candidates {
            if self.is_excluded(now, peer) {
                continue;
            }
            let chance = 1.0 + self.rules.spread * self.dice.part();
            costs.push((self.cost(now, peer, size) * chance, peer.clone()));
        }
        costs.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        costs.dedup_by(|a, b| a.1 == b.1);
        costs.into_iter().map(|(_, peer)| peer).collect()
    }

    /// The seconds that a peer would take for `size` bytes, as far as is known.
    fn cost(&self, now: Moment, peer: &P, size: u64) -> f64 {
        let unknown = Known::default();
        let known = self.known.get(peer).unwrap_or(&unknown);
        let rate = known.rate.unwrap_or(self.rules.prior_rate as f64).max(1.0);
        let share = rate * (1.0 - 0.9 * known.load_at(now)) / f64::from(1 + known.open);
        let latency = known.latency.unwrap_or(0.002);
        let doubt = 1.0 + known.level_at(now, self.rules.forgive) + known.suspicion;
        let distance = if known.near { 1.0 } else { self.rules.far };
        // What answers need not be exact: half a millisecond is everybody's.
        (0.0005 + latency * 2.0 + size as f64 / share) * doubt * distance
    }

    /// A peer is asked.
    pub fn asked(&mut self, now: Moment, peer: &P) {
        self.of(now, peer).open += 1;
    }

    /// It answered that it gives, after `took`; `load` is how busy it says it is, 0 to 1.
    pub fn answered(&mut self, now: Moment, peer: &P, took: Duration, load: Option<f64>) {
        let known = self.of(now, peer);
        known.latency = Some(mixed(known.latency, took.as_secs_f64()));
        if let Some(load) = load.filter(|load| load.is_finite()) {
            known.load = (load.clamp(0.0, 1.0), now);
        }
    }

    /// Asking it ended; once for each [`Board::asked`].
    pub fn ended(&mut self, now: Moment, peer: &P, end: End) {
        let rules = self.rules.clone();
        let known = self.of(now, peer);
        known.open = known.open.saturating_sub(1);
        match end {
            End::Given { bytes, waited } => {
                known.blobs += 1;
                known.bytes += bytes;
                known.level = known.level_at(now, rules.forgive) / 2.0;
                known.leveled = now;
                // A few bytes say nothing of a rate.
                if bytes >= 64 << 10 {
                    let rate = bytes as f64 / waited.as_secs_f64().max(1e-4);
                    known.rate = Some(mixed(known.rate, rate));
                }
            }
            End::Busy => known.load = (1.0, now),
            End::Missing | End::Equal | End::Dropped => {}
            End::Unreachable | End::Broken => known.exclude(now, rules.exclude_failed, &rules),
            End::Slow => {
                known.rate = Some(mixed(known.rate, rules.slow as f64 / 2.0));
                known.exclude(now, rules.exclude_slow, &rules);
            }
        }
    }

    /// The bytes of a blob were wrong. If one peer gave all of them it lied; of several, each is suspected. Of those, `relayed` gave a part of
    /// what was still coming to them, which they could not have verified: they are suspected less, and excluded for less long. Answers
    /// with those that are excluded now.
    pub fn disproved(&mut self, now: Moment, givers: &[P], alone: bool, relayed: &[P]) -> Vec<P> {
        let rules = self.rules.clone();
        let certain = alone && givers.len() == 1;
        let mut excluded = Vec::new();
        for giver in givers {
            let has_relayed = !certain && relayed.contains(giver);
            let known = self.of(now, giver);
            known.lies += u64::from(certain);
            known.suspicion += match (certain, has_relayed) {
                (true, _) => SUSPICIONS,
                (false, true) => RELAYED,
                (false, false) => 1.0,
            };
            if known.suspicion >= SUSPICIONS {
                let length = if has_relayed { rules.exclude_slow } else { rules.exclude_liar };
                known.exclude(now, length, &rules);
                known.suspicion = 0.0;
                excluded.push(giver.clone());
            }
        }
        excluded
    }

    /// Everybody, with what they were like.
    pub fn all(&self, now: Moment) -> impl Iterator<Item = (&P, Conduct)> {
        self.known.iter().map(move |(peer, known)| (peer, known.conduct(now)))
    }

    /// What one peer was like.
    pub fn conduct(&self, now: Moment, peer: &P) -> Option<Conduct> {
        self.known.get(peer).map(|known| known.conduct(now))
    }

    fn of(&mut self, now: Moment, peer: &P) -> &mut Known {
        if !self.known.contains_key(peer) && self.known.len() >= self.rules.peers.max(1) {
            self.forget_one(now);
        }
        let known = self.known.entry(peer.clone()).or_default();
        known.touched = now;
        known
    }

    /// Forgets who was not heard of for longest; those excluded or giving only when all are.
    fn forget_one(&mut self, now: Moment) {
        let dear = |known: &Known| known.open > 0 || known.excluded_until > now;
        let oldest = self.known.iter().min_by_key(|(_, known)| (dear(known), known.touched));
        if let Some(peer) = oldest.map(|(peer, _)| peer.clone()) {
            self.known.remove(&peer);
        }
    }
}

impl Known {
    fn load_at(&self, now: Moment) -> f64 {
        let age = now.saturating_sub(self.load.1).as_secs_f64();
        self.load.0 * (1.0 - age / LOAD_LIFE.as_secs_f64()).max(0.0)
    }

    fn level_at(&self, now: Moment, forgive: Duration) -> f64 {
        let halvings = now.saturating_sub(self.leveled).as_secs_f64() / forgive.as_secs_f64().max(1e-3);
        self.level * 0.5f64.powf(halvings)
    }

    fn exclude(&mut self, now: Moment, first: Duration, rules: &Rules) {
        let level = self.level_at(now, rules.forgive);
        let doublings = (level.round().max(0.0) as u32).min(MOST_LEVELS);
        let length = first.saturating_mul(1 << doublings).min(rules.exclude_most);
        self.excluded_until = self.excluded_until.max(now + length);
        self.failures += 1;
        self.level = level + 1.0;
        // It begins to be forgiven when the exclusion is over, not while nobody asks it anyway.
        self.leveled = self.excluded_until;
    }

    fn conduct(&self, now: Moment) -> Conduct {
        Conduct {
            near: self.near,
            latency: self.latency.map(Duration::from_secs_f64),
            rate: self.rate,
            load: self.load_at(now),
            open: self.open,
            blobs: self.blobs,
            bytes: self.bytes,
            failures: self.failures,
            lies: self.lies,
            excluded_until: (self.excluded_until > now).then_some(self.excluded_until),
        }
    }
}

fn mixed(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + NEWEST * (new - old))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn board() -> Board<u8> {
        Board::new(Rules { spread: 0.0, ..Rules::default() }, 7)
    }

    fn gave(board: &mut Board<u8>, now: Moment, peer: u8, rate: u64) {
        board.asked(now, &peer);
        board.answered(now, &peer, Duration::from_millis(1), Some(0.0));
        board.ended(now, &peer, End::Given { bytes: rate, waited: s(1) });
    }

    #[test]
    fn the_nearest_and_least_loaded_are_first() {
        let mut board = board();
        for peer in [1, 2, 3, 4] {
            gave(&mut board, s(1), peer, 100 << 20);
        }
        board.place(s(1), &3, true);
        assert_eq!(board.rank(s(2), 1 << 20, &[1, 2, 3, 4])[0], 3);
        // A near one that is full is worse than a far one that is free.
        board.asked(s(2), &3);
        board.ended(s(2), &3, End::Busy);
        assert_ne!(board.rank(s(2), 1 << 20, &[1, 2, 3, 4])[0], 3);
        // What gives to others already comes later.
        board.asked(s(2), &1);
        assert_eq!(board.rank(s(2), 1 << 20, &[1, 2])[0], 2);
        // What it said of its load is forgotten.
        assert_eq!(board.rank(s(13), 1 << 20, &[2, 3])[0], 3);
    }

    #[test]
    fn a_lie_excludes_at_once_and_the_next_one_for_longer() {
        let mut board = board();
        assert_eq!(board.disproved(s(0), &[1], true, &[]), [1]);
        assert_eq!(board.rank(s(3599), 1, &[1, 2]), [2]);
        assert_eq!(board.rank(s(3601), 1, &[1]), [1]);
        assert_eq!(board.disproved(s(3601), &[1], true, &[]), [1]);
        assert!(board.is_excluded(s(3601 + 7000), &1));
        assert!(!board.is_excluded(s(3601 + 7300), &1));
        assert_eq!(board.conduct(s(3601), &1).unwrap().lies, 2);
    }

    #[test]
    fn whoever_gave_a_part_of_what_was_wrong_is_suspected_first() {
        let mut board = board();
        assert!(board.disproved(s(0), &[1, 2], false, &[]).is_empty());
        assert!(!board.is_excluded(s(0), &1));
        assert_eq!(board.disproved(s(0), &[1, 3], false, &[]), [1]);
        assert!(board.is_excluded(s(0), &1) && !board.is_excluded(s(0), &2) && !board.is_excluded(s(0), &3));
        // One peer, and the registry: nobody knows which of them it was.
        let mut board = self::board();
        assert!(board.disproved(s(0), &[1], false, &[]).is_empty());
    }

    /// It had them of a liar, whom it excludes itself.
    #[test]
    fn whoever_gave_on_what_was_wrong_is_suspected_less_and_excluded_for_less_long() {
        let mut board = board();
        for _ in 0..3 {
            assert!(board.disproved(s(0), &[1, 2], false, &[1]).iter().all(|peer| *peer == 2));
        }
        assert!(board.is_excluded(s(60), &2) && !board.is_excluded(s(0), &1));
        assert_eq!(board.disproved(s(0), &[1], false, &[1]), [1]);
        assert!(board.is_excluded(s(59), &1) && !board.is_excluded(s(61), &1));
        assert_eq!(board.conduct(s(0), &1).unwrap().lies, 0);
        // Who gave all of it, to the last byte, had verified it.
        assert_eq!(board.disproved(s(100), &[3], true, &[3]), [3]);
        assert!(board.is_excluded(s(3600), &3));
    }

    #[test]
    fn memory_is_bounded_and_a_liar_is_not_forgotten_for_newcomers() {
        let mut board = Board::new(Rules { peers: 100, ..Rules::default() }, 1);
        board.disproved(s(0), &[0u32], true, &[]);
        for peer in 1..10_000 {
            board.asked(s(1), &peer);
            board.ended(s(1), &peer, End::Missing);
        }
        assert_eq!(board.all(s(1)).count(), 100);
        assert!(board.is_excluded(s(1), &0));
    }

    #[test]
    fn chance_spreads_equals_and_the_seed_decides_it() {
        let candidates: Vec<u32> = (0..50).collect();
        let first = |seed| Board::new(Rules::default(), seed).rank(s(0), 1 << 20, &candidates)[0];
        let chosen: std::collections::BTreeSet<u32> = (0..200).map(first).collect();
        assert!(chosen.len() > 25, "{chosen:?}");
        assert_eq!(first(5), first(5));
    }

    fn end() -> impl Strategy<Value = End> {
        prop_oneof![
            (0u64..1 << 30, 0u64..100_000)
                .prop_map(|(bytes, ms)| End::Given { bytes, waited: Duration::from_millis(ms) }),
            Just(End::Missing),
            Just(End::Busy),
            Just(End::Equal),
            Just(End::Unreachable),
            Just(End::Broken),
            Just(End::Slow),
            Just(End::Dropped),
        ]
    }

    proptest! {
        /// Whatever happens: ranks have everybody once who is not excluded and nobody else, and every exclusion ends.
        #[test]
        fn nobody_is_lost_or_excluded_for_ever(steps in prop::collection::vec((0u8..6, end(), 0u64..5000, any::<bool>()), 0..200)) {
            let mut board = Board::new(Rules::default(), 3);
            let mut now = Duration::ZERO;
            for (peer, end, ms, lied) in steps {
                now += Duration::from_millis(ms);
                board.asked(now, &peer);
                board.answered(now, &peer, Duration::from_millis(ms), Some(ms as f64 / 5000.0));
                board.ended(now, &peer, end);
                if lied {
                    board.disproved(now, &[peer], true, &[]);
                }
                let all: Vec<u8> = (0..6).collect();
                let mut ranked = board.rank(now, 1 << 20, &all);
                ranked.sort_unstable();
                let expected: Vec<u8> = all.into_iter().filter(|peer| !board.is_excluded(now, peer)).collect();
                prop_assert_eq!(ranked, expected);
                prop_assert!(board.all(now).all(|(_, conduct)| conduct.open == 0));
            }
            let later = now + board.rules().exclude_most;
            prop_assert_eq!(board.rank(later, 1, &[0, 1, 2, 3, 4, 5]).len(), 6);
        }
    }
}
