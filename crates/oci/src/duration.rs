//! Lengths of time as Go writes them: in containerd's labels and files, and in those of Kubernetes.

/// Nanoseconds of a duration as Go's `time.ParseDuration` reads it: `24h`, `1h30m`, `-1.5s`. `None` for what Go does not take.
pub fn go_duration(text: &str) -> Option<i64> {
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
            assert_eq!(go_duration(text), nanos, "{text:?}");
        }
    }
}
