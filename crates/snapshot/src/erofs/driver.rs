//! The driver `erofs`.
//!
//! ```text
//! ROOT/<id>/
//!   fs           until the commit the upper directory; from then on where the image is mounted
//!   work         overlayfs' scratch directory
//!   layer.erofs  the image: from the commit on all there is of the snapshot
//!   unsealed     the tree of an applied layer, until the commit
//!   unpacked     where the image is mounted while files are made of it for a client, in fs.new
//!   deferred     open ends of a layer that was applied without its parents, until the commit
//!   digests      what the image hashes to, since the commit
//!   meta
//! ```
//!
//! A layer is applied to an image unless there is something in the upper directory, or a client has it applied who may have the
//! snapshot mounted: then it is applied to that. A client who asks for mounts of what a layer was applied to gets it there too.
//!
//! # Invariants
//! - What a container has written stays below `fs` until somebody stands on the committed snapshot: a commit that the database does
//!   not get to know is repeated from it.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid};

use super::build::Builder;
use super::read::Image;
use super::{ImageComparison, mounts, pack, settle, unpack, verify};
use crate::apply::Deferred;
use crate::error::At as _;
use crate::keys::is_unpacking;
use crate::layout::{Layout, remove_file};
use crate::overlay::Stacking;
use crate::record::Comparison;
use crate::{
    ApplyTarget, Driver, Error, ImageTarget, Link, Linked, Meta, Mount, OverlayDriver, Result, SnapshotId, Usage,
    Whiteouts, fs,
};

/// The driver `erofs`: layers are images, which overlayfs stacks.
#[derive(Debug)]
pub struct ErofsDriver {
    layout: Layout,
    stacking: Stacking,
}

