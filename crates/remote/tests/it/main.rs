//! The client against real and odd registries.

mod common;
mod registry;
