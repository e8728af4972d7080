//! When to ask again: exponential backoff with full jitter, and `Retry-After` (RFC 9110 §10.2.3).

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;

use crate::{Error, Tuning};

/// How long to wait before attempt `attempt + 1`, or `None` if there is no point in waiting.
///
/// A host's own `Retry-After` counts, with up to a quarter more at random so that a cluster's nodes do not come back
/// together; if it asks for more than `tuning.retry_after_limit`, the error goes to the caller at once.
pub(crate) fn pause(tuning: &Tuning, attempt: u32, error: &Error) -> Option<Duration> {
    if !error.is_temporary() || attempt >= tuning.attempts {
        return None;
    }
    match error.retry_after() {
        Some(wait) if wait > tuning.retry_after_limit => None,
        Some(wait) => Some(wait + wait.mul_f64(rand::random::<f64>() / 4.0)),
        None => Some(backoff(tuning, attempt)),
    }
}

/// A random time between nothing and `base · 2^(attempt - 1)`, at most `tuning.backoff_limit`.
pub(crate) fn backoff(tuning: &Tuning, attempt: u32) -> Duration {
    let ceiling = tuning.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(tuning.backoff_limit);
    ceiling.mul_f64(rand::random::<f64>())
}

/// Reads `Retry-After`: seconds or an HTTP date; a date in the past is no wait at all.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        retry_after(&headers, "2026-11-23T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn reads_seconds_and_dates() {
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        assert_eq!(read("Mon, 23 Nov 2026 12:00:30 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Mon, 23 Nov 2026 11:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
        assert_eq!(read("-3"), None);
    }

    #[test]
    fn backs_off_within_bounds_and_only_for_what_may_pass() {
        let tuning = Tuning { backoff: Duration::from_millis(100), attempts: 3, ..Tuning::default() };
        for attempt in 1..40 {
            assert!(backoff(&tuning, attempt) <= tuning.backoff_limit);
        }
        assert!(backoff(&tuning, 1) <= Duration::from_millis(100));
        let busy = |retry_after| Error::TooManyRequests {
            what: String::new(),
            host: String::new(),
            reason: String::new(),
            retry_after,
        };
        assert!(pause(&tuning, 1, &busy(None)).is_some());
        assert_eq!(pause(&tuning, 3, &busy(None)), None);
        assert!(pause(&tuning, 1, &busy(Some(Duration::from_secs(2)))).unwrap() >= Duration::from_secs(2));
        assert_eq!(pause(&tuning, 1, &busy(Some(Duration::from_secs(86_400)))), None);
        let missing = Error::NotFound { what: String::new(), host: String::new() };
        assert_eq!(pause(&tuning, 1, &missing), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            read(&text);
        }
    }
}
