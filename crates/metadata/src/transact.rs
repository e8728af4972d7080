//! Write transactions: one caller's alone, or several callers' together.
//!
//! A commit costs a sync of the disk, however little is in it. Callers that only change rows, and come while others
//! do, share one: each works behind a savepoint of a transaction that stays open as long as the next one waits, and the
//! last commits for all.
//!
//! # Invariants
//! - Nobody is answered before what he did, and what his answer rests on, is committed; a refusal may rest on what
//!   another member of the transaction did.
//! - What one caller did and failed at is taken back, and nothing else. If the commit fails, or the whole transaction is
//!   lost, all fail.
//! - An open transaction is left only to somebody who waits in the queue. Whoever finds nobody there commits.
//! - Who writes alone finds no transaction open, and leaves none: what is deleted from the disk is deleted on the word of
//!   committed rows.
//!
//! # Concurrency
//! One mutex guards connection and open transaction; callers wait for the outcome without it. The tests go through the orders in which
//! callers may come (`transact_orders_tests.rs`): what they wait with is `super::sync`'s.

use std::cell::RefCell;
use std::io;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ffi};

use super::sync::{Arc, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, lock};
use crate::changes::{Change, Notice, Watchers};
use crate::db::from_nanos;
use crate::fault;
use crate::history::Log;
use crate::{Error, Result};

/// Callers that share a transaction at most: then the first of them has waited long enough.
pub(crate) const MEMBERS: usize = 64;

/// What one caller does. Dereferences to the connection.
pub(crate) struct Tx<'c> {
    connection: &'c Connection,
    now: i64,
    noted: RefCell<Noted>,
}

/// What is to follow a commit.
#[derive(Default)]
struct Noted {
    lines: Vec<String>,
    notices: Vec<Notice>,
    changes: Vec<i64>,
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

impl Tx<'_> {
    /// The time of everything in this transaction, in nanoseconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// Adds a line to `history.log`, should this transaction commit.
    pub(crate) fn log_line(&self, line: String) {
        self.noted.borrow_mut().lines.push(line);
    }

    /// Tells of a change, should this transaction commit.
    pub(crate) fn tell(&self, namespace: &str, change: Change) {
        let (at, namespace) = (from_nanos(self.now), namespace.to_owned());
        self.noted.borrow_mut().notices.push(Notice { at, namespace, change });
    }

    /// A change in the history that is this transaction's.
    pub(crate) fn made(&self, seq: i64) {
        self.noted.borrow_mut().changes.push(seq);
    }
}

impl Noted {
    fn append(&mut self, mut other: Self) {
        self.lines.append(&mut other.lines);
        self.notices.append(&mut other.notices);
        self.changes.append(&mut other.changes);
    }
}

/// Where the writers of this process meet.
#[derive(Default)]
pub(crate) struct Writer {
    /// Callers that are on their way to the lock. Each will take it.
    queued: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    open: Option<Open>,
}

/// A transaction that has begun.
struct Open {
    members: usize,
    noted: Noted,
    promise: Promise,
}

/// What a transaction is written with.
pub(crate) struct Tools<'a> {
    /// The database's file, for errors.
    pub(crate) path: &'a Path,
    pub(crate) log: &'a Log,
    pub(crate) watchers: &'a Watchers,
    pub(crate) now: &'a dyn Fn() -> i64,
    pub(crate) connect: &'a dyn Fn() -> Result<Connection>,
}

impl Writer {
    /// Gives the connection that writes.
    pub(crate) fn put(&self, connection: Option<Connection>) {
        lock(&self.state).connection = connection;
    }

