//! The writers that share a transaction, in the orders in which their threads can go on: `transact.rs` is compiled once more here, with
//! shuttle's primitives in the place of std's, and writes to a real database. A caller that waits for ever ends the test, and so does
//! one whose answer is not what is committed by then.
//!
//! `ORLOP_TEST_SCHEDULES` is how many orders are gone through.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

use crate::changes::{Change, Notice, Watcher, Watchers};
use crate::history::Log;
use crate::{Error, Result};

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub(super) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[path = "transact.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "the crate uses the other copy; this one is of other primitives")]
mod transact;

use Role::{Alone, Fails, Loses, Spoils, Together};
use transact::{Tools, Tx, Writer};

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// To write a row with whoever else writes.
    Together,
    /// To write a row with nobody.
    Alone,
    /// It fails after it wrote.
    Fails,
    /// It takes the whole transaction with it, as SQLite does on a full disk.
    Loses,
    /// It writes what cannot be committed.
    Spoils,
}

/// A database with two tables, whoever writes to it, and what was told.
struct Rig {
    path: PathBuf,
    writer: Writer,
    log: Log,
    watchers: Watchers,
    reader: Mutex<Connection>,
    heard: Arc<Mutex<Vec<String>>>,
    _watcher: Arc<Watcher>,
}

impl Rig {
    fn new(path: &Path) -> Self {
        let connection = connect(path).unwrap();
        connection.execute("DELETE FROM row", []).unwrap();
        let (writer, watchers, heard) = (Writer::default(), Watchers::default(), Arc::<Mutex<Vec<String>>>::default());
        writer.put(Some(connection));
        let into = Arc::clone(&heard);
        let watcher: Arc<Watcher> = Arc::new(move |notices: &[Notice]| {
            let told = notices.iter().map(|notice| notice.namespace.clone());
            into.lock().unwrap_or_else(PoisonError::into_inner).extend(told);
        });
        watchers.add(&watcher);
        let (log, reader) = (Log::new(path.parent().unwrap()), Mutex::new(connect(path).unwrap()));
        Self { path: path.to_owned(), writer, log, watchers, reader, heard, _watcher: watcher }
    }

    fn write(&self, name: &str, role: Role) -> Result<()> {
        let connect = || connect(&self.path);
        let tools = Tools { path: &self.path, log: &self.log, watchers: &self.watchers, now: &|| 0, connect: &connect };
        let insert = |tx: &Tx<'_>| {
            tx.execute("INSERT INTO row VALUES (?1, NULL)", [name])?;
            tx.tell(name, Change::NamespaceDelete { name: name.to_owned() });
            // Others may come while it is at work.
            shuttle::thread::yield_now();
            match role {
                Together | Alone => Ok(()),
                Fails => Err(Error::TrashEmpty),
                Loses => Ok(tx.execute_batch("ROLLBACK")?),
                Spoils => Ok(tx.execute("UPDATE row SET needs = 'nothing' WHERE name = ?1", [name]).map(drop)?),
            }
        };
        match role {
            Alone => self.writer.alone(&tools, || Ok(()), insert),
            _ => self.writer.together(&tools, insert),
        }
    }

    /// What another connection sees.
    fn committed(&self) -> Vec<String> {
        let reader = self.reader.lock().unwrap();
        let mut query = reader.prepare_cached("SELECT name FROM row ORDER BY name").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(rusqlite::Result::unwrap).collect()
    }

    fn heard(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap().clone();
        heard.sort();
        heard
    }
}

/// A row that needs what is not there is found when the transaction commits.
fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA foreign_keys = ON;
         CREATE TABLE IF NOT EXISTS row (name TEXT PRIMARY KEY, needs TEXT REFERENCES row (name) DEFERRABLE INITIALLY DEFERRED)",
    )?;
    Ok(connection)
}

/// Callers at once, each of which writes twice; what holds of every order.
fn callers(path: &Path, roles: &[Role], rounds: usize) {
    let rig = Arc::new(Rig::new(path));
    let written: Arc<Mutex<Vec<String>>> = Arc::default();
    let threads: Vec<_> = roles
        .iter()
        .enumerate()
        .map(|(n, role)| {
            let (rig, written, role) = (Arc::clone(&rig), Arc::clone(&written), *role);
            shuttle::thread::spawn(move || {
                for round in 0..rounds {
                    let name = format!("{n}-{round}");
                    let told = rig.write(&name, role);
                    let (committed, heard) = (rig.committed().contains(&name), rig.heard().contains(&name));
                    assert_eq!((committed, heard), (told.is_ok(), told.is_ok()), "{name}, {role:?}: {told:?}");
                    if told.is_ok() {
                        written.lock().unwrap().push(name);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut written = written.lock().unwrap().clone();
    written.sort();
    assert_eq!(
        (rig.committed(), rig.heard()),
        (written.clone(), written.clone()),
        "what was answered, and nothing else"
    );
    let own = |wanted: Role| roles.iter().enumerate().filter(move |(_, role)| **role == wanted).map(|(n, _)| n);
    let of = |n: usize| written.iter().filter(|name| name.starts_with(&format!("{n}-"))).count();
    assert!(own(Fails).chain(own(Loses)).chain(own(Spoils)).all(|n| of(n) == 0));
    assert!(own(Alone).all(|n| of(n) == rounds), "nobody else is in its transaction");
    if !roles.iter().any(|role| matches!(role, Loses | Spoils)) {
        assert!(own(Together).all(|n| of(n) == rounds), "who fails takes nobody along: {written:?}");
    }
}

/// The stack of a caller: SQLite is deep.
const STACK: usize = 1 << 20;

/// Goes through the orders that a scheduler gives; how many there were.
fn explore<S: Scheduler + 'static>(scheduler: S, roles: &'static [Role], rounds: usize) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut config = Config::new();
    config.stack_size = STACK;
    Runner::new(scheduler, config).run(move || callers(&path, roles, rounds))
}

/// How many orders are gone through.
fn drawn() -> usize {
    std::env::var("ORLOP_TEST_SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

const PAIRS: [[Role; 2]; 5] =
    [[Together, Together], [Together, Fails], [Together, Alone], [Together, Loses], [Together, Spoils]];

/// One order after the other, as far as the number goes: of two there are some thousands.
#[test]
fn two_writers_in_one_order_after_the_other() {
    for roles in &PAIRS {
        let orders = explore(DfsScheduler::new(Some(drawn()), false), roles, 1);
        eprintln!("{roles:?}: {orders} orders{}", if orders < drawn() { ", all there are" } else { "" });
    }
}

const CROWDS: [[Role; 4]; 5] = [
    [Together, Together, Together, Together],
    [Together, Fails, Together, Fails],
    [Together, Alone, Together, Fails],
    [Together, Loses, Together, Alone],
    [Together, Spoils, Together, Fails],
];

#[test]
fn four_writers_in_orders_that_are_drawn() {
    for (roles, seed) in CROWDS.iter().zip(1..) {
        let orders = explore(RandomScheduler::new_from_seed(seed, drawn()), roles, 2)
            + explore(PctScheduler::new_from_seed(seed, 3, drawn()), roles, 2);
        eprintln!("{roles:?}: {orders} orders");
    }
}
