//! Pull storms on a virtual network with a virtual clock, decided by the code that decides in the daemon.
//!
//! What is modelled: network cards, uplinks of racks, the registry's card, each shared evenly by what goes over it, also where a
//! transfer waits for its source and could use less; look-ups that find at most 20 of those who announced; blobs that are given on while
//! they come; uploads at once, and of one blob; nodes that leave; nodes whose card is slow. What is not: disks, unpacking, lost packets,
//! connections, the cost of Kademlia itself, and what a search for somebody who is ahead takes of what it finds too late. Time goes in slots
//! of 20 ms, and a byte over one node in each.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use orlop_peer::schedule::{Board, End, Fetch, Moment, Rules, Step, Transfer, Verdict};
use orlop_testkit::tier;

const SLOT: Duration = Duration::from_millis(20);
/// Until an announcement is found, and until a look-up answers.
const HEARD: Duration = Duration::from_millis(200);
const LOOKUP: Duration = Duration::from_millis(20);
/// How often those are looked for again that are waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// Until a peer answers that is there, and until one counts as not there.
const ANSWER: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_millis(400);
/// Whom a look-up finds, and how many of them are of the lowest ranks.
const FOUND: usize = 20;
const BY_RANK: usize = 10;
/// Announcements of one blob that are kept.
const KEPT: usize = 256;
const UPLOADS: usize = 64;
/// Layers at once.
const AT_ONCE: usize = 3;

/// A storm.
#[derive(Debug, Clone)]
struct Storm {
    nodes: u32,
    /// Bytes of each layer.
    layers: Vec<u64>,
    /// Nodes of a rack, and its uplink, in bytes a second each way.
    rack: u32,
    uplink: f64,
    /// A node's card, and the registry's.
    card: f64,
    origin: f64,
    /// The nodes begin evenly within this time.
    within: Duration,
    /// Parts of the nodes that leave within a minute; and whose card has a twentieth.
    leaving: f64,
    slow: f64,
    seed: u64,
    rules: Rules,
}

#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    /// Times that the registry gave the image.
    copies: f64,
    /// When nodes had it all, since they began, in order.
    took: Vec<Duration>,
    left: u32,
    /// Transfers that the registry began to give, and those of them that moved to a peer.
    begun: u32,
    moved: u32,
}

impl Outcome {
    fn part(&self, part: f64) -> Duration {
        let at = ((self.took.len() as f64 * part) as usize).min(self.took.len() - 1);
        self.took[at]
    }
}

/// Numbers from a seed (SplitMix64).
struct Dice(u64);

const fn mixed(number: u64) -> u64 {
    let mut mixed = number;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Dice {
    const fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let most = if most == 0 { 1 } else { most };
        mixed(self.0) % most
    }

    fn part(&mut self) -> f64 {
        self.below(1 << 40) as f64 / (1u64 << 40) as f64
    }
}

/// What an asked peer answers.
enum Reply {
    Gives,
    /// It does not, and others may.
    Not(End, Vec<u32>),
}

/// Looking for somebody who gives.
struct Search {
    fetch: Fetch<u32>,
    /// When the next look-up answers, and how many have.
    looks_at: Moment,
    looks: u32,
    /// When answers come, and whether anybody is there who answers.
    open: Vec<(Moment, u32, bool)>,
}

/// A layer that a node is fetching.
struct Flow {
    layer: usize,
    got: f64,
    /// What others could have of it when the slot began.
    before: f64,
    search: Option<Search>,
    /// Who gives; `u32::MAX` is the registry.
    from: Option<u32>,
    /// Whether he had not all of it when he began.
    relayed: bool,
    transfer: Transfer,
    failed: Vec<u32>,
    /// When somebody who is ahead of the registry is looked for, and how long until the next time.
    ahead: (Moment, Duration),
}

const ORIGIN: u32 = u32::MAX;

struct Node {
    begins: Moment,
    leaves: Option<Moment>,
    card: f64,
    next: usize,
    flows: Vec<Flow>,
    /// Layers that are whole.
    whole: Vec<bool>,
    done: usize,
    board: Board<u32>,
    /// Who takes each layer.
    takers: Vec<Vec<u32>>,
    uploads: usize,
    ended: Option<Moment>,
}

