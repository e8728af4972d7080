//! The layers of a tree: which blobs unpack to it, whether they are here or only named by a manifest, and who may have them.
//!
//! A layer may be gone while its tree stands: a client deleted the blob after unpacking, as containerd's `discard_unpacked_layers` does,
//! or the disk lost it. What a manifest says is enough to ask for it again, and the diff ID says whether it is the right one.

use std::collections::{BTreeMap, HashMap};

use orlop_metadata::{self as metadata, Damaged, Labels, ManifestSummary, Scope, Store, Tree};
use orlop_oci::{ChainId, Descriptor, DiffId, Digest, chain_ids};
use orlop_remote::Client;

use super::sources::{Sources, unknown};
use super::{End, Mending, Repaired, scope_of};
use crate::pull::Nowhere;
use crate::{Images, Result, Sink, labels};

/// What a layer has to unpack to for a tree.
#[derive(Debug, Clone)]
pub(super) struct Unpacks {
    /// By the label that Orlop gives a snapshot.
    known: Option<DiffId>,
    parent: String,
    key: String,
}

impl Unpacks {
    /// Whether a diff ID is that of the tree: as its label says, else by its key, which is a chain ID where clients unpack.
    pub(super) fn is(&self, diff: &DiffId) -> bool {
        match &self.known {
            Some(known) => known == diff,
            None => chain_of(&self.parent, diff).is_some_and(|chain| chain.to_string() == self.key),
        }
    }
}

/// The chain ID of a layer on a parent that is called by its own.
fn chain_of(parent: &str, diff: &DiffId) -> Option<ChainId> {
    if parent.is_empty() {
        return chain_ids(std::slice::from_ref(diff)).pop();
    }
    let below = parent.parse::<Digest>().ok().map(DiffId::new)?;
    chain_ids(&[below, diff.clone()]).pop()
}

/// A blob that should unpack to a tree.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    size: u64,
    /// Manifests that name it.
    manifests: Vec<Digest>,
}

/// The layers of one tree, those that are here first.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    pub(super) unpacks: Unpacks,
    pub(super) blobs: Vec<Layer>,
}

/// What the manifests of namespaces name, read once for all damaged trees of a namespace.
#[derive(Debug, Default)]
pub(super) struct Named(BTreeMap<String, HashMap<Digest, ManifestSummary>>);

impl Images {
    /// Finds the layers of a tree: blobs whose labels say so, then those that a manifest names at this place of its chain.
    pub(super) async fn layers_of(&self, tree: &Tree, named: &mut Named) -> Result<Layers> {
        if !named.0.contains_key(&tree.namespace) {
            let summaries = self.catalog(&scope_of(tree)).await?.summaries;
            named.0.insert(tree.namespace.clone(), summaries);
        }
        let wanted = tree.clone();
        let mut layers = self.blocking(move |store| labelled(store, &wanted)).await?;
        for (manifest, summary) in &named.0[&tree.namespace] {
            let at = summary.chain.iter().position(|chain| chain.to_string() == tree.key);
            let Some((digest, size)) = at.and_then(|at| summary.layers.get(at)) else { continue };
            match layers.blobs.iter_mut().find(|layer| layer.digest == *digest) {
                Some(layer) => layer.manifests.push(manifest.clone()),
                None => {
                    layers.blobs.push(Layer { digest: digest.clone(), size: *size, manifests: vec![manifest.clone()] })
                }
            }
        }
        Ok(layers)
    }

    /// Makes a layer that did not give its tree be here and sound: `None` if it is already, and so something else.
    pub(super) async fn bring_layer(
        &self,
        scope: &Scope,
        tree: &Tree,
        layer: &Layer,
        client: Option<&Client>,
        repaired: &mut Repaired,
        sink: Sink<'_>,
    ) -> Result<Option<End>> {
        let is_it = |known: &&Mending| known.what == Damaged::Blob(layer.digest.clone());
        if let Some(asked) = repaired.mendings.iter().find(is_it).filter(|known| matches!(known.end, End::Left { .. }))
        {
            return Ok(Some(asked.end.clone()));
        }
        let (digest, namespace) = (layer.digest.clone(), tree.namespace.clone());
        let rows = self.blocking(move |store| Ok(store.blob_rows(&digest)?)).await?;
        let is_here = rows.iter().any(|(row, ..)| *row == namespace);
        let damaged = match rows.first() {
            Some((_, size, _)) => self.examine(&layer.digest, *size, false, repaired).await?,
            None => None,
        };
        if is_here && damaged.is_none() {
            return Ok(None);
        }
        let end = self.ask_for_layer(scope, tree, layer, client, sink).await?;
        if let Some(mut mending) = damaged {
            mending.end = end.clone();
            repaired.mendings.push(mending);
        }
        Ok(Some(end))
    }

