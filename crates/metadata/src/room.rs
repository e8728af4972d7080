//! Room for what comes in: where the disk is full, what rests in the trash gives way to it, the oldest first.
//!
//! An image that kubelet removes takes the whole trash with it where the disk is more than half full ([`Store::relieve`]).
//!
//! Whoever brings something in and meets a full disk (ENOSPC, EDQUOT), or is not let at what is left since it is the reserve's, asks
//! for room and tries again ([`Store::with_room`]). If nothing gives way any more, he gets the error that he met.
//!
//! # Invariants
//! - Only what rests in the trash gives way, and what is doomed already. Nothing is marked: what a client has written and nothing
//!   keeps yet stays.
//! - Each time that somebody asks, at least one entry goes, or the disk is freer than it was when he began what failed, or there is
//!   as much as he needs as far as he knows; and the latter two count a few times only. So everybody's asking comes to an end.
//! - What asks holds neither the collector's lock nor a transaction. A thread that has the lock is refused.
//!
//! # Concurrency
//! Whoever empties holds the collector's lock, so that those who meet a full disk at the same time wait for each other, and for removals
//! that are about it: who finds that there is more free than when he began takes nothing more. Nobody can look at the disk at the
//! moment in which he meets it full: what gave way to another may be there by the time he looks, and what he wrote himself be gone.

use std::thread;
use std::time::{Duration, Instant};

use orlop_content::Trouble;
use rusqlite::Connection;

use crate::gc::{self, Alone};
use crate::{Error, Result, Store, fault, reserve, trash};

/// What gives way at first, in bytes; twice as much each time that it was not enough.
const FIRST: u64 = 16 << 20;

/// How often somebody tries again to whom nothing gave way, since there is as much as he needs: another held it for a moment only.
const VAIN: u32 = 3;
/// How often somebody tries again since the disk is freer than when he began: another may have taken it by then, each time.
const WAITED: u32 = 64;
/// How long file systems may take to give back what was removed, and how often that is looked at.
const SETTLING: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(20);

/// What a transaction may take: pages of the log, lines of the history.
const TRANSACTION: u64 = 256 << 10;

/// What somebody asks for who has met a full disk.
#[derive(Debug, Default)]
pub struct Asking {
    /// How many bytes he needs, as far as he knows.
    need: u64,
    /// How many bytes give way next.
    next: u64,
    /// What was free when he began what failed, if that was measured.
    began: Option<Free>,
    /// How often nothing gave way.
    vain: u32,
    /// How often there was more than when he began.
    waited: u32,
}

impl Asking {
    /// One who is about to need so many bytes at least, at once.
    pub fn for_bytes(need: u64) -> Self {
        Self { need, ..Self::default() }
    }
}

/// What is free of a file system.
#[derive(Debug, Clone, Copy)]
struct Free {
    bytes: u64,
    files: u64,
}

impl Free {
    fn is_more_than(self, before: Self) -> bool {
        self.bytes >= before.bytes.saturating_add(TRANSACTION) || self.files > before.files
    }
}

impl Store {
    /// One who begins what takes a while, in which others may do what changes how much is free; it needs so many bytes at least.
    pub fn asking(&self, need: u64) -> Asking {
        Asking { began: self.room(), ..Asking::for_bytes(need) }
    }

    /// Does what brings something in. While it meets a full disk and something gives way, it is done again.
    pub fn with_room<T>(&self, mut bring: impl FnMut() -> Result<T>) -> Result<T> {
        let mut asking = Asking::for_bytes(TRANSACTION);
        loop {
            match bring() {
                Err(error) if is_full(&error) && self.make_room(&mut asking) => {}
                other => return other,
            }
        }
    }

    /// Refuses so many bytes where they would be the reserve's.
    pub(crate) fn admit(&self, bytes: u64) -> Result<()> {
        match self.reserve().admits(bytes) {
            true => Ok(()),
            false => {
                let (path, source) = (self.root().to_owned(), rustix::io::Errno::NOSPC.into());
                Err(Error::Io { operation: "bring something into", path, source })
            }
        }
    }

    /// The same for a transaction.
    pub(crate) fn admit_transaction(&self) -> Result<()> {
        self.admit(TRANSACTION)
    }

