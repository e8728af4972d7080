//! Sets damaged blobs aside.
//!
//! # Concurrency
//! What is moved away is what was read: a file that took the place of the damaged one in between is put back, for it came
//! by a writer's rename and was verified.

use std::fs::File;
use std::path::Path;

use async_trait::async_trait;
use orlop_oci::Digest;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::files::{self, IoContext as _};
use super::{LocalStore, Paths, in_bin, run};
use crate::examine::{compare, unreadable};
use crate::{Flaw, Quarantine, Result};

#[async_trait]
impl Quarantine for LocalStore {
    async fn set_aside(&self, digest: &Digest, size: Option<u64>, bin: &Path) -> Result<Option<Flaw>> {
        let (paths, digest, bin) = (self.paths.clone(), digest.clone(), bin.to_owned());
        run(move || set_aside(&paths, &digest, size, &bin)).await
    }
}

/// A file, whatever its names.
type FileId = (u64, u64);

fn id(stat: &Stat) -> FileId {
    (stat.st_dev, stat.st_ino)
}

fn set_aside(paths: &Paths, digest: &Digest, size: Option<u64>, bin: &Path) -> Result<Option<Flaw>> {
    let path = paths.blob(digest);
    let stat = match rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Some(Flaw::Missing)),
        Err(error) => return Err(error).context("stat", &path),
    };
    let Some(flaw) = read(&path, &stat, digest, size)? else { return Ok(None) };
    let to = in_bin(bin, digest);
    files::make_directories(to.parent().unwrap_or(bin))?;
    match rustix::fs::rename(&path, &to) {
        Ok(()) => {}
        // Another one has set it aside.
        Err(Errno::NOENT) => return Ok(Some(flaw)),
        Err(error) => return Err(error).context("move into quarantine", &path),
    }
    let moved = rustix::fs::statat(CWD, &to, AtFlags::SYMLINK_NOFOLLOW).context("stat", &to)?;
    if id(&moved) != id(&stat) {
        put_back(paths, digest, &to)?;
        return Ok(None);
    }
    files::sync_directory(to.parent().unwrap_or(bin))?;
    files::sync_directory(&paths.algorithm(digest.algorithm()))?;
    Ok(Some(flaw))
}

/// A sound blob came in between.
fn put_back(paths: &Paths, digest: &Digest, from: &Path) -> Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, paths.blob(digest), RenameFlags::NOREPLACE) {
        Ok(()) => files::sync_directory(&paths.algorithm(digest.algorithm())),
        // And another one after that.
        Err(Errno::EXIST) => rustix::fs::unlink(from).context("delete", from),
        Err(error) => Err(error).context("put back", from),
    }
}

/// What is wrong with the file of a blob.
fn read(path: &Path, seen: &Stat, digest: &Digest, size: Option<u64>) -> Result<Option<Flaw>> {
    if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile {
        return Ok(Some(Flaw::Missing));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()).context("open", path) {
        Ok(file) => File::from(file),
        Err(error) => return unreadable(error).map(Some),
    };
    let found = seen.st_size.unsigned_abs();
    let size = size.unwrap_or(found);
    if found != size {
        return Ok(Some(Flaw::Size { expected: size, actual: found }));
    }
    match files::hash(&file, digest.algorithm(), size).context("read", path) {
        Ok((digester, found)) if found == size => Ok(compare(digest, digester)),
        Ok((_, found)) => Ok(Some(Flaw::Size { expected: size, actual: found })),
        Err(error) => unreadable(error).map(Some),
    }
}
