//! Garbage collection: the set containerd would keep, found incrementally.
//!
//! Objects are (namespace, kind, name). Roots: unexpired image records; containers; unexpired leases, which hold their resources;
//! blobs and snapshots labelled `containerd.io/gc.root`; unexpired ingests, which hold their expected digest. Edges:
//! an image's target, `gc.ref.*` labels, `gc.bref.*` labels (reversed), `gc.cond.*` labels whose condition holds, snapshot
//! parents, containers' snapshots. A flat lease holds what it
//! lists and, of snapshots, their parents, of images, their targets, but follows no label.
//!
//! Incremental: every garbage object is reachable from `suspect`. Let S be what is reachable from the suspects, from
//! what just expired, from the snapshots for which a condition turned, and from what flat leases hold. An object of S lives if it is a root, if something alive outside
//! S has an edge to it, or if something alive within S has. Everything outside S is alive. What of S does not live is
//! deleted; then `suspect` is emptied. The cost follows S; where the suspects are a good part of the store, the graph is read
//! at once instead of row by row. [`Store::collect_full`] marks everything from the roots
//! instead and is the oracle. docs/garbage-collection.md says why this is right.
//!
//! # Invariants
//! - Marking, the removal of rows and the emptying of `suspect` are one write transaction.
//! - Rows go first, leaving `doomed` rows; the bytes follow in small transactions. A collection that was killed is
//!   finished by the next one.
//!
//! # Concurrency
//! One collection at a time over all processes: `ROOT/gc.lock`, flock. Whoever moves doomed bytes, undo among them, holds
//! it. Readers never wait; writers wait for the marking, whose cost follows S, and for small batches of deletions.

mod bytes;
mod cost;
mod elsewhere;
mod full;
mod graph;
mod mark;
mod narrow;
mod orphans;
mod removal;
mod whole;

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;

pub(crate) use bytes::{TRASH, block_on, directory, finish, io_error, make_private, tree_directory};
pub use cost::RecordsCost;
use graph::Rows;
pub(crate) use graph::driver_of;
pub(crate) use mark::Node;
use mark::{Found, Graph};
use orlop_content::Trouble;
pub(crate) use removal::{BlobRow, ImageRow, Removal, SnapshotRow, children_first, image, json};
use rusqlite::Connection;
use rustix::fs::FlockOperation;

use crate::transact::Tx;
use crate::{Error, Result, Store};

/// Where what is collected goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposal {
    /// The space is given back at once.
    Reclaim,
    /// Into a trash entry, from which [`Store::undo`] brings it back.
    Trash {
        /// The command, for people.
        reason: String,
    },
}

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// (namespace, digest) of blob rows removed.
    pub content: BTreeSet<(String, String)>,
    /// (namespace, driver, key) of snapshots removed.
    pub snapshots: BTreeSet<(String, String, String)>,
    /// (namespace, id) of leases that had expired.
    pub leases: BTreeSet<(String, String)>,
    /// (namespace, ref) of writes that had expired.
    pub ingests: BTreeSet<(String, String)>,
    /// (namespace, name) of image records that had expired.
    pub images: BTreeSet<(String, String)>,
    /// (namespace, name) of activations that nothing kept.
    pub mounts: BTreeSet<(String, String)>,
    /// Bytes of blobs that no namespace has any more, whether or not files elsewhere have them too.
    pub blob_bytes: u64,
    /// Bytes of snapshot trees removed, likewise.
    pub snapshot_bytes: u64,
    /// Of both: what the file system does not get back, since files outside this store have it too. Of what goes to the trash it
    /// is not looked at.
    pub elsewhere_bytes: u64,
    /// The trash entry, if one was made.
    pub trash: Option<String>,
    /// What a full collection found that an incremental one would have left, as `<namespace> <kind> <name>`: always
    /// empty, unless Orlop has a fault.
    pub missed: BTreeSet<String>,
    /// What a full collection found on disk that no row knew, as `<kind> <name>`.
    pub orphans: BTreeSet<String>,
    /// Objects and edges looked at: what the marking cost.
    pub visited: u64,
}

/// How garbage is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marking {
    /// From the suspects.
    Incremental,
    /// From the roots.
    Full,
}

impl Report {
    /// Bytes that the file system gets back.
    pub fn freed(&self) -> u64 {
        (self.blob_bytes + self.snapshot_bytes).saturating_sub(self.elsewhere_bytes)
    }
}

