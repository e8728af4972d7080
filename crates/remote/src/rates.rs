//! What hosts say of their limits on requests, and when they may be asked again.
//!
//! Three ways of saying it are read: `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (seconds), as an early draft of the
//! IETF had them and GitLab has; the same with Docker Hub's `;w=` for the window in seconds; and GitHub's, with `X-` before the names
//! and a reset that is a time. `Retry-After` is read beside them ([`crate::retry`]).
//!
//! # Invariants
//! - A host that wants to be left alone until a time ([`Pause`]) is not asked before: whoever would have to wait for longer than
//!   [`crate::Tuning::retry_after_limit`] is told so at once, and when. Manifests are counted apart from the rest, as hosts do.
//! - What is kept of hosts is bounded ([`MAX_HOSTS`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};

/// Hosts whose limits are kept.
const MAX_HOSTS: usize = 256;
/// A year: what is longer is no time to wait.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// A reset that is larger than this counts from 1970 and not from now.
const SINCE_1970: u64 = 1_000_000_000;

/// What a host said of its limit on requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: u64,
    /// How many of them are left.
    pub remaining: u64,
    /// How long a window is.
    pub window: Option<Duration>,
    /// When a new one begins.
    pub reset: Option<Timestamp>,
    /// When it was said.
    pub seen: Timestamp,
}

impl RateLimit {
    /// Reads what an answer says; none if it says nothing, or nothing that makes sense.
    pub(crate) fn read(headers: &HeaderMap, now: Timestamp) -> Option<Self> {
        let limit = quantity(headers, "ratelimit-limit")?;
        let remaining = quantity(headers, "ratelimit-remaining")?;
        let reset = quantity(headers, "ratelimit-reset").and_then(|reset| match reset.count {
            time @ SINCE_1970.. => Timestamp::from_second(i64::try_from(time).ok()?).ok(),
            seconds => now.checked_add(SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok(),
        });
        let window = limit.window.or(remaining.window);
        Some(Self { limit: limit.count, remaining: remaining.count, window, reset, seen: now })
    }

    /// How long nothing more is to be had.
    pub(crate) fn exhausted(&self, now: Timestamp) -> Option<Duration> {
        let reset = self.reset.filter(|_| self.remaining == 0)?;
        Duration::try_from(reset.duration_since(now)).ok()
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} requests left", self.remaining, self.limit)?;
        match self.window {
            Some(window) => write!(f, " in {} s", window.as_secs()),
            None => Ok(()),
        }
    }
}

struct Quantity {
    count: u64,
    window: Option<Duration>,
}

/// `100`, `100;w=21600`, or the first of several such, with or without `X-`.
fn quantity(headers: &HeaderMap, name: &str) -> Option<Quantity> {
    let value = headers.get(name).or_else(|| headers.get(format!("x-{name}")))?.to_str().ok()?;
    let mut parts = value.split(',').next()?.split(';').map(str::trim);
    let count = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")).and_then(|seconds| seconds.parse().ok());
    Some(Quantity { count, window: window.map(Duration::from_secs).filter(|window| *window <= LONGEST) })
}

/// What hosts said last of their limits; shared by all clients that were given it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Rates {
    hosts: Arc<Mutex<BTreeMap<String, RateLimit>>>,
}

impl Rates {
    /// By host.
    pub fn all(&self) -> Vec<(String, RateLimit)> {
        self.lock().iter().map(|(host, said)| (host.clone(), said.clone())).collect()
    }

    pub(crate) fn note(&self, host: &str, said: RateLimit) {
        let mut hosts = self.lock();
        if hosts.len() >= MAX_HOSTS && !hosts.contains_key(host) {
            let oldest = hosts.iter().min_by_key(|(_, said)| said.seen).map(|(host, _)| host.clone());
            oldest.and_then(|host| hosts.remove(&host));
        }
        hosts.insert(host.to_owned(), said);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, RateLimit>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until when a host wants to be left alone.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    until: Mutex<[Option<(Instant, String)>; 2]>,
}

impl Pause {
    /// For how long still, and what was said.
    pub(crate) fn left(&self, is_manifest: bool) -> Option<(Duration, String)> {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut until[usize::from(is_manifest)];
        let (end, said) = slot.as_ref()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            *slot = None;
            return None;
        }
        Some((left, said.clone()))
    }

    pub(crate) fn set(&self, is_manifest: bool, wait: Duration, said: &str) {
        let Some(end) = Instant::now().checked_add(wait.min(LONGEST)) else { return };
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until[usize::from(is_manifest)] = Some((end, said.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-30T12:00:00Z".parse().unwrap()
    }

    fn read(headers: &[(&str, &str)]) -> Option<RateLimit> {
        let pair = |(name, value): &(&str, &str)| {
            Some((name.parse::<HeaderName>().ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
        };
        RateLimit::read(&headers.iter().filter_map(pair).collect(), now())
    }

    #[test]
    fn limits_are_read_as_hosts_write_them() {
        let hub = read(&[("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", "76;w=21600")]).unwrap();
        assert_eq!((hub.limit, hub.remaining, hub.window), (100, 76, Some(Duration::from_secs(21_600))));
        assert_eq!(hub.to_string(), "76 of 100 requests left in 21600 s");
        let minute: Timestamp = "2026-11-30T12:01:00Z".parse().unwrap();
        let in_a_minute = Some(minute);
        let lab = [("ratelimit-limit", "60"), ("ratelimit-remaining", "0"), ("ratelimit-reset", "60")];
        let lab = read(&lab).unwrap();
        assert_eq!((lab.reset, lab.exhausted(now())), (in_a_minute, Some(Duration::from_secs(60))));
        let time = minute.as_second().to_string();
        let hub = [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", &*time)];
        let hub = read(&hub).unwrap();
        assert_eq!((hub.reset, hub.exhausted(now())), (in_a_minute, None), "some are left");
        assert_eq!(read(&[("ratelimit-limit", "many"), ("ratelimit-remaining", "1")]), None);
        assert_eq!(read(&[("ratelimit-limit", "1")]), None);
    }

    #[test]
    fn what_is_kept_of_hosts_is_bounded_and_the_newest_stays() {
        let (rates, limit) = (Rates::default(), read(&[("ratelimit-limit", "1"), ("ratelimit-remaining", "1")]));
        for at in 0..2 * MAX_HOSTS {
            let seen = now() + SignedDuration::from_secs(at as i64);
            rates.note(&at.to_string(), RateLimit { seen, ..limit.clone().unwrap() });
        }
        let kept = rates.all();
        assert_eq!(kept.len(), MAX_HOSTS);
        assert!(kept.iter().all(|(host, _)| host.parse::<usize>().unwrap() >= MAX_HOSTS));
    }

    proptest! {
        #[test]
        fn never_panics(limit in ".*", left in "[0-9]*;?w?=?[0-9]*", reset in "[0-9]*") {
            let names = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"];
            for values in [[&*limit, &*left, &*reset], [&*left, &*left, &*reset]] {
                read(&std::iter::zip(names, values).collect::<Vec<_>>()).and_then(|said| said.exhausted(now()));
            }
        }
    }
}
