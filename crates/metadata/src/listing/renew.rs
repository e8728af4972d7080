//! Which parts of a listing must be read, at first and when the store has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection, params};

use super::read::{IMAGE, Reading, Seen};
use super::{ListedImage, Listing};
use crate::look::{self, Mark};
use crate::{ManifestSummary, Result, Store};

/// Once so many numbers were given that digests which were there at first are fewer than those that came since, and this many
/// more, all is read anew: a number is never taken back.
const SPARE_NUMBERS: usize = 4096;

/// From so many changed records on for each that is there, reading all costs less.
const CHANGED_PART: usize = 4;

/// How much a listing has, and of which state of the store.
#[derive(Debug, Clone, Default)]
pub(super) struct Extent {
    /// None: nothing was read yet.
    seen: Option<Seal>,
    /// Whether what images take was read too.
    usage: bool,
    /// Whether that is of the same state as the rest.
    is_usage_new: bool,
    /// Digests that had numbers when all had been read.
    numbers: usize,
    /// How often anything but records changed.
    others: u64,
}

/// What tells whether anything has to be read again.
#[derive(Debug, Clone, Copy)]
struct Seal {
    mark: Mark,
    blobs: usize,
    summaries: i64,
}

fn count(conn: &Connection, sql: &str) -> Result<i64> {
    Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Whether a namespace has the blobs that it had. While the counter of dropped ones stays, they are only added.
fn has_same_blobs(conn: &Connection, earlier: &Seal, mark: &Mark) -> Result<bool> {
    let now = || count(conn, "SELECT count(*) FROM blob");
    Ok(mark.kept_content_since(&earlier.mark) && usize::try_from(now()?) == Ok(earlier.blobs))
}

impl Store {
    /// Reads all that a listing needs; chain IDs and snapshots only if `usage` says that what images take is wanted.
    pub fn listing(&self, usage: bool) -> Result<Listing> {
        self.renew_listing(Listing::default(), usage)
    }

    /// Brings a listing up to date: snapshots only if `usage` says that what images take is wanted.
    pub fn renew_listing(&self, mut listing: Listing, usage: bool) -> Result<Listing> {
        let drivers: Vec<&str> = self.drivers().iter().map(|d| d.name()).collect();
        if !listing.is_worth_renewing(usage) {
            let extent = Extent { others: listing.extent.others, ..Extent::default() };
            listing = Listing { extent, ..Listing::default() };
        }
        self.read(|conn| {
            let (mark, summaries) = (look::mark(conn)?, count(conn, "SELECT count(*) FROM manifest_summary")?);
            let earlier = listing.extent.seen.take();
            let before = (listing.digests.len(), listing.namespaces.len(), listing.manifests.len());
            let chains = usage || listing.extent.usage;
            let mut reading = Reading { conn, listing: &mut listing, usage: chains };
            match &earlier {
                Some(earlier) => reading.follow_images(earlier.mark.change())?,
                None => reading.images()?,
            }
            let mut changed = match &earlier {
                Some(earlier) => !has_same_blobs(conn, earlier, &mark)?,
                None => true,
            };
            if changed {
                reading.blobs()?;
            }
            if earlier.as_ref().is_none_or(|earlier| earlier.summaries != summaries) {
                reading.manifests()?;
            }
            if usage {
                changed |= reading.snapshots(&drivers)?;
            }
            changed |= before != (listing.digests.len(), listing.namespaces.len(), listing.manifests.len());
            let Extent { numbers, others, .. } = listing.extent;
            let numbers = if earlier.is_some() { numbers } else { listing.digests.len() };
            let others = others + u64::from(changed);
            let seal = Seal { mark, blobs: listing.blobs.len(), summaries };
            listing.extent = Extent { seen: Some(seal), usage: chains, is_usage_new: usage, numbers, others };
            Ok(())
        })?;
        Ok(listing)
    }
}

impl Listing {
    /// Whether what images take is in it, of the same state as the rest.
    pub fn has_usage(&self) -> bool {
        self.extent.usage && self.extent.is_usage_new
    }

    /// A number that is another one once anything but records has changed: blobs, snapshots that were asked for, what is known of
    /// manifests, or the numbers that digests and namespaces have.
    pub fn others(&self) -> u64 {
        self.extent.others
    }

    /// Adds what was learnt of manifests, which the database need not know.
    pub fn learn(&mut self, learnt: &[(orlop_oci::Digest, ManifestSummary)]) {
        let usage = self.extent.usage;
        self.extent.others += 1;
        for (digest, summary) in learnt {
            let manifest = super::ListedManifest::of(summary, Arc::make_mut(&mut self.digests), usage);
            let number = Arc::make_mut(&mut self.digests).add(digest);
            self.manifests.retain(|(known, _)| *known != number);
            self.manifests.push((number, manifest));
        }
    }

    fn is_worth_renewing(&self, usage: bool) -> bool {
        let is_read = self.extent.seen.is_some() && (self.extent.usage || !usage);
        is_read && self.digests.len() <= 2 * self.extent.numbers + SPARE_NUMBERS
    }

    /// Puts what records are now in their places.
    fn put(&mut self, changed: BTreeMap<(String, String), Option<ListedImage>>) {
        let mut images = Vec::with_capacity(self.images.len() + changed.len());
        let namespaces = &self.namespaces;
        let mut rest = std::mem::take(&mut self.images).into_iter().peekable();
        for ((namespace, name), now) in changed {
            let to = |image: &ListedImage| {
                let theirs = (namespaces[image.namespace as usize].as_str(), &*image.name);
                theirs.cmp(&(namespace.as_str(), name.as_str()))
            };
            images.extend(std::iter::from_fn(|| rest.next_if(|image| to(image).is_lt())));
            _ = rest.next_if(|image| to(image).is_eq());
            images.extend(now);
        }
        images.extend(rest);
        self.images = images;
    }
}

impl Reading<'_> {
    /// Records that changed after a line of the history.
    fn follow_images(&mut self, change: i64) -> Result<()> {
        let mut query = self.conn.prepare_cached("SELECT namespace, name FROM history WHERE seq > ?1")?;
        let names = query.query_map([change], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let names = names.collect::<rusqlite::Result<BTreeSet<(String, String)>>>()?;
        if names.len() > self.listing.images.len() / CHANGED_PART + CHANGED_PART {
            return self.images();
        }
        let mut query = self.conn.prepare_cached(&format!("{IMAGE} WHERE namespace = ?1 AND name = ?2"))?;
        let (mut changed, mut seen) = (BTreeMap::new(), Seen::default());
        for (namespace, name) in names {
            let mut rows = query.query(params![namespace, name])?;
            let now = rows.next()?.map(|row| self.image(row, &mut seen)).transpose()?;
            changed.insert((namespace, name), now);
        }
        self.listing.put(changed);
        Ok(())
    }
}
