//! `orlop registry` as processes: several gateways over one PostgreSQL and one bucket, met as clients meet them, and in a storm.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/conformance.rs"]
mod conformance;

mod access;
mod client;
mod gateways;
mod storm;
mod world;
