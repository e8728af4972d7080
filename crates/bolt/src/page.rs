//! One page, checked as a whole before anything of it is used.
//!
//! A page is a header (its number, flags, how many elements, how many pages it runs on over), then its elements, then their
//! keys and values. An element says where its key begins, from its own beginning on. Branch pages name a page for each key,
//! leaf pages have a value. A bucket that is small enough is a leaf page in a value.

use std::cmp::Ordering;
use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::error::{Error, Place, Result};

/// Bytes of a page's header.
pub(crate) const HEADER: usize = 16;
/// Bytes before a bucket's page, if it is in a value: where its root is, and its sequence number.
pub(crate) const PREFIX: usize = 16;
/// Bytes of an element, of either kind.
const ELEMENT: usize = 16;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// The flag of an element whose value is a bucket.
const BUCKET: u32 = 0x01;

/// In which order the machine that wrote a file has the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        // 0 where there is none: callers look at lengths.
        bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    pub(crate) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let bytes = Self::array(bytes, at);
        if self == Self::Little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }
    }

    pub(crate) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let bytes = Self::array(bytes, at);
        if self == Self::Little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    }

    pub(crate) fn u64(self, bytes: &[u8], at: usize) -> u64 {
        let bytes = Self::array(bytes, at);
        if self == Self::Little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) }
    }
}

/// Between which keys those of a page must be: from the first on, before the second.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    pub(crate) from: Option<Bytes>,
    pub(crate) to: Option<Bytes>,
}

/// What the header says.
pub(crate) struct Header {
    pub(crate) id: u64,
    flags: u16,
    count: u16,
    pub(crate) overflow: u32,
}

impl Header {
    pub(crate) fn parse(bytes: &[u8], order: Order) -> Self {
        Self {
            id: order.u64(bytes, 0),
            flags: order.u16(bytes, 8),
            count: order.u16(bytes, 10),
            overflow: order.u32(bytes, 12),
        }
    }
}

/// A checked page, of bytes of its own or lent ones.
#[derive(Debug, Clone)]
pub(crate) struct Page<B = Bytes> {
    pub(crate) place: Place,
    pub(crate) is_branch: bool,
    bytes: B,
    order: Order,
    count: usize,
}

impl<B: Deref<Target = [u8]>> Page<B> {
    /// Checks a page of a tree.
    pub(crate) fn new(place: Place, bytes: B, order: Order, is_root: bool, bounds: &Bounds) -> Result<Self> {
        let page = Self::sized(place, bytes, order, place.page)?;
        if page.count == 0 && (page.is_branch || !is_root) {
            return Err(Error::Empty { place });
        }
        page.check(bounds)?;
        Ok(page)
    }

    /// Checks a bucket that is in a value.
    pub(crate) fn inline(place: Place, bytes: B, order: Order) -> Result<Self> {
        let page = Self::sized(place, bytes, order, 0)?;
        if page.is_branch {
            return Err(Error::PageKind { place, expected: "0x0002 (leaf) of a bucket in a value", found: BRANCH });
        }
        page.check(&Bounds::default())?;
        Ok(page)
    }

    fn sized(place: Place, bytes: B, order: Order, expected: u64) -> Result<Self> {
        let header = Header::parse(&bytes, order);
        if header.id != expected {
            return Err(Error::PageId { place, expected, found: header.id });
        }
        if !matches!(header.flags, BRANCH | LEAF) {
            let expected = "0x0001 (branch) or 0x0002 (leaf)";
            return Err(Error::PageKind { place, expected, found: header.flags });
        }
        let (count, room) = (usize::from(header.count), bytes.len());
        if HEADER + count * ELEMENT > room {
            return Err(Error::Count { place, count: header.count, room });
        }
        Ok(Self { place, is_branch: header.flags == BRANCH, bytes, order, count })
    }

    /// That elements are within the page, have no more bytes together than it, and are in order.
    fn check(&self, bounds: &Bounds) -> Result<()> {
        let room = self.bytes.len();
        let mut taken = (HEADER + self.count * ELEMENT) as u64;
        for index in 0..self.count {
            let (start, length) = self.extent(index);
            taken += length;
            if start + length > room as u64 || taken > room as u64 {
                let length = if start + length > room as u64 { length } else { taken };
                return Err(Error::Element { place: self.place, index, start, length, room });
            }
            let flags = if self.is_branch { 0 } else { self.field(index, 0) };
            if flags & !BUCKET != 0 {
                return Err(Error::ElementKind { place: self.place, index, found: flags });
            }
            self.check_order(index, bounds)?;
        }
        Ok(())
    }

