//! A file system in memory: nodes by number, names in directories; and the operations that change it.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_oci::{Algorithm, Digester};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::fingerprint::xattrs;

/// The number of a node; the directory that everything is below has the first.
pub(super) type Ino = usize;

pub(super) const TOP: Ino = 0;

/// A name in a directory.
pub(super) type Name = (Ino, Vec<u8>);

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes; what is beyond them up to the length is zeros.
    File {
        data: Arc<Vec<u8>>,
        length: u64,
    },
    Directory(BTreeMap<Vec<u8>, Ino>),
    Symlink(Vec<u8>),
    /// A device, a pipe, a socket.
    Special {
        format: u32,
        device: u64,
    },
}

impl Kind {
    pub(super) fn file() -> Self {
        Self::File { data: Arc::default(), length: 0 }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    /// The time that somebody set.
    pub(super) time: Option<(i64, i64)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A change of what a node is like.
#[derive(Debug, Clone)]
pub(super) enum Attribute {
    Mode(u32),
    Owner(Option<u32>, Option<u32>),
    Time(Option<(i64, i64)>),
    Xattr(Vec<u8>, Option<Vec<u8>>),
}

/// A change.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A node, and its first name; one without a name is given none.
    Make {
        at: Option<Name>,
        node: Ino,
        is: Arc<Node>,
    },
    Link {
        at: Name,
        node: Ino,
    },
    Unlink {
        at: Name,
        node: Ino,
    },
    Rename {
        from: Name,
        to: Name,
        node: Ino,
    },
    /// Two names of which each gets what the other had.
    Exchange {
        a: Name,
        b: Name,
        nodes: (Ino, Ino),
    },
    Write {
        node: Ino,
        offset: u64,
        bytes: Arc<Vec<u8>>,
    },
    Resize {
        node: Ino,
        length: u64,
    },
    Change {
        node: Ino,
        attribute: Attribute,
    },
}

/// What becomes of an operation that was not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is not there.
    Lost,
    /// It is there.
    Whole,
    /// Of a write only so many bytes from the front are there.
    Front(usize),
    /// Of a write only what comes after so many bytes is there.
    Back(usize),
    /// Of a write only the length is there.
    Hollow,
}

/// A file system in memory.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<Ino, Arc<Node>>,
}