/// Those to whom a layer is coming, as far as it is heard.
#[derive(Default)]
struct Heard {
    comes: VecDeque<(Moment, u32)>,
    /// By rank.
    kept: Vec<(u64, u32)>,
    /// Who has all of it, and when that is heard.
    whole: Vec<(Moment, u32)>,
}

impl Heard {
    fn hear(&mut self, now: Moment, layer: usize) {
        while self.comes.front().is_some_and(|(heard, _)| *heard <= now) {
            let (_, node) = self.comes.pop_front().expect("just seen");
            let entry = (rank(node, layer), node);
            let place = self.kept.partition_point(|kept| *kept < entry);
            self.kept.insert(place, entry);
            self.kept.truncate(KEPT);
        }
    }
}

fn rank(node: u32, layer: usize) -> u64 {
    mixed(u64::from(node) << 20 | layer as u64)
}

struct World<'a> {
    storm: &'a Storm,
    nodes: Vec<Node>,
    /// Those that have begun, or will, and not ended.
    active: Vec<usize>,
    heard: Vec<Heard>,
    dice: Dice,
    given: f64,
    begun: u32,
    moved: u32,
}

fn run(storm: &Storm) -> Outcome {
    let mut world = World::new(storm);
    let mut now = Duration::ZERO;
    while !world.active.is_empty() {
        world.decide(now);
        now += SLOT;
        world.flow(now);
        world.active.retain(|at| world.nodes[*at].ended.is_none());
        assert!(now < Duration::from_secs(3600), "the storm does not end");
    }
    world.outcome()
}

impl<'a> World<'a> {
    fn new(storm: &'a Storm) -> Self {
        let mut dice = Dice(storm.seed);
        let layers = storm.layers.len();
        let nodes = (0..storm.nodes).map(|number| {
            let begins = storm.within.mul_f64(dice.part());
            let leaves = (dice.part() < storm.leaving).then(|| begins + Duration::from_secs(60).mul_f64(dice.part()));
            let card = if dice.part() < storm.slow { storm.card / 20.0 } else { storm.card };
            Node {
                begins,
                leaves,
                card,
                next: 0,
                flows: Vec::new(),
                whole: vec![false; layers],
                done: 0,
                board: Board::new(storm.rules.clone(), storm.seed ^ u64::from(number)),
                takers: vec![Vec::new(); layers],
                uploads: 0,
                ended: None,
            }
        });
        let nodes: Vec<Node> = nodes.collect();
        let active = (0..nodes.len()).collect();
        let heard = storm.layers.iter().map(|_| Heard::default()).collect();
        World { storm, nodes, active, heard, dice, given: 0.0, begun: 0, moved: 0 }
    }

    /// Everything that needs no time: who leaves, who begins, whom to ask, what was answered.
    fn decide(&mut self, now: Moment) {
        for (layer, heard) in self.heard.iter_mut().enumerate() {
            heard.hear(now, layer);
        }
        for index in 0..self.active.len() {
            let at = self.active[index];
            if self.nodes[at].leaves.is_some_and(|leaves| leaves <= now) {
                self.leave(at, now);
            }
            let node = &mut self.nodes[at];
            if node.ended.is_some() || node.begins > now {
                continue;
            }
            while node.flows.len() < AT_ONCE && node.next < self.storm.layers.len() {
                let layer = node.next;
                node.next += 1;
                self.heard[layer].comes.push_back((now + HEARD, at as u32));
                node.flows.push(Flow {
                    layer,
                    got: 0.0,
                    before: 0.0,
                    search: None,
                    from: None,
                    relayed: false,
                    transfer: Transfer::default(),
                    failed: Vec::new(),
                    ahead: (Moment::ZERO, Duration::ZERO),
                });
            }
            for flow in 0..self.nodes[at].flows.len() {
                let current = &self.nodes[at].flows[flow];
                if current.from.is_none() || current.from == Some(ORIGIN) && current.ahead.0 <= now {
                    self.search(at, flow, now);
                }
            }
        }
    }

