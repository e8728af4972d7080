//! Opening a root; what everything else is built on.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use orlop_content as content;
use orlop_snapshot::Driver;
use rustix::fs::FlockOperation;

use crate::changes::Watchers;
use crate::db::{Clock, Db};
use crate::reserve::{Gate, Loan, Reserve};
use crate::transact::Tx;
use crate::{Error, Mark, Result};

/// What a root may have before its `meta.db`: what a start that was cut short leaves, and what a file system has of its own.
const OWN_NAMES: [&str; 15] = [
    "content",
    "snapshots",
    "mounts",
    "trash",
    "quarantine",
    "history.log",
    "reserve",
    "scrub",
    "scrub.new",
    "scrub.lock",
    "lock",
    "daemon.lock",
    "gc.lock",
    "peer.key",
    "lost+found",
];

/// What the names of everything that belongs to a database begin with, under whatever name it is kept.
const DATABASE: &str = "meta.db";

/// How many names a refusal has: enough to know the directory again.
const SHOWN_NAMES: usize = 3;

/// On whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The namespace.
    pub namespace: String,
    /// The lease that everything made by the call is added to.
    pub lease: Option<String>,
    /// Who, for the history: `orlop pull`, `grpc`, `reconciler`.
    pub actor: String,
    /// From which host of a registry comes what is written, for the history.
    pub host: Option<String>,
}

impl Scope {
    /// A scope without a lease.
    pub fn new(namespace: impl Into<String>, actor: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), lease: None, actor: actor.into(), host: None }
    }

    /// The same with a lease.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }

    /// The same with a host that things come from.
    #[must_use]
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }
}

/// What a root is opened with.
pub struct OpenOptions {
    /// The raw content store.
    pub content: Arc<dyn content::Store>,
    /// The snapshot drivers, the default one first.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// Never write; fail what would.
    pub read_only: bool,
}

/// A root: the database, the raw content store and the snapshot drivers. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: OpenOptions,
    db: Db,
    /// By namespace: when it was last seen that no target of a record is loose (`kin.rs`).
    tight: Mutex<HashMap<String, Mark>>,
    /// Held shared as long as the root is open; who changes the root itself takes it alone. `None` where a read-only
    /// root has no such file.
    _lock: Option<File>,
}

impl Store {
    /// Opens or creates a root: its directory, `meta.db`, `lock`.
    ///
    /// A root that may not be written (no permission, read-only file system) opens all the same if it is there: what
    /// reads works, what writes fails with [`Error::ReadOnly`].
    ///
    /// # Errors
    /// [`Error::NewerFormat`] if a newer Orlop wrote it; [`Error::Lost`] if its database is gone and other things are
    /// there; [`Error::ReadOnly`] if it must be made and cannot be;
    /// [`Error::InUse`] while somebody has it for himself.
    pub fn open(root: &Path, options: OpenOptions) -> Result<Self> {
        Self::open_with_clock(root, options, Arc::new(jiff::Timestamp::now))
    }

    /// As [`Store::open`], with the time from `clock`: tests let leases expire without waiting.
    pub fn open_with_clock(root: &Path, options: OpenOptions, clock: Clock) -> Result<Self> {
        if !options.read_only {
            create_root(root)?;
        }
        let lock = lock_root(root, options.read_only)?;
        let db = Db::open(root, options.read_only, clock)?;
        Ok(Self { inner: Arc::new(Inner { root: root.to_owned(), options, db, tight: Mutex::default(), _lock: lock }) })
    }

