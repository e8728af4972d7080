//! Files of an archive on their way into the content store.
//!
//! Small ones wait in memory until there are enough of them: their writes begin in one transaction. All become visible together, in as
//! few. What waits is bounded in number and bytes. Until a file is visible the row of its write holds it, under the lease of the import.
//!
//! One thread reads, and does all of this.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_content::{self as content, IngestManager, IngestOptions, Writer};
use orlop_metadata::{Brought, ScopedContent, ScopedWriter};
use orlop_oci::Digest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::files::{File, blob_digest, refused};
use super::tarball::Tarball;
use crate::{BlobEvent, Error, Limit, Result, Stage};

/// Tries to open a write that somebody else has open, and how long to wait between them.
const TRIES: u32 = 1200;
const WAIT: Duration = Duration::from_millis(50);

/// The largest file that waits for others, so many bytes that wait, and so many files.
const SMALL: u64 = 1 << 20;
const SMALL_BYTES: u64 = 4 << 20;
const SMALL_FILES: usize = 64;

/// So many files become visible at once.
const SHOWN: usize = 64;

/// How a file begins to come into the store.
enum Begun {
    /// By this write.
    Writing(Box<ScopedWriter>),
    /// It is there.
    There(Digest),
}

/// One file.
struct Entry {
    path: String,
    size: u64,
    expected: Option<Digest>,
    reference: String,
}

/// Takes files in.
pub(super) struct Intake<'a> {
    content: &'a ScopedContent,
    handle: &'a Handle,
    told: &'a mpsc::Sender<BlobEvent>,
    small: Vec<(Entry, Bytes)>,
    small_bytes: u64,
    /// Bytes that are in the store, under writes that are no blobs yet.
    brought: Vec<(Entry, Brought)>,
    written: BTreeSet<Digest>,
    bytes: u64,
}

impl<'a> Intake<'a> {
    pub(super) fn new(content: &'a ScopedContent, handle: &'a Handle, told: &'a mpsc::Sender<BlobEvent>) -> Self {
        let (small, brought, written) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { content, handle, told, small, small_bytes: 0, brought, written, bytes: 0 }
    }

    /// Takes the file that `tar` is at. It is visible after [`Intake::finish`].
    pub(super) fn take<R: Read>(&mut self, tar: &mut Tarball<R>, path: &str, size: u64) -> Result<File> {
        let expected = blob_digest(path)?;
        if size <= SMALL {
            return self.take_small(tar, path, size, expected);
        }
        let entry = Entry { reference: reference(expected.as_ref()), path: path.to_owned(), size, expected };
        let first = tar.piece()?;
        let magic = magic(&first);
        let digest = self.write(entry, first, || tar.piece())?;
        Ok(File { digest, size, magic })
    }

    /// Makes visible what is whole although the archive is refused, so that it goes at the next collection like all that came.
    pub(super) fn give_up(mut self) {
        if let Err(error) = self.show() {
            tracing::warn!(%error, "what came of an archive stays for a day");
        }
    }

    /// Blobs whose bytes were written, and how many bytes those are.
    pub(super) fn finish(mut self) -> Result<(BTreeSet<Digest>, u64)> {
        self.write_small()?;
        self.show()?;
        Ok((self.written, self.bytes))
    }

    fn take_small<R: Read>(
        &mut self,
        tar: &mut Tarball<R>,
        path: &str,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<File> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(size).unwrap_or_default());
        loop {
            let piece = tar.piece()?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        let bytes = bytes.freeze();
        let (digest, magic) = (expected.unwrap_or_else(|| Digest::of(&bytes)), magic(&bytes));
        let (reference, expected) = (reference(Some(&digest)), Some(digest.clone()));
        self.small_bytes += size;
        self.small.push((Entry { path: path.to_owned(), size, expected, reference }, bytes));
        if self.small_bytes >= SMALL_BYTES || self.small.len() >= SMALL_FILES {
            self.write_small()?;
        }
        Ok(File { digest, size, magic })
    }