    fn leave(&mut self, at: usize, now: Moment) {
        let flows = std::mem::take(&mut self.nodes[at].flows);
        for flow in flows {
            self.free(at, flow.from, flow.layer);
        }
        self.nodes[at].ended = Some(now);
    }

    /// A node takes a layer from this one no more.
    fn free(&mut self, at: usize, from: Option<u32>, layer: usize) {
        let Some(from) = from.filter(|from| *from != ORIGIN) else { return };
        let other = &mut self.nodes[from as usize];
        let takers = &mut other.takers[layer];
        let place = takers.iter().position(|taker| *taker as usize == at).expect("it took it");
        takers.swap_remove(place);
        other.uploads -= 1;
    }

    fn is_there(&self, peer: u32, now: Moment) -> bool {
        self.nodes[peer as usize].leaves.is_none_or(|leaves| leaves > now)
    }

    /// What a peer that is there answers, as the daemon does.
    fn answer(&self, peer: u32, layer: usize, got: f64) -> Reply {
        let node = &self.nodes[peer as usize];
        if !node.whole[layer] {
            let Some(flow) = node.flows.iter().find(|flow| flow.layer == layer) else {
                return Reply::Not(End::Missing, Vec::new());
            };
            match flow.from {
                _ if flow.got > got => {}
                _ if flow.got < got => return Reply::Not(End::Missing, Vec::new()),
                Some(ORIGIN) => {}
                Some(other) => return Reply::Not(End::Equal, vec![other]),
                None => return Reply::Not(End::Equal, Vec::new()),
            }
        }
        match &node.takers[layer] {
            takers if takers.len() >= self.storm.rules.fan_out => Reply::Not(End::Busy, takers.clone()),
            _ if node.uploads >= UPLOADS => Reply::Not(End::Busy, Vec::new()),
            _ => Reply::Gives,
        }
    }

    fn place(&mut self, at: usize, peer: u32, now: Moment) {
        let near = peer / self.storm.rack == at as u32 / self.storm.rack;
        self.nodes[at].board.place(now, &peer, near);
    }

    /// A look-up answers.
    fn look(&mut self, at: usize, layer: usize, search: &mut Search, now: Moment) {
        let heard = &self.heard[layer];
        let known = heard.whole.partition_point(|(heard, _)| *heard <= now);
        let mut found = Vec::new();
        for _ in 0..FOUND.min(known) {
            found.push((heard.whole[self.dice.below(known as u64) as usize].1, None));
        }
        let lowest = BY_RANK.min(heard.kept.len());
        found.extend(heard.kept[..lowest].iter().map(|(rank, node)| (*node, Some(*rank))));
        for _ in lowest..FOUND.min(heard.kept.len()) {
            let (rank, node) = heard.kept[lowest + self.dice.below((heard.kept.len() - lowest) as u64) as usize];
            found.push((node, Some(rank)));
        }
        for (peer, rank) in found.into_iter().filter(|(peer, _)| *peer as usize != at) {
            self.place(at, peer, now);
            search.fetch.found_coming(peer, rank);
        }
        search.looks += 1;
        // The second one is made when the announcement can have been heard.
        if search.looks >= 2 {
            search.fetch.looked();
        }
        search.looks_at = now + if search.looks == 1 { HEARD + LOOKUP } else { LOOK_AGAIN };
    }

