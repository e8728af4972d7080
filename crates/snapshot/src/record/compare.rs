//! Compares a tree with what was recorded of it, piece by piece, so that whoever asks can wait in between, or stop.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::format::{Entry, Kind, RecordReader, UNKNOWN_ID};
use super::{Hash, READ_BYTES, open, read, sees_owners};
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::{Result, apply, fs};

/// Bytes read in one step.
const STEP_BYTES: u64 = 1 << 20;
/// Entries looked at in one step.
const STEP_ENTRIES: usize = 512;
/// Differences that are told one by one.
const TOLD: usize = 20;
/// Differences that fit into a sentence.
const SHOWN: usize = 3;

/// Something that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, relative to the tree's root; what is not printable is escaped.
    pub path: String,
    /// What was expected and what was found.
    pub detail: String,
}

/// How a tree compares with what was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compared {
    /// Entries that were looked at.
    pub entries: u64,
    /// Bytes of files that were read.
    pub bytes: u64,
    /// Entries that differ.
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Something could not be read.
    unreadable: bool,
    /// The tree is not there.
    missing: bool,
}

impl Compared {
    /// `missing`, `unreadable` or `damaged`; `None`: it is what it was.
    pub fn fault(&self) -> Option<&'static str> {
        match self.differing {
            0 => None,
            _ if self.missing => Some("missing"),
            _ if self.unreadable => Some("unreadable"),
            _ => Some("damaged"),
        }
    }

    /// What differs, in a sentence.
    pub fn detail(&self) -> String {
        let shown: Vec<String> = self.differences.iter().take(SHOWN).map(Difference::to_string).collect();
        let more = match self.differing.saturating_sub(shown.len() as u64) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        format!("{}{more}", shown.join("; "))
    }

    /// The tree is not there at all.
    pub(crate) fn is_missing(&mut self, detail: String) {
        self.missing = true;
        self.differs(b"", detail);
    }

    /// The medium does not give back what was written.
    pub(crate) fn is_unreadable(&mut self, detail: String) {
        self.unreadable = true;
        self.differs(b"", detail);
    }

    pub(crate) fn differs(&mut self, path: &[u8], detail: String) {
        self.differing += 1;
        if self.differences.len() < TOLD {
            let path = apply::shorten(&String::from_utf8_lossy(path)).escape_debug().to_string();
            self.differences.push(Difference { path, detail });
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}", self.detail),
            path => write!(f, "{path}: {}", self.detail),
        }
    }
}

/// A comparison that goes on. Blocks in [`TreeComparison::step`] only.
pub(crate) struct TreeComparison {
    tree: PathBuf,
    /// The tree's root, by device and inode; `None`: it is not there.
    root: Option<(u64, u64)>,
    /// What is compared; `None`: it is over.
    sides: Option<Sides>,
    compared: Compared,
    /// What files with several names hash to, by device and inode.
    linked: HashMap<(u64, u64), Hash>,
    reading: Option<Reading>,
    /// Whether owners can be compared.
    owners: bool,
    buffer: Vec<u8>,
}

struct Sides {
    record: RecordReader,
    expected: Option<Entry>,
    walk: Walk,
    seen: Option<Seen>,
    /// The directory that the walk is in.
    dir: Vec<u8>,
    /// The one that it is about to enter.
    entering: bool,
}

struct Seen {
    path: Vec<u8>,
    name: Vec<u8>,
    stat: Stat,
}

/// A file that is being read.
struct Reading {
    file: File,
    path: Vec<u8>,
    expected: Hash,
    hasher: blake3::Hasher,
    /// Device and inode, if it has other names.
    links: Option<(u64, u64)>,
}

