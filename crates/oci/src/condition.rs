//! containerd's conditional references: a label `containerd.io/gc.cond.snapshot.<snapshotter>` of an image or a blob, which
//! refers to a snapshot only while a condition holds.
//!
//! Its value is `usedat<AGE|KEY`, or several conditions joined by commas before the `|`, of which one is enough. They are
//! about the times in labels of the snapshot KEY that begin with `containerd.io/gc.cond.value-usedat`: `usedat<AGE` holds
//! while less than AGE has passed since one of them, `usedat>AGE` once more than AGE has. What does not parse says nothing.
//! (containerd 2.3 and later, `core/metadata/gc.go`; an older one does not know such labels.)

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
        Some(Self { newer, age: duration(age)? })
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

/// Nanoseconds of a duration as Go writes it: `24h`, `1h30m`, `-1.5s`. `None` for what Go does not take.
fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0i128;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(unit_at);
        let unit_end = tail.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        sum = sum.checked_add(scaled(number, nanos_of(unit)?)?)?;
        rest = tail;
    }
    i64::try_from(if negative { -sum } else { sum }).ok()
}

/// A decimal number times a unit, what is less than a nanosecond cut off.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // More digits than these say nothing: an hour has fewer than 10^13 nanoseconds.
    let fraction = &fraction[..fraction.len().min(18)];
    let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<i128>().ok() };
    let below = parse(fraction)?.checked_mul(unit)? / 10i128.pow(u32::try_from(fraction.len()).ok()?);
    parse(whole)?.checked_mul(unit)?.checked_add(below)
}

fn nanos_of(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        // Two characters look like it: the micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let hour = 3_600_000_000_000;
        for (text, nanos) in [
            ("24h", Some(24 * hour)),
            ("1h30m", Some(hour + hour / 2)),
            ("-1.5h", Some(-hour * 3 / 2)),
            ("+.5h", Some(hour / 2)),
            ("1.s", Some(1_000_000_000)),
            ("1h1h", Some(2 * hour)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("1\u{b5}s1\u{3bc}s1us1ns", Some(3001)),
            ("0.3333333333333333333333h", Some(1_199_999_999_999)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("-9223372036854775808ns", Some(i64::MIN)),
            ("9223372036854775808ns", None),
            ("99999999999999999999999999999999999999999999h", None),
            ("", None),
            ("-", None),
            ("3", None),
            (".h", None),
            ("h", None),
            ("1.2.3h", None),
            ("1d", None),
            (" 1h", None),
            ("1h ", None),
        ] {
            assert_eq!(duration(text), nanos, "{text:?}");
        }
    }

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
