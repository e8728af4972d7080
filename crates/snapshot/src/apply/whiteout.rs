//! Deletions: image-spec layer.md, "Whiteouts".

use std::os::fd::AsFd as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Time;
use super::attributes;
use super::directories::{Ending, Place};
use super::entry::{Entry, Kind};
use super::tree::Tree;
use crate::error::At as _;
use crate::fs;
use crate::fs::walk::{Step, Walk};
use crate::{Error, Result};

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Whether a path is part of what AUFS kept for itself in its branches.
pub(super) fn is_aufs(path: &[u8]) -> bool {
    let (parent, name) = fs::split(path);
    let reserved = |name: &[u8]| name.starts_with(AUFS);
    parent.split(|&b| b == b'/').any(reserved) || (reserved(name) && name != OPAQUE)
}

/// What a deletion deletes.
pub(super) enum Mark<'a> {
    /// What is at its own name.
    Itself,
    /// What is at another name beside it.
    Name(&'a [u8]),
    /// All that lower layers have in its directory.
    Everything,
}

/// What `entry`, whose last name is `name`, deletes; `None` if it is no deletion.
pub(super) fn mark<'a>(entry: &Entry, name: &'a [u8]) -> Result<Option<Mark<'a>>> {
    // overlayfs' own mark, in a layer that was packed from an upper directory as it lay there.
    if entry.kind == Kind::Char(0, 0) {
        return Ok(Some(Mark::Itself));
    }
    if name == OPAQUE {
        return Ok(Some(Mark::Everything));
    }
    match name.strip_prefix(PREFIX) {
        Some(b"" | b"." | b"..") => Err(entry.hostile("it is a whiteout that names nothing")),
        deleted => Ok(deleted.map(Mark::Name)),
    }
}

impl Tree<'_> {
    /// Applies `entry` if it is a deletion.
    pub(super) fn whiteout(&mut self, entry: &Entry, place: &Place) -> Result<bool> {
        match mark(entry, &place.name)? {
            None => return Ok(false),
            Some(Mark::Itself) => self.delete(place)?,
            Some(Mark::Everything) => self.opaque(place)?,
            Some(Mark::Name(name)) => {
                let path = fs::join(&place.dir.path, name);
                self.delete(&Place { dir: place.dir.clone(), name: name.to_vec(), path })?;
            }
        }
        Ok(true)
    }

    fn delete(&mut self, place: &Place) -> Result<()> {
        self.dirs.clear(place)?;
        if !self.dirs.is_overlay() {
            return Ok(());
        }
        let device = rustix::fs::makedev(0, 0);
        let mode = Mode::empty();
        match rustix::fs::mknodat(&place.dir.fd, &place.name, FileType::CharacterDevice, mode, device) {
            Err(Errno::PERM) => Err(Error::Unsupported {
                what: "marking a deleted file for overlayfs",
                reason: "making the character device 0/0 is not permitted: run as root, or on Linux 5.8 or later"
                    .into(),
            }),
            other => other.at("make the whiteout", self.dirs.shown(&place.path)),
        }?;
        self.dirs.deferred.whiteouts.insert(place.path.clone());
        Ok(())
    }

    /// Hides or removes what lower layers have in the directory that the mark is in.
    fn opaque(&mut self, mark: &Place) -> Result<()> {
        if !self.dirs.is_overlay() {
            return self.remove_foreign(mark);
        }
        if mark.dir.path.is_empty() {
            self.dirs.deferred.opaque_root = true;
            return Ok(());
        }
        let path = mark.dir.path.clone();
        let (parent, name) = fs::split(&path);
        let dir = self.dirs.at(parent)?;
        self.dirs.hide_below(&Place { dir, name: name.to_vec(), path: path.clone() })
    }

    /// Removes from a directory all that this layer has not written.
    fn remove_foreign(&mut self, mark: &Place) -> Result<()> {
        let base = &mark.dir.path;
        let shown = self.dirs.shown(base);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = fs::open_beneath(mark.dir.fd.as_fd(), b"", flags).at("open", &shown)?;
        let mut walk = Walk::new(root).at("read", &shown)?;
        while let Some(step) = walk.next().at("read", &shown)? {
            let (name, is_dir) = match step {
                Step::Enter { name, .. } => (name, true),
                Step::Other { name, .. } => (name, false),
                Step::Leave { .. } => continue,
            };
            let path = fs::join(&fs::join(base, &walk.path()), name.as_bytes());
            if self.dirs.is_own(&path) {
                if is_dir {
                    self.reset(&path)?;
                }
                continue;
            }
            walk.skip();
            self.dirs.forget(&path);
            self.dirs.note_cleared();
            fs::remove::remove(walk.dir(), name.as_bytes()).at("remove", self.dirs.shown(&path))?;
        }
        Ok(())
    }

    /// Takes from a directory that the layer only implies what it had from the layer that is now hidden.
    fn reset(&mut self, path: &[u8]) -> Result<()> {
        if self.dirs.endings.get(path).is_none_or(|ending| ending.explicit) {
            return Ok(());
        }
        let (parent, name) = fs::split(path);
        let dir = self.dirs.at(parent)?;
        let place = Place { dir, name: name.to_vec(), path: path.to_vec() };
        self.strip(&place)?;
        let shown = self.dirs.shown(path);
        let stat = rustix::fs::statat(&place.dir.fd, &place.name, AtFlags::SYMLINK_NOFOLLOW).at("stat", &shown)?;
        if stat.st_mode & 0o7777 != 0o755 {
            attributes::chmod(place.made(), 0o755).at("set the mode of", &shown)?;
        }
        let time = Time::default();
        let ending = Ending { atime: time, mtime: time, mode: None, inherited_xattr: None, explicit: false };
        self.dirs.endings.insert(path.to_vec(), ending);
        Ok(())
    }
}
