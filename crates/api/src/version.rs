//! What servers say of their version.

/// The first two numbers of a version, as `v2.4.0` and `1.6.20~ds1` have them; `None` if it does not begin with two.
pub fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_begin_with_two_numbers() {
        for (version, found) in [
            ("v2.4.2+unknown", Some((2, 4))),
            ("1.6.20~ds1", Some((1, 6))),
            ("2.0-rc.1", Some((2, 0))),
            ("v1.5", Some((1, 5))),
            ("unknown", None),
            ("2", None),
            ("2.x", None),
            ("99999999999999999999.1", None),
            ("", None),
        ] {
            assert_eq!(numbers(version), found, "{version:?}");
        }
    }
}
