//! The database file: connections, transactions.
//!
//! # Invariants
//! - A process never opens `meta.db` but through SQLite: closing any other descriptor of it would drop SQLite's locks.
//! - Everything that is written goes through [`Db::write`] or [`Db::write_together`]: `BEGIN IMMEDIATE`, the closure or
//!   closures, the lines for `history.log` appended and synced, `COMMIT`. So lines of the log are in the order of the
//!   commits, over all processes.
//! - Whatever fails goes through [`Db::told`], which stops writes if it is the disk ([`crate::fault`]).
//! - Opening reads the schema and nothing else; it takes the same time for an empty root and a full one.
//!
//! # Concurrency
//! Readers take a connection from a pool of bounded size ([`crate::readers`]) and see the snapshot of their first query.
//! There is one write connection for the process; its mutex queues the threads, which may share a transaction
//! ([`crate::transact`]), SQLite's write lock the processes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, MAIN_DB, OpenFlags};

use crate::changes::Watchers;
use crate::fault::{self, Latch};
use crate::history::Log;
use crate::readers::{Held, Readers};
use crate::reserve::{Loan, Reserve};
use crate::transact::{Tools, Tx, Writer};
use crate::{Error, Fault, Result, format, index, rebuild};

/// How long a writer waits for the writers of other processes. Each holds the lock for milliseconds; a minute is a
/// process that is stopped, or a disk that hangs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Statements each connection keeps prepared: more than there are in this crate.
const STATEMENTS: usize = 256;

/// The open database.
pub(crate) struct Db {
    path: PathBuf,
    access: Access,
    readers: Readers,
    writer: Writer,
    /// Asks for `data_version`, which is told to each connection by its own count; never writes.
    watch: Mutex<Option<Connection>>,
    log: Log,
    clock: Clock,
    watchers: Watchers,
    reserve: Reserve,
    latch: Latch,
}

/// Tells the time: the system's clock, or a test's.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What may be done with the file.
#[derive(Debug, Clone)]
enum Access {
    ReadWrite,
    /// Why it may not be written; whether the file system guarantees that nobody else writes it either.
    ReadOnly {
        reason: String,
        immutable: bool,
    },
}

impl Db {
    /// Opens or creates `root/meta.db`. Without permission to write it is opened for reading; [`Db::write`] then says
    /// why it cannot. Where it is gone and what it knew of is not, none is made.
    pub(crate) fn open(root: &Path, read_only: bool, clock: Clock) -> Result<Self> {
        let path = root.join("meta.db");
        if let Some(loss) = rebuild::lost(root) {
            return Err(Error::Lost { path: root.to_owned(), loss });
        }
        let access = access(root, &path, read_only)?;
        let db = Self {
            log: Log::new(root),
            reserve: Reserve::new(root),
            latch: Latch::default(),
            clock,
            watchers: Watchers::default(),
            path,
            access,
            readers: Readers::default(),
            writer: Writer::default(),
            watch: Mutex::new(None),
        };
        match db.access {
            Access::ReadWrite => {
                let mut connection = db.connect_lending()?;
                db.check_made(root, &connection)?;
                let migrated = format::migrate(&mut connection, &db.path);
                migrated.map_err(|error| db.told(fault::explained(&connection, &db.path, error), "open"))?;
                db.writer.put(Some(connection));
                db.reserve.fill();
            }
            Access::ReadOnly { .. } => {
                let connection = db.connect()?;
                db.check_made(root, &connection)?;
                let checked = format::check(&connection, &db.path);
                checked.map_err(|error| db.told(fault::explained(&connection, &db.path, error), "open"))?;
                db.readers.put(connection);
            }
        }
        Ok(db)
    }

    /// Refuses a database that has nothing, where what it knew of is there.
    fn check_made(&self, root: &Path, connection: &Connection) -> Result<()> {
        let unmade = rebuild::unmade(root, connection);
        match unmade.map_err(|error| self.told(fault::explained(connection, &self.path, error), "open"))? {
            Some(loss) => Err(Error::Lost { path: root.to_owned(), loss }),
            None => Ok(()),
        }
    }

