//! The marking on random graphs, with the suspects that the rules of `edges.rs` demand, against plain reachability.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

/// Few, so that paths meet and cycles close.
const NODES: u8 = 8;

/// An edge, and which end states it: it goes when that end is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: u8,
    to: u8,
    label: bool,
    back: bool,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Make(u8),
    Delete(u8),
    State(Edge),
    Retract(usize),
    Root(u8),
    Unroot(u8),
    Lease(u8, Hold),
    Release(u8),
    Collect,
}

#[derive(Default)]
struct Memory {
    objects: BTreeSet<u8>,
    edges: BTreeSet<Edge>,
    roots: BTreeSet<u8>,
    leased: BTreeMap<u8, Hold>,
    suspects: BTreeSet<u8>,
}

fn node(number: u8) -> Node {
    Node::new("", "", &number.to_string())
}

fn number(node: &Node) -> u8 {
    node.name.parse().expect("made above")
}

impl Graph for Memory {
    type Error = Infallible;
    type Node = Node;

    fn seeds(&self) -> Result<Vec<Node>, Infallible> {
        let flat = self.leased.iter().filter(|(_, hold)| **hold == Hold::Flat).map(|(n, _)| n);
        Ok(self.suspects.iter().chain(flat).map(|&n| node(n)).collect())
    }

    fn exists(&self, node: &Node) -> Result<bool, Infallible> {
        Ok(self.objects.contains(&number(node)))
    }

    fn held(&self, node: &Node) -> Result<Option<Hold>, Infallible> {
        let root = self.roots.contains(&number(node)).then_some(Hold::Full);
        Ok(root.max(self.leased.get(&number(node)).copied()))
    }

    fn links(&self, from: &Node) -> Result<Vec<Link>, Infallible> {
        let of = self.edges.iter().filter(|e| e.from == number(from));
        Ok(of.map(|e| Link { to: node(e.to), label: e.label }).collect())
    }

    fn sources(
        &self,
        to: &Node,
        visit: &mut dyn FnMut(Node) -> Result<ControlFlow<()>, Infallible>,
    ) -> Result<(), Infallible> {
        for edge in self.edges.iter().filter(|e| e.to == number(to)) {
            if visit(node(edge.from))?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Memory {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Make(n) => {
                if self.objects.insert(n) {
                    self.suspects.insert(n);
                }
            }
            Op::Delete(n) => self.delete(n),
            Op::State(edge) => {
                if self.objects.contains(if edge.back { &edge.to } else { &edge.from }) {
                    self.edges.insert(edge);
                }
            }
            Op::Retract(which) => {
                if let Some(&edge) = self.edges.iter().nth(which) {
                    self.edges.remove(&edge);
                    self.suspects.insert(edge.to);
                }
            }
            Op::Root(n) => {
                if self.objects.contains(&n) {
                    self.roots.insert(n);
                }
            }
            Op::Unroot(n) => {
                if self.roots.remove(&n) {
                    self.suspects.insert(n);
                }
            }
            Op::Lease(n, hold) => {
                // A lease does not become flat; there may be a second one that is not.
                self.leased.entry(n).and_modify(|old| *old = (*old).max(hold)).or_insert(hold);
            }
            Op::Release(n) => {
                if self.leased.remove(&n).is_some() {
                    self.suspects.insert(n);
                }
            }
            Op::Collect => self.collect(),
        }
    }

    fn delete(&mut self, n: u8) {
        if !self.objects.remove(&n) {
            return;
        }
        self.roots.remove(&n);
        self.suspects.extend(self.edges.iter().filter(|e| e.from == n).map(|e| e.to));
        self.edges.retain(|e| if e.back { e.to != n } else { e.from != n });
    }

    fn collect(&mut self) {
        let Ok(found) = garbage(self);
        let found: BTreeSet<u8> = found.garbage.iter().map(number).collect();
        let full = self.reach(|hold| hold == Hold::Full, |_| true);
        let flat = self.reach(|_| true, |edge| !edge.label);
        let expected: BTreeSet<u8> =
            self.objects.iter().copied().filter(|n| !full.contains(n) && !flat.contains(n)).collect();
        assert_eq!(found, expected);
        found.into_iter().for_each(|n| self.delete(n));
        self.suspects.clear();
    }

    fn reach(&self, held: impl Fn(Hold) -> bool, follows: impl Fn(&Edge) -> bool) -> BTreeSet<u8> {
        let leased = self.leased.iter().filter(|(_, hold)| held(**hold)).map(|(n, _)| *n);
        let mut reached: BTreeSet<u8> = leased.chain(self.roots.iter().copied().filter(|_| held(Hold::Full))).collect();
        let mut size = 0;
        while reached.len() > size {
            size = reached.len();
            let next: Vec<u8> =
                self.edges.iter().filter(|e| follows(e) && reached.contains(&e.from)).map(|e| e.to).collect();
            reached.extend(next);
        }
        reached
    }
}

fn op() -> impl Strategy<Value = Op> {
    let edge = (0..NODES, 0..NODES, any::<bool>(), any::<bool>())
        // A back reference is always a label.
        .prop_map(|(from, to, label, back)| Op::State(Edge { from, to, label: label || back, back }));
    let hold = prop_oneof![Just(Hold::Flat), Just(Hold::Full)];
    prop_oneof![
        6 => (0..NODES).prop_map(Op::Make),
        2 => (0..NODES).prop_map(Op::Delete),
        8 => edge,
        2 => (0..20usize).prop_map(Op::Retract),
        3 => (0..NODES).prop_map(Op::Root),
        3 => (0..NODES).prop_map(Op::Unroot),
        2 => (0..NODES, hold).prop_map(|(n, hold)| Op::Lease(n, hold)),
        2 => (0..NODES).prop_map(Op::Release),
        3 => Just(Op::Collect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn finds_what_nothing_reaches(history in prop::collection::vec(op(), 1..80)) {
        let mut memory = Memory::default();
        for op in history {
            memory.apply(op);
        }
        memory.collect();
    }
}
