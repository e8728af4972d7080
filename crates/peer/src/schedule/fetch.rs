//! One blob: whom to ask next, and when to go to the registry.

use std::collections::{BTreeMap, BTreeSet};

use super::{Board, End, Moment, Rules};

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<P> {
    /// Ask this peer; its answer is reported by [`Fetch::failed`], or the fetch is over since it gives.
    Ask(P),
    /// Nothing until this moment, unless something is reported before.
    Wait(Moment),
    /// Ask the registry, and drop every answer that is still waited for.
    Upstream(Why),
}

/// Why the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No peer that may be asked is known to have it.
    Nobody,
    /// All that may be asked were, and none gives.
    Failed,
    /// All that have it are busy.
    Busy,
    /// The time is up.
    Late,
}

impl Why {
    /// For records and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "no peer has it",
            Self::Failed => "no peer gives it",
            Self::Busy => "the peers that have it are busy",
            Self::Late => "no peer gave it in time",
        }
    }
}

/// Looks for a peer that gives one blob.
#[derive(Debug, Clone)]
pub struct Fetch<P> {
    began: Moment,
    size: u64,
    /// Known to have it, and not asked yet.
    waiting: Vec<P>,
    /// Asked, and their answers are waited for.
    open: BTreeSet<P>,
    /// Asked, or told of, once.
    seen: BTreeSet<P>,
    /// Busy until when.
    busy: BTreeMap<P, Moment>,
    /// Nobody else will be found.
    looked: bool,
    tries: usize,
    last: Option<Moment>,
    /// When a peer that had been busy was asked last.
    again: Option<Moment>,
}

impl<P: Ord + Clone> Fetch<P> {
    /// Begins now. Peers are told of by [`Fetch::found`]; those in `avoid` are not asked.
    pub fn new(now: Moment, size: u64, avoid: &[P]) -> Self {
        Self {
            began: now,
            size,
            waiting: Vec::new(),
            open: BTreeSet::new(),
            seen: avoid.iter().cloned().collect(),
            busy: BTreeMap::new(),
            looked: false,
            tries: 0,
            last: None,
            again: None,
        }
    }

    /// These have it, as they announced.
    pub fn found(&mut self, peers: impl IntoIterator<Item = P>) {
        for peer in peers {
            if self.seen.insert(peer.clone()) {
                self.waiting.push(peer);
            }
        }
    }

    /// The search for peers is over.
    pub const fn looked(&mut self) {
        self.looked = true;
    }

    /// A peer that was asked does not give. A busy one may be asked again at `again`.
    pub fn failed(&mut self, now: Moment, peer: &P, end: End, again: Option<Moment>, board: &Board<P>) {
        self.open.remove(peer);
        if end == End::Busy {
            self.busy.insert(peer.clone(), again.unwrap_or(now + board.rules().busy_pause));
        }
    }

