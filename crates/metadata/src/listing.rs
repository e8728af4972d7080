//! All that listing needs, read at once.
//!
//! Everything comes from one snapshot of the database, so that records, blobs and snapshots belong together whatever
//! other processes do. Digests are numbers of one table, and what rows repeat (media types, platforms, labels) is kept
//! once: of ten thousand images nothing is read that no listing shows.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use orlop_oci::{Algorithm, DigestNumber, DigestTable, Platform};
use rusqlite::{Connection, Row};

use crate::db::{from_nanos, unreadable};
use crate::filter::Filter;
use crate::images::{Fields, size_from_column};
use crate::summary::encoding::{self, Taker};
use crate::{Labels, Result, Store, labels, summary};

/// What to read.
#[derive(Debug, Clone, Default)]
pub struct ListingRequest {
    /// The namespace whose records match; none: all.
    pub namespace: Option<String>,
    /// containerd's filters over records; none: all.
    pub filters: Vec<String>,
    /// What all images take is asked for too: all namespaces' records, chain IDs and snapshots are read.
    pub usage: bool,
}

/// A record.
#[derive(Debug, Clone)]
pub struct ListedImage {
    /// The namespace, as a position in [`Listing::namespaces`].
    pub namespace: u32,
    /// The name.
    pub name: Arc<str>,
    /// What it points at.
    pub target: DigestNumber,
    /// The target's media type.
    pub media_type: Arc<str>,
    /// The target's size in bytes.
    pub size: u64,
    /// Labels.
    pub labels: Arc<Labels>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Whether it is in the requested namespace and passes the filters.
    pub matches: bool,
}

/// The gist of a manifest or index, as [`ManifestSummary`](crate::ManifestSummary) says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedManifest {
    /// The document's own size in bytes.
    pub size: u64,
    /// The image ID; none for an index or an artifact.
    pub image_id: Option<DigestNumber>,
    /// The config's size in bytes, if there is a config.
    pub config_size: u64,
    /// The platform; none for an index or an artifact.
    pub platform: Option<Arc<Platform>>,
    /// Chain IDs, lowest first; none unless usage was asked for.
    pub chain: Vec<DigestNumber>,
    /// Layers (or an artifact's blobs) with compressed sizes, lowest first.
    pub layers: Vec<(DigestNumber, u64)>,
    /// An index's manifests with their sizes and platforms.
    pub manifests: Vec<(DigestNumber, u64, Option<Arc<Platform>>)>,
}

/// The state of a store as listings see it.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The digests behind all numbers.
    pub digests: DigestTable,
    /// The namespaces behind all positions.
    pub namespaces: Vec<String>,
    /// Records by namespace and name. Those that do not match are there only if usage was asked for.
    pub images: Vec<ListedImage>,
    /// Blobs by digest: namespace, digest, size in bytes. Of the requested namespace only, unless usage was asked for.
    pub blobs: Vec<(u32, DigestNumber, u64)>,
    /// Committed snapshots that are named by a chain ID: namespace, chain ID, bytes. None unless usage was asked for.
    pub snapshots: Vec<(u32, DigestNumber, u64)>,
    /// What is known of manifests, whether or not they are there.
    pub manifests: Vec<(DigestNumber, ListedManifest)>,
}

/// A record, and how much its row says.
#[derive(Debug, Clone)]
pub struct CountedImage {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: String,
    /// Labels.
    pub labels: Arc<Labels>,
    /// The bytes of namespace, name and target, as text.
    pub text_bytes: u64,
}

impl Store {
    /// Reads the records of all namespaces as far as they are counted.
    pub fn counted_images(&self) -> Result<Vec<CountedImage>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached(
                "SELECT namespace, name, labels, octet_length(namespace) + octet_length(name) + octet_length(digest)
                     + octet_length(media_type) FROM image",
            )?;
            let (mut rows, mut seen, mut namespace) = (query.query([])?, Seen::default(), Arc::<str>::default());
            let mut images = Vec::new();
            while let Some(row) = rows.next()? {
                let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
                if text != &*namespace {
                    namespace = text.into();
                }
                images.push(CountedImage {
                    namespace: namespace.clone(),
                    name: row.get(1)?,
                    labels: seen.labels(row, 2)?,
                    text_bytes: size_from_column(row.get(3)?),
                });
            }
            Ok(images)
        })
    }

    /// Reads all that a listing needs.
    ///
    /// # Errors
    /// A filter that does not parse.
    pub fn listing(&self, request: &ListingRequest) -> Result<Listing> {
        let filter = Filter::parse(&request.filters)?;
        let drivers: Vec<&str> = self.drivers().iter().map(|d| d.name()).collect();
        self.read(|conn| {
            let mut listing = Listing::default();
            let mut reading = Reading { conn, request, listing: &mut listing };
            reading.images(&filter)?;
            reading.blobs()?;
            reading.manifests()?;
            if request.usage {
                drivers.iter().try_for_each(|driver| reading.snapshots(driver))?;
            }
            Ok(listing)
        })
    }
}

