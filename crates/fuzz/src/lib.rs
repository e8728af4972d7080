//! What every parser of foreign bytes is tried with: one function for each, which takes any bytes and panics where a promise
//! is broken.
//!
//! The same functions run in three ways:
//! - over the corpus in `fuzz/corpus` and, for some seconds, over mutations of it, in the ordinary tests (`tests/short.rs`,
//!   [`run`], [`mutate`]): without instrumentation, by a seed;
//! - guided by coverage, for hours, by cargo-fuzz (`fuzz/`, `scripts/fuzz`);
//! - over one input, to look at what was found (`ORLOP_FUZZ_INPUT`).
//!
//! # What is judged
//! Not only that nothing panics: each target says what must hold of whatever it took in: what was parsed is what a second
//! way finds in the same bytes, what was written is read again, limits are kept, nothing outside of a scratch directory
//! has changed, a store has nothing that was not acknowledged.
//!
//! # Isolation
//! Targets write to a scratch directory in memory. Those that could reach other hosts run in a network namespace of
//! their own, which needs root ([`scratch::Cell`]); without it they are left out, and say so.

pub mod mutate;
pub mod run;
pub mod scratch;
pub mod seeds;
pub mod targets;

pub use targets::{TARGETS, Target};
