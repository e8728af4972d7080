//! The files of an installation: written whole or not at all, with what was there kept beside them, and a journal that says how far
//! it has come.
//!
//! ```text
//! config.toml                what containerd reads
//! config.toml.orlop-old      what it was before; not there if it was not
//! config.toml.orlop-state    the journal: JSON
//! ```
//!
//! # Invariants
//! - The old bytes and the journal are on disk before a file is changed, and go after it is back.
//! - A file is one of two: as before, or as Orlop wrote it; the journal has the digests of both. Anything else somebody edited.
//! - One process at a time works beside a file: it holds the directory locked (flock), which leaves nothing behind.
//! - Paths in the journal are relative to it: a container sees a host's files elsewhere.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use orlop_oci::Digest;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::edit::Change;
use super::wants::Profile;
use crate::error::{Class, CliError, Result};

const SCHEMA: &str = "orlop.install.state/v1";
/// What a journal's name has behind that of its file.
const JOURNAL: &str = ".orlop-state";
/// The same of what was in a file before.
const OLD: &str = ".orlop-old";

/// How far an installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Files may be changed, and nobody has seen containers start yet.
    Installing,
    /// Containers start.
    Installed,
    /// Files are being put back.
    Reverting,
}

/// The journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Journal {
    schema: String,
    pub(super) phase: Phase,
    /// Who wrote it.
    pub(super) orlop: String,
    pub(super) at: String,
    pub(super) product: String,
    pub(super) profile: Profile,
    pub(super) content_store: bool,
    pub(super) owner: String,
    pub(super) raw_socket: PathBuf,
    pub(super) files: Vec<Changed>,
    /// The installation that is being changed; none: there was none.
    pub(super) previous: Option<Box<Previous>>,
}

/// An installation that another is to take the place of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Previous {
    journal: Journal,
    /// What it had in its files, in their order.
    texts: Vec<Option<String>>,
}

/// A file that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Changed {
    /// Relative to the journal's directory.
    path: PathBuf,
    /// The digest of what was there; none: nothing.
    before: Option<Digest>,
    after: Digest,
    /// What was changed in it; none: all of it is Orlop's.
    pub(super) changes: Option<Vec<Change>>,
}

/// How a file is, by its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Now {
    AsBefore,
    AsWritten,
    /// Somebody has edited it, or it is gone.
    Edited(Option<String>),
}

/// The place beside a file, held by this process.
#[derive(Debug)]
pub(super) struct Place {
    file: PathBuf,
    directory: PathBuf,
    locked: PathBuf,
    _lock: Option<File>,
}

