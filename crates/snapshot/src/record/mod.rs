//! What a tree was when it was committed, so that it can be told later what the disk, or somebody, has made of it.
//!
//! ```text
//! apply ──▶ applied   what was hashed while it was written: inode, change time, digest; there until the commit
//! commit ─▶ digests   every entry of the tree: kind, mode, owner, and size and digest, target or device; there from then on
//! later ──▶ Comparison: the tree as it is now, entry by entry
//! ```
//!
//! # Invariants
//! - A digest in `digests` is one of bytes that apply had in memory, or of a file that was read at the commit: nobody has changed the
//!   file in between, or its change time, which no call can set, would be another.
//! - `digests` is written before the `syncfs` of the commit and never changed. A tree that no layer was applied to has none, nor has
//!   one that an older program made: of such a tree nothing is claimed.
//! - Comparing changes nothing, access times included where that is allowed.
//!
//! # What is not recorded
//! Times and extended attributes, and the content of sparse files and of files that this process may not read.

mod compare;
mod comparison;
mod format;
mod notes;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;

pub use compare::{Compared, Difference};
pub(crate) use compare::{TreeComparison, is_bad_medium};
pub use comparison::Comparison;
pub(crate) use notes::{Notes, NotesWriter};

use crate::error::At as _;
use crate::fs;
use crate::fs::walk::{Step, Walk};
use crate::layout::Counter;
use crate::{Result, Usage};
use format::{Entry, Kind, RecordWriter};

/// What a file's bytes hash to: their BLAKE3, which costs a fraction of the SHA-256 that layers are named by.
pub(crate) type Hash = [u8; 32];

/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;

/// Writes what a tree is, and counts what it takes on disk.
///
/// # Durability
/// None: the commit syncs.
pub(crate) fn write(tree: &Path, notes: &Notes, to: &Path) -> Result<Usage> {
    let root = fs::open_dir(tree).at("open", tree)?;
    let stat = rustix::fs::fstat(&root).at("stat", tree)?;
    let mut usage = Counter::on(&root);
    let (mut record, owners) = (RecordWriter::create(to)?, sees_owners());
    usage.directory(&stat);
    record.put(Entry::new(Vec::new(), &stat, Kind::Directory, owners)).at("write", to)?;
    let mut walk = Walk::new(root).at("read", tree)?;
    let mut dir = Vec::new();
    while let Some(step) = walk.next().at("read", fs::shown(tree, &dir))? {
        match step {
            Step::Enter { name, stat } => {
                usage.directory(&stat);
                dir = fs::join(&dir, name.as_bytes());
                record.put(Entry::new(dir.clone(), &stat, Kind::Directory, owners)).at("write", to)?;
            }
            Step::Leave { .. } => dir = fs::split(&dir).0.to_vec(),
            Step::Other { name, stat } => {
                let path = fs::join(&dir, name.as_bytes());
                // What apply wrote shares nothing: of that nobody needs to ask the file system.
                match notes.hash(&stat) {
                    Some(_) => usage.own(&stat),
                    None => usage.file(walk.dir(), &name, &stat).at("read", fs::shown(tree, &path))?,
                }
                let kind = kind(walk.dir(), name.as_bytes(), &stat, notes).at("read", fs::shown(tree, &path))?;
                record.put(Entry::new(path, &stat, kind, owners)).at("write", to)?;
            }
        }
    }
    record.end().at("write", to)?;
    Ok(usage.total())
}

/// Whether owners are shown as they are on disk: in another user namespace they are shown as it maps them.
fn sees_owners() -> bool {
    let is_identity = |file: &str| {
        let map = std::fs::read_to_string(file).unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    };
    is_identity("/proc/self/uid_map") && is_identity("/proc/self/gid_map")
}

/// What something that is no directory is.
fn kind(dir: BorrowedFd<'_>, name: &[u8], stat: &Stat, notes: &Notes) -> rustix::io::Result<Kind> {
    Ok(match fs::file_type(stat) {
        FileType::RegularFile => {
            let size = stat.st_size.unsigned_abs();
            let hash = match notes.hash(stat) {
                None if is_sparse(stat) => None,
                None => hashed(dir, name)?,
                known => known,
            };
            Kind::File { size, hash }
        }
        FileType::Symlink => Kind::Symlink(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes()),
        FileType::CharacterDevice => Kind::Character(stat.st_rdev),
        FileType::BlockDevice => Kind::Block(stat.st_rdev),
        FileType::Fifo => Kind::Fifo,
        FileType::Directory => Kind::Directory,
        _ => Kind::Socket,
    })
}

/// Whether a file has holes: reading it may take longer than its bytes on disk would.
fn is_sparse(stat: &Stat) -> bool {
    // Bytes of small files may lie in the inode, which counts no blocks.
    stat.st_size > 4096 && stat.st_blocks.saturating_mul(512) < stat.st_size
}

/// Hashes a file; nothing if this user may not read it.
fn hashed(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<Hash>> {
    let mut file = match open(dir, name) {
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        file => file?,
    };
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; READ_BYTES]);
    loop {
        match read(&mut file, &mut buffer)? {
            0 => return Ok(Some(hasher.finalize().into())),
            count => drop(hasher.update(&buffer[..count])),
        }
    }
}

/// Opens a file for reading, without a trace in its access time where that is allowed, and without waiting for anybody.
fn open(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let opened = match fs::open_beneath(dir.as_fd(), name, flags | OFlags::NOATIME) {
        // Only who owns a file may leave its time alone.
        Err(Errno::PERM) => fs::open_beneath(dir.as_fd(), name, flags),
        opened => opened,
    };
    opened.map(File::from)
}

fn read(file: &mut File, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
}
