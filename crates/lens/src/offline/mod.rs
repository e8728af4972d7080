//! Reads a containerd's root directory: where only its files are left because no containerd runs, or the one that does cannot
//! answer ([`Root::read`]), and of a large store instead of the lists of its API ([`Root::running`]).
//!
//! [`Root::read`] fills the same rows that [`Reader`](crate::Reader) fills over the API: names, leases, containers and what
//! namespaces know of blobs, snapshots and writes in progress from `meta.db`, what snapshots are and take from each
//! snapshotter's own `metadata.db`, how far writes are from the files of content. [`Stored`] adds what no API tells: the
//! directory of each snapshot, what lies on disk although no record names it, and which blobs a record names that are not there.
//!
//! # Invariants
//! - Nothing is written, created, renamed or locked, and files are opened without touching their access time where the
//!   kernel lets this user do so.
//! - Each database is of one moment, also beside a containerd that writes to it (`orlop_bolt`). If `meta.db` moved on before
//!   the other files had been read, or somebody holds it open and may be about to commit, and something does not fit, all is
//!   read again until that changes no more; if that never ends, it is said.
//! - What cannot be read is a [`Gap`] that says what and why; damage in one place costs what is
//!   there and nothing else. What files cannot tell is not guessed: whether the owner of a lease lives, what runs, the usage
//!   of a snapshotter that counts in its own way.
//! - Paths are made of digests, numbers and names that were listed, never of a name that a database holds.
//!
//! Blocking: it is files.

mod content;
mod error;
mod fields;
mod file;
mod metadata;
mod own;
pub mod places;
mod running;
pub(crate) mod snapshotters;
mod standing;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use orlop_graph::model::{Gap, Inventory, NamespaceId, SnapshotKind, SnapshotRow, Usage};
use orlop_oci::Digest;

use metadata::{Ingest, Named};
use snapshotters::Ahead;

pub use error::Error;
pub use running::{Extent, Unsuited};
pub use standing::Standing;

/// How often everything is read because containerd went on meanwhile and something did not fit.
const ATTEMPTS: usize = 8;
/// How long between, if something holds the database open: longer than a commit takes that waits for its disk.
const PAUSE: Duration = Duration::from_millis(50);

/// What is missing without `meta.db`.
const ALL: &str =
    "all that meta.db records: namespaces, image records, leases, containers, which blobs and snapshots they have";

/// Everything that a root's files tell, in the rows of the API.
///
/// # Errors
/// As [`Root::open`] and [`Root::read`].
pub fn load(root: &Path) -> Result<Inventory, Error> {
    Root::open(root)?.read().map(|stored| stored.inventory)
}

/// A containerd's root directory.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

/// What a root holds.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The rows, and what could not be read. What snapshots take is known where their snapshotter wrote it down;
    /// [`Root::measure`] looks at those that are still written to.
    pub inventory: Inventory,
    /// What lies on disk although no namespace that could be read has it. If there is no gap, containerd's next collection
    /// takes it, unless its writer is about to name it; if `meta.db` could not be read, this is all that there is.
    pub unlisted: Vec<Unlisted>,
    /// Blobs that a namespace has and whose file is not there, once each.
    pub absent: Vec<Digest>,
    directories: HashMap<SnapshotId, PathBuf>,
}

type SnapshotId = (NamespaceId, Arc<str>, Arc<str>);

/// Something on disk that no namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unlisted {
    /// A blob.
    Blob {
        /// Its digest, which is its name; whether its bytes match was not looked at.
        digest: Digest,
        /// Its bytes.
        size: u64,
    },
    /// A write in progress.
    Ingest {
        /// Its directory.
        directory: PathBuf,
        /// Its reference, with containerd's prefix of namespace and number, if it can be read.
        reference: Option<String>,
        /// Bytes that are there.
        size: u64,
    },
    /// A snapshot that its snapshotter knows, or a directory where snapshots are.
    Snapshot {
        /// The snapshotter.
        snapshotter: Arc<str>,
        /// Its directory, if there is one.
        directory: Option<PathBuf>,
        /// By what key its snapshotter knows it, if it does.
        key: Option<String>,
    },
}

impl Stored {
    /// Whether everything that one file names is where another is to have it.
    fn fits(&self) -> bool {
        self.unlisted.is_empty() && self.absent.is_empty() && self.inventory.gaps.is_empty()
    }

    /// Whether the same does not fit.
    fn is_as_unfit_as(&self, other: &Self) -> bool {
        self.unlisted == other.unlisted && self.absent == other.absent && self.inventory.gaps == other.inventory.gaps
    }

    /// The directory of a snapshot: its files are below `fs` (overlayfs and its like) or in it (`native`).
    pub fn directory(&self, row: &SnapshotRow) -> Option<&Path> {
        let id = (row.namespace, row.snapshotter.clone(), row.key.clone());
        self.directories.get(&id).map(PathBuf::as_path)
    }

    /// The files of a snapshot, if its snapshotter's form is known.
    pub fn tree(&self, row: &SnapshotRow) -> Option<PathBuf> {
        snapshotters::tree(&row.snapshotter, self.directory(row)?)
    }
}

