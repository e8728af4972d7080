//! containerd's conditional references: a label `containerd.io/gc.cond.snapshot.<snapshotter>` of an image or a blob, which
//! refers to a snapshot only while a condition holds.
//!
//! Its value is `usedat<AGE|KEY`, or several conditions joined by commas before the `|`, of which one is enough. They are
//! about the times in labels of the snapshot KEY that begin with `containerd.io/gc.cond.value-usedat`: `usedat<AGE` holds
//! while less than AGE has passed since one of them, `usedat>AGE` once more than AGE has. What does not parse says nothing.
//! (containerd 2.3 and later, `core/metadata/gc.go`; an older one does not know such labels.)

use crate::go_duration;

/// How a label of an image or a blob begins that refers to a snapshot while a condition holds.
pub const LABEL: &str = "containerd.io/gc.cond.snapshot";

/// How a label of a snapshot begins whose value is a time of use, RFC 3339.
pub const USED_AT: &str = "containerd.io/gc.cond.value-usedat";

/// One condition on a time of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// Whether it holds while less than `age` has passed since the use, or once more has.
    pub newer: bool,
    /// Nanoseconds.
    pub age: i64,
}

impl Condition {
    /// Whether it holds at `now` for what was used at `used`, both in nanoseconds.
    pub fn holds(self, used: i64, now: i64) -> bool {
        let (since, age) = (i128::from(now) - i128::from(used), i128::from(self.age));
        if self.newer { since < age } else { since > age }
    }

    /// `usedat<AGE` or `usedat>AGE`: no other name, no other operator.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("usedat")?;
        let (newer, age) = match (rest.strip_prefix('<'), rest.strip_prefix('>')) {
            (Some(age), _) => (true, age),
            (_, Some(age)) => (false, age),
            _ => return None,
        };
        Some(Self { newer, age: go_duration(age)? })
    }
}

/// What a label says: which snapshot it refers to, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conditional<'l> {
    /// Who has the snapshot.
    pub snapshotter: &'l str,
    /// Its key.
    pub key: &'l str,
    /// One of these is enough.
    pub conditions: Vec<Condition>,
}

impl<'l> Conditional<'l> {
    /// Reads a label of an image or a blob; `None` if it is another label, or says nothing.
    pub fn parse(label: &'l str, value: &'l str) -> Option<Self> {
        let rest = label.strip_prefix(LABEL)?;
        let snapshotter = rest.trim_start_matches(['.', '/']).split('/').next().filter(|name| !name.is_empty())?;
        let (conditions, key) = value.split_once('|')?;
        let conditions: Vec<Condition> = conditions.split(',').filter_map(Condition::parse).collect();
        (!conditions.is_empty()).then_some(Self { snapshotter, key, conditions })
    }

    /// Whether one of the conditions holds at `now` for one of the times of use.
    pub fn holds(&self, used: impl IntoIterator<Item = i64>, now: i64) -> bool {
        used.into_iter().any(|used| self.conditions.iter().any(|condition| condition.holds(used, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_which_snapshot_and_when() {
        let second = 1_000_000_000;
        let (newer, older) = (Condition { newer: true, age: second }, Condition { newer: false, age: 3 * second });
        for (label, value, expected) in [
            (".overlayfs", "usedat<1s|a|b", vec![newer]),
            ("/overlayfs/any/name", "usedat>3s|a|b", vec![older]),
            ("./.overlayfs", "usedat<1s,usedat>3s|a|b", vec![newer, older]),
            ("overlayfs", "other<1s,usedat<x,usedat<1s|a|b", vec![newer]),
            (".overlayfs", "usedat<=1s,usedat==1s,usedat!1s, usedat<1s,usedat |a|b", Vec::new()),
            (".overlayfs", "usedat<1s", Vec::new()),
            (".", "usedat<1s|a", Vec::new()),
        ] {
            let label = format!("containerd.io/gc.cond.snapshot{label}");
            let read = Conditional::parse(&label, value);
            let wanted = Conditional { snapshotter: "overlayfs", key: "a|b", conditions: expected };
            assert_eq!(read, Some(wanted).filter(|wanted| !wanted.conditions.is_empty()), "{label} {value}");
        }
        assert_eq!(Conditional::parse("containerd.io/gc.ref.snapshot.overlayfs", "usedat<1s|a"), None);
    }

    #[test]
    fn one_time_and_one_condition_are_enough() {
        let read = Conditional::parse("containerd.io/gc.cond.snapshot.native", "usedat<2ns,usedat>10ns|a").unwrap();
        for (used, holds) in [(vec![99], true), (vec![98], false), (vec![98, 89], true), (vec![], false)] {
            assert_eq!(read.holds(used.clone(), 100), holds, "{used:?}");
        }
    }
}
