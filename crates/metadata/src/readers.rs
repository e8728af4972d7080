//! The connections that read.
//!
//! # Invariants
//! - No more than [`MOST`] are out at a time, however many threads want to read: each has a cache of its own, and a disk and
//!   a few cores read no faster for more. Who finds none free waits for one.
//! - Nobody waits who holds one himself, or the write lock: those who are waited for might wait for him.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use crate::Result;
use crate::db::lock;

/// Connections that are out at most.
const MOST: usize = 16;

/// Idle connections that are kept; more are closed unless somebody waits.
const IDLE: usize = 4;

thread_local! {
    /// Connections and write locks that this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// The connections of one database.
#[derive(Default)]
pub(crate) struct Readers {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Connection>,
    out: usize,
    waiting: usize,
}

/// A connection that goes back when dropped.
pub(crate) struct Reader<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
    _held: Held,
}

/// While it lives, this thread waits for no connection.
pub(crate) struct Held(());

impl Held {
    pub(crate) fn new() -> Self {
        HELD.set(HELD.get() + 1);
        Self(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
    }
}

impl Readers {
    /// A connection: an idle one, or one that `connect` makes, or the next that is given back.
    pub(crate) fn take(&self, connect: impl FnOnce() -> Result<Connection>) -> Result<Reader<'_>> {
        let mut state = lock(&self.state);
        while state.idle.is_empty() && state.out >= MOST && HELD.get() == 0 {
            state.waiting += 1;
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        state.out += 1;
        let idle = state.idle.pop();
        drop(state);
        // Whatever happens now, what is out comes back.
        let mut reader = Reader { readers: self, connection: idle, _held: Held::new() };
        if reader.connection.is_none() {
            reader.connection = Some(connect()?);
        }
        Ok(reader)
    }

    /// Adds an idle connection.
    pub(crate) fn put(&self, connection: Connection) {
        lock(&self.state).idle.push(connection);
    }

    /// Closes what is idle.
    pub(crate) fn close(&self) {
        lock(&self.state).idle.clear();
    }
}

impl Deref for Reader<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.readers.state);
        state.out -= 1;
        let surplus = match self.connection.take() {
            Some(connection) if state.idle.len() < IDLE || state.waiting > 0 => {
                state.idle.push(connection);
                None
            }
            surplus => surplus,
        };
        drop(state);
        self.readers.freed.notify_one();
        drop(surplus);
    }
}
