//! The protocols: containerd's API as far as Orlop serves or calls it, and `orlop.v1` for what containerd has no call
//! for. Messages, clients and servers are generated from the definitions in `proto/`; package names, field numbers and
//! types are containerd's, so that its own clients can call Orlop and Orlop can call containerd.
//!
//! Beside them: [`any`] wraps messages; [`channel`] connects, in memory or over a socket; [`error`] carries the class of a failure; [`rows`] are
//! lists in one message; [`version`] reads what servers say of theirs.

pub mod any;
pub mod channel;
pub mod error;
pub mod rows;
pub mod version;

/// What the generated code takes for responses that [`rows`] makes.
mod lists {
    /// Of `containerd.services.images.v1.Images`.
    pub(crate) type ImageRecords = crate::rows::ImageRows<crate::containerd::services::images::v1::Image>;
    /// Of `runtime.v1.ImageService`.
    pub(crate) type CriImages = crate::rows::ImageRows<crate::runtime::v1::Image>;
}

#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/protocols.rs"));
}

pub use generated::{containerd, google, orlop, runtime};

/// All definitions as a `google.protobuf.FileDescriptorSet`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest message that either side accepts: containerd's bound.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The header that names the namespace of a call.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The header that names the lease which keeps what a call makes.
pub const LEASE_HEADER: &str = "containerd-lease";

/// The header in which a client says who it is, for the history of records: `orlop pull`. Informational only.
pub const ACTOR_HEADER: &str = "orlop-actor";