    /// Refuses a directory that is something else: it has no `meta.db`, and something that no root has. Whoever makes
    /// anything in a root asks first, before a driver or the content store does.
    ///
    /// # Errors
    /// [`Error::ForeignRoot`], naming some of what is there.
    pub fn check_root(root: &Path) -> Result<()> {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) if root.join("meta.db").try_exists().is_ok_and(|there| !there) => entries,
            // What cannot be looked into, opening tells.
            _ => return Ok(()),
        };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let is_own = |name: &str| OWN_NAMES.contains(&name) || name.starts_with(DATABASE);
        let mut foreign: Vec<String> = names.filter(|name| !is_own(name)).collect();
        if foreign.is_empty() {
            return Ok(());
        }
        foreign.sort_unstable();
        let more = foreign.len().saturating_sub(SHOWN_NAMES);
        foreign.truncate(SHOWN_NAMES);
        let mut found = format!("{foreign:?}").trim_matches(['[', ']']).to_owned();
        if more > 0 {
            found.push_str(&format!(" and {more} more"));
        }
        Err(Error::ForeignRoot { path: root.to_owned(), found })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Why this root cannot be written; `None` if it can.
    pub fn read_only_reason(&self) -> Option<&str> {
        self.inner.db.read_only_reason()
    }

    /// Why this process writes no more, although it could: the disk failed beneath the metadata. Starting again is the way out.
    pub fn stopped(&self) -> Option<&str> {
        self.inner.db.latch().reason()
    }

    /// Waits until [`Store::stopped`] has something to say.
    pub async fn until_stopped(&self) {
        self.inner.db.latch().wait().await;
    }

    /// Says why this root cannot be written, if so.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.inner.db.check_writable()
    }

    /// The raw content store, without namespaces.
    pub fn raw_content(&self) -> &Arc<dyn content::Store> {
        &self.inner.options.content
    }

    /// A snapshot driver by name.
    pub fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>> {
        self.inner
            .options
            .drivers
            .iter()
            .find(|d| d.name() == name)
            .ok_or_else(|| crate::Error::NotFound { kind: crate::ObjectKind::Snapshotter, name: name.to_owned() })
    }

    /// All drivers, the default one first.
    pub fn drivers(&self) -> &[Arc<dyn Driver>] {
        &self.inner.options.drivers
    }

    pub(crate) fn watchers(&self) -> &Watchers {
        self.inner.db.watchers()
    }

    /// The time, in nanoseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.inner.db.now()
    }

    pub(crate) fn tight(&self) -> &Mutex<HashMap<String, Mark>> {
        &self.inner.tight
    }

    pub(crate) fn data_version(&self) -> Result<i64> {
        self.inner.db.data_version()
    }

    /// Makes room for a deletion or a lease on a full disk, until what it returns is dropped.
    pub(crate) fn lend(&self) -> Loan<'_> {
        self.inner.db.lend()
    }

    /// The space held back.
    pub(crate) fn reserve(&self) -> &Reserve {
        self.inner.db.reserve()
    }

    /// Tells a thread that may open nothing whether there is room for what it writes.
    pub fn gate(&self) -> Gate {
        self.reserve().gate()
    }

    /// Runs `f` on one consistent snapshot of the database.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&rusqlite::Connection) -> Result<T>) -> Result<T> {
        self.inner.db.read(f)
    }

    /// Runs `f` in a write transaction (`BEGIN IMMEDIATE`), and commits if it succeeds. Never call a driver or the
    /// content store within: the whole machine's writers wait.
    pub(crate) fn write<T>(&self, operation: &'static str, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.inner.db.write(operation, f)
    }

    /// As [`Store::write`], for what brings something in: the reserve is not for it, and the trash gives way to it. `f` runs again
    /// when a transaction met a full disk.
    pub(crate) fn bring<T>(&self, operation: &'static str, mut f: impl FnMut(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.with_room(|| {
            self.admit_transaction()?;
            self.inner.db.write(operation, &mut f)
        })
    }

    /// The same for what changes rows alone: callers that come at the same time share a transaction and its sync.
    pub(crate) fn bring_together<T>(
        &self,
        operation: &'static str,
        mut f: impl FnMut(&Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.with_room(|| {
            self.admit_transaction()?;
            self.inner.db.write_together(operation, &mut f)
        })
    }

    /// A transaction that others may share, for what takes something away, or is as little as what reading needs: on a full disk it is lent
    /// the reserve, and shares it with nobody.
    pub(crate) fn lent_together<T>(&self, operation: &'static str, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        if self.reserve().is_short() {
            let _loan = self.lend();
            return self.inner.db.write(operation, f);
        }
        self.inner.db.write_together(operation, f)
    }

    /// As [`Store::write`], but only if [`Store::version`] is still `at`: else [`Error::Moved`].
    pub(crate) fn write_at<T>(
        &self,
        at: Option<i64>,
        operation: &'static str,
        f: impl FnOnce(&Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.inner.db.write_at(at, operation, f)
    }
}

fn create_root(root: &Path) -> Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let created = DirBuilder::new().recursive(true).mode(0o711).create(root);
    created.map_err(|source| match source.kind() {
        // It is there, and looking at it failed just now.
        io::ErrorKind::AlreadyExists => match std::fs::metadata(root) {
            Err(source) => Error::Io { operation: "look at", path: root.to_owned(), source },
            Ok(_) => Error::Io { operation: "create", path: root.to_owned(), source },
        },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::ReadOnly { path: root.to_owned(), reason: format!("it does not exist and cannot be made: {source}") }
        }
        _ => Error::Io { operation: "create", path: root.to_owned(), source },
    })
}

/// Takes the shared lock on `root/lock`.
fn lock_root(root: &Path, read_only: bool) -> Result<Option<File>> {
    let path = root.join("lock");
    let existing = File::open(&path);
    let opened = match existing {
        Err(_) if !read_only => FileOptions::new().create(true).truncate(false).write(true).open(&path),
        other => other,
    };
    let Ok(file) = opened else {
        // Nobody can hold a lock that does not exist; what is wrong with the root, opening the database tells.
        return Ok(None);
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: root.to_owned() }),
        Err(e) => Err(Error::Io { operation: "lock", path, source: e.into() }),
    }
}
