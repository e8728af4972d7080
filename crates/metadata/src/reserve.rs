//! Space held back, so that a root on a full file system can still be read and cleaned up.
//!
//! `ROOT/reserve` holds no content, only allocated blocks. Opening the database takes a few of them for the index of its
//! write-ahead log, deleting takes more for the log itself and for moving things into the trash; leases, under which even
//! reading works, take a little. They are lent to nobody else, and returned as soon as there is room.
//!
//! # Invariants
//! - The reserve is there as long as the file system ever had room for several of it while the root was open.
//! - It is lent only where the file system is nearly full, and only to what reads the root or makes it smaller.
//! - What this process has lent it takes back when the last borrower is done: before, others still need it.
//!
//! # Concurrency
//! Several processes may lend and return at once: each step is one system call, and a reserve that is too small for a
//! moment is filled by the next that looks. That somebody else takes what was lent cannot be kept from happening.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::FallocateFlags;

use crate::db::lock;

/// The whole reserve: a removal of some thousand records, in the write-ahead log and in the trash.
const BYTES: u64 = 4 << 20;
/// What opening takes: 32 KiB for the index, a header of the log, a block for a directory; in blocks of up to 64 KiB.
const OPENING: u64 = 256 << 10;
/// The reserve is made only where it is a small part of what is free.
const ROOM: u64 = 4 * BYTES;
/// What returning leaves free, for who just needs a block.
const LEFT: u64 = 64 << 10;

/// The reserve of one root.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// Who borrows now.
    borrowers: Mutex<usize>,
}

/// A loan from the reserve; returned when dropped.
#[derive(Debug)]
pub(crate) struct Loan<'a>(&'a Reserve);

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut borrowers = lock(&self.0.borrowers);
        *borrowers -= 1;
        if *borrowers == 0 {
            self.0.fill();
        }
    }
}

impl Reserve {
    pub(crate) fn new(root: &Path) -> Self {
        Self { path: root.join("reserve"), borrowers: Mutex::default() }
    }

    /// Makes the reserve, or returns to it what was lent, as far as there is room. That it cannot be done is no failure
    /// of whoever has something else to do.
    pub(crate) fn fill(&self) {
        let held = self.held();
        let wanted = BYTES - held.unwrap_or(0).min(BYTES);
        let Some(free) = self.free().filter(|_| wanted > 0) else { return };
        let room = match held {
            Some(_) => free.saturating_sub(LEFT),
            None if free >= ROOM => free,
            None => 0,
        };
        let grown = held.unwrap_or(0) + wanted.min(room);
        if room == 0 {
            return;
        }
        let filled = File::options().create(true).truncate(false).write(true).open(&self.path).and_then(|file| {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, grown)?;
            Ok(())
        });
        if let Err(error) = filled {
            tracing::debug!(%error, path = %self.path.display(), "space could not be reserved");
        }
    }

    /// Gives up a part for opening the database. Says whether there was any.
    pub(crate) fn lend_for_opening(&self) -> bool {
        self.held().is_some_and(|held| held > 0 && self.shrink(held.saturating_sub(OPENING)))
    }

    /// Gives up all of it for a deletion, an undo or a lease, if the file system is nearly full.
    pub(crate) fn lend(&self) -> Loan<'_> {
        let mut borrowers = lock(&self.borrowers);
        *borrowers += 1;
        if self.free().is_some_and(|free| free < BYTES) && self.held().is_some_and(|held| held > 0) {
            self.shrink(0);
        }
        Loan(self)
    }

    fn shrink(&self, bytes: u64) -> bool {
        File::options().write(true).open(&self.path).and_then(|file| file.set_len(bytes)).is_ok()
    }

    /// Bytes that are allocated; `None`: there is no reserve.
    fn held(&self) -> Option<u64> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some(metadata.len().min(metadata.blocks() * 512))
    }

    fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(self.path.parent()?).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
