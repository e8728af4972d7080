//! What leaves the store when an image is pushed or exported: which documents and blobs, and under which target.
//!
//! A target whose every platform is here goes as it is. An index of which only some platforms are here cannot: what
//! receives it would miss the rest. Then the one manifest that is here goes by itself, or an index of those that are.

use std::collections::BTreeSet;

use bytes::Bytes;
use orlop_metadata::{Resource, ResourceKind, Scope, ScopedContent};
use orlop_oci::{Descriptor, Digest, Document, MediaKind, Platform, PlatformMatcher};

use crate::catalog::Catalog;
use crate::pull::Stored;
use crate::resolve::Found;
use crate::walk::{self, ImageInfo, Node, Select, Tree, kind_word};
use crate::{Error, Images, Missing, Result};

/// Which platforms are to leave.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// The whole target, else what of it is here.
    Present,
    /// The whole target or nothing.
    All,
    /// Each of these.
    Platforms(&'a [Platform]),
    /// The target as it is, and of an index the manifests of these platforms.
    Verbatim(&'a [Platform]),
}

/// What leaves.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Documents, children before those that name them; the last one is the target.
    pub(crate) documents: Vec<Document>,
    /// Configs and layers, each once. Foreign layers are not among them.
    pub(crate) blobs: Vec<(Descriptor, &'static str)>,
    /// The images among the documents.
    pub(crate) images: Vec<(Digest, ImageInfo)>,
    /// Set if not the whole target leaves: why.
    pub(crate) note: Option<String>,
}

impl Transfer {
    /// The document that a name will point at.
    pub(crate) fn target(&self) -> &Document {
        self.documents.last().expect("a transfer has its target at least")
    }
}

impl Images {
    /// Chooses what leaves for an image, and has the scope's lease hold it until it has left.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with all that is missing of what was asked for; [`Error::NoPlatform`].
    pub(crate) async fn transfer(&self, scope: &Scope, found: &Found, wanted: Wanted<'_>) -> Result<Transfer> {
        self.hold(scope, &found.target).await?;
        let content = self.store().content(scope);
        let name = found.names.first().cloned().unwrap_or_else(|| found.target.digest.to_string());
        let tree = walk::walk(&Stored(content.clone()), &name, &found.target, &Select::Present).await?;
        if tree.nodes.is_empty() {
            return Err(Error::Incomplete { name, missing: tree.missing });
        }
        let catalog = self.target_catalog(scope, &found.target).await?;
        Chooser { name, tree, catalog }.choose(wanted)
    }

    /// Adds a target, and with it what its labels refer to, to the scope's lease.
    async fn hold(&self, scope: &Scope, target: &Descriptor) -> Result<()> {
        let (scope, name) = (scope.clone(), target.digest.to_string());
        self.blocking(move |store| {
            let Some(lease) = &scope.lease else { return Ok(()) };
            let resource = Resource { kind: ResourceKind::Content, name };
            Ok(store.add_resource(&scope.namespace, lease, &resource)?)
        })
        .await
    }
}

/// Opens a stored blob as a stream from an offset on.
pub(crate) fn stream(
    content: ScopedContent,
    digest: Digest,
    offset: u64,
) -> impl futures::Stream<Item = Result<Bytes, orlop_content::Error>> + Send {
    const PIECE: usize = 1 << 20;
    let state = (content, digest, offset, None);
    futures::stream::try_unfold(state, |(content, digest, offset, reader)| async move {
        let reader = match reader {
            Some(reader) => reader,
            None => orlop_content::Provider::open(&content, &digest).await?,
        };
        let piece: Bytes = orlop_content::BlobReader::read_at(&*reader, offset, PIECE).await?;
        if piece.is_empty() {
            return Ok(None);
        }
        let next = offset + piece.len() as u64;
        Ok(Some((piece, (content, digest, next, Some(reader)))))
    })
}

struct Chooser {
    name: String,
    tree: Tree,
    catalog: Catalog,
}

impl Chooser {
    fn choose(self, wanted: Wanted<'_>) -> Result<Transfer> {
        let missing = self.missing();
        let root = &self.tree.nodes[0];
        match wanted {
            Wanted::Verbatim(platforms) if root.document.index().is_some() => self.verbatim(platforms),
            Wanted::Verbatim(_) if missing.is_empty() => Ok(self.whole()),
            _ if missing.is_empty() && !matches!(wanted, Wanted::Platforms(_)) => Ok(self.whole()),
            Wanted::All | Wanted::Verbatim(_) => Err(Error::Incomplete { name: self.name, missing }),
            Wanted::Platforms(platforms) if root.document.index().is_some() => {
                let chosen = platforms.iter().map(|p| self.best(p)).collect::<Result<Vec<_>>>()?;
                self.part(chosen)
            }
            Wanted::Platforms(platforms) => {
                for platform in platforms {
                    self.best(platform)?;
                }
                if missing.is_empty() { Ok(self.whole()) } else { Err(Error::Incomplete { name: self.name, missing }) }
            }
            Wanted::Present => {
                let here: Vec<&Node> =
                    self.tree.manifests().filter(|n| n.image.is_some() && self.lacking(n).is_empty()).collect();
                if here.is_empty() || root.document.index().is_none() {
                    return Err(Error::Incomplete { name: self.name, missing });
                }
                self.part(here)
            }
        }
    }

    /// Everything that is missing of the whole target.
    fn missing(&self) -> Vec<Missing> {
        let mut missing = self.tree.missing.clone();
        missing.extend(self.tree.manifests().flat_map(|node| self.lacking(node)));
        missing.sort_by(|a, b| a.digest.cmp(&b.digest));
        missing.dedup_by(|a, b| a.digest == b.digest);
        missing
    }

    /// What a manifest names and the store lacks.
    fn lacking(&self, node: &Node) -> Vec<Missing> {
        let absent = |d: &&Descriptor| !is_foreign(d) && !self.catalog.content.contains_key(&d.digest);
        let platform = node.image.as_ref().map(|i| i.platform.clone()).or_else(|| node.descriptor.platform.clone());
        let as_missing =
            |d: &Descriptor| Missing { digest: d.digest.clone(), kind: kind_word(d), platform: platform.clone() };
        node.document.children().into_iter().filter(absent).map(as_missing).collect()
    }

    fn best(&self, platform: &Platform) -> Result<&Node> {
        let matcher = PlatformMatcher::only(platform);
        let of = |node: &Node| node.image.as_ref().map(|i| i.platform.clone());
        let rank = |node: &&Node| of(node).and_then(|p| matcher.rank(&p));
        let best = self.tree.manifests().filter(|n| rank(n).is_some()).min_by_key(rank);
        let Some(node) = best else {
            let available: Vec<String> = self.tree.manifests().filter_map(of).map(|p| p.to_string()).collect();
            return Err(Error::NoPlatform {
                name: self.name.clone(),
                wanted: platform.to_string(),
                available: available.join(", "),
            });
        };
        let missing = self.lacking(node);
        if missing.is_empty() { Ok(node) } else { Err(Error::Incomplete { name: self.name.clone(), missing }) }
    }

    /// The manifests that exactly match, and those without a platform, below the index as it is.
    fn verbatim(&self, platforms: &[Platform]) -> Result<Transfer> {
        let matcher = PlatformMatcher::exactly(platforms);
        let root = &self.tree.nodes[0];
        let lets_in = |node: &&Node| node.descriptor.platform.as_ref().is_none_or(|p| matcher.matches(p));
        let mut chosen: Vec<&Node> = self.tree.manifests().filter(lets_in).collect();
        if chosen.is_empty() {
            let available: Vec<String> =
                self.tree.manifests().filter_map(|n| n.descriptor.platform.as_ref()).map(ToString::to_string).collect();
            let wanted: Vec<String> = platforms.iter().map(ToString::to_string).collect();
            let (wanted, available) = (wanted.join(", "), available.join(", "));
            return Err(Error::NoPlatform { name: self.name.clone(), wanted, available });
        }
        let missing: Vec<Missing> = chosen.iter().flat_map(|node| self.lacking(node)).collect();
        if !missing.is_empty() {
            return Err(Error::Incomplete { name: self.name.clone(), missing });
        }
        chosen.reverse();
        chosen.push(root);
        Ok(self.gather(chosen.into_iter(), None))
    }

    fn whole(&self) -> Transfer {
        // Parents come first in the tree; whoever receives a document wants its children before it.
        self.gather(self.tree.nodes.iter().rev(), None)
    }

    /// Some manifests of an index: one by itself, several under an index of their own.
    fn part(&self, mut chosen: Vec<&Node>) -> Result<Transfer> {
        let mut seen = BTreeSet::new();
        chosen.retain(|n| seen.insert(&n.descriptor.digest));
        let platforms: Vec<String> =
            chosen.iter().filter_map(|n| n.image.as_ref()).map(|i| i.platform.to_string()).collect();
        let note = format!("{} goes with {} only, not as the whole index", self.name, platforms.join(", "));
        let mut transfer = self.gather(chosen.iter().copied(), Some(note));
        if chosen.len() > 1 {
            transfer.documents.push(self.index_of(&chosen)?);
        }
        Ok(transfer)
    }

    fn index_of(&self, chosen: &[&Node]) -> Result<Document> {
        let root = &self.tree.nodes[0].document;
        let manifests: Vec<Descriptor> = chosen
            .iter()
            .map(|node| Descriptor {
                platform: node.image.as_ref().map(|i| i.platform.clone()),
                ..node.descriptor.clone()
            })
            .collect();
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": root.media_type(), "manifests": manifests });
        Document::parse(index.to_string().into(), None)
            .map_err(|source| Error::Document { digest: root.digest().digest().clone(), source })
    }

    fn gather<'a>(&self, nodes: impl Iterator<Item = &'a Node>, note: Option<String>) -> Transfer {
        let mut transfer = Transfer { documents: Vec::new(), blobs: Vec::new(), images: Vec::new(), note };
        let mut seen = BTreeSet::new();
        for node in nodes {
            transfer.documents.push(node.document.clone());
            if let Some(image) = &node.image {
                transfer.images.push((node.descriptor.digest.clone(), image.clone()));
            }
            if node.document.manifest().is_none() {
                continue;
            }
            for child in node.document.children() {
                if !is_foreign(child) && seen.insert(child.digest.clone()) {
                    transfer.blobs.push((child.clone(), kind_word(child)));
                }
            }
        }
        transfer
    }
}

/// A layer that may not be distributed: whoever wants it fetches it from its URLs.
fn is_foreign(descriptor: &Descriptor) -> bool {
    matches!(descriptor.kind(), MediaKind::Layer { foreign: true, .. }) && !descriptor.urls.is_empty()
}
