//! Waiting until the disk has everything that is in a file system.
//!
//! The kernel says once to each open file that pages could not be written, to the first `syncfs` after it happened, and a file that is
//! opened afterwards is told nothing. So one file stays open for as long as the driver does, and what it was told holds for everything that
//! was being written then, whoever asked.
//!
//! # Invariants
//! - A snapshot that was there when a sync failed is not committed by this process: what was lost of it nobody knows.
//!
//! # Concurrency
//! One sync at a time, since only one of several would be told of an error. Who waits for another's finds little left to write.

use std::fs as stdfs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use crate::error::At as _;
use crate::{Result, SnapshotId, fs};

/// The disk below a driver's directory.
#[derive(Debug)]
pub(crate) struct Disk {
    root: OwnedFd,
    doubt: Mutex<Option<Doubt>>,
}

/// What cannot be trusted since a sync failed.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// The highest number of a snapshot that was there.
    up_to: u64,
    error: Errno,
}

impl Disk {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        Ok(Self { root: fs::open_dir(root).at("open", root)?, doubt: Mutex::default() })
    }

    /// Makes everything durable that is in the file system of `root`, which this was opened for.
    pub(crate) fn sync(&self, root: &Path) -> Result<()> {
        let mut doubt = self.doubt.lock().unwrap_or_else(PoisonError::into_inner);
        let synced = rustix::fs::syncfs(&self.root);
        if let Err(error) = synced {
            *doubt = Some(Doubt { up_to: highest(root), error });
        }
        synced.at("sync the file system of", root)
    }

    /// Refuses a snapshot that was there when a sync failed. To be asked after the sync that covers it.
    pub(crate) fn trust(&self, id: SnapshotId, dir: &Path) -> Result<()> {
        match *self.doubt.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(doubt) if id.0 <= doubt.up_to => {
                Err(doubt.error).at("trust what was written before an error of the disk in", dir)
            }
            _ => Ok(()),
        }
    }
}

/// The highest number of a snapshot; all of them, if that cannot be seen.
fn highest(root: &Path) -> u64 {
    let numbers = stdfs::read_dir(root).and_then(|entries| {
        let mut highest = 0;
        for entry in entries {
            let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
            highest = highest.max(number.unwrap_or(0));
        }
        Ok(highest)
    });
    numbers.unwrap_or(u64::MAX)
}
