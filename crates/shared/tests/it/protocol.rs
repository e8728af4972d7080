//! The protocol of `orlop_shared::protocol`, every state of it: one digest, two pushers, one collector.
//!
//! A step is one transaction of the database or one request that arrives at the bucket. Steps come in any order. Requests
//! may be delayed for any time and arrive twice, leases may end at any moment, pushers may die while they upload. The
//! protocol as it is loses nothing and leaves nothing behind; with any one rule taken out, a history is found in which an
//! acknowledged manifest's blob is gone. That is what shows that the explorer can find a loss.

use std::collections::{HashMap, VecDeque};

/// Generation 0 is there when it begins, live and needed by nobody; each attempt of a pusher may reserve one more.
const GENERATIONS: usize = 1 + PUSHERS * ATTEMPTS;
const PUSHERS: usize = 2;
const ATTEMPTS: usize = 1;

/// Which rules hold.
#[derive(Debug, Clone, Copy)]
struct Rules {
    /// The key of an object has its generation.
    generations: bool,
    /// Who finds a blob holds it in the same step; without, he only knows that it was there.
    holds: bool,
    /// The commit of a manifest looks at the row once more.
    looks_again: bool,
    /// Leases may end before their holders are done.
    expiry: bool,
    /// A row that is being deleted may be made live again.
    resurrects: bool,
}

