//! Trees as overlayfs stacks them.
//!
//! ```text
//! ROOT/<id>/
//!   fs        the upper directory: what this snapshot changes
//!   work      overlayfs' scratch directory
//!   deferred  open ends of a layer that was applied without its parents, until the commit
//!   applied   what the files of an applied layer hash to, until the commit
//!   digests   what is in fs, since the commit
//!   meta
//! ```

use std::path::{Path, PathBuf};

use crate::layout::{Layout, check_mountable};
use crate::{ApplyTarget, Driver, Error, Link, Meta, Mount, Result, SnapshotId, Usage, Whiteouts};

/// The driver `overlayfs`.
#[derive(Debug)]
pub struct OverlayDriver {
    layout: Layout,
    stacking: Stacking,
}

impl OverlayDriver {
    /// Uses `root`, the driver's own directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `root` cannot be named in mount options. Whether overlayfs can be mounted is what
    /// [`Self::probe`] says: unpacking needs no mount.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let (layout, stacking) = Stacking::open(root.into())?;
        Ok(Self { layout, stacking })
    }

    /// Tries whether overlayfs can be mounted on directories below `root`, without leaving anything behind.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with the reason and what to do.
    pub fn probe(root: &Path) -> Result<()> {
        crate::mount::probe_overlay(root, !in_initial_user_namespace())
    }

    /// Lets a tree be what it is on top of `parents`.
    fn complete(&self, id: SnapshotId, parents: &[SnapshotId]) -> Result<()> {
        let was_parentless = self.layout.read_meta(id).is_some_and(|meta| meta.parent.is_none());
        let lowers: Vec<PathBuf> = parents.iter().map(|parent| self.layout.tree(*parent)).collect();
        crate::settle::settle(&self.apply_target(id), &lowers)?;
        if let (true, Some(nearest)) = (was_parentless, lowers.first()) {
            crate::copy::root_attributes(nearest, &self.layout.tree(id))?;
        }
        Ok(())
    }

    /// Makes a tree, which is not durable yet.
    fn make(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        self.layout.create_upper(id, meta)?;
        if let Some(nearest) = parents.first() {
            crate::copy::root_attributes(&self.layout.tree(*nearest), &self.layout.tree(id))?;
            self.layout.sync_tree(id)?;
        }
        self.layout.write_meta(id, meta)
    }
}

impl Driver for OverlayDriver {
    fn name(&self) -> &'static str {
        "overlayfs"
    }

    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        self.make(id, parents, meta)?;
        self.layout.sync_new(&[id])
    }

    fn create_all(&self, trees: &[Link]) -> Result<()> {
        self.layout.make_all(trees, |tree| self.make(tree.id, &tree.parents, &tree.meta))
    }

    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Result<Vec<Mount>> {
        Ok(self.stacking.mounts(&self.layout, id, parents, writable))
    }

    fn commit(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<Usage> {
        self.complete(id, parents)?;
        let usage = self.layout.record(id)?;
        self.layout.commit(id, meta)?;
        Ok(usage)
    }

    fn commit_chain(&self, chain: &[Link]) -> Result<Vec<Usage>> {
        chain.iter().try_for_each(|link| self.complete(link.id, &link.parents))?;
        let usages = self.layout.record_all(&chain.iter().map(|link| link.id).collect::<Vec<_>>())?;
        self.layout.commit_chain(chain)?;
        Ok(usages)
    }

    fn root(&self) -> &Path {
        self.layout.root()
    }

    fn supports_rebase(&self) -> bool {
        true
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        ApplyTarget {
            root: self.layout.tree(id),
            whiteouts: Whiteouts::Overlay { userxattr: self.stacking.userxattr },
            deferred: Some(self.layout.deferred(id)),
            applied: Some(self.layout.applied(id)),
            image: None,
        }
    }
}

/// How overlayfs is to be mounted here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stacking {
    userxattr: bool,
    index_off: bool,
}

impl Stacking {
    /// Opens the directory of a driver whose trees overlayfs is to stack.
    pub(crate) fn open(root: PathBuf) -> Result<(Layout, Self)> {
        let layout = Layout::open(root)?;
        check_mountable(layout.root())?;
        Ok((layout, Self { userxattr: !in_initial_user_namespace(), index_off: has_index() }))
    }

    /// The mounts of a snapshot on top of `parents`, nearest first.
    pub(crate) fn mounts(&self, layout: &Layout, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Vec<Mount> {
        match parents {
            [] => return crate::mount::bind(&layout.tree(id), writable),
            [only] if !writable => return crate::mount::bind(&layout.tree(*only), false),
            _ => {}
        }
        let mut options = Vec::new();
        if self.userxattr {
            options.push("userxattr".to_owned());
        }
        if self.index_off {
            options.push("index=off".to_owned());
        }
        // `open` refused roots that are not UTF-8.
        if writable {
            options.push(format!("workdir={}", layout.work(id).display()));
            options.push(format!("upperdir={}", layout.tree(id).display()));
        }
        let lower: Vec<String> = parents.iter().map(|parent| layout.tree(*parent).display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        vec![Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }]
    }
}

/// In other user namespaces overlayfs keeps its marks in `user.` attributes (Linux 5.11).
pub(crate) fn in_initial_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let identity: Vec<&str> = map.split_whitespace().collect();
    rustix::process::geteuid().is_root() && identity == ["0", "0", "4294967295"]
}

/// Whether the kernel's overlayfs knows `index`, which must be off: trees are shared between mounts.
fn has_index() -> bool {
    Path::new("/sys/module/overlay/parameters/index").exists()
}

/// What of an attribute's name is behind what overlayfs puts before its own; `None` of others.
pub(crate) fn own_name(attribute: &[u8]) -> Option<&[u8]> {
    [&b"trusted.overlay."[..], b"user.overlay."].into_iter().find_map(|own| attribute.strip_prefix(own))
}

/// What overlayfs notes about the place where a tree is, and not about the tree: it names inodes of the file system there.
pub(crate) const OF_THE_PLACE: [&[u8]; 3] = [b"origin", b"impure", b"uuid"];

/// Whether an attribute is the file's and not overlayfs'.
pub(crate) fn is_foreign(attribute: &[u8]) -> bool {
    own_name(attribute).is_none()
}

/// Whether an attribute goes with its tree to another place: overlayfs' own too, as far as they are about the tree.
pub(crate) fn is_of_the_tree(attribute: &[u8]) -> bool {
    own_name(attribute).is_none_or(|own| !OF_THE_PLACE.contains(&own))
}

/// The attribute by which a directory hides what lower layers have in it.
pub(crate) fn opaque_name(userxattr: bool) -> &'static [u8] {
    if userxattr { b"user.overlay.opaque" } else { b"trusted.overlay.opaque" }
}

/// The error for a machine that cannot mount overlayfs.
pub(crate) fn unsupported(reason: String) -> Error {
    Error::Unsupported { what: "mounting overlayfs", reason }
}
