//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod content;
mod content_races;
mod damage;
mod filters;
mod formats;
mod full_disk;
mod gc_cases;
mod gc_concurrent;
mod healing;
mod history;
mod kin;
mod look;
mod open;
mod processes;
mod progress;
mod readers;
mod rebuild;
mod records;
mod snapshots;
mod snapshots_on_disk;
mod together;
mod trash;
mod watch;
