//! What was hashed while a layer was applied, from then until the commit: `applied`.
//!
//! Fixed records, each within one sector, so that what a power cut tears is whole records: inode, change time, kind, size, digest.
//! Files are known by their inodes, for what later entries do to names above them is of no concern; a later record of an inode wins.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use super::Hash;
use crate::error::At as _;
use crate::fs;
use crate::fs::walk::{Step, Walk};
use crate::{Error, Result};

/// Bytes of a record.
const LENGTH: usize = 64;
/// Only the change time is new: somebody who is known made another name of the file.
const RENEWED: u32 = 2;
/// The digest is in the record. (1 was a SHA-256; such a file is read at the commit.)
const HASHED: u32 = 3;

/// Writes notes as files are written.
pub(crate) struct NotesWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl NotesWriter {
    /// Goes on with what an earlier layer of the same tree noted.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path).at("open", path)?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file) })
    }

    /// Notes what a file's bytes hash to; `stat` is of now, when all else about the file is done.
    pub(crate) fn hashed(&mut self, stat: &Stat, hash: &Hash) -> Result<()> {
        self.put(stat, HASHED, hash)
    }

    /// Notes that the change time of a file is another, and its bytes are the same.
    pub(crate) fn renewed(&mut self, stat: &Stat) -> Result<()> {
        self.put(stat, RENEWED, &[0; 32])
    }

    fn put(&mut self, stat: &Stat, kind: u32, hash: &Hash) -> Result<()> {
        let mut record = [0; LENGTH];
        let time = Time::of(stat);
        record[..8].copy_from_slice(&stat.st_ino.to_le_bytes());
        record[8..16].copy_from_slice(&time.seconds.to_le_bytes());
        record[16..20].copy_from_slice(&time.nanos.to_le_bytes());
        record[20..24].copy_from_slice(&kind.to_le_bytes());
        record[24..32].copy_from_slice(&stat.st_size.to_le_bytes());
        record[32..].copy_from_slice(hash);
        self.out.write_all(&record).at("write", &self.path)
    }

    /// Ends the notes of a layer. If something was removed that may have been noted (`cleared`), only notes of what is in the tree
    /// stay: an inode that is free becomes another file's.
    pub(crate) fn finish(mut self, tree: &Path, cleared: bool) -> Result<()> {
        self.out.flush().at("write", &self.path)?;
        if !cleared {
            return Ok(());
        }
        let Some(Notes(mut notes)) = Notes::load(&self.path)? else { return Ok(()) };
        let there = inodes(tree)?;
        notes.retain(|inode, _| there.contains(inode));
        self.out.get_ref().set_len(0).at("empty", &self.path)?;
        for (inode, note) in notes {
            let mut record = [0; LENGTH];
            record[..8].copy_from_slice(&inode.to_le_bytes());
            record[8..16].copy_from_slice(&note.changed.seconds.to_le_bytes());
            record[16..20].copy_from_slice(&note.changed.nanos.to_le_bytes());
            record[20..24].copy_from_slice(&HASHED.to_le_bytes());
            record[24..32].copy_from_slice(&note.size.to_le_bytes());
            record[32..].copy_from_slice(&note.hash);
            self.out.write_all(&record).at("write", &self.path)?;
        }
        self.out.flush().at("write", &self.path)
    }
}

/// The inodes of all that is no directory.
fn inodes(tree: &Path) -> Result<HashSet<u64>> {
    let mut walk = Walk::new(fs::open_dir(tree).at("open", tree)?).at("read", tree)?;
    let mut found = HashSet::new();
    while let Some(step) = walk.next().at("read", tree)? {
        if let Step::Other { stat, .. } = step {
            found.insert(stat.st_ino);
        }
    }
    Ok(found)
}

/// When a file was changed last, its attributes and names included; no call can set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    seconds: i64,
    nanos: u32,
}

impl Time {
    fn of(stat: &Stat) -> Self {
        Self { seconds: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 }
    }
}

struct Note {
    changed: Time,
    size: i64,
    hash: Hash,
}

