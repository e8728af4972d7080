//! One tar entry, checked and brought to the form in which it is written.

use base64::Engine as _;
use serde::{Deserialize, Serialize};
use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, PaxExtensions, SparseEntry};

use super::Limits;
use crate::{Error, Result, overlay};

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// What a file has besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) atime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

/// An entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// Relative to the root, without `.`, `..`, doubled or trailing slashes; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// As it stands for a symbolic link, cleaned like `path` for a hard link.
    pub(super) link: Vec<u8>,
    pub(super) metadata: Metadata,
    /// Bytes of content in the tar.
    pub(super) size: u64,
    /// For a sparse file: its logical size and where the content goes.
    pub(super) sparse: Option<(u64, Vec<SparseEntry>)>,
}

/// The longest name in a directory that Linux has.
const NAME_BYTES: usize = 255;

impl Entry {
    pub(super) fn new(
        parsed: &ParsedEntry<'_>,
        sparse: Option<(u64, Vec<SparseEntry>)>,
        limits: &Limits,
    ) -> Result<Self> {
        let raw = trim_nuls(&parsed.path);
        let name = String::from_utf8_lossy(raw);
        let hostile = |reason| Error::Hostile { entry: shorten(&name), reason };
        let kind = kind(parsed, raw).ok_or_else(|| hostile("it is of a kind that layers do not have"))?;
        let path = clean(raw).map_err(hostile)?;
        limits.check_depth(&path)?;
        let link = link(parsed, kind).map_err(hostile)?;
        let id = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| hostile("its owner is not a 32-bit number"))
        };
        let mut metadata = Metadata {
            mode: parsed.mode & 0o7777,
            uid: id(parsed.uid)?,
            gid: id(parsed.gid)?,
            mtime: header_mtime(parsed),
            ..Metadata::default()
        };
        metadata.atime = metadata.mtime;
        pax(parsed.pax.unwrap_or_default(), &mut metadata, limits)?;
        // Only files have content, whatever the size field says (as Go's and GNU's readers have it).
        let size = if kind == Kind::File { parsed.size } else { 0 };
        let sparse = sparse.filter(|_| kind == Kind::File);
        Ok(Self { path, kind, link, metadata, size, sparse })
    }

    /// The name for error messages.
    pub(super) fn name(&self) -> String {
        shorten(&String::from_utf8_lossy(&self.path))
    }

    /// That this entry is refused, and why.
    pub(super) fn hostile(&self, reason: &'static str) -> Error {
        Error::Hostile { entry: self.name(), reason }
    }
}

/// Keeps error messages readable whatever an entry is called.
pub(crate) fn shorten(name: &str) -> String {
    const SHOWN: usize = 200;
    if name.chars().count() <= SHOWN {
        return name.to_owned();
    }
    name.chars().take(SHOWN).chain("…".chars()).collect()
}

fn trim_nuls(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

fn kind(parsed: &ParsedEntry<'_>, name: &[u8]) -> Option<Kind> {
    let device = (parsed.dev_major.unwrap_or(0), parsed.dev_minor.unwrap_or(0));
    match parsed.entry_type {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Regular if parsed.header.as_ustar().typeflag[0] == 0 && name.ends_with(b"/") => {
            Some(Kind::Directory)
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Some(Kind::File),
        EntryType::Directory => Some(Kind::Directory),
        EntryType::Symlink => Some(Kind::Symlink),
        EntryType::Link => Some(Kind::HardLink),
        EntryType::Fifo => Some(Kind::Fifo),
        EntryType::Char => Some(Kind::Char(device.0, device.1)),
        EntryType::Block => Some(Kind::Block(device.0, device.1)),
        _ => None,
    }
}

/// Makes a path relative to the root: absolute ones start there, `..` goes up as far as the root.
fn clean(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    if path.contains(&0) {
        return Err("its name has a zero byte");
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                // Like the root of a file system, whose parent is itself, an absolute path cannot climb out.
                if names.pop().is_none() && !path.starts_with(b"/") {
                    return Err("it climbs out of the root");
                }
            }
            _ if name.len() > NAME_BYTES => return Err("a name in its path is longer than 255 bytes"),
            _ => names.push(name),
        }
    }
    Ok(names.join(&b'/'))
}

