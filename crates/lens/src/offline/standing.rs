//! Whether a snapshot is still there, for who reads its tree while its containerd goes on: a snapshotter takes a snapshot out of its
//! database before it removes a file of it, and never gives its number to another.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Root, file, places, snapshotters};

/// The snapshots of a root, by their trees, as they are now.
#[derive(Debug)]
pub struct Standing {
    root: PathBuf,
    /// By snapshotter: of which transaction its trees are known.
    known: Mutex<HashMap<String, (u64, HashSet<PathBuf>)>>,
}

impl Root {
    /// Tells from now on which snapshots are there.
    pub fn standing(&self) -> Standing {
        Standing { root: self.path.clone(), known: Mutex::default() }
    }

    /// The file of a blob, whether or not it is there.
    pub fn blob(&self, digest: &orlop_oci::Digest) -> PathBuf {
        places::blob(&self.path, digest)
    }

    /// Where the files of blobs are, by algorithm.
    pub fn blobs(&self) -> PathBuf {
        places::blobs(&self.path)
    }

    /// The directory of a snapshotter.
    pub fn snapshotter(&self, name: &str) -> PathBuf {
        places::snapshotter(&self.path, name)
    }

    /// Whether some process has the root's database open, as far as the kernel tells.
    pub fn is_running(&self) -> bool {
        file::is_locked(&self.metadata_file())
    }
}

impl Standing {
    /// Whether the snapshot with this tree is there. What cannot be read counts as not there. While nothing was committed only a page
    /// of the database is read.
    pub fn has(&self, snapshotter: &str, tree: &Path) -> bool {
        let directory = places::snapshotter(&self.root, snapshotter);
        // Before the trees: what is committed while they are read makes them read again.
        let Some(version) = file::version(&directory.join("metadata.db")) else { return false };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, trees)) = known.get(snapshotter)
            && *of == version
        {
            return trees.contains(tree);
        }
        let Ok(found) = snapshotters::trees(snapshotter, &directory) else { return false };
        let trees: HashSet<PathBuf> = found.into_iter().map(|found| found.files).collect();
        let is_there = trees.contains(tree);
        known.insert(snapshotter.to_owned(), (version, trees));
        is_there
    }
}
