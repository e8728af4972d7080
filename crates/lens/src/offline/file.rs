//! Files and databases of a root, opened to look at them only.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use orlop_bolt::{Db, Meta, Source};
use rustix::fs::{Mode, OFlags, open};

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
/// The same for who can ask its owner at once.
const FEW_WALKS: u32 = 2;

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
pub(super) fn database<T: Send>(path: &Path, read: impl Fn(&Db<'_>) -> T + Sync) -> Result<T, String> {
    at_one_moment(path, COPIED, WALKS, [&read]).map(|[found]| found)
}

/// What reads a part of a database.
pub(super) type Read<'r, T> = &'r (dyn Fn(&Db<'_>) -> T + Sync);

/// The same in parts, all of one moment, each by a thread of its own; sooner given up.
///
/// # Errors
/// As [`database`].
pub(super) fn in_parts<T: Send, const N: usize>(path: &Path, reads: [Read<'_, T>; N]) -> Result<[T; N], String> {
    at_one_moment(path, COPIED, FEW_WALKS, reads)
}

fn at_one_moment<T: Send, const N: usize>(
    path: &Path,
    copied: u64,
    walks: u32,
    reads: [Read<'_, T>; N],
) -> Result<[T; N], String> {
    let told = |error: orlop_bolt::Error| format!("{}: {error}", path.display());
    let source = OnDisk(regular(path).map_err(|e| format!("{}: {e}", path.display()))?);
    let copy = match orlop_bolt::copy(&source, copied, COPIES) {
        Ok(copy) => Some(copy),
        Err(orlop_bolt::Error::TooLarge { .. }) => None,
        Err(error) => return Err(told(error)),
    };
    for _ in 0..walks {
        let found = match &copy {
            Some(copy) => together(copy, reads),
            None => together(&source, reads),
        };
        if let Some(found) = found.map_err(told)? {
            return Ok(found);
        }
    }
    Err(told(orlop_bolt::Error::Changing { attempts: walks }))
}

/// All parts, each with a `Db` of its own; nothing if somebody committed before the last of them was read.
fn together<T: Send, const N: usize>(
    source: &(impl Source + Sync),
    reads: [Read<'_, T>; N],
) -> Result<Option<[T; N]>, orlop_bolt::Error> {
    let db = Db::open(source)?;
    let meta = *db.meta();
    let found = std::thread::scope(|scope| {
        // The last one by this thread.
        let mut parts = reads.into_iter();
        let last = parts.next_back();
        let threads: Vec<_> = parts.map(|read| scope.spawn(move || part(source, meta, read))).collect();
        let last = last.map(|read| part(source, meta, read));
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).chain(last).collect::<Result<Option<Vec<T>>, _>>()
    })?;
    let found = found.and_then(|found| <[T; N]>::try_from(found).ok());
    Ok(if db.is_current()? { found } else { None })
}

fn part<T>(source: &impl Source, meta: Meta, read: Read<'_, T>) -> Result<Option<T>, orlop_bolt::Error> {
    let db = Db::open(source)?;
    Ok((*db.meta() == meta).then(|| read(&db)))
}

/// Of which transaction a database is now.
pub(super) fn version(path: &Path) -> Option<u64> {
    let source = OnDisk(regular(path).ok()?);
    Db::open(&source).ok().map(|db| db.meta().txid)
}

/// Whether somebody holds a lock on a file, as a containerd on its databases, as far as the kernel tells this process:
/// another container's locks may be hidden from it.
pub(super) fn is_locked(path: &Path) -> bool {
    !holders(path).is_empty()
}

/// The processes that hold a lock on a file, likewise; 0 for one that this process may not know.
pub(super) fn holders(path: &Path) -> Vec<u32> {
    let Ok(metadata) = path.metadata() else { return Vec::new() };
    let (inode, locks) = (metadata.ino().to_string(), std::fs::read_to_string("/proc/locks").unwrap_or_default());
    // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`; devices are not compared, some file systems have several.
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(4);
        let (process, at) = (words.next()?, words.next()?);
        (at.rsplit(':').next() == Some(&*inode)).then(|| process.parse().unwrap_or(0))
    };
    locks.lines().filter_map(holder).collect()
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
        let copied = at_one_moment(&path, u64::MAX, 1, [&count]).unwrap();
        assert_eq!(at_one_moment(&path, 100, 1, [&count]).unwrap(), copied);
        assert_eq!(at_one_moment(&path, 100, 1, [&count, &count, &count]).unwrap(), [copied[0]; 3]);
        assert!(copied[0] > 60);
    }

    #[test]
    fn a_lock_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        assert!(is_locked(file.path()));
        assert_eq!(super::holders(file.path()), [std::process::id()]);
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
