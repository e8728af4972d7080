//! Extents that several files share, as `cp --reflink`, `copy_file_range` and deduplication leave them.
//!
//! `st_blocks` counts such an extent for each file that has it; the file system has allocated it once. Only file systems that can
//! share are asked (XFS, Btrfs, Bcachefs): elsewhere this costs nothing.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// File systems whose files may share extents, by `statfs`' number (linux/magic.h).
const SHARING: [u64; 3] = [0x5846_5342, 0x9123_683E, 0xCA45_1A4E];

/// Extents that are asked for at once.
const BATCH: usize = 256;

/// `struct fiemap` of linux/fiemap.h, without the extents behind it.
#[repr(C)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

/// What the kernel reads and writes for one request.
#[repr(C)]
struct Map {
    head: Head,
    extents: [Extent; BATCH],
}

const _: () = assert!(size_of::<Head>() == 32 && size_of::<Extent>() == 56 && size_of::<Map>() == 32 + BATCH * 56);

/// `FS_IOC_FIEMAP`: its number has the size of the head alone.
const FIEMAP: Opcode = opcode::read_write::<Head>(b'f', 11);

/// The last extent of the file.
const LAST: u32 = 0x1;
/// Not allocated yet, or nobody knows where.
const UNKNOWN: u32 = 0x2;
/// Other files have it too.
const SHARED: u32 = 0x2000;

/// Whether files on this file system may share extents.
#[must_use]
pub fn may_be_shared(on: impl AsFd) -> bool {
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast, reason = "a number whose type differs between machines")]
    rustix::fs::fstatfs(on).is_ok_and(|found| SHARING.contains(&(found.f_type as u64 & 0xFFFF_FFFF)))
}

