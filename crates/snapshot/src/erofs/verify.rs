//! The digests of an image: made while it was written, compared with what is on the disk later.
//!
//! ```text
//! digests   {"image":1,"parts":[{"length":4096,"blake3":"…"},…],"sum":"…"}
//! ```
//! The parts follow each other from the image's first byte to its last. `sum` is the BLAKE3 of the parts as they are written there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::stream::Part;
use crate::Result;
use crate::error::At as _;
use crate::record::Compared;

/// Bytes read in one step.
const STEP_BYTES: usize = 1 << 20;

/// What stands for this form of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Digests {
    image: u32,
    parts: Vec<Part>,
    sum: String,
}

fn sum(parts: &[Part]) -> String {
    let text: String = parts.iter().map(|part| format!("{} {}\n", part.length, part.blake3)).collect();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// Writes what an image is.
///
/// # Durability
/// None: the commit syncs.
pub(super) fn write(parts: Vec<Part>, to: &Path) -> Result<()> {
    let digests = Digests { image: VERSION, sum: sum(&parts), parts };
    let bytes = serde_json::to_vec(&digests).map_err(io::Error::other).at("encode", to)?;
    std::fs::write(to, bytes).at("write", to)
}

/// A comparison of an image that goes on.
pub(crate) struct ImageComparison {
    path: PathBuf,
    file: Option<File>,
    parts: std::vec::IntoIter<Part>,
    part: Option<(Part, u64, blake3::Hasher)>,
    at: u64,
    compared: Compared,
    buffer: Vec<u8>,
}

impl ImageComparison {
    /// Compares the image at `path` with the record at `digests`; `None` if there is no such record.
    pub(super) fn open(path: &Path, digests: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(digests) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let home = digests.parent().unwrap_or(digests);
                let gone = matches!(home.symlink_metadata(), Err(e) if e.kind() == io::ErrorKind::NotFound);
                return Ok(gone.then(|| Self::missing(path)));
            }
            read => read,
        };
        let mut new = Self::over(path);
        let recorded = match bytes {
            Ok(bytes) => serde_json::from_slice::<Digests>(&bytes).map_err(|error| error.to_string()),
            Err(error) if is_bad_medium(&error) => Err(error.to_string()),
            Err(error) => return Err(error).at("read", digests),
        };
        let parts = match recorded {
            Ok(digests) if digests.image == VERSION && digests.sum == sum(&digests.parts) => digests.parts,
            Ok(digests) if digests.image != VERSION => return Ok(None),
            Ok(_) => return Ok(Some(new.unknown("its record does not check"))),
            Err(error) => return Ok(Some(new.unknown(&format!("its record cannot be read: {error}")))),
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Self::missing(path))),
            file => file.at("open", path)?,
        };
        let length: u64 = parts.iter().map(|part| part.length).sum();
        let found = file.metadata().at("stat", path)?.len();
        if found != length {
            new.compared.differs(b"", format!("its image has {found} bytes, expected {length}"));
        }
        new.file = Some(file);
        new.parts = parts.into_iter();
        Ok(Some(new))
    }

    fn over(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            parts: Vec::new().into_iter(),
            part: None,
            at: 0,
            compared: Compared::default(),
            buffer: Vec::new(),
        }
    }

    fn missing(path: &Path) -> Self {
        let mut new = Self::over(path);
        new.compared.is_missing(format!("its image {} is gone", path.display()));
        new
    }

    fn unknown(mut self, detail: &str) -> Self {
        self.compared.differs(b"", format!("{detail}, so that nobody can say what the image should be"));
        self
    }

    pub(crate) fn compared(&self) -> &Compared {
        &self.compared
    }

    pub(crate) fn is_current(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let identity = |metadata: io::Result<std::fs::Metadata>| metadata.ok().map(|of| (of.dev(), of.ino()));
        let compared = self.file.as_ref().and_then(|file| identity(file.metadata()));
        compared.is_none() || compared == identity(self.path.metadata())
    }

    /// Goes on for about a megabyte; says how many bytes it has read, or `None` if it is over.
    pub(crate) fn step(&mut self) -> Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        if self.part.is_none() {
            let Some(part) = self.parts.next() else { return Ok(None) };
            let left = part.length;
            self.compared.entries += 1;
            self.part = Some((part, left, blake3::Hasher::new()));
        }
        let Some((part, left, hasher)) = &mut self.part else { return Ok(None) };
        let wanted = (*left).min(STEP_BYTES as u64) as usize;
        self.buffer.resize(wanted, 0);
        let count = match file.read_at(&mut self.buffer, self.at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Some(0)),
            Err(error) if is_bad_medium(&error) => {
                self.compared.is_unreadable(format!("its image cannot be read at {}: {error}", self.at));
                self.at += *left;
                self.part = None;
                return Ok(Some(0));
            }
            read => read.at("read", &self.path)?,
        };
        hasher.update(&self.buffer[..count]);
        (self.at, *left) = (self.at + count as u64, *left - count as u64);
        self.compared.bytes += count as u64;
        if *left == 0 || count == 0 {
            let (start, found) = (self.at - (part.length - *left), hasher.finalize().to_hex());
            if found.as_str() != part.blake3 {
                let detail = format!(
                    "its image differs in the {} bytes from {start}: BLAKE3 is {found}, expected {}",
                    part.length, part.blake3
                );
                self.compared.differs(b"", detail);
            }
            self.part = None;
            if count == 0 && wanted > 0 {
                // It ends here, which was said.
                self.file = None;
            }
        }
        Ok(Some(count as u64))
    }
}

/// Whether the disk is at fault, not this process or its rights.
fn is_bad_medium(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(crate::record::is_bad_medium)
}
