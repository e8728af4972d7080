//! Buckets of one page, as those of single things are: nothing is copied of them.

use std::ops::Deref;

use bytes::Bytes;

use crate::bucket::{Bucket, Entry};
use crate::error::Result;
use crate::page::Page;

/// A key and its value; a bucket below has none.
pub type Pair<'p> = (&'p [u8], Option<&'p [u8]>);

/// All that a bucket of one page has.
#[derive(Debug)]
pub struct Leaf<'b, 'db> {
    bucket: &'b Bucket<'db>,
    page: Page,
}

/// A bucket in a value of a [`Leaf`].
#[derive(Debug)]
pub struct Inner<'p>(Page<&'p [u8]>);

impl<'b, 'db> Leaf<'b, 'db> {
    pub(crate) fn new(bucket: &'b Bucket<'db>, page: Page<Bytes>) -> Self {
        Self { bucket, page }
    }

    /// The value of a key, if it has one.
    pub fn value(&self, key: &[u8]) -> Option<&[u8]> {
        let (value, is_bucket) = self.page.value_bytes(self.page.find(key).ok()?);
        (!is_bucket).then_some(value)
    }

    /// The bucket of that name, if it is in a value of this page; else it may be on pages of its own.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn inner(&self, name: &[u8]) -> Result<Option<Inner<'_>>> {
        let Ok(index) = self.page.find(name) else { return Ok(None) };
        Ok(self.page.bucket_in(index).transpose()?.map(Inner))
    }

    /// The bucket of that name, wherever it is.
    ///
    /// # Errors
    /// If there are too many around it.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'db>>> {
        let Ok(index) = self.page.find(name) else { return Ok(None) };
        self.bucket.entry_at(&self.page, index).map(Entry::bucket)
    }

    /// All keys in order.
    pub fn iter(&self) -> impl Iterator<Item = Pair<'_>> {
        pairs(&self.page)
    }
}

impl Inner<'_> {
    /// All keys in order.
    pub fn iter(&self) -> impl Iterator<Item = Pair<'_>> {
        pairs(&self.0)
    }
}

fn pairs<B: Deref<Target = [u8]>>(page: &Page<B>) -> impl Iterator<Item = Pair<'_>> {
    (0..page.len()).map(|index| {
        let (value, is_bucket) = page.value_bytes(index);
        (page.key_bytes(index), (!is_bucket).then_some(value))
    })
}
