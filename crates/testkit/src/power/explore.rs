//! The states that a power cut may leave.
//!
//! Between two syncs nothing new becomes durable, so that what a cut may leave at any moment between them is what it may leave at
//! the end, right before the second: each state is a choice among the operations that no sync has covered by then. Such an end
//! is a *point*; a mark makes one too, since more is promised after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::disk::{Disk, How, Ino, Name, Op, TOP};
use super::timeline::{Step, Timeline, words};

/// Up to so many operations that no sync has covered, all subsets are tried.
const SUBSETS: usize = 8;

/// What a disk does not tear.
const SECTOR: usize = 512;

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// What choices are drawn by.
    pub seed: u64,
    /// The most states of one point; `None`: all prefixes and all subsets of the last eight operations, and as many drawn ones
    /// again.
    pub of_point: Option<usize>,
}

/// What was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Explored {
    /// Points in time.
    pub points: usize,
    /// Choices, of which many come to the same.
    pub choices: usize,
    /// States that differ.
    pub states: usize,
}

/// A state after a power cut.
#[derive(Debug)]
pub struct State<'a> {
    /// What is there.
    pub disk: Disk,
    /// How many marks were set before.
    pub marks: usize,
    /// Its number, from 0 on, which is the same for the same timeline and amount.
    pub number: usize,
    point: usize,
    choice: &'a [(usize, How)],
    ops: &'a [Arc<Op>],
}

impl Timeline {
    /// Shows every state to `each`, until it says that it has seen enough.
    pub fn explore(&self, amount: Amount, each: &mut dyn FnMut(&State<'_>) -> bool) -> Explored {
        let ops: Vec<Arc<Op>> = self.operations().cloned().map(Arc::new).collect();
        let mut explorer = Explorer {
            ops: &ops,
            settled: self.start.clone(),
            tail: Vec::new(),
            marks: 0,
            amount,
            seen: HashSet::new(),
            explored: Explored::default(),
        };
        let (mut next, mut since) = (0, 0);
        for step in self.steps.iter().map(Some).chain([None]) {
            if let Some(Step::Op(_)) = step {
                explorer.tail.push((next, false));
                (next, since) = (next + 1, since + 1);
                continue;
            }
            if !explorer.point(since, each) {
                break;
            }
            since = 0;
            match step {
                Some(Step::Sync(settled)) => explorer.settle(settled),
                Some(Step::Mark) => explorer.marks += 1,
                _ => {}
            }
        }
        explorer.explored
    }
}

struct Explorer<'a> {
    ops: &'a [Arc<Op>],
    /// All operations that are durable and rest on no other.
    settled: Disk,
    /// The others, in order, and whether they are durable.
    tail: Vec<(usize, bool)>,
    marks: usize,
    amount: Amount,
    seen: HashSet<(usize, [u8; 32])>,
    explored: Explored,
}

