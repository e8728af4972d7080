//! What listing needs of a manifest, kept so that no manifest is read twice.

pub(crate) mod encoding;

use std::collections::HashMap;

use orlop_oci::{ChainId, Digest, ImageId, Platform};
use rusqlite::{Connection, Row, params};

use crate::history::digest_column;
use crate::{Result, Store};

/// The gist of a manifest or index; immutable like the document itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestSummary {
    /// The document's own size in bytes.
    pub size: u64,
    /// The document's media type.
    pub media_type: String,
    /// The image ID (config digest); none for an index or an artifact.
    pub image_id: Option<ImageId>,
    /// The config's size in bytes, if there is a config.
    pub config_size: u64,
    /// The platform; none for an index or an artifact.
    pub platform: Option<Platform>,
    /// Who runs the image (`config.User`); empty for an index or an artifact.
    pub user: String,
    /// Chain IDs, lowest first: the snapshots' keys.
    pub chain: Vec<ChainId>,
    /// Layers (or an artifact's blobs) with compressed sizes, lowest first.
    pub layers: Vec<(Digest, u64)>,
    /// An index's manifests with their sizes and platforms, attestations included.
    pub manifests: Vec<(Digest, u64, Option<Platform>)>,
}

impl Store {
    /// Remembers summaries, in one transaction.
    pub fn put_summaries(&self, summaries: &[(Digest, ManifestSummary)]) -> Result<()> {
        if summaries.is_empty() {
            return Ok(());
        }
        self.lent_together("remember manifests", |tx| {
            summaries.iter().try_for_each(|(digest, summary)| put(tx, digest, summary))
        })
    }

    /// One summary.
    pub fn summary(&self, digest: &Digest) -> Result<Option<ManifestSummary>> {
        self.read(|conn| get(conn, digest))
    }

    /// All summaries.
    pub fn summaries(&self) -> Result<HashMap<Digest, ManifestSummary>> {
        self.read(|conn| {
            let mut query = conn.prepare_cached("SELECT digest, body FROM manifest_summary")?;
            let mut rows = query.query([])?;
            let mut summaries = HashMap::new();
            while let Some(row) = rows.next()? {
                if let Some(summary) = parse(row, 1) {
                    summaries.insert(digest_column(row, 0)?, summary);
                }
            }
            Ok(summaries)
        })
    }
}

/// One summary within a transaction.
pub(crate) fn get(conn: &Connection, digest: &Digest) -> Result<Option<ManifestSummary>> {
    let mut query = conn.prepare_cached("SELECT body FROM manifest_summary WHERE digest = ?1")?;
    let mut rows = query.query([digest.as_str()])?;
    Ok(rows.next()?.and_then(|row| parse(row, 0)))
}

/// Remembers a summary within a transaction.
pub(crate) fn put(conn: &Connection, digest: &Digest, summary: &ManifestSummary) -> Result<()> {
    let mut insert = conn.prepare_cached("INSERT OR REPLACE INTO manifest_summary VALUES (?1, ?2)")?;
    insert.execute(params![digest.as_str(), encoding::encode(summary)])?;
    Ok(())
}

/// The bytes of a summary; none of a root of format 1, opened for reading only, which has texts.
pub(crate) fn body<'r>(row: &'r Row<'_>, index: usize) -> Option<&'r [u8]> {
    row.get_ref(index).ok()?.as_blob().ok()
}

/// A summary only saves work: one that another version wrote differently counts as not there.
fn parse(row: &Row<'_>, index: usize) -> Option<ManifestSummary> {
    encoding::decode_owned(body(row, index)?)
}
