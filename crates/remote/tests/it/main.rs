//! The client against real and odd registries.

mod common;
mod fake;
mod many;
mod mirrors;
mod pki;
mod pulling;
mod pushing;
mod registry;
mod secured;
mod tls;
mod tokens;