    /// Asks whoever may have a layer; without a `client`, only other namespaces.
    async fn ask_for_layer(
        &self,
        scope: &Scope,
        tree: &Tree,
        layer: &Layer,
        client: Option<&Client>,
        sink: Sink<'_>,
    ) -> Result<End> {
        let (wanted, blob) = (tree.clone(), layer.clone());
        let sources = self.blocking(move |store| sources(store, &wanted, &blob)).await?;
        let described = self.described(&tree.namespace, &layer.digest, layer.size).await?;
        let descriptor = described.unwrap_or_else(|| unknown(&layer.digest, layer.size));
        match client {
            Some(client) => self.bring(scope, client, &descriptor, &sources, sink).await,
            None => self.copy_from_elsewhere(scope, &descriptor, sink).await,
        }
    }

    /// Says on a layer what it unpacks to, as a pull does: it may have come without.
    pub(super) async fn label_layer(&self, scope: &Scope, layer: &Digest, diff: &DiffId) -> Result<()> {
        let labels = Labels::from([(labels::UNCOMPRESSED.to_owned(), diff.to_string())]);
        let (scope, layer) = (scope.clone(), layer.clone());
        self.blocking(move |store| match store.content(&scope).label_all(&[(layer, labels)]) {
            // Somebody who needs it no more was faster.
            Ok(()) | Err(metadata::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        })
        .await
    }

    /// Takes a blob that an archive brought, perhaps to another namespace.
    async fn copy_from_elsewhere(&self, scope: &Scope, descriptor: &Descriptor, sink: Sink<'_>) -> Result<End> {
        let absent = || super::bring::left("the archive does not have it".to_owned(), &descriptor.digest);
        let digest = descriptor.digest.clone();
        // A write that nothing comes into would stay for a day.
        if self.blocking(move |store| Ok(store.blob_rows(&digest)?)).await?.is_empty() {
            return Ok(absent());
        }
        let session = self.session(scope.clone(), &Nowhere, sink);
        match session.blob(descriptor).await {
            Ok(()) => Ok(End::Mended { from: "the archive".to_owned() }),
            Err(error) if super::bring::is_ours(&error) => Err(error),
            Err(_) => Ok(absent()),
        }
    }
}

/// Blobs whose labels say that they unpack to a tree.
fn labelled(store: &Store, tree: &Tree) -> Result<Layers> {
    let scope = scope_of(tree);
    let snapshot = store.snapshots(&scope, &tree.driver)?.stat(&tree.key)?;
    let known = snapshot.labels.get(labels::SNAPSHOT_DIFF).and_then(|diff| diff.parse().ok()).map(DiffId::new);
    let unpacks = Unpacks { known, parent: snapshot.parent, key: tree.key.clone() };
    let mut blobs = Vec::new();
    for info in store.content(&scope).find(&[])? {
        let diff = info.labels.get(labels::UNCOMPRESSED).and_then(|diff| diff.parse().ok()).map(DiffId::new);
        if diff.is_some_and(|diff| unpacks.is(&diff)) {
            blobs.push(Layer { digest: info.digest, size: info.size, manifests: Vec::new() });
        }
    }
    Ok(Layers { unpacks, blobs })
}

/// Who may have a layer: whoever had it, or a manifest that names it, or an image of the tree.
fn sources(store: &Store, tree: &Tree, layer: &Layer) -> Result<Sources> {
    let mut sources = Sources::of(store, &layer.digest)?;
    for manifest in &layer.manifests {
        sources.append(Sources::of(store, manifest)?);
    }
    for affected in store.affected(&Damaged::Snapshot { driver: tree.driver.clone(), id: tree.id })? {
        affected.images.iter().for_each(|name| sources.add_named(name));
    }
    sources.namespace.clone_from(&tree.namespace);
    Ok(sources)
}
