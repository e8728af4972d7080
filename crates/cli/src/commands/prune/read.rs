//! What people write for ages, sizes, labels and repositories.

use std::fmt;

use jiff::{SignedDuration, Span, SpanRelativeTo};
use orlop_graph::model::{LabelRule, Pattern};

/// Suffixes of sizes; a letter alone means different things to different tools, and is none.
const UNITS: [(&str, u64); 14] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// How long ago something was, as it was written and as it is.
#[derive(Debug, Clone)]
pub(super) struct Age {
    pub(super) text: String,
    pub(super) duration: SignedDuration,
}

/// A size, or a part of another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Share {
    /// Bytes.
    Bytes(u64),
    /// Parts of a hundred.
    Percent(f64),
}

impl Share {
    /// In bytes.
    pub(super) fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (whole as f64 * percent / 100.0).ceil() as u64,
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// `7d`, `36h`, `1w 2d`.
pub(super) fn age(text: &str) -> Result<Age, String> {
    let expected = |why: &dyn fmt::Display| format!("expected a duration like 7d or 36h: {why}");
    let span = text.trim().parse::<Span>().map_err(|e| expected(&e))?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|e| expected(&e))?;
    if duration.is_negative() {
        return Err(expected(&"it is negative"));
    }
    Ok(Age { text: text.trim().to_owned(), duration })
}

/// `5GiB`, `500MB`, `1.5Gi`.
pub(in crate::commands) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..unit], text[unit..].trim());
    let expected = "expected a size like 5GiB or 500MB";
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("{expected}: {unit:?} is no unit (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB)"));
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor).ok_or_else(|| format!("{expected}: {text} is too large"));
    }
    let bytes = number.parse::<f64>().map_err(|e| format!("{expected}: {number:?}: {e}"))? * *factor as f64;
    if bytes < u64::MAX as f64 { Ok(bytes.ceil() as u64) } else { Err(format!("{expected}: {text} is too large")) }
}

/// A size, or `15%`.
pub(super) fn share(text: &str) -> Result<Share, String> {
    let Some(number) = text.trim().strip_suffix('%') else { return size(text).map(Share::Bytes) };
    match number.trim().parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Share::Percent(percent)),
        _ => Err(format!("expected a part of the file system between 0% and 100%, found {text:?}")),
    }
}

/// `KEY`, `KEY=VALUE`, and both after `!`.
pub(super) fn rule(text: &str) -> Result<LabelRule, String> {
    let (wanted, rule) = text.strip_prefix('!').map_or((true, text), |rest| (false, rest));
    let (key, value) = rule.split_once('=').map_or((rule, None), |(key, value)| (key, Some(value.to_owned())));
    if key.is_empty() {
        return Err("expected KEY, KEY=VALUE, !KEY or !KEY=VALUE: the key is empty".into());
    }
    Ok(LabelRule { key: key.to_owned(), value, wanted })
}

/// A rule as it is written.
pub(super) fn written(rule: &LabelRule) -> String {
    let value = rule.value.as_ref().map(|value| format!("={value}")).unwrap_or_default();
    format!("{}{}{value}", if rule.wanted { "" } else { "!" }, rule.key)
}

pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    if text.is_empty() {
        return Err("expected a repository, perhaps with * in it: it is empty".into());
    }
    if text.contains('@') || text.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        return Err("expected a repository without a tag or digest".into());
    }
    Ok(Pattern::new(text))
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_as_people_write_them() {
        assert_eq!(age("7d").unwrap().duration, SignedDuration::from_hours(7 * 24));
        assert_eq!(age("1w 2d").unwrap().duration, SignedDuration::from_hours(9 * 24));
        assert_eq!(age("1h30m").unwrap().duration, SignedDuration::from_mins(90));
        for bad in ["", "7", "soon", "-3d", "1 month", "9999999999999999999d"] {
            assert!(age(bad).unwrap_err().contains("like 7d"), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("5GiB"), Ok(5 << 30));
        assert_eq!(size("1.5Ki"), Ok(1536));
        assert_eq!(size(" 500 MB "), Ok(500_000_000));
        assert_eq!(size("0B"), Ok(0));
        for bad in ["", "5", "5G", "GiB", "-1GiB", "1.2.3GiB", "99999999999TiB", "99999999999.5TiB", "1e3GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(share("15%"), Ok(Share::Percent(15.0)));
        assert_eq!(share("2GiB"), Ok(Share::Bytes(2 << 30)));
        assert!(share("101%").is_err() && share("-1%").is_err() && share("x%").is_err() && share("NaN%").is_err());
        assert_eq!((Share::Percent(12.5).of(1_000), Share::Bytes(7).of(1_000)), (125, 7));
    }

    #[test]
    fn rules_say_what_is_wanted() {
        for text in ["a", "a=b", "!a", "!a=b=c", "a="] {
            assert_eq!(written(&rule(text).unwrap()), text);
        }
        assert!(!rule("!a").unwrap().wanted && rule("a=").unwrap().value.as_deref() == Some(""));
        assert!(rule("").is_err() && rule("=b").is_err() && rule("!").is_err());
        assert!(pattern("r.example:5000/**").is_ok() && pattern("app:1").is_err() && pattern("").is_err());
        assert_eq!(quoted("!a=b c"), "'!a=b c'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("a.b/c=d"), "a.b/c=d");
    }
}
