//! A walk over a bucket's keys, in order.

use bytes::Bytes;

use crate::bucket::{Bucket, Entry, too_deep};
use crate::db::MAX_TREE_DEPTH;
use crate::error::Result;
use crate::page::{Bounds, Page};

/// Keys in order, with what they have. An error stands for all that is on the page that could not be read, and below it; the
/// walk goes on behind it.
#[derive(Debug)]
pub struct Iter<'db> {
    bucket: Bucket<'db>,
    begun: bool,
    /// The pages from the root down to where the walk is.
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    page: Page,
    bounds: Bounds,
    next: usize,
}

impl<'db> Iter<'db> {
    pub(crate) fn new(bucket: Bucket<'db>) -> Self {
        Self { bucket, begun: false, open: Vec::new() }
    }

    fn begin(&mut self) -> Result<()> {
        let page = self.bucket.first_page()?;
        self.open.push(Open { page, bounds: Bounds::default(), next: 0 });
        Ok(())
    }
}

impl<'db> Iterator for Iter<'db> {
    type Item = Result<(Bytes, Entry<'db>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if !std::mem::replace(&mut self.begun, true)
            && let Err(error) = self.begin()
        {
            return Some(Err(error));
        }
        loop {
            let depth = self.open.len();
            let top = self.open.last_mut()?;
            let index = top.next;
            if index == top.page.len() {
                self.open.pop();
                continue;
            }
            top.next += 1;
            if !top.page.is_branch {
                let entry = self.bucket.entry_at(&top.page, index);
                return Some(entry.map(|entry| (top.page.key(index), entry)));
            }
            if depth >= MAX_TREE_DEPTH as usize {
                return Some(Err(too_deep(top.page.place)));
            }
            let bounds = top.page.bounds(index, &top.bounds);
            match self.bucket.child(&top.page, index, &bounds) {
                Ok(page) => self.open.push(Open { page, bounds, next: 0 }),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
