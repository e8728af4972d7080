//! What a layer that was applied without its parents leaves to be done when they are known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::error::At as _;
use crate::{Error, Result};

/// The open ends of one applied layer; paths are relative to the root and resolved as far as the layer goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deferred {
    /// Directories that no entry made; their attributes come from below.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    /// Hard links to files that the layer does not have, by their own path.
    #[serde(with = "as_pairs")]
    pub(crate) links: BTreeMap<Vec<u8>, DeferredLink>,
    /// Links that later entries replaced: (path, target). They leave nothing, but their targets must have been there.
    pub(crate) replaced_links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whiteouts, which overlayfs shows by name in directories that nothing is below; those go at the commit.
    pub(crate) whiteouts: BTreeSet<Vec<u8>>,
    /// The layer hides everything below (`.wh..wh..opq` in the root, where overlayfs knows no such mark).
    pub(crate) opaque_root: bool,
}

/// A hard link into a lower layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeferredLink {
    /// Its place in the tar, since links can stand on links.
    pub(crate) order: u64,
    pub(crate) target: Vec<u8>,
    /// What the link's own entry says; it goes onto the file that both name.
    pub(crate) metadata: Metadata,
}

impl Deferred {
    pub(crate) fn is_empty(&self) -> bool {
        self.implied.is_empty()
            && self.links.is_empty()
            && self.replaced_links.is_empty()
            && self.whiteouts.is_empty()
            && !self.opaque_root
    }

    /// Forgets what was noted at `path`; true if that was a link.
    pub(crate) fn forget(&mut self, path: &[u8]) -> bool {
        self.implied.remove(path);
        self.whiteouts.remove(path);
        let Some(link) = self.links.remove(path) else { return false };
        self.replaced_links.push((path.to_vec(), link.target));
        true
    }

    /// Forgets what was noted below `path`.
    pub(crate) fn forget_below(&mut self, path: &[u8]) {
        let below = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.implied.retain(|other| !below(other));
        for (path, link) in self.links.extract_if(.., |other, _| below(other)) {
            self.replaced_links.push((path, link.target));
        }
        self.whiteouts.retain(|other| !below(other));
    }

    /// Reads what [`Self::save`] wrote; nothing if it wrote nothing.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| Error::Damaged { reason: format!("{}: {error}", path.display()) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).at("read", path),
        }
    }

    /// Writes it beside the tree; made durable by the commit's `syncfs`, which comes after it was used.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::other).at("encode", path)?;
        std::fs::write(path, bytes).at("write", path)
    }
}

/// JSON's keys are text and paths are not.
mod as_pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Map = BTreeMap<Vec<u8>, super::DeferredLink>;

    pub(super) fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        map.iter().collect::<Vec<_>>().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        Ok(Vec::deserialize(deserializer)?.into_iter().collect())
    }
}
