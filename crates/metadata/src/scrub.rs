//! How far the bytes of a root, blobs and then trees, were read again: `ROOT/scrub`, a small JSON file.
//!
//! # Invariants
//! - What it says was read was read. It may lag behind: it is written in one step and not synced, so that a cut costs reading a few
//!   blobs or a tree again, and a file that cannot be understood a pass.
//! - One process at a time scrubs (flock on `ROOT/scrub.lock`).

use std::fs::{File, OpenOptions};
use std::io;

use jiff::Timestamp;
use orlop_oci::Digest;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::gc::io_error;
use crate::{Result, Store};

/// A pass over all blobs and trees, or how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// When it began.
    pub began: Timestamp,
    /// When it ended; `None`: it goes on.
    pub ended: Option<Timestamp>,
    /// The last blob that was read; they are read in the order of their digests.
    pub after: Option<Digest>,
    /// Blobs read so far.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is damaged, blobs and trees.
    pub found: u64,
    /// The last tree that was looked at; they are looked at in the order of their numbers, after all blobs.
    #[serde(default)]
    pub after_tree: Option<u64>,
    /// Trees compared so far with what was recorded of them.
    #[serde(default)]
    pub trees: u64,
    /// Bytes of files in them.
    #[serde(default)]
    pub tree_bytes: u64,
    /// Trees of which nothing was recorded.
    #[serde(default)]
    pub unrecorded: u64,
}

impl Scrub {
    /// A pass that begins.
    pub fn beginning(now: Timestamp) -> Self {
        let (ended, after, after_tree) = (None, None, None);
        let [blobs, bytes, found, trees, tree_bytes, unrecorded] = [0; 6];
        Self { began: now, ended, after, blobs, bytes, found, after_tree, trees, tree_bytes, unrecorded }
    }
}

/// Held while a process scrubs.
#[derive(Debug)]
pub struct ScrubLock {
    _file: File,
}

impl Store {
    /// The last pass, ended or not; `None` if nothing is known of one.
    pub fn scrub(&self) -> Result<Option<Scrub>> {
        let path = self.root().join("scrub");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Remembers how far a pass has come.
    pub fn put_scrub(&self, scrub: &Scrub) -> Result<()> {
        let (new, path) = (self.root().join("scrub.new"), self.root().join("scrub"));
        let json = serde_json::to_vec(scrub).expect("times, digests and numbers are JSON");
        std::fs::write(&new, json).map_err(io_error("write", &new))?;
        std::fs::rename(&new, &path).map_err(io_error("rename", &new))
    }

    /// Makes this process the one that scrubs, as long as what it returns lives; `None` while another one does.
    pub fn lock_scrub(&self) -> Result<Option<ScrubLock>> {
        self.check_writable()?;
        let path = self.root().join("scrub.lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(io_error("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(ScrubLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io_error("lock", &path)(error.into())),
        }
    }
}