const PROTOCOL: Rules = Rules { generations: true, holds: true, looks_again: true, expiry: true, resurrects: false };

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Row {
    Absent,
    Reserved,
    Live,
    /// Whether the deletion of its object was asked for.
    Deleting(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Begin,
    /// The bytes are on their way.
    Sending(usize),
    Sent(usize),
    /// He has it, and commits his manifest next.
    Has(usize),
    /// His manifest is acknowledged.
    Done(usize),
    /// He gave up, died, or had his manifest deleted again.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pusher {
    at: At,
    attempts: usize,
    /// The generation that his lease holds.
    lease: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    rows: [Row; GENERATIONS],
    objects: [bool; GENERATIONS],
    /// Deletions on their way, by key.
    deletions: [u8; GENERATIONS],
    /// Uploads of the dead on their way, by key.
    uploads: [bool; GENERATIONS],
    next: usize,
    pushers: [Pusher; PUSHERS],
}

type Steps = Vec<(String, State)>;

impl State {
    fn first() -> Self {
        let mut rows = [Row::Absent; GENERATIONS];
        let mut objects = [false; GENERATIONS];
        (rows[0], objects[0]) = (Row::Live, true);
        let pusher = Pusher { at: At::Begin, attempts: ATTEMPTS, lease: None };
        Self {
            rows,
            objects,
            deletions: [0; GENERATIONS],
            uploads: [false; GENERATIONS],
            next: 1,
            pushers: [pusher; 2],
        }
    }

    fn live(&self) -> Option<usize> {
        self.rows.iter().position(|row| *row == Row::Live)
    }

    /// Whether an acknowledged manifest's blob is gone.
    fn is_lost(&self, rules: Rules) -> bool {
        self.pushers.iter().any(|p| matches!(p.at, At::Done(g) if !self.objects[rules.key(g)]))
    }

    /// Whether an object is there that no manifest needs.
    fn has_orphan(&self, rules: Rules) -> bool {
        let needed = |key| self.pushers.iter().any(|p| matches!(p.at, At::Done(g) if rules.key(g) == key));
        (0..GENERATIONS).any(|key| self.objects[key] && !needed(key))
    }

    fn is_held(&self, generation: usize) -> bool {
        self.pushers.iter().any(|p| p.lease == Some(generation) || p.at == At::Done(generation))
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    fn steps(&self, rules: Rules) -> Steps {
        let mut steps = Vec::new();
        for pusher in 0..PUSHERS {
            self.push(rules, pusher, &mut steps);
        }
        for generation in 0..GENERATIONS {
            self.collect(rules, generation, &mut steps);
        }
        for key in 0..GENERATIONS {
            self.deliver(rules, key, &mut steps);
        }
        steps
    }

    fn push(&self, rules: Rules, i: usize, steps: &mut Steps) {
        let pusher = self.pushers[i];
        let mut step = |what: &str, next: Self| steps.push((format!("pusher {i} {what}"), next));
        match pusher.at {
            At::Begin => step("looks for the blob", self.begin(rules, i)),
            At::Sending(g) => {
                step(
                    "has uploaded",
                    self.with(|s| {
                        s.objects[rules.key(g)] = true;
                        s.pushers[i].at = At::Sent(g);
                    }),
                );
                step(
                    "dies while he uploads",
                    self.with(|s| {
                        s.uploads[rules.key(g)] = true;
                        s.pushers[i].at = At::Over;
                    }),
                );
            }
            At::Sent(g) => step("publishes", self.publish(rules, i, g)),
            At::Has(g) => step("commits his manifest", self.commit(rules, i, g)),
            At::Done(_) => {
                step("has his manifest deleted", self.with(|s| s.pushers[i] = Pusher { at: At::Over, ..pusher }))
            }
            At::Over => {}
        }
        if pusher.lease.is_some() && (rules.expiry || pusher.at == At::Over) {
            step("has his lease end", self.with(|s| s.pushers[i].lease = None));
        }
    }

    fn begin(&self, rules: Rules, i: usize) -> Self {
        self.with(|s| {
            let dying = s.rows.iter().position(|row| matches!(row, Row::Deleting(_))).filter(|_| rules.resurrects);
            if let Some(g) = s.live().or(dying) {
                s.rows[g] = Row::Live;
                s.pushers[i].lease = rules.holds.then_some(g);
                s.pushers[i].at = At::Has(g);
            } else {
                let g = s.next;
                s.next += 1;
                s.rows[g] = Row::Reserved;
                s.pushers[i].lease = Some(g);
                s.pushers[i].at = At::Sending(g);
            }
        })
    }

    fn publish(&self, rules: Rules, i: usize, g: usize) -> Self {
        self.with(|s| match (s.live(), s.rows[g]) {
            (None, Row::Reserved) => {
                s.rows[g] = Row::Live;
                s.pushers[i].lease = Some(g);
                s.pushers[i].at = At::Has(g);
            }
            // Another was faster: his is used, and this one's own object goes.
            (Some(other), Row::Reserved) => {
                s.rows[g] = Row::Deleting(false);
                s.pushers[i].lease = rules.holds.then_some(other);
                s.pushers[i].at = At::Has(other);
            }
            _ => s.fail(i),
        })
    }

    fn commit(&self, rules: Rules, i: usize, g: usize) -> Self {
        self.with(|s| {
            if !rules.looks_again || s.rows[g] == Row::Live {
                s.pushers[i].at = At::Done(g);
            } else {
                s.fail(i);
            }
        })
    }

    /// Not acknowledged: he begins again, or not.
    fn fail(&mut self, i: usize) {
        let pusher = &mut self.pushers[i];
        pusher.attempts -= 1;
        pusher.lease = None;
        pusher.at = if pusher.attempts == 0 { At::Over } else { At::Begin };
    }

    fn collect(&self, rules: Rules, g: usize, steps: &mut Steps) {
        let mut step = |what: &str, next: Self| steps.push((format!("the collector {what} generation {g}"), next));
        match self.rows[g] {
            Row::Live | Row::Reserved if !self.is_held(g) => {
                step("gives up", self.with(|s| s.rows[g] = Row::Deleting(false)));
            }
            Row::Deleting(false) => step(
                "asks the bucket to delete",
                self.with(|s| {
                    s.rows[g] = Row::Deleting(true);
                    s.deletions[rules.key(g)] = 2;
                }),
            ),
            Row::Deleting(true) if self.deletions[rules.key(g)] < 2 => {
                step("drops the row of", self.with(|s| s.rows[g] = Row::Absent));
            }
            _ => {}
        }
    }

    fn deliver(&self, rules: Rules, key: usize, steps: &mut Steps) {
        if self.deletions[key] > 0 {
            steps.push((
                format!("a deletion of key {key} arrives"),
                self.with(|s| {
                    s.deletions[key] -= 1;
                    s.objects[key] = false;
                }),
            ));
        }
        if self.uploads[key] {
            steps.push((
                format!("a dead pusher's upload of key {key} arrives"),
                self.with(|s| {
                    s.uploads[key] = false;
                    s.objects[key] = true;
                }),
            ));
        }
        let is_known = (0..GENERATIONS).any(|g| rules.key(g) == key && self.rows[g] != Row::Absent);
        if self.objects[key] && !is_known && self.deletions[key] == 0 {
            steps.push((format!("the sweep asks the bucket to delete key {key}"), self.with(|s| s.deletions[key] = 1)));
        }
    }
}

impl Rules {
    const fn key(self, generation: usize) -> usize {
        if self.generations { generation } else { 0 }
    }
}

/// What going through all states gave.
struct Explored {
    states: usize,
    /// The shortest history that ends with a loss.
    loss: Option<Vec<String>>,
    /// One in which nothing is left to do and an object is there that nobody needs.
    orphan: Option<Vec<String>>,
}

fn explore(rules: Rules) -> Explored {
    let mut from: HashMap<State, Option<(State, String)>> = HashMap::from([(State::first(), None)]);
    let mut open = VecDeque::from([State::first()]);
    let mut explored = Explored { states: 0, loss: None, orphan: None };
    while let Some(state) = open.pop_front() {
        if state.is_lost(rules) && explored.loss.is_none() {
            explored.loss = Some(history(&from, &state));
        }
        let steps = state.steps(rules);
        if steps.is_empty() && state.has_orphan(rules) && explored.orphan.is_none() {
            explored.orphan = Some(history(&from, &state));
        }
        for (what, next) in steps {
            if !from.contains_key(&next) {
                from.insert(next.clone(), Some((state.clone(), what)));
                open.push_back(next);
            }
        }
    }
    explored.states = from.len();
    explored
}

fn history(from: &HashMap<State, Option<(State, String)>>, end: &State) -> Vec<String> {
    let mut steps = Vec::new();
    let mut state = end;
    while let Some((before, what)) = &from[state] {
        steps.push(what.clone());
        state = before;
    }
    steps.reverse();
    steps
}

#[test]
fn the_protocol_loses_nothing_and_leaves_nothing() {
    let explored = explore(PROTOCOL);
    eprintln!("{} states", explored.states);
    assert_eq!(explored.loss, None);
    assert_eq!(explored.orphan, None);
    assert!(explored.states > 2_000, "only {} states: something cannot happen any more", explored.states);
}

/// Each rule is needed: without it the explorer finds how a blob is lost.
#[test]
fn without_any_one_of_its_rules_a_blob_is_lost() {
    let wrong = [
        ("a fixed key", Rules { generations: false, ..PROTOCOL }),
        ("a fixed key, although leases never end", Rules { generations: false, expiry: false, ..PROTOCOL }),
        ("a commit that does not look again", Rules { looks_again: false, ..PROTOCOL }),
        ("HEAD, then push", Rules { holds: false, looks_again: false, expiry: false, ..PROTOCOL }),
        ("a row that is made live again", Rules { resurrects: true, ..PROTOCOL }),
    ];
    for (name, rules) in wrong {
        let explored = explore(rules);
        let loss = explored.loss.unwrap_or_else(|| panic!("{name}: no loss in {} states", explored.states));
        eprintln!("{name}: {} states; lost by:\n  {}", explored.states, loss.join("\n  "));
    }
}

/// Looking again is what makes up for leases that end: as long as none does, holding is enough.
#[test]
fn leases_that_never_end_need_no_second_look() {
    let explored = explore(Rules { looks_again: false, expiry: false, ..PROTOCOL });
    eprintln!("{} states", explored.states);
    assert_eq!(explored.loss, None);
}
