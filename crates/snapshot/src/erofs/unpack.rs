//! Makes a directory of an image: for a client who goes on with what a layer became.

use std::os::fd::AsFd as _;
use std::path::Path;

use super::build::OPAQUE;
use super::mounts;
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};
use crate::{Result, copy, merged};

/// Copies what is in an image to the directory `to`, which is not there yet; the image is mounted on `point` meanwhile.
pub(super) fn unpack(image: &Path, point: &Path, to: &Path) -> Result<()> {
    let _mounted = Mounted::new(image, point)?;
    std::fs::create_dir(to).at("make the directory", to)?;
    copy::tree(point, to)?;
    let target = fs::open_dir(to).at("open", to)?;
    let mut walk = Walk::new(fs::open_dir(point).at("open", point)?).at("read", point)?;
    while let Some(step) = walk.next().at("read", point)? {
        // Marks of overlayfs are not copied with the rest.
        let Step::Enter { name, .. } = step else { continue };
        let path = fs::join(&walk.path(), name.as_bytes());
        let shown = || fs::shown(to, &path);
        if merged::is_opaque(walk.dir(), name.as_bytes(), OPAQUE).at("read an attribute of", shown())? {
            let (parent, name) = fs::split(&path);
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
            let parent = fs::open_beneath(target.as_fd(), parent, flags).at("open", shown())?;
            xattr::set(parent.as_fd(), name, OPAQUE, b"y").at("mark as opaque", shown())?;
        }
    }
    Ok(())
}

/// An image that is mounted for a while.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(image: &Path, point: &'a Path) -> Result<Self> {
        mounts::unmount(point)?;
        crate::remove_tree(point)?;
        std::fs::create_dir(point).at("make the directory", point)?;
        let mounted = Self(point);
        mounts::mount(point.parent().unwrap_or(point), image, point)?;
        Ok(mounted)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        match mounts::unmount(self.0) {
            // Never with its content: if it is still mounted, that is somebody's tree.
            Ok(()) => drop(std::fs::remove_dir(self.0)),
            Err(error) => tracing::warn!(%error, "cannot unmount"),
        }
    }
}
