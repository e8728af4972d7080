//! Walks a tree of any depth with one open directory at a time.
//!
//! Going up opens `..` and checks that it is the directory one came from; so neither the depth of a tree nor the limit
//! on open files matters. The tree must not be renamed around meanwhile.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What the walk comes to next; its parent is [`Walk::dir`].
pub(crate) enum Step {
    /// A directory; the walk goes into it next, unless [`Walk::skip`] is called.
    Enter { name: CString, stat: Stat },
    /// A directory is done; the walk is back in its parent.
    Leave { name: CString },
    /// Anything else.
    Other { name: CString, stat: Stat },
}

struct Level {
    /// What is left in this directory, last first.
    names: Vec<CString>,
    /// The directory's own name and identity.
    name: CString,
    device: u64,
    inode: u64,
}

/// A depth-first walk below a directory; names come sorted.
pub(crate) struct Walk {
    dir: OwnedFd,
    levels: Vec<Level>,
    pending: Option<(CString, u64, u64)>,
}

/// How the walk opens directories.
const FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Walk {
    /// Starts in `root`.
    pub(crate) fn new(root: OwnedFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let level =
            Level { names: names(root.as_fd())?, name: CString::default(), device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { dir: root, levels: vec![level], pending: None })
    }

    /// The directory that the last step's name is in.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Does not go into the directory that was just announced; there will be no `Leave` for it.
    pub(crate) fn skip(&mut self) {
        self.pending = None;
    }

    /// The path of the directory that the walk is in, relative to its root.
    pub(crate) fn path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.levels.iter().skip(1).map(|level| level.name.as_bytes()).collect();
        names.join(&b'/')
    }

    /// The next step; `None` at the end.
    pub(crate) fn next(&mut self) -> rustix::io::Result<Option<Step>> {
        if let Some((name, device, inode)) = self.pending.take() {
            self.descend(name, device, inode)?;
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.pop() else { return self.ascend() };
            let stat = match rustix::fs::statat(&self.dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.pending = Some((name.clone(), stat.st_dev, stat.st_ino));
                return Ok(Some(Step::Enter { name, stat }));
            }
            return Ok(Some(Step::Other { name, stat }));
        }
    }

    fn descend(&mut self, name: CString, device: u64, inode: u64) -> rustix::io::Result<()> {
        let dir = rustix::fs::openat(&self.dir, &name, FLAGS, Mode::empty())?;
        self.levels.push(Level { names: names(dir.as_fd())?, name, device, inode });
        self.dir = dir;
        Ok(())
    }

    fn ascend(&mut self) -> rustix::io::Result<Option<Step>> {
        let Some(done) = self.levels.pop() else { return Ok(None) };
        let Some(parent) = self.levels.last() else { return Ok(None) };
        let dir = rustix::fs::openat(&self.dir, c"..", FLAGS, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        if (stat.st_dev, stat.st_ino) != (parent.device, parent.inode) {
            return Err(Errno::STALE);
        }
        self.dir = dir;
        Ok(Some(Step::Leave { name: done.name }))
    }
}

/// The names in a directory, in reverse order.
fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !is_dot(entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}
