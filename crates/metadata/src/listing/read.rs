//! Rows into a listing.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_oci::{Algorithm, DigestError, DigestNumber, DigestTable, Platform};
use rusqlite::{Connection, Row};

use super::{ListedImage, ListedManifest, Listing};
use crate::db::{from_nanos, unreadable};
use crate::images::size_from_column;
use crate::summary::encoding::{self, Taker};
use crate::{Labels, ManifestSummary, Result, labels, summary};

/// The columns of a record, as [`Reading::image`] takes them.
pub(super) const IMAGE: &str =
    "SELECT namespace, name, digest, media_type, size, annotations, labels, created, updated FROM image";

/// How many rows that are gone are passed over before a digest is searched for.
const GUESSES: usize = 4;

/// Puts what the database says into a listing; what that had of the same kind is known by its place where it is there still.
pub(super) struct Reading<'r> {
    pub(super) conn: &'r Connection,
    pub(super) listing: &'r mut Listing,
    /// Whether what images take is wanted.
    pub(super) usage: bool,
}

/// Rows as they were read before, in the same order.
struct Earlier {
    rows: Vec<(u32, DigestNumber, u64)>,
    at: usize,
}

impl Earlier {
    /// The number of a digest that comes next, or after a few that are gone; else by search, a new one if it has none yet.
    fn number(&mut self, text: &str, digests: &mut Arc<DigestTable>) -> Result<DigestNumber, DigestError> {
        let next = &self.rows[self.at..(self.at + GUESSES).min(self.rows.len())];
        let number = number_of(text, next.iter().map(|row| row.1), digests)?;
        if let Some(passed) = next.iter().position(|row| row.1 == number) {
            self.at += passed + 1;
        } else if self.rows.len() > self.at {
            // Many are gone, or this one is new: go on where it would be.
            self.at += self.rows[self.at..].partition_point(|row| digests.digest(row.1).as_str() < text);
        }
        Ok(number)
    }
}

/// The number of a digest, a new one if it has none yet; `guesses` are compared first.
fn number_of(
    text: &str,
    mut guesses: impl ExactSizeIterator<Item = DigestNumber>,
    digests: &mut Arc<DigestTable>,
) -> Result<DigestNumber, DigestError> {
    // Nobody else has the table while all is read for the first time: then one search is enough.
    if guesses.len() == 0
        && let Some(own) = Arc::get_mut(digests)
    {
        return own.add_text(text);
    }
    match digests.get_text(text, &mut guesses) {
        Some(number) => Ok(number),
        // What is no digest makes no copy of a table that others have.
        None => text.parse().map(|digest| Arc::make_mut(digests).add(&digest)),
    }
}

impl Reading<'_> {
    /// All records.
    pub(super) fn images(&mut self) -> Result<()> {
        let mut query = self.conn.prepare_cached(&format!("{IMAGE} ORDER BY namespace, name"))?;
        let mut rows = query.query([])?;
        let mut seen = Seen::default();
        self.listing.images.clear();
        while let Some(row) = rows.next()? {
            let image = self.image(row, &mut seen)?;
            self.listing.images.push(image);
        }
        Ok(())
    }

    pub(super) fn image(&mut self, row: &Row<'_>, seen: &mut Seen) -> Result<ListedImage> {
        Ok(ListedImage {
            namespace: self.namespace(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?),
            name: row.get(1)?,
            target: self.number(row, 2)?,
            media_type: seen.media_type(row, 3)?,
            size: size_from_column(row.get(4)?),
            annotations: seen.annotations(row, 5)?,
            labels: seen.labels(row, 6)?,
            created_at: from_nanos(row.get(7)?),
            updated_at: from_nanos(row.get(8)?),
        })
    }

    /// All blobs.
    pub(super) fn blobs(&mut self) -> Result<()> {
        // Answered from an index that has just these columns.
        let mut query = self.conn.prepare_cached("SELECT digest, namespace, size FROM blob ORDER BY digest")?;
        let mut rows = query.query([])?;
        let mut earlier = Earlier { rows: std::mem::take(&mut self.listing.blobs), at: 0 };
        self.listing.blobs.reserve(earlier.rows.len());
        while let Some(row) = rows.next()? {
            let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            let number = earlier.number(text, &mut self.listing.digests).map_err(|e| unreadable(0, e))?;
            let namespace = self.namespace(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
            self.listing.blobs.push((namespace, number, size_from_column(row.get(2)?)));
        }
        Ok(())
    }

    /// All committed snapshots of these drivers whose size is known. Says whether they are others than before.
    pub(super) fn snapshots(&mut self, drivers: &[&str]) -> Result<bool> {
        // Answered from an index that has just these columns, in its order: having them sorted costs as much as reading them.
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, driver, name, bytes FROM snapshot WHERE kind = 'committed' AND bytes IS NOT NULL",
        )?;
        let mut rows = query.query([])?;
        let mut earlier = Earlier { rows: std::mem::take(&mut self.listing.snapshots), at: 0 };
        self.listing.snapshots.reserve(earlier.rows.len());
        while let Some(row) = rows.next()? {
            let text = |index| row.get_ref(index)?.as_str().map_err(rusqlite::Error::from);
            if !drivers.contains(&text(1)?) {
                continue;
            }
            // A snapshot with another kind of name belongs to no image.
            let Ok(chain) = earlier.number(text(2)?, &mut self.listing.digests) else { continue };
            let namespace = self.namespace(text(0)?);
            self.listing.snapshots.push((namespace, chain, size_from_column(row.get(3)?)));
        }
        Ok(self.listing.snapshots != earlier.rows)
    }

    /// All summaries that are not known yet.
    pub(super) fn manifests(&mut self) -> Result<()> {
        let mut query = self.conn.prepare_cached("SELECT digest, body FROM manifest_summary")?;
        let mut rows = query.query([])?;
        let mut platforms = HashMap::new();
        let known: std::collections::HashSet<DigestNumber> = self.listing.manifests.iter().map(|(n, _)| *n).collect();
        let digests = Arc::make_mut(&mut self.listing.digests);
        while let Some(row) = rows.next()? {
            let Some(body) = summary::body(row, 1) else { continue };
            let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            let number = digests.add_text(text).map_err(|e| unreadable(0, e))?;
            if known.contains(&number) {
                continue;
            }
            let mut numbers = Numbers { digests, platforms: &mut platforms, chain: self.usage };
            if let Some(manifest) = numbers.manifest(body) {
                self.listing.manifests.push((number, manifest));
            }
        }
        Ok(())
    }

    /// There are few namespaces, and most rows have that of the row before.
    fn namespace(&mut self, name: &str) -> u32 {
        let known = self.listing.namespaces.iter().position(|n| n == name);
        known.unwrap_or_else(|| {
            self.listing.namespaces.push(name.to_owned());
            self.listing.namespaces.len() - 1
        }) as u32
    }

    fn number(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<DigestNumber> {
        let text = row.get_ref(index)?.as_str()?;
        number_of(text, std::iter::empty(), &mut self.listing.digests).map_err(|e| unreadable(index, e))
    }
}

