//! What files take on disk: allocated blocks, each inode once.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that a file takes, or a directory with everything below. Sparse files count what is allocated, hard
/// links count once, other file systems mounted below do not count. What goes meanwhile counts as gone.
///
/// # Errors
/// If the directory, or one below, cannot be read.
pub(crate) fn allocated(directory: &Path) -> io::Result<u64> {
    let top = std::fs::symlink_metadata(directory)?;
    let (mut bytes, mut seen) = (blocks(&top), HashSet::new());
    let mut stack: Vec<_> = top.is_dir().then(|| directory.to_owned()).into_iter().collect();
    while let Some(directory) = stack.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
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
            bytes += blocks(&metadata);
            if metadata.is_dir() {
                stack.push(entry.path());
            }
        }
    }
    Ok(bytes)
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