impl Place {
    /// Takes the place beside a file, by the lock of the directory that all runs find there. One that is not there is made, unless
    /// nothing is to be changed.
    ///
    /// # Errors
    /// [`Class::Conflict`] if another process works there.
    pub(super) fn take(file: &Path, locked: &Path, only_look: bool) -> Result<Self> {
        if !only_look {
            std::fs::create_dir_all(locked).map_err(CliError::at("create", locked))?;
        }
        let lock = match File::open(locked) {
            Ok(open) => Some(lock(open, locked)?),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(CliError::io("open", Some(locked), error)),
        };
        let directory = file.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { file: file.to_owned(), directory, locked: locked.to_owned(), _lock: lock })
    }

    fn beside(file: &Path, what: &str) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(what);
        name.into()
    }

    fn journal(&self) -> PathBuf {
        Self::beside(&self.file, JOURNAL)
    }

    /// Where what was in a file is kept.
    pub(super) fn old(file: &Path) -> PathBuf {
        Self::beside(file, OLD)
    }

    /// What the journal says.
    ///
    /// # Errors
    /// If it is none of this program's.
    pub(super) fn read(&self) -> Result<Option<Journal>> {
        let path = self.journal();
        let Some(text) = text(&path)? else { return Ok(None) };
        let wrong = |why: String| {
            CliError::new(Class::Conflict, format!("{}: expected a journal of `orlop install`, {why}", path.display()))
                .hint("was it written by a newer orlop? use that one; the configuration that was there is beside it")
        };
        let journal: Journal = serde_json::from_str(&text).map_err(|error| wrong(format!("found: {error}")))?;
        if journal.schema != SCHEMA {
            return Err(wrong(format!("found {}", journal.schema)));
        }
        Ok(Some(journal))
    }

    /// Writes the journal.
    pub(super) fn write(&self, journal: &Journal) -> Result<()> {
        let text = serde_json::to_string_pretty(journal).map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
        replace(&self.journal(), text.as_bytes(), None)
    }

    /// The path of a file of the journal, as this process reaches it.
    pub(super) fn path(&self, changed: &Changed) -> PathBuf {
        let joined = self.directory.join(&changed.path);
        // `a/b/../c` is `a/c`: none of these directories is a link, or the journal would not be here.
        let mut plain = PathBuf::new();
        for part in joined.components() {
            match part {
                std::path::Component::ParentDir => drop(plain.pop()),
                other => plain.push(other),
            }
        }
        plain
    }

    /// How a file is.
    pub(super) fn now(&self, changed: &Changed) -> Result<Now> {
        let found = text(&self.path(changed))?;
        let digest = found.as_ref().map(|text| Digest::of(text.as_bytes()));
        Ok(match digest {
            Some(digest) if digest == changed.after => Now::AsWritten,
            digest if digest == changed.before => Now::AsBefore,
            _ => Now::Edited(found),
        })
    }

    /// What was in a file before.
    ///
    /// # Errors
    /// [`Class::Verification`] if what is kept is not that.
    pub(super) fn before(&self, changed: &Changed) -> Result<Option<String>> {
        let Some(expected) = &changed.before else { return Ok(None) };
        let old = Self::old(&self.path(changed));
        let found = text(&old)?;
        match found {
            Some(text) if Digest::of(text.as_bytes()) == *expected => Ok(Some(text)),
            other => {
                let found = other.map_or("nothing".to_owned(), |text| Digest::of(text.as_bytes()).to_string());
                Err(CliError::new(
                    Class::Verification,
                    format!("{}: expected the old configuration {expected}, found {found}", old.display()),
                )
                .hint("put it there from a backup; or take the changes out by hand"))
            }
        }
    }

    /// Keeps what is in the files that are to be changed, and says so in the journal; then nothing is changed yet.
    pub(super) fn begin(&self, journal: &Journal, edits: &[Edit]) -> Result<()> {
        for edit in edits {
            if let Some(before) = &edit.before {
                replace(&Self::old(&edit.path), before.as_bytes(), Some(&edit.path))?;
            }
        }
        self.write(journal)
    }

    /// What is in the files of an installation now, for the one that takes its place.
    pub(super) fn previous(&self, journal: Journal) -> Result<Box<Previous>> {
        let texts = journal.files.iter().map(|changed| text(&self.path(changed))).collect::<Result<_>>()?;
        Ok(Box::new(Previous { journal: Journal { previous: None, ..journal }, texts }))
    }

    /// Puts every file back as it was before the installation, whatever is in it.
    pub(super) fn restore(&self, journal: &Journal) -> Result<()> {
        for changed in journal.files.iter().rev() {
            let path = self.path(changed);
            put(&path, self.before(changed)?.as_deref())?;
        }
        self.restore_previous(journal)
    }

    /// Puts the files of the installation back that this one was to take the place of, if there was one.
    pub(super) fn restore_previous(&self, journal: &Journal) -> Result<()> {
        let Some(previous) = &journal.previous else { return Ok(()) };
        for (changed, text) in previous.journal.files.iter().zip(&previous.texts) {
            put(&self.path(changed), text.as_deref())?;
        }
        Ok(())
    }

    /// Forgets the installation: the journal and the old files go. Where it was to take the place of another that one is
    /// remembered.
    pub(super) fn forget(&self, journal: &Journal) -> Result<()> {
        if let Some(previous) = &journal.previous {
            return self.write(&previous.journal);
        }
        remove(&self.journal())?;
        for changed in &journal.files {
            remove(&Self::old(&self.path(changed)))?;
        }
        // That of Orlop's own file for k3s may have been made for it; one that others have something in stays.
        if self.directory != self.locked {
            let _ = std::fs::remove_dir(&self.directory);
        }
        Ok(())
    }

    /// What a journal says of an edit.
    pub(super) fn changed(&self, edit: &Edit) -> Changed {
        Changed {
            path: relative(&self.directory, &edit.path),
            before: edit.before.as_ref().map(|text| Digest::of(text.as_bytes())),
            after: Digest::of(edit.after.as_bytes()),
            changes: edit.changes.clone(),
        }
    }
}

