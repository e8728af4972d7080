//! Power cuts: what a program wrote is recorded from outside, and every state that a cut may leave behind is made.
//!
//! ```text
//! Recorder    runs the unmodified program under strace, and follows each call that changes a file below one directory
//!    │        (trace: lines → calls; record: calls → operations)
//! Timeline    the operations, in the order in which they were done, which of them each sync made durable, and marks
//!    │        where somebody was answered
//! explore     at each point the operations that no sync covers: none, all, prefixes, subsets, torn and hollow writes
//!    │        (states)
//! Disk        a file system in memory; laid into a directory to be opened
//! ```
//!
//! Nothing in the program knows of it, so SQLite's files, blobs, trees and renames are all seen as the kernel sees them. What the
//! recorder does not know how to follow ends the recording with the call; and [`Recorder::finish`] compares what was followed
//! with what is really there, byte by byte, so that nothing is missed in silence. Other ways were weighed: a library that is
//! preloaded does not see system calls that are made without libc; a file system in user space is not told of `syncfs(2)`; a
//! target of the device mapper takes a kernel that has it, and cuts in the middle of a real journal only.
//!
//! # The model of a disk
//! - `fsync` of a file makes its bytes, its length and its attributes durable, and that it was made (ext4, xfs and btrfs do; POSIX
//!   says nothing): its first name, and those of the directories above it. `fdatasync` is the same without attributes.
//! - `fsync` of a directory makes durable what happened to the names in it. `syncfs` makes all durable.
//! - Whatever is not durable may be there after the cut or not, each operation by itself: names without their files' bytes, bytes
//!   without the last name, a later operation without an earlier one.
//! - A write that is not durable may be torn at a multiple of 512 bytes, in front or behind, or *hollow*: the length is there and
//!   the bytes are zeros.
//! - A rename is there or is not, in both directories at once. What was synced does not change.
//!
//! # Order
//! Calls of several threads are taken in the order in which they ended. A sync covers what had ended before it began.
//!
//! Memory that is mapped and written is not followed: of SQLite's files that is the index of its write-ahead log (`-shm`), which
//! the first to open the database makes anew; it is laid as zeros.

mod disk;
mod explore;
mod record;
mod timeline;
mod trace;

pub use disk::{Disk, How};
pub use explore::{Amount, Explored, State};
pub use record::{Followed, Recorder};
pub use timeline::Timeline;

/// Whether the recorder's program is there; if not, says that the test is skipped.
pub fn need_recorder() -> bool {
    crate::process::need("strace", "strace").is_some()
}
