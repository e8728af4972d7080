//! Asks for room before a layer is written, a portion at a time.

use std::io;
use std::sync::Arc;

use super::Admission;

/// How many bytes are asked for at a time: few, so that little is written of what another was lent meanwhile.
const PORTION: u64 = 256 << 10;

/// What an entry takes beside its content: an inode, its name, its attributes.
const ENTRY: u64 = 4 << 10;

/// Counts what is written.
pub(super) struct Meter {
    admission: Option<Arc<dyn Admission>>,
    /// What was asked for and not written yet.
    left: u64,
}

impl Meter {
    pub(super) const fn new(admission: Option<Arc<dyn Admission>>) -> Self {
        Self { admission, left: 0 }
    }

    /// An entry is made.
    pub(super) fn entry(&mut self) -> io::Result<()> {
        self.take(ENTRY)
    }

    /// So many bytes are written.
    pub(super) fn take(&mut self, bytes: u64) -> io::Result<()> {
        let Some(admission) = &self.admission else { return Ok(()) };
        if self.left < bytes {
            let portion = bytes.max(PORTION);
            admission.admit(portion)?;
            self.left = portion;
        }
        self.left -= bytes;
        Ok(())
    }
}
