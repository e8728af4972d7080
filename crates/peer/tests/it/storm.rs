//! Pull storms on a virtual network with a virtual clock, decided by the code that decides in the daemon.
//!
//! What is modelled: network cards, uplinks of racks, the registry's card, each shared evenly by what goes over it; look-ups that
//! find at most 20 of those who announced; uploads at once; nodes that leave; nodes whose card is slow. What is not: disks,
//! unpacking, lost packets, the cost of Kademlia itself. Time goes in slots of 20 ms.

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_peer::schedule::{Board, End, Fetch, Moment, Rules, Step, Transfer, Verdict};
use orlop_testkit::tier;

const SLOT: Duration = Duration::from_millis(20);
/// Until an announcement is found, and until a look-up answers.
const HEARD: Duration = Duration::from_millis(200);
const LOOKUP: Duration = Duration::from_millis(20);
/// Until a peer answers that is there, and until one counts as not there.
const ANSWER: Duration = Duration::from_millis(20);
const SILENCE: Duration = Duration::from_millis(400);
const FOUND: usize = 20;
const UPLOADS: u32 = 64;
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
}

#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    /// Times that the registry gave the image.
    copies: f64,
    /// When nodes had it all, since they began, in order.
    took: Vec<Duration>,
    left: u32,
}

impl Outcome {
    fn part(&self, part: f64) -> Duration {
        let at = ((self.took.len() as f64 * part) as usize).min(self.took.len() - 1);
        self.took[at]
    }
}

/// Numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most.max(1)
    }

    fn part(&mut self) -> f64 {
        self.below(1 << 40) as f64 / (1u64 << 40) as f64
    }
}

/// What an asked peer will answer.
#[derive(Clone, Copy)]
enum Reply {
    Gives,
    Busy,
    Silence,
}

/// A layer that a node is fetching.
struct Flow {
    layer: usize,
    left: f64,
    fetch: Option<Fetch<u32>>,
    looked_at: Moment,
    replies: Vec<(Moment, u32, Reply)>,
    /// Who gives; `u32::MAX` is the registry.
    from: Option<u32>,
    transfer: Transfer,
    failed: Vec<u32>,
}

const ORIGIN: u32 = u32::MAX;

struct Node {
    begins: Moment,
    leaves: Option<Moment>,
    card: f64,
    next: usize,
    flows: Vec<Flow>,
    done: usize,
    board: Board<u32>,
    uploads: u32,
    ended: Option<Moment>,
}

struct World<'a> {
    storm: &'a Storm,
    nodes: Vec<Node>,
    /// Who announced each layer, and when that is heard.
    have: Vec<Vec<(Moment, u32)>>,
    dice: Dice,
    given: f64,
}

fn run(storm: &Storm) -> Outcome {
    let mut world = World::new(storm);
    let mut now = Duration::ZERO;
    while world.nodes.iter().any(|node| node.ended.is_none()) {
        world.decide(now);
        now += SLOT;
        world.flow(now);
        assert!(now < Duration::from_secs(3600), "the storm does not end");
    }
    world.outcome()
}

impl<'a> World<'a> {
    fn new(storm: &'a Storm) -> Self {
        let mut dice = Dice(storm.seed);
        let nodes = (0..storm.nodes).map(|number| {
            let begins = storm.within.mul_f64(dice.part());
            let leaves = (dice.part() < storm.leaving).then(|| begins + Duration::from_secs(60).mul_f64(dice.part()));
            let card = if dice.part() < storm.slow { storm.card / 20.0 } else { storm.card };
            let board = Board::new(Rules::default(), storm.seed ^ u64::from(number));
            Node { begins, leaves, card, next: 0, flows: Vec::new(), done: 0, board, uploads: 0, ended: None }
        });
        let nodes = nodes.collect();
        World { storm, nodes, have: vec![Vec::new(); storm.layers.len()], dice, given: 0.0 }
    }