impl Store {
    /// Collects incrementally and finishes what an earlier, killed collection left.
    ///
    /// # Durability
    /// When this returns, the space is free (or in the trash) and the rows are gone.
    pub fn collect(&self, disposal: Disposal) -> Result<Report> {
        let _lock = lock(self)?;
        let _loan = self.lend();
        let none = BTreeSet::new();
        let now = self.now();
        if !self.read(|conn| Rows { conn, now, without: &none }.has_work())? {
            finish(self, &[])?;
            return Ok(Report::default());
        }
        self.sweep(Marking::Incremental, &disposal)
    }

    /// Marks from the roots over everything, then sweeps: the oracle, `orlop gc --full`, and the daemon's self-check.
    /// Removes from the disk, too, what a crash left there without a row.
    pub fn collect_full(&self, disposal: Disposal) -> Result<Report> {
        let _lock = lock(self)?;
        let _loan = self.lend();
        let orphans = orphans::doom_orphans(self)?;
        Ok(Report { orphans, ..self.sweep(Marking::Full, &disposal)? })
    }

    /// What [`Store::collect`] would remove if these image records `(namespace, name)` were deleted first. Changes
    /// nothing.
    pub fn plan_collection(&self, without: &[(String, String)]) -> Result<Report> {
        let without = without.iter().cloned().collect();
        let now = self.now();
        let planned = self.read(|conn| Planned::of(conn, now, &narrow::narrow(conn, now, without)?))?;
        Ok(self.measured(planned))
    }

    /// How many bytes more [`Store::collect`] would give back if these image records `(namespace, name)` were deleted first.
    pub fn bytes_kept_by(&self, records: &[(String, String)]) -> Result<u64> {
        let records = records.iter().cloned().collect();
        let now = self.now();
        let planned = self.read(|conn| with_and_without(conn, now, &narrow::narrow(conn, now, records)?))?;
        Ok(self.bytes_between(planned))
    }

    /// How much more the first of two collections would give back.
    fn bytes_between(&self, planned: Option<(Planned, Planned)>) -> u64 {
        let freed = |planned| self.measured(planned).freed();
        planned.map_or(0, |(with, before)| freed(with).saturating_sub(freed(before)))
    }

    /// Adds what snapshots take whose row does not say it, and what files elsewhere have too.
    fn measured(&self, Planned { removal, mut report, last_blobs }: Planned) -> Report {
        report.elsewhere_bytes = elsewhere::planned(self, &last_blobs, &removal.snapshots);
        for snapshot in removal.snapshots.iter().filter(|s| s.bytes.is_none()) {
            let tree = orlop_snapshot::SnapshotId(snapshot.id.unsigned_abs());
            let usage = self.driver(&snapshot.driver).ok().and_then(|driver| driver.usage(tree).ok());
            report.snapshot_bytes += usage.map_or(0, |usage| usage.bytes);
        }
        report
    }

    fn sweep(&self, marking: Marking, disposal: &Disposal) -> Result<Report> {
        let trash = match disposal {
            Disposal::Reclaim => None,
            Disposal::Trash { reason } => Some(Bin { reason, deleted: Vec::new(), reached: Removal::default() }),
        };
        let (removal, mut report) = self.write("collect", |tx| remove_garbage(tx, marking, trash))?;
        if let Some(entry) = &report.trash {
            crate::trash::describe(self, entry);
        }
        let finished = finish(self, &removal.snapshots)?;
        report.snapshot_bytes += finished.measured;
        report.elsewhere_bytes += finished.elsewhere;
        Ok(report)
    }
}

/// What a collection would remove, and what it would say.
struct Planned {
    removal: Removal,
    report: Report,
    /// The digests of blobs that no namespace has afterwards.
    last_blobs: Vec<String>,
}

impl Planned {
    fn of(conn: &Connection, now: i64, without: &narrow::Records) -> Result<Self> {
        let found = Rows { conn, now, without }.garbage()?;
        let removal = Removal::load(conn, found, graph::expired_leases(conn, now)?)?;
        let last_blobs = removal.last_blobs(conn)?;
        let report = removal.report(&last_blobs);
        let last_blobs = last_blobs.into_keys().map(str::to_owned).collect();
        Ok(Self { removal, report, last_blobs })
    }
}