    /// What to do now. Whoever is to be asked counts as asked.
    pub fn next(&mut self, now: Moment, board: &mut Board<P>) -> Step<P> {
        let rules = board.rules().clone();
        let deadline = self.deadline(&rules);
        if now >= deadline {
            return Step::Upstream(if self.busy.is_empty() { Why::Late } else { Why::Busy });
        }
        let hedged = self.last.map_or(now, |last| last + rules.hedge);
        let may_ask = self.open.len() < rules.at_once && self.tries < rules.tries;
        let due = self.open.is_empty() || now >= hedged;
        if may_ask
            && due
            && let Some(peer) = self.best(now, board)
        {
            return self.ask(now, peer, board);
        }
        let again = self.busy.values().min().copied();
        if self.open.is_empty() && again.is_some_and(|again| again <= now) {
            let due: Vec<P> = self.busy.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| peer.clone()).collect();
            if let Some(peer) = board.rank(now, self.size, &due).into_iter().next() {
                self.busy.remove(&peer);
                // That it is asked again is no further try.
                self.tries = self.tries.saturating_sub(1);
                self.again = Some(now);
                return self.ask(now, peer, board);
            }
            // Excluded meanwhile.
            self.busy.retain(|peer, _| !due.contains(peer));
            return self.next(now, board);
        }
        if self.open.is_empty() && self.busy.is_empty() && (self.looked || self.tries >= rules.tries) {
            return Step::Upstream(if self.tries == 0 { Why::Nobody } else { Why::Failed });
        }
        let mut until = deadline;
        if may_ask && !self.open.is_empty() && !self.waiting.is_empty() {
            until = until.min(hedged.max(now));
        }
        if let Some(again) = again.filter(|_| self.open.is_empty()) {
            until = until.min(again);
        }
        Step::Wait(until)
    }

    /// While peers are busy it is late; one that is asked again has the time that any peer has.
    fn deadline(&self, rules: &Rules) -> Moment {
        let most = self.began + rules.busy_wait.max(rules.budget);
        if !self.busy.is_empty() {
            return most;
        }
        (self.again.unwrap_or(self.began) + rules.budget).min(most)
    }

    fn ask(&mut self, now: Moment, peer: P, board: &mut Board<P>) -> Step<P> {
        self.open.insert(peer.clone());
        self.tries += 1;
        self.last = Some(now);
        board.asked(now, &peer);
        Step::Ask(peer)
    }

    /// Takes the best of those that wait. Those that are excluded now are not asked for this blob any more.
    fn best(&mut self, now: Moment, board: &mut Board<P>) -> Option<P> {
        let mut ranked = board.rank(now, self.size, &self.waiting);
        let best = (!ranked.is_empty()).then(|| ranked.remove(0));
        self.waiting = ranked;
        best
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn start(peers: &[u8]) -> (Fetch<u8>, Board<u8>) {
        let mut fetch = Fetch::new(ms(0), 1 << 20, &[]);
        fetch.found(peers.iter().copied());
        (fetch, Board::new(Rules::default(), 1))
    }

    #[test]
    fn nobody_means_the_registry_at_once() {
        let (mut fetch, mut board) = start(&[]);
        assert_eq!(fetch.next(ms(1), &mut board), Step::Wait(board.rules().budget));
        fetch.looked();
        assert_eq!(fetch.next(ms(2), &mut board), Step::Upstream(Why::Nobody));
    }

    #[test]
    fn a_silent_peer_is_joined_by_others_and_all_give_way_to_the_registry_in_time() {
        let (mut fetch, mut board) = start(&[1, 2, 3, 4, 5]);
        let (mut now, mut asked) = (ms(0), Vec::new());
        let end = loop {
            match fetch.next(now, &mut board) {
                Step::Ask(peer) => asked.push((now, peer)),
                Step::Wait(until) => now = until,
                Step::Upstream(why) => break (now, why),
            }
        };
        assert_eq!(end, (board.rules().budget, Why::Late));
        let times: Vec<Moment> = asked.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [ms(0), ms(150), ms(300)]);
    }

    #[test]
    fn one_that_fails_is_followed_by_the_next_without_a_pause() {
        let (mut fetch, mut board) = start(&[1, 2]);
        let Step::Ask(first) = fetch.next(ms(0), &mut board) else { panic!("asks") };
        board.ended(ms(5), &first, End::Missing);
        fetch.failed(ms(5), &first, End::Missing, None, &board);
        let Step::Ask(second) = fetch.next(ms(5), &mut board) else { panic!("asks") };
        assert_ne!(first, second);
        fetch.failed(ms(6), &second, End::Unreachable, None, &board);
        fetch.looked();
        assert_eq!(fetch.next(ms(6), &mut board), Step::Upstream(Why::Failed));
    }

    #[test]
    fn busy_peers_are_asked_again_and_spare_the_registry_for_a_while() {
        let (mut fetch, mut board) = start(&[1]);
        fetch.looked();
        let (mut now, mut asked) = (ms(0), 0);
        let end = loop {
            match fetch.next(now, &mut board) {
                Step::Ask(peer) => {
                    asked += 1;
                    board.ended(now, &peer, End::Busy);
                    fetch.failed(now, &peer, End::Busy, None, &board);
                }
                Step::Wait(until) => now = until,
                Step::Upstream(why) => break (now, why),
            }
        };
        assert_eq!(end, (board.rules().busy_wait, Why::Busy));
        assert!((10..=21).contains(&asked), "{asked}");
    }

    #[test]
    fn those_to_be_avoided_are_not_asked() {
        let mut fetch = Fetch::new(ms(0), 1, &[1]);
        let mut board = Board::new(Rules::default(), 1);
        fetch.found([1, 2]);
        assert_eq!(fetch.next(ms(0), &mut board), Step::Ask(2));
    }

    #[derive(Debug, Clone)]
    struct Fate {
        after: u64,
        end: End,
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let end = prop_oneof![
            Just(End::Missing),
            Just(End::Busy),
            Just(End::Unreachable),
            Just(End::Broken),
            Just(End::Given { bytes: 1, waited: ms(1) }),
        ];
        prop::collection::vec((0u64..3000, end).prop_map(|(after, end)| Fate { after, end }), 0..12)
    }

    proptest! {
        /// Whatever peers do: it ends in time, waits for few at once, asks nobody twice who is not busy, and goes to the
        /// registry only when no peer that it knows could still give in time.
        #[test]
        fn every_fetch_ends_in_time(fates in fates(), looked_after in 0u64..2000, seed in any::<u64>()) {
            let mut board = Board::new(Rules::default(), seed);
            let rules = board.rules().clone();
            let mut fetch = Fetch::new(ms(0), 1 << 20, &[]);
            fetch.found(0..fates.len());
            let (mut now, mut looked) = (ms(0), false);
            let mut open: BTreeMap<usize, Moment> = BTreeMap::new();
            let mut asked: BTreeMap<usize, u32> = BTreeMap::new();
            let mut given = false;
            for _ in 0..10_000 {
                if !looked && now >= ms(looked_after) {
                    fetch.looked();
                    looked = true;
                }
                let due = open.iter().find(|(_, at)| **at <= now).map(|(peer, _)| *peer);
                if let Some(peer) = due {
                    open.remove(&peer);
                    let end = fates[peer].end;
                    board.ended(now, &peer, end);
                    if matches!(end, End::Given { .. }) {
                        given = true;
                        break;
                    }
                    fetch.failed(now, &peer, end, None, &board);
                    continue;
                }
                match fetch.next(now, &mut board) {
                    Step::Ask(peer) => {
                        let times = asked.entry(peer).or_default();
                        *times += 1;
                        prop_assert!(*times == 1 || fates[peer].end == End::Busy);
                        open.insert(peer, now + ms(fates[peer].after));
                        prop_assert!(open.len() <= rules.at_once);
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now, "it would spin");
                        let next = open.values().copied().min().unwrap_or(until).min(until);
                        let next = if looked { next } else { next.min(ms(looked_after).max(now)) };
                        now = next.max(now);
                    }
                    Step::Upstream(why) => {
                        if why != Why::Late && why != Why::Busy {
                            prop_assert!(open.is_empty());
                        }
                        given = true;
                        break;
                    }
                }
            }
            prop_assert!(given, "it never ended");
            let busy = fates.iter().any(|fate| fate.end == End::Busy);
            let most = if busy { rules.busy_wait } else { rules.budget };
            prop_assert!(now <= most);
            prop_assert!(asked.len() <= rules.tries);
        }
    }
}