impl Disk {
    /// What is in a directory, all of it durable.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(top: &Path) -> io::Result<Self> {
        let mut disk = Self { nodes: BTreeMap::new() };
        let mut known = BTreeMap::new();
        disk.take(top, &mut known)?;
        Ok(disk)
    }

    fn take(&mut self, path: &Path, known: &mut BTreeMap<(u64, u64), Ino>) -> io::Result<Ino> {
        let found = path.symlink_metadata()?;
        if let Some(ino) = known.get(&(found.dev(), found.ino())) {
            return Ok(*ino);
        }
        let ino = self.nodes.len();
        known.insert((found.dev(), found.ino()), ino);
        let format = found.file_type();
        let node = Node {
            kind: match () {
                () if format.is_dir() => Kind::Directory(BTreeMap::new()),
                () if format.is_symlink() => Kind::Symlink(std::fs::read_link(path)?.as_os_str().as_bytes().to_vec()),
                () if format.is_file() => Kind::File { data: Arc::new(bytes(path)?), length: found.len() },
                () => Kind::Special { format: found.mode() & 0o170_000, device: found.rdev() },
            },
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            time: (!format.is_socket()).then_some((found.mtime(), found.mtime_nsec())),
            xattrs: xattrs(path)?.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
        };
        self.nodes.insert(ino, Arc::new(node));
        if format.is_dir() {
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let below = self.take(&entry.path(), known)?;
                self.name((ino, entry.file_name().as_bytes().to_vec()), below);
            }
        }
        Ok(ino)
    }

    pub(super) fn next_ino(&self) -> Ino {
        self.nodes.last_key_value().map_or(0, |(ino, _)| ino + 1)
    }

    pub(super) fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(|node| &**node)
    }

    pub(super) fn names(&self, directory: Ino) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.node(directory)?.kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(super) fn find(&self, (directory, name): &Name) -> Option<Ino> {
        self.names(*directory)?.get(name).copied()
    }

    /// The name that a directory has.
    pub(super) fn above(&self, directory: Ino) -> Option<Name> {
        self.nodes.keys().find_map(|ino| {
            let (name, _) = self.names(*ino)?.iter().find(|(_, below)| **below == directory)?;
            Some((*ino, name.clone()))
        })
    }

    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            change(Arc::make_mut(node));
        }
    }

    fn name(&mut self, (directory, name): Name, ino: Ino) {
        self.change(directory, |node| {
            if let Kind::Directory(names) = &mut node.kind {
                names.insert(name, ino);
            }
        });
    }

    fn unname(&mut self, (directory, name): &Name, ino: Ino) -> bool {
        let there = self.find(&(*directory, name.clone())) == Some(ino);
        if there {
            self.change(*directory, |node| {
                if let Kind::Directory(names) = &mut node.kind {
                    names.remove(name);
                }
            });
        }
        there
    }

    /// Does an operation; one that needs what an earlier one did, which is lost, does nothing.
    pub(super) fn apply(&mut self, op: &Op, how: How) {
        if how == How::Lost {
            return;
        }
        match op {
            Op::Make { at, node, is } => {
                self.nodes.insert(*node, is.clone());
                if let Some(at) = at {
                    self.name(at.clone(), *node);
                }
            }
            Op::Link { at, node } if self.nodes.contains_key(node) => self.name(at.clone(), *node),
            Op::Unlink { at, node } => {
                self.unname(at, *node);
            }
            Op::Rename { from, to, node } if self.unname(from, *node) => self.name(to.clone(), *node),
            Op::Link { .. } | Op::Rename { .. } => {}
            Op::Exchange { a, b, nodes } => {
                if (self.find(a), self.find(b)) == (Some(nodes.0), Some(nodes.1)) {
                    self.name(a.clone(), nodes.1);
                    self.name(b.clone(), nodes.0);
                }
            }
            Op::Write { node, offset, bytes } => self.write(*node, *offset, bytes, how),
            Op::Resize { node, length } => self.change(*node, |node| resize(node, *length)),
            Op::Change { node, attribute } => self.change(*node, |node| node.set(attribute)),
        }
    }

    fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8], how: How) {
        let whole = bytes.len();
        let (from, to) = match how {
            How::Front(count) => (0, count.min(whole)),
            How::Back(count) => (count.min(whole), whole),
            How::Hollow => (0, 0),
            _ => (0, whole),
        };
        self.change(ino, |node| {
            node.time = None;
            let Kind::File { data, length } = &mut node.kind else { return };
            *length = (*length).max(offset + whole as u64);
            let (start, end) = (offset as usize + from, offset as usize + to);
            if end > start {
                let data = Arc::make_mut(data);
                data.resize(data.len().max(end), 0);
                data[start..end].copy_from_slice(&bytes[from..to]);
            }
        });
    }

    /// Everything that can be reached, in one number.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digester = Digester::new(Algorithm::Sha256);
        let mut told = BTreeMap::new();
        self.tell(TOP, &mut digester, &mut told);
        let mut digest = [0; 32];
        for (at, byte) in digester.finish().hex().as_bytes().chunks(2).enumerate() {
            digest[at] = u8::from_str_radix(std::str::from_utf8(byte).unwrap_or("0"), 16).unwrap_or(0);
        }
        digest
    }

    fn tell(&self, ino: Ino, digester: &mut Digester, told: &mut BTreeMap<Ino, usize>) {
        let Some(node) = self.node(ino) else { return };
        if let Some(before) = told.get(&ino) {
            digester.update(&before.to_le_bytes());
            return;
        }
        told.insert(ino, told.len());
        let head = format!("{:o} {:?} {:?} {:?}|", node.mode, node.owner, node.time, node.xattrs);
        digester.update(head.as_bytes());
        match &node.kind {
            Kind::File { data, length } => {
                digester.update(&length.to_le_bytes());
                digester.update(data);
            }
            Kind::Symlink(target) => digester.update(target),
            Kind::Special { format, device } => digester.update(format!("{format} {device}").as_bytes()),
            Kind::Directory(names) => {
                for (name, below) in names {
                    digester.update(&name.len().to_le_bytes());
                    digester.update(name);
                    self.tell(*below, digester, told);
                }
                digester.update(b"/");
            }
        }
    }

    /// Makes in a directory, which is there and empty, what this has.
    ///
    /// # Errors
    /// What the file system says.
    pub fn lay(&self, top: &Path) -> io::Result<()> {
        let mut laid = BTreeMap::from([(TOP, top.to_owned())]);
        self.lay_below(TOP, top, &mut laid)
    }

    fn lay_below(&self, ino: Ino, at: &Path, laid: &mut BTreeMap<Ino, PathBuf>) -> io::Result<()> {
        for (name, below) in self.names(ino).into_iter().flatten() {
            let path = at.join(std::ffi::OsStr::from_bytes(name));
            let Some(node) = self.node(*below) else { continue };
            if let Some(first) = laid.get(below) {
                rustix::fs::linkat(CWD, first, CWD, &path, AtFlags::empty())?;
                continue;
            }
            laid.insert(*below, path.clone());
            node.lay(&path)?;
            if matches!(node.kind, Kind::Directory(_)) {
                self.lay_below(*below, &path, laid)?;
            }
            node.dress(&path)?;
        }
        Ok(())
    }

    /// How this differs from what is in a directory; empty if it does not. Times that nobody set are not looked at.
    ///
    /// # Errors
    /// What the file system says.
    pub fn differs(&self, top: &Path) -> io::Result<Vec<String>> {
        let mut differences = Vec::new();
        self.compare(TOP, &Self::read(top)?, TOP, Path::new(""), &mut differences);
        Ok(differences)
    }

    fn compare(&self, ino: Ino, other: &Self, theirs: Ino, path: &Path, out: &mut Vec<String>) {
        let (Some(mine), Some(found)) = (self.node(ino), other.node(theirs)) else { return };
        let mut told = |what: &str, same: bool| {
            if !same {
                out.push(format!("{}: {what}", path.display()));
            }
        };
        told(&format!("mode {:o}, really {:o}", mine.mode, found.mode), ino == TOP || mine.mode == found.mode);
        told("owner", mine.owner == found.owner);
        told("xattrs", mine.xattrs == found.xattrs);
        told(
            &format!("time {:?}, really {:?}", mine.time, found.time),
            ino == TOP || mine.time.is_none() || mine.time == found.time || matches!(mine.kind, Kind::Directory(_)),
        );
        match (&mine.kind, &found.kind) {
            (Kind::Directory(mine), Kind::Directory(found)) => {
                let mut names: Vec<&Vec<u8>> = mine.keys().chain(found.keys()).collect();
                names.sort_unstable();
                names.dedup();
                for name in names {
                    let below = path.join(std::ffi::OsStr::from_bytes(name));
                    match (mine.get(name), found.get(name)) {
                        (Some(mine), Some(found)) => self.compare(*mine, other, *found, &below, out),
                        (Some(_), None) => out.push(format!("{}: is not there really", below.display())),
                        _ => out.push(format!("{}: was not recorded", below.display())),
                    }
                }
            }
            (Kind::File { data, length }, Kind::File { data: found, length: really }) => {
                told(&format!("length {length}, really {really}"), length == really);
                let mapped = path.as_os_str().as_bytes().ends_with(b"-shm");
                told("bytes", mapped || trimmed(data) == trimmed(found));
            }
            (mine, found) => told(&format!("{mine:?}, really {found:?}"), mine == found),
        }
    }
}