/// A collection after these records were deleted, and one without that; `None` if there are none.
fn with_and_without(conn: &Connection, now: i64, records: &narrow::Records) -> Result<Option<(Planned, Planned)>> {
    if records.is_empty() {
        return Ok(None);
    }
    Ok(Some((Planned::of(conn, now, records)?, Planned::of(conn, now, &BTreeSet::new())?)))
}

/// A trash entry to be.
pub(crate) struct Bin<'a> {
    /// The command, for people.
    pub(crate) reason: &'a str,
    /// Records deleted in the same transaction, which come back with what is collected.
    pub(crate) deleted: Vec<ImageRow>,
    /// What they reached when they were deleted, whether or not anything else keeps it.
    pub(crate) reached: Removal,
}

/// Removes the rows of everything that is garbage now, and the suspicions.
pub(crate) fn remove_garbage(tx: &Tx<'_>, marking: Marking, trash: Option<Bin<'_>>) -> Result<(Removal, Report)> {
    let now = tx.now();
    let found = match marking {
        Marking::Incremental => Rows { conn: tx, now, without: &BTreeSet::new() }.garbage()?,
        Marking::Full => full::garbage(tx, now)?,
    };
    let missed = match marking {
        Marking::Incremental => BTreeSet::new(),
        Marking::Full => missed(tx, now, &found)?,
    };
    let removal = Removal::load(tx, found, graph::expired_leases(tx, now)?)?;
    let last_blobs = removal.last_blobs(tx)?;
    let mut report = Report { missed, ..removal.report(&last_blobs) };
    if let Some(bin) = trash {
        report.trash = crate::trash::put(tx, &bin, &removal, &report)?;
    }
    removal.apply(tx, &last_blobs, report.trash.as_deref())?;
    tx.execute("DELETE FROM suspect", [])?;
    crate::conditions::collected(tx, now)?;
    Ok((removal, report))
}

/// Everything that no root reaches, in order.
pub(crate) fn unkept(conn: &Connection, now: i64) -> Result<BTreeSet<Node>> {
    Ok(full::garbage(conn, now)?.garbage.into_iter().collect())
}

/// What the full marking found and the incremental one does not.
fn missed(tx: &Tx<'_>, now: i64, full: &Found) -> Result<BTreeSet<String>> {
    let incremental = Rows { conn: tx, now, without: &BTreeSet::new() }.garbage()?;
    let missed = full.garbage.difference(&incremental.garbage);
    Ok(missed.map(|node| format!("{} {} {}", node.namespace, node.kind, node.name)).collect())
}

/// The rows of everything that image records have a path to at `now`.
pub(crate) fn reached(conn: &Connection, now: i64, images: &[ImageRow]) -> Result<Removal> {
    let graph = Rows { conn, now, without: &BTreeSet::new() };
    let mut open: Vec<Node> = images.iter().map(|i| Node::new(&i.namespace, crate::edges::IMAGES, &i.name)).collect();
    let mut seen = HashSet::new();
    while let Some(node) = open.pop() {
        open.extend(graph.links(&node)?.into_iter().map(|link| link.to).filter(|to| !seen.contains(to)));
        seen.insert(node);
    }
    Removal::load(conn, Found { garbage: seen, visited: 0 }, BTreeSet::new())
}

thread_local! {
    /// Whether this thread keeps others from collecting.
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps others from collecting until it is dropped, by the thread that took it.
pub(crate) struct Alone(File);

impl Alone {
    /// Whether this thread has the lock: it must not wait for it once more.
    pub(crate) fn is_here() -> bool {
        ALONE.get()
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.set(false);
        // Closing is not enough: a child that is between fork and exec holds the same lock.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Waits until no other collection runs, and keeps others from running.
pub(crate) fn lock(store: &Store) -> Result<Alone> {
    store.check_writable()?;
    let path = store.root().join("gc.lock");
    let open = || File::options().create(true).truncate(false).write(true).open(&path);
    let file = match open() {
        // A store that nothing was removed from has no such file yet.
        Err(error) if Trouble::of(&error) == Trouble::Full => {
            let _loan = store.lend();
            open()
        }
        opened => opened,
    };
    let file = file.map_err(bytes::io_error("open", &path))?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Ok(()) => {
                ALONE.set(true);
                return Ok(Alone(file));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Error::Io { operation: "lock", path, source: e.into() }),
        }
    }
}