impl TreeComparison {
    /// Compares `tree` with the record at `path`; `None` if there is no such record, or one of another version.
    pub(crate) fn open(tree: &Path, path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let home = path.parent().unwrap_or(path);
                let gone = matches!(home.symlink_metadata(), Err(e) if e.kind() == io::ErrorKind::NotFound);
                return Ok(gone.then(|| Self::missing(tree)));
            }
            read => read,
        };
        let mut new = Self::over(tree);
        new.root = identity(tree);
        let record = match bytes {
            Ok(bytes) => RecordReader::new(bytes).map_err(|_| "its record does not check".to_owned()),
            Err(error) if Errno::from_io_error(&error).is_some_and(is_bad_medium) => {
                Err(format!("its record cannot be read: {error}"))
            }
            Err(error) => return Err(error).at("read", path),
        };
        let record = match record {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            Err(detail) => {
                new.compared.differs(b"", format!("{detail}, so that nobody can say what the tree should be"));
                return Ok(Some(new));
            }
        };
        let root = match fs::open_dir(tree) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Some(Self::missing(tree))),
            root => root.at("open", tree)?,
        };
        let stat = rustix::fs::fstat(&root).at("stat", tree)?;
        let walk = Walk::new(root).at("read", tree)?;
        new.root = Some((stat.st_dev, stat.st_ino));
        let seen = Some(Seen { path: Vec::new(), name: Vec::new(), stat });
        new.sides = Some(Sides { record, expected: None, walk, seen, dir: Vec::new(), entering: false });
        Ok(Some(new))
    }

    fn over(tree: &Path) -> Self {
        let (tree, compared) = (tree.to_owned(), Compared::default());
        let (linked, owners) = (HashMap::new(), sees_owners());
        Self { tree, root: None, sides: None, compared, linked, reading: None, owners, buffer: Vec::new() }
    }

    fn missing(tree: &Path) -> Self {
        let mut new = Self::over(tree);
        new.compared.is_missing(format!("its tree {} is gone", tree.display()));
        new
    }

    /// What was found; all of it once [`TreeComparison::step`] has said that it is over.
    pub(crate) fn compared(&self) -> &Compared {
        &self.compared
    }

    /// Whether the tree that is compared is still the one in its place.
    pub(crate) fn is_current(&self) -> bool {
        identity(&self.tree) == self.root
    }

    /// Goes on for about a megabyte, or some hundred entries; says how many bytes it has read, or `None` if it is over.
    ///
    /// # Errors
    /// What says nothing about the tree, such as too many open files.
    pub(crate) fn step(&mut self) -> Result<Option<u64>> {
        let before = self.compared.bytes;
        let read = |new: &Self| new.compared.bytes - before;
        let mut entries = 0;
        while entries < STEP_ENTRIES && read(self) < STEP_BYTES {
            if self.reading.is_some() {
                self.read_on()?;
            } else if self.sides.is_none() {
                return Ok((read(self) > 0).then(|| read(self)));
            } else {
                self.entry()?;
                entries += 1;
            }
        }
        Ok(Some(read(self)))
    }

    /// Compares the next entry of the record or of the tree.
    fn entry(&mut self) -> Result<()> {
        let Some(sides) = &mut self.sides else { return Ok(()) };
        if !sides.fill(&self.tree, &mut self.compared)? {
            self.sides = None;
            return Ok(());
        }
        let order = match (&sides.expected, &sides.seen) {
            (Some(expected), Some(seen)) => in_walk(&expected.path, &seen.path),
            (Some(_), None) => Ordering::Less,
            _ => Ordering::Greater,
        };
        match order {
            Ordering::Less => {
                let Some(expected) = sides.expected.take() else { return Ok(()) };
                self.compared.differs(&expected.path, "it is gone".to_owned());
                sides.pass_below(&expected.path, &mut self.compared);
            }
            Ordering::Greater => {
                let Some(seen) = sides.seen.take() else { return Ok(()) };
                self.compared.differs(&seen.path, "it was not there".to_owned());
                sides.leave_out();
            }
            Ordering::Equal => self.both()?,
        }
        Ok(())
    }

    /// Compares an entry that is on both sides.
    fn both(&mut self) -> Result<()> {
        let Some(sides) = &mut self.sides else { return Ok(()) };
        let (Some(expected), Some(seen)) = (sides.expected.take(), sides.seen.take()) else { return Ok(()) };
        self.compared.entries += 1;
        if let Some(detail) = attributes(&expected, &seen.stat, self.owners) {
            self.compared.differs(&expected.path, detail);
            if !is_kind(&expected.kind, &seen.stat) {
                sides.leave_out();
                sides.pass_below(&expected.path, &mut self.compared);
            }
            return Ok(());
        }
        match &expected.kind {
            Kind::Symlink(target) => {
                let found = rustix::fs::readlinkat(sides.walk.dir(), &*seen.name, Vec::new());
                match found.map(|found| found.into_bytes() == *target) {
                    Ok(true) => {}
                    Ok(false) => self.compared.differs(&expected.path, "it is a link to something else".to_owned()),
                    Err(errno) => self.unreadable(&expected.path, errno)?,
                }
            }
            Kind::File { size, hash: Some(hash) } if *size > 0 => self.begin(expected.path, *hash, &seen)?,
            _ => {}
        }
        Ok(())
    }

    /// Begins to read a file.
    fn begin(&mut self, path: Vec<u8>, expected: Hash, seen: &Seen) -> Result<()> {
        let Some(sides) = &self.sides else { return Ok(()) };
        let links = (seen.stat.st_nlink > 1).then_some((seen.stat.st_dev, seen.stat.st_ino));
        if let Some(found) = links.as_ref().and_then(|links| self.linked.get(links)).copied() {
            self.judge(&path, expected, found);
            return Ok(());
        }
        match open(sides.walk.dir(), &seen.name) {
            Ok(file) => self.reading = Some(Reading { file, path, expected, hasher: blake3::Hasher::new(), links }),
            Err(errno) => self.unreadable(&path, errno)?,
        }
        Ok(())
    }

    /// Reads a piece of a file.
    fn read_on(&mut self) -> Result<()> {
        let Some(mut reading) = self.reading.take() else { return Ok(()) };
        self.buffer.resize(READ_BYTES, 0);
        match read(&mut reading.file, &mut self.buffer) {
            Ok(0) => {
                let found: Hash = reading.hasher.finalize().into();
                self.judge(&reading.path, reading.expected, found);
                self.linked.extend(reading.links.map(|links| (links, found)));
            }
            Ok(count) => {
                reading.hasher.update(&self.buffer[..count]);
                self.compared.bytes += count as u64;
                self.reading = Some(reading);
            }
            Err(errno) => self.unreadable(&reading.path, errno)?,
        }
        Ok(())
    }

    fn judge(&mut self, path: &[u8], expected: Hash, found: Hash) {
        if expected != found {
            let (expected, found) = (hex::encode(expected), hex::encode(found));
            self.compared.differs(path, format!("its bytes hash to blake3:{found}, expected blake3:{expected}"));
        }
    }

    /// Something cannot be read: that is a difference where the medium is at fault, and nothing is said where this user may not.
    fn unreadable(&mut self, path: &[u8], errno: Errno) -> Result<()> {
        unreadable(&self.tree, &mut self.compared, path, errno)
    }
}