    /// Why this database cannot be written; `None` if it can.
    pub(crate) fn read_only_reason(&self) -> Option<&str> {
        match &self.access {
            Access::ReadWrite => self.latch.reason(),
            Access::ReadOnly { reason, .. } => Some(reason),
        }
    }

    /// What stops writes once the disk has failed.
    pub(crate) fn latch(&self) -> &Latch {
        &self.latch
    }

    /// Runs `f` on one consistent snapshot of the database.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let connection = self.readers.take(|| self.connect_reading())?;
        let read = || f(&*connection.unchecked_transaction()?);
        read().map_err(|error| self.told(fault::explained(&connection, &self.path, error), "read"))
    }

    /// A number that is another one after any commit, whoever made it.
    pub(crate) fn data_version(&self) -> Result<i64> {
        let mut watch = lock(&self.watch);
        if watch.is_none() {
            *watch = Some(self.connect_reading()?);
        }
        let connection = watch.as_ref().expect("filled above");
        let version = connection.pragma_query_value(None, "data_version", |row| row.get(0)).map_err(Error::from);
        version.map_err(|error| self.told(fault::explained(connection, &self.path, error), "read"))
    }

    /// Runs `f` in a write transaction and commits what it did, if it succeeds. `operation` names it in errors.
    ///
    /// # Durability
    /// When this returns `Ok`, the changes and their history survive a power cut.
    pub(crate) fn write<T>(&self, operation: &'static str, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.write_at(None, operation, f)
    }

    /// As [`Db::write`], but only if [`Db::data_version`] is still `at`: else [`Error::Moved`], and `f` is not called.
    pub(crate) fn write_at<T>(
        &self,
        at: Option<i64>,
        operation: &'static str,
        f: impl FnOnce(&Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        self.check_writable()?;
        let check = || match at {
            Some(at) if self.data_version()? != at => Err(Error::Moved),
            _ => Ok(()),
        };
        self.with_tools(|tools| self.writer.alone(tools, check, f)).map_err(|error| self.told(error, operation))
    }

    /// Runs `f` in a write transaction that other callers' changes may be in, too: what each of them does stands or falls
    /// by itself, and is committed when this returns. For what changes rows and nothing else; what deletes from the disk
    /// on the word of rows, or has space lent for it, writes alone.
    ///
    /// # Durability
    /// As [`Db::write`]. An error, too, comes when what it rests on is durable.
    pub(crate) fn write_together<T>(&self, operation: &'static str, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.check_writable()?;
        self.with_tools(|tools| self.writer.together(tools, f)).map_err(|error| self.told(error, operation))
    }

    /// Says why it cannot be written, if so.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let Some(reason) = self.read_only_reason() else { return Ok(()) };
        let (path, reason) = (self.path.parent().unwrap_or(&self.path).to_owned(), reason.to_owned());
        Err(match self.latch.reason() {
            Some(_) => Error::Stopped { path, reason },
            None => Error::ReadOnly { path, reason },
        })
    }

    fn with_tools<T>(&self, write: impl FnOnce(&Tools<'_>) -> T) -> T {
        let (now, connect) = (|| self.now(), || self.connect());
        let _held = Held::new();
        write(&Tools { path: &self.path, log: &self.log, watchers: &self.watchers, now: &now, connect: &connect })
    }

    /// Says what was tried; a full disk is a full disk, whoever meets it. If the disk fails, writes are stopped.
    fn told(&self, error: Error, operation: &'static str) -> Error {
        let error = match error {
            Error::Io { path, source, .. } if path == self.path => Error::Io { operation, path, source },
            error if fault::is_unopened(&error) => match fault::try_to_make_a_file(&self.path) {
                Err(why) => why,
                Ok(()) => error,
            },
            error @ Error::Database { .. } if error.fault() == Fault::Full => {
                Error::Io { operation, path: self.path.clone(), source: io::ErrorKind::StorageFull.into() }
            }
            Error::Database { source, .. } => Error::Database { operation, source },
            other => other,
        };
        let ours = match &error {
            Error::Io { path, .. } => *path == self.path || self.log.is_at(path),
            other => matches!(other, Error::Database { .. }),
        };
        if ours {
            self.latch.note(&error, (self.clock)());
        }
        error
    }

    /// Where writers meet.
    #[cfg(test)]
    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Who listens.
    pub(crate) fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// Nanoseconds since 1970 UTC.
    pub(crate) fn now(&self) -> i64 {
        to_nanos((self.clock)())
    }

    fn connect(&self) -> Result<Connection> {
        let connection = connect(&self.path, &self.access).map_err(|error| self.told(error, "open"))?;
        if matches!(self.access, Access::ReadOnly { .. }) {
            format::complete(&connection, &self.path)?;
        }
        Ok(connection)
    }

    /// A connection to read by. Where the disk no longer lets it be opened for writing, reading goes on all the same.
    fn connect_reading(&self) -> Result<Connection> {
        if self.latch.reason().is_none() {
            match self.connect() {
                Err(_) if self.latch.reason().is_some() => {}
                connected => return connected,
            }
        }
        connect(&self.path, &Access::ReadOnly { reason: String::new(), immutable: false })
    }

    /// The first connection makes the index of the write-ahead log; on a full disk it needs the reserve for that.
    fn connect_lending(&self) -> Result<Connection> {
        match self.connect() {
            // XFS lets a file without a name be made where it refuses one with a name: then nobody says that the disk is full.
            Err(error) if (fault::is_full(&error) || fault::is_unopened(&error)) && self.reserve.lend_for_opening() => {
                self.connect()
            }
            other => other,
        }
    }

    /// Makes room for a deletion or a lease on a full disk, until what it returns is dropped.
    pub(crate) fn lend(&self) -> Loan<'_> {
        self.reserve.lend()
    }

    /// The space held back.
    pub(crate) fn reserve(&self) -> &Reserve {
        &self.reserve
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        // The last connection gives back the log and its index: what was lent for them is returned.
        self.writer.put(None);
        self.readers.close();
        if matches!(self.access, Access::ReadWrite) {
            self.reserve.fill();
        }
    }
}

