//! Where a client may have something made: below given directories alone, and no symbolic link is followed on the way.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path};

use rustix::fs::OFlags;

use super::{bad, not_here};
use crate::error::At as _;
use crate::{Result, fs};

/// A name in a directory that is open.
pub(super) struct Place<'a> {
    pub(super) parent: OwnedFd,
    pub(super) name: &'a OsStr,
}

/// Where `path` is, which has not to be there itself; `None` if it is one of `roots`.
pub(super) fn place<'a>(what: &str, path: &'a Path, roots: &[&Path]) -> Result<Option<Place<'a>>> {
    let below = roots.iter().find_map(|root| Some((*root, path.strip_prefix(root).ok()?)));
    let Some((root, below)) = below else {
        let allowed: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
        return Err(not_here(format!("{what} {}: made below {} alone", path.display(), allowed.join(" and "))));
    };
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(bad(format!("{what} {}: it leads out of {}", path.display(), root.display())));
    }
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Ok(None) };
    let root = fs::open_dir(root).at("open", root)?;
    let parent = fs::open_beneath(root.as_fd(), parent.as_os_str().as_bytes(), OFlags::DIRECTORY | OFlags::RDONLY)
        .at("open what is above", path)?;
    Ok(Some(Place { parent, name }))
}