/// The bytes of a file, without zeros at its end that take no room.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = std::fs::read(path)?;
    bytes.truncate(trimmed(&bytes).len());
    Ok(bytes)
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)]
}

fn resize(node: &mut Node, to: u64) {
    node.time = None;
    if let Kind::File { data, length } = &mut node.kind {
        if data.len() as u64 > to {
            Arc::make_mut(data).truncate(to as usize);
        }
        *length = to;
    }
}

impl Node {
    fn set(&mut self, attribute: &Attribute) {
        match attribute {
            Attribute::Mode(mode) => self.mode = mode & 0o7777,
            Attribute::Owner(user, group) => {
                self.owner = (user.unwrap_or(self.owner.0), group.unwrap_or(self.owner.1));
            }
            Attribute::Time(time) => self.time = *time,
            Attribute::Xattr(name, Some(value)) => {
                self.xattrs.insert(name.clone(), value.clone());
            }
            Attribute::Xattr(name, None) => {
                self.xattrs.remove(name);
            }
        }
    }

    fn lay(&self, path: &Path) -> io::Result<()> {
        match &self.kind {
            Kind::Directory(_) => DirBuilder::new().mode(0o700).create(path),
            Kind::Symlink(target) => symlink(std::ffi::OsStr::from_bytes(target), path),
            Kind::File { data, length } => {
                let mut file = File::create_new(path)?;
                let shown = data.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
                file.write_all(&data[..shown])?;
                file.set_len(*length)
            }
            Kind::Special { format, device } => {
                let format = FileType::from_raw_mode(*format);
                Ok(rustix::fs::mknodat(CWD, path, format, Mode::from_raw_mode(0o600), *device)?)
            }
        }
    }

    /// Owner, mode, attributes and time, in an order in which none undoes another.
    fn dress(&self, path: &Path) -> io::Result<()> {
        let (user, group) = self.owner;
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
        if !matches!(self.kind, Kind::Symlink(_)) {
            std::fs::set_permissions(path, Permissions::from_mode(self.mode))?;
        }
        for (name, value) in &self.xattrs {
            rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty())?;
        }
        if let Some((seconds, nanoseconds)) = self.time {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}
