//! Directories of writes in progress: opening and locking, status, abort.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orlop_oci::Digest;
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::files::{self, IoContext as _};
use crate::{Error, IngestOptions, Result, Status};

/// How often opening starts again because another process removed the directory meanwhile.
const ATTEMPTS: usize = 64;

const ABORTED: &str = ".aborted-";

/// The file that describes a write.
const META: &str = "meta";

/// What `meta` says, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    #[serde(rename = "ref")]
    reference: String,
    #[serde(rename = "startedAt")]
    started_at: Timestamp,
    #[serde(default, skip_serializing_if = "is_zero")]
    total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expected: Option<Digest>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(total: &u64) -> bool {
    *total == 0
}

impl Meta {
    /// None if it is not there or not whole.
    fn read(directory: &OwnedFd) -> Option<Self> {
        serde_json::from_str(&files::read_text(directory, META)?).ok()
    }
}

/// The directory of one ingest.
pub(super) fn path_of(root: &Path, reference: &str) -> PathBuf {
    root.join(Digest::of(reference.as_bytes()).hex())
}

/// The open, locked directory of an ingest. Dropping it unlocks.
pub(super) struct IngestDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl IngestDir {
    /// Opens or makes, locks and describes the directory of an ingest, and opens `data` in it.
    pub(super) fn open(root: &Path, options: &IngestOptions) -> Result<(Self, File, Status)> {
        let path = path_of(root, &options.reference);
        for _ in 0..ATTEMPTS {
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => {
                    files::make_directories(root)?;
                    continue;
                }
                Err(error) => return Err(error).context("create directory", &path),
            }
            let Some(directory) = Self::lock(path.clone(), &options.reference)? else { continue };
            match directory.begin(options) {
                Ok((data, status)) => return Ok((directory, data, status)),
                // Aborted since it was locked: making files in a directory that was removed says that.
                Err(error) if error.io_kind() == Some(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Locked(options.reference.clone()))
    }

    fn begin(&self, options: &IngestOptions) -> Result<(File, Status)> {
        let data = self.open_data().context("open", &self.path.join("data"))?;
        let mut status = read_status(&self.fd, &self.path, options.reference.clone())?;
        if options.total != 0 {
            if status.is_of_another_total(options.total) && status.offset != 0 {
                // It is to be something else: what is there belongs to no part of it.
                rustix::fs::ftruncate(&data, 0).context("truncate", &self.path.join("data"))?;
                status.offset = 0;
            }
            status.total = options.total;
        }
        status.expected = options.expected.clone().or(status.expected);
        if status.offset == 0 {
            // What is there already was written when it was written: opening it again changes nothing.
            status.updated_at = Timestamp::now();
            status.started_at = status.updated_at;
        }
        self.describe(&status)?;
        Ok((data, status))
    }

    /// Locks a directory; `None` if it is not there or was replaced meanwhile.
    pub(super) fn lock(path: PathBuf, reference: &str) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).context("open", &path),
        };
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Locked(reference.to_owned())),
            Err(error) => return Err(error).context("lock", &path),
        }
        let directory = Self { path, fd };
        let own = rustix::fs::fstat(&directory.fd).context("stat", &directory.path)?;
        match rustix::fs::stat(&directory.path) {
            Ok(named) if (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino) => Ok(Some(directory)),
            Ok(_) | Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).context("stat", &directory.path),
        }
    }

    fn open_data(&self) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat(&self.fd, "data", flags, Mode::from_raw_mode(0o600));
        // A commit that was killed before its rename has made the file read-only already.
        let writable = || rustix::fs::chmodat(&self.fd, "data", Mode::from_raw_mode(0o600), AtFlags::empty());
        match open() {
            Err(Errno::ACCESS) => {
                writable()?;
                open().map(File::from)
            }
            Err(error) => Err(error),
            Ok(fd) => Ok(fd.into()),
        }
    }

    /// The path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory.
    pub(super) const fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Writes `meta`: one file, since file systems make and remove each at a cost that grows with how many went just before.
    fn describe(&self, status: &Status) -> Result<()> {
        let meta = Meta {
            reference: status.reference.clone(),
            started_at: status.started_at,
            total: status.total,
            expected: status.expected.clone(),
        };
        let text = serde_json::to_string(&meta).expect("text, numbers and times");
        files::write_text(&self.fd, META, &text).context("write", &self.path.join(META))
    }

    /// Keeps the time of the last write, which the data's own time tells only to the kernel's tick. One that is lost
    /// costs no more than that.
    pub(super) fn note_update(&self, data: &File, updated_at: Timestamp) {
        let time = Timespec { tv_sec: updated_at.as_second(), tv_nsec: updated_at.subsec_nanosecond().into() };
        let _ = rustix::fs::futimens(data, &Timestamps { last_access: time, last_modification: time });
    }

    /// Removes the files and then the directory. Nothing depends on its success: what stays is an empty ingest.
    pub(super) fn remove(&self) {
        if let Ok(entries) = Dir::read_from(&self.fd) {
            for entry in entries.flatten() {
                let _ = rustix::fs::unlinkat(&self.fd, entry.file_name(), AtFlags::empty());
            }
        }
        let _ = rustix::fs::rmdir(&self.path);
    }
}

