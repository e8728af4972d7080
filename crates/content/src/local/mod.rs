//! The content store on local files: blobs in containerd's layout.
//!
//! ```text
//! DIR/
//!   blobs/<algorithm>/<hex>          immutable, mode 0444
//!   ingest/<sha256 of ref>/          one write in progress; its directory is locked (flock) while a writer is open
//!     data                           the bytes so far; its time is that of the last write
//!     meta                           JSON: ref, startedAt, and if known total and expected
//!     ref, startedat, updatedat,     instead of `meta`, where containerd began: text, times in RFC 3339
//!     total
//!   ingest/.aborted-<…>/             an aborted write whose files are being removed
//! ```
//!
//! # Invariants
//! - A file comes into `blobs/` only by a rename of `data`, addressed through the open directory of the ingest whose lock
//!   the writer holds: neither an abort nor a later ingest of the same ref can slip other bytes under the name. Or, of bytes
//!   that are taken over, by a link of the very file that was hashed, by its descriptor, under the same lock.
//! - A file that has a name elsewhere is never `data`: whoever opens a write may cut it short.
//! - The directory, not its name, is the ingest: a writer whose directory was renamed away by an abort finds `data`
//!   gone and fails, while a new writer already works in a new directory of the same name.
//! - Opening a store reads nothing but the directory itself.
//!
//! # Concurrency
//! File system calls run on the blocking pool of the runtime that polls them, or in place where there is no runtime.
//! Any number of processes may use one directory.

mod files;
mod ingest;
mod links;
mod piece;
mod quarantine;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use orlop_oci::{Algorithm, Digest};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use crate::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Linking, Manager, Provider, Quarantine, Result,
    Status, Trash, Writer,
};
use files::IoContext as _;

/// A content store on local files; clones share nothing but the path.
#[derive(Debug, Clone)]
pub struct LocalStore {
    paths: Arc<Paths>,
}

#[derive(Debug)]
struct Paths {
    root: PathBuf,
    blobs: PathBuf,
    ingest: PathBuf,
}

impl Paths {
    fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs.join(algorithm.as_str())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        in_tree(&self.blobs, digest)
    }
}

fn in_tree(blobs: &Path, digest: &Digest) -> PathBuf {
    blobs.join(digest.algorithm().as_str()).join(digest.hex())
}

/// Where a bin keeps a blob.
fn in_bin(bin: &Path, digest: &Digest) -> PathBuf {
    in_tree(&bin.join("blobs"), digest)
}

impl LocalStore {
    /// Opens or creates a store in `directory`. What is in it is neither listed nor read.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory is neither there nor can be made. A store that can only be read opens too.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self> {
        let root = directory.into();
        files::make_directory(&root).context("create directory", &root)?;
        let (blobs, ingest) = (root.join("blobs"), root.join("ingest"));
        Ok(Self { paths: Arc::new(Paths { root, blobs, ingest }) })
    }

    /// The directory the store is in.
    pub fn directory(&self) -> &Path {
        &self.paths.root
    }
}

/// Runs `work` where it may block.
async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let Ok(handle) = tokio::runtime::Handle::try_current() else {
        return work();
    };
    match handle.spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::Stopped),
        },
    }
}

struct LocalReader {
    file: Arc<std::fs::File>,
    size: u64,
    path: PathBuf,
}

#[async_trait]
impl BlobReader for LocalReader {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let left = self.size.saturating_sub(offset);
        let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        if length == 0 {
            return Ok(Bytes::new());
        }
        // A change of threads costs as much as a copy from the page cache.
        if let Some(bytes) = files::read_cached(&self.file, offset, length) {
            return Ok(bytes);
        }
        let file = self.file.clone();
        let read = run(move || Ok(files::read_at(&file, offset, length))).await?;
        read.context("read", &self.path)
    }
}

#[async_trait]
impl Provider for LocalStore {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        let (paths, digest) = (self.paths.clone(), digest.clone());
        run(move || {
            let (file, info) = opened(&paths, digest)?;
            let path = paths.blob(&info.digest);
            let reader: Arc<dyn BlobReader> = Arc::new(LocalReader { file: Arc::new(file), size: info.size, path });
            Ok(reader)
        })
        .await
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        let (paths, digest) = (self.paths.clone(), digest.clone());
        run(move || match rustix::fs::statat(CWD, paths.blob(&digest), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => info(digest, &stat),
            Err(Errno::NOENT) => Err(Error::no_blob(&digest)),
            Err(error) => Err(error).context("stat", &paths.blob(&digest)),
        })
        .await
    }
}

