//! Finds what is different between two complete trees.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::{Change, Changes};
use crate::Result;
use crate::error::At as _;
use crate::fs::{self, xattr};

/// Bytes compared at a time.
const COMPARE_BYTES: usize = 64 << 10;

/// A file's identity.
type Inode = (u64, u64);

/// Lists what must be written to make `upper` out of `lower`.
pub(super) fn compare(lower: Option<&Path>, upper: &Path) -> Result<Changes> {
    let open = |path: &Path| fs::open_dir(path).at("open", path);
    let mut scan = Scan {
        upper_path: upper,
        upper: open(upper)?,
        lower: lower.map(open).transpose()?,
        changes: Changes::default(),
        names: [HashMap::new(), HashMap::new()],
        common: Vec::new(),
    };
    let mut pending = vec![(Vec::new(), scan.lower.is_some())];
    while let Some((dir, in_lower)) = pending.pop() {
        scan.directory(&dir, in_lower, &mut pending)?;
    }
    scan.link_changes();
    Ok(scan.changes.with_parents())
}

struct Scan<'a> {
    upper_path: &'a Path,
    upper: OwnedFd,
    lower: Option<OwnedFd>,
    changes: Changes,
    /// The names of files that have several: in the lower tree, as far as the upper has them too, and in the upper.
    names: [HashMap<Inode, BTreeSet<Vec<u8>>>; 2],
    /// Files in both trees of which one has several names.
    common: Vec<(Vec<u8>, Inode, Inode)>,
}

const LOWER: usize = 0;
const UPPER: usize = 1;
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Scan<'_> {
    fn directory(&mut self, dir: &[u8], in_lower: bool, pending: &mut Vec<(Vec<u8>, bool)>) -> Result<()> {
        let shown = fs::shown(self.upper_path, dir);
        let upper = fs::open_beneath(self.upper.as_fd(), dir, LIST).at("open", &shown)?;
        let lower = match &self.lower {
            Some(root) if in_lower => Some(fs::open_beneath(root.as_fd(), dir, LIST).at("open", &shown)?),
            _ => None,
        };
        let upper_names = names(&upper).at("read", &shown)?;
        for name in &upper_names {
            let path = fs::join(dir, name);
            let stat = rustix::fs::statat(&upper, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).at("stat", &shown)?;
            let old = lower
                .as_ref()
                .and_then(|lower| rustix::fs::statat(lower, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).ok());
            let is_dir = fs::file_type(&stat) == FileType::Directory;
            let both_dirs = is_dir && old.is_some_and(|old| fs::file_type(&old) == FileType::Directory);
            if is_dir {
                pending.push((path.clone(), both_dirs));
            } else {
                self.note_names(&path, old.as_ref(), &stat);
            }
            let same = match (&lower, &old) {
                (Some(lower), Some(old)) => same(lower, old, &upper, &stat, name).at("compare", shown.join("…"))?,
                _ => false,
            };
            if !same {
                self.changes.insert(&path, Change::Put);
            }
        }
        let Some(lower) = lower else { return Ok(()) };
        for name in names(&lower).at("read", &shown)?.difference(&upper_names) {
            self.changes.insert(&fs::join(dir, name), Change::Delete);
        }
        Ok(())
    }

    fn note_names(&mut self, path: &[u8], old: Option<&Stat>, new: &Stat) {
        let old = old.filter(|old| fs::file_type(old) != FileType::Directory);
        let inode = |stat: &Stat| (stat.st_dev, stat.st_ino);
        if new.st_nlink > 1 {
            self.names[UPPER].entry(inode(new)).or_default().insert(path.to_vec());
        }
        let Some(old) = old else { return };
        if old.st_nlink > 1 {
            self.names[LOWER].entry(inode(old)).or_default().insert(path.to_vec());
        }
        if old.st_nlink > 1 || new.st_nlink > 1 {
            self.common.push((path.to_vec(), inode(old), inode(new)));
        }
    }

    /// Files that have other names than before are written again, with all their names.
    fn link_changes(&mut self) {
        for (path, old, new) in std::mem::take(&mut self.common) {
            let alone = BTreeSet::from([path.clone()]);
            let old = self.names[LOWER].get(&old).unwrap_or(&alone);
            let new = self.names[UPPER].get(&new).unwrap_or(&alone);
            if old != new {
                self.changes.insert(&path, Change::Put);
            }
        }
        for names in self.names[UPPER].values() {
            if names.iter().any(|name| self.changes.contains(name)) {
                names.iter().for_each(|name| self.changes.insert(name, Change::Put));
            }
        }
    }
}

fn names(dir: &OwnedFd) -> rustix::io::Result<BTreeSet<Vec<u8>>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.insert(name.to_vec());
        }
    }
    Ok(names)
}

/// Whether `name` is the same in both directories, as far as a layer can tell.
fn same(lower: &OwnedFd, old: &Stat, upper: &OwnedFd, new: &Stat, name: &[u8]) -> rustix::io::Result<bool> {
    let kind = fs::file_type(new);
    if old.st_mode != new.st_mode || (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid) {
        return Ok(false);
    }
    if (old.st_mtime, old.st_mtime_nsec) != (new.st_mtime, new.st_mtime_nsec) {
        return Ok(false);
    }
    let content_is_same = match kind {
        FileType::RegularFile => {
            old.st_size == new.st_size && (new.st_mtime_nsec != 0 || same_content(lower, upper, name)?)
        }
        FileType::Symlink => {
            rustix::fs::readlinkat(lower, name, Vec::new())? == rustix::fs::readlinkat(upper, name, Vec::new())?
        }
        FileType::CharacterDevice | FileType::BlockDevice => old.st_rdev == new.st_rdev,
        _ => true,
    };
    Ok(content_is_same && attributes(lower, name)? == attributes(upper, name)?)
}

fn attributes(dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut all = xattr::all(dir.as_fd(), name)?;
    all.retain(|(name, _)| super::write::is_portable(name));
    Ok(all)
}

fn same_content(lower: &OwnedFd, upper: &OwnedFd, name: &[u8]) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |dir| rustix::fs::openat(dir, name, flags, Mode::empty()).map(File::from);
    let (old, new) = (open(lower)?, open(upper)?);
    let (mut a, mut b) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut offset = 0;
    loop {
        let read = read_full(&old, &mut a, offset)?;
        if read != read_full(&new, &mut b, offset)? || a[..read] != b[..read] {
            return Ok(false);
        }
        if read < a.len() {
            return Ok(true);
        }
        offset += read as u64;
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)),
        }
    }
    Ok(filled)
}
