//! File trees: where they live (drivers), how a layer's tar becomes one (apply), how one becomes a layer's tar (diff).
//!
//! ```text
//! ROOT/snapshots/<driver>/<id>/
//!   fs/      the tree: overlayfs' upper directory, or the whole tree of `native`; where `erofs` mounts a layer's image
//!   layer.erofs  the image of a layer (`erofs`)
//!   unsealed the image's tree until the commit (`erofs`)
//!   work/    overlayfs' scratch directory
//!   deferred what a layer applied without its parents leaves to the commit; there only in between
//!   applied  what the files of an applied layer hash to; there only until the commit
//!   digests  every entry of a committed tree that a layer was applied to, with the digests of files; those of an image
//!   adopted  where a tree came from, or went, that shares its files with another place
//!   meta     JSON: key, kind, parent id, chain ID, labels; enough to rebuild the row in meta.db
//! ```
//!
//! Keys, kinds, parents, labels and namespaces are rows in `metadata`, which gives every snapshot a numeric id and
//! calls a [`Driver`] with it. A driver knows only ids and directories.
//!
//! # Invariants
//! - A tree is changed only while its snapshot is active. [`Driver::commit`] makes it durable (`syncfs`) before it
//!   returns, so a committed snapshot never has zero-length files after a power cut.
//! - Applying a layer touches nothing outside the snapshot's directory, whatever the tar says.
//! - Applying layers without their parents and [`Driver::commit`]ting them in order gives the tree that serial
//!   applying gives: at commit, directories that a layer only implies take mode, owner, times and xattrs from below,
//!   and hard links into lower layers are resolved by copying up.
//!
//! # Concurrency
//! All calls block; callers on an async runtime use its blocking pool. Different ids never contend.

pub mod activate;
pub mod apply;
mod confine;
mod copy;
pub mod diff;
mod disk;
mod erofs;
mod error;
pub mod extents;
mod fs;
mod keys;
mod layout;
pub mod linked;
mod merged;
mod mount;
mod native;
mod overlay;
mod record;
mod settle;

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

pub use confine::{Confinement, confinement};
pub use erofs::ErofsDriver;
use error::At as _;
pub use error::{Error, Result};
pub use keys::is_unpacking;
use layout::Layout;
pub use layout::remove_tree;
pub use linked::Linked;
pub use mount::{TempMount, mount_all, unmount};
pub use native::NativeDriver;
pub use overlay::OverlayDriver;
pub use record::{Compared, Comparison, Difference};

/// A snapshot's number within its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub u64);

/// What can be mounted: containerd's mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `overlay` or `bind`.
    pub kind: String,
    /// The device or directory.
    pub source: String,
    /// Options as mount(8) takes them.
    pub options: Vec<String>,
}

/// What a snapshot alone takes on disk, parents not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes (512 × `st_blocks`), hard links counted once.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What a snapshot is; also what `meta` holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Meta {
    /// Namespace of the row that names it.
    pub namespace: String,
    /// Its key there.
    pub key: String,
    /// `active`, `view` or `committed`.
    pub kind: String,
    /// The id of the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

/// A snapshot that is made, or committed, together with others.
#[derive(Debug, Clone)]
pub struct Link {
    /// Its tree.
    pub id: SnapshotId,
    /// What is below, nearest first: also links before this one.
    pub parents: Vec<SnapshotId>,
    /// What it becomes.
    pub meta: Meta,
}

/// Where trees live. `parents` is always the chain of committed snapshots below, nearest first. Every driver keeps its
/// trees in the same layout below its root; what is the same for all is defined here.
pub trait Driver: Send + Sync {
    /// `overlayfs`, `erofs`, `native`.
    fn name(&self) -> &'static str;

    /// Makes an empty tree on top of `parents`; for `native`: a copy of the nearest parent.
    ///
    /// # Durability
    /// When this returns `Ok`, the tree can be mounted after a power cut.
    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()>;

    /// The same for several; those that can, wait for the disk together. If it fails, any of them may have been made.
    fn create_all(&self, trees: &[Link]) -> Result<()> {
        trees.iter().try_for_each(|tree| self.create(tree.id, &tree.parents, &tree.meta))
    }

    /// How to mount it: read-only if `writable` is false.
    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Result<Vec<Mount>>;