struct Reading<'r> {
    conn: &'r Connection,
    request: &'r ListingRequest,
    listing: &'r mut Listing,
}

impl Reading<'_> {
    fn images(&mut self, filter: &Filter) -> Result<()> {
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, name, digest, media_type, size, annotations, labels, created, updated FROM image
             WHERE ?1 IS NULL OR namespace = ?1 ORDER BY namespace, name",
        )?;
        let mut rows = query.query([self.request.namespace.as_ref().filter(|_| !self.request.usage)])?;
        let mut seen = Seen::default();
        while let Some(row) = rows.next()? {
            let image = self.image(row, filter, &mut seen)?;
            if image.matches || self.request.usage {
                self.listing.images.push(image);
            }
        }
        Ok(())
    }

    fn image(&mut self, row: &Row<'_>, filter: &Filter, seen: &mut Seen) -> Result<ListedImage> {
        let namespace = self.namespace(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?);
        let mut image = ListedImage {
            namespace,
            name: row.get(1)?,
            target: self.number(row, 2)?,
            media_type: seen.media_type(row, 3)?,
            size: size_from_column(row.get(4)?),
            labels: seen.labels(row, 6)?,
            created_at: from_nanos(row.get(7)?),
            updated_at: from_nanos(row.get(8)?),
            matches: self.wants(namespace),
        };
        if image.matches && !filter.is_trivial() {
            let annotations = labels::column(row, 5)?;
            let digest = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            let (name, media_type, labels) = (&*image.name, &*image.media_type, &*image.labels);
            image.matches = Fields { name, digest, media_type, labels, annotations: &annotations }.match_any_of(filter);
        }
        Ok(image)
    }

    fn blobs(&mut self) -> Result<()> {
        // Answered from an index that has just these columns.
        let mut query = self.conn.prepare_cached("SELECT digest, namespace, size FROM blob ORDER BY digest")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let namespace = self.namespace(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
            if self.request.usage || self.wants(namespace) {
                let blob = (namespace, self.number(row, 0)?, size_from_column(row.get(2)?));
                self.listing.blobs.push(blob);
            }
        }
        Ok(())
    }

    fn manifests(&mut self) -> Result<()> {
        let mut query = self.conn.prepare_cached("SELECT digest, body FROM manifest_summary")?;
        let mut rows = query.query([])?;
        let mut platforms = HashMap::new();
        while let Some(row) = rows.next()? {
            let Some(body) = summary::body(row, 1) else { continue };
            let number = self.number(row, 0)?;
            let digests = &mut self.listing.digests;
            let mut numbers = Numbers { digests, platforms: &mut platforms, chain: self.request.usage };
            if let Some(manifest) = numbers.manifest(body) {
                self.listing.manifests.push((number, manifest));
            }
        }
        Ok(())
    }

    fn snapshots(&mut self, driver: &str) -> Result<()> {
        let mut query = self.conn.prepare_cached(
            "SELECT namespace, name, bytes FROM snapshot
             WHERE driver = ?1 AND kind = 'committed' AND bytes IS NOT NULL ORDER BY namespace, driver, name",
        )?;
        let mut rows = query.query([driver])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
            // A snapshot with another kind of name belongs to no image.
            let Ok(chain) = self.listing.digests.add_text(name) else { continue };
            let namespace = self.namespace(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?);
            self.listing.snapshots.push((namespace, chain, size_from_column(row.get(2)?)));
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

    fn wants(&self, namespace: u32) -> bool {
        let name = &self.listing.namespaces[namespace as usize];
        self.request.namespace.as_ref().is_none_or(|wanted| wanted == name)
    }

    fn number(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<DigestNumber> {
        let text = row.get_ref(index)?.as_str()?;
        self.listing.digests.add_text(text).map_err(|e| unreadable(index, e))
    }
}

/// What the row before said: most rows say the same.
#[derive(Default)]
struct Seen {
    media_type: Arc<str>,
    labels_text: String,
    labels: Arc<Labels>,
}

impl Seen {
    fn media_type(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<str>> {
        let text = row.get_ref(index)?.as_str()?;
        if text != &*self.media_type {
            self.media_type = text.into();
        }
        Ok(self.media_type.clone())
    }

    fn labels(&mut self, row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<Labels>> {
        let text = row.get_ref(index)?.as_str()?;
        if text != self.labels_text {
            self.labels = Arc::new(labels::column(row, index)?);
            text.clone_into(&mut self.labels_text);
        }
        Ok(self.labels.clone())
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
