//! Files and databases of a root, opened to look at them only.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use orlop_bolt::{Db, Source};
use rustix::fs::{Mode, OFlags, open};

/// The directory of `meta.db`.
pub(super) const METADATA: &str = "io.containerd.metadata.v1.bolt";
/// The directory of blobs and writes in progress.
pub(super) const CONTENT: &str = "io.containerd.content.v1.content";
/// How the directories of snapshotters begin.
pub(super) const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.";

/// Where roots are in directories that are taken for one: of MicroK8s, k3s and rke2, Docker.
pub(super) const NESTED: [&str; 5] =
    ["var/lib/containerd", "agent/containerd", "containerd/daemon", "containerd", "root"];

/// A database of at most this size is copied into memory first: a copy is of one moment in the least time. That of a node
/// with a few hundred images has less. With ten thousand images it has more than half a gigabyte, which would be too much
/// memory: such a one is read page by page.
const COPIED: u64 = 64 << 20;
/// How often it is tried to find a moment without a commit: a copy takes milliseconds, a commit waits for the disk twice.
const COPIES: u32 = 100;
/// How often for a database that is read page by page, which takes a second: beside one that is written to all the time
/// nothing helps but to ask its owner.
const WALKS: u32 = 5;

/// Whether a directory of that name is only in a containerd's root.
pub(super) fn is_part_of_root(name: &OsString) -> bool {
    name.to_str().is_some_and(|name| name == METADATA || name == CONTENT || name.starts_with(SNAPSHOTTER))
}

/// What is in a directory.
pub(super) fn names(path: &Path) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

/// Opens a regular file, and leaves its access time alone if it belongs to this user or this is root.
pub(super) fn regular(path: &Path) -> io::Result<File> {
    // Something else than a file must not make this wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => open(path, flags, Mode::empty()),
        other => other,
    };
    let file = File::from(file?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// A small file as a text without white space around it.
pub(super) fn text(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(regular(path)?, limit), &mut text)?;
    Ok(text.trim().to_owned())
}

struct OnDisk(File);

impl Source for OnDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// Reads a database as it is at one moment.
///
/// # Errors
/// In words, with the path: not a file, not a database, both of its meta pages damaged, never at rest.
pub(super) fn database<T>(path: &Path, read: impl Fn(&Db<'_>) -> T) -> Result<T, String> {
    at_one_moment(path, COPIED, read)
}

fn at_one_moment<T>(path: &Path, copied: u64, read: impl Fn(&Db<'_>) -> T) -> Result<T, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let source = OnDisk(regular(path).map_err(|e| told(&e))?);
    match orlop_bolt::copy(&source, copied, COPIES) {
        Ok(copy) => return Ok(read(&Db::open(&copy).map_err(|e| told(&e))?)),
        Err(orlop_bolt::Error::TooLarge { .. }) => {}
        Err(error) => return Err(told(&error)),
    }
    for _ in 0..WALKS {
        let db = Db::open(&source).map_err(|e| told(&e))?;
        let found = read(&db);
        if db.is_current().map_err(|e| told(&e))? {
            return Ok(found);
        }
    }
    Err(told(&orlop_bolt::Error::Changing { attempts: WALKS }))
}

/// Of which transaction a database is now.
pub(super) fn version(path: &Path) -> Option<u64> {
    let source = OnDisk(regular(path).ok()?);
    Db::open(&source).ok().map(|db| db.meta().txid)
}

/// Whether somebody holds a lock on a file, as a containerd on its databases, as far as the kernel tells this process:
/// another container's locks may be hidden from it.
pub(super) fn is_locked(path: &Path) -> bool {
    let inode = path.metadata().map(|metadata| metadata.ino().to_string());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; devices are not compared, some file systems have several.
    let of = |line: &str| line.split_whitespace().nth(5).and_then(|at| at.rsplit(':').next()).map(str::to_owned);
    inode.is_ok_and(|inode| locks.lines().any(|line| of(line).is_some_and(|of| of == inode)))
}

#[cfg(test)]
mod tests {
    use super::{at_one_moment, is_locked, regular};

    const SMALL: &[u8] = include_bytes!("../../../bolt/tests/data/small.db");

    #[test]
    fn a_database_too_large_to_copy_is_read_page_by_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small.db");
        std::fs::write(&path, SMALL).unwrap();
        let count =
            |db: &orlop_bolt::Db<'_>| db.root().bucket(b"top").unwrap().unwrap().iter().map(Result::unwrap).count();
        let copied = at_one_moment(&path, u64::MAX, count).unwrap();
        assert_eq!(at_one_moment(&path, 100, count).unwrap(), copied);
        assert!(copied > 60);
    }

    #[test]
    fn a_lock_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        assert!(is_locked(file.path()));
        assert!(!is_locked(&file.path().with_extension("of nobody")));
    }

    #[test]
    fn what_is_no_file_is_said_and_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        assert!(regular(dir.path()).unwrap_err().to_string().contains("not a regular file"));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert!(regular(&fifo).unwrap_err().to_string().contains("not a regular file"));
    }
}