impl Root {
    /// Looks whether a directory is a containerd's root.
    ///
    /// # Errors
    /// [`Error::NotRoot`] if it is none, and what the system says if it cannot be listed.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let listed = file::names(path).map_err(Error::io("listing", path))?;
        if listed.iter().any(places::is_part_of_root) {
            return Ok(Self { path: path.to_owned() });
        }
        let inside = file::NESTED.iter().map(|below| path.join(below));
        let mut candidates =
            inside.filter(|below| file::names(below).is_ok_and(|n| n.iter().any(places::is_part_of_root)));
        Err(Error::NotRoot { path: path.to_owned(), inside: candidates.next() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// If the root cannot be listed any more. Anything else that cannot be read is a gap.
    pub fn read(&self) -> Result<Stored, Error> {
        let (mut stored, mut version) = self.read_once()?;
        for _ in 1..ATTEMPTS {
            let moved = version != file::version(&self.metadata_file());
            if stored.fits() || !(moved || file::is_locked(&self.metadata_file())) {
                return Ok(stored);
            }
            // A commit that is under way ends when the disk has it.
            std::thread::sleep(PAUSE);
            let before = std::mem::take(&mut stored);
            let of = version;
            (stored, version) = self.read_once()?;
            if version == of && stored.is_as_unfit_as(&before) {
                return Ok(stored);
            }
        }
        if !stored.fits() {
            let why = format!("containerd wrote to meta.db during each of {ATTEMPTS} attempts; ask it, or stop it");
            let what = "whether what is on disk and what meta.db records are of one moment".into();
            stored.inventory.gaps.push(Gap { what, why });
        }
        Ok(stored)
    }

    /// What is there, and of which version of `meta.db` it is.
    fn read_once(&self) -> Result<(Stored, Option<u64>), Error> {
        let taken = Timestamp::now();
        let read = |db: &orlop_bolt::Db<'_>| metadata::read(db, metadata::Wanted::ALL);
        let metadata = file::database(&self.metadata_file(), read).unwrap_or_else(|why| {
            let mut none = metadata::Metadata::default();
            none.inventory.gaps.push(Gap { what: ALL.into(), why });
            none
        });
        let inventory = Inventory { taken, ..metadata.inventory };
        let mut stored = Stored { inventory, ..Stored::default() };
        self.fill(metadata.snapshots, metadata.ingests, true, Ahead::default(), &mut stored)?;
        Ok((stored, metadata.version))
    }

    /// Fills in what the snapshotters and the files of content say, at the same time; what no namespace has, and which blobs are
    /// there, only if `others` says so.
    fn fill(
        &self,
        named: Vec<Named>,
        ingests: Vec<Ingest>,
        others: bool,
        ahead: Ahead,
        stored: &mut Stored,
    ) -> Result<(), Error> {
        let blobs = std::mem::take(&mut stored.inventory.blobs);
        let found = std::thread::scope(|scope| {
            let content = scope.spawn(|| content::look(&self.path, ingests, others.then_some(&blobs[..])));
            let filled = snapshotters::fill(&self.path, named, others, ahead, stored);
            let found = content.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            filled.map(|()| found)
        })?;
        stored.inventory.blobs = blobs;
        stored.inventory.ingests.extend(found.ingests);
        stored.inventory.gaps.extend(found.gaps);
        stored.unlisted.extend(found.unlisted);
        stored.absent = found.absent;
        Ok(())
    }

    fn metadata_file(&self) -> PathBuf {
        self.path.join(places::METADATA).join("meta.db")
    }

    /// Measures snapshots whose usage is not known and that `wanted` takes, by walking their directories as their
    /// snapshotter does: the active ones of overlayfs and native. Others stay unknown.
    pub fn measure(&self, stored: &mut Stored, wanted: impl Fn(&SnapshotRow) -> bool) {
        let (measured, gaps) = self.usage(stored, &stored.inventory, wanted);
        for (at, usage) in measured {
            stored.inventory.snapshots[at].usage = Some(usage);
        }
        stored.inventory.gaps.extend(gaps);
    }

    /// The same for who holds the rows elsewhere: by position in the list of snapshots what each takes, and what could not
    /// be measured.
    pub fn usage(
        &self,
        stored: &Stored,
        rows: &Inventory,
        wanted: impl Fn(&SnapshotRow) -> bool,
    ) -> (Vec<(usize, Usage)>, Vec<Gap>) {
        let (mut measured, mut gaps) = (Vec::new(), Vec::new());
        for (at, row) in rows.snapshots.iter().enumerate() {
            if row.usage.is_some() || row.kind != SnapshotKind::Active || !wanted(row) {
                continue;
            }
            let Some(tree) = stored.tree(row) else {
                continue;
            };
            match snapshotters::disk_usage(&tree) {
                Ok(usage) => measured.push((at, usage)),
                Err(error) => {
                    let what = format!("usage of snapshot {} of {}", row.key, row.snapshotter);
                    gaps.push(Gap { what, why: error.to_string() });
                }
            }
        }
        (measured, gaps)
    }

    /// Those of some documents whose files are here and sound, read on two threads. Who has a server asks it for the others.
    pub fn sound_documents(&self, wanted: &[Digest]) -> crate::Documents {
        let half = wanted.len().div_ceil(2).max(1);
        let read = |part: &[Digest]| {
            let mut documents = crate::Documents::default();
            for digest in part {
                if let Ok(Some(bytes)) = content::document(&self.path, digest) {
                    documents.insert(digest.clone(), bytes);
                }
            }
            documents
        };
        std::thread::scope(|scope| {
            let parts: Vec<_> = wanted.chunks(half).map(|part| scope.spawn(move || read(part))).collect();
            let mut all = crate::Documents::default();
            for part in parts {
                all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            all
        })
    }

    /// Reads documents that have not been read from the files of content; each is checked against its digest, and one
    /// that differs from it, is too large or is not there counts as absent.
    ///
    /// # Errors
    /// If a file that is there cannot be read.
    pub fn documents(
        &self,
        documents: &mut crate::Documents,
        wanted: impl IntoIterator<Item = Digest>,
    ) -> Result<(), Error> {
        for digest in wanted {
            if !documents.was_asked_for(&digest) {
                let bytes = content::document(&self.path, &digest)?;
                documents.answer(digest, bytes);
            }
        }
        Ok(())
    }
}
