//! Reads what a containerd that runs lists, from its files instead of by its API: of a store with ten thousand images its lists
//! cost it seconds of processor time, reading its databases a fraction of that.
//!
//! # Invariants
//! - What is returned is what the API lists, row by row: who asks need not know which way was taken. If anything does not fit
//!   (a part that cannot be read, a snapshot of which only one database knows), all is read again, and if it stays so, nothing
//!   is returned: the API decides.
//! - `meta.db` is of one moment: it counts only if no transaction was committed between the first and the last byte. A reader
//!   that began at transaction N sees only pages that nobody writes to before N+1 is committed and N+2 begins.
//! - Nothing is written, locked or left behind. Whose files they are is proved before by [`Root::is_held_by`].
//!
//! # Concurrency
//! Two threads, each with one half of `meta.db`; beside them a third reads the snapshotters' databases. What is made meanwhile is then
//! in `meta.db` alone, so that another attempt reads one after the other. Blobs are not looked for among the files: the API does not do so either.

use jiff::Timestamp;
use orlop_bolt::Db;
use orlop_graph::model::{Gap, Inventory};

use super::metadata::{self, Wanted};
use super::snapshotters::Ahead;
use super::{PAUSE, Root, Stored, file};
use crate::Listing;

/// How often everything is read before the API is asked instead.
const ATTEMPTS: usize = 3;

/// What of a store is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything, as [`Reader::inventory`](crate::Reader::inventory) reads it.
    Everything,
    /// As [`Reader::listing`](crate::Reader::listing): records and blobs, and at most so many snapshots or none.
    Listing {
        /// The most snapshots.
        snapshots: usize,
    },
}

/// Why the files do not tell what their containerd lists.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unsuited {
    /// Something could not be read, or does not fit.
    #[error("{}: {}", .0.what, .0.why)]
    Gap(Gap),
    /// The root could not be listed.
    #[error(transparent)]
    Root(#[from] super::Error),
}

impl Root {
    /// The bytes of `meta.db`, if this process can read it.
    pub fn database_bytes(&self) -> Option<u64> {
        file::regular(&self.metadata_file()).and_then(|file| file.metadata()).ok().map(|metadata| metadata.len())
    }

    /// Whether a process holds the lock on `meta.db` that a containerd has as long as it runs, as far as the kernel tells this
    /// process: then these files are its own, whatever paths are called elsewhere.
    pub fn is_held_by(&self, process: u32) -> bool {
        file::holders(&self.metadata_file()).contains(&process)
    }

    /// Reads what the containerd that runs on this root lists. What is active is not measured.
    ///
    /// # Errors
    /// If the files do not tell it: [`Reader`](crate::Reader) does.
    pub fn running(&self, extent: Extent) -> Result<Listing, Unsuited> {
        let mut last = None;
        for attempt in 1.. {
            let (found, all_snapshots, version) = self.running_once(extent, attempt == 1)?;
            let Some(gap) = found.inventory.gaps.first() else {
                return Ok(Listing { inventory: found.inventory, all_snapshots });
            };
            // What is between two databases while a snapshot is being committed passes; damage stays.
            let stays = version.is_some() && last.as_ref() == Some(&(version, found.inventory.gaps.clone()));
            if attempt == ATTEMPTS || stays {
                return Err(Unsuited::Gap(gap.clone()));
            }
            last = Some((version, found.inventory.gaps));
            std::thread::sleep(PAUSE);
        }
        unreachable!("the last attempt returns")
    }

    fn running_once(&self, extent: Extent, at_once: bool) -> Result<(Stored, bool, Option<u64>), Unsuited> {
        let taken = Timestamp::now();
        let (first, most) = match extent {
            Extent::Everything => (Wanted { blobs: false, ingests: false, ..Wanted::ALL }, usize::MAX),
            Extent::Listing { snapshots: most } => {
                (Wanted { records: true, snapshots: Some(most), ..Wanted::NOTHING }, most)
            }
        };
        let second = Wanted { blobs: true, ingests: extent == Extent::Everything, ..Wanted::NOTHING };
        let (halves, ahead) = std::thread::scope(|scope| {
            // A list of images may turn out to need none of them.
            let ahead = (at_once && extent == Extent::Everything).then(|| scope.spawn(|| Ahead::read(&self.path)));
            let halves = file::in_parts(
                &self.metadata_file(),
                [&|db: &Db<'_>| metadata::read(db, first), &|db: &Db<'_>| metadata::read(db, second)],
            );
            let ahead = ahead.map(|read| read.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            (halves, ahead.unwrap_or_default())
        });
        let [mut named, content] =
            halves.map_err(|why| Unsuited::Gap(Gap { what: "all that meta.db records".into(), why }))?;
        let all_snapshots = named.snapshots.len() <= most;
        if !all_snapshots {
            named.snapshots.clear();
        }
        named.inventory.gaps.extend(content.inventory.gaps);
        let inventory = Inventory { taken, blobs: content.inventory.blobs, ..named.inventory };
        let mut stored = Stored { inventory, ..Stored::default() };
        self.fill(named.snapshots, content.ingests, false, ahead, &mut stored)?;
        Ok((stored, all_snapshots, named.version))
    }
}
