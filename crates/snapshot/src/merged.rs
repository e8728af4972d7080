//! Looks into a stack of overlayfs' upper directories as the kernel would show it, without a mount.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::error::At as _;
use crate::fs::{self, xattr};
use crate::{Error, Result};

/// Symbolic links followed for one path, as in the kernel.
const MAX_LINKS: usize = 40;

/// A stack of trees, nearest first.
pub(crate) struct Merged {
    layers: Vec<Layer>,
    opaque: &'static [u8],
    /// For each directory asked for: the layers whose directories make it up; none if it is no directory.
    directories: HashMap<Vec<u8>, Vec<usize>>,
}

struct Layer {
    path: PathBuf,
    root: OwnedFd,
}

/// What a path shows: which layer it comes from, where it really is, and what it is.
pub(crate) struct Seen {
    pub(crate) layer: usize,
    pub(crate) path: Vec<u8>,
    pub(crate) stat: Stat,
}

impl Merged {
    pub(crate) fn open(layers: &[PathBuf], opaque: &'static [u8]) -> Result<Self> {
        let open = |path: &PathBuf| Ok(Layer { path: path.clone(), root: fs::open_dir(path).at("open", path)? });
        let layers = layers.iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Self { layers, opaque, directories: HashMap::new() })
    }

    pub(crate) fn root(&self, layer: usize) -> BorrowedFd<'_> {
        self.layers[layer].root.as_fd()
    }

    /// Opens the directory that `path` is in, in its layer.
    pub(crate) fn parent(&self, layer: usize, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        fs::open_beneath(self.root(layer), fs::split(path).0, flags).at("open", self.shown(layer, path))
    }

    pub(crate) fn shown(&self, layer: usize, path: &[u8]) -> PathBuf {
        fs::shown(&self.layers[layer].path, path)
    }

    /// What `path` shows, without following links.
    pub(crate) fn look(&mut self, path: &[u8]) -> Result<Option<Seen>> {
        for layer in self.layers_of(fs::split(path).0)? {
            if let Some(stat) = self.stat(layer, path)? {
                let seen = Seen { layer, path: path.to_vec(), stat };
                return Ok((!fs::is_whiteout(&stat)).then_some(seen));
            }
        }
        Ok(None)
    }

    /// What `path` shows; links in all but its last name are followed inside the root.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Result<Option<Seen>> {
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
            match fs::file_type(&seen.stat) {
                FileType::Directory => here = next,
                FileType::Symlink if links < MAX_LINKS => {
                    links += 1;
                    let dir = self.parent(seen.layer, &next)?;
                    let shown = self.shown(seen.layer, &next);
                    let target = rustix::fs::readlinkat(dir, name, Vec::new()).at("read the link", shown)?.into_bytes();
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

    /// The layers whose directories at `dir` are shown as one.
    pub(crate) fn layers_of(&mut self, dir: &[u8]) -> Result<Vec<usize>> {
        // Up to what is known, then down again: recursion would follow a layer as deep as it likes.
        let mut unknown = Vec::new();
        let mut here = dir;
        let mut layers: Vec<usize> = loop {
            if here.is_empty() {
                break (0..self.layers.len()).collect();
            }
            if let Some(known) = self.directories.get(here) {
                break known.clone();
            }
            unknown.push(here);
            here = fs::split(here).0;
        };
        for dir in unknown.into_iter().rev() {
            layers = self.directories_at(dir, layers)?;
            self.directories.insert(dir.to_vec(), layers.clone());
        }
        Ok(layers)
    }

    /// Of the layers whose directories make up `dir`'s parent, those whose directories make up `dir`.
    fn directories_at(&self, dir: &[u8], above: Vec<usize>) -> Result<Vec<usize>> {
        let mut merged = Vec::new();
        for layer in above {
            let Some(stat) = self.stat(layer, dir)? else { continue };
            if fs::file_type(&stat) != FileType::Directory {
                break;
            }
            merged.push(layer);
            if self.is_opaque(layer, dir)? {
                break;
            }
        }
        Ok(merged)
    }

    fn is_opaque(&self, layer: usize, dir: &[u8]) -> Result<bool> {
        let parent = self.parent(layer, dir)?;
        is_opaque(parent.as_fd(), fs::split(dir).1, self.opaque).at("read an attribute of", self.shown(layer, dir))
    }

    fn stat(&self, layer: usize, path: &[u8]) -> Result<Option<Stat>> {
        let (parent, name) = fs::split(path);
        let dir = fs::open_beneath(self.root(layer), parent, OFlags::PATH | OFlags::DIRECTORY);
        match dir.and_then(|dir| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(source) => Err(Error::Io { operation: "stat", path: self.shown(layer, path), source: source.into() }),
        }
    }
}

/// Whether the directory `name` in `dir` hides what layers below have there.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8]) -> rustix::io::Result<bool> {
    Ok(xattr::get(dir, name, attribute)?.is_some_and(|value| value == b"y"))
}
