//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

mod containerd;
mod disk;
mod links;
mod local;
mod local_contract;
mod memory_contract;
mod model;
mod processes;
