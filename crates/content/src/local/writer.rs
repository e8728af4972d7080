//! Writing a blob into an ingest directory and committing it.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use orlop_oci::{Algorithm, Digest, Digester};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::files::{self, IoContext as _};
use super::ingest::IngestDir;
use super::{LocalReader, Paths, ingest, links};
use crate::memory::verify;
use crate::{BlobReader, Error, IngestOptions, Result, Shared, Status, Taking, Writer};

/// A writer whose calls run on the blocking pool, one after the other.
///
/// A caller may drop the future of a call that is running. The call goes on; the next one waits for it, so that bytes
/// never change places.
pub(super) struct LocalWriter {
    /// `None` only once the writer is dropped: a call that had not begun by then does nothing.
    ingest: Arc<Mutex<Option<Ingest>>>,
    running: Option<JoinHandle<()>>,
}

impl LocalWriter {
    pub(super) fn open(paths: Arc<Paths>, options: IngestOptions) -> Result<Self> {
        Ok(Self { ingest: Arc::new(Mutex::new(Some(Ingest::open(paths, options)?))), running: None })
    }

    async fn call<T, F>(&mut self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Ingest) -> Result<T> + Send + 'static,
    {
        self.finish().await;
        let ingest = self.ingest.clone();
        let work = move || lock(&ingest).as_mut().map_or(Err(Error::Stopped), work);
        let Ok(handle) = Handle::try_current() else {
            return work();
        };
        let (done, result) = oneshot::channel();
        self.running = Some(handle.spawn_blocking(move || {
            let _ = done.send(work());
        }));
        self.finish().await;
        result.await.unwrap_or(Err(Error::Stopped))
    }

    /// Waits for the call that is running.
    async fn finish(&mut self) {
        let Some(running) = &mut self.running else { return };
        let ended = running.await;
        self.running = None;
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }

    fn with<T>(&self, look: impl FnOnce(&Ingest) -> T) -> T {
        // Nobody but `drop` takes the ingest away.
        look(lock(&self.ingest).as_ref().expect("a writer has an ingest"))
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        // A call that is running ends first and frees the ref then; waiting for it could stop a worker for long.
        if let Ok(mut ingest) = self.ingest.try_lock() {
            *ingest = None;
        }
    }
}

fn lock(ingest: &Mutex<Option<Ingest>>) -> MutexGuard<'_, Option<Ingest>> {
    // Nothing in here panics between two changes that belong together.
    ingest.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Writer for LocalWriter {
    fn status(&self) -> Status {
        self.with(|ingest| ingest.status.clone())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.call(move |ingest| ingest.write(&bytes)).await
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.call(move |ingest| ingest.truncate(size)).await
    }

    async fn commit(&mut self, size: u64, expected: Option<&Digest>) -> Result<Digest> {
        let expected = expected.cloned();
        self.call(move |ingest| ingest.commit(size, expected)).await
    }

    fn digest(&self) -> Digest {
        self.with(|ingest| ingest.digester.clone().finish())
    }

    fn written(&self) -> Option<Arc<dyn BlobReader>> {
        self.with(Ingest::reader)
    }

    fn taking(&mut self) -> Option<&mut dyn Taking> {
        Some(self)
    }
}

#[async_trait]
impl Taking for LocalWriter {
    async fn take(&mut self, file: File) -> Result<Shared> {
        self.call(move |ingest| ingest.take(file)).await
    }
}

/// A write in progress that this process has locked.
struct Ingest {
    paths: Arc<Paths>,
    directory: IngestDir,
    data: File,
    /// A file elsewhere whose bytes are taken over, instead of `data`.
    taken: Option<File>,
    algorithm: Algorithm,
    digester: Digester,
    status: Status,
    /// What this writer expects; what an earlier one did is told by the status and binds nobody.
    expected: Option<Digest>,
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.check_alive().is_ok() {
            self.directory.note_update(&self.data, self.status.updated_at);
        }
    }
}

