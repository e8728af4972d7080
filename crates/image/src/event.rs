//! What a long operation tells while it runs.

use orlop_oci::{Descriptor, Digest, ImageId};

/// Takes events; must not block.
pub type Sink<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// The target is known.
    Target(Descriptor),
    /// A manifest or index is here, and names these.
    Document(Descriptor, Vec<Descriptor>),
    /// A blob came further.
    Blob(BlobEvent),
    /// A line for people.
    Message(String),
}

/// Where one blob is.
#[derive(Debug, Clone)]
pub struct BlobEvent {
    /// Which.
    pub digest: Digest,
    /// `layer`, `config`, `manifest`, `index`, `blob`.
    pub kind: &'static str,
    /// At which stage.
    pub stage: Stage,
    /// Bytes transferred.
    pub offset: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes of tar unpacked.
    pub unpacked: u64,
    /// Which stage the others wait for.
    pub limit: Limit,
}

/// Stages of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Not started.
    Waiting,
    /// Coming in.
    Fetching,
    /// Being hashed and compared.
    Verifying,
    /// Being written as a tree.
    Unpacking,
    /// Done.
    Complete,
    /// Was there before.
    Present,
    /// Going out.
    Pushing,
    /// Taken from another repository of the registry.
    Mounted,
}

/// What a pipeline waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Not known yet.
    Unknown,
    /// The sender.
    Network,
    /// Decompression and hashing.
    Inflate,
    /// Files.
    Disk,
}

/// What a pull, push or import came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Records written, in order.
    pub names: Vec<String>,
    /// What they point at.
    pub target: Descriptor,
    /// Image IDs of the platforms that are there.
    pub image_ids: Vec<ImageId>,
    /// By what it was verified before it was let in; empty if nothing was wanted.
    pub verified_by: Vec<String>,
    /// Bytes that came or went.
    pub bytes_transferred: u64,
    /// Bytes that were there.
    pub bytes_present: u64,
}