impl Sides {
    /// Gets the next entry of each side where there is none; false at the end of both.
    fn fill(&mut self, tree: &Path, compared: &mut Compared) -> Result<bool> {
        if self.expected.is_none() {
            self.expected = self.next_expected(compared);
        }
        while self.seen.is_none() {
            match self.next_seen() {
                Ok(Some(seen)) => self.seen = Some(seen),
                Ok(None) => break,
                Err(errno) if std::mem::take(&mut self.entering) => {
                    let dir = std::mem::take(&mut self.dir);
                    unreadable(tree, compared, &dir, errno)?;
                    if self.expected.as_ref().is_some_and(|next| is_below(&next.path, &dir)) {
                        self.expected = None;
                        self.pass_below(&dir, compared);
                    }
                    self.dir = fs::split(&dir).0.to_vec();
                }
                // The walk cannot go on.
                Err(errno) => return unreadable(tree, compared, &self.dir, errno).map(|()| false),
            }
        }
        Ok(self.expected.is_some() || self.seen.is_some())
    }

    fn next_expected(&mut self, compared: &mut Compared) -> Option<Entry> {
        self.record.next().unwrap_or_else(|_| {
            compared.differs(b"", "its record does not make sense".to_owned());
            None
        })
    }

    fn next_seen(&mut self) -> rustix::io::Result<Option<Seen>> {
        loop {
            let step = self.walk.next();
            if self.entering && step.is_err() && self.walk.path() != self.dir {
                return step.map(|_| None);
            }
            self.entering = false;
            let (name, stat) = match step? {
                None => return Ok(None),
                Some(Step::Leave { .. }) => {
                    self.dir = fs::split(&self.dir).0.to_vec();
                    continue;
                }
                Some(Step::Enter { name, stat }) => {
                    self.dir = fs::join(&self.dir, name.as_bytes());
                    self.entering = true;
                    return Ok(Some(Seen { path: self.dir.clone(), name: name.into_bytes(), stat }));
                }
                Some(Step::Other { name, stat }) => (name, stat),
            };
            return Ok(Some(Seen { path: fs::join(&self.dir, name.as_bytes()), name: name.into_bytes(), stat }));
        }
    }

