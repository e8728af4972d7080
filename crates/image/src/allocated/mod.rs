//! What files take on disk, by walking over them: allocated blocks, each inode and each shared extent once.
//!
//! Every file is looked at, for only the file system knows what it has allocated (sparse and compressed files, tails, hard
//! links). So it is made cheap: names are looked up from their directory, and two threads share the work, a directory or
//! [`PIECE`] names of a large one at a time.
//!
//! [`lasting`] remembers what need not be looked at twice.
//!
//! # Concurrency
//! Others may change what is walked over: what goes meanwhile is not counted.

mod lasting;

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use orlop_snapshot::extents::{self, Counted};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

pub(crate) use lasting::{Lasting, Names};

use crate::{Error, Result};

/// Names that a thread looks up before others may take some of the rest.
const PIECE: usize = 512;

/// More of them would wait for the same locks of the file system.
const THREADS: usize = 2;

/// A walk over the parts of a root. Hard links, and extents that several files share, count in the part that is walked over first.
pub(crate) struct Walk<'r> {
    root: &'r Path,
    /// Files that have several names, by device and inode.
    seen: Mutex<HashMap<(u64, u64), Several>>,
    /// Extents that files share, of the root's device if that is one whose files may.
    shared: Option<(u64, Mutex<Counted>)>,
    parts: Vec<PathBuf>,
}

/// A file with several names.
struct Several {
    /// Names that were not met yet.
    outside: u64,
    bytes: u64,
}

impl<'r> Walk<'r> {
    pub(crate) fn new(root: &'r Path) -> Self {
        let sharing = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|directory| Ok((extents::may_be_shared(&directory), rustix::fs::fstat(&directory)?.st_dev)));
        let shared = sharing.ok().filter(|(may, _)| *may).map(|(_, device)| (device, Mutex::default()));
        Self { root, seen: Mutex::default(), shared, parts: Vec::new() }
    }

    /// Bytes allocated to a directory and everything below it; none if it is not there.
    pub(crate) fn below(&mut self, part: &str) -> Result<u64> {
        let path = self.root.join(part);
        let bytes = self.walk(path.clone(), false)?;
        self.parts.push(path);
        Ok(bytes)
    }

    /// Whether what a file takes does not depend on others, so that it may be remembered.
    pub(crate) fn may_remember(&self) -> bool {
        self.shared.is_none()
    }

    /// Leaves a directory out of all that is walked over from here on.
    pub(crate) fn leave_out(&mut self, part: &Path) {
        self.parts.push(self.root.join(part));
    }

    /// The same of everything else in the root. What is mounted there belongs to others.
    pub(crate) fn rest(&self) -> Result<u64> {
        self.walk(self.root.to_owned(), true)
    }

    fn walk(&self, top: PathBuf, rest: bool) -> Result<u64> {
        let stat = match rustix::fs::lstat(&top) {
            Err(Errno::NOENT) => return Ok(0),
            stat => stat.map_err(failed("stat", &top))?,
        };
        if !is_directory(&stat) {
            return Ok(self.count(&stat));
        }
        let (state, changed) = (Mutex::default(), Condvar::new());
        let pool = Pool { walk: self, top: stat.st_dev, rest, state, changed };
        pool.lock().tasks.push(Task::Directory(top));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| pool.work())).collect();
            pool.work();
            threads.into_iter().for_each(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
        let state = pool.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.failed.map_or(Ok(state.bytes), Err)
    }

    /// What a file takes, unless another name of it was counted.
    fn count(&self, stat: &Stat) -> u64 {
        self.count_names(stat, 1)
    }

    /// The same where so many of its names were met.
    fn count_names(&self, stat: &Stat, names: u64) -> u64 {
        let bytes = stat.st_blocks.unsigned_abs() * 512;
        if is_directory(stat) || stat.st_nlink <= 1 {
            return bytes;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.contains_key(&(stat.st_dev, stat.st_ino));
        let file = seen.entry((stat.st_dev, stat.st_ino)).or_insert(Several { outside: stat.st_nlink, bytes });
        file.outside = file.outside.saturating_sub(names);
        if known { 0 } else { bytes }
    }

    /// Of all that was walked over: bytes that files have which are outside of it, under another name or with shared extents.
    pub(crate) fn elsewhere(&self) -> u64 {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let named: u64 = seen.values().filter(|file| file.outside > 0).map(|file| file.bytes).sum();
        let shared = self.shared.as_ref().map_or(0, |(_, counted)| {
            let counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.once()
        });
        named + shared
    }

    /// The same of a file in a directory, less what other files share with it and was counted with them.
    fn count_in(&self, opened: &Opened, name: &CStr, stat: &Stat) -> Result<u64> {
        let bytes = self.count(stat);
        match &self.shared {
            Some((device, counted)) if bytes > 0 && *device == stat.st_dev => {
                let count = |extent| counted.lock().unwrap_or_else(PoisonError::into_inner).count(extent);
                extents::allocated(opened.directory.as_fd(), name, stat, count).map_err(failed("read", &opened.path))
            }
            _ => Ok(bytes),
        }
    }
}

