//! The files of content: `blobs/ALGORITHM/HEX`, and `ingest/HEX/` for each write in progress, by the SHA-256 of its
//! reference.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use orlop_graph::model::{Gap, IngestRow};
use orlop_oci::{Algorithm, Digest};

use super::file::{self, CONTENT};
use super::metadata::Ingest;
use super::{Error, Stored, Unlisted};
use crate::documents::{LARGEST, checked};

/// Larger than any reference, time or number that containerd writes to a file.
const TEXT: u64 = 64 << 10;

/// Fills in how far writes are, and what is there or not beside what namespaces have.
pub(super) fn fill(root: &Path, ingests: Vec<Ingest>, stored: &mut Stored) {
    let content = root.join(CONTENT);
    writes(&content.join("ingest"), ingests, stored);
    match blobs(&content.join("blobs")) {
        Ok(files) => {
            let listed: HashSet<&Digest> = stored.inventory.blobs.iter().map(|row| &row.digest).collect();
            let mut absent: Vec<Digest> =
                listed.iter().filter(|d| !files.contains_key(d)).map(|d| (*d).clone()).collect();
            absent.sort();
            let extra = files.iter().filter(|(digest, _)| !listed.contains(digest));
            let unlisted: Vec<_> =
                extra.map(|(digest, path)| (digest.clone(), path.metadata().map(|m| m.len()))).collect();
            stored.absent = absent;
            for (digest, size) in unlisted {
                match size {
                    Ok(size) => stored.unlisted.push(Unlisted::Blob { digest, size }),
                    // It went meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        stored.inventory.gaps.push(Gap { what: format!("blob {digest}"), why: error.to_string() })
                    }
                }
            }
        }
        Err((path, error)) => {
            let why = format!("{path}: {error}");
            stored.inventory.gaps.push(Gap { what: "which blobs are there".into(), why });
        }
    }
}

type Failed = (String, io::Error);

/// The files of blobs.
fn blobs(directory: &Path) -> Result<BTreeMap<Digest, std::path::PathBuf>, Failed> {
    let listed = |path: &Path| file::names(path).map_err(|error| (path.display().to_string(), error));
    let mut found = BTreeMap::new();
    if !directory.exists() && directory.parent().is_some_and(Path::exists) {
        return Ok(found);
    }
    for algorithm in listed(directory)? {
        let Some(name) = algorithm.to_str().filter(|name| Algorithm::from_name(name).is_some()) else { continue };
        let below = directory.join(name);
        for hex in listed(&below)? {
            if let Some(digest) = hex.to_str().and_then(|hex| format!("{name}:{hex}").parse().ok()) {
                found.insert(digest, below.join(hex));
            }
        }
    }
    Ok(found)
}

fn writes(directory: &Path, ingests: Vec<Ingest>, stored: &mut Stored) {
    let mut known = HashSet::new();
    for ingest in ingests {
        let name = Digest::of(ingest.backend.as_bytes()).hex().to_owned();
        let path = directory.join(&name);
        known.insert(name);
        match status(&path, &ingest) {
            Ok(row) => stored.inventory.ingests.push(row),
            // It has ended, or has no bytes because another namespace has the blob: containerd does not list it either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("write in progress {}", ingest.reference);
                stored.inventory.gaps.push(Gap { what, why: format!("{}: {error}", path.display()) });
            }
        }
    }
    let mut rest = file::names(directory).unwrap_or_default();
    rest.retain(|name| name.to_str().is_none_or(|name| !known.contains(name)));
    rest.sort_unstable();
    for name in rest {
        let directory = directory.join(name);
        let size = directory.join("data").metadata().map_or(0, |metadata| metadata.len());
        let reference = file::text(&directory.join("ref"), TEXT).ok();
        stored.unlisted.push(Unlisted::Ingest { directory, reference, size });
    }
}

fn status(path: &Path, ingest: &Ingest) -> io::Result<IngestRow> {
    let data = path.join("data").metadata()?;
    let time = |name: &str| -> io::Result<Timestamp> {
        let text = file::text(&path.join(name), TEXT)?;
        text.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {e}")))
    };
    let written = Timestamp::try_from(data.modified()?).map_err(io::Error::other)?;
    // Not written at every write.
    let updated = time("updatedat")?.max(written);
    let total = file::text(&path.join("total"), TEXT).ok().and_then(|total| total.parse().ok()).unwrap_or(0);
    Ok(IngestRow {
        namespace: ingest.namespace,
        reference: ingest.reference.clone(),
        offset: data.len(),
        total,
        expected: ingest.expected.clone(),
        started: Some(time("startedat")?),
        updated: Some(updated),
    })
}

/// A document, if its file is there, is none too large, and has the bytes that its name says.
pub(super) fn document(root: &Path, digest: &Digest) -> Result<Option<Bytes>, Error> {
    let path = root.join(CONTENT).join("blobs").join(digest.algorithm().as_str()).join(digest.hex());
    let file = match file::regular(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("opening", &path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(Error::io("reading", &path))?;
    Ok(if bytes.len() as u64 > LARGEST { None } else { checked(digest, bytes.into()) })
}
