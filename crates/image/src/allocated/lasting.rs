//! What blobs and committed trees take, measured once: their bytes never change, and there are so many that looking at
//! every file again is most of what measuring a root costs.
//!
//! The directory that has them is read whenever its times say that something came or went, so what is there is always seen.
//! An entry is known again by its name and its inode: what was moved away and came anew, as a blob or tree that was mended,
//! is measured again.
//!
//! # Invariants
//! - Remembered is only what was measured after it was known to last, and of which no other name is elsewhere.
//! - That nothing came or went is believed of a directory that had been left alone for a while when it was read: later changes
//!   have other times than that one's, however coarse the file system's clock is.
//! - On file systems whose files may share extents nothing is remembered: what a file takes there alone depends on all others.
//!
//! # Concurrency
//! Who measures has what is remembered for himself. Two threads share the entries that are not known.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{THREADS, Walk, failed, is_directory};
use crate::Result;

/// Entries that went stay remembered until there are this many, or as many as are there.
const GONE: usize = 1024;

/// How long a directory must have been left alone when it is read, in seconds: more than any file system's times are apart.
const LEFT_ALONE: i64 = 3;

/// Which entries of a directory last, and what tells them apart besides their inodes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// All that are a hash: blobs. Its first half tells more than enough.
    Hashes,
    /// These numbers, in order: trees.
    Numbers(Vec<u64>),
}

impl Names {
    fn number(&self, name: &[u8]) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        match self {
            Self::Hashes => u64::from_str_radix(name.get(..16).filter(|_| name.len() == 64)?, 16).ok(),
            Self::Numbers(lasting) => name.parse().ok().filter(|number| lasting.binary_search(number).is_ok()),
        }
    }
}

/// What is remembered of the entries of one directory.
#[derive(Debug, Default)]
pub(crate) struct Lasting {
    /// By inode.
    known: HashMap<u64, Known>,
    /// Which look at the directory is the last.
    round: u32,
    /// What that was.
    last: Option<Look>,
}

/// A directory as it was when it was read.
#[derive(Debug)]
struct Look {
    times: Times,
    names: Names,
    /// What its entries take that are known, and itself.
    known_bytes: u64,
    /// The others.
    unknown: Vec<Unknown>,
}

/// When a directory last changed, in seconds and nanoseconds.
type Times = [(i64, i64); 2];

#[derive(Debug)]
struct Known {
    /// The number that its name is, or begins with.
    name: u64,
    bytes: u64,
    round: u32,
}

/// An entry of which nothing is remembered.
#[derive(Debug)]
struct Unknown {
    name: CString,
    inode: u64,
    /// Its number, if it lasts.
    lasts: Option<u64>,
}

impl Lasting {
    /// What an entry takes, if it was measured.
    fn bytes(&mut self, inode: u64, name: u64) -> Option<u64> {
        let known = self.known.get_mut(&inode).filter(|known| known.name == name)?;
        known.round = self.round;
        Some(known.bytes)
    }

    /// Reads a directory, whose times were asked for before.
    fn read(&mut self, mut entries: Dir, path: &Path, times: Times, names: Names) -> Result<Look> {
        self.round += 1;
        let (mut known_bytes, mut unknown, mut there) = (0, Vec::new(), 0);
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list", path))?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            there += 1;
            let lasts = names.number(name);
            match lasts.and_then(|number| self.bytes(entry.ino(), number)) {
                Some(known) => known_bytes += known,
                None => unknown.push(Unknown { name: entry.file_name().to_owned(), inode: entry.ino(), lasts }),
            }
        }
        self.forget_gone(there);
        Ok(Look { times, names, known_bytes, unknown })
    }

    fn forget_gone(&mut self, there: usize) {
        if self.known.len() > 2 * there.max(GONE) {
            let round = self.round;
            self.known.retain(|_, known| known.round == round);
        }
    }
}

fn times(stat: &Stat) -> Times {
    // Both are signed, or not, as the machine has them.
    #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap, reason = "types that differ between machines")]
    [(stat.st_mtime as i64, stat.st_mtime_nsec as i64), (stat.st_ctime as i64, stat.st_ctime_nsec as i64)]
}

