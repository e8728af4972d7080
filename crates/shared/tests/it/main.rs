//! One program for all these tests, because each one more is linked and stored again with everything that Orlop is made of.
//!
//! PostgreSQL and an S3 server are started once for all of them; each test has a database and a bucket of its own.

mod bucket;
mod collecting;
mod content_contract;
mod database;
mod index_contract;
mod protocol;
mod rig;
mod schema;
mod uploads;