    /// Everything that needs no time: who leaves, who begins, whom to ask, what was answered.
    fn decide(&mut self, now: Moment) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].leaves.is_some_and(|leaves| leaves <= now) && self.nodes[at].ended.is_none() {
                self.leave(at, now);
            }
            let node = &mut self.nodes[at];
            if node.ended.is_some() || node.begins > now {
                continue;
            }
            while node.flows.len() < AT_ONCE && node.next < self.storm.layers.len() {
                let (layer, left) = (node.next, self.storm.layers[node.next] as f64);
                node.next += 1;
                node.flows.push(Flow {
                    layer,
                    left,
                    fetch: None,
                    looked_at: now,
                    replies: Vec::new(),
                    from: None,
                    transfer: Transfer::default(),
                    failed: Vec::new(),
                });
            }
            for flow in 0..self.nodes[at].flows.len() {
                if self.nodes[at].flows[flow].from.is_none() {
                    self.search(at, flow, now);
                }
            }
        }
    }

    fn leave(&mut self, at: usize, now: Moment) {
        let flows = std::mem::take(&mut self.nodes[at].flows);
        for from in flows.iter().filter_map(|flow| flow.from).filter(|from| *from != ORIGIN) {
            self.nodes[from as usize].uploads -= 1;
        }
        self.nodes[at].ended = Some(now);
    }

    fn is_there(&self, peer: u32, now: Moment) -> bool {
        self.nodes[peer as usize].leaves.is_none_or(|leaves| leaves > now)
    }

    /// One step of a search, as the daemon makes it.
    fn search(&mut self, at: usize, flow: usize, now: Moment) {
        let mut current = self.nodes[at].flows.swap_remove(flow);
        let size = current.left as u64;
        if current.fetch.is_none() {
            current.fetch = Some(Fetch::new(now, size, &current.failed));
            current.looked_at = now + LOOKUP;
        }
        let fetch = current.fetch.as_mut().expect("just made");
        if current.looked_at <= now && current.looked_at != Moment::MAX {
            let known = &self.have[current.layer];
            let heard = known.partition_point(|(heard, _)| *heard <= now);
            for _ in 0..FOUND.min(heard) {
                let (_, peer) = known[self.dice.below(heard as u64) as usize];
                if peer as usize != at {
                    self.nodes[at].board.place(now, &peer, peer / self.storm.rack == at as u32 / self.storm.rack);
                    fetch.found([peer]);
                }
            }
            fetch.looked();
            current.looked_at = Moment::MAX;
        }
        let (due, later) = current.replies.iter().partition::<Vec<_>, _>(|(when, ..)| *when <= now);
        current.replies = later;
        for (_, peer, reply) in due {
            if matches!(reply, Reply::Gives) && current.from.is_none() && self.nodes[peer as usize].uploads < UPLOADS {
                self.nodes[peer as usize].uploads += 1;
                self.nodes[at].board.answered(now, &peer, ANSWER, None);
                current.from = Some(peer);
                continue;
            }
            let end = match reply {
                Reply::Gives if current.from.is_some() => End::Dropped,
                Reply::Gives | Reply::Busy => End::Busy,
                Reply::Silence => End::Unreachable,
            };
            let board = &mut self.nodes[at].board;
            board.ended(now, &peer, end);
            fetch.failed(now, &peer, end, (end == End::Busy).then_some(now + Duration::from_secs(1)), board);
        }
        while current.from.is_none() {
            match fetch.next(now, &mut self.nodes[at].board) {
                Step::Ask(peer) => {
                    let reply = match self.is_there(peer, now) {
                        false => (now + SILENCE, peer, Reply::Silence),
                        true if self.nodes[peer as usize].uploads >= UPLOADS => (now + ANSWER, peer, Reply::Busy),
                        true => (now + ANSWER, peer, Reply::Gives),
                    };
                    current.replies.push(reply);
                }
                Step::Wait(_) => break,
                Step::Upstream(_) => current.from = Some(ORIGIN),
            }
        }
        if current.from.is_some() {
            for (_, peer, _) in std::mem::take(&mut current.replies) {
                self.nodes[at].board.ended(now, &peer, End::Dropped);
            }
            current.transfer = Transfer::default();
        }
        let node = &mut self.nodes[at];
        node.flows.push(current);
        let last = node.flows.len() - 1;
        node.flows.swap(flow, last);
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
        for (at, node) in self.nodes.iter().enumerate() {
            for from in node.flows.iter().filter_map(|flow| flow.from) {
                shares.into[at] += 1;
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
        for at in 0..self.nodes.len() {
            let mut flow = 0;
            while flow < self.nodes[at].flows.len() {
                let Some(from) = self.nodes[at].flows[flow].from else {
                    flow += 1;
                    continue;
                };
                let (rack, other) = (at / storm.rack as usize, from / storm.rack);
                let mut rate = self.nodes[at].card / f64::from(shares.into[at]);
                if from == ORIGIN {
                    rate = rate
                        .min(storm.origin / f64::from(shares.origin))
                        .min(storm.uplink / f64::from(shares.rack_in[rack]));
                } else {
                    rate = rate.min(self.nodes[from as usize].card / f64::from(shares.out[from as usize]));
                    if other as usize != rack {
                        rate = rate.min(storm.uplink / f64::from(shares.rack_out[other as usize]));
                        rate = rate.min(storm.uplink / f64::from(shares.rack_in[rack]));
                    }
                }
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

    /// Bytes of one transfer in one slot; false if the layer is whole.
    fn came(&mut self, at: usize, index: usize, from: u32, bytes: f64, now: Moment) -> bool {
        let is_gone = from != ORIGIN && !self.is_there(from, now);
        let node = &mut self.nodes[at];
        let rules = node.board.rules().clone();
        let flow = &mut node.flows[index];
        let bytes = if is_gone { 0.0 } else { bytes.min(flow.left) };
        flow.left -= bytes;
        if from == ORIGIN {
            self.given += bytes;
        } else {
            flow.transfer.wait(now.saturating_sub(SLOT));
            if bytes > 0.0 {
                flow.transfer.came(now, bytes as u64, &rules);
            }
        }
        if flow.left < 1.0 {
            let (layer, transfer) = (flow.layer, flow.transfer.clone());
            node.flows.swap_remove(index);
            node.done += 1;
            if from != ORIGIN {
                let end = End::Given { bytes: transfer.bytes(), waited: transfer.waited() };
                node.board.ended(now, &from, end);
                self.nodes[from as usize].uploads -= 1;
            }
            self.have[layer].push((now + HEARD, at as u32));
            return false;
        }
        if from != ORIGIN && (is_gone || !matches!(flow.transfer.judge(now, &rules), Verdict::GoOn(_))) {
            flow.from = None;
            flow.fetch = None;
            flow.failed.push(from);
            node.board.ended(now, &from, if is_gone { End::Broken } else { End::Slow });
            self.nodes[from as usize].uploads -= 1;
        }
        true
    }

    fn outcome(&self) -> Outcome {
        let image: u64 = self.storm.layers.iter().sum();
        let whole = self.nodes.iter().filter(|node| node.done == self.storm.layers.len());
        let mut took: Vec<Duration> = whole.map(|node| node.ended.unwrap_or_default() - node.begins).collect();
        took.sort_unstable();
        let left = (self.nodes.len() - took.len()) as u32;
        Outcome { copies: self.given / image as f64, took, left }
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
    Storm { nodes, layers, rack: 40, uplink, card, origin: 1.25e9, within, leaving: 0.02, slow: 0.02, seed: 7 }
}

#[test]
fn a_storm_ends_for_everybody_and_its_seed_decides_it() {
    let nodes = tier::amount("ORLOP_TEST_NODES", 100);
    let mut table = BTreeMap::new();
    for seconds in [0, 30] {
        let storm = storm(nodes, Duration::from_secs(seconds));
        let outcome = run(&storm);
        let [half, most, worst] = [0.5, 0.99, 1.0].map(|part| outcome.part(part).as_secs_f64());
        eprintln!(
            "storm: {nodes} nodes within {seconds} s: {:.1} copies from the registry, p50 {half:.2} s, p99 {most:.2} s, last {worst:.2} s, {} left",
            outcome.copies, outcome.left
        );
        assert!(f64::from(outcome.left) <= f64::from(nodes) * 0.1, "{}", outcome.left);
        table.insert(seconds, outcome);
    }
    // Those that come one after the other find what the first ones have.
    assert!(table[&30].copies < table[&0].copies * 0.6, "{}", table[&30].copies);
    let few = storm(50, Duration::from_secs(5));
    assert_eq!(run(&few), run(&few));
    assert_ne!(run(&few), run(&Storm { seed: 8, ..few.clone() }));
}

#[test]
fn a_crowd_on_a_slow_registry_is_served_by_its_own() {
    // A registry of 1 Gbit/s, and two hundred nodes that begin within a minute.
    let mut slow = storm(200, Duration::from_secs(60));
    (slow.origin, slow.leaving) = (125e6, 0.0);
    let peers = run(&slow);
    let alone = f64::from(slow.nodes) * slow.layers.iter().sum::<u64>() as f64 / slow.origin;
    let last = peers.part(1.0).as_secs_f64();
    eprintln!(
        "storm: 200 nodes within 60 s, 1 Gbit/s: {:.1} copies, last {last:.1} s; {alone:.0} s without peers",
        peers.copies
    );
    assert!(last < alone / 2.0);
    assert_eq!(peers.left, 0);
}
