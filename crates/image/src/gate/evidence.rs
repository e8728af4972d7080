//! Where signatures are found: in the store, in the archive that is being imported, in the registry.
//!
//! # Invariants
//! - Everything that is read is bounded and checked against its digest, so that a place can withhold signatures but not
//!   change them.
//! - A place that lacks something says so; a place that cannot be asked is an error, never "unsigned".

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use orlop_content as content;
use orlop_metadata::{self as metadata, Scope, ScopedContent, Store};
use orlop_oci::{Descriptor, Digest, Digester, Document, ImageManifest, MAX_MANIFEST_BYTES, MediaKind, RepositoryName};
use orlop_remote::{self as remote, Client};

use super::claim::{BUNDLE, ENVELOPE, Form};
use crate::pull::collect;
use crate::walk::{self, Documents, Tree};
use crate::{Error, Result, labels};

/// Payloads and bundles have a few KiB; one with a long chain of proofs some dozens.
pub(super) const MAX_SIGNATURE_BYTES: u64 = 1 << 20;
/// Manifests looked at for one image in one place: an image signed again every day for a year would have more, and
/// whoever can write to a repository must not be able to keep a node busy.
const MAX_MANIFESTS: usize = 256;
/// Signatures in one manifest that are looked at.
const MAX_LAYERS: usize = 256;

/// A manifest with signatures.
#[derive(Debug, Clone)]
pub(crate) struct Artifact {
    pub(crate) document: Document,
    /// Its layers that are signatures; without bytes where they cannot be had.
    pub(crate) layers: Vec<(Descriptor, Form, Option<Bytes>)>,
}

/// A place where signatures may be.
#[async_trait]
pub(crate) trait Shelf: Send + Sync {
    /// Manifests that may hold signatures of `target`, and indexes of such.
    async fn candidates(&self, target: &Digest) -> Result<Vec<Descriptor>>;

    /// A document or a small blob; `None` if it is not here.
    async fn read(&self, descriptor: &Descriptor) -> Result<Option<Bytes>>;
}

/// All that a place has for `target`.
pub(super) async fn gather(shelf: &dyn Shelf, target: &Digest) -> Result<Vec<Artifact>> {
    let mut open = shelf.candidates(target).await?;
    open.reverse();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(descriptor) = open.pop() {
        if seen.len() == MAX_MANIFESTS {
            tracing::warn!(%target, limit = MAX_MANIFESTS, "more manifests may hold signatures than are looked at");
            break;
        }
        if !seen.insert(descriptor.digest.clone()) || descriptor.size > MAX_MANIFEST_BYTES {
            continue;
        }
        let Some(document) = document(shelf, &descriptor).await? else { continue };
        if let Some(index) = document.index() {
            open.extend(index.manifests.iter().filter(|d| may_sign(d)).rev().cloned());
        } else if let Some(artifact) = artifact(shelf, document, target).await? {
            found.push(artifact);
        }
    }
    Ok(found)
}

async fn document(shelf: &dyn Shelf, descriptor: &Descriptor) -> Result<Option<Document>> {
    let Some(raw) = shelf.read(descriptor).await? else { return Ok(None) };
    let declared = Some(descriptor.media_type.as_str()).filter(|t| !t.is_empty());
    // Others may attach whatever they like to an image.
    Ok(Document::parse_as(raw, declared, descriptor.digest.algorithm()).ok())
}

async fn artifact(shelf: &dyn Shelf, document: Document, target: &Digest) -> Result<Option<Artifact>> {
    let Some(manifest) = document.manifest() else { return Ok(None) };
    if manifest.subject.as_ref().is_some_and(|s| s.digest != *target) {
        return Ok(None);
    }
    let mut layers = Vec::new();
    for layer in manifest.layers.iter().take(MAX_LAYERS) {
        let Some(form) = Form::of(&layer.media_type) else { continue };
        let bytes = if layer.size > MAX_SIGNATURE_BYTES { None } else { shelf.read(layer).await? };
        layers.push((layer.clone(), form, bytes));
    }
    Ok((!layers.is_empty()).then_some(Artifact { document, layers }))
}

/// Whether a list of referrers leaves it open that this one is a signature. Some registries do not say the type.
fn may_sign(descriptor: &Descriptor) -> bool {
    const TOLD_BY_CONFIG: [&str; 3] =
        ["", "application/vnd.oci.empty.v1+json", "application/vnd.oci.image.config.v1+json"];
    let is_document = matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index);
    let kind = descriptor.artifact_type.as_deref().unwrap_or("");
    is_document && (TOLD_BY_CONFIG.contains(&kind) || kind.starts_with(BUNDLE) || kind.contains("cosign"))
}

/// Whether a manifest is nothing but signatures or attestations: nobody can run it, and nobody signs it.
pub(super) fn is_signature(manifest: &ImageManifest) -> bool {
    let signs = |layer: &Descriptor| Form::of(&layer.media_type).is_some() || layer.media_type == ENVELOPE;
    !manifest.layers.is_empty() && manifest.layers.iter().all(signs)
}

/// The tag under which cosign puts signatures: `sha256-<hex>.sig`.
fn signature_tag(target: &Digest) -> String {
    format!("{}.sig", referrers_tag(target))
}

/// The tag that lists referrers where a registry does not (distribution-spec, "Referrers Tag Schema").
fn referrers_tag(target: &Digest) -> String {
    let hex = target.hex();
    format!("{}-{}", target.algorithm().as_str(), &hex[..hex.len().min(64)])
}