impl ErofsDriver {
    /// Uses `root`, the driver's own directory, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `root` cannot be named in mount options. Whether images can be mounted is what [`Self::probe`]
    /// says: unpacking needs no mount.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let (layout, stacking) = Stacking::open(root.into())?;
        Ok(Self { layout, stacking })
    }

    /// Tries whether images can be mounted, and overlayfs over them, below `root`; nothing is left behind.
    ///
    /// # Errors
    /// [`Error::Unsupported`], with what is missing and what to do.
    pub fn probe(root: &Path) -> Result<()> {
        mounts::possible()?;
        OverlayDriver::probe(root)
    }

    fn image(&self, id: SnapshotId) -> PathBuf {
        self.layout.dir(id).join("layer.erofs")
    }

    fn unsealed(&self, id: SnapshotId) -> PathBuf {
        self.layout.dir(id).join("unsealed")
    }

    /// Where the image is mounted while files are made of it; for good, if that is interrupted.
    fn unpacked(&self, id: SnapshotId) -> PathBuf {
        self.layout.dir(id).join("unpacked")
    }

    fn images(&self, ids: &[SnapshotId]) -> Vec<PathBuf> {
        ids.iter().map(|id| self.image(*id)).collect()
    }

    /// Mounts the images of committed snapshots, as far as they are not.
    fn mount(&self, ids: &[SnapshotId]) -> Result<()> {
        for id in ids {
            let point = self.layout.tree(*id);
            mounts::unless_mounted(&self.layout.dir(*id), &point, || {
                self.clear_unmounted(*id)?;
                mounts::mount(&self.image(*id), &point)
            })?;
        }
        Ok(())
    }

    /// Removes the upper directory of a snapshot that others stand on: it is in the image.
    fn clear_upper(&self, id: SnapshotId) -> Result<()> {
        let upper = self.layout.tree(id);
        if mounts::is_mounted(&upper) || is_empty(&upper)? {
            return Ok(());
        }
        mounts::unless_mounted(&self.layout.dir(id), &upper, || self.clear_unmounted(id))
    }

    fn clear_unmounted(&self, id: SnapshotId) -> Result<()> {
        if is_empty(&self.layout.tree(id))? || Image::open(&self.image(id)).is_err() {
            return Ok(());
        }
        ApplyTarget { deferred: None, image: None, ..self.apply_target(id) }.empty()
    }

    /// Lets a snapshot be one image on top of those of `parents`, and records what that is.
    fn complete(&self, id: SnapshotId, parents: &[SnapshotId]) -> Result<Usage> {
        let (upper, image, unsealed) = (self.layout.tree(id), self.image(id), self.unsealed(id));
        let applied = unsealed.exists();
        let written = !mounts::is_mounted(&upper) && !is_empty(&upper)?;
        let builder = match (applied, written) {
            (true, true) => return Err(self.is_both(id)),
            (true, false) => {
                let mut builder = Builder::resume(&image, &unsealed)?;
                let deferred = Deferred::load(&self.layout.deferred(id))?;
                settle::settle(&mut builder, deferred, &self.images(parents), &upper)?;
                builder
            }
            // An earlier commit was not the last.
            (false, false) if Image::open(&image).is_ok() => return self.usage(id),
            (false, _) => {
                self.settle_upper(id, parents)?;
                let mut builder = Builder::create(&image)?;
                pack::pack(&mut builder, &upper)?;
                // Who unpacked by himself left nothing open but the root.
                if self.layout.read_meta(id).is_some_and(|meta| meta.parent.is_none()) {
                    settle::settle(&mut builder, Deferred::default(), &self.images(parents), &upper)?;
                }
                builder
            }
        };
        verify::write(builder.seal()?, &self.layout.digests(id))?;
        self.usage(id)
    }

    /// Ties what a layer that was applied to the upper directory left open.
    fn settle_upper(&self, id: SnapshotId, parents: &[SnapshotId]) -> Result<()> {
        if !self.layout.deferred(id).exists() {
            return Ok(());
        }
        self.mount(parents)?;
        let lowers: Vec<PathBuf> = parents.iter().map(|parent| self.layout.tree(*parent)).collect();
        crate::settle::settle(&self.apply_target(id), &lowers)
    }

    /// Puts what a layer became into the upper directory, where a client can go on with it.
    fn unpack(&self, id: SnapshotId, parents: &[SnapshotId]) -> Result<()> {
        let (upper, image, unsealed) = (self.layout.tree(id), self.image(id), self.unsealed(id));
        if is_empty(&upper)? {
            let new = self.layout.dir(id).join("fs.new");
            crate::remove_tree(&new)?;
            if unsealed.exists() {
                let mut builder = Builder::resume(&image, &unsealed)?;
                let deferred = Deferred::load(&self.layout.deferred(id))?;
                settle::settle(&mut builder, deferred, &self.images(parents), &upper)?;
                builder.seal()?;
            }
            unpack::unpack(&image, &self.unpacked(id), &new)?;
            std::fs::rename(&new, &upper).at("rename", &new)?;
        } else if Image::open(&image).is_err() {
            return Err(self.is_both(id));
        }
        // A sealed image beside a full directory is what somebody left who was interrupted here, or a commit that was not the last.
        [unsealed, self.layout.deferred(id), image].iter().try_for_each(|file| remove_file(file))
    }

    fn is_both(&self, id: SnapshotId) -> Error {
        let upper = self.layout.tree(id);
        let reason = format!(
            "a layer was applied to it, and somebody who had it mounted before wrote to {} besides: remove it and begin anew",
            upper.display()
        );
        Error::Unsupported { what: "going on with this snapshot", reason }
    }

    /// What is not needed once commits are on disk.
    fn tidy(&self, chain: &[(SnapshotId, &[SnapshotId])]) -> Result<()> {
        for (id, parents) in chain {
            remove_file(&self.unsealed(*id))?;
            remove_file(&self.layout.deferred(*id))?;
            parents.iter().try_for_each(|parent| self.clear_upper(*parent))?;
        }
        Ok(())
    }

    /// Makes a tree, which is not durable yet.
    fn make(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        // Now, and not when the first container starts.
        mounts::possible()?;
        self.layout.create_upper(id, meta)?;
        if let Some(nearest) = parents.first().filter(|_| meta.kind != "view") {
            self.root_attributes(*nearest, id)?;
            self.layout.sync_tree(id)?;
        }
        self.layout.write_meta(id, meta)
    }

    /// Gives an upper directory what the root of the nearest image has: overlayfs shows the upper one's.
    fn root_attributes(&self, nearest: SnapshotId, id: SnapshotId) -> Result<()> {
        let path = self.layout.tree(id);
        let image = Image::open(&self.image(nearest))?;
        let root = image.root()?;
        let xattrs = image.xattrs(&root)?;
        let dir = fs::open_dir(&path).at("open", &path)?;
        let raw = &root.raw;
        let (uid, gid) = (Some(Uid::from_raw(raw.uid)), Some(Gid::from_raw(raw.gid)));
        rustix::fs::fchown(&dir, uid, gid).at("give an owner to", &path)?;
        for (name, value) in &xattrs {
            fs::xattr::set(dir.as_fd(), b"", name, value).at("set an extended attribute of", &path)?;
        }
        let mode = Mode::from_raw_mode(u32::from(raw.mode) & 0o7777);
        rustix::fs::fchmod(&dir, mode).at("set the mode of", &path)?;
        let time = Timespec { tv_sec: raw.seconds as i64, tv_nsec: raw.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::futimens(&dir, &times).at("set the times of", &path)
    }
}

