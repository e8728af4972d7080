//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../common/mod.rs"]
mod common;

mod archives;
mod check;
mod containers;
mod cri;
mod following;
mod gate;
mod kill;
mod kin;
mod listing;
mod memory;
mod mirror;
mod near;
mod pull;
mod push;
mod records;
mod verifiers;
