//! Trees as plain copies: each snapshot is complete, whatever the file system or privilege.
//!
//! ```text
//! ROOT/<id>/fs/       the whole tree
//! ROOT/<id>/applied   what the files of an applied layer hash to, until the commit
//! ROOT/<id>/digests   what is in fs, since the commit
//! ROOT/<id>/meta
//! ```

use std::path::{Path, PathBuf};

use crate::layout::Layout;
use crate::{ApplyTarget, Driver, Meta, Mount, Result, SnapshotId, Usage, Whiteouts};

/// The driver `native`.
#[derive(Debug)]
pub struct NativeDriver {
    layout: Layout,
}

impl NativeDriver {
    /// Uses `root`, the driver's own directory, which is made if it is missing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { layout: Layout::open(root.into())? })
    }
}

impl Driver for NativeDriver {
    fn name(&self) -> &'static str {
        "native"
    }

    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        self.layout.create(id)?;
        // A view shows its parent's own tree.
        if let (Some(nearest), true) = (parents.first(), meta.kind != "view") {
            crate::copy::tree(&self.layout.tree(*nearest), &self.layout.tree(id), crate::overlay::is_foreign)?;
            // All of it, or a power cut leaves a part of the copy to whoever mounts it.
            return self.layout.commit(id, meta);
        }
        self.layout.write_meta(id, meta)?;
        self.layout.sync_new(&[id])
    }

    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Result<Vec<Mount>> {
        let shown = match parents.first() {
            Some(nearest) if !writable => *nearest,
            _ => id,
        };
        Ok(crate::mount::bind(&self.layout.tree(shown), writable))
    }

    fn commit(&self, id: SnapshotId, _parents: &[SnapshotId], meta: &Meta) -> Result<Usage> {
        let usage = self.layout.record(id)?;
        self.layout.commit(id, meta)?;
        Ok(usage)
    }

    fn root(&self) -> &Path {
        self.layout.root()
    }

    fn supports_rebase(&self) -> bool {
        false
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        ApplyTarget {
            root: self.layout.tree(id),
            whiteouts: Whiteouts::Delete,
            deferred: None,
            applied: Some(self.layout.applied(id)),
            image: None,
        }
    }
}