fn link(parsed: &ParsedEntry<'_>, kind: Kind) -> Result<Vec<u8>, &'static str> {
    let target = trim_nuls(parsed.link_target.as_deref().unwrap_or_default());
    match kind {
        Kind::Symlink if target.is_empty() => Err("it is a symbolic link to nothing"),
        Kind::Symlink if target.contains(&0) => Err("its target has a zero byte"),
        Kind::Symlink => Ok(target.to_vec()),
        Kind::HardLink => {
            let cleaned = clean(target).map_err(|_| "its hard link's target climbs out of the root")?;
            if cleaned.is_empty() { Err("it is a hard link to nothing") } else { Ok(cleaned) }
        }
        _ => Ok(Vec::new()),
    }
}

/// The header's time; before 1970 is 1970, as containerd has it.
fn header_mtime(parsed: &ParsedEntry<'_>) -> Time {
    let field = parsed.header.as_ustar().mtime;
    // Base-256 with the sign bit: the parser reads it as unsigned.
    let negative = field[0] & 0xc0 == 0xc0;
    let seconds = if negative { 0 } else { i64::try_from(parsed.mtime).unwrap_or(0) };
    Time { seconds, nanos: 0 }.bounded()
}

impl Time {
    /// The first second that 64-bit nanoseconds cannot count; containerd turns later times into 1970.
    const END: i64 = i64::MAX / 1_000_000_000;

    fn bounded(self) -> Self {
        if (0..=Self::END).contains(&self.seconds) { self } else { Self::default() }
    }

    /// Parses a PAX time: seconds, perhaps with a fraction, perhaps negative.
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        Some(Self { seconds, nanos: digits.parse().ok()? }.bounded())
    }
}

/// Bytes of the longest name of an extended attribute, on any file system of Linux (xattr(7)).
const XATTR_NAME: usize = 255;

/// Reads what the parser leaves aside: times with their fraction and extended attributes.
fn pax(data: &[u8], metadata: &mut Metadata, limits: &Limits) -> Result<()> {
    if !is_whole(data) {
        return Err(Error::Damaged { reason: "a PAX header: its records do not fill it".into() });
    }
    let mut from_libarchive = Vec::new();
    let mut atime = None;
    for record in PaxExtensions::new(data) {
        let record = record.map_err(|error| Error::Damaged { reason: format!("a PAX header: {error}") })?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            set_xattr(&mut metadata.xattrs, name, value.to_vec());
        } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            from_libarchive.extend(libarchive_xattr(name, value));
        } else if key == b"mtime" {
            metadata.mtime = pax_time(value)?;
        } else if key == b"atime" {
            atime = Some(pax_time(value)?);
        } else if [&b"size"[..], b"uid", b"gid"].contains(&key) {
            check_number(key, value)?;
        }
    }
    // bsdtar writes each attribute in both forms; the plain one needs no decoding.
    for (name, value) in from_libarchive {
        if !metadata.xattrs.iter().any(|(known, _)| *known == name) {
            set_xattr(&mut metadata.xattrs, &name, value);
        }
    }
    metadata.atime = atime.unwrap_or_default().max(metadata.mtime);
    if let Some((name, _)) = metadata.xattrs.iter().find(|(name, _)| name.len() > XATTR_NAME) {
        let reason = format!("an extended attribute's name has {} bytes: at most {XATTR_NAME} can be", name.len());
        return Err(Error::Damaged { reason });
    }
    let xattr_bytes: u64 = metadata.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum();
    if xattr_bytes > limits.xattr_bytes {
        return Err(Error::Limit {
            what: "bytes of extended attributes in an entry",
            key: "xattr_bytes",
            limit: limits.xattr_bytes,
        });
    }
    Ok(())
}

