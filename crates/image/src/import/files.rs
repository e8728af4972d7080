//! Takes the files of an archive in, in whatever order they come: documents with fixed names into memory, everything
//! else into the content store, hashed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use bytes::{Bytes, BytesMut};
use orlop_metadata::ScopedContent;
use orlop_oci::Digest;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::intake::Intake;
use super::tarball::{Kind, Tarball};
use crate::error::ArchiveError;
use crate::{BlobEvent, Error, Limits, Result};

/// Files that say what the others are.
const DOCUMENTS: [&str; 4] = ["index.json", "oci-layout", "manifest.json", "repositories"];
/// How deep links may lead to links.
const MAX_LINKS: usize = 8;
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
    let (mut files, mut intake) = (Files::default(), Intake::new(content, handle, told));
    if let Err(error) = read_all(&mut tar, &mut files, &mut intake, limits) {
        intake.give_up();
        return Err(error);
    }
    (files.written, files.bytes) = intake.finish()?;
    Ok(files)
}

fn read_all<R: Read>(tar: &mut Tarball<R>, files: &mut Files, intake: &mut Intake<'_>, limits: &Limits) -> Result<()> {
    while let Some((path, kind)) = tar.next_entry()? {
        match kind {
            Kind::Other => {}
            Kind::Link(target) => drop(files.links.insert(path, target)),
            Kind::File(size) if DOCUMENTS.contains(&path.as_str()) => {
                let bytes = document(tar, &path, size, limits.manifest_bytes)?;
                if files.documents.get(&path).is_some_and(|before| *before != bytes) {
                    return Err(twice(&path));
                }
                files.documents.insert(path, bytes);
            }
            Kind::File(size) => {
                let file = intake.take(tar, &path, size)?;
                if files.files.get(&path).is_some_and(|before| *before != file) {
                    return Err(twice(&path));
                }
                files.files.insert(path, file);
            }
        }
    }
    Ok(())
}

pub(super) fn refused(path: &str, reason: String) -> Error {
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
pub(super) fn blob_digest(path: &str) -> Result<Option<Digest>> {
    let Some(rest) = path.strip_prefix("blobs/") else { return Ok(None) };
    let name = rest.replacen('/', ":", 1);
    name.parse().map(Some).map_err(|error| refused(path, format!("blobs are named by digests: {error}")))
}
