//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../common/mod.rs"]
mod common;

mod activations;
mod background;
mod beside;
mod containers;
mod content;
mod content_contract;
mod ctr;
mod daemon;
mod diff;
mod events;
mod file_systems;
mod gc;
mod mapped_users;
mod mounts;
mod node_registry;
mod node_registry_holding;
mod node_registry_index;
mod objects;
mod surroundings;
mod tasks;
mod transfer;
mod v1;
mod wire;