/// A time as the database has it; what does not fit (the years before 1678 and after 2261) becomes the nearest that does.
pub(crate) fn to_nanos(time: Timestamp) -> i64 {
    let nanos = time.as_nanosecond();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// A column whose text is not what was written there.
pub(crate) fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

/// The opposite of [`to_nanos`].
pub(crate) fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A panic while a lock is held leaves nothing half-done: transactions roll back when dropped.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the file. What SQLite cannot open for writing it opens for reading without a word, or fails at that and tells of it
/// alone: so the system is asked why no file can be made here, and if one can, SQLite once more.
fn connect(path: &Path, access: &Access) -> Result<Connection> {
    let usable = |tried: &Result<Connection>| match tried {
        Ok(connection) => !connection.is_readonly(MAIN_DB).unwrap_or(false) && !has_read_only_index(connection),
        Err(error) => !fault::is_unopened(error),
    };
    let tried = try_connect(path, access);
    if matches!(access, Access::ReadOnly { .. }) || usable(&tried) {
        return tried;
    }
    // Its index would be shared with the next.
    drop(tried);
    fault::try_to_make_a_file(path)?;
    let again = try_connect(path, access);
    match again {
        Ok(_) if !usable(&again) => {
            let root = path.parent().unwrap_or(path).to_owned();
            Err(Error::ReadOnly { path: root, reason: "meta.db can be opened for reading only".to_owned() })
        }
        again => again,
    }
}

fn try_connect(path: &Path, access: &Access) -> Result<Connection> {
    index::guard();
    let base = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = match access {
        Access::ReadWrite => {
            let flags = base | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
            Connection::open_with_flags(path, flags).map_err(|source| fault::unopened(path, source))?
        }
        Access::ReadOnly { immutable, .. } => {
            let flags = base | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(read_only_uri(path, *immutable), flags)
                .map_err(|source| fault::unopened(path, source))?
        }
    };
    prepare(&connection, access).map_err(|error| fault::explained(&connection, path, error))?;
    Ok(connection)
}

fn prepare(connection: &Connection, access: &Access) -> Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Mapped pages would all count as this process's memory, and mapping them takes longer than reading them.
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    if matches!(access, Access::ReadWrite) {
        enter_wal(connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
        // Log and index are opened by the first read: what is wrong with them is to be met here.
        connection.pragma_query_value(None, "schema_version", |_| Ok(()))?;
    }
    Ok(())
}

/// Changing the journal mode does not wait for locks, so that waiting is done here. After the first time it changes
/// nothing.
fn enter_wal(connection: &Connection) -> Result<()> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0));
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(Error::Database { operation: "set the journal mode", source }),
            Ok(found) => {
                return Err(Error::Invalid {
                    what: "file system",
                    reason: format!(
                        "the database cannot keep a write-ahead log here (journal mode stays {found:?}): put the root on a \
                         local file system"
                    ),
                });
            }
        }
    }
}

