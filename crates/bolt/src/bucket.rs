//! Buckets: sorted keys, each with a value or a further bucket.

use bytes::Bytes;

use crate::db::{Db, MAX_NESTING, MAX_TREE_DEPTH};
use crate::error::{Error, Place, Result};
use crate::iter::Iter;
use crate::leaf::Leaf;
use crate::page::{self, Bounds, PREFIX, Page};

/// A bucket. Nothing of it is read before it is asked.
#[derive(Debug, Clone)]
pub struct Bucket<'db> {
    db: &'db Db<'db>,
    root: Root,
    sequence: u64,
    nesting: u32,
}

#[derive(Debug, Clone)]
enum Root {
    /// A page, and the byte of the file that names it.
    Page { id: u64, by: u64 },
    /// In the value of an element of a page.
    Inline { page: Place, index: usize, value: Bytes, offset: u64 },
}

/// What a key has.
#[derive(Debug, Clone)]
pub enum Entry<'db> {
    /// A value.
    Value(Bytes),
    /// A bucket.
    Bucket(Bucket<'db>),
}

impl<'db> Entry<'db> {
    /// The value, if it is one.
    pub fn value(self) -> Option<Bytes> {
        match self {
            Self::Value(value) => Some(value),
            Self::Bucket(_) => None,
        }
    }

    /// The bucket, if it is one.
    pub fn bucket(self) -> Option<Bucket<'db>> {
        match self {
            Self::Value(_) => None,
            Self::Bucket(bucket) => Some(bucket),
        }
    }
}

impl<'db> Bucket<'db> {
    pub(crate) fn root(db: &'db Db<'_>, id: u64, by: u64) -> Self {
        Self { db, root: Root::Page { id, by }, sequence: 0, nesting: 0 }
    }

    /// What a key has, if it is there.
    ///
    /// # Errors
    /// If a page on the way to it cannot be read.
    pub fn entry(&self, key: &[u8]) -> Result<Option<Entry<'db>>> {
        let (mut page, mut bounds) = (self.first_page()?, Bounds::default());
        for _ in 0..MAX_TREE_DEPTH {
            let found = page.find(key);
            if !page.is_branch {
                return found.ok().map(|index| self.entry_at(&page, index)).transpose();
            }
            // The page that has the key is named by it or by the last key before it.
            let Some(index) = found.map_or_else(|next| next.checked_sub(1), Some) else { return Ok(None) };
            bounds = page.bounds(index, &bounds);
            page = self.child(&page, index, &bounds)?;
        }
        Err(too_deep(page.place))
    }

    /// The value of a key, if it is there and has one.
    ///
    /// # Errors
    /// As [`Bucket::entry`].
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.entry(key)?.and_then(Entry::value))
    }

    /// The bucket of that name, if there is one.
    ///
    /// # Errors
    /// As [`Bucket::entry`].
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Self>> {
        Ok(self.entry(name)?.and_then(Entry::bucket))
    }

    /// All keys in order, with what they have. After an error it goes on with what can be reached without that page.
    pub fn iter(&self) -> Iter<'db> {
        Iter::new(self.clone())
    }

    /// All that it has, if that is on one page.
    ///
    /// # Errors
    /// If that page cannot be read.
    pub fn leaf(&self) -> Result<Option<Leaf<'_, 'db>>> {
        let page = self.first_page()?;
        Ok((!page.is_branch).then(|| Leaf::new(self, page)))
    }

    /// The number that the bucket's owner last drew from it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn first_page(&self) -> Result<Page> {
        match &self.root {
            Root::Page { id, by } => self.db.page(*id, *by, true, &Bounds::default()),
            Root::Inline { page, index, value, offset } => {
                let place = page::inline(*page, *index, *offset, value.len())?;
                Page::inline(place, value.slice(PREFIX..), self.db.meta().order)
            }
        }
    }

    pub(crate) fn child(&self, page: &Page, index: usize, bounds: &Bounds) -> Result<Page> {
        let (id, by) = page.child(index);
        self.db.page(id, by, false, bounds)
    }

    /// What an element of one of its leaf pages has.
    pub(crate) fn entry_at(&self, page: &Page, index: usize) -> Result<Entry<'db>> {
        let (value, offset, is_bucket) = page.value(index);
        if !is_bucket {
            return Ok(Entry::Value(value));
        }
        let nesting = self.nesting + 1;
        if nesting > MAX_NESTING {
            return Err(Error::TooDeep { place: page.place, what: "buckets", limit: MAX_NESTING });
        }
        // Numbers of which a value is too short are 0; what is wrong with it is told when it is read.
        let order = self.db.meta().order;
        let root = match order.u64(&value, 0) {
            0 => Root::Inline { page: page.place, index, value: value.clone(), offset },
            id => Root::Page { id, by: offset },
        };
        Ok(Entry::Bucket(Self { db: self.db, root, sequence: order.u64(&value, 8), nesting }))
    }
}

pub(crate) fn too_deep(place: Place) -> Error {
    Error::TooDeep { place, what: "pages", limit: MAX_TREE_DEPTH }
}