/// Where on disk a file has extents that other files have too; nothing of what is no regular file.
///
/// # Errors
/// If the file cannot be opened or asked.
fn shared(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<Vec<Range<u64>>> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_blocks == 0 {
        return Ok(Vec::new());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    shared_extents(rustix::fs::openat(directory, name, flags, Mode::empty())?.as_fd())
}

fn shared_extents(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<Range<u64>>> {
    let (mut found, mut start) = (Vec::new(), 0);
    loop {
        let map = mapped(file, start)?;
        let extents = &map.extents[..(map.head.mapped as usize).min(BATCH)];
        let shared = extents.iter().filter(|extent| extent.flags & SHARED != 0 && extent.flags & UNKNOWN == 0);
        found.extend(shared.map(|extent| extent.physical..extent.physical.saturating_add(extent.length)));
        match extents.last() {
            Some(last) if last.flags & LAST == 0 && last.length > 0 => start = last.logical.saturating_add(last.length),
            _ => return Ok(found),
        }
    }
}

fn mapped(file: BorrowedFd<'_>, start: u64) -> rustix::io::Result<Box<Map>> {
    let none = Extent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: 0, reserved_too: [0; 3] };
    let head = Head { start, length: u64::MAX - start, flags: 0, mapped: 0, room: BATCH as u32, reserved: 0 };
    let mut map = Box::new(Map { head, extents: [none; BATCH] });
    // SAFETY: the kernel reads a `struct fiemap` and writes it and as many `struct fiemap_extent` behind it as `room` says, for
    // which `Map` has the room; any bytes are valid in both.
    unsafe { ioctl(file, Updater::<FIEMAP, Map>::new(&mut map)) }?;
    Ok(map)
}

/// Which extents of one file system have been counted.
#[derive(Debug, Default)]
pub struct Counted {
    /// All of them, by where they begin; none touches another.
    all: BTreeMap<u64, u64>,
    /// Those that were counted more than once.
    again: BTreeMap<u64, u64>,
}

impl Counted {
    /// Counts an extent; returns how many of its bytes had been counted before.
    pub fn count(&mut self, extent: Range<u64>) -> u64 {
        let before = insert(&mut self.all, extent);
        let bytes = before.iter().map(|range| range.end - range.start).sum();
        before.into_iter().for_each(|range| drop(insert(&mut self.again, range)));
        bytes
    }

    /// Bytes that were counted once.
    #[must_use]
    pub fn once(&self) -> u64 {
        let total = |ranges: &BTreeMap<u64, u64>| ranges.iter().map(|(from, to)| to - from).sum::<u64>();
        total(&self.all) - total(&self.again)
    }
}

/// Adds a range; returns what of it was there.
fn insert(ranges: &mut BTreeMap<u64, u64>, range: Range<u64>) -> Vec<Range<u64>> {
    let Range { mut start, mut end } = range;
    let mut before = Vec::new();
    if start >= end {
        return before;
    }
    // Ranges do not overlap, so that from the last that begins before the end downwards all that touch follow each other.
    while let Some((&from, &to)) = ranges.range(..=end).next_back().filter(|(_, to)| **to >= start) {
        before.push(from.max(range.start)..to.min(range.end));
        ranges.remove(&from);
        (start, end) = (start.min(from), end.max(to));
    }
    ranges.insert(start, end);
    before.retain(|range| range.start < range.end);
    before
}

/// Bytes of a file's extents that other files have too.
///
/// # Errors
/// As [`allocated`].
pub fn shared_bytes(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<u64> {
    told(shared(directory, name, stat).map(total), 0)
}

/// The same of a file that is open.
///
/// # Errors
/// As [`allocated`].
pub fn shared_bytes_of(file: impl AsFd) -> rustix::io::Result<u64> {
    told(shared_extents(file.as_fd()).map(total), 0)
}

fn total(extents: Vec<Range<u64>>) -> u64 {
    extents.into_iter().map(|extent| extent.end - extent.start).sum()
}

/// What a file takes by `st_blocks`, less what was counted of it with other files.
///
/// # Errors
/// If the file cannot be asked for its extents; that it went meanwhile, may not be read or has none to tell is no error.
pub fn allocated(
    directory: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    counted: impl Fn(Range<u64>) -> u64,
) -> rustix::io::Result<u64> {
    let bytes = stat.st_blocks.unsigned_abs() * 512;
    let extents = shared(directory, name, stat);
    told(extents.map(|extents| bytes.saturating_sub(extents.into_iter().map(counted).sum())), bytes)
}

/// What the file system said, or `untold` if it does not tell.
fn told(asked: rustix::io::Result<u64>, untold: u64) -> rustix::io::Result<u64> {
    match asked {
        // It went meanwhile, or is something else by now.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(0),
        // Not this user's to read, or a file system that does not tell: as `du` counts it.
        Err(Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP | Errno::NOTTY) => Ok(untold),
        told => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_whatever_the_order() {
        let mut counted = Counted::default();
        assert_eq!(counted.count(100..200), 0);
        assert_eq!(counted.count(100..200), 100);
        assert_eq!(counted.count(300..400), 0);
        assert_eq!(counted.count(150..350), 100, "50 of each");
        assert_eq!(counted.count(0..1_000), 300);
        assert_eq!(counted.count(5..5), 0);
        assert_eq!(counted.all, BTreeMap::from([(0, 1_000)]));
        assert_eq!(counted.once(), 1_000 - 300, "100..400 were counted twice");
    }

    #[test]
    fn random_extents_are_counted_as_a_set_of_bytes_counts_them() {
        let (mut counted, mut random) = (Counted::default(), 1_u64);
        let mut bytes = std::collections::BTreeMap::<u64, u32>::new();
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for _ in 0..2_000 {
            let start = next(3_000);
            let extent = start..start + next(60);
            let mut before = 0;
            for byte in extent.clone() {
                let times = bytes.entry(byte).or_default();
                before += u64::from(*times > 0);
                *times += 1;
            }
            assert_eq!(counted.count(extent.clone()), before, "{extent:?}");
            assert_eq!(counted.once(), bytes.values().filter(|times| **times == 1).count() as u64, "{extent:?}");
        }
    }
}