    /// One step of a search, as the daemon makes it.
    fn search(&mut self, at: usize, flow: usize, now: Moment) {
        let mut current = self.nodes[at].flows.swap_remove(flow);
        let (layer, got, is_moving) = (current.layer, current.got, current.from == Some(ORIGIN));
        let mut search = current.search.take().unwrap_or_else(|| {
            let left = (self.storm.layers[layer] as f64 - got) as u64;
            let fetch = Fetch::new(now, left, &current.failed);
            let fetch = if is_moving { fetch.moving() } else { fetch.ranked(rank(at as u32, layer)) };
            // Of what moves the announcement was heard long ago.
            Search { fetch, looks_at: now + LOOKUP, looks: u32::from(is_moving), open: Vec::new() }
        });
        if search.looks_at <= now {
            self.look(at, layer, &mut search, now);
        }
        let (due, later) = search.open.iter().partition::<Vec<_>, _>(|(when, ..)| *when <= now);
        search.open = later;
        let mut gives = None;
        for (_, peer, is_there) in due {
            let reply = if is_there && self.is_there(peer, now) {
                self.answer(peer, layer, got)
            } else {
                Reply::Not(End::Unreachable, Vec::new())
            };
            let (end, others) = match reply {
                Reply::Gives if gives.is_none() => {
                    gives = Some(peer);
                    continue;
                }
                Reply::Gives => (End::Dropped, Vec::new()),
                Reply::Not(end, others) => (end, others),
            };
            self.nodes[at].board.ended(now, &peer, end);
            search.fetch.failed(now, &peer, end, None, &self.nodes[at].board);
            for other in others.into_iter().filter(|other| *other as usize != at) {
                self.place(at, other, now);
                search.fetch.found_coming(other, None);
            }
        }
        let mut over = false;
        while gives.is_none() && !over {
            match search.fetch.next(now, &mut self.nodes[at].board) {
                Step::Ask(peer) => {
                    let is_there = self.is_there(peer, now);
                    search.open.push((now + if is_there { ANSWER } else { SILENCE }, peer, is_there));
                }
                Step::Wait(_) => break,
                Step::Upstream(_) => over = true,
            }
        }
        if let Some(peer) = gives {
            self.nodes[at].board.answered(now, &peer, ANSWER, None);
            self.moved += u32::from(is_moving);
            self.take(at, &mut current, peer);
        } else if over && !is_moving {
            self.begun += 1;
            current.from = Some(ORIGIN);
            current.ahead = (now + self.storm.rules.ahead_after, self.storm.rules.ahead_after);
        } else if over {
            let pause = (current.ahead.1 * 2).min(self.storm.rules.ahead_most);
            current.ahead = (now + pause, pause);
        }
        if gives.is_some() || over {
            for (_, peer, _) in std::mem::take(&mut search.open) {
                self.nodes[at].board.ended(now, &peer, End::Dropped);
            }
        } else {
            current.search = Some(search);
        }
        let node = &mut self.nodes[at];
        node.flows.push(current);
        let last = node.flows.len() - 1;
        node.flows.swap(flow, last);
    }

    /// A peer gives from now on.
    fn take(&mut self, at: usize, flow: &mut Flow, peer: u32) {
        let other = &mut self.nodes[peer as usize];
        other.uploads += 1;
        other.takers[flow.layer].push(at as u32);
        flow.relayed = !other.whole[flow.layer];
        (flow.from, flow.transfer) = (Some(peer), Transfer::default());
    }

    /// How many transfers share what: cards out and in, uplinks out and in, the registry's card.
    fn shares(&self) -> Shares {
        let racks = self.nodes.len() / self.storm.rack as usize + 1;
        let mut shares = Shares {
            out: vec![0; self.nodes.len()],
            into: vec![0; self.nodes.len()],
            rack_out: vec![0; racks],
            rack_in: vec![0; racks],
            origin: 0,
        };
        for at in &self.active {
            for from in self.nodes[*at].flows.iter().filter_map(|flow| flow.from) {
                shares.into[*at] += 1;
                let rack = at / self.storm.rack as usize;
                if from == ORIGIN {
                    shares.origin += 1;
                    shares.rack_in[rack] += 1;
                } else {
                    shares.out[from as usize] += 1;
                    let other = (from / self.storm.rack) as usize;
                    if other != rack {
                        shares.rack_out[other] += 1;
                        shares.rack_in[rack] += 1;
                    }
                }
            }
        }
        shares
    }

