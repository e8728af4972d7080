//! Takes the files of an archive in, in whatever order they come: documents with fixed names into memory, everything
//! else into the content store, hashed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use orlop_content::{self as content, IngestManager, IngestOptions, Ingester, Writer};
use orlop_metadata::ScopedContent;
use orlop_oci::Digest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::tarball::{Kind, Tarball};
use crate::error::ArchiveError;
use crate::{BlobEvent, Error, Limit, Limits, Result, Stage};

/// Files that say what the others are.
const DOCUMENTS: [&str; 4] = ["index.json", "oci-layout", "manifest.json", "repositories"];
/// How deep links may lead to links.
const MAX_LINKS: usize = 8;
/// Tries to open a write that somebody else has open, and how long to wait between them.
const TRIES: u32 = 1200;
const WAIT: Duration = Duration::from_millis(50);

/// A file that became a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Its first bytes, which tell how it is packed.
    pub(super) magic: Bytes,
}

/// What an archive holds.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(super) documents: BTreeMap<String, Bytes>,
    files: BTreeMap<String, File>,
    links: BTreeMap<String, String>,
    /// Blobs whose bytes were written to the store.
    pub(super) written: BTreeSet<Digest>,
    /// How many bytes those are.
    pub(super) bytes: u64,
}

impl Files {
    /// The blob at a path, links followed.
    pub(super) fn blob(&self, path: &str) -> Option<&File> {
        let mut path = super::tarball::normal(path)?;
        for _ in 0..MAX_LINKS {
            match (self.files.get(&path), self.links.get(&path)) {
                (Some(file), _) => return Some(file),
                (None, Some(next)) => path = next.clone(),
                (None, None) => return None,
            }
        }
        None
    }
}

/// Reads an archive to its end, and tells how far each blob has come. Blocks.
pub(super) fn read(
    source: impl Read + 'static,
    content: &ScopedContent,
    handle: &Handle,
    told: &mpsc::Sender<BlobEvent>,
    limits: &Limits,
) -> Result<Files> {
    let mut tar = Tarball::new(super::tarball::unpacked(source)?, limits);
    let mut files = Files::default();
    while let Some((path, kind)) = tar.next_entry()? {
        match kind {
            Kind::Other => {}
            Kind::Link(target) => drop(files.links.insert(path, target)),
            Kind::File(size) if DOCUMENTS.contains(&path.as_str()) => {
                let bytes = document(&mut tar, &path, size, limits.manifest_bytes)?;
                if files.documents.get(&path).is_some_and(|before| *before != bytes) {
                    return Err(twice(&path));
                }
                files.documents.insert(path, bytes);
            }
            Kind::File(size) => {
                let expected = blob_digest(&path)?;
                let (file, written) = Intake { content, handle, told, path: &path, size, expected }.take(&mut tar)?;
                if written && files.written.insert(file.digest.clone()) {
                    files.bytes += size;
                }
                if files.files.get(&path).is_some_and(|before| *before != file) {
                    return Err(twice(&path));
                }
                files.files.insert(path, file);
            }
        }
    }
    Ok(files)
}

fn refused(path: &str, reason: String) -> Error {
    Error::Archive(ArchiveError::Entry { name: path.to_owned(), reason })
}

fn twice(path: &str) -> Error {
    refused(path, "it occurs twice with different content".to_owned())
}

fn document<R: Read>(tar: &mut Tarball<R>, path: &str, size: u64, limit: u64) -> Result<Bytes> {
    if size > limit {
        let reason = format!("it has {size} bytes, more than {limit} (limits.manifest_bytes in the configuration)");
        return Err(refused(path, reason));
    }
    let mut bytes = BytesMut::new();
    loop {
        let piece = tar.piece()?;
        if piece.is_empty() {
            return Ok(bytes.freeze());
        }
        bytes.extend_from_slice(&piece);
    }
}

/// The digest that a path under `blobs/` promises.
fn blob_digest(path: &str) -> Result<Option<Digest>> {
    let Some(rest) = path.strip_prefix("blobs/") else { return Ok(None) };
    let name = rest.replacen('/', ":", 1);
    name.parse().map(Some).map_err(|error| refused(path, format!("blobs are named by digests: {error}")))
}

/// How a file begins to come into the store.
enum Begun {
    /// By this write.
    Writing(Box<dyn Writer>),
    /// It is there.
    There(Digest),
}

