//! Nodes on addresses of loopback that give each other blobs, with a registry that counts what it gives.

mod common;
mod fleet;
mod relay;
mod serving;
mod storm;
