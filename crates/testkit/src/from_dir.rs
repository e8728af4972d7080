//! Tar entries of a directory that is really there.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::fingerprint::xattrs;
use crate::tar::{Entry, Kind};

/// The entries of a directory, sorted by path, the directory itself left out; sockets are left out too. Files that are
/// one inode become hard links of the first.
///
/// # Errors
/// What the file system says.
pub fn entries(root: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    visit(root, Path::new(""), &mut BTreeMap::new(), &mut found)?;
    Ok(found)
}

type Inodes = BTreeMap<(u64, u64), PathBuf>;

fn visit(root: &Path, relative: &Path, inodes: &mut Inodes, found: &mut Vec<Entry>) -> io::Result<()> {
    let mut names: Vec<_> =
        std::fs::read_dir(root.join(relative))?.map(|e| e.map(|e| e.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let relative = relative.join(name);
        let path = root.join(&relative);
        let metadata = path.symlink_metadata()?;
        let first = inodes.get(&(metadata.dev(), metadata.ino()));
        let Some(kind) = kind(&path, &metadata, first)? else { continue };
        if !metadata.is_dir() && metadata.nlink() > 1 {
            inodes.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.clone());
        }
        let mut entry = Entry::new(relative.as_os_str().as_bytes(), kind)
            .mode(metadata.mode() & 0o7777)
            .owner(metadata.uid().into(), metadata.gid().into())
            .mtime(metadata.mtime(), metadata.mtime_nsec() as u32);
        entry.xattrs = xattrs(&path)?.into_iter().collect();
        found.push(entry);
        if metadata.is_dir() {
            visit(root, &relative, inodes, found)?;
        }
    }
    Ok(())
}

fn kind(path: &Path, metadata: &std::fs::Metadata, first: Option<&PathBuf>) -> io::Result<Option<Kind>> {
    if let Some(first) = first {
        return Ok(Some(Kind::Hardlink(first.as_os_str().as_bytes().to_vec())));
    }
    let device = (major(metadata.rdev()), minor(metadata.rdev()));
    Ok(Some(match metadata.file_type() {
        kind if kind.is_dir() => Kind::Dir,
        kind if kind.is_file() => Kind::File(std::fs::read(path)?),
        kind if kind.is_symlink() => Kind::Symlink(std::fs::read_link(path)?.as_os_str().as_bytes().to_vec()),
        kind if kind.is_char_device() => Kind::Char(device.0, device.1),
        kind if kind.is_block_device() => Kind::Block(device.0, device.1),
        kind if kind.is_fifo() => Kind::Fifo,
        _ => return Ok(None),
    }))
}
