//! The client against real and odd registries.

mod common;
mod fake;
mod mirrors;
mod pulling;
mod registry;
mod tokens;
