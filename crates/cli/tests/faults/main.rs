//! A disk that fails, is full, or may not be written, and a process that has no descriptor left: at every call of the real binary that
//! can return ENOSPC, EDQUOT, EIO, EROFS or EMFILE, such an error is put in (`orlop_testkit::faults`), once or from there on.
//! Whatever is hit, the command ends well or says what is the matter and what to do, with the exit code that is documented for it;
//! the judge of power cuts finds nothing wrong with what is on disk; and without the fault the same command gets where it would have.
//!
//! `ORLOP_TEST_FAULTS` is at how many kinds of calls of each command each error is tried (0: at all calls), and how many rounds of each
//! error a daemon goes through (0: 100); `ORLOP_TEST_SEED` draws others. Needs root.

mod commands;
#[path = "../common/mod.rs"]
mod common;
mod cuts;
mod daemon;
mod meeting;
mod outcome;
mod resume;
mod rounds;
mod stopped;
#[path = "../verdict/mod.rs"]
mod verdict;