    /// Lets something of the trash go. Says whether it is worth trying again: something gave way to this one, or to another
    /// while he waited for it, or there is room after all. Blocks, for up to half a second where nothing gave way.
    pub fn make_room(&self, asking: &mut Asking) -> bool {
        match self.try_to_make_room(asking) {
            Ok(made) => made,
            Err(error) => {
                // The first error is the one to tell.
                tracing::warn!(%error, "no space is left, and the trash could not be emptied");
                false
            }
        }
    }

    /// Empties the trash for who removes since the disk gets full, and looks at it again to see whether that helped: kubelet, which
    /// says not why it removes. Where at least half of the disk is free, nobody needs that, and the trash stays. Returns the bytes
    /// reclaimed.
    pub fn relieve(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.root());
        let is_roomy = |free: u64, all: u64| free >= all / 2;
        // A file system that has no number of files says that it has none.
        if stat.is_ok_and(|s| is_roomy(s.f_bavail, s.f_blocks) && is_roomy(s.f_favail, s.f_files)) {
            return Ok(0);
        }
        let reclaimed = self.empty_trash(0, 0)?;
        if reclaimed > 0 {
            tracing::info!(bytes = reclaimed, "emptied the trash, since an image was removed where the disk gets full");
        }
        Ok(reclaimed)
    }

    fn try_to_make_room(&self, asking: &mut Asking) -> Result<bool> {
        if Alone::is_here() {
            return Ok(false);
        }
        let before = asking.began.or_else(|| self.room());
        let made = self.give_way(asking, before)? || self.settles(asking, before);
        asking.began = self.room();
        Ok(made)
    }

    /// Lets the oldest of the trash go, if there is not more room than before already. Says whether anything gave way, to this one or
    /// to another.
    fn give_way(&self, asking: &mut Asking, before: Option<Free>) -> Result<bool> {
        let _lock = gc::lock(self)?;
        if self.is_freer_than(before) {
            asking.waited += 1;
            return Ok(asking.waited <= WAITED);
        }
        let _loan = self.lend();
        let wanted = asking.next.max(asking.need).max(FIRST);
        asking.next = wanted.saturating_mul(2);
        let going = self.read(|conn| oldest(conn, wanted))?;
        if !going.is_empty() {
            self.write("empty trash", |tx| going.iter().try_for_each(|(id, _)| trash::drop_entry(tx, id)))?;
        }
        // Also what is doomed already.
        gc::finish(self, &[])?;
        if going.is_empty() {
            return Ok(false);
        }
        let bytes: u64 = going.iter().map(|(_, bytes)| bytes).sum();
        tracing::warn!(
            removals = going.len(),
            bytes,
            "no space is left: the oldest of what was in the trash gave way and cannot be undone any more"
        );
        Ok(true)
    }

    /// Whether there is room although nothing gave way, at the latest when the file system has given back what went.
    fn settles(&self, asking: &mut Asking, before: Option<Free>) -> bool {
        asking.vain += 1;
        if asking.vain > VAIN {
            return false;
        }
        let end = Instant::now() + SETTLING;
        loop {
            let suffices = self.room().is_some_and(|room| room.files > 0 && room.bytes >= asking.need.max(TRANSACTION));
            if suffices || self.is_freer_than(before) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            thread::sleep(STEP);
        }
    }

    fn is_freer_than(&self, before: Option<Free>) -> bool {
        before.zip(self.room()).is_some_and(|(before, now)| now.is_more_than(before))
    }

    /// What is free for who brings something in: not what is held back, wherever it is just now.
    fn room(&self) -> Option<Free> {
        let stat = rustix::fs::statvfs(self.root()).ok()?;
        // Where files are not counted, there is no end of them.
        let files = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
        Some(Free { bytes: reserve::free(&stat).saturating_sub(self.reserve().missing()), files })
    }
}

/// Whether an error says that no space is left, whoever met it.
pub(crate) fn is_full(error: &Error) -> bool {
    fault::is_full(error) || Trouble::beneath(error) == Trouble::Full
}

/// Entries of the trash, the oldest first, until they have so many bytes: IDs and bytes.
fn oldest(conn: &Connection, bytes: u64) -> Result<Vec<(String, u64)>> {
    let mut query = conn.prepare_cached("SELECT id, bytes FROM trash ORDER BY created, id")?;
    let mut rows = query.query([])?;
    let (mut entries, mut sum) = (Vec::new(), 0);
    while sum < bytes
        && let Some(row) = rows.next()?
    {
        let held = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
        sum = held.saturating_add(sum);
        entries.push((row.get(0)?, held));
    }
    Ok(entries)
}
