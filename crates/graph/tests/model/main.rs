//! The model of a whole store: who keeps what, what it costs, what a text means; against small stores and a naive recount.

mod find;
mod findings;
mod images;
mod keep;
mod naive;
mod plan;
mod prune;
mod store;
