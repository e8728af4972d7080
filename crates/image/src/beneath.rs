//! Images for a containerd that keeps its own records and wants the trees alone: brought without a name.
//!
//! # Invariants
//! - Policy is asked as for any pull: what a containerd above is refused here it is refused, not given by another way.
//! - No record is written. What is brought lives as long as the lease of the scope, and then as long as whoever was handed
//!   a snapshot holds it: a snapshot says with its labels which blobs it is made of, so that the image can still be exported
//!   and shared.

use orlop_metadata::{Labels, Scope};
use orlop_oci::{Descriptor, Digest, Document, MAX_MANIFEST_BYTES, MediaKind, Reference, RepositoryName};
use orlop_remote::Client;
use tracing::field::Empty;
use tracing::info_span;

use crate::gate::Shelf;
use crate::pull::{Nowhere, Plan, Registry, Session, resolve, signatures};
use crate::span::within;
use crate::walk::{Documents, Select, Tree};
use crate::{Error, Images, Result, Sink, labels};

/// A snapshot that was brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    /// Its key: the chain ID.
    pub chain: String,
    /// What it keeps: its layer, and of the uppermost the manifest, with which the config goes.
    pub labels: Labels,
}

impl Images {
    /// Fetches and unpacks one manifest of an image for the host's platform. `image` is what the user asked for, of whose
    /// repository the manifest is. Returns its snapshots, lowest first. The scope has a lease, which holds them.
    ///
    /// # Errors
    /// As [`Images::pull`]. [`Error::Name`] if it is no image for this platform.
    pub async fn bring_unnamed(
        &self,
        scope: &Scope,
        client: &Client,
        image: &str,
        manifest: &Digest,
        snapshotter: &str,
        sink: Sink<'_>,
    ) -> Result<Vec<Handed>> {
        let asked: Reference = image.parse()?;
        let Some(repository) = asked.repository().cloned() else {
            let reason = "an image ID names no repository";
            return Err(Error::Name { name: image.to_owned(), reason });
        };
        let exact: Reference = repository.with_digest(manifest);
        let span = info_span!("pull", image = %exact, error = Empty);
        let bringing = async {
            let resolved = resolve(client, &exact).await?;
            let scope = scope.clone().with_host(&resolved.host);
            let plan = self.plan(Select::All, vec![self.platform().clone()], snapshotter, 0);
            let origin = Registry::new(self, client, repository.clone());
            let session = self.session(scope, &origin, sink);
            admit(&session, client, &asked, &resolved.descriptor, &origin.repository).await?;
            if !matches!(resolved.descriptor.kind(), MediaKind::Manifest) {
                return Err(Error::Name { name: exact.to_string(), reason: "it is no manifest of an image" });
            }
            bring(&session, &exact.to_string(), &resolved.descriptor, &plan).await
        };
        within(span, bringing).await
    }
}

impl Images {
    /// The same of an image that another scope has whole: nothing is fetched. `image` is the name that it has there.
    ///
    /// # Errors
    /// As [`Images::bring_unnamed`]; [`Error::Incomplete`] if it is not whole.
    pub async fn bring_held(
        &self,
        scope: &Scope,
        held: &Scope,
        image: &str,
        manifest: &Digest,
        snapshotter: &str,
    ) -> Result<Vec<Handed>> {
        let raw = orlop_content::read_verified(&self.store().content(held), manifest, MAX_MANIFEST_BYTES).await?;
        let document = Document::parse_as(raw, None, manifest.algorithm())
            .map_err(|source| Error::Document { digest: manifest.clone(), source })?;
        let (target, plan) =
            (document.descriptor(), self.plan(Select::All, vec![self.platform().clone()], snapshotter, 0));
        let span = info_span!("lend", image, error = Empty);
        let bringing = async {
            // Whatever let it in under this name is there still, or lets it in no more.
            self.admit_held(held, image, &target).await?;
            let session = self.session(scope.clone(), &Nowhere, &|_| {});
            let config = document.manifest().map(|manifest| &manifest.config);
            for blob in std::iter::once(&target).chain(config) {
                session.blob(blob).await?;
            }
            bring(&session, image, &target, &plan).await
        };
        within(span, bringing).await
    }

