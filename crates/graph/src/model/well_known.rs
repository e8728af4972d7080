//! Labels that containerd's clients give a meaning beside garbage collection's own.

/// CRI's label for records that it has taken in; its value is `managed`.
pub const MANAGED: &str = "io.cri-containerd.image";

/// CRI's label for images that the kubelet must not remove; its value is `pinned`.
pub const PINNED: &str = "io.cri-containerd.pinned";
/// Orlop's label of a record that keeps a manifest of its registry until it is deleted there.
pub const PUSHED: &str = "io.orlop.pushed";

/// Orlop's label of a record that its mirror made for whoever asked it.
pub const CACHED: &str = "io.orlop.cached";

/// With a registry's host behind it: a blob's label that names the repositories there which have it, with commas between.
pub const SOURCE: &str = "containerd.io/distribution.source.";

/// Orlop's own label beside [`SOURCE`]: the repositories there that had a blob once and have it no more.
pub const GONE: &str = "io.orlop.gone.";

/// A layer's label with the digest of its bytes before compression, the diff ID.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
