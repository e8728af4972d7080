//! A new `meta.db` from what lies beside it, when the old one is lost or damaged.
//!
//! | source | what comes back |
//! |---|---|
//! | `history.log` | image records with labels and times, and the history itself |
//! | `snapshots/<driver>/<id>/meta` | snapshots: namespace, key, kind, parent, labels |
//! | `content/blobs` | which blobs are there, and how large they are |
//! | documents among them | which namespace has which blob, and what keeps it: the caller reads them ([`Rebuild::records`], [`Rebuild::put_blobs`]) |
//! | `trash/<id>/entry` | what can be undone |
//! | `quarantine` | which blobs are damaged, and set aside |
//!
//! Leases, containers, activations, writes in progress, labels of namespaces and those that clients gave to blobs are nowhere
//! else. So nothing of what is on disk may be taken for garbage: whatever no record keeps is held by one lease in each
//! namespace, until somebody who knows better deletes it.
//!
//! # Invariants
//! - The old file and its log are never changed: they get a second name, `meta.db.damaged-<time>`, before the first goes.
//! - The new one is whole and on disk before it has its name. Killed at any point there is the old one in its place, or
//!   the new one, or none; and where there is none, nobody opens the root before it was rebuilt ([`lost`]).
//! - Nobody else has the root open: `lock` is held alone.
//! - Numbers of snapshots that are on disk, in the trash too, are never given out again.

mod condition;
mod files;
mod rows;
mod trees;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use orlop_content as content;
use orlop_oci::{Digest, Reference};
use rusqlite::Connection;

pub use condition::{Condition, Loss};
pub(crate) use condition::{lost, unmade};

use crate::db::{Clock, from_nanos, to_nanos};
use crate::gc::block_on;
use crate::{Image, Labels, LogLine, ManifestSummary, OpenOptions, Result, format, history, summary};

/// The label of the lease that holds what nothing else keeps: since when.
const LABEL: &str = "io.orlop.rebuilt";

/// A database that is being rebuilt, in memory.
pub struct Rebuild {
    root: PathBuf,
    options: OpenOptions,
    connection: Connection,
    now: i64,
    records: Vec<(String, Image)>,
    lines: Vec<LogLine>,
    /// What `content` has.
    blobs: BTreeMap<Digest, content::Info>,
    /// What was set aside, with the entry that it is in.
    aside: BTreeMap<Digest, String>,
    /// What some record was found to need.
    placed: BTreeSet<Digest>,
    rebuilt: Rebuilt,
    _lock: File,
}

/// What came back, and what did not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// How it was with the old one.
    pub condition: Condition,
    /// Image records.
    pub records: usize,
    /// Changes in their history.
    pub changes: usize,
    /// Blobs, each once.
    pub blobs: usize,
    /// Of them those that are damaged, and set aside.
    pub quarantined: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Removals that can be undone.
    pub removals: usize,
    /// What no record keeps, by namespace.
    pub held: Vec<Held>,
    /// What could not be read, or not be used, in words.
    pub left: Vec<String>,
    /// The second name of the old file, once the new one is in its place.
    pub moved_to: Option<String>,
}

/// What a lease holds in a namespace, since no record keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The namespace.
    pub namespace: String,
    /// The lease.
    pub lease: String,
    /// Blobs.
    pub blobs: usize,
    /// Snapshots.
    pub snapshots: usize,
}

/// A blob that a record was found to need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeededBlob {
    /// Bytes that it has when it is sound.
    pub size: u64,
    /// Its labels.
    pub labels: Labels,
}

impl Rebuild {
    /// Takes a root for itself, looks how it is with its database, and reads what lies beside. Changes nothing. Blocks.
    ///
    /// # Errors
    /// [`crate::Error::Opened`] while anybody has the root open; [`crate::Error::NewerFormat`] if a newer Orlop wrote the database.
    pub fn begin(root: &Path, options: OpenOptions) -> Result<Self> {
        let clock: Clock = Arc::new(Timestamp::now);
        Self::begin_with_clock(root, options, &clock)
    }

    /// As [`Rebuild::begin`], with the time from `clock`.
    pub fn begin_with_clock(root: &Path, options: OpenOptions, clock: &Clock) -> Result<Self> {
        let lock = files::lock(root)?;
        let log = history::read_log_at(root)?;
        let condition = condition::of(root, &log)?;
        let mut connection = Connection::open_in_memory()?;
        format::migrate(&mut connection, &root.join("meta.db"))?;
        let blobs = block_on(options.content.list())?;
        let mut rebuild = Self {
            root: root.to_owned(),
            options,
            connection,
            now: to_nanos(clock()),
            records: log.records(),
            blobs: blobs.into_iter().map(|info| (info.digest.clone(), info)).collect(),
            aside: files::quarantined(root)?,
            placed: BTreeSet::new(),
            rebuilt: Rebuilt { condition, ..Rebuilt::default() },
            lines: log.lines,
            _lock: lock,
        };
        rebuild
            .rebuilt
            .left
            .extend(log.damaged.iter().map(|line| format!("history.log, line {line}: it does not check")));
        rebuild.fill()?;
        Ok(rebuild)
    }