    /// Asks policy by what the scope has. What was signed may be what the name points at, or the manifest.
    async fn admit_held(&self, held: &Scope, image: &str, manifest: &Descriptor) -> Result<()> {
        let Some(record) = self.named_record(held, image).await? else {
            return self.admit(held, image, manifest).await.map(drop);
        };
        match self.admit(held, image, &record.target).await {
            Err(Error::Refused(_)) if record.target.digest != manifest.digest => {
                self.admit(held, image, manifest).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

/// Brings all of a manifest, which errors call `name`, and says what can be handed over of it.
async fn bring(session: &Session<'_>, name: &str, manifest: &Descriptor, plan: &Plan) -> Result<Vec<Handed>> {
    let tree = session.bring(name, manifest, plan).await?;
    let handed = handed(&tree, &manifest.digest);
    if handed.is_empty() {
        return Err(Error::Name { name: name.to_owned(), reason: "it is no image for this platform" });
    }
    session.finish(std::iter::once(&tree), plan, |_| Ok(())).await?;
    Ok(handed)
}

/// Asks policy about a manifest under the name that was asked for: what is signed may be the manifest, or the index that has it.
async fn admit(
    session: &Session<'_>,
    client: &Client,
    asked: &Reference,
    manifest: &Descriptor,
    repository: &RepositoryName,
) -> Result<()> {
    let [tags, referrers] = signatures(client, repository);
    let (name, shelves): (_, [&dyn Shelf; 2]) = (asked.to_string(), [&tags, &referrers]);
    match session.admit(&name, manifest, &shelves).await {
        Err(refused @ Error::Refused(_)) => {
            let index = index_with(session, client, asked, &manifest.digest).await?.ok_or(refused)?;
            session.admit(&name, &index, &shelves).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// The index that the name stands for, if it has the manifest: that may be what was signed.
async fn index_with(
    session: &Session<'_>,
    client: &Client,
    asked: &Reference,
    manifest: &Digest,
) -> Result<Option<Descriptor>> {
    let index = resolve(client, asked).await?.descriptor;
    if index.kind() != MediaKind::Index {
        return Ok(None);
    }
    let Some(raw) = session.load(&index, "index").await? else { return Ok(None) };
    let document = Document::parse_as(raw, Some(&index.media_type), index.digest.algorithm())
        .map_err(|source| Error::Document { digest: index.digest.clone(), source })?;
    let has = document.index().is_some_and(|found| found.manifests.iter().any(|m| m.digest == *manifest));
    Ok(has.then_some(index))
}

pub(crate) fn handed(tree: &Tree, manifest: &Digest) -> Vec<Handed> {
    let node = tree.manifests().find(|node| node.document.digest().digest() == manifest);
    let Some((image, document)) = node.and_then(|n| Some((n.image.as_ref()?, n.document.manifest()?))) else {
        return Vec::new();
    };
    let layers = image.chain.iter().zip(&document.layers).map(|(chain, layer)| {
        let chain = chain.to_string();
        let mut keeps = Labels::from([(labels::SNAPSHOT_REF.to_owned(), chain.clone())]);
        keeps.insert(key("layer", &layer.digest), layer.digest.to_string());
        Handed { chain, labels: keeps }
    });
    let mut all: Vec<Handed> = layers.collect();
    if let Some(top) = all.last_mut() {
        top.labels.insert(key("manifest", manifest), manifest.to_string());
    }
    all
}

/// A key for each digest: one snapshot may be of several images.
fn key(what: &str, digest: &Digest) -> String {
    format!("{}{what}.{:.12}", labels::GC_CONTENT, digest.hex())
}
