//! Blocks for the index of SQLite's write-ahead log, before it is written to.
//!
//! The index (`meta.db-shm`) is mapped into memory: where a page of it has no block and the disk is full, writing to it ends the
//! process (SIGBUS). SQLite has one byte of each 4 KiB written beforehand, which is enough where blocks are that large, and leaves holes
//! where they are smaller. So all blocks are asked for before a part is mapped, and where there are none the mapping fails, which is an
//! error like any other. A file system that knows no such request (ext2 and ext3 do not) is taken as SQLite takes it.
//!
//! # Invariants
//! - Nothing maps a part of the index for writing without [`map`]: SQLite calls it instead of `mmap`, from before the first connection of
//!   the process on.
//! - Asking changes no byte: others may be at work in the same part.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Once;

use rusqlite::ffi;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::Error;

/// The first version of a VFS whose system calls can be replaced.
const REPLACEABLE: c_int = 3;

thread_local! {
    /// Why a part of the index could not be mapped last.
    static REFUSED: Cell<Option<Errno>> = const { Cell::new(None) };
}

/// Has SQLite map by [`map`]. To be called before a connection is opened.
pub(crate) fn guard() {
    static GUARDED: Once = Once::new();
    GUARDED.call_once(|| {
        // SAFETY: what a caller owes is said at `map`; SQLite, the only one, owes `mmap` the same.
        type Call = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, c_int, libc::off_t) -> *mut c_void;
        let call: Call = map;
        // SAFETY: without a name the default VFS is found, which lives as long as the process; the name of the call is a C string.
        // SQLite casts the pointer back to the type of `mmap` before it calls it, and that is what `map` has. No connection is open
        // yet, so nobody reads the table of calls meanwhile.
        let replaced = unsafe {
            let vfs = ffi::sqlite3_vfs_find(ptr::null());
            // SQLite has offsets of 64 bits everywhere.
            let is_known = |vfs: &&ffi::sqlite3_vfs| vfs.iVersion >= REPLACEABLE && size_of::<libc::off_t>() == 8;
            let replace = vfs.as_ref().filter(is_known).and_then(|vfs| vfs.xSetSystemCall);
            let call = std::mem::transmute::<Call, unsafe extern "C" fn()>(call);
            replace.map(|replace| replace(vfs, c"mmap".as_ptr(), Some(call)))
        };
        if replaced != Some(ffi::SQLITE_OK) {
            tracing::warn!("the index of the database's log may be without blocks on a full disk");
        }
    });
}

/// What the system said when a part of the index could not be mapped, if that is what the error says.
pub(crate) fn refused(error: &Error) -> Option<io::Error> {
    let Error::Database { source, .. } = error else { return None };
    let is_mapping = source.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMMAP);
    REFUSED.take().filter(|_| is_mapping).map(io::Error::from)
}

/// `mmap`, which asks for the blocks of what is shared and written.
///
/// # Safety
/// As `mmap`; `file` is open as long as the call lasts. SQLite alone calls it, in the place of `mmap`.
// SAFETY: each of its two calls says why it may be made.
unsafe extern "C" fn map(
    address: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    if flags & libc::MAP_SHARED != 0 && protection & libc::PROT_WRITE != 0 {
        // SAFETY: SQLite has the file open as long as it is in this call.
        let asked = allocate(unsafe { BorrowedFd::borrow_raw(file) }, offset.unsigned_abs(), length as u64);
        if let Err(errno) = asked {
            REFUSED.set(Some(errno));
            return libc::MAP_FAILED;
        }
    }
    // SAFETY: as SQLite asks for it: it gives no address, so that nothing that is mapped is replaced.
    let mapped = unsafe { libc::mmap(address, length, protection, flags, file, offset) };
    if mapped == libc::MAP_FAILED {
        REFUSED.set(Errno::from_io_error(&io::Error::last_os_error()));
    }
    mapped
}

fn allocate(file: BorrowedFd<'_>, offset: u64, length: u64) -> rustix::io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, length) {
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            other => return other,
        }
    }
}
