//! The lens on real containerds: what every hash on a node is, what it costs, what keeps it.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/terminal.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod terminal;

mod alone;
mod doctor;
mod doctor_own;
mod explain;
mod history;
mod hostile;
mod identifiers;
mod images;
mod node;
mod offline;
mod paths;
mod plan;
mod prune;
mod readonly;
mod resolve;
mod transcripts;
mod tree;
mod ward;
