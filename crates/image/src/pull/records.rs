//! What becomes visible at the end: labels, summaries, and the records in one transaction.

use std::collections::BTreeMap;

use orlop_metadata::{self as metadata, ImageChange, Labels};
use orlop_oci::{Descriptor, Digest, Document, ImageId, MediaKind, Reference, RepositoryName};

use super::{Plan, Session, wants_unpack};
use crate::walk::{Node, Tree};
use crate::{Result, labels, supply};

/// What an image is to be called.
#[derive(Debug, Clone)]
pub(crate) struct Naming {
    /// The name, if it is in normal form.
    pub(crate) reference: Option<Reference>,
    /// The name of the record.
    pub(crate) name: String,
    /// Whether to pin it.
    pub(crate) pin: bool,
    /// Its label of verification; empty: none.
    pub(crate) verified: String,
}

impl Naming {
    /// A name as given.
    pub(crate) fn new(name: &str) -> Self {
        let reference = name.parse::<Reference>().ok().filter(|r| r.to_string() == name);
        Self { reference, name: name.to_owned(), pin: false, verified: String::new() }
    }

    /// The records of this name in containerd's order: image ID, the name, the digest reference. `managed` is the image
    /// ID of the host's platform where CRI looks after the namespace.
    pub(crate) fn changes(&self, target: &Descriptor, managed: Option<&ImageId>) -> Vec<ImageChange> {
        let upsert = |name: String, extra: Option<(&str, &str)>| {
            let mut labels = record_labels(managed.is_some(), self.pin);
            labels.extend(extra.map(|(k, v)| (k.to_owned(), v.to_owned())));
            // Somebody wants it here now: it is no mirror's any more.
            labels.insert(labels::CACHED.to_owned(), String::new());
            ImageChange::Upsert { name, target: plain(target), labels }
        };
        // An empty label is taken off: what was said of an earlier target does not hold for this one.
        let named = || upsert(self.name.clone(), Some((labels::VERIFIED, &self.verified)));
        let Some(id) = managed else { return vec![named()] };
        let id = upsert(id.to_string(), None);
        match &self.reference {
            Some(Reference::Digest { .. }) => {
                let mut named = named();
                if let ImageChange::Upsert { labels, .. } = &mut named {
                    labels.insert(labels::REQUESTED.to_owned(), labels::REQUESTED_VALUE.to_owned());
                }
                vec![id, named]
            }
            Some(Reference::Tag { repository, .. }) => {
                let digest = repository.with_digest(&target.digest).to_string();
                vec![id, named(), upsert(digest, None)]
            }
            _ => vec![id, named()],
        }
    }
}

/// Labels of a record.
pub(crate) fn record_labels(managed: bool, pinned: bool) -> Labels {
    let mut map = Labels::new();
    if managed {
        map.insert(labels::MANAGED.to_owned(), labels::MANAGED_VALUE.to_owned());
    }
    if pinned {
        map.insert(labels::PINNED.to_owned(), labels::PINNED_VALUE.to_owned());
    }
    map
}

/// A target as a record holds it: what the registry said, without a platform or embedded data.
fn plain(target: &Descriptor) -> Descriptor {
    Descriptor { platform: None, data: None, urls: Vec::new(), ..target.clone() }
}