/// What is to become of a file.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    pub(super) path: PathBuf,
    /// What is kept as the old configuration.
    pub(super) before: Option<String>,
    /// What is there now.
    pub(super) now: Option<String>,
    pub(super) after: String,
    pub(super) changes: Option<Vec<Change>>,
}

impl Edit {
    /// Whether there is nothing to do.
    pub(super) fn is_done(&self) -> bool {
        self.now.as_ref() == Some(&self.after)
    }
}

impl Journal {
    /// Of an installation that begins.
    pub(super) fn new(
        product: &str,
        profile: Profile,
        content_store: bool,
        owner: String,
        raw_socket: PathBuf,
    ) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            phase: Phase::Installing,
            orlop: env!("CARGO_PKG_VERSION").to_owned(),
            at: jiff::Timestamp::now().to_string(),
            product: product.to_owned(),
            profile,
            content_store,
            owner,
            raw_socket,
            files: Vec::new(),
            previous: None,
        }
    }
}

/// Whether an installation is known beside a file.
pub(super) fn has_journal(file: &Path) -> bool {
    Place::beside(file, JOURNAL).exists()
}

/// A file's text; none if it is not there.
pub(super) fn text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::io("read", Some(path), error)),
    }
}

/// Writes a file in the place of what is there, with the mode and the owner of `like`.
///
/// # Durability
/// The bytes are on disk before they have the name, the name before this returns.
fn replace(path: &Path, bytes: &[u8], like: Option<&Path>) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        std::fs::create_dir_all(directory).map_err(CliError::at("create", directory))?;
    }
    let failed = CliError::at("write", path);
    let write = || {
        let mut file = tempfile::Builder::new().prefix(".orlop-").tempfile_in(directory)?;
        file.write_all(bytes)?;
        let like = like.and_then(|like| std::fs::metadata(like).ok());
        // A journal may have a whole configuration in it, and that credentials.
        let is_journal = path.as_os_str().as_encoded_bytes().ends_with(JOURNAL.as_bytes());
        let new = if is_journal { 0o600 } else { 0o644 };
        let mode = like.as_ref().map_or(new, |like| like.mode() & 0o7777);
        file.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        if let Some(like) = like {
            std::os::unix::fs::fchown(file.as_file(), Some(like.uid()), Some(like.gid()))?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed)
}

/// Has a file be as it is said: with a text, or not there.
pub(super) fn put(path: &Path, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => replace(path, text.as_bytes(), Some(path)),
        None => remove(path),
    }
}

/// Removes a file; one that is not there is.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(CliError::io("remove", Some(path), error)),
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory).and_then(|open| open.sync_all()).map_err(CliError::at("sync", directory))
}

fn lock(open: File, directory: &Path) -> Result<File> {
    match rustix::fs::flock(&open, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(open),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(CliError::new(Class::Conflict, format!("another `orlop install` works in {} now", directory.display()))
                .hint("wait until it has ended"))
        }
        Err(errno) => Err(CliError::io("lock", Some(directory), errno.into())),
    }
}

/// `path` as seen from `directory`: one of them is in the other's parent, at most.
fn relative(directory: &Path, path: &Path) -> PathBuf {
    if let Ok(inside) = path.strip_prefix(directory) {
        return inside.to_owned();
    }
    match directory.parent().and_then(|parent| path.strip_prefix(parent).ok()) {
        Some(beside) => Path::new("..").join(beside),
        None => path.to_owned(),
    }
}
