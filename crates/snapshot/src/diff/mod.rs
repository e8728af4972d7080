//! Makes a layer's tar from what is different between two trees.
//!
//! The tar is deterministic: names in order, parents first, numeric owners, no access times; PAX headers only where
//! ustar has no room (long names, extended attributes, fractions of seconds). Deletions are `.wh.` entries, names of
//! one file are a file and hard links to it. Sockets are left out: they mean nothing without the process behind them.
//!
//! Applying the layer to the lower tree gives the upper one; whether two files are the same is decided as containerd
//! does: by their attributes, and by content only where times have no fraction of a second.

mod overlay;
mod scan;
mod sink;
mod write;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use orlop_oci::{Compression, DiffId, Digest};

use crate::{ApplyTarget, Result, Whiteouts};

/// A layer that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// The tar's length in bytes.
    pub tar_bytes: u64,
    /// The digest of what was written, compressed as asked.
    pub digest: Digest,
    /// The bytes written.
    pub bytes: u64,
}

/// Writes the layer that makes `upper` out of `lower`; out of nothing if there is no `lower`. Both are complete trees,
/// as mounts show them, and must not change meanwhile.
///
/// # Errors
/// [`crate::Error::Hostile`] if a name begins with `.wh.`, which no layer can hold.
pub fn diff(lower: Option<&Path>, upper: &Path, out: impl Write, compression: Compression) -> Result<Made> {
    write::layer(upper, &scan::compare(lower, upper)?, out, compression)
}

/// Writes the layer that a committed or unmounted overlayfs tree holds, without looking at the trees below.
///
/// Faster than [`diff`], and larger: files that were copied up but did not change are in it.
///
/// # Errors
/// [`crate::Error::Unsupported`] if a directory or file refers to lower layers (`redirect_dir`, `metacopy`), and of an image, which
/// has to be mounted and compared.
pub fn diff_tree(tree: &ApplyTarget, out: impl Write, compression: Compression) -> Result<Made> {
    if tree.image.is_some() {
        return Err(crate::Error::Unsupported {
            what: "making a layer from an image alone",
            reason: "mount it, and what it stands on, and compare the trees instead".into(),
        });
    }
    let changes = match tree.whiteouts {
        Whiteouts::Overlay { userxattr } => overlay::scan(&tree.root, userxattr)?,
        Whiteouts::Delete => scan::compare(None, &tree.root)?,
    };
    write::layer(&tree.root, &changes, out, compression)
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It is there as the upper tree has it.
    Put,
    /// It is gone.
    Delete,
    /// What lower layers have in this directory is gone.
    Opaque,
}

/// Changes in the order in which they are written.
#[derive(Debug, Default)]
struct Changes(BTreeMap<Vec<u8>, Change>);

impl Changes {
    /// Orders names by their components, so that a directory comes right before its content.
    fn key(path: &[u8]) -> Vec<u8> {
        path.iter().map(|&b| if b == b'/' { 0 } else { b }).collect()
    }

    fn insert(&mut self, path: &[u8], change: Change) {
        self.0.insert(Self::key(path), change);
    }

    fn contains(&self, path: &[u8]) -> bool {
        self.0.contains_key(&Self::key(path))
    }

    /// Adds the directories above each change, which keep their times only if the layer has them.
    fn with_parents(mut self) -> Self {
        let mut parents = BTreeMap::new();
        for key in self.0.keys() {
            let mut end = key.len();
            while let Some(slash) = key[..end].iter().rposition(|&b| b == 0) {
                end = slash;
                parents.entry(key[..end].to_vec()).or_insert(Change::Put);
            }
        }
        for (key, change) in parents {
            self.0.entry(key).or_insert(change);
        }
        self
    }

    fn iter(&self) -> impl Iterator<Item = (Vec<u8>, Change)> + '_ {
        let path = |key: &Vec<u8>| key.iter().map(|&b| if b == 0 { b'/' } else { b }).collect();
        self.0.iter().map(move |(key, change)| (path(key), *change))
    }
}
