//! The graph through its public surface.

mod plan;
mod rows;
mod store;
