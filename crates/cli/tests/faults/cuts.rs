//! A daemon with clients at work that is killed, and one beneath which a disk is cut off: round after round on the same store.
//!
//! `ORLOP_TEST_ROUNDS` is how many rounds each has, `ORLOP_TEST_SEED` draws others.

use orlop_testkit::disk::{Disk, FILE_SYSTEMS, FileSystem};
use orlop_testkit::faults::Faults;
use orlop_testkit::tier;

use crate::common;
use crate::rounds::{Cut, Rounds, World};
use crate::verdict::scratch::Scratch;

/// Rounds in the short tier.
const KILLS: u64 = 16;
const DISKS: u64 = 15;

fn can() -> bool {
    common::is_root("cuts") && Faults::available()
}

#[test]
fn a_killed_daemon_with_clients_loses_nothing_that_was_answered() {
    if !can() {
        return;
    }
    let (world, scratch) = (World::new(), Scratch::new());
    let seed: u64 = tier::amount("ORLOP_TEST_SEED", 1);
    let mut rounds = Rounds::new(&world, &scratch.lay(|_| Ok(())));
    let kills = tier::amount("ORLOP_TEST_ROUNDS", KILLS);
    for number in 0..kills {
        let cut = if number % 2 == 0 { Cut::AtCall } else { Cut::AfterAnswer };
        let done = rounds.cut(seed * 100_000 + number, cut).and_then(|judge| rounds.judge(judge));
        done.unwrap_or_else(|found| panic!("round {number}: {found}"));
    }
    eprintln!("{kills} kills, {} of them amid a call; {} answers", rounds.amid, rounds.answers);
}

/// A store on each of these kinds of file systems, one round after the other on each.
fn disks(kinds: impl Iterator<Item = (usize, &'static FileSystem)>) {
    if !can() {
        return;
    }
    let world = World::new();
    let seed: u64 = tier::amount("ORLOP_TEST_SEED", 1);
    let share = tier::amount("ORLOP_TEST_ROUNDS", DISKS).div_ceil(FILE_SYSTEMS.len() as u64);
    for (at, kind) in kinds {
        let Some(mut disk) = Disk::of(kind) else { continue };
        let mut rounds = Rounds::new(&world, &disk.path().join("root"));
        for number in 0..share {
            let mut switch = disk.switch();
            let seed = seed * 100_000 + at as u64 * 10_000 + number;
            let cut = rounds.cut(seed, Cut::Before(Box::new(move || switch.cut_off())));
            disk.power_cycle();
            let done = cut.and_then(|judge| rounds.judge(judge));
            done.unwrap_or_else(|found| panic!("{kind:?}, round {number}: {found}"));
        }
        eprintln!("{kind:?}: {share} cuts, {} of them amid a call; {} answers", rounds.amid, rounds.answers);
    }
}

#[test]
fn a_disk_that_is_cut_off_beneath_a_daemon_loses_nothing_that_was_answered_on_ext4() {
    disks(FILE_SYSTEMS.iter().enumerate().filter(|(_, kind)| !kind.is_xfs()));
}

#[test]
fn a_disk_that_is_cut_off_beneath_a_daemon_loses_nothing_that_was_answered_on_xfs() {
    disks(FILE_SYSTEMS.iter().enumerate().filter(|(_, kind)| kind.is_xfs()));
}
