//! The two meta pages. Each transaction writes the one whose number is its own number's last bit, so that the other one still
//! stands if the write is torn.

use std::fmt;

use crate::error::{Error, Result};
use crate::page::{HEADER, Order};
use crate::source::{Source, read};

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// What of a meta page the checksum is over, and where it is.
const SUMMED: usize = 56;
/// A page's header and the meta in it.
const LENGTH: usize = HEADER + SUMMED + 8;
/// The sizes of page that are looked for where the first meta page cannot tell it.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 9..=24;

/// What a meta page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Which of the two pages: 0 or 1.
    pub page: u8,
    /// The transaction that wrote it.
    pub txid: u64,
    /// Bytes of a page.
    pub page_size: u32,
    /// The page where the root bucket begins.
    pub root: u64,
    /// How many pages there are, free ones too.
    pub pages: u64,
    pub(crate) order: Order,
}

/// A meta page that is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedMeta {
    /// Which of the two pages: 0 or 1.
    pub page: u8,
    /// What is wrong with it.
    pub damage: MetaDamage,
}

impl fmt::Display for DamagedMeta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meta page {}: {}", self.page, self.damage)
    }
}

/// What is wrong with a meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetaDamage {
    /// The file ends before it does.
    #[error("the file ends before it, at {size} bytes")]
    Missing {
        /// Bytes of the file.
        size: u64,
    },
    /// It is not found at any place where a page of a known size could end.
    #[error("not found at any size of page, since the first one cannot tell it")]
    NotFound,
    /// It does not begin as one.
    #[error("magic number {found:#010x}, expected 0xed0cdaed")]
    Magic {
        /// What it begins with.
        found: u32,
    },
    /// It is of another version of the format.
    #[error("version {found}, expected 2")]
    Version {
        /// Which.
        found: u32,
    },
    /// Its bytes do not add up to its checksum.
    #[error("checksum {found:#018x}, its bytes add up to {actual:#018x}")]
    Checksum {
        /// What it says.
        found: u64,
        /// What its bytes add up to.
        actual: u64,
    },
    /// Its size of page is none, or not that of the first meta page.
    #[error("pages of {found} bytes, expected a power of two from 512 to 16777216, the same in both meta pages")]
    PageSize {
        /// What it says.
        found: u32,
    },
    /// Its root is not among its pages.
    #[error("its root is page {root}, expected one from 2 to {}", .pages.saturating_sub(1))]
    Root {
        /// The root.
        root: u64,
        /// How many pages it says there are.
        pages: u64,
    },
}

/// Both meta pages; the second is looked for at each size of page if the first cannot tell it.
pub(crate) fn both(source: &dyn Source) -> Result<[Result<Meta, MetaDamage>; 2]> {
    let first = parse(source, 0, 0)?;
    let second = match &first {
        Ok(meta) => match parse(source, 1, meta.page_size)? {
            Ok(second) if second.page_size != meta.page_size => Err(MetaDamage::PageSize { found: second.page_size }),
            other => other,
        },
        Err(_) => search(source)?,
    };
    Ok([first, second])
}

/// The newest of the valid ones, and the other if it is damaged.
pub(crate) fn choose(both: [Result<Meta, MetaDamage>; 2]) -> Result<(Meta, Option<DamagedMeta>)> {
    match both {
        [Ok(first), Ok(second)] => Ok((if second.txid > first.txid { second } else { first }, None)),
        [Ok(meta), Err(damage)] => Ok((meta, Some(DamagedMeta { page: 1, damage }))),
        [Err(damage), Ok(meta)] => Ok((meta, Some(DamagedMeta { page: 0, damage }))),
        [Err(first), Err(second)] => Err(Error::NoMeta { first, second }),
    }
}

fn search(source: &dyn Source) -> Result<Result<Meta, MetaDamage>> {
    for size in PAGE_SIZES.map(|bits| 1 << bits) {
        match parse(source, 1, size)? {
            Ok(meta) if meta.page_size == size => return Ok(Ok(meta)),
            _ => {}
        }
    }
    Ok(Err(MetaDamage::NotFound))
}

fn parse(source: &dyn Source, page: u8, offset: u32) -> Result<Result<Meta, MetaDamage>> {
    let offset = u64::from(offset);
    let size = source.size().map_err(|source| Error::Io { offset, length: LENGTH as u64, source })?;
    if size < offset + LENGTH as u64 {
        return Ok(Err(MetaDamage::Missing { size }));
    }
    Ok(meta(page, &read(source, offset, LENGTH)?[HEADER..]))
}

fn meta(page: u8, bytes: &[u8]) -> Result<Meta, MetaDamage> {
    let order = [Order::Little, Order::Big].into_iter().find(|order| order.u32(bytes, 0) == MAGIC);
    let order = order.ok_or(MetaDamage::Magic { found: Order::Little.u32(bytes, 0) })?;
    let version = order.u32(bytes, 4);
    if version != VERSION {
        return Err(MetaDamage::Version { found: version });
    }
    let (found, actual) = (order.u64(bytes, SUMMED), fnv1a(&bytes[..SUMMED]));
    if found != actual {
        return Err(MetaDamage::Checksum { found, actual });
    }
    let page_size = order.u32(bytes, 8);
    if !page_size.is_power_of_two() || !PAGE_SIZES.contains(&page_size.trailing_zeros()) {
        return Err(MetaDamage::PageSize { found: page_size });
    }
    let (root, pages) = (order.u64(bytes, 16), order.u64(bytes, 40));
    if !(2..pages).contains(&root) {
        return Err(MetaDamage::Root { root, pages });
    }
    Ok(Meta { page, txid: order.u64(bytes, 48), page_size, root, pages, order })
}

/// FNV-1a of 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
