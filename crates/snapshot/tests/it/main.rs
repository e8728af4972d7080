//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../common/mod.rs"]
mod common;

mod apply;
mod confined;
mod corpus;
mod diff;
mod disk;
mod drivers;
mod erofs;
mod formats;
mod hostile;
mod linked;
mod rebase;
mod record;
mod rootless;