impl Ingest {
    fn open(paths: Arc<Paths>, options: IngestOptions) -> Result<Self> {
        if options.reference.is_empty() {
            return Err(Error::Invalid("an ingest needs a ref that is not empty"));
        }
        if let Some(expected) = &options.expected
            && exists(&paths, expected)?
        {
            free(&paths, &options.reference)?;
            return Err(already_exists(&paths, expected.clone()));
        }
        let (directory, data, status) = IngestDir::open(&paths.ingest, &options)?;
        // Who had the ref before may have made the blob visible since it was looked for, and its directory is gone: this is a
        // new one, and nobody would remove it.
        if let Some(expected) = &options.expected
            && exists(&paths, expected)?
        {
            directory.remove();
            return Err(already_exists(&paths, expected.clone()));
        }
        let algorithm = status.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let (digester, expected) = (Digester::new(algorithm), options.expected);
        let mut ingest = Self { paths, directory, data, taken: None, algorithm, digester, status, expected };
        ingest.digester = ingest.hash(algorithm)?;
        Ok(ingest)
    }

    /// Hashes what there is up to the current offset.
    fn hash(&self, algorithm: Algorithm) -> Result<Digester> {
        let (size, file) = (self.status.offset, self.taken.as_ref().unwrap_or(&self.data));
        let (digester, found) = files::hash(file, algorithm, size).context("read", self.directory.path())?;
        if found == size { Ok(digester) } else { Err(Error::Shrunk { size }) }
    }

    /// An aborted or committed ingest has no `data` any more.
    fn check_alive(&self) -> Result<()> {
        let stat = rustix::fs::fstat(&self.data).context("stat", self.directory.path())?;
        let named = rustix::fs::statat(self.directory.fd(), "data", rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        match named {
            Ok(named) if (named.st_dev, named.st_ino) == (stat.st_dev, stat.st_ino) => Ok(()),
            Ok(_) | Err(rustix::io::Errno::NOENT) => Err(Error::no_ingest(&self.status.reference)),
            Err(error) => Err(error).context("stat", &self.directory.path().join("data")),
        }
    }

    fn take(&mut self, file: File) -> Result<Shared> {
        self.truncate(0)?;
        let path = self.directory.path().join("data");
        let stat = rustix::fs::fstat(&file).context("stat what is taken over as", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Invalid("only the bytes of a regular file can be taken over"));
        }
        let cloned = links::clone(&file, &self.data).context("share extents as", &path)?;
        self.taken = (!cloned).then_some(file);
        self.status.offset = stat.st_size.unsigned_abs();
        self.status.updated_at = Timestamp::now();
        match self.hash(self.algorithm) {
            Ok(digester) => self.digester = digester,
            Err(error) => {
                self.truncate(0)?;
                return Err(error);
            }
        }
        Ok(Shared { size: self.status.offset, cloned })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_alive()?;
        if self.taken.is_some() {
            return Err(Error::Invalid("nothing can be added to the bytes of another file"));
        }
        if let Err(error) = files::write_at(&self.data, self.status.offset, bytes) {
            // What was written of this piece was not hashed.
            let _ = rustix::fs::ftruncate(&self.data, self.status.offset);
            return Err(error).context("write", &self.directory.path().join("data"));
        }
        self.digester.update(bytes);
        self.status.offset += bytes.len() as u64;
        self.status.updated_at = Timestamp::now();
        Ok(())
    }

    /// Reads `data`, whatever its name becomes. Bytes that are taken over are in another file.
    fn reader(&self) -> Option<Arc<dyn BlobReader>> {
        if self.taken.is_some() {
            return None;
        }
        let (file, path) = (Arc::new(self.data.try_clone().ok()?), self.directory.path().join("data"));
        let size = if self.status.total == 0 { u64::MAX } else { self.status.total };
        Some(Arc::new(LocalReader { file, size, path }))
    }

    fn truncate(&mut self, size: u64) -> Result<()> {
        self.check_alive()?;
        if size > self.status.offset {
            return Err(Error::Invalid("an ingest cannot be truncated to more than it has"));
        }
        if size == self.status.offset {
            return Ok(());
        }
        if size > 0 && self.taken.is_some() {
            return Err(Error::Invalid("the bytes of another file are taken over whole or not at all"));
        }
        self.taken = None;
        rustix::fs::ftruncate(&self.data, size).context("truncate", self.directory.path())?;
        self.status.offset = size;
        self.status.updated_at = Timestamp::now();
        self.digester = self.hash(self.algorithm)?;
        Ok(())
    }