/// Opens a blob's file for reading.
fn opened(paths: &Paths, digest: Digest) -> Result<(std::fs::File, Info)> {
    let path = paths.blob(&digest);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP) => return Err(Error::no_blob(&digest)),
        Err(error) => return Err(error).context("open", &path),
    };
    let stat = rustix::fs::fstat(&file).context("stat", &path)?;
    Ok((file.into(), info(digest, &stat)?))
}

fn info(digest: Digest, stat: &Stat) -> Result<Info> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::no_blob(&digest));
    }
    let modified = files::modified(stat);
    Ok(Info { digest, size: stat.st_size.unsigned_abs(), created_at: modified, updated_at: modified })
}

#[async_trait]
impl Ingester for LocalStore {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        let paths = self.paths.clone();
        run(move || {
            let writer: Box<dyn Writer> = Box::new(writer::LocalWriter::open(paths, options)?);
            Ok(writer)
        })
        .await
    }
}

#[async_trait]
impl IngestManager for LocalStore {
    async fn status(&self, reference: &str) -> Result<Status> {
        let (paths, reference) = (self.paths.clone(), reference.to_owned());
        run(move || ingest::status(&paths.ingest, &reference)).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        let paths = self.paths.clone();
        run(move || ingest::statuses(&paths.ingest)).await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let (paths, reference) = (self.paths.clone(), reference.to_owned());
        run(move || ingest::abort(&paths.ingest, &reference)).await
    }

    /// Aborted writes, and writes without a readable ref.
    async fn remove_debris(&self, limit: Timestamp) -> Result<usize> {
        let paths = self.paths.clone();
        run(move || ingest::remove_debris(&paths.ingest, limit)).await
    }
}

#[async_trait]
impl Manager for LocalStore {
    async fn list(&self) -> Result<Vec<Info>> {
        let paths = self.paths.clone();
        run(move || {
            let mut found = Vec::new();
            for algorithm in [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512] {
                list(&paths, algorithm, &mut found)?;
            }
            Ok(found)
        })
        .await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let (paths, digest) = (self.paths.clone(), digest.clone());
        run(move || match rustix::fs::unlink(paths.blob(&digest)) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(Error::no_blob(&digest)),
            Err(error) => Err(error).context("delete", &paths.blob(&digest)),
        })
        .await
    }

    fn trash(&self) -> Option<&dyn Trash> {
        Some(self)
    }

    fn quarantine(&self) -> Option<&dyn Quarantine> {
        Some(self)
    }

    fn linking(&self) -> Option<&dyn Linking> {
        Some(self)
    }
}

/// Blobs of one algorithm; what has no digest for a name, or is deleted meanwhile, is passed over.
fn list(paths: &Paths, algorithm: Algorithm, found: &mut Vec<Info>) -> Result<()> {
    let directory = paths.algorithm(algorithm);
    for name in files::names(&directory)? {
        let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse::<Digest>() else { continue };
        match rustix::fs::statat(CWD, directory.join(&name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => found.extend(info(digest, &stat).ok()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).context("stat", &directory.join(&name)),
        }
    }
    Ok(())
}

#[async_trait]
impl Trash for LocalStore {
    async fn discard(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        let (paths, digest, bin) = (self.paths.clone(), digest.clone(), bin.to_owned());
        run(move || {
            let (from, to) = (paths.blob(&digest), in_bin(&bin, &digest));
            files::make_directories(to.parent().unwrap_or(&bin))?;
            match rustix::fs::rename(&from, &to) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error).context("move to the trash", &from),
            }
            match rustix::fs::stat(&to) {
                Ok(stat) => Ok(stat.st_size.unsigned_abs()),
                Err(Errno::NOENT) => Err(Error::no_blob(&digest)),
                Err(error) => Err(error).context("stat", &to),
            }
        })
        .await
    }

    async fn restore(&self, digest: &Digest, bin: &Path) -> Result<u64> {
        let (paths, digest, bin) = (self.paths.clone(), digest.clone(), bin.to_owned());
        run(move || {
            let (from, to) = (in_bin(&bin, &digest), paths.blob(&digest));
            let directory = paths.algorithm(digest.algorithm());
            files::make_directories(&directory)?;
            match rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => files::sync_directory(&directory)?,
                Err(Errno::EXIST) => rustix::fs::unlink(&from).context("delete", &from)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error).context("restore from the trash", &from),
            }
            match rustix::fs::stat(&to) {
                Ok(stat) => Ok(stat.st_size.unsigned_abs()),
                Err(Errno::NOENT) => Err(Error::no_blob(&digest)),
                Err(error) => Err(error).context("stat", &to),
            }
        })
        .await
    }
}