    /// Runs `f` in a transaction of its own, unless `check` refuses when nobody else writes any more.
    pub(crate) fn alone<T>(
        &self,
        tools: &Tools<'_>,
        check: impl FnOnce() -> Result<()>,
        f: impl FnOnce(&Tx<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.enter();
        state.settle(tools);
        let connection = state.connection(tools)?;
        let write = || {
            begin(connection)?;
            let _end = RollBack(connection);
            check()?;
            let tx = Tx { connection, now: (tools.now)(), noted: RefCell::default() };
            let value = f(&tx)?;
            commit(connection, tools, tx.noted.into_inner())?;
            Ok(value)
        };
        write().map_err(|error| fault::explained(connection, tools.path, error))
    }

    /// Runs `f` in a transaction that others may share.
    pub(crate) fn together<T>(&self, tools: &Tools<'_>, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        let mut state = self.enter();
        let result = catch_unwind(AssertUnwindSafe(|| state.join(tools, f)));
        let outcome = state.open.as_ref().map(|open| open.promise.0.clone());
        let full = state.open.as_ref().is_some_and(|open| open.members >= MEMBERS);
        if full || self.queued.load(Ordering::SeqCst) == 0 {
            state.settle(tools);
        }
        drop(state);
        if let Some(outcome) = outcome {
            outcome.wait()?;
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// How many callers are on their way to the lock.
    #[cfg(test)]
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    fn enter(&self) -> MutexGuard<'_, State> {
        self.queued.fetch_add(1, Ordering::SeqCst);
        let state = lock(&self.state);
        self.queued.fetch_sub(1, Ordering::SeqCst);
        state
    }
}

impl State {
    fn connection(&mut self, tools: &Tools<'_>) -> Result<&Connection> {
        if self.connection.is_none() {
            self.connection = Some((tools.connect)()?);
        }
        Ok(self.connection.as_ref().expect("filled above"))
    }

    /// Does one caller's work in the open transaction, which begins with it if there is none. Leaves none open if nothing
    /// is in it, or if it was lost.
    fn join<T>(&mut self, tools: &Tools<'_>, f: impl FnOnce(&Tx<'_>) -> Result<T>) -> Result<T> {
        self.connection(tools)?;
        let Self { connection: Some(connection), open } = self else { unreachable!("connected above") };
        let explained = |error| fault::explained(connection, tools.path, error);
        if open.is_none() {
            begin(connection).map_err(explained)?;
            *open = Some(Open { members: 0, noted: Noted::default(), promise: Promise::default() });
        }
        let shared = open.as_mut().expect("begun above");
        let first = shared.members == 0;
        let place = Place::take(connection, first).map_err(explained)?;
        let tx = Tx { connection, now: (tools.now)(), noted: RefCell::default() };
        let done = catch_unwind(AssertUnwindSafe(|| f(&tx).map_err(explained)));
        let noted = tx.noted.into_inner();
        let kept = match &done {
            Ok(Ok(_)) => place.keep(),
            _ => place.leave(),
        };
        match (kept, &done) {
            (Ok(()), Ok(Ok(_))) => {
                shared.noted.append(noted);
                shared.members += 1;
            }
            (Ok(()), _) if first => *open = None,
            (Ok(()), _) => {}
            (Err(lost), _) => {
                // SQLite has given the whole transaction up, as on a full disk.
                let lost = explained(lost);
                roll_back(connection);
                let cause = if let Ok(Err(error)) = &done { Failure::of(error) } else { Failure::of(&lost) };
                let shared = open.take().expect("begun above");
                shared.promise.keep(Err(cause));
                if let Ok(Ok(_)) = done {
                    return Err(lost);
                }
            }
        }
        done.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Ends the open transaction, if there is one.
    fn settle(&mut self, tools: &Tools<'_>) {
        let (Some(connection), Some(open)) = (&self.connection, self.open.take()) else { return };
        let _end = RollBack(connection);
        let Open { noted, promise, .. } = open;
        let ended = commit(connection, tools, noted).map_err(|error| fault::explained(connection, tools.path, error));
        promise.keep(ended.map_err(|error| Failure::of(&error)));
    }
}

/// A caller's place in a transaction.
struct Place<'c> {
    connection: &'c Connection,
    /// It is the whole transaction.
    first: bool,
}

impl<'c> Place<'c> {
    fn take(connection: &'c Connection, first: bool) -> Result<Self> {
        if !first {
            connection.prepare_cached("SAVEPOINT member")?.execute([])?;
        }
        Ok(Self { connection, first })
    }

