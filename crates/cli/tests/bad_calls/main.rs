//! What no sane client sends, to every service of a running daemon: containerd's code, a message, and nothing is left.
//!
//! - [`wire`] calls any method with any bytes; [`sides`] has the daemon, the containerds, and looks for what is left.
//! - Each other module is a kind of nonsense. The same calls go to each containerd that is there.
//! - [`deviations`] is what Orlop answers otherwise on purpose. One that no longer happens fails the test.
//!
//! Ten thousand open streams that are never read are in `crowd.rs`; clients that are none, or dead, in the server's `daemon.rs`.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod deviations;
mod everything;
mod labels;
mod masks;
mod offsets;
mod sides;
mod values;
mod wire;
mod wrapped;
mod writers;
