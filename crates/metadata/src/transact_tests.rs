//! Callers at one database, brought into one transaction by waiting until they stand in the queue.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope, ScopedJoinHandle, yield_now};

use rusqlite::ffi;

use crate::changes::{Change, Notice};
use crate::db::Db;
use crate::transact::{MEMBERS, Tx};
use crate::{Error, Result, Watcher};

fn open(root: &Path) -> Db {
    Db::open(root, false, Arc::new(jiff::Timestamp::now)).unwrap()
}

/// Until so many callers want the lock.
fn until_queued(db: &Db, callers: usize) {
    while db.writer().queued() < callers {
        yield_now();
    }
}

fn insert(tx: &Tx<'_>, name: &str) -> Result<()> {
    tx.execute("INSERT INTO namespace (name) VALUES (?1)", [name])?;
    tx.tell(name, Change::NamespaceDelete { name: name.to_owned() });
    Ok(())
}

/// What is committed.
fn committed(db: &Db) -> Vec<String> {
    db.read(|conn| {
        let mut query = conn.prepare("SELECT name FROM namespace ORDER BY name")?;
        let names = query.query_map([], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    })
    .unwrap()
}

/// A caller that does its part only when `behind` others wait for it, and so leaves the transaction to them.
fn first<'s>(scope: &'s Scope<'s, '_>, db: &'s Db, behind: usize) -> ScopedJoinHandle<'s, Result<()>> {
    let begun = Arc::new(AtomicBool::new(false));
    let begins = begun.clone();
    let caller = scope.spawn(move || {
        db.write_together("first", |tx| {
            begins.store(true, Ordering::SeqCst);
            until_queued(db, behind);
            insert(tx, "first")
        })
    });
    while !begun.load(Ordering::SeqCst) {
        yield_now();
    }
    caller
}

fn listen(db: &Db) -> (Arc<Watcher>, Arc<Mutex<Vec<String>>>) {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let into = heard.clone();
    let watcher: Arc<Watcher> = Arc::new(move |notices: &[Notice]| {
        into.lock().unwrap().extend(notices.iter().map(|notice| notice.namespace.clone()));
    });
    db.watchers().add(&watcher);
    (watcher, heard)
}

#[test]
fn callers_that_wait_share_a_commit_and_nobody_is_answered_before_it() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    let (_watcher, heard) = listen(db);
    thread::scope(|scope| {
        let first = first(scope, db, 1);
        let second = db.write_together("second", |tx| {
            let seen: i64 = tx.query_row("SELECT count(*) FROM namespace", [], |row| row.get(0))?;
            assert_eq!(seen, 1, "the same transaction");
            assert!(committed(db).is_empty() && heard.lock().unwrap().is_empty(), "nothing is committed or told");
            assert!(!first.is_finished(), "and nobody answered");
            insert(tx, "second")
        });
        second.unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(committed(db), ["first", "second"]);
    assert_eq!(*heard.lock().unwrap(), ["first", "second"]);
}

#[test]
fn who_fails_takes_back_his_own_part_alone() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    let (_watcher, heard) = listen(db);
    let refused = |name: &str| Error::Invalid { what: "caller", reason: name.to_owned() };
    thread::scope(|scope| {
        let first = first(scope, db, 3);
        let fails = scope.spawn(move || {
            db.write_together("fails", |tx| {
                insert(tx, "fails")?;
                Err::<(), _>(refused("fails"))
            })
        });
        let panics = scope.spawn(|| {
            catch_unwind(AssertUnwindSafe(|| {
                db.write_together("panics", |tx| {
                    insert(tx, "panics")?;
                    panic!("as the test wants");
                    #[allow(unreachable_code, reason = "says the type")]
                    Ok(())
                })
            }))
        });
        db.write_together("last", |tx| insert(tx, "last")).unwrap();
        first.join().unwrap().unwrap();
        assert!(matches!(fails.join().unwrap(), Err(Error::Invalid { reason, .. }) if reason == "fails"));
        assert!(panics.join().unwrap().is_err());
    });
    assert_eq!(committed(db), ["first", "last"]);
    let mut heard = heard.lock().unwrap().clone();
    heard.sort();
    assert_eq!(heard, ["first", "last"]);
    db.write_together("after", |tx| insert(tx, "after")).unwrap();
}

#[test]
fn the_first_to_fail_leaves_no_transaction_to_the_next() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    let begun = &AtomicBool::new(false);
    thread::scope(|scope| {
        let fails = scope.spawn(move || {
            db.write_together("fails", |tx| {
                begun.store(true, Ordering::SeqCst);
                until_queued(db, 1);
                insert(tx, "fails")?;
                Err::<(), _>(Error::Moved)
            })
        });
        while !begun.load(Ordering::SeqCst) {
            yield_now();
        }
        db.write_together("next", |tx| insert(tx, "next")).unwrap();
        assert!(matches!(fails.join().unwrap(), Err(Error::Moved)));
    });
    assert_eq!(committed(db), ["next"]);
}

