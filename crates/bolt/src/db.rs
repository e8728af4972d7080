//! A database: which state of it is read, and where its pages are.
//!
//! Single-threaded: it remembers what each page belongs to, without a lock.

use std::cell::RefCell;
use std::fmt;

use crate::bucket::Bucket;
use crate::claims::Claims;
use crate::error::{Error, Place, Result};
use crate::meta::{self, DamagedMeta, Meta};
use crate::page::{Bounds, HEADER, Header, Page};
use crate::source::{Source, read};

/// How many bytes a page and those that it runs on over may have together. bbolt allows values of two gigabytes; this is what
/// bounds memory on a file that lies.
pub const MAX_RUN_BYTES: u64 = 256 << 20;
/// How many pages may be above another. A tree of 2^64 keys with two for each page has as many.
pub const MAX_TREE_DEPTH: u32 = 64;
/// How many buckets may be around another. bbolt has no bound; this one keeps recursive callers from a full stack.
pub const MAX_NESTING: u32 = 256;

/// An open database, at the state of its newest valid meta page.
pub struct Db<'s> {
    source: &'s dyn Source,
    /// Whole pages that are in the file and in use or free.
    pages: u64,
    meta: Meta,
    damaged: Option<DamagedMeta>,
    /// What pages belong to.
    claims: RefCell<Claims>,
}

impl<'s> Db<'s> {
    /// Reads the meta pages.
    ///
    /// # Errors
    /// [`Error::NoMeta`] if neither is valid, and what the source says.
    pub fn open(source: &'s dyn Source) -> Result<Self> {
        let (meta, damaged) = meta::choose(meta::both(source)?)?;
        let size = source.size().map_err(|source| Error::Io { offset: 0, length: 0, source })?;
        let pages = meta.pages.min(size / u64::from(meta.page_size));
        Ok(Self { source, pages, meta, damaged, claims: RefCell::default() })
    }

    /// The meta page that is used: the newest valid one.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The other meta page if it is damaged: then what is read may be one transaction old.
    pub fn damaged_meta(&self) -> Option<&DamagedMeta> {
        self.damaged.as_ref()
    }

    /// Whether nothing was committed since the database was opened, so that all that was read is of one state.
    ///
    /// # Errors
    /// As [`Db::open`].
    pub fn is_current(&self) -> Result<bool> {
        Ok(newest(self.source)? == self.meta)
    }

    /// How many bytes all its pages have that are in the file, free ones too.
    pub fn bytes_in_use(&self) -> u64 {
        self.pages * u64::from(self.meta.page_size)
    }

    /// The bucket that has all others.
    pub fn root(&self) -> Bucket<'_> {
        let by = u64::from(self.meta.page) * u64::from(self.meta.page_size) + 32;
        Bucket::root(self, self.meta.root, by)
    }

    /// A page of a tree, which the byte `by` of the file names.
    pub(crate) fn page(&self, id: u64, by: u64, is_root: bool, bounds: &Bounds) -> Result<Page> {
        let outside = |overflow| Error::Outside { page: id, overflow, by, last: self.pages.saturating_sub(1) };
        if !(2..self.pages).contains(&id) {
            return Err(outside(0));
        }
        let page_size = u64::from(self.meta.page_size);
        let place = Place { page: id, offset: id * page_size };
        let first = read(self.source, place.offset, page_size as usize)?;
        let header = Header::parse(&first[..HEADER], self.meta.order);
        if header.id != id {
            return Err(Error::PageId { place, expected: id, found: header.id });
        }
        let run = 1 + u64::from(header.overflow);
        if run > self.pages - id {
            return Err(outside(header.overflow));
        }
        // Before anything is noted of each of its pages.
        if run > 1 && run * page_size > MAX_RUN_BYTES {
            return Err(Error::LongRun { place, bytes: run * page_size, limit: MAX_RUN_BYTES });
        }
        let claimed = self.claims.borrow_mut().claim(id, run, by);
        claimed.map_err(|(page, first)| Error::Shared { page, first, second: by })?;
        let bytes = if run == 1 { first } else { read(self.source, place.offset, (run * page_size) as usize)? };
        Page::new(place, bytes, self.meta.order, is_root, bounds)
    }
}

/// The newest valid meta page.
pub(crate) fn newest(source: &dyn Source) -> Result<Meta> {
    meta::choose(meta::both(source)?).map(|(meta, _)| meta)
}

impl fmt::Debug for Db<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db").field("meta", &self.meta).field("damaged", &self.damaged).finish_non_exhaustive()
    }
}
