//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/conformance.rs"]
mod conformance;
#[path = "../common/terminal.rs"]
mod terminal;

mod architecture;
mod archives;
mod bad_input;
mod bad_registry;
mod cli;
mod colour;
mod confined;
mod containerd;
mod crowd;
mod daemon;
mod dependencies;
mod erofs;
mod formats;
mod go_suites;
mod helpers;
mod joining;
mod manners;
mod mirror;
mod mounting;
mod networks;
mod node_registry;
mod node_registry_access;
mod packaging;
mod peers;
mod pressure;
mod pruning;
mod rebuild;
mod reflinks;
mod registry;
mod registry_logins;
mod reload;
mod removal;
mod repair;
mod scrub;
mod secrets;
mod stores;
mod top;
mod trees;
mod verification;
mod watch;
