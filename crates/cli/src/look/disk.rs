//! What files take on disk: allocated blocks, each inode and each shared extent once.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use orlop_snapshot::extents::{self, Counted};
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// Bytes that a file takes, or a directory with everything below. Sparse files count what is allocated, hard
/// links count once, other file systems mounted below do not count, nor what files share and was counted with another of them.
/// What goes meanwhile counts as gone.
///
/// # Errors
/// If the directory, or one below, cannot be read.
pub(crate) fn allocated(directory: &Path) -> io::Result<u64> {
    let top = std::fs::symlink_metadata(directory)?;
    let (mut bytes, mut seen) = (blocks(&top), HashSet::new());
    let counted = RefCell::new(Counted::default());
    let may_share = top.is_dir() && extents::may_be_shared(File::open(directory)?);
    let mut stack: Vec<_> = top.is_dir().then(|| directory.to_owned()).into_iter().collect();
    while let Some(directory) = stack.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        let opened = may_share.then(|| File::open(&directory)).transpose()?;
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.dev() != top.dev()
                || (metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino()))
            {
                continue;
            }
            bytes += match &opened {
                Some(opened) if metadata.is_file() => of_file(opened, &entry.file_name(), &counted)?,
                _ => blocks(&metadata),
            };
            if metadata.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Bytes of a file that were not counted with another.
fn of_file(directory: &File, name: &OsStr, counted: &RefCell<Counted>) -> io::Result<u64> {
    let name = CString::new(name.as_bytes())?;
    match rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(0),
        stat => Ok(extents::allocated(directory.as_fd(), &name, &stat?, |extent| counted.borrow_mut().count(extent))?),
    }
}

/// Bytes allocated to one file: `st_blocks` counts units of 512.
fn blocks(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks() * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_files_and_hard_links_count_what_is_allocated_once() {
        let dir = tempfile::tempdir().unwrap();
        let empty = allocated(dir.path()).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, vec![1u8; 100_000]).unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        let one = allocated(dir.path()).unwrap() - empty;
        assert!((100_000..=110_000).contains(&one), "{one}");
        std::fs::hard_link(&file, dir.path().join("again")).unwrap();
        std::fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(allocated(dir.path()).unwrap() - empty, one);
        assert_eq!(allocated(&file).unwrap(), one);
        assert!(allocated(&dir.path().join("absent")).is_err());
    }
}
