//! A disk that fails beneath the metadata: what SQLite makes of it as what the system said, and the latch that then stops writes.
//!
//! # Invariants
//! - After the first error of the disk (EIO, EROFS and the like; not: no space, no descriptor) on `meta.db`, its log or
//!   `history.log`, while reading or writing, or when SQLite finds the database damaged, nothing is written by this process any more: what the kernel has not
//!   written may be forgotten by it, so that no later sync can be trusted. What reads goes on, as far as the disk lets it.
//! - Only a new process writes again: it reads the log from the disk as that has it.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use jiff::Timestamp;
use orlop_content::Trouble;
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::Notify;

use crate::{Error, Fault, Result, index};

/// Set once, with what happened.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    reason: OnceLock<String>,
    set: Notify,
}

impl Latch {
    /// Why nothing is written any more.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Stops writes if this error, met on a file of the metadata, is the disk's.
    pub(crate) fn note(&self, error: &Error, at: Timestamp) {
        let stops = match error {
            Error::Io { source, .. } => fails(Trouble::of(source)),
            // Writing on would make it worse.
            other => other.fault() == Fault::Damaged,
        };
        if !stops {
            return;
        }
        let mut first = false;
        let reason = self.reason.get_or_init(|| {
            first = true;
            format!("{error}, at {}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
        });
        if first {
            tracing::error!(
                reason,
                "the disk fails beneath the metadata: nothing is written until this process is started again"
            );
            self.set.notify_waiters();
        }
    }

    /// Waits until it is set.
    pub(crate) async fn wait(&self) {
        loop {
            let set = self.set.notified();
            if self.reason().is_some() {
                return;
            }
            set.await;
        }
    }
}

/// Whether the disk or its file system fails, and not that something is used up.
const fn fails(trouble: Trouble) -> bool {
    matches!(trouble, Trouble::Disk | Trouble::ReadOnly)
}

/// An error of the database as what the system said beneath it, if that is what it was.
pub(crate) fn explained(connection: &Connection, path: &Path, error: Error) -> Error {
    if !is_of_system(&error) {
        return error;
    }
    if let Some(said) = index::refused(&error) {
        return system(path, error, said);
    }
    // SAFETY: the handle is that of an open connection, which this thread has for itself, and is not kept; the call reads
    // a number from it.
    let code = unsafe { ffi::sqlite3_system_errno(connection.handle()) };
    system(path, error, io::Error::from_raw_os_error(code))
}

/// The same where opening failed, so that nobody is there who could be asked. What the system said last was said to SQLite, on this
/// thread.
pub(crate) fn unopened(path: &Path, error: rusqlite::Error) -> Error {
    let last = io::Error::last_os_error();
    let error = Error::Database { operation: "open meta.db", source: error };
    if is_of_system(&error) { system(path, error, last) } else { error }
}

/// Whether SQLite could not open a file and nothing says why.
pub(crate) fn is_unopened(error: &Error) -> bool {
    matches!(error, Error::Database { source, .. } if source.sqlite_error_code() == Some(ErrorCode::CannotOpen))
}

/// Whether there is no room.
pub(crate) fn is_full(error: &Error) -> bool {
    error.fault() == Fault::Full || matches!(error, Error::Io { source, .. } if Trouble::of(source) == Trouble::Full)
}

/// Makes a file without a name in the database's directory, to learn why none can be made. Where there are no such files
/// nothing is learnt.
pub(crate) fn try_to_make_a_file(path: &Path) -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    let directory = path.parent().unwrap_or(path);
    match rustix::fs::open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR) {
        Ok(_) | Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(()),
        Err(errno) => Err(Error::Io { operation: "make a file beside", path: path.to_owned(), source: errno.into() }),
    }
}

fn is_of_system(error: &Error) -> bool {
    let Error::Database { source, .. } = error else { return false };
    matches!(source.sqlite_error_code(), Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen))
}

fn system(path: &Path, error: Error, said: io::Error) -> Error {
    match error {
        Error::Database { operation, .. } if Trouble::of(&said) != Trouble::Other => {
            Error::Io { operation, path: path.to_owned(), source: said }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_stops_nothing_and_the_first_error_of_the_disk_is_the_reason() {
        let latch = Latch::default();
        let error = |errno: rustix::io::Errno| Error::Io {
            operation: "write",
            path: "/root/meta.db".into(),
            source: errno.into(),
        };
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::MFILE] {
            latch.note(&error(errno), Timestamp::UNIX_EPOCH);
            assert_eq!(latch.reason(), None, "{errno}");
        }
        latch.note(&Error::Moved, Timestamp::UNIX_EPOCH);
        assert_eq!(latch.reason(), None);
        let damaged = Latch::default();
        let corrupt = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None);
        damaged.note(&corrupt.into(), Timestamp::UNIX_EPOCH);
        assert!(damaged.reason().is_some());
        latch.note(&error(rustix::io::Errno::IO), Timestamp::UNIX_EPOCH);
        latch.note(&error(rustix::io::Errno::ROFS), Timestamp::UNIX_EPOCH);
        let reason = "write /root/meta.db: Input/output error (os error 5), at 1970-01-01T00:00:00Z";
        assert_eq!(latch.reason(), Some(reason));
    }
}
