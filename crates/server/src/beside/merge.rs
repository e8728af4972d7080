//! What is to be done where the records of the two sides differ.
//!
//! A record was *given* if that containerd has had it from Orlop. So a record that only Orlop has is new here if it was not given,
//! and was removed there if it was; and of two targets of one name the one that was not given is the newer one of Orlop's, and else the other side
//! has moved it. What only the other side has is its own: kubelet sees it there.

use std::collections::BTreeMap;

use orlop_oci::Digest;

/// A record of Orlop's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) target: Digest,
    pub(super) given: bool,
}

/// What is to be done, by name and Orlop's target.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merge {
    /// Targets of which something is to be given.
    pub(super) give: Vec<Digest>,
    /// Records that the other side has as well, which nobody noted.
    pub(super) note: Vec<(String, Digest)>,
    /// Records that the other side has removed or moved.
    pub(super) drop: Vec<(String, Digest)>,
}

/// Compares all records.
pub(super) fn merge(ours: &BTreeMap<String, Own>, theirs: &BTreeMap<String, String>) -> Merge {
    let mut merge = Merge::default();
    for (name, Own { target, given }) in ours {
        let same = theirs.get(name).is_some_and(|there| there == target.as_str());
        match (same, given) {
            (true, true) => {}
            (true, false) => merge.note.push((name.clone(), target.clone())),
            (false, true) => merge.drop.push((name.clone(), target.clone())),
            (false, false) => merge.give.push(target.clone()),
        }
    }
    merge.give.sort();
    merge.give.dedup();
    merge
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(of: u8) -> Digest {
        format!("sha256:{}", format!("{of:02x}").repeat(32)).parse().unwrap()
    }

    fn own(of: u8, given: bool) -> Own {
        Own { target: digest(of), given }
    }

    #[test]
    fn what_was_given_is_followed_and_what_was_not_is_given() {
        let ours = [
            ("new", own(1, false)),
            ("both", own(2, true)),
            ("unnoted", own(3, false)),
            ("removed", own(4, true)),
            ("moved there", own(5, true)),
            ("moved here", own(6, false)),
        ];
        let ours = ours.map(|(name, own)| (name.to_owned(), own)).into();
        let theirs = [("both", 2), ("unnoted", 3), ("moved there", 9), ("moved here", 8), ("theirs alone", 7)];
        let theirs = theirs.map(|(name, of)| (name.to_owned(), digest(of).to_string())).into();
        let named = |name: &str, of| (name.to_owned(), digest(of));
        let expected = Merge {
            give: vec![digest(1), digest(6)],
            note: vec![named("unnoted", 3)],
            drop: vec![named("moved there", 5), named("removed", 4)],
        };
        assert_eq!(merge(&ours, &theirs), expected);
    }

    /// A step of either side between two passes.
    #[derive(Debug, Clone)]
    enum Step {
        Ours(u8, Option<u8>),
        Theirs(u8, Option<u8>),
        Pass,
        /// A pass that ends after so many of its steps, as if somebody was killed.
        Cut(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let target = prop::option::of(0..3_u8);
        prop_oneof![
            (0..3_u8, target.clone()).prop_map(|(name, target)| Step::Ours(name, target)),
            (0..3_u8, target).prop_map(|(name, target)| Step::Theirs(name, target)),
            Just(Step::Pass),
            (0..6_usize).prop_map(Step::Cut),
        ]
    }

    #[derive(Default)]
    struct World {
        ours: BTreeMap<String, Digest>,
        theirs: BTreeMap<String, String>,
        given: std::collections::BTreeSet<(String, Digest)>,
    }

    impl World {
        /// Does what is to be done in the order of the real thing, and at most `limit` writes.
        fn pass(&mut self, mut limit: usize) {
            let given = &self.given;
            let own = |(name, target): (&String, &Digest)| {
                let given = given.contains(&(name.clone(), target.clone()));
                (name.clone(), Own { target: target.clone(), given })
            };
            let merge = merge(&self.ours.iter().map(own).collect(), &self.theirs);
            let mut may = || {
                limit = limit.saturating_sub(1);
                limit > 0
            };
            for (name, target) in merge.drop {
                if may() {
                    self.given.remove(&(name.clone(), target));
                    if may() {
                        self.ours.remove(&name);
                    }
                }
            }
            for (name, target) in &self.ours {
                if merge.give.contains(target) && may() {
                    self.theirs.insert(name.clone(), target.to_string());
                    if may() {
                        self.given.insert((name.clone(), target.clone()));
                    }
                }
            }
            for named in merge.note {
                if may() {
                    self.given.insert(named);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn two_whole_passes_bring_both_sides_together_whatever_happened(steps in prop::collection::vec(step(), 0..40)) {
            let mut world = World::default();
            for step in steps {
                let name = |n: u8| format!("n{n}");
                match step {
                    Step::Ours(n, None) => drop(world.ours.remove(&name(n))),
                    Step::Ours(n, Some(t)) => drop(world.ours.insert(name(n), digest(t))),
                    Step::Theirs(n, None) => drop(world.theirs.remove(&name(n))),
                    Step::Theirs(n, Some(t)) => drop(world.theirs.insert(name(n), digest(t).to_string())),
                    Step::Pass => world.pass(usize::MAX),
                    Step::Cut(limit) => world.pass(limit),
                }
            }
            world.pass(usize::MAX);
            world.pass(usize::MAX);
            for (name, target) in &world.ours {
                prop_assert_eq!(world.theirs.get(name).map(String::as_str), Some(target.as_str()), "{}", name);
                prop_assert!(world.given.contains(&(name.clone(), target.clone())));
            }
        }
    }
}
