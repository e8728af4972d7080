//! What listing needs of a manifest, kept so that no manifest is read twice.

use std::collections::HashMap;

use orlop_oci::{ChainId, Digest, ImageId, Platform};
use serde::{Deserialize, Serialize};

use crate::{Result, Store};

/// The gist of a manifest or index; immutable like the document itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        let _ = summaries;
        todo!()
    }

    /// One summary.
    pub fn summary(&self, digest: &Digest) -> Result<Option<ManifestSummary>> {
        let _ = digest;
        todo!()
    }

    /// All summaries.
    pub fn summaries(&self) -> Result<HashMap<Digest, ManifestSummary>> {
        todo!()
    }
}
