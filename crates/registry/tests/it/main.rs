//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.

#[path = "../common/mod.rs"]
mod common;

mod access;
mod clients;
mod durable;
mod hostile;
mod index_memory;
mod protocol;
mod tls;