    fn fill(&mut self) -> Result<()> {
        let tx = self.connection.unchecked_transaction()?;
        rows::history(&tx, &self.lines)?;
        rows::images(&tx, &self.records)?;
        let found = trees::find(&self.options.drivers, &mut self.rebuilt.left)?;
        trees::put(&tx, &found)?;
        self.rebuilt.removals = rows::trash(&tx, &self.root, &mut self.rebuilt.left)?;
        rows::sequences(&tx, &self.root, &self.options.drivers)?;
        tx.commit()?;
        self.rebuilt.snapshots = found.len();
        self.rebuilt.changes = self.lines.len();
        self.rebuilt.records = self.records.len();
        Ok(())
    }

    /// How it is with the old database.
    pub fn condition(&self) -> &Condition {
        &self.rebuilt.condition
    }

    /// What came back, and what did not, so far.
    pub fn rebuilt(&self) -> &Rebuilt {
        &self.rebuilt
    }

    /// The raw content store.
    pub fn content(&self) -> &Arc<dyn content::Store> {
        &self.options.content
    }

    /// The records, each with its namespace.
    pub fn records(&self) -> &[(String, Image)] {
        &self.records
    }

    /// The names under which a target came from registries into a namespace, as the history knows.
    pub fn sources(&self, namespace: &str, target: &Digest) -> BTreeSet<Reference> {
        let brought = |line: &&LogLine| {
            line.namespace == namespace && line.new.as_ref() == Some(target) && line.state.host.is_some()
        };
        self.lines.iter().filter(brought).filter_map(|line| line.name.parse().ok()).collect()
    }

    /// Drivers that have a committed snapshot of that key in a namespace.
    pub fn drivers_with(&self, namespace: &str, key: &str) -> Result<Vec<String>> {
        let mut query = self.connection.prepare_cached(
            "SELECT driver FROM snapshot WHERE namespace = ?1 AND name = ?2 AND kind = 'committed' ORDER BY driver",
        )?;
        let rows = query.query_map([namespace, key], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How large the file of a blob is; `None` if there is none.
    pub fn size_on_disk(&self, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest).map(|info| info.size)
    }

    /// Something that the caller could not read.
    pub fn leave(&mut self, what: String) {
        self.rebuilt.left.push(what);
    }

    /// Gives a namespace the blobs that its records need, as far as they are there, or set aside.
    pub fn put_blobs(&mut self, namespace: &str, needed: &BTreeMap<Digest, NeededBlob>) -> Result<()> {
        let tx = self.connection.unchecked_transaction()?;
        for (digest, blob) in needed {
            let at = match (self.blobs.get(digest), self.aside.get(digest)) {
                (Some(info), _) => to_nanos(info.created_at),
                (None, Some(entry)) => {
                    rows::damage(&tx, digest, entry, self.now)?;
                    self.now
                }
                (None, None) => continue,
            };
            rows::blob(&tx, namespace, digest, blob, at)?;
            self.placed.insert(digest.clone());
        }
        Ok(tx.commit()?)
    }

    /// Remembers what documents say, so that they need not be read again.
    pub fn put_summaries(&self, summaries: &[(Digest, ManifestSummary)]) -> Result<()> {
        let tx = self.connection.unchecked_transaction()?;
        summaries.iter().try_for_each(|(digest, gist)| summary::put(&tx, digest, gist))?;
        Ok(tx.commit()?)
    }

    /// Has every namespace hold what is on disk and no record keeps, and says what there is. `namespace` is where that
    /// goes if nothing names one.
    pub fn finish(&mut self, namespace: &str) -> Result<()> {
        let tx = self.connection.unchecked_transaction()?;
        let mut namespaces = rows::namespaces(&tx)?;
        let unplaced: Vec<&content::Info> = self.blobs.values().filter(|b| !self.placed.contains(&b.digest)).collect();
        if namespaces.is_empty() && !unplaced.is_empty() {
            namespaces.push(namespace.to_owned());
        }
        for info in unplaced {
            let blob = NeededBlob { size: info.size, labels: Labels::new() };
            for namespace in &namespaces {
                rows::blob(&tx, namespace, &info.digest, &blob, to_nanos(info.created_at))?;
            }
        }
        let lease = format!("rebuilt-{}", self.stamp());
        self.rebuilt.held = rows::hold(&tx, &lease, LABEL, self.now)?;
        tx.commit()?;
        self.rebuilt.blobs = rows::count_blobs(&self.connection)?;
        self.rebuilt.quarantined = self.placed.iter().filter(|digest| !self.blobs.contains_key(digest)).count();
        Ok(())
    }

    /// Puts the new database in the place of the old one, which gets another name.
    ///
    /// # Durability
    /// When this returns, the new one is there after a power cut.
    pub fn install(mut self) -> Result<Rebuilt> {
        let new = files::write(&self.connection, &self.root)?;
        self.rebuilt.moved_to = files::replace(&self.root, &new, &self.stamp())?;
        Ok(self.rebuilt)
    }

    /// The time, as file names have it.
    fn stamp(&self) -> String {
        from_nanos(self.now).strftime("%Y%m%dT%H%M%SZ").to_string()
    }
}

impl crate::Store {
    /// Says what a root has although its `meta.db` is gone or empty; `None` if it is there, or there is nothing.
    pub fn lost(root: &Path) -> Option<Loss> {
        lost(root)
    }
}
