//! Where things are below a containerd's root: each of its plugins has a directory there, with the plugin's name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use orlop_oci::Digest;

/// The directory of `meta.db`.
pub const METADATA: &str = "io.containerd.metadata.v1.bolt";
/// The directory of blobs and writes in progress.
pub const CONTENT: &str = "io.containerd.content.v1.content";
/// How the directories of snapshotters begin.
pub const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.";

/// Where the files of blobs are in a root, by algorithm.
pub fn blobs(root: &Path) -> PathBuf {
    root.join(CONTENT).join("blobs")
}

/// The file of a blob in a root.
pub fn blob(root: &Path, digest: &Digest) -> PathBuf {
    blobs(root).join(digest.algorithm().as_str()).join(digest.hex())
}

/// The directory of a snapshotter in a root.
pub fn snapshotter(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{SNAPSHOTTER}{name}"))
}

/// Whether a directory of that name is only in a containerd's root.
pub(super) fn is_part_of_root(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name == METADATA || name == CONTENT || name.starts_with(SNAPSHOTTER))
}