impl Drop for IngestDir {
    fn drop(&mut self) {
        // Closing is not enough: a child that is between fork and exec holds the same lock.
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }
}

fn read_status(directory: &OwnedFd, path: &Path, reference: String) -> Result<Status> {
    let of_directory = rustix::fs::fstat(directory).context("stat", path)?;
    let of_data: Option<Stat> = rustix::fs::statat(directory, "data", AtFlags::SYMLINK_NOFOLLOW).ok();
    let touched = files::modified(of_data.as_ref().unwrap_or(&of_directory));
    let offset = of_data.map_or(0, |stat| stat.st_size.unsigned_abs());
    if let Some(meta) = Meta::read(directory) {
        let Meta { started_at, total, expected, .. } = meta;
        // The kernel's tick may be before the moment in which the write began.
        return Ok(Status { reference, offset, total, expected, started_at, updated_at: touched.max(started_at) });
    }
    // Another program's, or the kill of one came first.
    let text = |name: &str| files::read_text(directory, name);
    let time = |name: &str| text(name).and_then(|text| text.trim().parse::<Timestamp>().ok());
    Ok(Status {
        reference,
        offset,
        total: text("total").and_then(|text| text.trim().parse().ok()).unwrap_or(0),
        expected: text("expected").and_then(|text| text.trim().parse().ok()),
        started_at: time("startedat").unwrap_or(touched),
        updated_at: time("updatedat").map_or(touched, |noted| noted.max(touched)),
    })
}

fn open_unlocked(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).context("open", path),
    }
}

/// One write in progress.
pub(super) fn status(root: &Path, reference: &str) -> Result<Status> {
    let path = path_of(root, reference);
    let directory = open_unlocked(&path)?.ok_or_else(|| Error::no_ingest(reference))?;
    read_status(&directory, &path, reference.to_owned())
}

/// All writes in progress; what has no readable ref that belongs there is passed over.
pub(super) fn statuses(root: &Path) -> Result<Vec<Status>> {
    let mut found = Vec::new();
    for name in files::names(root)? {
        let path = root.join(&name);
        let Some(directory) = open_unlocked(&path)? else { continue };
        let Some(reference) = reference_in(&directory, &name) else { continue };
        found.push(read_status(&directory, &path, reference)?);
    }
    Ok(found)
}

/// The ref of the ingest directory `name`, if the file that says it is whole.
fn reference_in(directory: &OwnedFd, name: &str) -> Option<String> {
    let reference = Meta::read(directory).map(|meta| meta.reference).or_else(|| files::read_text(directory, "ref"));
    reference.filter(|reference| Digest::of(reference.as_bytes()).hex() == name)
}

/// Drops a write and its bytes, whoever has it open.
pub(super) fn abort(root: &Path, reference: &str) -> Result<()> {
    let path = path_of(root, reference);
    let aside = root.join(format!("{ABORTED}{:032x}", rand::random::<u128>()));
    match rustix::fs::rename(&path, &aside) {
        Ok(()) => remove_tree(&aside),
        Err(Errno::NOENT) => Err(Error::no_ingest(reference)),
        Err(error) => Err(error).context("abort", &path),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    // `data` goes first, since that is how a writer learns of it.
    match rustix::fs::unlink(path.join("data")) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) if error != Errno::ISDIR => return Err(error).context("delete", &path.join("data")),
        Err(_) => {}
    }
    let removed = match rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if stat.st_mode & 0o170_000 == 0o040_000 => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error.into()),
    };
    match removed {
        // A writer that was just about to fail may have put a file back; the next sweep of debris takes it.
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty) => {
            Ok(())
        }
        removed => removed.context("delete", path),
    }
}

/// Removes what nobody can resume and was last touched before `limit`; returns how many.
pub(super) fn remove_debris(root: &Path, limit: Timestamp) -> Result<usize> {
    let mut removed = 0;
    for name in files::names(root)? {
        let path = root.join(&name);
        let Ok(stat) = rustix::fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let directory = open_unlocked(&path)?;
        let resumable = directory.is_some_and(|directory| reference_in(&directory, &name).is_some());
        if resumable || files::modified(&stat) >= limit {
            continue;
        }
        remove_tree(&path)?;
        removed += 1;
    }
    Ok(removed)
}
