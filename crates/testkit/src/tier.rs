//! How much a test tries: little in the short tier, much in the long one.

use std::str::FromStr;

/// What the environment variable says (`PROPTEST_CASES`, `ORLOP_TEST_…`, which `scripts/test-long` sets), else `short`.
pub fn amount<T: FromStr>(variable: &str, short: T) -> T {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(short)
}
