//! File system calls whose errors name the path and the operation.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use orlop_oci::{Algorithm, Digester};
use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};

use super::piece::Piece;
use crate::{Error, Result};

/// How much is read at once when bytes are hashed again.
const PIECE: usize = 1 << 20;

/// Adds path and operation to what the operating system said.
pub(super) trait IoContext<T> {
    fn context(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn context(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::Io { operation, path: path.to_owned(), source: error.into() })
    }
}

/// Reads up to `length` bytes; fewer only at the end of the file.
pub(super) fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let (mut piece, mut filled) = (Piece::new(length), 0);
    while filled < length {
        match rustix::io::pread(file, &mut piece.room()[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(piece.into_bytes(filled))
}

/// Reads `length` bytes if all of them are in memory, and waits for nothing; not all file systems can say.
pub(super) fn read_cached(file: &File, offset: u64, length: usize) -> Option<Bytes> {
    let mut piece = Piece::new(length);
    let room = &mut [IoSliceMut::new(piece.room())];
    let count = rustix::io::preadv2(file, room, offset, ReadWriteFlags::NOWAIT).ok()?;
    (count == length).then(|| piece.into_bytes(count))
}

/// Hashes the first `size` bytes of a file; says how many there were.
pub(super) fn hash(file: &File, algorithm: Algorithm, size: u64) -> io::Result<(Digester, u64)> {
    let (mut digester, mut offset) = (Digester::new(algorithm), 0);
    while offset < size {
        let length = PIECE.min(usize::try_from(size - offset).unwrap_or(PIECE));
        let piece = read_at(file, offset, length)?;
        if piece.is_empty() {
            break;
        }
        digester.update(&piece);
        offset += piece.len() as u64;
    }
    Ok((digester, offset))
}

/// Writes all of `bytes`.
pub(super) fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Replaces the text of a small file in an open directory.
pub(super) fn write_text(directory: impl AsFd, name: &str, text: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?);
    write_at(&file, 0, text.as_bytes())
}

/// Reads a small text file in an open directory; `None` if it is missing, too long, or no text.
pub(super) fn read_text(directory: impl AsFd, name: &str) -> Option<String> {
    const LIMIT: usize = 64 << 10;
    // Without NONBLOCK a fifo lying there would make the open wait for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let bytes = read_at(&file, 0, LIMIT + 1).ok().filter(|bytes| bytes.len() <= LIMIT)?;
    String::from_utf8(bytes.into()).ok()
}

/// The names in a directory that are text; none if there is no such directory.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("list", directory),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context("list", directory)?.file_name().into_string().ok());
    }
    Ok(names)
}

/// Makes a directory and those above it; those it makes survive a power cut.
pub(super) fn make_directories(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let parent = path.parent().ok_or(Errno::NOENT).context("create directory", path)?;
            make_directories(parent)?;
            make_directories(path)
        }
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
        Err(error) => Err(error).context("create directory", path),
    }
}

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_directory(path: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty()).context("open", path)?;
    rustix::fs::fsync(directory).context("fsync", path)
}

/// When a file was last written to.
pub(super) fn modified(stat: &Stat) -> Timestamp {
    #[allow(clippy::unnecessary_cast, reason = "the field's type differs from one architecture to the next")]
    Timestamp::new(stat.st_mtime as i64, stat.st_mtime_nsec as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Makes a directory, and those above it, unless it is there. If that cannot be looked at, the error says so: the standard library
/// says of such a one that it is there already.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let Err(error) = std::fs::create_dir_all(path) else { return Ok(()) };
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(unseen) if error.kind() == io::ErrorKind::AlreadyExists => Err(unseen),
        _ => Err(error),
    }
}
