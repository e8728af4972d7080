//! A bucket that stands for one thing: its fields, in containerd's encodings.
//!
//! Numbers are Go's varints, signed ones zigzag. Times are Go's binary ones: a version, seconds since the year 1, nanoseconds,
//! and the minutes of the zone (in version 2 its seconds too), which say how it was shown and not when it was.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use orlop_bolt::{Bucket, Entry, Leaf, Pair};
use orlop_graph::model::Labels;

/// Seconds from the year 1 to 1970.
const TO_1970: i64 = 62_135_596_800;

/// Why something is not a row.
#[derive(Debug)]
pub(super) enum Broken {
    /// The database is damaged there.
    Bolt(orlop_bolt::Error),
    /// A field is not what it should be.
    Field { name: &'static str, found: String, expected: &'static str },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bolt(error) => error.fmt(f),
            Self::Field { name, found, expected } => write!(f, "{name} is {found}, expected {expected}"),
        }
    }
}

impl From<orlop_bolt::Error> for Broken {
    fn from(error: orlop_bolt::Error) -> Self {
        Self::Bolt(error)
    }
}

/// All that a bucket has.
pub(super) enum Fields<'b, 'db> {
    /// On one page.
    Leaf(Leaf<'b, 'db>),
    /// On several: somebody has very many labels.
    Many(Vec<(Bytes, Entry<'db>)>),
}

impl<'b, 'db> Fields<'b, 'db> {
    pub(super) fn of(bucket: &'b Bucket<'db>) -> Result<Self, Broken> {
        match bucket.leaf()? {
            Some(leaf) => Ok(Self::Leaf(leaf)),
            None => Ok(Self::Many(bucket.iter().collect::<Result<_, _>>()?)),
        }
    }

    fn value(&self, name: &str) -> Option<&[u8]> {
        match self {
            Self::Leaf(leaf) => leaf.value(name.as_bytes()),
            Self::Many(all) => match all.iter().find(|(key, _)| key == name.as_bytes())? {
                (_, Entry::Value(value)) => Some(value),
                (_, Entry::Bucket(_)) => None,
            },
        }
    }

    /// A bucket below.
    pub(super) fn bucket(&self, name: &str) -> Result<Option<Bucket<'db>>, Broken> {
        match self {
            Self::Leaf(leaf) => Ok(leaf.bucket(name.as_bytes())?),
            Self::Many(all) => {
                let found = all.iter().find(|(key, _)| key == name.as_bytes());
                Ok(found.and_then(|(_, entry)| entry.clone().bucket()))
            }
        }
    }

    /// A text; none is empty.
    pub(super) fn text(&self, name: &'static str) -> Result<&str, Broken> {
        text(name, self.value(name).unwrap_or_default())
    }

    /// A signed number.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<i64>, Broken> {
        let unzigzag = |n: u64| (n >> 1) as i64 ^ -((n & 1) as i64);
        Ok(self.unsigned(name)?.map(unzigzag))
    }

    /// A number without a sign.
    pub(super) fn unsigned(&self, name: &'static str) -> Result<Option<u64>, Broken> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let expected = "a variable-length number";
        varint(value).map(Some).ok_or_else(|| Broken::Field { name, found: shown(value), expected })
    }

    /// One byte.
    pub(super) fn byte(&self, name: &str) -> Option<u8> {
        match self.value(name) {
            Some([byte]) => Some(*byte),
            _ => None,
        }
    }

    /// A moment; Go's zero time is none.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<Timestamp>, Broken> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let expected = "a time in Go's binary form";
        moment(value).ok_or_else(|| Broken::Field { name, found: shown(value), expected })
    }

    /// The labels.
    pub(super) fn labels(&self) -> Result<Labels, Broken> {
        if let Self::Leaf(leaf) = self
            && let Some(inner) = leaf.inner(b"labels")?
        {
            return pairs(inner.iter());
        }
        self.bucket("labels")?.map_or_else(|| Ok(Labels::default()), |bucket| labels(&bucket))
    }
}

