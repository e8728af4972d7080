//! Stacks of images, as [`Merged`] looks into them.

use rustix::fs::FileType;

use super::build::OPAQUE;
use super::format::broken;
use super::read::{Found, Image};
use crate::merged::{self, Layer, Merged};
use crate::{Result, fs};

/// A stack of images, nearest first.
pub(super) type Stack = Merged<Image>;

/// What a path shows.
pub(super) type Seen = merged::Seen<Found>;

impl Seen {
    /// The file, whatever its name.
    pub(super) fn file(&self) -> (usize, u64) {
        (self.layer, self.found.nid)
    }
}

impl Layer for Image {
    type Found = Found;
    type Directory = Found;

    fn root(&self) -> Result<Found> {
        Self::root(self)
    }

    fn stat(&self, dir: Found, path: &[u8]) -> Result<Option<Found>> {
        self.lookup(&dir, fs::split(path).1)
    }

    fn file_type(found: &Found) -> FileType {
        FileType::from_raw_mode(found.raw.mode.into())
    }

    fn is_whiteout(found: &Found) -> bool {
        found.is_whiteout()
    }

    fn directory(found: Found) -> Found {
        found
    }

    fn is_opaque(&self, _path: &[u8], found: &Found) -> Result<bool> {
        Ok(self.xattrs(found)?.iter().any(|(name, value)| name == OPAQUE && value == b"y"))
    }

    fn target(&self, _path: &[u8], found: &Found) -> Result<Vec<u8>> {
        Self::target(self, found)
    }
}

impl Stack {
    /// All names that a file has in its image.
    pub(super) fn names_of(&self, seen: &Seen) -> Result<Vec<Vec<u8>>> {
        let image = self.layer(seen.layer);
        let (mut names, mut left) = (Vec::new(), image.inodes());
        let mut ahead = vec![(Vec::new(), image.root()?)];
        while let Some((path, dir)) = ahead.pop() {
            for (name, nid) in image.entries(&dir)? {
                let path = fs::join(&path, &name);
                if nid == seen.found.nid {
                    names.push(path);
                    continue;
                }
                let found = image.inode(nid)?;
                if found.is_directory() {
                    // A damaged image may lead round in circles.
                    left = left.checked_sub(1).ok_or_else(|| broken("its directories"))?;
                    ahead.push((path, found));
                }
            }
        }
        names.sort();
        Ok(names)
    }
}