    fn commit(&mut self, size: u64, expected: Option<Digest>) -> Result<Digest> {
        self.check_alive()?;
        let expected = expected.or_else(|| self.expected.clone());
        let algorithm = expected.as_ref().map_or(self.algorithm, Digest::algorithm);
        let digester = if algorithm == self.algorithm { self.digester.clone() } else { self.hash(algorithm)? };
        let actual = digester.finish();
        verify(&self.status, if size == 0 { self.status.total } else { size }, expected.as_ref(), &actual)?;
        if exists(&self.paths, &actual)? {
            self.directory.remove();
            return Err(already_exists(&self.paths, actual));
        }
        self.make_durable()?;
        self.publish(actual)
    }

    /// Bytes and mode reach the disk before the name does.
    fn make_durable(&self) -> Result<()> {
        let path = self.directory.path().join("data");
        if let Some(taken) = &self.taken {
            return rustix::fs::fsync(taken).context("fsync what is taken over as", &path);
        }
        // A write that failed may have left bytes behind the last one that was hashed.
        rustix::fs::ftruncate(&self.data, self.status.offset).context("truncate", &path)?;
        rustix::fs::fchmod(&self.data, Mode::from_raw_mode(0o444)).context("chmod", &path)?;
        if let Err(error) = rustix::fs::fsync(&self.data) {
            // The kernel may have dropped the pages it could not write: a second fsync would succeed on bytes that
            // are not on the disk. They have to come again.
            let _ = rustix::fs::ftruncate(&self.data, 0);
            let _ = rustix::fs::unlinkat(self.directory.fd(), "data", rustix::fs::AtFlags::empty());
            return Err(error).context("fsync", &path);
        }
        Ok(())
    }

    fn publish(&self, digest: Digest) -> Result<Digest> {
        let (parent, blob) = (self.paths.algorithm(digest.algorithm()), self.paths.blob(&digest));
        files::make_directories(&parent)?;
        let named = match &self.taken {
            Some(taken) => links::link(taken, &blob),
            None => self.rename_to(&blob),
        };
        match named {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                self.directory.remove();
                return Err(already_exists(&self.paths, digest));
            }
            Err(Errno::NOENT) if self.taken.is_none() => return Err(Error::no_ingest(&self.status.reference)),
            Err(error) if self.taken.is_some() => return Err(error).context("link to", &blob),
            Err(error) => return Err(error).context("rename to", &blob),
        }
        files::sync_directory(&parent)?;
        self.directory.remove();
        Ok(digest)
    }

    fn rename_to(&self, blob: &Path) -> Result<(), Errno> {
        let directory = self.directory.fd();
        match rustix::fs::renameat_with(directory, "data", CWD, blob, RenameFlags::NOREPLACE) {
            // Not every file system can refuse to replace. The bytes are the same either way.
            Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::renameat(directory, "data", CWD, blob),
            renamed => renamed,
        }
    }
}

fn exists(paths: &Paths, digest: &Digest) -> Result<bool> {
    let path = paths.blob(digest);
    match rustix::fs::stat(&path) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error).context("stat", &path),
    }
}

/// Says that a blob exists; whoever is told so relies on it after a power cut as if the commit had been its own, and the
/// writer that renamed it may not have come to its own fsync yet.
fn already_exists(paths: &Paths, digest: Digest) -> Error {
    match files::sync_directory(&paths.algorithm(digest.algorithm())) {
        Ok(()) => Error::AlreadyExists(digest),
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::ReadOnlyFilesystem) => Error::AlreadyExists(digest),
        Err(error) => error,
    }
}

/// Drops what is there of an ingest that nobody needs, unless somebody writes it.
fn free(paths: &Paths, reference: &str) -> Result<()> {
    match IngestDir::lock(ingest::path_of(&paths.ingest, reference), reference) {
        Ok(Some(directory)) => directory.remove(),
        Ok(None) | Err(Error::Locked(_)) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
