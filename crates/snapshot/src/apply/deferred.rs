//! What a layer that was applied without its parents leaves to be done when they are known.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::error::At as _;
use crate::{Error, Result};

/// The open ends of one applied layer; paths are relative to the root and resolved as far as the layer goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deferred {
    /// Directories that no entry made; their attributes come from below.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    /// Hard links to files that the layer does not have, by their own path.
    pub(crate) links: BTreeMap<Vec<u8>, DeferredLink>,
    /// Links that later entries replaced, by their own path. The name is gone, but the target must have been there, and
    /// the file keeps under its other names what the link's entry gave it.
    pub(crate) replaced_links: Vec<(Vec<u8>, DeferredLink)>,
    /// Whiteouts, which overlayfs shows by name in directories that nothing is below; those go at the commit.
    pub(crate) whiteouts: BTreeSet<Vec<u8>>,
    /// The layer hides everything below (`.wh..wh..opq` in the root, where overlayfs knows no such mark).
    pub(crate) opaque_root: bool,
}

/// A hard link into a lower layer.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        self.replaced_links.push((path.to_vec(), link));
        true
    }

    /// Forgets what was noted below `path`.
    pub(crate) fn forget_below(&mut self, path: &[u8]) {
        let below = |other: &[u8]| other.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.implied.retain(|other| !below(other));
        self.replaced_links.extend(self.links.extract_if(.., |other, _| below(other)));
        self.whiteouts.retain(|other| !below(other));
    }

    /// Reads what [`Self::save`] wrote; nothing if it wrote nothing.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Saved::into_deferred)
                .map_err(|error| Error::Damaged { reason: format!("{}: {error}", path.display()) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).at("read", path),
        }
    }

    /// Writes it beside the tree; made durable by the commit's `syncfs`, which comes after it was used.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(&Saved::of(self)).map_err(std::io::Error::other).at("encode", path)?;
        std::fs::write(path, bytes).at("write", path)
    }
}

/// The form on disk: JSON, whose texts are paths with `%` and all that is not UTF-8 percent-encoded.
#[derive(Serialize, Deserialize)]
struct Saved {
    implied: Vec<String>,
    links: Vec<SavedLink>,
    replaced_links: Vec<SavedLink>,
    whiteouts: Vec<String>,
    opaque_root: bool,
}

#[derive(Serialize, Deserialize)]
struct SavedLink {
    path: String,
    order: u64,
    target: String,
    metadata: Metadata,
}

impl Saved {
    fn of(deferred: &Deferred) -> Self {
        let replaced = deferred.replaced_links.iter().map(|(path, link)| SavedLink::of(path, link));
        Self {
            implied: deferred.implied.iter().map(|path| escape(path)).collect(),
            links: deferred.links.iter().map(|(path, link)| SavedLink::of(path, link)).collect(),
            replaced_links: replaced.collect(),
            whiteouts: deferred.whiteouts.iter().map(|path| escape(path)).collect(),
            opaque_root: deferred.opaque_root,
        }
    }

    fn into_deferred(self) -> Deferred {
        Deferred {
            implied: self.implied.iter().map(|path| unescape(path)).collect(),
            links: self.links.into_iter().map(SavedLink::into_link).collect(),
            replaced_links: self.replaced_links.into_iter().map(SavedLink::into_link).collect(),
            whiteouts: self.whiteouts.iter().map(|path| unescape(path)).collect(),
            opaque_root: self.opaque_root,
        }
    }
}

impl SavedLink {
    fn of(path: &[u8], link: &DeferredLink) -> Self {
        let metadata = link.metadata.clone();
        Self { path: escape(path), order: link.order, target: escape(&link.target), metadata }
    }

    fn into_link(self) -> (Vec<u8>, DeferredLink) {
        let link = DeferredLink { order: self.order, target: unescape(&self.target), metadata: self.metadata };
        (unescape(&self.path), link)
    }
}

fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("%{byte:02X}")));
    }
    text
}

fn unescape(text: &str) -> Vec<u8> {
    super::entry::percent_decode(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let odd = b"a%b/\xff\xc3(\n\"\xc3\xa9".to_vec();
        let metadata =
            Metadata { mode: 0o4755, uid: 1, xattrs: vec![(odd.clone(), odd.clone())], ..Metadata::default() };
        let link = DeferredLink { order: 3, target: odd.clone(), metadata };
        let deferred = Deferred {
            implied: [odd.clone(), b"b".to_vec()].into(),
            links: [(odd.clone(), link.clone())].into(),
            replaced_links: vec![(b"%41".to_vec(), link)],
            whiteouts: [odd].into(),
            opaque_root: true,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deferred");
        assert!(Deferred::load(&path).unwrap().is_empty());
        deferred.save(&path).unwrap();
        assert_eq!(Deferred::load(&path).unwrap(), deferred);
    }
}