/// What the row before said: most rows say the same.
#[derive(Default)]
pub(super) struct Seen {
    media_type: Arc<str>,
    labels: Repeated,
    annotations: Repeated,
}

/// The labels of the row before, and how they were written.
#[derive(Default)]
pub(crate) struct Repeated {
    text: String,
    labels: Arc<Labels>,
}

impl Repeated {
    pub(crate) fn of(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<Labels>> {
        let text = row.get_ref(index)?.as_str()?;
        if text != self.text {
            self.labels = Arc::new(labels::column(row, index)?);
            text.clone_into(&mut self.text);
        }
        Ok(self.labels.clone())
    }
}

impl Seen {
    fn media_type(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<str>> {
        let text = row.get_ref(index)?.as_str()?;
        if text != &*self.media_type {
            self.media_type = text.into();
        }
        Ok(self.media_type.clone())
    }

    pub(super) fn labels(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<Labels>> {
        self.labels.of(row, index)
    }

    fn annotations(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<Labels>> {
        self.annotations.of(row, index)
    }
}

/// Takes summaries as numbers.
struct Numbers<'n> {
    digests: &'n mut DigestTable,
    /// By what was written of it.
    platforms: &'n mut HashMap<Vec<u8>, Arc<Platform>>,
    chain: bool,
}

impl Numbers<'_> {
    fn manifest(&mut self, body: &[u8]) -> Option<ListedManifest> {
        let gist = encoding::decode(body, self)?;
        Some(ListedManifest {
            size: gist.size,
            image_id: gist.image_id,
            config_size: gist.config_size,
            platform: gist.platform,
            chain: gist.chain,
            layers: gist.layers,
            manifests: gist.manifests,
        })
    }
}

impl ListedManifest {
    /// The same of a summary.
    pub(super) fn of(summary: &ManifestSummary, digests: &mut DigestTable, usage: bool) -> Self {
        let shared = |platform: &Option<Platform>| platform.clone().map(Arc::new);
        Self {
            size: summary.size,
            image_id: summary.image_id.as_ref().map(|id| digests.add(id.digest())),
            config_size: summary.config_size,
            platform: shared(&summary.platform),
            chain: summary.chain.iter().filter(|_| usage).map(|id| digests.add(id.digest())).collect(),
            layers: summary.layers.iter().map(|(layer, size)| (digests.add(layer), *size)).collect(),
            manifests: summary.manifests.iter().map(|(d, size, p)| (digests.add(d), *size, shared(p))).collect(),
        }
    }
}

impl Taker for Numbers<'_> {
    type Digest = DigestNumber;
    type Platform = Arc<Platform>;

    fn digest(&mut self, algorithm: Algorithm, hash: &[u8]) -> Option<DigestNumber> {
        self.digests.add_bytes(algorithm, hash)
    }

    fn platform(&mut self, encoded: &[u8]) -> Option<Arc<Platform>> {
        if let Some(known) = self.platforms.get(encoded) {
            return Some(known.clone());
        }
        let platform = Arc::new(encoding::decode_platform(encoded)?);
        self.platforms.insert(encoded.to_vec(), platform.clone());
        Some(platform)
    }

    fn wants_chain(&self) -> bool {
        self.chain
    }
}