/// Whether a directory has nothing in it, or is not there.
fn is_empty(path: &Path) -> Result<bool> {
    match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        entries => Ok(entries.at("read", path)?.next().is_none()),
    }
}

impl Driver for ErofsDriver {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn create(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<()> {
        self.make(id, parents, meta)?;
        self.layout.sync_new(&[id])
    }

    fn create_all(&self, trees: &[Link]) -> Result<()> {
        self.layout.make_all(trees, |tree| self.make(tree.id, &tree.parents, &tree.meta))
    }

    fn mounts(&self, id: SnapshotId, parents: &[SnapshotId], writable: bool) -> Result<Vec<Mount>> {
        self.mount(parents)?;
        if writable && (self.unsealed(id).exists() || Image::open(&self.image(id)).is_ok()) {
            self.unpack(id, parents)?;
        }
        Ok(self.stacking.mounts(&self.layout, id, parents, writable))
    }

    fn commit(&self, id: SnapshotId, parents: &[SnapshotId], meta: &Meta) -> Result<Usage> {
        let usage = self.complete(id, parents)?;
        self.layout.commit(id, meta)?;
        self.tidy(&[(id, parents)])?;
        Ok(usage)
    }

    fn commit_chain(&self, chain: &[Link]) -> Result<Vec<Usage>> {
        let usages = chain.iter().map(|link| self.complete(link.id, &link.parents)).collect::<Result<_>>()?;
        self.layout.commit_chain(chain)?;
        self.tidy(&chain.iter().map(|link| (link.id, link.parents.as_slice())).collect::<Vec<_>>())?;
        Ok(usages)
    }

    fn usage(&self, id: SnapshotId) -> Result<Usage> {
        let upper = self.layout.tree(id);
        let mut usage = match mounts::is_mounted(&upper) {
            true => Usage::default(),
            false => self.layout.usage(id)?,
        };
        if let Ok(stat) = self.image(id).symlink_metadata() {
            usage.bytes += stat.blocks() * 512;
            usage.inodes += 1;
        }
        Ok(usage)
    }

    fn give(&self, id: SnapshotId, _to: &Path) -> Result<Linked> {
        Err(Error::Unsupported {
            what: "giving a layer's files back without copying them",
            reason: format!("snapshot {} is one file, {}: mount it and copy its tree", id.0, self.image(id).display()),
        })
    }

    fn elsewhere(&self, _id: SnapshotId) -> Result<u64> {
        // An image is made here.
        Ok(0)
    }

    fn compare(&self, id: SnapshotId) -> Result<Option<Comparison>> {
        let compared = ImageComparison::open(&self.image(id), &self.layout.digests(id))?;
        Ok(compared.map(Comparison::of_image))
    }

    fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> Result<()> {
        [self.layout.tree(id), self.unpacked(id)].iter().try_for_each(|point| mounts::unmount(point))?;
        self.layout.remove(id, trash)
    }

    fn release(&self) -> Result<()> {
        for (id, _) in self.list()? {
            let home = self.layout.dir(id);
            [self.layout.tree(id), self.unpacked(id)].iter().try_for_each(|point| mounts::release(&home, point))?;
        }
        Ok(())
    }

    fn available(&self) -> Result<()> {
        mounts::possible()
    }

    fn is_lasting(&self) -> bool {
        false
    }

    fn root(&self) -> &Path {
        self.layout.root()
    }

    fn supports_rebase(&self) -> bool {
        true
    }

    fn client_target(&self, id: SnapshotId) -> ApplyTarget {
        let target = self.apply_target(id);
        match self.layout.read_meta(id).is_some_and(|meta| is_unpacking(&meta.key)) {
            true => target,
            false => ApplyTarget { image: None, ..target },
        }
    }

    fn apply_target(&self, id: SnapshotId) -> ApplyTarget {
        let root = self.layout.tree(id);
        let written = !is_empty(&root).unwrap_or(true);
        let image = ImageTarget { file: self.image(id), unsealed: self.unsealed(id) };
        ApplyTarget {
            root,
            whiteouts: Whiteouts::Overlay { userxattr: false },
            deferred: Some(self.layout.deferred(id)),
            applied: None,
            image: (!written).then_some(image),
        }
    }
}
