//! Makes a directory of an image: for a client who goes on with what a layer became.

use std::path::Path;

use super::mounts;
use crate::error::At as _;
use crate::overlay::is_of_the_tree;
use crate::{Result, copy};

/// Copies what is in an image to the directory `to`, which is not there yet; the image is mounted on `point` meanwhile.
pub(super) fn unpack(image: &Path, point: &Path, to: &Path) -> Result<()> {
    let _mounted = Mounted::new(image, point)?;
    std::fs::create_dir(to).at("make the directory", to)?;
    copy::tree(point, to, is_of_the_tree)
}

/// An image that is mounted for a while.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(image: &Path, point: &'a Path) -> Result<Self> {
        mounts::unmount(point)?;
        crate::remove_tree(point)?;
        std::fs::create_dir(point).at("make the directory", point)?;
        let mounted = Self(point);
        mounts::unless_mounted(point.parent().unwrap_or(point), point, || mounts::mount(image, point))?;
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