impl Explorer<'_> {
    /// Tries what may be left at a point before which there were `new` operations since the last.
    fn point(&mut self, new: usize, each: &mut dyn FnMut(&State<'_>) -> bool) -> bool {
        self.explored.points += 1;
        let open: Vec<usize> = self.tail.iter().filter(|(_, durable)| !durable).map(|(op, _)| *op).collect();
        let writes: Vec<Option<usize>> = open
            .iter()
            .map(|op| match &*self.ops[*op] {
                Op::Write { bytes, .. } => Some(bytes.len()),
                _ => None,
            })
            .collect();
        let seed = self.amount.seed ^ ((self.explored.points as u64) << 20);
        for choice in choices(&writes, new.min(open.len()), self.amount.of_point, seed) {
            self.explored.choices += 1;
            let choice: Vec<(usize, How)> = open.iter().copied().zip(choice).collect();
            let disk = self.disk(&choice);
            if !self.seen.insert((self.marks, disk.digest())) {
                continue;
            }
            let (marks, number, point) = (self.marks, self.explored.states, self.explored.points);
            self.explored.states += 1;
            if !each(&State { disk, marks, number, point, choice: &choice, ops: self.ops }) {
                return false;
            }
        }
        true
    }

    fn disk(&self, choice: &[(usize, How)]) -> Disk {
        let (mut disk, mut choices) = (self.settled.clone(), choice.iter());
        for (op, durable) in &self.tail {
            let how = if *durable { How::Whole } else { choices.next().map_or(How::Lost, |(_, how)| *how) };
            disk.apply(&self.ops[*op], how);
        }
        disk
    }

    fn settle(&mut self, settled: &[usize]) {
        for (op, durable) in &mut self.tail {
            *durable |= settled.binary_search(op).is_ok();
        }
        // A durable operation that rests on nothing open is done for good.
        let mut open = BTreeSet::new();
        let (ops, disk) = (self.ops, &mut self.settled);
        self.tail.retain(|(op, durable)| {
            let (changed, below) = touched(&ops[*op]);
            let stays = !*durable || changed.iter().chain(&below).any(|what| open.contains(what));
            if stays {
                open.extend(changed);
            } else {
                disk.apply(&ops[*op], How::Whole);
            }
            stays
        });
        self.forget();
    }

    /// Leaves out operations on nodes that have no name any more and will get none: they make no difference.
    fn forget(&mut self) {
        let mut named: BTreeSet<Ino> = self.settled.reachable();
        for (op, _) in &self.tail {
            match &*self.ops[*op] {
                Op::Make { node, .. } | Op::Link { node, .. } | Op::Rename { node, .. } => {
                    named.insert(*node);
                }
                Op::Exchange { nodes, .. } => named.extend([nodes.0, nodes.1]),
                _ => {}
            }
        }
        self.tail.retain(|(op, _)| match &*self.ops[*op] {
            Op::Write { node, .. } | Op::Resize { node, .. } | Op::Change { node, .. } => named.contains(node),
            _ => true,
        });
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Node(Ino),
    Bytes(Ino),
    Name(Name),
}

/// What an operation changes, and what else it rests on.
fn touched(op: &Op) -> (Vec<What>, Vec<What>) {
    match op {
        Op::Make { at: None, node, .. } => (vec![What::Node(*node)], Vec::new()),
        Op::Make { at: Some(at), node, .. } => {
            (vec![What::Node(*node), What::Name(at.clone())], vec![What::Node(at.0)])
        }
        Op::Link { at, node } | Op::Unlink { at, node } => {
            (vec![What::Name(at.clone())], vec![What::Node(*node), What::Node(at.0)])
        }
        Op::Rename { from, to, node } => (
            vec![What::Name(from.clone()), What::Name(to.clone())],
            vec![What::Node(*node), What::Node(from.0), What::Node(to.0)],
        ),
        Op::Exchange { a, b, nodes } => (
            vec![What::Name(a.clone()), What::Name(b.clone())],
            vec![What::Node(nodes.0), What::Node(nodes.1), What::Node(a.0), What::Node(b.0)],
        ),
        Op::Write { node, .. } | Op::Resize { node, .. } => (vec![What::Bytes(*node)], vec![What::Node(*node)]),
        // Each may be lost by itself, but the last one is right.
        Op::Change { node, .. } => (vec![What::Bytes(*node)], vec![What::Node(*node)]),
    }
}

/// Choices of what becomes of operations, of which the last `new` came since the last point. `writes` are the lengths of those
/// that write.
fn choices(writes: &[Option<usize>], new: usize, most: Option<usize>, seed: u64) -> Vec<Vec<How>> {
    let count = writes.len();
    let old = count - new;
    let mut draw = Draw(seed);
    let whole = |from: usize, to: usize| {
        (0..count).map(move |at| if (from..to).contains(&at) { How::Whole } else { How::Lost })
    };
    let mut all: Vec<Vec<How>> = Vec::new();
    // Nothing, everything, and everything up to some operation, with and without what was open before.
    for last in old..=count {
        all.push(whole(0, last).collect());
        all.push(whole(old, last).collect());
    }
    // All subsets of the last ones, with and without what was open before them.
    let few = count.min(SUBSETS);
    for subset in 0..1_usize << few {
        for before in if count > few { &[How::Whole, How::Lost][..] } else { &[How::Lost] } {
            let last = (0..few).map(|at| if subset >> at & 1 == 1 { How::Whole } else { How::Lost });
            all.push(std::iter::repeat_n(*before, count - few).chain(last).collect());
        }
    }
    // One write torn, with everything, or nothing after it.
    for (at, length) in writes.iter().enumerate().filter_map(|(at, length)| Some((at, (*length)?))) {
        for how in [Some(How::Hollow), torn(length, &mut draw), torn(length, &mut draw)].into_iter().flatten() {
            for last in [at + 1, count] {
                let mut choice: Vec<How> = whole(0, last).collect();
                choice[at] = how;
                all.push(choice);
            }
        }
    }
    // Anything.
    for _ in 0..most.unwrap_or(all.len()) {
        let odds = [1, 4, 8, 12, 15][draw.below(5)];
        let drawn = writes.iter().map(|length| match length {
            _ if draw.below(16) >= odds => How::Lost,
            Some(length) if draw.below(8) == 0 => torn(*length, &mut draw).unwrap_or(How::Hollow),
            _ => How::Whole,
        });
        all.push(drawn.collect());
    }
    if let Some(most) = most {
        // Those drawn first are kept.
        for at in 0..all.len().min(most) {
            let other = at + draw.below(all.len() - at);
            all.swap(at, other);
        }
        all.truncate(most);
    }
    all
}

/// A write that is torn somewhere; `None` if it is too short.
fn torn(length: usize, draw: &mut Draw) -> Option<How> {
    let inner = length.saturating_sub(1) / SECTOR;
    (inner > 0).then(|| {
        let cut = (1 + draw.below(inner)) * SECTOR;
        if draw.below(2) == 0 { How::Front(cut) } else { How::Back(cut) }
    })
}

/// Numbers that are the same for the same seed: splitmix64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

impl Disk {
    fn reachable(&self) -> BTreeSet<Ino> {
        let (mut found, mut ahead) = (BTreeSet::new(), vec![TOP]);
        while let Some(ino) = ahead.pop() {
            if found.insert(ino) {
                ahead.extend(self.names(ino).into_iter().flatten().map(|(_, below)| *below));
            }
        }
        found
    }
}

impl State<'_> {
    /// Which operations no sync had covered, and what became of each.
    pub fn story(&self) -> String {
        let mut names: BTreeMap<Ino, String> = BTreeMap::from([(TOP, String::new())]);
        for op in self.ops {
            let named = match &**op {
                Op::Make { at: Some(at), node, .. } => Some((at, node)),
                Op::Link { at, node } => Some((at, node)),
                Op::Rename { to, node, .. } => Some((to, node)),
                _ => None,
            };
            if let Some((at, node)) = named {
                let above = names.get(&at.0).cloned().unwrap_or_else(|| format!("#{}", at.0));
                names.insert(*node, format!("{above}/{}", at.1.escape_ascii()));
            }
        }
        let path = |ino: Ino| names.get(&ino).cloned().unwrap_or_else(|| format!("#{ino}"));
        let mut story =
            format!("state {} of point {}, after {} marks; not durable:\n", self.number, self.point, self.marks);
        for (op, how) in self.choice {
            story.push_str(&format!("  {:<12} {op} {}\n", format!("{how:?}"), words(&self.ops[*op], path)));
        }
        story
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Kind, Node};
    use super::super::timeline::Synced;
    use super::*;

    const ALL: Amount = Amount { seed: 1, of_point: None };

    fn node(kind: Kind) -> Arc<Node> {
        Arc::new(Node { kind, mode: 0o644, owner: (0, 0), time: None, xattrs: BTreeMap::new() })
    }

    /// Makes a file of 600 bytes as `new`, maybe syncs it, renames it to `name`, maybe syncs the directory, and answers.
    fn replaced(sync_file: bool, sync_directory: bool) -> Timeline {
        let directory = tempfile::tempdir().unwrap();
        let mut timeline = Timeline::new(Disk::read(directory.path()).unwrap());
        let (new, name) = ((TOP, b"new".to_vec()), (TOP, b"name".to_vec()));
        timeline.op(Op::Make { at: Some(new.clone()), node: 1, is: node(Kind::file()) });
        timeline.op(Op::Write { node: 1, offset: 0, bytes: Arc::new(vec![7; 600]) });
        if sync_file {
            timeline.sync(Synced::Node { node: 1, attributes: true }, timeline.ops);
        }
        timeline.op(Op::Rename { from: new, to: name, node: 1 });
        if sync_directory {
            timeline.sync(Synced::Node { node: TOP, attributes: true }, timeline.ops);
        }
        timeline.mark();
        timeline
    }

    /// What may be found under the name: how many bytes there are, and how many of them are right.
    fn found(timeline: &Timeline, answered: bool) -> BTreeSet<Option<(u64, usize)>> {
        let mut found = BTreeSet::new();
        timeline.explore(ALL, &mut |state| {
            if (state.marks > 0) == answered {
                let file = state.disk.find(&(TOP, b"name".to_vec())).and_then(|file| state.disk.node(file));
                found.insert(file.map(|file| match &file.kind {
                    Kind::File { data, length } => (*length, data.iter().filter(|byte| **byte == 7).count()),
                    other => panic!("{other:?}"),
                }));
            }
            true
        });
        found
    }

    #[test]
    fn a_file_that_is_renamed_before_it_is_synced_may_be_empty_hollow_or_torn() {
        let all = [None, Some((0, 0)), Some((600, 0)), Some((600, 88)), Some((600, 512)), Some((600, 600))];
        assert_eq!(found(&replaced(false, true), false), BTreeSet::from(all));
        let renamed = all.into_iter().flatten().map(Some).collect();
        assert_eq!(found(&replaced(false, true), true), renamed, "the name is durable, the bytes are not");
    }

    #[test]
    fn what_is_synced_in_order_is_there_or_is_not() {
        let whole = Some((600, 600));
        assert_eq!(found(&replaced(true, true), false), BTreeSet::from([None, whole]));
        assert_eq!(found(&replaced(true, true), true), BTreeSet::from([whole]));
        assert_eq!(found(&replaced(true, false), true), BTreeSet::from([None, whole]), "without its directory");
    }

    #[test]
    fn the_same_seed_shows_the_same_states_and_a_limit_is_kept() {
        let states = |amount: Amount| {
            let mut stories = Vec::new();
            let timeline = replaced(false, true);
            let explored = timeline.explore(amount, &mut |state| {
                stories.push(state.story());
                true
            });
            (explored, stories)
        };
        let few = Amount { seed: 5, of_point: Some(3) };
        assert_eq!(states(few), states(few));
        assert_ne!(states(few).1, states(Amount { seed: 6, ..few }).1);
        let (explored, stories) = states(few);
        assert!(explored.choices <= 3 * explored.points && stories.len() == explored.states, "{explored:?}");
        let mut seen = 0;
        replaced(false, true).explore(ALL, &mut |_| {
            seen += 1;
            seen < 2
        });
        assert_eq!(seen, 2, "it ends when it is told to");
    }
}
