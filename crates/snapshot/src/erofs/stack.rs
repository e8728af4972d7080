//! Looks into a stack of images as overlayfs would show it, without a mount: [`crate::merged`] for images.

use std::collections::HashMap;
use std::path::PathBuf;

use super::build::OPAQUE;
use super::read::{Found, Image};
use crate::{Result, fs};

/// Symbolic links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// A directory of one image.
type Directory = (usize, Found);

/// A stack of images, nearest first.
pub(super) struct Stack {
    images: Vec<Image>,
    /// For each directory asked for: the images' directories that make it up; none if it is no directory.
    directories: HashMap<Vec<u8>, Vec<Directory>>,
}

/// What a path shows: which image it comes from, where it really is, and what it is.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) layer: usize,
    pub(super) path: Vec<u8>,
    pub(super) found: Found,
}

impl Seen {
    /// The file, whatever its name.
    pub(super) fn file(&self) -> (usize, u64) {
        (self.layer, self.found.nid)
    }
}

impl Stack {
    pub(super) fn open(images: &[PathBuf]) -> Result<Self> {
        let images = images.iter().map(|path| Image::open(path)).collect::<Result<_>>()?;
        Ok(Self { images, directories: HashMap::new() })
    }

    pub(super) fn image(&self, layer: usize) -> &Image {
        &self.images[layer]
    }

    /// What `path` shows, without following links.
    pub(super) fn look(&mut self, path: &[u8]) -> Result<Option<Seen>> {
        let (parent, name) = fs::split(path);
        for (layer, dir) in self.directories_of(parent)? {
            if let Some(found) = self.images[layer].lookup(&dir, name)? {
                let seen = Seen { layer, path: path.to_vec(), found };
                return Ok((!found.is_whiteout()).then_some(seen));
            }
        }
        Ok(None)
    }

    /// What `path` shows; links in all but its last name are followed inside the root.
    pub(super) fn resolve(&mut self, path: &[u8]) -> Result<Option<Seen>> {
        let mut names: Vec<Vec<u8>> = path.rsplit(|&b| b == b'/').map(<[u8]>::to_vec).collect();
        let mut here = Vec::new();
        let mut links = 0;
        while let Some(name) = names.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here.truncate(fs::split(&here).0.len());
                    continue;
                }
                _ => {}
            }
            let next = fs::join(&here, &name);
            let Some(seen) = self.look(&next)? else { return Ok(None) };
            if names.is_empty() {
                return Ok(Some(seen));
            }
            match seen.found.kind() {
                libc::S_IFDIR => here = next,
                libc::S_IFLNK if links < MAX_LINKS => {
                    links += 1;
                    let target = self.images[seen.layer].target(&seen.found)?;
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    names.extend(target.rsplit(|&b| b == b'/').map(<[u8]>::to_vec));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The images' directories at `dir` that are shown as one.
    pub(super) fn directories_of(&mut self, dir: &[u8]) -> Result<Vec<Directory>> {
        // Up to what is known, then down again: recursion would follow a layer as deep as it likes.
        let mut unknown = Vec::new();
        let mut here = dir;
        let mut made_of: Vec<Directory> = loop {
            if here.is_empty() {
                let roots = self.images.iter().enumerate().map(|(layer, image)| Ok((layer, image.root()?)));
                break roots.collect::<Result<_>>()?;
            }
            if let Some(known) = self.directories.get(here) {
                break known.clone();
            }
            unknown.push(here);
            here = fs::split(here).0;
        };
        for dir in unknown.into_iter().rev() {
            made_of = self.directories_at(fs::split(dir).1, made_of)?;
            self.directories.insert(dir.to_vec(), made_of.clone());
        }
        Ok(made_of)
    }

    /// Of the directories that make up one, those that make up what it has under `name`.
    fn directories_at(&self, name: &[u8], above: Vec<Directory>) -> Result<Vec<Directory>> {
        let mut merged = Vec::new();
        for (layer, dir) in above {
            let image = &self.images[layer];
            let Some(found) = image.lookup(&dir, name)? else { continue };
            if !found.is_directory() {
                break;
            }
            merged.push((layer, found));
            if image.xattrs(&found)?.iter().any(|(name, value)| name == OPAQUE && value == b"y") {
                break;
            }
        }
        Ok(merged)
    }

    /// All names that a file has in its image.
    pub(super) fn names_of(&self, seen: &Seen) -> Result<Vec<Vec<u8>>> {
        let image = &self.images[seen.layer];
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
                    left = left.checked_sub(1).ok_or_else(|| super::format::broken("its directories"))?;
                    ahead.push((path, found));
                }
            }
        }
        names.sort();
        Ok(names)
    }
}