    /// Resolves what was applied without parents against `parents`, records what the tree is if a layer was applied to it, makes it
    /// durable, and writes `meta`.
    fn commit(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<Usage>;

    /// The same for several that stand on each other, the lowest first; those that can, wait for the disk once. If it fails, any of
    /// them may have been committed: doing it again, one by one, is right.
    fn commit_chain(&self, chain: &[Link]) -> Result<Vec<Usage>> {
        chain.iter().map(|link| self.commit(link.id, &link.parents, &link.meta)).collect()
    }

    /// Writes `meta` anew: the labels of a snapshot that is committed have changed.
    fn describe(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        Layout::at(self.root()).rewrite_meta(id, meta)
    }

    /// What it takes on disk now.
    fn usage(&self, id: SnapshotId) -> Result<Usage> {
        Layout::at(self.root()).usage(id)
    }

    /// Compares a committed tree with what was recorded of it; `None` if nothing was.
    fn compare(&self, id: SnapshotId) -> Result<Option<Comparison>> {
        Layout::at(self.root()).compare(id)
    }

    /// Lets an active, empty tree be what the directory `from` on the same file system is, in this driver's form, without copying
    /// any content; see [`linked`].
    ///
    /// # Durability
    /// None: the commit syncs.
    fn take_in(&self, id: SnapshotId, from: &Path) -> Result<Linked> {
        Layout::at(self.root()).take_in(id, from)
    }

    /// Lets the empty directory `to` on the same file system be what a committed tree is, likewise.
    fn give(&self, id: SnapshotId, to: &Path) -> Result<Linked> {
        Layout::at(self.root()).give(id, to)
    }

    /// Bytes of a tree that the file system does not get back when it goes, since files elsewhere have them.
    fn elsewhere(&self, id: SnapshotId) -> Result<u64> {
        Layout::at(self.root()).elsewhere(id)
    }

    /// Lets two trees, with all that belongs to them, change places; if there is none at `b`, that of `a` goes there.
    ///
    /// # Durability
    /// In one step, after a power cut too; when this returns `Ok`, the change survives one.
    fn exchange(&self, a: SnapshotId, b: SnapshotId) -> Result<()> {
        Layout::at(self.root()).exchange(a, b)
    }

    /// Removes the tree: by renaming it to `trash/<id>` if that directory is given (same file system), else for good.
    /// Removing what is not there succeeds.
    fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> Result<()> {
        Layout::at(self.root()).remove(id, trash)
    }

    /// Brings a tree back from `trash/<id>`. That it is back already is no error, so that an interrupted call can be
    /// repeated.
    ///
    /// # Durability
    /// When this returns `Ok`, the tree survives a power cut.
    fn restore(&self, id: SnapshotId, trash: &Path) -> Result<()> {
        let (from, to) = (trash.join(id.0.to_string()), self.root().join(id.0.to_string()));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { operation: "restore", path, source }
        };
        match std::fs::rename(&from, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && to.is_dir() => Ok(()),
            other => other.map_err(failed(&from)),
        }?;
        let directory = std::fs::File::open(self.root()).map_err(failed(self.root()))?;
        directory.sync_all().map_err(failed(self.root()))
    }

    /// The ids that are on disk, for clean-up and rebuilding.
    fn list(&self) -> Result<Vec<(SnapshotId, Option<Meta>)>> {
        Layout::at(self.root()).list()
    }

    /// Whether this machine can mount its trees.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with what is missing and what to do.
    fn available(&self) -> Result<()> {
        Ok(())
    }

    /// Whether what a committed snapshot takes on disk stays as it is until the snapshot goes.
    fn is_lasting(&self) -> bool {
        true
    }

    /// Lets go of all that was mounted for those who asked for mounts. What they have mounted by now goes on; who comes to it later
    /// is refused, and has to ask again.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// The directory the driver works in.
    fn root(&self) -> &Path;

    /// Whether a layer can be applied before its parent is there.
    fn supports_rebase(&self) -> bool;

    /// The directory of a tree that [`apply::apply`] may write into, and how whiteouts are to be written there.
    fn apply_target(&self, id: SnapshotId) -> ApplyTarget;

    /// The same for a client who has the snapshot's mounts, and may look through them before the commit.
    fn client_target(&self, id: SnapshotId) -> ApplyTarget {
        self.apply_target(id)
    }
}

/// Where a layer is applied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplyTarget {
    /// The directory.
    pub root: PathBuf,
    /// How deletions are written.
    pub whiteouts: Whiteouts,
    /// Where to note what must wait for the layers below, for [`Driver::commit`]; `None` where they are there already.
    pub deferred: Option<PathBuf>,
    /// Where to note what files hash to, for [`Driver::commit`]; `None`: nowhere.
    pub applied: Option<PathBuf>,
    /// The image that the layer becomes; `None`: it becomes files in `root`.
    pub image: Option<ImageTarget>,
}

/// A layer that becomes one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTarget {
    /// The image.
    pub file: PathBuf,
    /// Its tree, until [`Driver::commit`] makes it a part of the image.
    pub unsealed: PathBuf,
}

impl ApplyTarget {
    /// Whether nothing was made of any layer there.
    pub fn is_empty(&self) -> bool {
        let no_files = std::fs::read_dir(&self.root).is_ok_and(|mut entries| entries.next().is_none());
        no_files && self.image.as_ref().is_none_or(|image| !image.unsealed.exists())
    }

    /// Removes everything that was made of a layer in a directory that was empty, and what was noted of it.
    pub fn empty(&self) -> Result<()> {
        let root = fs::open_dir(&self.root).at("open", &self.root)?;
        let names: Vec<_> = std::fs::read_dir(&self.root)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .at("read", &self.root)?;
        for name in names {
            let shown = self.root.join(&name);
            fs::remove::remove(root.as_fd(), name.as_encoded_bytes()).at("remove", shown)?;
        }
        let of_image = self.image.as_ref().map(|image| [&image.unsealed, &image.file]);
        let notes = [&self.deferred, &self.applied].into_iter().flatten();
        notes.chain(of_image.into_iter().flatten()).try_for_each(|path| layout::remove_file(path))
    }
}

/// How a tree on disk says that something of a lower layer is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// The tree is complete: whiteouts delete.
    Delete,
    /// overlayfs: character device 0/0; `trusted.overlay.opaque`, or `user.overlay.opaque` if `userxattr`.
    Overlay {
        /// Rootless overlayfs.
        userxattr: bool,
    },
}
