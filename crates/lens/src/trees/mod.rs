//! Where the files of snapshots are, and which snapshot a path belongs to. Read-only.
//!
//! A path may be one of the host, below the directory of a snapshot or of a mount that is made of snapshots (a container's
//! root file system); then it belongs to the one snapshot that provides it. Any other is taken for a path inside images, and
//! belongs to every snapshot that has it.
//!
//! # Invariants
//! - Nothing is opened but directories, and names of files (`O_PATH`): no content, no access time changes, no device or pipe
//!   is touched.
//! - Trees are hostile: a path inside one is resolved with the tree as its root, so no symbolic link leads out of it.
//! - Trees are known of snapshotters whose form is known (overlayfs, native); which others there are, is told.
//!
//! Blocking: it is files.

mod find;
mod mounts;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orlop_api::containerd::services::introspection::v1::Plugin;
use orlop_graph::model::Gap;

pub use find::{FileType, Hit};

use crate::offline::Root;
use crate::offline::snapshotters::{self, directories};
use crate::{Error, Reader};

/// A snapshot's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The namespace that has the snapshot.
    pub namespace: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// Its key.
    pub key: String,
    /// The directory that its snapshotter keeps for it.
    pub directory: PathBuf,
    /// Its files, within that directory.
    pub files: PathBuf,
}

/// The trees of a store.
#[derive(Debug, Clone, Default)]
pub struct Trees {
    trees: Vec<Tree>,
    /// By the identity of a directory, of a snapshot or of its files: which tree it is.
    by_inode: HashMap<Inode, usize>,
    /// What could not be read: paths below it are unknown.
    pub gaps: Vec<Gap>,
}

/// Device and number.
type Inode = (u64, u64);

impl Reader {
    /// Which directories snapshotters say that they keep their files in, by name. Whether this process can reach them is
    /// another matter.
    ///
    /// # Errors
    /// If the store does not tell.
    pub async fn snapshotter_directories(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let place = |mut plugin: Plugin| Some((plugin.id, PathBuf::from(plugin.exports.remove("root")?)));
        Ok(self.loaded("type==io.containerd.snapshotter.v1").await?.into_iter().filter_map(place).collect())
    }
}

impl Trees {
    /// The trees of a containerd's root whose files alone are left.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub fn of_root(root: &Root) -> Result<Self, crate::offline::Error> {
        Ok(Self::read(&directories(root.path())?))
    }

    /// The trees in the directories of some snapshotters, which may be containerd's or Orlop's own.
    pub fn read(snapshotters: &[(String, PathBuf)]) -> Self {
        let mut trees = Self::default();
        for (name, directory) in snapshotters {
            match snapshotters::trees(name, directory) {
                Ok(found) => trees.trees.extend(found),
                Err(why) => trees.gaps.push(Gap { what: format!("files of the snapshots of {name}"), why }),
            }
        }
        for (at, tree) in trees.trees.iter().enumerate() {
            for path in [&tree.directory, &tree.files] {
                trees.by_inode.extend(inode(path).map(|inode| (inode, at)));
            }
        }
        trees
    }

    /// All of them.
    pub fn all(&self) -> &[Tree] {
        &self.trees
    }
}

fn inode(path: &Path) -> Option<Inode> {
    path.symlink_metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