/// Whether the records, each as long as it says, fill the header. The parser takes what is no record for the end, and
/// another reader of the same layer would see other entries than this one.
fn is_whole(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let digits = data.iter().position(|&b| b == b' ').map_or(&[][..], |space| &data[..space]);
        let length = std::str::from_utf8(digits).ok().and_then(|d| d.parse::<usize>().ok());
        match length.filter(|length| *length > 0).and_then(|length| data.get(length..)) {
            Some(rest) => data = rest,
            None => return false,
        }
    }
    true
}

/// The parser is told to overlook values that are no numbers, for the sake of times; in these fields other readers
/// refuse them. Empty means: what the header says.
fn check_number(key: &[u8], value: &[u8]) -> Result<()> {
    let is_number = std::str::from_utf8(value).is_ok_and(|v| v.parse::<u64>().is_ok());
    if value.is_empty() || is_number {
        return Ok(());
    }
    let [key, value] = [key, value].map(|b| shorten(&String::from_utf8_lossy(b)));
    Err(Error::Damaged { reason: format!("a PAX header: {key} is {value:?}, expected a number") })
}

fn pax_time(value: &[u8]) -> Result<Time> {
    let time = std::str::from_utf8(value).ok().and_then(Time::parse);
    time.ok_or_else(|| Error::Damaged { reason: format!("{:?} is not a PAX time", String::from_utf8_lossy(value)) })
}

fn set_xattr(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, name: &[u8], value: Vec<u8>) {
    // No layer means to set what overlayfs has for itself.
    if !overlay::is_foreign(name) || name.is_empty() || name.contains(&0) {
        return;
    }
    xattrs.retain(|(known, _)| known != name);
    xattrs.push((name.to_vec(), value));
}

/// libarchive's form: the name percent-encoded, the value in base64 without padding.
fn libarchive_xattr(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let config = base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let value = engine.decode(value).ok()?;
    Some((percent_decode(name), value))
}

/// Decodes `%` and two hex digits to the byte that they stand for; leaves all else as it is.
pub(super) fn percent_decode(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()));
        decoded.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_inside_the_root() {
        for (given, cleaned) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/a/b", "a/b"),
            ("a/../b", "b"),
            ("/../../b", "b"),
            ("./", ""),
            ("a/..", ""),
        ] {
            assert_eq!(clean(given.as_bytes()).unwrap(), cleaned.as_bytes(), "{given}");
        }
        for refused in ["..", "../a", "a/../../b", "./../x", "a\0b"] {
            assert!(clean(refused.as_bytes()).is_err(), "{refused}");
        }
    }

    #[test]
    fn pax_times_keep_nanoseconds_and_stay_in_bounds() {
        let time = |seconds, nanos| Some(Time { seconds, nanos });
        assert_eq!(Time::parse("1700000000.123456789"), time(1_700_000_000, 123_456_789));
        assert_eq!(Time::parse("1700000000.5"), time(1_700_000_000, 500_000_000));
        assert_eq!(Time::parse("17.1234567899"), time(17, 123_456_789));
        assert_eq!(Time::parse("-5.5"), time(0, 0));
        assert_eq!(Time::parse("99999999999999"), time(0, 0));
        assert_eq!(Time::parse("1.x"), None);
        assert_eq!(Time::parse(""), None);
    }

    #[test]
    fn libarchive_xattrs_are_decoded() {
        let (name, value) = libarchive_xattr(b"user.a%3Db", b"aGk").unwrap();
        assert_eq!((name.as_slice(), value.as_slice()), (&b"user.a=b"[..], &b"hi"[..]));
        assert_eq!(libarchive_xattr(b"user.x", b"!!"), None);
    }
}