    /// Bytes of one slot.
    fn flow(&mut self, now: Moment) {
        let shares = self.shares();
        let storm = self.storm;
        for at in &self.active {
            self.nodes[*at].flows.iter_mut().for_each(|flow| flow.before = flow.got);
        }
        for index in 0..self.active.len() {
            let (at, mut flow) = (self.active[index], 0);
            while flow < self.nodes[at].flows.len() {
                let Some(from) = self.nodes[at].flows[flow].from else {
                    flow += 1;
                    continue;
                };
                let rate = self.rate(at, from, &shares);
                if self.came(at, flow, from, rate * SLOT.as_secs_f64(), now) {
                    flow += 1;
                }
            }
            let node = &mut self.nodes[at];
            if node.done == storm.layers.len() && node.ended.is_none() {
                node.ended = Some(now);
                // Whoever has it goes on giving.
                node.leaves = node.leaves.filter(|leaves| *leaves > now);
            }
        }
    }

    fn rate(&self, at: usize, from: u32, shares: &Shares) -> f64 {
        let storm = self.storm;
        let (rack, other) = (at / storm.rack as usize, (from / storm.rack) as usize);
        let own = self.nodes[at].card / f64::from(shares.into[at]);
        if from == ORIGIN {
            return own
                .min(storm.origin / f64::from(shares.origin))
                .min(storm.uplink / f64::from(shares.rack_in[rack]));
        }
        let rate = own.min(self.nodes[from as usize].card / f64::from(shares.out[from as usize]));
        if other == rack {
            return rate;
        }
        let rate = rate.min(storm.uplink / f64::from(shares.rack_out[other]));
        rate.min(storm.uplink / f64::from(shares.rack_in[rack]))
    }

    /// What a peer has of a layer that could be given on when the slot began.
    fn has(&self, peer: u32, layer: usize) -> f64 {
        let node = &self.nodes[peer as usize];
        let size = self.storm.layers[layer] as f64;
        // One that became whole in this slot gave its last byte in this slot.
        node.flows.iter().find(|flow| flow.layer == layer).map_or(size, |flow| flow.before)
    }

    /// Bytes of one transfer in one slot; false if the layer is whole.
    fn came(&mut self, at: usize, index: usize, from: u32, bytes: f64, now: Moment) -> bool {
        let is_gone = from != ORIGIN && !self.is_there(from, now);
        let layer = self.nodes[at].flows[index].layer;
        let size = self.storm.layers[layer] as f64;
        let there = if from == ORIGIN { size } else { self.has(from, layer) };
        let node = &mut self.nodes[at];
        let rules = &self.storm.rules;
        let flow = &mut node.flows[index];
        let bytes = if is_gone { 0.0 } else { bytes.min(there - flow.got).max(0.0) };
        flow.got += bytes;
        if from == ORIGIN {
            self.given += bytes;
        } else {
            flow.transfer.wait(now.saturating_sub(SLOT));
            if bytes > 0.0 {
                flow.transfer.came(now, bytes as u64, rules);
            }
        }
        if size - flow.got < 1.0 {
            let flow = node.flows.swap_remove(index);
            node.done += 1;
            node.whole[layer] = true;
            if let Some(search) = flow.search {
                search.open.iter().for_each(|(_, peer, _)| node.board.ended(now, peer, End::Dropped));
            }
            if from != ORIGIN {
                let end = End::Given { bytes: flow.transfer.bytes(), waited: flow.transfer.waited() };
                node.board.ended(now, &from, end);
                self.free(at, Some(from), layer);
            }
            self.heard[layer].whole.push((now + HEARD, at as u32));
            return false;
        }
        let patient = if flow.relayed { rules.for_relays() } else { rules.clone() };
        if from != ORIGIN && (is_gone || !matches!(flow.transfer.judge(now, &patient), Verdict::GoOn(_))) {
            (flow.from, flow.search) = (None, None);
            flow.failed.push(from);
            let end = if is_gone || flow.relayed { End::Broken } else { End::Slow };
            node.board.ended(now, &from, end);
            self.free(at, Some(from), layer);
        }
        true
    }