/// Notes, by inode.
pub(crate) struct Notes(HashMap<u64, Note>);

impl Notes {
    /// Reads what was noted; `None` if no layer was applied.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.at("read", path)?,
        };
        let mut notes: HashMap<u64, Note> = HashMap::with_capacity(bytes.len() / LENGTH);
        for record in bytes.chunks_exact(LENGTH) {
            let cut = || Error::Damaged { reason: format!("{}: a record is cut", path.display()) };
            let (inode, seconds) = (word(record, 0).ok_or_else(cut)?, word(record, 8).ok_or_else(cut)?);
            let (nanos, kind) = (word(record, 16).ok_or_else(cut)?, word(record, 20).ok_or_else(cut)?);
            let changed = Time { seconds: i64::from_le_bytes(seconds), nanos: u32::from_le_bytes(nanos) };
            let inode = u64::from_le_bytes(inode);
            match u32::from_le_bytes(kind) {
                HASHED => {
                    let size = i64::from_le_bytes(word(record, 24).ok_or_else(cut)?);
                    let hash = word(record, 32).ok_or_else(cut)?;
                    notes.insert(inode, Note { changed, size, hash });
                }
                RENEWED => drop(notes.get_mut(&inode).map(|note| note.changed = changed)),
                // Zeros that a power cut left, or a digest of another kind.
                _ => {}
            }
        }
        Ok(Some(Self(notes)))
    }

    /// What a file's bytes hash to, if nobody has touched it since that was noted.
    pub(super) fn hash(&self, stat: &Stat) -> Option<Hash> {
        let note = self.0.get(&stat.st_ino)?;
        (note.changed == Time::of(stat) && note.size == stat.st_size).then_some(note.hash)
    }
}

fn word<const N: usize>(record: &[u8], at: usize) -> Option<[u8; N]> {
    record.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{self, Options};
    use crate::{ApplyTarget, Whiteouts};

    fn tar(entries: &[(&str, tar_core::EntryType, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, kind, content) in entries {
            let mut entry = tar_core::EntryBuilder::new_ustar();
            let (link, content) = if kind.is_file() { ("", *content) } else { (*content, "") };
            entry.path(path).entry_type(*kind).link_name(link);
            entry.mode(0o644).expect("a mode");
            entry.size(content.len() as u64).expect("a size");
            bytes.extend(entry.finish_bytes());
            bytes.extend_from_slice(content.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend([0; 1024]);
        bytes
    }

    /// Nothing needs to be read again at the commit: each file is known by what was in memory, with other names and after removals too.
    #[test]
    fn what_apply_wrote_is_known_without_reading_it() {
        use tar_core::EntryType::{Link, Regular};
        let dir = tempfile::tempdir().unwrap();
        let (root, applied) = (dir.path().join("fs"), dir.path().join("applied"));
        std::fs::create_dir(&root).unwrap();
        let target = ApplyTarget {
            root: root.clone(),
            whiteouts: Whiteouts::Delete,
            deferred: None,
            applied: Some(applied.clone()),
            image: None,
        };
        let layers = [
            vec![("a", Regular, "one"), ("b", Link, "a"), ("c", Regular, "two"), ("d", Regular, "three")],
            vec![("c", Regular, "four"), (".wh.d", Regular, ""), ("e", Link, "a")],
        ];
        for layer in layers {
            apply::apply(&tar(&layer)[..], &target, &Options::default()).unwrap();
        }
        let notes = Notes::load(&applied).unwrap().unwrap();
        for (name, content) in [("a", "one"), ("b", "one"), ("c", "four"), ("e", "one")] {
            let stat = rustix::fs::lstat(root.join(name)).unwrap();
            let expected: Hash = blake3::hash(content.as_bytes()).into();
            assert_eq!(notes.hash(&stat), Some(expected), "{name}");
        }
        assert_eq!(notes.0.len(), 2, "what was removed is forgotten");
        std::fs::write(root.join("a"), "new").unwrap();
        assert_eq!(notes.hash(&rustix::fs::lstat(root.join("a")).unwrap()), None);
    }
}