/// One file on its way into the store.
struct Intake<'a> {
    content: &'a ScopedContent,
    handle: &'a Handle,
    told: &'a mpsc::Sender<BlobEvent>,
    path: &'a str,
    size: u64,
    expected: Option<Digest>,
}

impl Intake<'_> {
    /// Takes the file; says whether its bytes were written.
    fn take<R: Read>(&self, tar: &mut Tarball<R>) -> Result<(File, bool)> {
        let reference = self.reference();
        let mut first = tar.piece()?;
        let magic = first.slice(..first.len().min(6));
        let file = |digest| File { digest, size: self.size, magic: magic.clone() };
        let mut writer = match self.begin(&reference)? {
            Begun::Writing(writer) => writer,
            Begun::There(digest) => return Ok((file(digest), false)),
        };
        let status = writer.status();
        if status.offset == self.size && self.size > 0 && self.expected.is_some() {
            // Another namespace has it, or an earlier import was stopped just before its end.
            if let Ok(digest) = self.commit(&mut *writer, &reference) {
                return Ok((file(digest), false));
            }
            // Whatever that met: the bytes are here, and are written anew, unless another import has brought them meanwhile.
            drop(writer);
            writer = match self.begin(&reference)? {
                Begun::Writing(writer) => writer,
                Begun::There(digest) => return Ok((file(digest), false)),
            };
        }
        if writer.status().offset > 0 {
            self.handle.block_on(writer.truncate(0))?;
        }
        let mut offset = 0;
        while !first.is_empty() {
            offset += first.len() as u64;
            self.handle.block_on(writer.write(first))?;
            self.tell(offset);
            first = tar.piece()?;
        }
        self.commit(&mut *writer, &reference).map(|digest| (file(digest), true))
    }

    /// Tells how far a blob has come. A file that only its content names is told of when it is whole.
    fn tell(&self, offset: u64) {
        let Some(digest) = self.expected.clone() else { return };
        let (stage, limit) = (Stage::Fetching, Limit::Unknown);
        let event = BlobEvent { digest, kind: "blob", stage, offset, total: self.size, unpacked: 0, limit };
        // Nobody listens any more only if the import is being given up.
        drop(self.told.blocking_send(event));
    }

    fn reference(&self) -> String {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        match &self.expected {
            Some(digest) => format!("import-{digest}"),
            None => {
                let (count, now) = (COUNT.fetch_add(1, Ordering::Relaxed), jiff::Timestamp::now().as_nanosecond());
                format!("import-{}-{now}-{count}", std::process::id())
            }
        }
    }

    fn begin(&self, reference: &str) -> Result<Begun> {
        match (self.open(reference)?, &self.expected) {
            (Some(writer), _) => Ok(Begun::Writing(writer)),
            (None, Some(digest)) => Ok(Begun::There(digest.clone())),
            (None, None) => Err(refused(self.path, "its place in the store is taken".to_owned())),
        }
    }

    /// Opens the write, waiting for another import of the same blob; `None`: the blob is there.
    fn open(&self, reference: &str) -> Result<Option<Box<dyn Writer>>> {
        let options =
            IngestOptions { reference: reference.to_owned(), total: self.size, expected: self.expected.clone() };
        for _ in 0..TRIES {
            match self.handle.block_on(self.content.writer(options.clone())) {
                Ok(writer) => return Ok(Some(writer)),
                Err(content::Error::AlreadyExists(_)) => return Ok(None),
                Err(content::Error::Locked(_)) => std::thread::sleep(WAIT),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Busy { what: reference.to_owned(), seconds: (WAIT * TRIES).as_secs() })
    }

    fn commit(&self, writer: &mut dyn Writer, reference: &str) -> Result<Digest> {
        for _ in 0..TRIES {
            match self.handle.block_on(writer.commit(self.size, self.expected.as_ref())) {
                Ok(digest) | Err(content::Error::AlreadyExists(digest)) => return Ok(digest),
                Err(content::Error::Locked(_)) => std::thread::sleep(WAIT),
                Err(content::Error::DigestMismatch { expected, actual, .. }) => {
                    if let Err(error) = self.handle.block_on(self.content.abort(reference)) {
                        tracing::warn!(%error, "wrong bytes could not be dropped");
                    }
                    return Err(refused(self.path, format!("expected {expected}, its bytes hash to {actual}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Busy { what: reference.to_owned(), seconds: (WAIT * TRIES).as_secs() })
    }
}
