//! Space held back, so that a root on a full file system can still be read and cleaned up.
//!
//! `ROOT/reserve` holds no content, only allocated blocks. Opening the database takes a few of them for the index of its
//! write-ahead log, deleting takes more for the log itself and for moving things into the trash; leases, under which even
//! reading works, take a little. They are lent to nobody else, and returned as soon as there is room.
//!
//! # Invariants
//! - The reserve is there as long as the file system ever had room for several of it while the root was open.
//! - It is lent only where the file system is nearly full, and only to what reads the root or makes it smaller.
//! - Whoever brings something in asks first ([`Reserve::admits`], or a [`Gate`]): while a part of the reserve is lent, as much of
//!   what is free is not his. So nobody of Orlop's takes what was lent, in whatever process; other programs may.
//! - What was lent is taken back when the last borrower of all processes is done: before, others still need it.
//!
//! # Concurrency
//! Each process that has borrowed holds the file locked (flock, shared); who fills it needs it alone, and leaves it to the last
//! borrower where he cannot have it. Locks of processes that were killed are gone, and a reserve that is too small is filled by the
//! next that looks.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use orlop_snapshot::apply::Admission;
use rustix::fs::{FallocateFlags, FlockOperation, StatVfs};
use rustix::io::Errno;

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
    loans: Mutex<Loans>,
}

/// What this process has borrowed.
#[derive(Debug, Default)]
struct Loans {
    /// Who borrows now.
    borrowers: usize,
    /// The lock by which other processes know of it, if the reserve was touched.
    lock: Option<File>,
}

/// A loan from the reserve; returned when dropped.
#[derive(Debug)]
pub(crate) struct Loan<'a>(&'a Reserve);

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut loans = lock(&self.0.loans);
        loans.borrowers -= 1;
        if loans.borrowers == 0 {
            if let Some(file) = loans.lock.take() {
                // Closing is not enough: a child that is between fork and exec holds the same lock.
                let _ = rustix::fs::flock(&file, FlockOperation::Unlock);
            }
            self.0.fill();
        }
    }
}

/// Tells a thread that may open nothing whether it may write: what it looks at is open.
#[derive(Debug)]
pub struct Gate(Option<File>);

impl Admission for Gate {
    /// Refuses what would be the reserve's, as the system refuses it on a full disk.
    fn admit(&self, bytes: u64) -> io::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let held = rustix::fs::fstat(file)?;
        let held = held.st_size.unsigned_abs().min(held.st_blocks.unsigned_abs() * 512);
        if held >= BYTES || leaves(free(&rustix::fs::fstatvfs(file)?), held, bytes) {
            return Ok(());
        }
        Err(Errno::NOSPC.into())
    }
}

impl Reserve {
    pub(crate) fn new(root: &Path) -> Self {
        Self { path: root.join("reserve"), loans: Mutex::default() }
    }

    /// Makes the reserve, or returns to it what was lent, as far as there is room and nobody borrows. That it cannot be done is no
    /// failure of whoever has something else to do.
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
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(());
            }
            let filled = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, grown);
            rustix::fs::flock(&file, FlockOperation::Unlock)?;
            Ok(filled?)
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
        let mut loans = lock(&self.loans);
        loans.borrowers += 1;
        if let Some(held) = self.held()
            && (held < BYTES || self.is_short())
        {
            if loans.lock.is_none() {
                loans.lock = self.locked();
            }
            if held > 0 {
                self.shrink(0);
            }
        }
        Loan(self)
    }

    /// Whether the file system is so full that removing may need the reserve.
    pub(crate) fn is_short(&self) -> bool {
        self.free().is_some_and(|free| free < BYTES)
    }

    /// Whether so many bytes may be brought in. What is missing of the reserve is returned to it, where there is room again.
    pub(crate) fn admits(&self, bytes: u64) -> bool {
        let Some(held) = self.held().filter(|held| *held < BYTES) else { return true };
        let admitted = self.free().is_none_or(|free| leaves(free, held, bytes));
        if admitted {
            self.fill();
        }
        admitted
    }

    /// The same for a thread that may open nothing.
    pub(crate) fn gate(&self) -> Gate {
        Gate(File::open(&self.path).ok())
    }

    /// The file, locked as by one who borrows; waits for one who is just filling it.
    fn locked(&self) -> Option<File> {
        let file = File::open(&self.path).ok()?;
        while let Err(error) = rustix::fs::flock(&file, FlockOperation::LockShared) {
            if error != Errno::INTR {
                return None;
            }
        }
        Some(file)
    }

    fn shrink(&self, bytes: u64) -> bool {
        File::options().write(true).open(&self.path).and_then(|file| file.set_len(bytes)).is_ok()
    }

    /// Bytes that are allocated; `None`: there is no reserve.
    fn held(&self) -> Option<u64> {
        let metadata = std::fs::metadata(&self.path).ok()?;
        Some(metadata.len().min(metadata.blocks() * 512))
    }

    /// Bytes that are lent, or taken by others from one who had borrowed.
    pub(crate) fn missing(&self) -> u64 {
        self.held().map_or(0, |held| BYTES - held.min(BYTES))
    }

    fn free(&self) -> Option<u64> {
        Some(free(&rustix::fs::statvfs(self.path.parent()?).ok()?))
    }
}

/// Whether what is missing of the reserve stays free when so many bytes are written.
const fn leaves(free: u64, held: u64, bytes: u64) -> bool {
    free >= (BYTES - held).saturating_add(bytes)
}

/// Bytes of a file system that who is not root may have.
pub(crate) const fn free(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize)
}