impl Session<'_> {
    /// Writes labels and summaries, then the records of all `namings` in one transaction. Returns the records' names.
    pub(crate) async fn record(&self, trees: &[(Tree, Vec<Naming>)], plan: &Plan) -> Result<Vec<String>> {
        let settings = self.images.settings();
        let mut changes: Vec<ImageChange> = Vec::new();
        for (tree, namings) in trees {
            let image = tree.image_for(&settings.platform).and_then(|n| n.image.as_ref());
            let managed = image.map(|i| &i.id).filter(|_| settings.is_cri(&self.scope.namespace));
            changes.extend(namings.iter().flat_map(|n| n.changes(&tree.target, managed)));
        }
        let names = names(&changes);
        let owned = self.scope.clone();
        let write = move |store: &metadata::Store| Ok(store.write_images(&owned, &changes)?);
        self.finish(trees.iter().map(|(tree, _)| tree), plan, write).await?;
        Ok(names)
    }

    /// Writes labels and summaries of trees, then has `write` make the records.
    pub(crate) async fn finish<'t>(
        &self,
        trees: impl Iterator<Item = &'t Tree>,
        plan: &Plan,
        write: impl FnOnce(&metadata::Store) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut blob_labels = BTreeMap::new();
        let mut summaries = Vec::new();
        for tree in trees {
            self.tree_labels(tree, plan, &mut blob_labels);
            summaries.extend(tree.summaries());
        }
        for (digest, labels) in self.vouched.labels() {
            blob_labels.entry(digest).or_default().extend(labels);
        }
        let content = self.content.clone();
        let settings = self.images.settings();
        let source = self.origin.repository().filter(|repository| !settings.is_own(repository.domain())).cloned();
        self.images
            .blocking(move |store| {
                if let Some(source) = &source {
                    add_source(&content, source, &mut blob_labels)?;
                }
                content.label_all(&blob_labels.into_iter().collect::<Vec<_>>())?;
                store.put_summaries(&summaries)?;
                write(store)
            })
            .await
    }

    /// Labels of all documents that were loaded and all blobs that were brought.
    fn tree_labels(&self, tree: &Tree, plan: &Plan, all: &mut BTreeMap<Digest, Labels>) {
        let driver = if plan.snapshotter.is_empty() {
            self.images.store().drivers()[0].name()
        } else {
            plan.snapshotter.as_str()
        };
        for node in &tree.nodes {
            all.entry(node.descriptor.digest.clone()).or_default().extend(document_labels(&node.document));
            let Some(manifest) = node.document.manifest() else { continue };
            if node.config.is_some() {
                all.entry(manifest.config.digest.clone()).or_default();
            }
            if !node.wanted {
                continue;
            }
            for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
                all.entry(blob.digest.clone()).or_default();
            }
            if wants_unpack(node, tree, plan) {
                unpack_labels(node, driver, all);
            }
        }
    }
}

fn unpack_labels(node: &Node, driver: &str, all: &mut BTreeMap<Digest, Labels>) {
    let (Some(image), Some(manifest)) = (&node.image, node.document.manifest()) else { return };
    if let Some(top) = image.chain.last() {
        let config = all.entry(manifest.config.digest.clone()).or_default();
        config.insert(format!("{}{driver}", labels::GC_SNAPSHOT), top.to_string());
    }
    for (layer, diff_id) in manifest.layers.iter().zip(&image.diff_ids) {
        let layer = all.entry(layer.digest.clone()).or_default();
        layer.insert(labels::UNCOMPRESSED.to_owned(), diff_id.to_string());
    }
}

/// The names that changes write, each once.
pub(crate) fn names(changes: &[ImageChange]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for change in changes {
        if let ImageChange::Upsert { name, .. } = change
            && !names.contains(name)
        {
            names.push(name.clone());
        }
    }
    names
}

/// The `gc.ref.content` labels of a document: one for each child, fetched or not, numbered within its kind.
pub(crate) fn document_labels(document: &Document) -> Labels {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut map = Labels::new();
    for child in document.children() {
        let place = match child.kind() {
            MediaKind::Manifest | MediaKind::Schema1 => "m.",
            MediaKind::Layer { .. } => "l.",
            MediaKind::Config => "config",
            MediaKind::Index | MediaKind::Other => "",
        };
        let count = counts.entry(place).or_default();
        let number = if *count > 0 || place != "config" { count.to_string() } else { String::new() };
        *count += 1;
        map.insert(format!("{}{place}{number}", labels::GC_CONTENT), child.digest.to_string());
    }
    map
}

/// Adds the repository to each blob's `distribution.source` label, sorted and without repeats.
pub(crate) fn add_source(
    content: &metadata::ScopedContent,
    source: &RepositoryName,
    all: &mut BTreeMap<Digest, Labels>,
) -> Result<()> {
    let key = labels::at_host(labels::SOURCE, source);
    for (digest, map) in all {
        let existing = match content.stat(digest) {
            Ok(info) => {
                map.extend(supply::found_again(&info.labels, source));
                info.labels.get(&key).cloned().unwrap_or_default()
            }
            Err(metadata::Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut paths: Vec<&str> = existing.split(',').filter(|p| !p.is_empty()).collect();
        paths.push(source.path());
        paths.sort_unstable();
        paths.dedup();
        let value = paths.join(",");
        // A label has at most 4096 bytes with its key; a hint that does not fit is left as it is.
        if key.len() + value.len() <= 4096 {
            map.insert(key.clone(), value);
        }
    }
    Ok(())
}
