//! CRI through a generated client over a socket, through crictl, through a client in Go, and beside a real containerd.

#[path = "../common/mod.rs"]
mod common;

mod beside;
mod clients;
mod images;
mod pulls;
mod rig;
mod runtime;
mod stopped;
