//! Taking over what a real containerd has, running and stopped, and giving it back: no byte copied, nothing of its root changed, trees
//! equal, containers that start without a network.

#[path = "../common/mod.rs"]
mod common;

mod alone;
mod back;
mod broken;
mod hostile;
mod owner;
mod place;
