//! containerd's gRPC services and `orlop.v1` over a store, in process or on a Unix socket.
//!
//! [`Server`] holds the operations on images, and through them the store; every service is a thin translation: headers
//! into a scope, messages into the types of the crates below, their results and errors back. What an operation means is
//! decided below, never here.
//!
//! # Invariants
//! - Errors become statuses in one file, `status.rs`, whose codes are containerd's.
//! - Every listing that can be long is sent in pages of about 64 KiB; no message exceeds
//!   [`orlop_api::MAX_MESSAGE_BYTES`] unless a single row does.
//! - What a client no longer waits for is stopped: a call's work lives as long as its answer stream.
//!
//! # Concurrency
//! Calls run at the same time on the runtime; what blocks runs on its blocking pool. Answers are produced as the client
//! takes them; nothing is queued without a bound.

mod any;
mod background;
mod beside;
mod blocking;
mod call;
mod containers;
mod content;
mod convert;
mod cri;
mod daemon;
mod diff;
mod events;
mod images;
mod introspection;
mod leases;
mod metrics;
mod mirror_metrics;
mod mounts;
mod namespaces;
mod orlop;
mod page;
mod raw;
mod registry;
mod serve;
mod services;
mod snapshots;
mod status;
mod streaming;
mod tasks;
mod traces;
mod transfer;
mod version;

pub use background::Background;
pub use beside::{BesideMode, BesideSettings};
pub use cri::CriSettings;
pub use daemon::{Listening, ServeOptions, Surface};
pub use raw::{Owner, OwnerError};
pub use registry::{NodeIndex, NodeMirror, NodeRegistry};
pub use serve::Server;
pub use traces::{Receive, SpanCounts, Traces};

use std::pin::Pin;

use futures::Stream;
use tonic::{Response, Status};

/// What an error of the library is to a client: for whoever opens the store before there is a server.
pub fn status_of(error: &orlop_image::Error) -> Status {
    status::ToStatus::to_status(error)
}

/// What a unary call answers.
type Answer<T> = Result<Response<T>, Status>;

/// What a call with several answers streams.
type AnswerStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
