//! Bytes whose rows are gone: doomed, then deleted or moved to the trash.
//!
//! A blob's file goes inside a write transaction that has seen neither a blob row of any namespace nor an ingest that
//! expects it. A writer states what it expects before it renames, in a transaction of its own: either that came first,
//! and the file stays (its doomed row too, until the write has ended one way or the other), or it comes after, and the
//! writer puts a new file there. Trees need no such care, for a snapshot's number is never used twice.
//!
//! Whatever a killed collection left undone is in `doomed`, and the next one does it.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use orlop_content as content;
use orlop_oci::Digest;
use orlop_snapshot::{Driver, SnapshotId};
use rusqlite::{Connection, params};

use super::elsewhere;
use super::graph::{Need, blob_needed, driver_of, snapshot_row};
use super::removal::SnapshotRow;
use crate::edges::CONTENT;
use crate::{Error, Result, Store, mounts};

/// Files removed in one write transaction; other writers wait that long.
const BATCH: usize = 16;

/// The kind of a whole trash entry among the doomed.
pub(crate) const TRASH: &str = "trash";
/// The kind of a write in progress among the doomed.
pub(super) const INGEST: &str = "ingest";

/// One row of `doomed`.
#[derive(Debug, Clone)]
struct Doomed {
    kind: String,
    name: String,
    trash: Option<String>,
}

/// What became of bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Finished {
    /// Those of trees whose row knew no size.
    pub(crate) measured: u64,
    /// Those that went for good and that files elsewhere have too.
    pub(crate) elsewhere: u64,
}

/// Does what is due, trees of `known` in their order first.
pub(crate) fn finish(store: &Store, known: &[SnapshotRow]) -> Result<Finished> {
    let due = store.read(|conn| due(conn, store.now()))?;
    let (mounts, mut due): (Vec<_>, Vec<_>) = due.into_iter().partition(|d| d.kind == mounts::DOOMED);
    let entries: BTreeSet<&str> = due.iter().filter_map(|doomed| doomed.trash.as_deref()).collect();
    entries.into_iter().for_each(|entry| crate::trash::describe(store, entry));
    // Before the trees that they show.
    unmount(store, &mounts)?;
    let places: HashMap<i64, usize> = known.iter().enumerate().map(|(place, s)| (s.id, place)).collect();
    due.sort_by_cached_key(|d| {
        let id: i64 = d.name.parse().unwrap_or(0);
        (places.get(&id).copied().unwrap_or(usize::MAX), Reverse(id))
    });
    let (trees, rest): (Vec<_>, Vec<_>) = due.into_iter().partition(|d| driver_of(&d.kind).is_some());
    let unknown: HashSet<i64> = known.iter().filter(|s| s.bytes.is_none()).map(|s| s.id).collect();
    let mut finished = remove_trees(store, &trees, &unknown)?;
    let (bins, mut files): (Vec<_>, Vec<_>) = rest.into_iter().partition(|d| d.kind == TRASH);
    // Writes first: one that is stopped renames nothing any more.
    files.sort_by_key(|d| d.kind != INGEST);
    for batch in files.chunks(BATCH) {
        finished.elsewhere += store.write("reclaim content", |tx| {
            batch.iter().try_fold(0, |bytes, doomed| Ok(bytes + file(store, tx, doomed)?))
        })?;
    }
    for bin in &bins {
        remove_bin(store, &bin.name)?;
        store.write("reclaim trash", |tx| done(tx, bin))?;
    }
    Ok(finished)
}

/// Ends activations that have no row any more. What is still in use stays doomed, and keeps nothing else from going.
fn unmount(store: &Store, mounts: &[Doomed]) -> Result<()> {
    for doomed in mounts {
        let Ok(id) = doomed.name.parse::<i64>() else { continue };
        match orlop_snapshot::activate::deactivate(&store.mount_directory(id)) {
            Ok(()) => store.write("unmount", |tx| done(tx, doomed))?,
            Err(error) => {
                tracing::warn!(%error, "an activation that nothing keeps cannot be unmounted; it is tried again")
            }
        }
    }
    Ok(())
}

/// Where a trash entry's bytes are.
pub(crate) fn directory(store: &Store, id: &str) -> PathBuf {
    store.root().join("trash").join(id)
}

/// Where the trees of one driver are in the directory of a trash entry.
pub(crate) fn tree_directory(bin: &Path, driver: &str) -> PathBuf {
    bin.join("snapshots").join(driver)
}

