//! The lens on real containerds: what every hash on a node is, what it costs, what keeps it.

#[path = "../common/mod.rs"]
mod common;

mod alone;
mod doctor;
mod explain;
mod history;
mod identifiers;
mod images;
mod node;
mod offline;
mod plan;
mod prune;
mod resolve;
mod tree;
mod ward;
