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
    /// It is coming to others too, who wait for this node.
    First,
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
            Self::First => "no peer has it, and others wait for this node to bring it",
            Self::Late => "no peer gave it in time",
        }
    }
}

/// Peers of which one fetch is told, at most.
const MAX_SEEN: usize = 128;

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
    /// To whom it is coming too, and who had no more of it: when to ask again, and how often that was said.
    equals: BTreeMap<P, (Moment, u32)>,
    /// Of those to whom it is coming.
    ranks: BTreeMap<P, u64>,
    /// This node's own, if others wait for it as it does for them.
    own: Option<u64>,
    /// Somebody gives already: nobody is waited for.
    moving: bool,
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
            equals: BTreeMap::new(),
            ranks: BTreeMap::new(),
            own: None,
            moving: false,
            looked: false,
            tries: 0,
            last: None,
            again: None,
        }
    }

    /// Others are told that the blob is coming to this node, which has this rank among those of whom that is so.
    #[must_use]
    pub const fn ranked(mut self, own: u64) -> Self {
        self.own = Some(own);
        self
    }

    /// Somebody gives it already, and only who gives at once is of use.
    #[must_use]
    pub const fn moving(mut self) -> Self {
        self.moving = true;
        self
    }

    /// These have it, as they announced.
    pub fn found(&mut self, peers: impl IntoIterator<Item = P>) {
        for peer in peers {
            if self.seen.len() < MAX_SEEN && self.seen.insert(peer.clone()) {
                self.waiting.push(peer);
            }
        }
    }

    /// It is coming to this one, which has this rank if that is known.
    pub fn found_coming(&mut self, peer: P, rank: Option<u64>) {
        if let Some(rank) = rank.filter(|_| self.ranks.len() < MAX_SEEN) {
            self.ranks.insert(peer.clone(), rank);
        }
        self.found([peer]);
    }

    /// The search for peers is over.
    pub const fn looked(&mut self) {
        self.looked = true;
    }

    /// A peer that was asked does not give. A busy one may be asked again at `again`.
    pub fn failed(&mut self, now: Moment, peer: &P, end: End, again: Option<Moment>, board: &Board<P>) {
        self.open.remove(peer);
        let times = self.equals.remove(peer).map_or(0, |(_, times)| times);
        if self.moving || !matches!(end, End::Busy | End::Equal) {
            return;
        }
        // That is no failure.
        self.tries = self.tries.saturating_sub(1);
        if end == End::Busy {
            self.busy.insert(peer.clone(), again.unwrap_or(now + board.rules().busy_pause));
        } else {
            let pause = board.rules().equal_pause * (1 << times.min(2));
            self.equals.insert(peer.clone(), (again.unwrap_or(now + pause), times + 1));
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
        let may_try = self.tries < rules.tries;
        let may_ask = self.open.len() < rules.at_once && may_try;
        // Of nodes that wait for each other each wants to know soon who of them goes.
        let due = self.open.is_empty() || now >= hedged || !self.equals.is_empty();
        if may_ask
            && due
            && let Some(peer) = self.best(now, board)
        {
            return self.ask(now, peer, board);
        }
        let again = self.again(&rules).filter(|_| self.open.is_empty());
        if again.is_some_and(|again| again <= now) {
            return match self.once_more(now, board) {
                Some(peer) => self.ask(now, peer, board),
                // Excluded meanwhile.
                None => self.next(now, board),
            };
        }
        let settled = self.began + rules.settle;
        let is_settled = self.own.is_some() && now >= settled;
        if self.open.is_empty() && self.busy.is_empty() && (self.looked || is_settled || !may_try) && self.is_first() {
            return Step::Upstream(self.why());
        }
        let mut until = deadline;
        if may_ask && !self.open.is_empty() && !self.waiting.is_empty() {
            until = until.min(hedged.max(now));
        }
        if self.own.is_some() && settled > now {
            until = until.min(settled);
        }
        Step::Wait(again.map_or(until, |again| until.min(again)))
    }

    fn why(&self) -> Why {
        match (self.tries, self.equals.is_empty()) {
            (_, false) => Why::First,
            (0, true) => Why::Nobody,
            _ => Why::Failed,
        }
    }

    /// How many this node waits for, who wait themselves.
    fn before(&self) -> u32 {
        let before = |peer: &&P| match (self.own, self.ranks.get(*peer)) {
            (Some(own), Some(rank)) => *rank < own,
            // Who is not known to be before it does not decide: such a one may wait for this node.
            (Some(_), None) => false,
            (None, _) => true,
        };
        u32::try_from(self.equals.keys().filter(before).count()).unwrap_or(u32::MAX)
    }

    fn is_first(&self) -> bool {
        self.before() == 0
    }

    /// While peers are busy it is late; one that is asked again has the time that any peer has.
    fn deadline(&self, rules: &Rules) -> Moment {
        let most = self.began + rules.busy_wait.max(rules.budget);
        if self.moving {
            // Nobody waits for its end.
            return self.began + rules.ahead_most.max(rules.budget);
        }
        if !self.busy.is_empty() {
            return most;
        }
        let line = rules.hedge.saturating_mul(self.before().saturating_sub(1));
        (self.again.unwrap_or(self.began) + rules.budget + line).min(most)
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

    /// When somebody is to be asked again.
    fn again(&self, rules: &Rules) -> Option<Moment> {
        let equals = self.equals.values().map(|(at, _)| at);
        let first = self.busy.values().chain(equals).min().copied()?;
        Some(self.last.map_or(first, |last| first.max(last + rules.poll)))
    }

    /// The best of those that may be asked again. Those that are excluded now are not.
    fn once_more(&mut self, now: Moment, board: &mut Board<P>) -> Option<P> {
        let mut due: Vec<P> = self.busy.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| peer.clone()).collect();
        due.extend(self.equals.iter().filter(|(_, (at, _))| *at <= now).map(|(peer, _)| peer.clone()));
        let Some(peer) = board.rank(now, self.size, &due).into_iter().next() else {
            self.busy.retain(|peer, _| !due.contains(peer));
            self.equals.retain(|peer, _| !due.contains(peer));
            return None;
        };
        if self.busy.remove(&peer).is_some() {
            self.again = Some(now);
        }
        Some(peer)
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

    fn equal(fetch: &mut Fetch<u8>, board: &mut Board<u8>, now: Moment, peer: u8) {
        board.ended(now, &peer, End::Equal);
        fetch.failed(now, &peer, End::Equal, None, board);
    }

    #[test]
    fn of_those_who_wait_for_each_other_the_lowest_goes_to_the_registry_at_once_and_the_others_one_after_the_other() {
        // Ranks of those who wait besides, this node's own, and when it goes.
        for (others, own, goes) in [(vec![5, 6], 4, 0), (vec![3, 6], 4, 900), (vec![1, 2], 4, 1050), (vec![1, 2], 0, 0)]
        {
            let mut board = Board::new(Rules::default(), 1);
            let mut fetch = Fetch::new(ms(0), 1 << 20, &[]).ranked(own);
            others.iter().for_each(|rank| fetch.found_coming(*rank as u8, Some(*rank)));
            fetch.looked();
            let mut now = ms(0);
            let why = loop {
                match fetch.next(now, &mut board) {
                    Step::Ask(peer) => equal(&mut fetch, &mut board, now, peer),
                    Step::Wait(until) => now = until,
                    Step::Upstream(why) => break why,
                }
            };
            assert_eq!((now, why), (ms(goes), if goes == 0 { Why::First } else { Why::Late }), "{others:?}");
        }
    }

    #[test]
    fn who_follows_another_decides_nothing_and_is_asked_again() {
        let mut board = Board::new(Rules::default(), 1);
        let mut fetch = Fetch::new(ms(0), 1 << 20, &[]).ranked(9);
        fetch.found_coming(1, Some(1));
        // Told of by another peer: its rank is not known.
        fetch.found_coming(2, None);
        fetch.looked();
        let mut asked = Vec::new();
        let mut now = ms(0);
        while now < ms(400) {
            match fetch.next(now, &mut board) {
                Step::Ask(peer) => {
                    asked.push((peer, now));
                    equal(&mut fetch, &mut board, now, peer);
                }
                Step::Wait(until) => now = until,
                Step::Upstream(why) => panic!("{why:?} at {now:?}"),
            }
        }
        let of = |peer| asked.iter().filter(|(other, _)| *other == peer).map(|(_, at)| *at).collect::<Vec<_>>();
        assert_eq!((of(1).len(), of(2).len()), (3, 3), "each after 100, then 200 ms: {asked:?}");
        // When the first is gone nobody is before it.
        fetch.failed(now, &1, End::Missing, None, &board);
        while let Step::Ask(peer) = fetch.next(now, &mut board) {
            equal(&mut fetch, &mut board, now, peer);
        }
        assert_eq!(fetch.next(now, &mut board), Step::Upstream(Why::First));
    }

    #[test]
    fn who_has_a_source_already_waits_for_nobody() {
        let mut board = Board::new(Rules::default(), 1);
        let mut fetch = Fetch::new(ms(0), 1 << 20, &[]).moving();
        fetch.found([1, 2]);
        fetch.looked();
        for end in [End::Busy, End::Equal] {
            let Step::Ask(peer) = fetch.next(ms(0), &mut board) else { panic!("asks") };
            fetch.failed(ms(0), &peer, end, None, &board);
        }
        assert_eq!(fetch.next(ms(0), &mut board), Step::Upstream(Why::Failed));
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
            Just(End::Equal),
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
        fn every_fetch_ends_in_time(fates in fates(), looked_after in 0u64..2000, seed in any::<u64>(), own in prop::option::of(any::<u64>()), moving in any::<bool>()) {
            let mut board = Board::new(Rules::default(), seed);
            let rules = board.rules().clone();
            let fetch = Fetch::new(ms(0), 1 << 20, &[]);
            let fetch = if let Some(own) = own { fetch.ranked(own) } else { fetch };
            let mut fetch = if moving { fetch.moving() } else { fetch };
            (0..fates.len()).for_each(|peer| fetch.found_coming(peer, Some(seed.rotate_left(peer as u32))));
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
                        prop_assert!(*times == 1 || !moving && matches!(fates[peer].end, End::Busy | End::Equal));
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
            let soft = |fate: &&Fate| matches!(fate.end, End::Busy | End::Equal);
            let soft = fates.iter().filter(soft).count();
            let most = match (moving, soft) {
                (true, _) => rules.ahead_most,
                (false, 0) => rules.budget,
                (false, _) => rules.busy_wait,
            };
            prop_assert!(now <= most);
            let most = rules.tries + if moving { 0 } else { soft };
            prop_assert!(asked.len() <= most);
        }
    }
}