    /// Writes the small files that wait.
    fn write_small(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.small);
        self.small_bytes = 0;
        let named = |(entry, _): &(Entry, Bytes)| Some((entry.reference.clone(), entry.expected.clone()?));
        self.content.announce(&waiting.iter().filter_map(named).collect::<Vec<_>>())?;
        waiting.into_iter().try_for_each(|(entry, bytes)| self.write(entry, bytes, || Ok(Bytes::new())).map(drop))
    }

    /// Brings a file's bytes, the first of them and those that `next` gives until it gives none.
    fn write(&mut self, entry: Entry, first: Bytes, mut next: impl FnMut() -> Result<Bytes>) -> Result<Digest> {
        let mut writer = match self.begin(&entry)? {
            Begun::Writing(writer) => writer,
            Begun::There(digest) => return Ok(digest),
        };
        let status = writer.status();
        if status.offset == entry.size && entry.size > 0 && entry.expected.is_some() {
            // Another namespace has it, or an earlier import was stopped just before its end.
            if let Ok((digest, brought)) = self.bring(&mut writer, &entry) {
                self.show_later(entry, brought)?;
                return Ok(digest);
            }
            // Whatever that met: the bytes are here, and are written anew, unless another import has brought them meanwhile.
            drop(writer);
            writer = match self.begin(&entry)? {
                Begun::Writing(writer) => writer,
                Begun::There(digest) => return Ok(digest),
            };
        }
        if writer.status().offset > 0 {
            self.handle.block_on(writer.truncate(0))?;
        }
        let (mut offset, mut piece) = (0, first);
        while !piece.is_empty() {
            offset += piece.len() as u64;
            self.handle.block_on(writer.write(piece))?;
            self.tell(&entry, offset);
            piece = next()?;
        }
        let (digest, brought) = self.bring(&mut writer, &entry)?;
        if self.written.insert(digest.clone()) {
            self.bytes += entry.size;
        }
        self.show_later(entry, brought)?;
        Ok(digest)
    }

    fn show_later(&mut self, entry: Entry, brought: Option<Brought>) -> Result<()> {
        self.brought.extend(brought.map(|brought| (entry, brought)));
        if self.brought.len() >= SHOWN { self.show() } else { Ok(()) }
    }

    /// Makes visible what is here.
    fn show(&mut self) -> Result<()> {
        let (entries, writes): (Vec<_>, Vec<_>) = std::mem::take(&mut self.brought).into_iter().unzip();
        if writes.is_empty() {
            return Ok(());
        }
        let shown = self.handle.block_on(self.content.show_all(writes))?;
        for (entry, shown) in entries.into_iter().zip(shown) {
            match shown {
                Ok(()) => {}
                Err(content::Error::NotFound { .. }) => {
                    let reason = "somebody else aborted its write meanwhile: import the archive again".to_owned();
                    return Err(refused(&entry.path, reason));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Tells how far a blob has come. A file that only its content names is told of when it is whole.
    fn tell(&self, entry: &Entry, offset: u64) {
        let Some(digest) = entry.expected.clone() else { return };
        let (stage, limit) = (Stage::Fetching, Limit::Unknown);
        let event = BlobEvent { digest, kind: "blob", stage, offset, total: entry.size, unpacked: 0, limit };
        // Nobody listens any more only if the import is being given up.
        drop(self.told.blocking_send(event));
    }

    fn begin(&self, entry: &Entry) -> Result<Begun> {
        match (self.open(entry)?, &entry.expected) {
            (Some(writer), _) => Ok(Begun::Writing(Box::new(writer))),
            (None, Some(digest)) => Ok(Begun::There(digest.clone())),
            (None, None) => Err(refused(&entry.path, "its place in the store is taken".to_owned())),
        }
    }

    /// Opens the write, waiting for another import of the same blob; `None`: the blob is there.
    fn open(&self, entry: &Entry) -> Result<Option<ScopedWriter>> {
        let Entry { reference, size, expected, .. } = entry;
        let options = IngestOptions { reference: reference.clone(), total: *size, expected: expected.clone() };
        for _ in 0..TRIES {
            match self.handle.block_on(self.content.scoped_writer(options.clone())) {
                Ok(writer) => return Ok(Some(writer)),
                Err(content::Error::AlreadyExists(_)) => return Ok(None),
                Err(content::Error::Locked(_)) => std::thread::sleep(WAIT),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Busy { what: reference.clone(), seconds: (WAIT * TRIES).as_secs() })
    }

    /// Has the bytes verified and kept; with nothing to show the blob is visible.
    fn bring(&self, writer: &mut ScopedWriter, entry: &Entry) -> Result<(Digest, Option<Brought>)> {
        for _ in 0..TRIES {
            match self.handle.block_on(writer.bring(entry.size, entry.expected.as_ref())) {
                Ok(brought) => {
                    let named = brought.as_ref().map(Brought::digest).or(entry.expected.as_ref()).cloned();
                    return Ok((named.unwrap_or_else(|| writer.digest()), brought));
                }
                Err(content::Error::AlreadyExists(digest)) => return Ok((digest, None)),
                Err(content::Error::Locked(_)) => std::thread::sleep(WAIT),
                Err(content::Error::DigestMismatch { expected, actual, .. }) => {
                    if let Err(error) = self.handle.block_on(self.content.abort(&entry.reference)) {
                        tracing::warn!(%error, "wrong bytes could not be dropped");
                    }
                    return Err(refused(&entry.path, format!("expected {expected}, its bytes hash to {actual}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Busy { what: entry.reference.clone(), seconds: (WAIT * TRIES).as_secs() })
    }
}

/// The first bytes, which tell how a file is packed.
fn magic(first: &Bytes) -> Bytes {
    first.slice(..first.len().min(6))
}

/// The ref of a write: the blob's, where that is known.
fn reference(expected: Option<&Digest>) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    match expected {
        Some(digest) => format!("import-{digest}"),
        None => {
            let (count, now) = (COUNT.fetch_add(1, Ordering::Relaxed), jiff::Timestamp::now().as_nanosecond());
            format!("import-{}-{now}-{count}", std::process::id())
        }
    }
}