    /// Does not go into what was just seen, if it is a directory.
    fn leave_out(&mut self) {
        if std::mem::take(&mut self.entering) {
            self.walk.skip();
            self.dir = fs::split(&self.dir).0.to_vec();
        }
    }

    /// Passes over what was recorded below a path that is no directory any more.
    fn pass_below(&mut self, path: &[u8], compared: &mut Compared) {
        loop {
            self.expected = self.next_expected(compared);
            match &self.expected {
                Some(next) if is_below(&next.path, path) => {}
                _ => return,
            }
        }
    }
}

/// A directory by device and inode; `None` if there is none.
fn identity(tree: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::lstat(tree).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

fn unreadable(tree: &Path, compared: &mut Compared, path: &[u8], errno: Errno) -> Result<()> {
    match errno {
        Errno::ACCESS | Errno::PERM => {}
        // Changed while it was looked at.
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE => {
            compared.differs(path, "it is being changed".to_owned());
        }
        errno if is_bad_medium(errno) => {
            compared.unreadable = true;
            compared.differs(path, format!("it cannot be read: {}", io::Error::from(errno)));
        }
        errno => return Err(errno).at("read", fs::shown(tree, path)),
    }
    Ok(())
}

/// What the disk says when bytes are lost.
pub(crate) fn is_bad_medium(errno: Errno) -> bool {
    [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::NODATA, Errno::REMOTEIO].contains(&errno)
}

/// The order in which a walk comes to two paths.
fn in_walk(a: &[u8], b: &[u8]) -> Ordering {
    // No name has a zero byte, so what is in a directory comes before what only begins like its name.
    let byte = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(byte).cmp(b.iter().map(byte))
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
}

fn is_kind(kind: &Kind, stat: &Stat) -> bool {
    let expected = match kind {
        Kind::File { .. } => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::Character(_) => FileType::CharacterDevice,
        Kind::Block(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    };
    fs::file_type(stat) == expected
}

/// How an entry differs from what was recorded, as far as that is seen without reading it.
fn attributes(expected: &Entry, stat: &Stat, owners: bool) -> Option<String> {
    if !is_kind(&expected.kind, stat) {
        return Some("something else is in its place".to_owned());
    }
    let size = stat.st_size.unsigned_abs();
    match &expected.kind {
        Kind::File { size: expected, .. } if *expected != size => {
            return Some(format!("expected {expected} bytes, found {size}"));
        }
        Kind::Character(device) | Kind::Block(device) if *device != stat.st_rdev => {
            return Some("it is another device".to_owned());
        }
        _ => {}
    }
    let mode = stat.st_mode & 0o7777;
    if mode != expected.mode {
        return Some(format!("its mode is {mode:04o}, expected {:04o}", expected.mode));
    }
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    (owners && expected.uid != UNKNOWN_ID && (uid, gid) != (expected.uid, expected.gid))
        .then(|| format!("it belongs to {uid}:{gid}, expected {}:{}", expected.uid, expected.gid))
}
