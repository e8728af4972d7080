//! Trees that come from elsewhere on the same file system, or go there, without a byte of content being copied.
//!
//! Directories are made anew, and so is what has no content: links, devices, overlayfs' whiteouts. Files keep their content where
//! it is. Where the file system can share extents, each gets an inode of its own with what the other has: content by reflink, owner,
//! mode, times, extended attributes. Elsewhere it gets a second name.
//!
//! # Invariants
//! - Nothing of where a tree comes from is changed, but that files have more names.
//! - A file with two names is one file. It is never written, nor its mode, owner, times or attributes changed, by either side: trees
//!   that are committed lie below overlays, which copy up. Only names are removed.
//! - What says which tree below a directory stands for (`redirect`, `opaque`) comes along; what names an inode of the old place
//!   (`origin`, `impure`, `uuid`) does not: overlayfs does without.
//!
//! # Concurrency
//! Who removes the source meanwhile leaves a part of it in the copy, and no error: the caller looks afterwards whether it is still
//! there, before anybody sees the copy.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno;

use crate::error::At as _;
use crate::fs;
use crate::fs::walk::{Step, Walk};
use crate::overlay::is_of_the_tree;
use crate::{Result, copy, extents};

/// What was linked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Linked {
    /// Files whose content was not copied, each inode once.
    pub files: u64,
    /// Their bytes, 512 × `st_blocks`.
    pub bytes: u64,
    /// How many of the files are inodes of their own that share extents.
    pub cloned: u64,
}

/// Whether files at one place can be given names at another.
///
/// # Errors
/// In words, why not: another file system, or another mount of it. Of a place that is not there yet the directory above counts.
pub fn reach(from: &Path, to: &Path) -> Result<(), String> {
    let stat = |path: &Path| {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        rustix::fs::statx(CWD, there, AtFlags::empty(), wanted).map_err(|e| format!("{}: {e}", there.display()))
    };
    let (source, target) = (stat(from)?, stat(to)?);
    let device = |found: &rustix::fs::Statx| (found.stx_dev_major, found.stx_dev_minor);
    let (from, to) = (from.display(), to.display());
    if device(&source) != device(&target) {
        return Err(format!("{from} and {to} are on different file systems"));
    }
    let knows = |found: &rustix::fs::Statx| found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    if knows(&source) && knows(&target) && source.stx_mnt_id != target.stx_mnt_id {
        return Err(format!(
            "{from} and {to} are on one file system that is mounted twice: no file has names in both mounts"
        ));
    }
    Ok(())
}

/// Lets the empty directory `to` be what `from` is, its own attributes too.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<Linked> {
    let source = open_unfollowed(from).at("open", from)?;
    let target = fs::open_dir(to).at("open", to)?;
    let mut linked = Linked::default();
    let link =
        |from: BorrowedFd<'_>, name: &[u8], stat: &Stat, to: BorrowedFd<'_>| match linked.add(from, name, stat, to) {
            // It went: the caller looks what that means.
            Err(Errno::NOENT) => Ok(false),
            added => added.map(|()| true),
        };
    copy::remake(source, target, is_of_the_tree, link).at("link the tree", from)?;
    Ok(linked)
}

/// Opens a directory that may be anything by now: no link is followed at its end.
fn open_unfollowed(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

impl Linked {
    /// Lets what `name` is in one directory be in another too.
    fn add(&mut self, from: BorrowedFd<'_>, name: &[u8], stat: &Stat, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if !is_file(stat) {
            return copy::file(from, name, stat, to, name);
        }
        let cloned = clone(from, name, stat, to)?;
        if !cloned {
            rustix::fs::linkat(from, name, to, name, AtFlags::empty())?;
        }
        self.files += 1;
        self.cloned += u64::from(cloned);
        self.bytes += stat.st_blocks.unsigned_abs() * 512;
        Ok(())
    }
}

/// Makes a file of its own that shares all extents; says whether the file system can.
fn clone(from: BorrowedFd<'_>, name: &[u8], stat: &Stat, to: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    if !extents::may_be_shared(to) {
        return Ok(false);
    }
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let target = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => copy::attributes_taken(from, name, stat, to, name, is_of_the_tree).map(|()| true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV) => {
            rustix::fs::unlinkat(to, name, AtFlags::empty()).map(|()| false)
        }
        Err(error) => Err(error),
    }
}

fn is_file(stat: &Stat) -> bool {
    fs::file_type(stat) == FileType::RegularFile
}

/// Bytes of a tree that stay allocated when it goes, since files elsewhere have them: of inodes with a name outside, and of
/// extents that others share.
pub(crate) fn elsewhere(tree: &Path) -> Result<u64> {
    let root = fs::open_dir(tree).at("open", tree)?;
    let shares = extents::may_be_shared(&root);
    let mut walk = Walk::new(root).at("read", tree)?;
    let (mut bytes, mut several) = (0, HashMap::<(u64, u64), Several>::new());
    while let Some(step) = walk.next().at("read", tree)? {
        let Step::Other { name, stat } = step else { continue };
        if !is_file(&stat) {
            continue;
        }
        let inode = (stat.st_dev, stat.st_ino);
        if let Some(known) = several.get_mut(&inode) {
            known.outside = known.outside.saturating_sub(1);
            continue;
        }
        let shared = if shares { extents::shared_bytes(walk.dir(), &name, &stat).at("read", tree)? } else { 0 };
        if stat.st_nlink == 1 {
            bytes += shared;
        } else {
            let size = stat.st_blocks.unsigned_abs() * 512;
            several.insert(inode, Several { outside: stat.st_nlink - 1, size, shared });
        }
    }
    let kept = |file: Several| if file.outside > 0 { file.size } else { file.shared };
    Ok(bytes + several.into_values().map(kept).sum::<u64>())
}

/// A file with several names.
struct Several {
    /// How many of them were not met in the tree.
    outside: u64,
    /// The bytes that it takes, and of those what others share.
    size: u64,
    shared: u64,
}

/// Files of a tree whose length is not the one that the layer's tar says; sorted. A path that the tree has not, or only behind a
/// link, is no file of this layer any more.
///
/// # Errors
/// As [`crate::apply::list`].
pub fn differing(
    layer: impl std::io::Read + Send,
    tree: &Path,
    limits: &crate::apply::Limits,
) -> Result<Vec<(std::path::PathBuf, u64, u64)>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut lengths: HashMap<Vec<u8>, Option<u64>> = HashMap::new();
    crate::apply::list(layer, limits, |path, length| {
        lengths.insert(path.to_owned(), length);
    })?;
    let root = open_unfollowed(tree).at("open", tree)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = |path: &[u8]| {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).ok()?;
        rustix::fs::fstat(&file).ok().filter(is_file).map(|stat| stat.st_size.unsigned_abs())
    };
    let mut all: Vec<_> = lengths
        .into_iter()
        .filter_map(|(path, length)| {
            let (said, is) = (length?, found(&path)?);
            (said != is).then(|| (std::ffi::OsString::from_vec(path).into(), said, is))
        })
        .collect();
    all.sort();
    Ok(all)
}