    fn keep(self) -> Result<()> {
        self.check()?;
        if !self.first {
            self.connection.prepare_cached("RELEASE member")?.execute([])?;
        }
        Ok(())
    }

    fn leave(self) -> Result<()> {
        if self.first {
            roll_back(self.connection);
            return Ok(());
        }
        self.check()?;
        self.connection.prepare_cached("ROLLBACK TO member")?.execute([])?;
        self.connection.prepare_cached("RELEASE member")?.execute([])?;
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.connection.is_autocommit() { Err(Failure::Lost.into()) } else { Ok(()) }
    }
}

/// Ends a transaction that nobody committed.
struct RollBack<'c>(&'c Connection);

impl Drop for RollBack<'_> {
    fn drop(&mut self) {
        roll_back(self.0);
    }
}

fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        tracing::error!(%error, "a transaction could not be rolled back");
    }
}

fn begin(connection: &Connection) -> Result<()> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    Ok(())
}

/// The lines of `history.log`, the commit, and telling of it, in this order.
fn commit(connection: &Connection, tools: &Tools<'_>, noted: Noted) -> Result<()> {
    let Noted { lines, notices, changes } = noted;
    if !lines.is_empty() {
        tools.log.append(&lines)?;
    }
    tools.watchers.claim(&changes);
    if let Err(error) = connection.execute_batch("COMMIT") {
        tools.watchers.release(&changes);
        return Err(error.into());
    }
    tools.watchers.tell(&notices);
    Ok(())
}

/// How a transaction ended, for its members.
#[derive(Default)]
struct Outcome {
    ended: Mutex<Option<Result<(), Failure>>>,
    told: Condvar,
}

impl Outcome {
    fn wait(&self) -> Result<()> {
        let mut ended = lock(&self.ended);
        loop {
            if let Some(ended) = &*ended {
                return ended.clone().map_err(Error::from);
            }
            ended = self.told.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Whoever holds it owes the members an outcome.
#[derive(Default)]
struct Promise(Arc<Outcome>);

impl Promise {
    fn keep(self, ended: Result<(), Failure>) {
        *lock(&self.0.ended) = Some(ended);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        lock(&self.0.ended).get_or_insert(Err(Failure::Lost));
        self.0.told.notify_all();
    }
}

/// Why a transaction failed, as each of its members is told.
#[derive(Clone)]
enum Failure {
    Database(ffi::Error, Option<String>),
    Io {
        operation: &'static str,
        path: PathBuf,
        code: Option<i32>,
        kind: io::ErrorKind,
    },
    /// It was taken back with another member's.
    Lost,
}

impl Failure {
    fn of(error: &Error) -> Self {
        match error {
            Error::Database { source: rusqlite::Error::SqliteFailure(code, text), .. } => {
                Self::Database(*code, text.clone())
            }
            Error::Io { operation, path, source } => {
                Self::Io { operation, path: path.clone(), code: source.raw_os_error(), kind: source.kind() }
            }
            _ => Self::Lost,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let database =
            |code, text| Self::Database { operation: "commit", source: rusqlite::Error::SqliteFailure(code, text) };
        match failure {
            Failure::Database(code, text) => database(code, text),
            Failure::Io { operation, path, code, kind } => {
                let source = code.map_or_else(|| kind.into(), io::Error::from_raw_os_error);
                Self::Io { operation, path, source }
            }
            Failure::Lost => {
                let text = "the transaction that it was part of was taken back: try again";
                database(ffi::Error::new(ffi::SQLITE_ABORT), Some(text.to_owned()))
            }
        }
    }
}
