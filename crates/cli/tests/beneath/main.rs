//! Orlop beneath a real containerd, which has it as remote snapshotter, as content store, or as both.
//!
//! Every containerd here is a real one, with real containers where this machine lets runc run any. What is looked at is what
//! containerd's own clients see, what containerd asked the registry for, and what is left on Orlop's disk.

#[path = "../common/mod.rs"]
mod common;

mod bytes;
mod content;
mod differ;
mod install;
mod node;
mod owners;
mod pass;
mod remote;
mod restarts;
mod secrets;
mod share;
mod skew;
mod stack;
mod trouble;