impl Walk<'_> {
    /// Bytes allocated to a directory and everything in it, as [`Walk::below`] counts. What `names` says to last must have lasted
    /// before this is called.
    pub(crate) fn lasting(&self, part: &Path, lasting: &mut Lasting, names: Names) -> Result<u64> {
        let path = self.root.join(part);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(0),
            directory => directory.map_err(failed("open", &path))?,
        };
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        let stat = rustix::fs::fstat(&directory).map_err(failed("stat", &path))?;
        let times = times(&stat);
        let look = match lasting.last.take() {
            Some(last) if last.times == times && last.names == names => last,
            _ => lasting.read(Dir::new(directory).map_err(failed("list", &path))?, &path, times, names)?,
        };
        let bytes = self.count(&stat) + look.known_bytes + self.measure(&path, &look.unknown, lasting)?;
        // What was measured just now is known next time.
        let all_known = look.unknown.iter().all(|entry| entry.lasts.is_none());
        lasting.last = Some(look).filter(|_| all_known && times.iter().all(|(second, _)| second + LEFT_ALONE < now));
        Ok(bytes)
    }

    /// Measures entries, and remembers those that last.
    fn measure(&self, path: &Path, unknown: &[Unknown], lasting: &mut Lasting) -> Result<u64> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<(usize, Measured)>> {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(entry) = unknown.get(at) else { return Ok(done) };
                done.push((at, self.entry(path.join(OsStr::from_bytes(entry.name.to_bytes())))?));
            }
        };
        let helpers = if unknown.len() > 1 { THREADS - 1 } else { 0 };
        let done = std::thread::scope(|scope| -> Result<_> {
            let threads: Vec<_> = (0..helpers).map(|_| scope.spawn(work)).collect();
            let mut done = work()?;
            for thread in threads {
                done.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(done)
        })?;
        let round = lasting.round;
        let mut bytes = 0;
        for (at, measured) in done {
            bytes += measured.bytes;
            if let Some(name) = unknown[at].lasts.filter(|_| measured.is_alone) {
                lasting.known.insert(unknown[at].inode, Known { name, bytes: measured.bytes, round });
            }
        }
        Ok(bytes)
    }

    /// Measures a file, or a directory with everything below it.
    fn entry(&self, path: PathBuf) -> Result<Measured> {
        let mut tally = Tally { walk: self, links: HashMap::new(), bytes: 0 };
        match rustix::fs::lstat(&path) {
            Err(Errno::NOENT) => return Ok(Measured { bytes: 0, is_alone: false }),
            stat => {
                let stat = stat.map_err(failed("stat", &path))?;
                match is_directory(&stat) {
                    true => tally.directories(path)?,
                    false => tally.file(&stat),
                }
            }
        }
        Ok(tally.end())
    }
}

/// What an entry takes.
struct Measured {
    bytes: u64,
    /// Whether nothing in it has a name elsewhere.
    is_alone: bool,
}

/// Adds up one entry.
struct Tally<'w, 'r> {
    walk: &'w Walk<'r>,
    /// Files with several names: one of them, and how many were met.
    links: HashMap<(u64, u64), (Stat, u64)>,
    bytes: u64,
}

impl Tally<'_, '_> {
    fn directories(&mut self, top: PathBuf) -> Result<()> {
        let mut open = vec![top];
        while let Some(path) = open.pop() {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = match rustix::fs::open(&path, flags, Mode::empty()) {
                // Gone, or another thing by now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                directory => directory.map_err(failed("open", &path))?,
            };
            self.bytes += self.walk.count(&rustix::fs::fstat(&directory).map_err(failed("stat", &path))?);
            let mut entries = Dir::read_from(&directory).map_err(failed("list", &path))?;
            while let Some(entry) = entries.read() {
                let entry = entry.map_err(failed("list", &path))?;
                let name = entry.file_name();
                if name.to_bytes() == b"." || name.to_bytes() == b".." {
                    continue;
                }
                if entry.file_type() == FileType::Directory {
                    open.push(path.join(OsStr::from_bytes(name.to_bytes())));
                    continue;
                }
                match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => {}
                    stat => match stat.map_err(failed("stat", &path))? {
                        stat if is_directory(&stat) => open.push(path.join(OsStr::from_bytes(name.to_bytes()))),
                        stat => self.file(&stat),
                    },
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, stat: &Stat) {
        if stat.st_nlink > 1 {
            self.links.entry((stat.st_dev, stat.st_ino)).or_insert((*stat, 0)).1 += 1;
        } else {
            self.bytes += stat.st_blocks.unsigned_abs() * 512;
        }
    }

    fn end(self) -> Measured {
        let (mut bytes, mut is_alone) = (self.bytes, true);
        for (stat, met) in self.links.into_values() {
            is_alone &= met == stat.st_nlink;
            bytes += self.walk.count_names(&stat, met);
        }
        Measured { bytes, is_alone }
    }
}
