//! Looks into a stack of layers as overlayfs would show it, without a mount: of upper directories ([`Upper`]), or of images.
//!
//! Paths come from layers. No link leads out of the root, and nothing here recurses as deep as a path goes.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::error::At as _;
use crate::fs::way::{Turn, Way};
use crate::fs::{self, xattr};
use crate::{Error, Result};

/// One layer of a stack, by itself.
pub(crate) trait Layer {
    /// What is at a path.
    type Found: Copy;
    /// A directory, as far as its path does not say which it is.
    type Directory: Copy;

    fn root(&self) -> Result<Self::Directory>;

    /// What the layer has at `path`, whose parent is `dir`; links are not followed.
    fn stat(&self, dir: Self::Directory, path: &[u8]) -> Result<Option<Self::Found>>;

    fn file_type(found: &Self::Found) -> FileType;

    /// Whether it is overlayfs' mark for a deleted name.
    fn is_whiteout(found: &Self::Found) -> bool;

    /// The directory that was found.
    fn directory(found: Self::Found) -> Self::Directory;

    /// Whether the directory at `path` hides what layers below have there.
    fn is_opaque(&self, path: &[u8], found: &Self::Found) -> Result<bool>;

    /// The target of the link at `path`.
    fn target(&self, path: &[u8], found: &Self::Found) -> Result<Vec<u8>>;
}

/// A directory of one layer, by its place in the stack.
type At<L> = (usize, <L as Layer>::Directory);

/// A stack of layers, nearest first.
pub(crate) struct Merged<L: Layer> {
    layers: Vec<L>,
    /// For each directory asked for: the layers' directories that make it up; none if it is no directory.
    directories: HashMap<Vec<u8>, Vec<At<L>>>,
}

/// What a path shows: which layer it comes from, where it really is, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Seen<F> {
    pub(crate) layer: usize,
    pub(crate) path: Vec<u8>,
    pub(crate) found: F,
}

impl<L: Layer> Merged<L> {
    pub(crate) fn of(layers: Vec<L>) -> Self {
        Self { layers, directories: HashMap::new() }
    }

    pub(crate) fn layer(&self, layer: usize) -> &L {
        &self.layers[layer]
    }

    /// What `path` shows, without following links.
    pub(crate) fn look(&mut self, path: &[u8]) -> Result<Option<Seen<L::Found>>> {
        for (layer, dir) in self.directories_of(fs::split(path).0)? {
            if let Some(found) = self.layers[layer].stat(dir, path)? {
                let seen = Seen { layer, path: path.to_vec(), found };
                return Ok((!L::is_whiteout(&found)).then_some(seen));
            }
        }
        Ok(None)
    }

    /// What `path` shows; links in all but its last name are followed inside the root.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Result<Option<Seen<L::Found>>> {
        let (mut way, mut here) = (Way::along(path), Vec::new());
        while let Some(turn) = way.next() {
            let Turn::Into(name) = turn else {
                here.truncate(fs::split(&here).0.len());
                continue;
            };
            let next = fs::join(&here, &name);
            let Some(seen) = self.look(&next)? else { return Ok(None) };
            if way.is_over() {
                return Ok(Some(seen));
            }
            match L::file_type(&seen.found) {
                FileType::Directory => here = next,
                FileType::Symlink => {
                    let target = self.layers[seen.layer].target(&next, &seen.found)?;
                    if !way.follow(&target) {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The layers' directories at `dir` that are shown as one.
    pub(crate) fn directories_of(&mut self, dir: &[u8]) -> Result<Vec<At<L>>> {
        // Up to what is known, then down again.
        let mut unknown = Vec::new();
        let mut here = dir;
        let mut made_of: Vec<At<L>> = loop {
            if here.is_empty() {
                let roots = self.layers.iter().enumerate().map(|(layer, of)| Ok((layer, of.root()?)));
                break roots.collect::<Result<_>>()?;
            }
            if let Some(known) = self.directories.get(here) {
                break known.clone();
            }
            unknown.push(here);
            here = fs::split(here).0;
        };
        for dir in unknown.into_iter().rev() {
            made_of = self.directories_at(dir, made_of)?;
            self.directories.insert(dir.to_vec(), made_of.clone());
        }
        Ok(made_of)
    }

    /// Of the directories that make up `dir`'s parent, those that make up `dir`.
    fn directories_at(&self, dir: &[u8], above: Vec<At<L>>) -> Result<Vec<At<L>>> {
        let mut merged = Vec::new();
        for (at, parent) in above {
            let layer = &self.layers[at];
            let Some(found) = layer.stat(parent, dir)? else { continue };
            if L::file_type(&found) != FileType::Directory {
                break;
            }
            merged.push((at, L::directory(found)));
            if layer.is_opaque(dir, &found)? {
                break;
            }
        }
        Ok(merged)
    }
}

/// An upper directory of overlayfs.
pub(crate) struct Upper {
    path: PathBuf,
    root: OwnedFd,
    opaque: &'static [u8],
}

impl Upper {
    /// Opens the directory at `path`, in which `opaque` is the attribute of directories that hide.
    pub(crate) fn open(path: &Path, opaque: &'static [u8]) -> Result<Self> {
        Ok(Self { path: path.to_owned(), root: fs::open_dir(path).at("open", path)?, opaque })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory that `path` is in.
    pub(crate) fn parent(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        fs::open_beneath(self.fd(), fs::split(path).0, flags).at("open", self.shown(path))
    }

    pub(crate) fn shown(&self, path: &[u8]) -> PathBuf {
        fs::shown(&self.path, path)
    }
}

impl Layer for Upper {
    type Found = Stat;
    type Directory = ();

    fn root(&self) -> Result<()> {
        Ok(())
    }

    fn stat(&self, (): (), path: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = fs::split(path);
        let dir = fs::open_beneath(self.fd(), parent, OFlags::PATH | OFlags::DIRECTORY);
        match dir.and_then(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(source) => Err(Error::Io { operation: "stat", path: self.shown(path), source: source.into() }),
        }
    }

    fn file_type(found: &Stat) -> FileType {
        fs::file_type(found)
    }

    fn is_whiteout(found: &Stat) -> bool {
        fs::is_whiteout(found)
    }

    fn directory(_found: Stat) {}

    fn is_opaque(&self, path: &[u8], _found: &Stat) -> Result<bool> {
        let parent = self.parent(path)?;
        is_opaque(parent.as_fd(), fs::split(path).1, self.opaque).at("read an attribute of", self.shown(path))
    }

    fn target(&self, path: &[u8], _found: &Stat) -> Result<Vec<u8>> {
        let target = rustix::fs::readlinkat(self.parent(path)?, fs::split(path).1, Vec::new());
        Ok(target.at("read the link", self.shown(path))?.into_bytes())
    }
}

/// Whether the directory `name` in `dir` hides what layers below have there.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8]) -> rustix::io::Result<bool> {
    Ok(xattr::get(dir, name, attribute)?.is_some_and(|value| value == b"y"))
}