    fn check_order(&self, index: usize, bounds: &Bounds) -> Result<()> {
        let key = self.key_bytes(index);
        let expected = if index > 0 && self.key_bytes(index - 1) >= key {
            "after the one before it"
        } else if index == 0 && bounds.from.as_ref().is_some_and(|from| key < &from[..]) {
            "from the one on that names its page"
        } else if index + 1 == self.count && bounds.to.as_ref().is_some_and(|to| key >= &to[..]) {
            "before the one that names the next page"
        } else {
            return Ok(());
        };
        Err(Error::Order { place: self.place, index, expected })
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The page that an element of a branch names, and the byte of the file where it does.
    pub(crate) fn child(&self, index: usize) -> (u64, u64) {
        let at = HEADER + index * ELEMENT + 8;
        (self.order.u64(&self.bytes, at), self.place.offset + at as u64)
    }

    /// The bytes of an element's value, and whether it is a bucket.
    pub(crate) fn value_bytes(&self, index: usize) -> (&[u8], bool) {
        (&self.bytes[self.value_range(index)], self.field(index, 0) & BUCKET != 0)
    }

    /// The bucket in the value of an element of a leaf, unless its pages are elsewhere.
    pub(crate) fn bucket_in(&self, index: usize) -> Option<Result<Page<&[u8]>>> {
        let (value, is_bucket) = self.value_bytes(index);
        if !is_bucket || self.order.u64(value, 0) != 0 {
            return None;
        }
        let offset = self.place.offset + self.value_range(index).start as u64;
        let place = inline(self.place, index, offset, value.len());
        Some(place.and_then(|place| Page::inline(place, &value[PREFIX..], self.order)))
    }

    /// The element with that key, or else where it would be.
    pub(crate) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.key_bytes(middle).cmp(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    fn field(&self, index: usize, at: usize) -> u32 {
        self.order.u32(&self.bytes, HEADER + index * ELEMENT + at)
    }

    /// Where in the page an element's key begins, and how many bytes key and value have.
    fn extent(&self, index: usize) -> (u64, u64) {
        let (position, key, value) = if self.is_branch {
            (self.field(index, 0), self.field(index, 4), 0)
        } else {
            (self.field(index, 4), self.field(index, 8), self.field(index, 12))
        };
        let element = (HEADER + index * ELEMENT) as u64;
        (element + u64::from(position), u64::from(key) + u64::from(value))
    }

    fn key_range(&self, index: usize) -> Range<usize> {
        let start = self.extent(index).0 as usize;
        start..start + self.field(index, if self.is_branch { 4 } else { 8 }) as usize
    }

    /// The bytes of a key.
    pub(crate) fn key_bytes(&self, index: usize) -> &[u8] {
        &self.bytes[self.key_range(index)]
    }

    fn value_range(&self, index: usize) -> Range<usize> {
        let start = self.key_range(index).end;
        start..start + self.field(index, 12) as usize
    }
}

impl Page {
    pub(crate) fn key(&self, index: usize) -> Bytes {
        self.bytes.slice(self.key_range(index))
    }

    /// The keys that the page which an element of a branch names may have.
    pub(crate) fn bounds(&self, index: usize, outer: &Bounds) -> Bounds {
        let to = if index + 1 < self.count { Some(self.key(index + 1)) } else { outer.to.clone() };
        Bounds { from: Some(self.key(index)), to }
    }

    /// The value of an element of a leaf, the byte of the file where it begins, and whether it is a bucket.
    pub(crate) fn value(&self, index: usize) -> (Bytes, u64, bool) {
        let range = self.value_range(index);
        let offset = self.place.offset + range.start as u64;
        (self.bytes.slice(range), offset, self.field(index, 0) & BUCKET != 0)
    }
}

/// Where the page of a bucket in a value is.
pub(crate) fn inline(page: Place, index: usize, offset: u64, length: usize) -> Result<Place> {
    let expected = PREFIX + HEADER;
    if length < expected {
        return Err(Error::Bucket { place: page, index, length, expected });
    }
    Ok(Place { page: page.page, offset: offset + PREFIX as u64 })
}