/// What a namespace has.
#[derive(Clone)]
pub(crate) struct Local {
    store: Store,
    content: ScopedContent,
    namespace: String,
    /// Where records of signatures are looked for.
    repository: Option<RepositoryName>,
}

impl Local {
    pub(crate) fn new(store: &Store, scope: &Scope, repository: Option<&RepositoryName>) -> Self {
        let (content, namespace) = (store.content(scope), scope.namespace.clone());
        Self { store: store.clone(), content, namespace, repository: repository.cloned() }
    }

    /// What earlier verifications kept with the image, and records that have a signature's tag.
    fn find(&self, target: &Digest) -> Result<Vec<Descriptor>> {
        let mut found = Vec::new();
        for digest in self.kept(target)? {
            if let Some(info) = present(self.content.stat(&digest))? {
                found.push(Descriptor::new("", digest, info.size));
            }
        }
        for tag in [signature_tag(target), referrers_tag(target)] {
            let Some(Ok(name)) = self.repository.as_ref().map(|r| r.with_tag(&tag)) else { continue };
            let record = present(self.store.image(&self.namespace, &name.to_string()))?;
            found.extend(record.map(|r| r.target));
        }
        Ok(found)
    }

    fn kept(&self, target: &Digest) -> Result<Vec<Digest>> {
        let labels = present(self.content.stat(target))?.map(|info| info.labels).unwrap_or_default();
        let kept = labels.into_iter().filter(|(key, _)| key.starts_with(labels::GC_REFERRER));
        Ok(kept.filter_map(|(_, value)| value.parse().ok()).collect())
    }
}

/// `None` for what is not there.
fn present<T>(found: metadata::Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(metadata::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl Shelf for Local {
    async fn candidates(&self, target: &Digest) -> Result<Vec<Descriptor>> {
        let (local, target) = (self.clone(), target.clone());
        tokio::task::spawn_blocking(move || local.find(&target)).await.map_err(|_| Error::Interrupted)?
    }

    async fn read(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        match content::read_verified(&self.content, &descriptor.digest, MAX_MANIFEST_BYTES).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(content::Error::NotFound { .. }) => Ok(None),
            // A damaged signature is worth no more than a missing one.
            Err(error @ (content::Error::Damaged { .. } | content::Error::TooLarge { .. })) => {
                tracing::warn!(%error, "a stored signature cannot be used");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What an archive holds that is being imported.
pub(crate) struct Archive<'a> {
    pub(crate) documents: &'a dyn Documents,
    /// Its images and artifacts, with the tags that they have there.
    pub(crate) entries: Vec<(&'a Tree, Vec<String>)>,
}

#[async_trait]
impl Shelf for Archive<'_> {
    async fn candidates(&self, target: &Digest) -> Result<Vec<Descriptor>> {
        let tags = [signature_tag(target), referrers_tag(target)];
        let mut found = Vec::new();
        for (tree, own) in &self.entries {
            if own.iter().any(|tag| tags.contains(tag)) {
                found.push(tree.target.clone());
            }
            let about = |document: &Document| {
                document.manifest().and_then(|m| m.subject.as_ref()).is_some_and(|s| s.digest == *target)
            };
            found.extend(tree.nodes.iter().filter(|n| about(&n.document)).map(|n| n.descriptor.clone()));
        }
        Ok(found)
    }

    async fn read(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        self.documents.load(descriptor, walk::kind_word(descriptor)).await
    }
}

/// What a registry has, by one of the two ways in which signatures are attached.
pub(crate) struct Remote<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: &'a RepositoryName,
    pub(crate) way: Way,
}

/// How signatures are attached to an image in a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Under a tag made of the image's digest.
    Tag,
    /// As referrers.
    Referrers,
}

#[async_trait]
impl Shelf for Remote<'_> {
    async fn candidates(&self, target: &Digest) -> Result<Vec<Descriptor>> {
        match self.way {
            Way::Tag => {
                let name = self.repository.with_tag(&signature_tag(target))?;
                Ok(found(self.client.resolve(&name).await)?.map(|resolved| resolved.descriptor).into_iter().collect())
            }
            Way::Referrers => {
                // Not every registry filters by type, and not every one knows it.
                let all = found(self.client.referrers(self.repository, target, None).await)?.unwrap_or_default();
                Ok(all.into_iter().filter(may_sign).collect())
            }
        }
    }

    async fn read(&self, descriptor: &Descriptor) -> Result<Option<Bytes>> {
        if matches!(descriptor.kind(), MediaKind::Manifest | MediaKind::Index) {
            let document = found(self.client.document(self.repository, descriptor).await)?;
            return Ok(document.map(|d| d.raw().clone()));
        }
        let Some(stream) = found(self.client.blob(self.repository, descriptor, 0).await)? else { return Ok(None) };
        let bytes = collect(stream, descriptor).await?;
        let mut digester = Digester::new(descriptor.digest.algorithm());
        digester.update(&bytes);
        let actual = digester.finish();
        if actual != descriptor.digest {
            tracing::warn!(expected = %descriptor.digest, %actual, "a signature's bytes are wrong");
            return Ok(None);
        }
        Ok(Some(bytes))
    }
}

/// `None` where every host says that it has no such thing.
fn found<T>(answer: remote::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.principal(), remote::Error::NotFound { .. } | remote::Error::NoHost { .. }) => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
