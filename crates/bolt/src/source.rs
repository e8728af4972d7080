//! Where the bytes come from.

use std::io;

use bytes::Bytes;

use crate::db::{self, Db};
use crate::error::{Error, Result};

/// How much [`copy`] reads at once.
const CHUNK: usize = 1 << 20;

/// Bytes that can be read at any offset.
pub trait Source {
    /// How many there are now; a database grows while it is written to.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;

    /// Fills the buffer from an offset on.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` if there are not as many.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Source for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let found = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buffer, offset)
    }
}

impl<S: Source + ?Sized> Source for &S {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// Reads some bytes into memory of their own.
pub(crate) fn read(source: &dyn Source, offset: u64, length: usize) -> Result<Bytes> {
    let mut buffer = vec![0; length];
    let done = source.read_exact_at(&mut buffer, offset);
    done.map_err(|source| Error::Io { offset, length: length as u64, source })?;
    Ok(buffer.into())
}

/// Copies a database of at most so many bytes into memory, as it was at one moment; anew, up to so many times, if somebody
/// committed meanwhile.
///
/// # Errors
/// [`Error::Changing`] if somebody always did, [`Error::TooLarge`], and what [`Db::open`] says.
pub fn copy(source: &dyn Source, limit: u64, attempts: u32) -> Result<Vec<u8>> {
    for _ in 0..attempts {
        let db = Db::open(source)?;
        let whole = copy_once(source, db.bytes_in_use(), limit)?;
        // The meta pages are at the start of what was read, so nothing in it is older than they are.
        let copied = db::newest(&whole);
        if copied.is_ok_and(|meta| meta == *db.meta()) && db.is_current()? {
            return Ok(whole);
        }
    }
    Err(Error::Changing { attempts })
}

fn copy_once(source: &dyn Source, size: u64, limit: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(size.min(limit)).unwrap_or(usize::MAX);
    if size > limit {
        return Err(Error::TooLarge { size, limit });
    }
    let mut whole = vec![0; length];
    for (at, chunk) in whole.chunks_mut(CHUNK).enumerate() {
        let (offset, length) = ((at * CHUNK) as u64, chunk.len() as u64);
        source.read_exact_at(chunk, offset).map_err(|source| Error::Io { offset, length, source })?;
    }
    Ok(whole)
}
