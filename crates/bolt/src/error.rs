//! What can be wrong with a file. Every error about a page names it, what was expected and what was found.

use std::{fmt, io};

use crate::meta::MetaDamage;

/// Result of reading a database.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where in a file a page, or a bucket that is kept in a value, begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The page.
    pub page: u64,
    /// The byte of the file.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} (at byte {})", self.page, self.offset)
    }
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes could not be had.
    #[error("reading {length} bytes at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// How many.
        length: u64,
        /// Why.
        source: io::Error,
    },
    /// Neither meta page is valid.
    #[error("not a bbolt database, or its two meta pages are damaged: the first: {first}; the second: {second}")]
    NoMeta {
        /// What is wrong with the first.
        first: MetaDamage,
        /// What is wrong with the second.
        second: MetaDamage,
    },
    /// More bytes than the caller allows.
    #[error("the database has {size} bytes, more than the {limit} that may be copied")]
    TooLarge {
        /// What there is.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// Somebody committed during each attempt to read one state.
    #[error("the database was written to during each of {attempts} attempts to read it; ask its owner, or stop it")]
    Changing {
        /// How often it was tried.
        attempts: u32,
    },
    /// A page, or the pages that it runs on over, is not in the file.
    #[error(
        "page {page} with {overflow} pages of overflow, which byte {by} names, is not among pages 2 to {last} of the file"
    )]
    Outside {
        /// The page.
        page: u64,
        /// The pages it runs on over.
        overflow: u32,
        /// The byte of the file where it is named.
        by: u64,
        /// The last page there is.
        last: u64,
    },
    /// A page runs on over more pages than any that this reader is for.
    #[error("{place} runs on over {bytes} bytes, more than the {limit} that are read at once")]
    LongRun {
        /// The page.
        place: Place,
        /// How many bytes.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// A page says that it is another.
    #[error("{place} says that it is page {found}, expected {expected}")]
    PageId {
        /// The page.
        place: Place,
        /// What it should say.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// A page is of a kind that cannot be here.
    #[error("{place} has flags {found:#06x}, expected {expected}")]
    PageKind {
        /// The page.
        place: Place,
        /// What can be here.
        expected: &'static str,
        /// What it says.
        found: u16,
    },
    /// A page is reached from two places, or overlaps another.
    #[error("page {page} belongs to byte {first} of the file, but byte {second} names it or a page that it is part of")]
    Shared {
        /// The page.
        page: u64,
        /// Where it is named.
        first: u64,
        /// Where it, or its neighbour that overlaps it, is named too.
        second: u64,
    },
    /// A page says that it has more elements than there is room for.
    #[error("{place} says that it has {count} elements, expected no more than its {room} bytes have room for")]
    Count {
        /// The page.
        place: Place,
        /// How many it says.
        count: u16,
        /// Its bytes.
        room: usize,
    },
    /// A page below another has nothing in it.
    #[error("{place} has no elements, expected at least one in a page that another page names")]
    Empty {
        /// The page.
        place: Place,
    },
    /// An element's key and value are not within its page, or all together have more bytes than it.
    #[error(
        "element {index} of {place} takes {length} bytes at byte {start} of the page, expected all within {room} bytes"
    )]
    Element {
        /// The page.
        place: Place,
        /// Which element.
        index: usize,
        /// Where it begins in the page.
        start: u64,
        /// How many bytes it, or it and those before it, take.
        length: u64,
        /// The bytes of the page.
        room: usize,
    },
    /// An element is neither a value nor a bucket.
    #[error("element {index} of {place} has flags {found:#x}, expected 0 (a value) or 1 (a bucket)")]
    ElementKind {
        /// The page.
        place: Place,
        /// Which element.
        index: usize,
        /// What it says.
        found: u32,
    },
    /// A key is not after the one before it, or not between those that its parent promises.
    #[error("the key of element {index} of {place} is out of order, expected one {expected}")]
    Order {
        /// The page.
        place: Place,
        /// Which element.
        index: usize,
        /// Between what it should be.
        expected: &'static str,
    },
    /// A bucket's value is too short to be one.
    #[error("element {index} of {place} is a bucket of {length} bytes, expected at least {expected}")]
    Bucket {
        /// The page.
        place: Place,
        /// Which element.
        index: usize,
        /// How many there are.
        length: usize,
        /// How many there must be.
        expected: usize,
    },
    /// Pages below pages, or buckets in buckets, further down than any real ones.
    #[error("{place} is more than {limit} {what} deep")]
    TooDeep {
        /// The page.
        place: Place,
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u32,
    },
}