enum Task {
    /// A directory to list; itself not counted yet.
    Directory(PathBuf),
    /// Names in a directory, each with a zero byte.
    Names(Arc<Opened>, Vec<u8>),
}

struct Opened {
    path: PathBuf,
    directory: OwnedFd,
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    /// Threads that may still find more.
    working: usize,
    bytes: u64,
    failed: Option<Error>,
}

struct Pool<'p> {
    walk: &'p Walk<'p>,
    /// The device of what is walked over.
    top: u64,
    /// Nothing else is, for what is left of a root.
    rest: bool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Pool<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while state.failed.is_none() {
            let Some(task) = state.tasks.pop() else {
                if state.working == 0 {
                    break;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.working += 1;
            drop(state);
            let done = match task {
                Task::Directory(path) => self.list(path),
                Task::Names(opened, names) => self.look(&opened, &names).map(|(bytes, below)| (bytes, paths(below))),
            };
            state = self.lock();
            state.working -= 1;
            match done {
                Ok((bytes, tasks)) => {
                    state.bytes += bytes;
                    state.tasks.extend(tasks);
                }
                Err(error) => state.failed = Some(error),
            }
            self.changed.notify_all();
        }
        // Whoever still waits waits for nothing.
        self.changed.notify_all();
    }

    /// Counts a directory and what is in it; returns the rest to do.
    fn list(&self, path: PathBuf) -> Result<(u64, Vec<Task>)> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
            // Gone, or another thing by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok((0, Vec::new())),
            directory => directory.map_err(failed("open", &path))?,
        };
        let stat = rustix::fs::fstat(&directory).map_err(failed("stat", &path))?;
        let elsewhere = stat.st_dev != self.top;
        if elsewhere && (self.rest || is_image(&directory).map_err(failed("look at", &path))?) {
            return Ok((0, Vec::new()));
        }
        let mut entries = Dir::read_from(&directory).map_err(failed("list", &path))?;
        let opened = Arc::new(Opened { path, directory });
        let mut bytes = self.walk.count(&stat);
        let (mut names, mut count, mut below) = (Vec::new(), 0, Vec::new());
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list", &opened.path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                below.extend(self.directory(&opened, entry.file_name()));
                continue;
            }
            names.extend_from_slice(entry.file_name().to_bytes_with_nul());
            count += 1;
            if count == PIECE {
                self.lock().tasks.push(Task::Names(opened.clone(), std::mem::take(&mut names)));
                self.changed.notify_one();
                count = 0;
            }
        }
        let (more, found) = self.look(&opened, &names)?;
        bytes += more;
        below.extend(found);
        Ok((bytes, paths(below)))
    }

    /// Counts files by their names; returns what turned out to be a directory.
    fn look(&self, opened: &Opened, names: &[u8]) -> Result<(u64, Vec<PathBuf>)> {
        let (mut bytes, mut below) = (0, Vec::new());
        for name in names.split_inclusive(|byte| *byte == 0) {
            let name = CStr::from_bytes_with_nul(name).expect("one zero byte, at the end");
            let stat = match rustix::fs::statat(&opened.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed("stat", &opened.path))?,
            };
            if is_directory(&stat) {
                below.extend(self.directory(opened, name));
            } else {
                bytes += self.walk.count_in(opened, name, &stat)?;
            }
        }
        Ok((bytes, below))
    }

    /// The path of a directory to walk over.
    fn directory(&self, opened: &Opened, name: &CStr) -> Option<PathBuf> {
        let path = opened.path.join(OsStr::from_bytes(name.to_bytes()));
        (!self.walk.parts.contains(&path)).then_some(path)
    }
}

fn paths(directories: Vec<PathBuf>) -> Vec<Task> {
    directories.into_iter().map(Task::Directory).collect()
}

/// Whether this is a layer's image, mounted: its file is counted where it lies.
fn is_image(directory: &OwnedFd) -> rustix::io::Result<bool> {
    const EROFS: u64 = 0xE0F5_E1E2;
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "types that differ between machines")]
    Ok(rustix::fs::fstatfs(directory)?.f_type as u64 == EROFS)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |error| Error::Io { operation, path, source: io::Error::from(error) }
}