/// A bucket whose keys and values are labels.
pub(super) fn labels(bucket: &Bucket<'_>) -> Result<Labels, Broken> {
    if let Some(leaf) = bucket.leaf()? {
        return pairs(leaf.iter());
    }
    let all = bucket.iter().collect::<Result<Vec<_>, _>>()?;
    pairs(all.iter().map(|(key, entry)| match entry {
        Entry::Value(value) => (&key[..], Some(&value[..])),
        Entry::Bucket(_) => (&key[..], None),
    }))
}

fn pairs<'p>(all: impl Iterator<Item = Pair<'p>>) -> Result<Labels, Broken> {
    let values = all.filter_map(|(key, value)| Some((key, value?)));
    let texts = values.map(|(key, value)| Ok((text("a label's key", key)?, text("a label", value)?)));
    texts.collect::<Result<Vec<_>, Broken>>().map(Labels::from_iter)
}

/// A name or value that must be text.
pub(super) fn text<'v>(name: &'static str, value: &'v [u8]) -> Result<&'v str, Broken> {
    std::str::from_utf8(value).map_err(|_| Broken::Field { name, found: shown(value), expected: "UTF-8" })
}

fn shown(value: &[u8]) -> String {
    let start: Vec<u8> = value.iter().copied().take(64).collect();
    format!("{} bytes, \"{}\"", value.len(), start.escape_ascii())
}

/// The number at the start of a value; what follows it is not looked at, as in Go.
fn varint(value: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (at, byte) in value.iter().enumerate().take(10) {
        if at == 9 && *byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The time, or none if it is Go's zero time; nothing if it is no time.
fn moment(value: &[u8]) -> Option<Option<Timestamp>> {
    let length = match value.first()? {
        1 => 15,
        2 => 16,
        _ => return None,
    };
    if value.len() != length {
        return None;
    }
    let seconds = i64::from_be_bytes(*value[1..].first_chunk()?);
    let nanoseconds = i32::from_be_bytes(*value[9..].first_chunk()?);
    if seconds <= 0 {
        return Some(None);
    }
    Timestamp::new(seconds.checked_sub(TO_1970)?, nanoseconds).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::{moment, varint};

    #[test]
    fn numbers_are_go_varints() {
        assert_eq!(varint(&[0x96, 0x01]), Some(150));
        assert_eq!(varint(&[0x7f, 0xff]), Some(127), "what follows is not looked at");
        let largest = [&[0xff; 9][..], &[0x01]].concat();
        assert_eq!(varint(&largest), Some(u64::MAX));
        assert_eq!(varint(&[0xff; 10]), None, "too large");
        assert_eq!((varint(&[]), varint(&[0x80])), (None, None), "cut short");
    }

    #[test]
    fn times_are_of_either_version_and_of_any_zone() {
        // 2024-02-29T12:30:00.000000005Z, the first with UTC (-1), the second with +01:00, the third with +00:19:32.
        let seconds = (1_709_209_800_i64 + 62_135_596_800).to_be_bytes();
        let time = |version: u8, zone: &[u8]| [&[version][..], &seconds, &[0, 0, 0, 5], zone].concat();
        let expected = "2024-02-29T12:30:00.000000005Z".parse().unwrap();
        for value in [time(1, &[0xff, 0xff]), time(1, &[0, 60]), time(2, &[0, 19, 32])] {
            assert_eq!(moment(&value), Some(Some(expected)));
        }
        assert_eq!(moment(&[&[1][..], &[0; 12], &[0xff, 0xff]].concat()), Some(None), "the zero time");
        assert_eq!(moment(&time(3, &[0, 0])), None);
        assert_eq!(moment(&time(1, &[])), None);
        let beyond = [&[1][..], &i64::MAX.to_be_bytes(), &[0; 4], &[0; 2]].concat();
        assert_eq!(moment(&beyond), None);
    }
}
