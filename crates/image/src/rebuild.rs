//! A lost `meta.db`: documents say which namespace needs which blob, and by which labels it is kept.
//!
//! Rows and files are [`orlop_metadata::Rebuild`]'s; here the targets of all records are walked, and each blob gets the labels
//! that a pull, an import and an unpacking give it.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;
use orlop_content as content;
use orlop_metadata::{NeededBlob, Rebuild};
use orlop_oci::{Descriptor, Digest, MAX_MANIFEST_BYTES, Reference};

use crate::pull::document_labels;
use crate::walk::{self, Documents, Select, Tree};
use crate::{Result, labels};

/// What a namespace needs.
type Needed = BTreeMap<Digest, NeededBlob>;

/// Finds what the records of a database that is being rebuilt need, and has it held whatever else is there; `namespace` is
/// where that goes if nothing names one. Writes no file.
pub async fn rebuild(mut rebuild: Rebuild, namespace: &str) -> Result<Rebuild> {
    let raw = rebuild.content().clone();
    let mut targets: BTreeMap<String, BTreeMap<Digest, Descriptor>> = BTreeMap::new();
    for (namespace, image) in rebuild.records() {
        targets.entry(namespace.clone()).or_default().insert(image.target.digest.clone(), image.target.clone());
    }
    for (namespace, targets) in targets {
        let mut needed = Needed::new();
        for target in targets.into_values() {
            let tree = walk::walk(&Raw(&*raw), target.digest.as_str(), &target, &Select::Present).await;
            add(&mut needed, &target);
            match tree {
                Ok(tree) => {
                    place(&rebuild, &namespace, &tree, &mut needed)?;
                    rebuild.put_summaries(&tree.summaries())?;
                }
                Err(error) => rebuild.leave(format!("{} (namespace {namespace}): {error}", target.digest)),
            }
        }
        let differing =
            needed.iter().filter(|(digest, blob)| rebuild.size_on_disk(digest).is_some_and(|s| s != blob.size));
        let differing: Vec<Digest> = differing.map(|(digest, _)| digest.clone()).collect();
        for digest in differing {
            // Either is wrong: the file, or what a document says of it.
            let is_sound = content::examine(&*raw, &digest, None, &()).await?.is_none();
            if let (true, Some(size), Some(blob)) = (is_sound, rebuild.size_on_disk(&digest), needed.get_mut(&digest)) {
                blob.size = size;
            }
        }
        rebuild.put_blobs(&namespace, &needed)?;
    }
    rebuild.finish(namespace)?;
    Ok(rebuild)
}

/// The documents that are there, whichever namespace had them.
struct Raw<'a>(&'a dyn content::Store);

#[async_trait]
impl Documents for Raw<'_> {
    async fn load(&self, descriptor: &Descriptor, _kind: &'static str) -> Result<Option<Bytes>> {
        match content::read_verified(self.0, &descriptor.digest, MAX_MANIFEST_BYTES).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(content::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

fn add<'n>(needed: &'n mut Needed, descriptor: &Descriptor) -> &'n mut NeededBlob {
    let new = || NeededBlob { size: descriptor.size, ..NeededBlob::default() };
    needed.entry(descriptor.digest.clone()).or_insert_with(new)
}

/// Adds what a tree needs, with its labels.
fn place(rebuild: &Rebuild, namespace: &str, tree: &Tree, needed: &mut Needed) -> Result<()> {
    let mut all: BTreeSet<Digest> = BTreeSet::new();
    for node in &tree.nodes {
        add(needed, &node.descriptor).labels.extend(document_labels(&node.document));
        all.insert(node.descriptor.digest.clone());
        for child in node.document.children() {
            add(needed, child);
            all.insert(child.digest.clone());
        }
        let (Some(image), Some(manifest)) = (&node.image, node.document.manifest()) else { continue };
        let Some(top) = image.chain.last() else { continue };
        let drivers = rebuild.drivers_with(namespace, &top.to_string())?;
        for driver in &drivers {
            let config = add(needed, &manifest.config);
            config.labels.insert(format!("{}{driver}", labels::GC_SNAPSHOT), top.to_string());
        }
        for (layer, diff) in manifest.layers.iter().zip(&image.diff_ids).filter(|_| !drivers.is_empty()) {
            add(needed, layer).labels.insert(labels::UNCOMPRESSED.to_owned(), diff.to_string());
        }
    }
    let sources = rebuild.sources(namespace, &tree.target.digest);
    for repository in sources.iter().filter_map(Reference::repository) {
        let key = labels::at_host(labels::SOURCE, repository);
        for digest in &all {
            let Some(blob) = needed.get_mut(digest) else { continue };
            let value = blob.labels.entry(key.clone()).or_default();
            let mut paths: BTreeSet<&str> = value.split(',').filter(|path| !path.is_empty()).collect();
            paths.insert(repository.path());
            let paths = paths.into_iter().collect::<Vec<_>>().join(",");
            // A label has at most 4096 bytes with its key.
            if key.len() + paths.len() <= 4096 {
                *value = paths;
            }
        }
    }
    Ok(())
}