    fn outcome(&self) -> Outcome {
        let image: u64 = self.storm.layers.iter().sum();
        let whole = self.nodes.iter().filter(|node| node.done == self.storm.layers.len());
        let mut took: Vec<Duration> = whole.map(|node| node.ended.unwrap_or_default() - node.begins).collect();
        took.sort_unstable();
        let left = (self.nodes.len() - took.len()) as u32;
        Outcome { copies: self.given / image as f64, took, left, begun: self.begun, moved: self.moved }
    }
}

struct Shares {
    out: Vec<u32>,
    into: Vec<u32>,
    rack_out: Vec<u32>,
    rack_in: Vec<u32>,
    origin: u32,
}

/// Ten layers, 300 MB in all, on cards of 10 Gbit/s in racks of 40 with uplinks of 40 Gbit/s; a registry of 10 Gbit/s.
fn storm(nodes: u32, within: Duration) -> Storm {
    let layers = [120, 60, 40, 30, 20, 12, 8, 5, 3, 2].map(|mb| mb * 1_000_000).to_vec();
    let (card, uplink) = (1.25e9, 5e9);
    // A node remembers ten thousand others; here a hundred thousand nodes would.
    let rules = Rules { peers: if nodes > 2_000 { 64 } else { Rules::default().peers }, ..Rules::default() };
    Storm { nodes, layers, rack: 40, uplink, card, origin: 1.25e9, within, leaving: 0.02, slow: 0.02, seed: 7, rules }
}

/// Runs a storm and says how it went.
fn told(what: &str, storm: &Storm) -> Outcome {
    let outcome = run(storm);
    let [half, most, worst] = [0.5, 0.99, 1.0].map(|part| outcome.part(part).as_secs_f64());
    eprintln!(
        "storm: {what}: {:.2} copies from the registry, p50 {half:.2} s, p99 {most:.2} s, last {worst:.2} s, {} left; the registry began {} transfers, {} of them moved",
        outcome.copies, outcome.left, outcome.begun, outcome.moved
    );
    outcome
}

#[test]
fn a_storm_ends_for_everybody_with_a_copy_or_two_and_its_seed_decides_it() {
    let nodes = tier::amount("ORLOP_TEST_NODES", 100);
    let mut table = BTreeMap::new();
    for seconds in [0, 30] {
        let storm = storm(nodes, Duration::from_secs(seconds));
        let outcome = told(&format!("{nodes} nodes within {seconds} s"), &storm);
        assert!(f64::from(outcome.left) <= f64::from(nodes) * 0.1, "{}", outcome.left);
        table.insert(seconds, outcome);
    }
    for outcome in table.values() {
        assert!(outcome.copies <= 6.0, "{}", outcome.copies);
    }
    let few = storm(50, Duration::from_secs(5));
    assert_eq!(run(&few), run(&few));
    assert_ne!(run(&few), run(&Storm { seed: 8, ..few.clone() }));
}

#[test]
fn a_crowd_on_a_slow_registry_is_served_by_its_own() {
    // A registry of 1 Gbit/s, and two hundred nodes that begin within a minute.
    let mut slow = storm(200, Duration::from_secs(60));
    (slow.origin, slow.leaving) = (125e6, 0.0);
    let peers = told("200 nodes within 60 s, a registry of 1 Gbit/s", &slow);
    let alone = f64::from(slow.nodes) * slow.layers.iter().sum::<u64>() as f64 / slow.origin;
    eprintln!("storm: {alone:.0} s without peers");
    assert!(peers.part(1.0).as_secs_f64() < alone / 2.0);
    assert_eq!(peers.left, 0);
}

#[test]
fn eight_nodes_at_once_take_little_more_than_a_copy() {
    // Everything of 200 Mbit/s, and an image of 12 MB, as it is measured with daemons.
    let mut eight = storm(8, Duration::ZERO);
    (eight.layers, eight.card, eight.origin) = (vec![4_000_000; 3], 25e6, 25e6);
    (eight.leaving, eight.slow) = (0.0, 0.0);
    let outcome = told("8 nodes at the same moment, 200 Mbit/s", &eight);
    assert!(outcome.copies <= 1.2, "{}", outcome.copies);
    assert_eq!(outcome.left, 0);
}
