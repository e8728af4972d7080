//! The incremental algorithm, over any graph: which of the objects near the suspects nothing keeps.
//!
//! Let S be everything reachable from the seeds. What exists outside S is alive, wholly: if it were garbage, a suspect
//! would reach it; if only a flat lease held it, that lease's resources (which are seeds) would reach it. So S is judged
//! by looking at what has an edge into it, and at nothing else.
//!
//! A source that does not exist is the one exception. An image may point at a manifest that is not there, and a blob may
//! ask by a back reference to live as long as that manifest: what does not exist passes life on, as in containerd. So
//! such a source is judged too, by its own sources; its other targets need no judgement, for they are in S or alive.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::ops::ControlFlow;

/// An object, or the place of one: what edges join.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) namespace: String,
    /// `content`, `images`, `ingests`, `containers`, `snapshots/<driver>`.
    pub(crate) kind: String,
    pub(crate) name: String,
}

impl Node {
    pub(crate) fn new(namespace: &str, kind: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }
}

/// How an object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hold {
    /// By a flat lease: its labels keep nothing; its parent, or its target, it keeps the same way.
    Flat,
    /// With everything it has an edge to.
    Full,
}

/// An edge, seen from where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link<N = Node> {
    pub(crate) to: N,
    /// Stated by a label, which flat leases do not follow.
    pub(crate) label: bool,
}

/// What the algorithm asks.
pub(crate) trait Graph {
    /// Why a question has no answer.
    type Error;
    /// What stands for an object.
    type Node: Clone + Eq + Hash;

    /// The suspects, what has expired, what expired leases hold, snapshots for which a condition turned, what flat leases
    /// hold.
    fn seeds(&self) -> Result<Vec<Self::Node>, Self::Error>;

    /// Whether there is such an object.
    fn exists(&self, node: &Self::Node) -> Result<bool, Self::Error>;

    /// How strongly it is kept by what is no edge: being a root, leases. Places without an object may be leased too.
    fn held(&self, node: &Self::Node) -> Result<Option<Hold>, Self::Error>;

    /// The edges that begin there.
    fn links(&self, node: &Self::Node) -> Result<Vec<Link<Self::Node>>, Self::Error>;

    /// Shows `visit` where edges to `node` begin, one by one, until it breaks.
    fn sources(
        &self,
        node: &Self::Node,
        visit: &mut dyn FnMut(Self::Node) -> Result<ControlFlow<()>, Self::Error>,
    ) -> Result<(), Self::Error>;
}

/// What the marking found.
#[derive(Debug)]
pub(crate) struct Found<N = Node> {
    /// What exists and nothing keeps.
    pub(crate) garbage: HashSet<N>,
    /// Nodes and edges looked at.
    pub(crate) visited: u64,
}

/// Finds all garbage, given that everything that is garbage can be reached from the seeds.
pub(crate) fn garbage<G: Graph>(graph: &G) -> Result<Found<G::Node>, G::Error> {
    let mut marking =
        Marking { graph, links: HashMap::new(), judged: HashSet::new(), holds: HashMap::new(), visited: 0 };
    marking.close()?;
    let queue = marking.roots()?;
    marking.spread(queue);
    let mut found = Found { visited: marking.visited, garbage: HashSet::new() };
    for node in marking.links.into_keys() {
        if !marking.holds.contains_key(&node) && graph.exists(&node)? {
            found.garbage.insert(node);
        }
    }
    Ok(found)
}

struct Marking<'g, G: Graph> {
    graph: &'g G,
    /// S, with the edges that begin in it.
    links: HashMap<G::Node, Vec<Link<G::Node>>>,
    /// Sources outside S that do not exist.
    judged: HashSet<G::Node>,
    holds: HashMap<G::Node, Hold>,
    visited: u64,
}

impl<G: Graph> Marking<'_, G> {
    /// Computes S.
    fn close(&mut self) -> Result<(), G::Error> {
        let mut open = self.graph.seeds()?;
        while let Some(node) = open.pop() {
            if self.links.contains_key(&node) {
                continue;
            }
            let links = self.graph.links(&node)?;
            self.visited += 1 + links.len() as u64;
            open.extend(links.iter().filter(|l| !self.links.contains_key(&l.to)).map(|l| l.to.clone()));
            self.links.insert(node, links);
        }
        Ok(())
    }

    /// What of S is kept from outside S, by a lease, or by itself.
    fn roots(&mut self) -> Result<VecDeque<G::Node>, G::Error> {
        let mut open: Vec<G::Node> = self.links.keys().cloned().collect();
        let mut queue = VecDeque::new();
        while let Some(node) = open.pop() {
            let mut hold = self.graph.held(&node)?;
            if hold != Some(Hold::Full) && self.kept_from_outside(&node, &mut open)? {
                hold = Some(Hold::Full);
            }
            if let Some(hold) = hold {
                self.holds.insert(node.clone(), hold);
                queue.push_back(node);
            }
        }
        // Only now is it known which sources were judged: their edges are needed too.
        for node in &self.judged {
            let links = self.graph.links(node)?;
            self.visited += links.len() as u64;
            self.links.insert(node.clone(), links);
        }
        Ok(queue)
    }

    fn kept_from_outside(&mut self, node: &G::Node, open: &mut Vec<G::Node>) -> Result<bool, G::Error> {
        let Self { graph, links, judged, visited, .. } = self;
        let mut kept = false;
        graph.sources(node, &mut |source| {
            *visited += 1;
            if links.contains_key(&source) || judged.contains(&source) {
                return Ok(ControlFlow::Continue(()));
            }
            if graph.exists(&source)? {
                kept = true;
                return Ok(ControlFlow::Break(()));
            }
            judged.insert(source.clone());
            open.push(source);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(kept)
    }

    /// Passes life on within S.
    fn spread(&mut self, mut queue: VecDeque<G::Node>) {
        while let Some(node) = queue.pop_front() {
            let hold = self.holds[&node];
            for link in &self.links[&node] {
                if hold == Hold::Flat && link.label || !self.links.contains_key(&link.to) {
                    continue;
                }
                if self.holds.get(&link.to).is_none_or(|&old| old < hold) {
                    self.holds.insert(link.to.clone(), hold);
                    queue.push_back(link.to.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
