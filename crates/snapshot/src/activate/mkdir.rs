//! Directories that a mount needs: options `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`.

use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::roots::{Place, place};
use super::{Wanted, bad, not_here};
use crate::error::At as _;
use crate::{Result, fs};

const OPTION: &str = "X-containerd.mkdir.";

struct Directory<'a> {
    path: &'a Path,
    mode: u32,
    owner: Option<(u32, u32)>,
}

/// Makes the directories, and takes the options away.
pub(super) fn make(mount: &mut Wanted, roots: &[&Path]) -> Result<()> {
    for option in &mount.options {
        if let Some(rest) = option.strip_prefix(OPTION) {
            directory(&parse(rest, option)?, roots)?;
        }
    }
    mount.options.retain(|option| !option.starts_with(OPTION));
    Ok(())
}

fn parse<'a>(rest: &'a str, option: &str) -> Result<Directory<'a>> {
    let wrong = || bad(format!("option {option:?}: expected {OPTION}path=PATH[:MODE[:UID:GID]], the mode in octal"));
    let parts: Vec<&str> = rest.strip_prefix("path=").ok_or_else(wrong)?.splitn(4, ':').collect();
    let mode = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(wrong);
    let id = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let (path, mode, owner) = match parts[..] {
        [path] => (path, 0o700, None),
        [path, bits] => (path, mode(bits)?, None),
        [path, bits, user, group] => (path, mode(bits)?, Some((id(user)?, id(group)?))),
        _ => return Err(wrong()),
    };
    Ok(Directory { path: Path::new(path), mode, owner })
}

fn directory(wanted: &Directory<'_>, roots: &[&Path]) -> Result<()> {
    let Directory { path, mode, owner } = *wanted;
    let Some(Place { parent, name }) = place("directory", path, roots)? else { return Ok(()) };
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return exists(&parent, name, wanted),
        Err(error) => return Err(error).at("make the directory", path),
    }
    let made =
        fs::open_beneath(parent.as_fd(), name.as_bytes(), OFlags::DIRECTORY | OFlags::RDONLY).at("open", path)?;
    // Whatever this process's mask is.
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode)).at("set the mode of", path)?;
    match owner {
        Some((user, group)) => rustix::fs::fchown(&made, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
            .at("set the owner of", path),
        None => Ok(()),
    }
}

/// What is there already must be what is wanted: it may be in use.
fn exists(parent: &std::os::fd::OwnedFd, name: &std::ffi::OsStr, wanted: &Directory<'_>) -> Result<()> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).at("look at", wanted.path)?;
    if fs::file_type(&found) != FileType::Directory {
        return Err(bad(format!("{} is there and is no directory", wanted.path.display())));
    }
    let mode = found.st_mode & 0o777;
    if mode != wanted.mode {
        let reason = format!("directory {} is there with mode {mode:o}, not {:o}", wanted.path.display(), wanted.mode);
        return Err(not_here(reason));
    }
    Ok(())
}