#[test]
fn a_commit_that_fails_fails_everybody() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    let (_watcher, heard) = listen(db);
    let log = root.path().join("history.log");
    std::fs::create_dir(&log).unwrap();
    thread::scope(|scope| {
        let first = first(scope, db, 1);
        let second = db.write_together("second", |tx| {
            tx.log_line("{}".to_owned());
            insert(tx, "second")
        });
        for told in [first.join().unwrap(), second] {
            assert!(matches!(&told, Err(Error::Io { path, .. }) if *path == log), "{told:?}");
        }
    });
    assert!(committed(db).is_empty() && heard.lock().unwrap().is_empty());
    std::fs::remove_dir(&log).unwrap();
    db.write_together("after", |tx| insert(tx, "after")).unwrap();
    assert_eq!(committed(db), ["after"]);
}

#[test]
fn a_transaction_that_is_lost_is_lost_for_everybody() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    thread::scope(|scope| {
        let first = first(scope, db, 1);
        let full = rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_FULL), None);
        let second = db.write_together("second", |tx| {
            // What SQLite does itself when the disk is full.
            tx.execute_batch("ROLLBACK")?;
            Err::<(), _>(full.into())
        });
        for told in [first.join().unwrap(), second] {
            let full = matches!(&told, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull);
            assert!(full, "{told:?}");
        }
    });
    db.write_together("after", |tx| insert(tx, "after")).unwrap();
    assert_eq!(committed(db), ["after"]);
}

#[test]
fn who_writes_alone_finds_all_before_committed_and_shares_nothing() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    thread::scope(|scope| {
        let first = first(scope, db, 1);
        let version = db.data_version().unwrap();
        let alone = db.write("alone", |tx| {
            assert_eq!(committed(db), ["first"]);
            insert(tx, "alone")?;
            Err::<(), _>(Error::TrashEmpty)
        });
        assert!(matches!(alone, Err(Error::TrashEmpty)));
        first.join().unwrap().unwrap();
        let late = db.write_at(Some(version), "late", |tx| insert(tx, "late"));
        assert!(matches!(late, Err(Error::Moved)), "the shared commit moved the version");
    });
    assert_eq!(committed(db), ["first"]);
}

#[test]
fn a_transaction_has_a_largest_number_of_members() {
    let root = tempfile::tempdir().unwrap();
    let db = &open(root.path());
    thread::scope(|scope| {
        let first = first(scope, db, 2 * MEMBERS);
        let rest: Vec<_> = (0..2 * MEMBERS)
            .map(|n| {
                scope.spawn(move || {
                    db.write_together("rest", |tx| {
                        let mine = tx.query_row("SELECT count(*) FROM namespace", [], |row| row.get::<_, i64>(0))?;
                        let open = usize::try_from(mine).unwrap() - committed(db).len();
                        assert!(open < MEMBERS, "the full ones before are committed");
                        insert(tx, &format!("{n}"))
                    })
                })
            })
            .collect();
        first.join().unwrap().unwrap();
        rest.into_iter().for_each(|caller| caller.join().unwrap().unwrap());
    });
    assert_eq!(committed(db).len(), 2 * MEMBERS + 1);
}
