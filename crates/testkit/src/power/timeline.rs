//! What happened: operations, what each sync made durable, and where somebody was answered.

use super::disk::{Attribute, Disk, How, Ino, Op};

/// What a sync was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Synced {
    /// A file or directory; with or without its attributes.
    Node { node: Ino, attributes: bool },
    /// The whole file system.
    All,
}

/// A step; operations are counted.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Op(Op),
    /// The operations that are durable from here on.
    Sync(Vec<usize>),
    /// Somebody was answered.
    Mark,
}

/// What was recorded.
#[derive(Debug)]
pub struct Timeline {
    pub(super) start: Disk,
    pub(super) steps: Vec<Step>,
    /// Operations that no sync has covered yet.
    pending: Vec<usize>,
    pub(super) ops: usize,
    marks: usize,
    /// For each sync the marks before it, and what was synced.
    syncs: Vec<(usize, String)>,
}

impl Timeline {
    pub(super) const fn new(start: Disk) -> Self {
        Self { start, steps: Vec::new(), pending: Vec::new(), ops: 0, marks: 0, syncs: Vec::new() }
    }

    pub(super) fn op(&mut self, op: Op) {
        self.pending.push(self.ops);
        self.ops += 1;
        self.steps.push(Step::Op(op));
    }

    pub(super) fn mark(&mut self) {
        self.marks += 1;
        self.steps.push(Step::Mark);
    }

    /// A sync that began when there were `before` operations.
    pub(super) fn sync(&mut self, synced: Synced, before: usize) {
        let ops: Vec<&Op> = self.operations().collect();
        let candidates: Vec<usize> = self.pending.iter().copied().filter(|at| *at < before).collect();
        let settled: Vec<usize> = match synced {
            Synced::All => candidates,
            Synced::Node { node, attributes } => {
                let made = made_by(&ops[..before], node);
                candidates.into_iter().filter(|at| made.contains(at) || covers(ops[*at], node, attributes)).collect()
            }
        };
        let name = match synced {
            Synced::All => "/".to_owned(),
            Synced::Node { node, .. } => made_as(&ops, node),
        };
        self.syncs.push((self.marks, name));
        self.pending.retain(|at| settled.binary_search(at).is_err());
        self.steps.push(Step::Sync(settled));
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = &Op> {
        self.steps.iter().filter_map(|step| match step {
            Step::Op(op) => Some(op),
            _ => None,
        })
    }

    /// What was synced after so many marks and before the next: the name with which a file or directory was made, `/` for the whole file
    /// system, and nothing for what was there when the recording began.
    pub fn syncs(&self, marks: usize) -> Vec<&str> {
        self.syncs.iter().filter(|(before, _)| *before == marks).map(|(_, name)| name.as_str()).collect()
    }

    /// How many operations, syncs and marks there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&Step) -> bool| self.steps.iter().filter(|step| wanted(step)).count();
        (self.ops, count(|step| matches!(step, Step::Sync(_))), count(|step| matches!(step, Step::Mark)))
    }

    /// What there was when the mark was set, all of it; the first mark is 1, and 0 is the beginning.
    pub fn at_mark(&self, mark: usize) -> Disk {
        let (mut disk, mut marks) = (self.start.clone(), 0);
        for step in &self.steps {
            match step {
                _ if marks == mark => break,
                Step::Op(op) => disk.apply(op, How::Whole),
                Step::Mark => marks += 1,
                Step::Sync(_) => {}
            }
        }
        disk
    }
}

/// Whether syncing a node covers an operation.
fn covers(op: &Op, synced: Ino, attributes: bool) -> bool {
    match op {
        Op::Make { at, .. } => at.as_ref().is_some_and(|(directory, _)| *directory == synced),
        Op::Link { at, .. } | Op::Unlink { at, .. } => at.0 == synced,
        Op::Rename { from, to, .. } => from.0 == synced || to.0 == synced,
        Op::Exchange { a, b, .. } => a.0 == synced || b.0 == synced,
        Op::Write { node, .. } | Op::Resize { node, .. } => *node == synced,
        Op::Change { node, .. } => attributes && *node == synced,
    }
}

/// The name with which a node was made.
fn made_as(ops: &[&Op], wanted: Ino) -> String {
    let made = ops.iter().rev().find_map(|op| match op {
        Op::Make { at: Some((_, name)), node, .. } if *node == wanted => Some(name),
        _ => None,
    });
    made.map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default()
}

/// The operations that made a node and the directories above it, by the names that they had first.
fn made_by(ops: &[&Op], node: Ino) -> Vec<usize> {
    let (mut made, mut wanted) = (Vec::new(), node);
    for (index, op) in ops.iter().enumerate().rev() {
        if let Op::Make { at, node, .. } = op
            && *node == wanted
        {
            made.push(index);
            match at {
                Some((directory, _)) => wanted = *directory,
                None => break,
            }
        }
    }
    made
}

/// In words, for who reads that a state is broken.
pub(super) fn words(op: &Op, path: impl Fn(Ino) -> String) -> String {
    let name = |(directory, name): &(Ino, Vec<u8>)| format!("{}/{}", path(*directory), name.escape_ascii());
    match op {
        Op::Make { at: Some(at), .. } => format!("make {}", name(at)),
        Op::Make { at: None, node, .. } => format!("make nameless {node}"),
        Op::Link { at, node } => format!("link {} to {}", name(at), path(*node)),
        Op::Unlink { at, .. } => format!("unlink {}", name(at)),
        Op::Rename { from, to, .. } => format!("rename {} to {}", name(from), name(to)),
        Op::Exchange { a, b, .. } => format!("exchange {} and {}", name(a), name(b)),
        Op::Write { node, offset, bytes } => format!("write {} bytes at {offset} of {}", bytes.len(), path(*node)),
        Op::Resize { node, length } => format!("resize {} to {length}", path(*node)),
        Op::Change { node, attribute } => {
            let what = match attribute {
                Attribute::Mode(mode) => format!("mode {mode:o}"),
                Attribute::Owner(..) => "owner".to_owned(),
                Attribute::Time(_) => "time".to_owned(),
                Attribute::Xattr(name, _) => format!("xattr {}", name.escape_ascii()),
            };
            format!("set {what} of {}", path(*node))
        }
    }
}