/// Whether the index of the log was opened for reading only: a full disk had no room to make it, and another process had just made it
/// when SQLite looked again. Whoever writes now need not be waited for to know that.
fn has_read_only_index(connection: &Connection) -> bool {
    let begun =
        connection.busy_timeout(Duration::ZERO).and_then(|()| connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK"));
    let waits = connection.busy_timeout(BUSY_TIMEOUT);
    matches!(begun, Err(error) if error.sqlite_error_code() == Some(ErrorCode::ReadOnly)) || waits.is_err()
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

pub(crate) fn read_only_uri(path: &Path, immutable: bool) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(byte as char);
        } else {
            uri.push_str(&format!("%{byte:02x}"));
        }
    }
    uri.push_str(if immutable { "?immutable=1" } else { "?mode=ro" });
    uri
}

/// Finds out what may be done with the file, creating nothing if it may not be written.
fn access(root: &Path, path: &Path, read_only: bool) -> Result<Access> {
    let refusal = if read_only { Some("it was opened for reading only".to_owned()) } else { unwritable(root, path) };
    let Some(reason) = refusal else { return Ok(Access::ReadWrite) };
    if let Err(source) = std::fs::symlink_metadata(path) {
        if !read_only && source.kind() == std::io::ErrorKind::NotFound {
            return Err(Error::ReadOnly { path: root.to_owned(), reason });
        }
        return Err(Error::Io { operation: "open", path: path.to_owned(), source });
    }
    // A reader of a WAL database shares an index file with the writers. Where it neither exists nor can be made, nobody
    // can be writing; then the file alone is the whole truth, unless a log lies beside it.
    let shared = Access::ReadOnly { reason: reason.clone(), immutable: false };
    let probe = connect(path, &shared).and_then(|c| Ok(c.pragma_query_value(None, "schema_version", |_| Ok(()))?));
    if probe.is_ok() {
        return Ok(shared);
    }
    let log = std::fs::metadata(path.with_extension("db-wal")).map_or(0, |m| m.len());
    if log > 0 {
        return Err(Error::ReadOnly {
            path: root.to_owned(),
            reason: format!(
                "{reason}, and meta.db-wal has changes that can only be read after a writer opened the root"
            ),
        });
    }
    Ok(Access::ReadOnly { reason, immutable: true })
}

/// Why the root may not be written, or `None` if it may.
fn unwritable(root: &Path, path: &Path) -> Option<String> {
    use rustix::fs::{Access as Mode, access};
    let denied = |at: &Path| access(at, Mode::WRITE_OK).err();
    let errno = denied(root).or_else(|| denied(path).filter(|&e| e != rustix::io::Errno::NOENT))?;
    match errno {
        rustix::io::Errno::ROFS => Some("the file system is read-only".to_owned()),
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
            Some("this user may not write there; run as its owner, or choose another --root".to_owned())
        }
        // That says nothing of what may be done; what is wrong, opening tells.
        _ => None,
    }
}
