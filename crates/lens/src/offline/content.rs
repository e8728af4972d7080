//! The files of content: `blobs/ALGORITHM/HEX`, and `ingest/HEX/` for each write in progress, by the SHA-256 of its
//! reference.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use orlop_graph::model::{BlobRow, Gap, IngestRow};
use orlop_oci::{Algorithm, Digest};

use super::metadata::Ingest;
use super::{Error, Unlisted, file, places};
use crate::documents::{LARGEST, checked};

/// Larger than any reference, time or number that containerd writes to a file.
const TEXT: u64 = 64 << 10;

/// How far writes are, and what is there or not beside the blobs that namespaces have.
#[derive(Default)]
pub(super) struct Found {
    pub(super) ingests: Vec<IngestRow>,
    pub(super) unlisted: Vec<Unlisted>,
    /// In order.
    pub(super) absent: Vec<Digest>,
    pub(super) gaps: Vec<Gap>,
}

/// Looks at the files; at those of blobs if it is said which are listed.
pub(super) fn look(root: &Path, ingests: Vec<Ingest>, listed: Option<&[BlobRow]>) -> Found {
    let mut found = Found::default();
    writes(&root.join(places::CONTENT).join("ingest"), ingests, &mut found);
    if let Some(listed) = listed
        && let Err((path, error)) = blobs(&places::blobs(root), listed, &mut found)
    {
        let why = format!("{path}: {error}");
        found.gaps.push(Gap { what: "which blobs are there".into(), why });
    }
    found
}

type Failed = (String, io::Error);

/// Compares the files of blobs with those that are listed.
fn blobs(directory: &Path, listed: &[BlobRow], found: &mut Found) -> Result<(), Failed> {
    // Most files are listed, so that nothing is made of their names.
    let mut there: HashMap<&str, bool> = listed.iter().map(|row| (row.digest.as_str(), false)).collect();
    let mut others = Vec::new();
    let mut text = String::new();
    for algorithm in algorithms(directory)? {
        let below = directory.join(algorithm);
        let failed = |error| (below.display().to_string(), error);
        for entry in std::fs::read_dir(&below).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(hex) = name.to_str() else { continue };
            text.clear();
            text.extend([algorithm, ":", hex]);
            match there.get_mut(&*text) {
                Some(is_there) => *is_there = true,
                None => others.extend(text.parse::<Digest>().ok().map(|digest| (digest, below.join(hex)))),
            }
        }
    }
    let absent: BTreeSet<&Digest> = listed.iter().map(|row| &row.digest).filter(|d| !there[d.as_str()]).collect();
    found.absent = absent.into_iter().cloned().collect();
    others.sort_unstable();
    for (digest, path) in others {
        match path.metadata() {
            Ok(metadata) => found.unlisted.push(Unlisted::Blob { digest, size: metadata.len() }),
            // It went meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.gaps.push(Gap { what: format!("blob {digest}"), why: error.to_string() }),
        }
    }
    Ok(())
}

/// The algorithms that blobs are there of.
fn algorithms(directory: &Path) -> Result<Vec<&'static str>, Failed> {
    if !directory.exists() && directory.parent().is_some_and(Path::exists) {
        return Ok(Vec::new());
    }
    let names = file::names(directory).map_err(|error| (directory.display().to_string(), error))?;
    let known = |name: &std::ffi::OsString| Algorithm::from_name(name.to_str()?).map(Algorithm::as_str);
    Ok(names.iter().filter_map(known).collect())
}

fn writes(directory: &Path, ingests: Vec<Ingest>, found: &mut Found) {
    let mut known = HashSet::new();
    for ingest in ingests {
        let name = Digest::of(ingest.backend.as_bytes()).hex().to_owned();
        let path = directory.join(&name);
        known.insert(name);
        match status(&path, &ingest) {
            Ok(row) => found.ingests.push(row),
            // It has ended, or has no bytes because another namespace has the blob: containerd does not list it either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("write in progress {}", ingest.reference);
                found.gaps.push(Gap { what, why: format!("{}: {error}", path.display()) });
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
        found.unlisted.push(Unlisted::Ingest { directory, reference, size });
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
    let path = places::blob(root, digest);
    let file = match file::regular(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("opening", &path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(Error::io("reading", &path))?;
    Ok(if bytes.len() as u64 > LARGEST { None } else { checked(digest, bytes.into()) })
}