fn due(conn: &Connection, now: i64) -> Result<Vec<Doomed>> {
    let mut query = conn.prepare_cached("SELECT kind, name, trash FROM doomed WHERE after <= ?1")?;
    let rows = query.query_map([now], |row| Ok(Doomed { kind: row.get(0)?, name: row.get(1)?, trash: row.get(2)? }))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn done(tx: &Connection, doomed: &Doomed) -> Result<()> {
    tx.prepare_cached("DELETE FROM doomed WHERE kind = ?1 AND name = ?2")?
        .execute(params![doomed.kind, doomed.name])?;
    Ok(())
}

/// A blob or a write in progress, within the transaction that says whether it may go. Returns how many bytes files elsewhere have too.
fn file(store: &Store, tx: &Connection, doomed: &Doomed) -> Result<u64> {
    let mut elsewhere = 0;
    if doomed.kind == CONTENT {
        match blob_needed(tx, &doomed.name)? {
            Some(Need::Ingest) => return Ok(0),
            Some(Need::Blob) => {}
            None => elsewhere = blob(store, doomed)?,
        }
    } else if doomed.kind == INGEST {
        let mut again = tx.prepare_cached("SELECT 1 FROM ingest WHERE backend = ?1")?;
        if !again.exists([&doomed.name])? {
            gone(block_on(store.raw_content().abort(&doomed.name)))?;
        }
    } else {
        // Of a kind that only a newer program knows: its business.
        return Ok(0);
    }
    done(tx, doomed)?;
    Ok(elsewhere)
}

fn blob(store: &Store, doomed: &Doomed) -> Result<u64> {
    let Ok(digest) = doomed.name.parse::<Digest>() else { return Ok(0) };
    let raw = store.raw_content();
    match (&doomed.trash, raw.trash()) {
        (Some(id), Some(trash)) => {
            let bin = directory(store, id);
            make_private(&bin)?;
            gone(block_on(trash.discard(&digest, &bin)).map(|_| ())).map(|()| 0)
        }
        _ => {
            let (elsewhere, deleted) =
                block_on(async { (elsewhere::of_blob(store, &digest).await, raw.delete(&digest).await) });
            gone(deleted).map(|()| elsewhere)
        }
    }
}

/// That it is gone already is fine.
fn gone(result: content::Result<()>) -> Result<()> {
    match result {
        Err(content::Error::NotFound { .. }) => Ok(()),
        other => Ok(other?),
    }
}

fn remove_trees(store: &Store, trees: &[Doomed], unknown: &HashSet<i64>) -> Result<Finished> {
    let mut finished = Finished::default();
    for batch in trees.chunks(BATCH) {
        let mut removed = Vec::new();
        for doomed in batch {
            // A driver that this process was not given: some other process will have it.
            let Some(Ok(driver)) = driver_of(&doomed.kind).map(|name| store.driver(name)) else { continue };
            let Ok(id) = doomed.name.parse::<i64>() else { continue };
            if !store.read(|conn| snapshot_row(conn, driver.name(), id))? {
                let tree = SnapshotId(id.unsigned_abs());
                if unknown.contains(&id) {
                    finished.measured += driver.usage(tree).map_or(0, |usage| usage.bytes);
                }
                if doomed.trash.is_none() {
                    finished.elsewhere += elsewhere::of_tree(driver.as_ref(), tree);
                }
                remove_tree(store, driver.as_ref(), tree, doomed.trash.as_deref())?;
            }
            removed.push(doomed);
        }
        store.write("reclaim snapshots", |tx| removed.iter().try_for_each(|doomed| done(tx, doomed)))?;
    }
    Ok(finished)
}

fn remove_tree(store: &Store, driver: &dyn Driver, id: SnapshotId, trash: Option<&str>) -> Result<()> {
    let Some(entry) = trash else { return Ok(driver.remove(id, None)?) };
    let bin = tree_directory(&directory(store, entry), driver.name());
    make_private(&bin)?;
    Ok(driver.remove(id, Some(&bin))?)
}

/// Makes a directory that nobody else may enter, like those of the trees: they have set-user-ID programs. It is on disk before
/// anything is moved into it, or a power cut could take that along.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(|parent| !parent.exists()) => {
            make_private(path.parent().unwrap_or(path))?;
            make_private(path)
        }
        Err(e) => Err(io_error("create", path)(e)),
        Ok(()) => {
            let parent = path.parent().unwrap_or(path);
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error("sync", parent))
        }
    }
}

/// Removes everything a trash entry has on disk.
fn remove_bin(store: &Store, id: &str) -> Result<()> {
    let path = directory(store, id);
    let removed = match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(&path).and_then(|()| std::fs::remove_dir_all(&path))
        }
        other => other,
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", &path)),
    }
}

/// Without privilege only directories that their owner may write can be emptied; an image may have others.
fn open_up(directory: &Path) -> io::Result<()> {
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { operation, path, source }
}

/// Waits for one call of the content store. On a thread of its own, so that it makes no difference whether the caller's
/// belongs to a runtime.
pub(crate) fn block_on<T: Send>(call: impl Future<Output = T> + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime without drivers needs nothing but memory").block_on(call)
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
