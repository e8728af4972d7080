//! A file that is being written to: what is read is of one state, or it is said that it may not be.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use orlop_bolt::{Db, Error, Source, copy};

use crate::dump;
use crate::real::Real;

/// A database that goes on to later states after some reads.
struct Moving<'a> {
    states: Vec<&'a [u8]>,
    /// After how many reads each time.
    after: usize,
    /// By how many states each time.
    by: usize,
    /// How many reads there were before anything moved.
    still: usize,
    reads: Cell<usize>,
}

impl Moving<'_> {
    fn state(&self) -> &[u8] {
        let moved = self.reads.get().saturating_sub(self.still) / self.after * self.by;
        self.states[moved.min(self.states.len() - 1)]
    }
}

impl Source for Moving<'_> {
    fn size(&self) -> io::Result<u64> {
        self.state().size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.state().read_exact_at(buffer, offset)
    }
}

fn states(real: &Real) -> Vec<Vec<u8>> {
    (0..6).map(|state| std::fs::read(real.dir.path().join(format!("state-{state}.db"))).unwrap()).collect()
}

fn all(states: &[Vec<u8>]) -> Vec<&[u8]> {
    states.iter().map(Vec::as_slice).collect()
}

#[test]
fn a_copy_is_of_one_state_wherever_the_writer_comes_between() {
    let Some(real) = Real::make() else { return };
    let states = states(&real);
    let expected: Vec<_> = states.iter().map(|bytes| dump(&Db::open(bytes).unwrap()).unwrap()).collect();
    for (still, (after, by)) in
        (0..12).flat_map(|still| [(1, 1), (1, 2), (1, 3), (3, 1), (8, 2)].map(|how| (still, how)))
    {
        let moving = Moving { states: all(&states), after, by, still, reads: Cell::new(0) };
        let copied = copy(&moving, u64::MAX, 20).unwrap();
        let found = dump(&Db::open(&copied).unwrap()).unwrap();
        assert!(
            expected.contains(&found),
            "state {:?} is mixed: still {still}, then by {by} after {after}",
            found.first()
        );
    }
}

#[test]
fn what_is_read_page_by_page_is_of_one_state_if_it_is_still_current() {
    let Some(real) = Real::make() else { return };
    let states = states(&real);
    let expected: Vec<_> = states.iter().map(|bytes| dump(&Db::open(bytes).unwrap()).unwrap()).collect();
    let (mut current, mut mixed) = (0, 0);
    for (still, after) in (0..500).step_by(41).flat_map(|still| [1, 10, 60, 500].map(|after| (still, after))) {
        let moving = Moving { states: all(&states), after, by: 1, still, reads: Cell::new(0) };
        let db = Db::open(&moving).unwrap();
        let found = dump(&db);
        let whole = found.as_ref().is_ok_and(|found| expected.contains(found));
        if db.is_current().unwrap() {
            assert!(whole, "it is said to be of one state: still {still}, after {after}");
            current += 1;
        } else if !whole {
            mixed += 1;
        }
    }
    // Otherwise nothing was tried.
    assert!(current > 0 && mixed > 0, "{current} of one state, {mixed} mixed");
}

#[test]
fn a_database_that_never_rests_is_given_up() {
    let Some(real) = Real::make() else { return };
    let states = states(&real);
    let restless =
        Moving { states: [&states[4][..], &states[5]].repeat(200), after: 5, by: 1, still: 0, reads: Cell::new(0) };
    let error = copy(&restless, u64::MAX, 7).unwrap_err();
    assert!(matches!(error, Error::Changing { attempts: 7 }), "{error}");
}

#[test]
fn a_database_larger_than_allowed_is_not_copied() {
    let size = crate::SMALL.len() as u64;
    let error = copy(&crate::SMALL, 1000, 1).unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 1000, .. }), "{error}");
    assert!(copy(&crate::SMALL, size, 1).is_ok());
}

struct OnDisk(File);

impl Source for OnDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

#[test]
fn copies_beside_a_real_writer_are_each_of_one_state() {
    let Some(real) = Real::program() else { return };
    let path = real.dir.path().join("written.db");
    let mut command = Command::new(&real.program);
    command.arg("write").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = command.spawn().unwrap();
    let mut said = [0; 8];
    io::Read::read_exact(writer.stdout.as_mut().unwrap(), &mut said).unwrap();
    let source = OnDisk(File::open(&path).unwrap());
    let mut seen = BTreeSet::new();
    while seen.len() < 12 {
        let copied = match copy(&source, u64::MAX, 1000) {
            // The writer was quicker each time; it goes on, and so do we.
            Err(Error::Changing { .. }) => continue,
            other => other.unwrap(),
        };
        let db = Db::open(&copied).unwrap();
        let stamped = db.root().bucket(b"stamped").unwrap().unwrap();
        let stamps: Vec<_> = stamped.iter().map(|entry| entry.unwrap().1.value().unwrap()).collect();
        assert_eq!(stamps.len(), 2000);
        assert!(stamps.iter().all(|stamp| stamp == &stamps[0]), "two states in one copy");
        seen.insert(db.meta().txid);
    }
    drop(writer.stdin.take());
    assert!(writer.wait().unwrap().success());
}
