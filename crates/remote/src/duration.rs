//! Lengths of time in files that programs in Go read too.

use std::time::Duration;

use orlop_oci::go_duration;

/// Reads `1h30m`, `12h`, `1.5s`, `0` and the like: Go's `time.ParseDuration`. `None` if it is none, negative, or longer than Go knows
/// (292 years).
pub fn parse_duration(text: &str) -> Option<Duration> {
    u64::try_from(go_duration(text)?).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_writes_is_read_and_what_is_no_length_is_not() {
        for (text, seconds) in
            [("0", 0.0), ("10m", 600.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("250ms", 0.25), ("+2h", 7200.0)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "10", "m", "-1s", "1d", "1h30", ".s", "1..5s", "1e400h", "9999999999999999999h", " 1s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    /// Long times lost their fraction, and times that Go has no number for were taken.
    #[test]
    fn durations_are_exact_and_bounded_as_gos() {
        let nanos = |text| parse_duration(text).map(|time| time.as_nanos());
        assert_eq!(nanos("999999h0.000488281s"), Some(3_599_996_400_000_488_281));
        assert_eq!(nanos("1.5h"), Some(5_400_000_000_000));
        assert_eq!(nanos(".5ms1ns"), Some(500_001));
        assert_eq!(nanos("2562047h47m16.854775807s"), Some(i64::MAX as u128));
        for wrong in ["2562047h47m16.854775808s", "99999999999999999999h", "1.2.3s", ".s", "1", "s", "-1s", "1d", ""] {
            assert_eq!(nanos(wrong), None, "{wrong}");
        }
    }
}
