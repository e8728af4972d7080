//! From a target to the documents it stands for: indexes, the manifests that are wanted, their configs.
//!
//! # Invariants
//! - A document is read at most once, whatever names it twice; nesting and number of documents are bounded.
//! - A manifest is an image only if its config is an image config and all its layers are file system layers; everything
//!   else is an artifact, whose blobs are kept and never unpacked.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use orlop_metadata::ManifestSummary;
use orlop_oci::{
    ChainId, Descriptor, DiffId, Digest, Document, ImageConfig, ImageId, MediaKind, Platform, PlatformMatcher,
    chain_ids,
};

use crate::{Error, Limits, Missing, Result};

/// Of a user with a group.
const MAX_USER_BYTES: usize = 256;

/// Gives documents by descriptor.
#[async_trait]
pub(crate) trait Documents: Send + Sync {
    /// The bytes, checked against the digest; `None` if they are not to be had.
    async fn load(&self, descriptor: &Descriptor, kind: &'static str) -> Result<Option<Bytes>>;

    /// How much there may be of them: of what is there already, whatever was let in.
    fn limits(&self) -> Limits {
        Limits::OUTER
    }
}

/// What is wanted of a target.
#[derive(Debug, Clone)]
pub(crate) enum Select {
    /// Everything.
    All,
    /// For each of these platforms the best manifest; missing ones are an error.
    Best(Vec<Platform>),
    /// Whatever manifests can be loaded.
    Present,
    /// Whatever a list of platforms lets through.
    Matching(Matching),
}

/// What containerd's transfer service takes of an index.
#[derive(Debug, Clone)]
pub(crate) struct Matching {
    /// Manifests for exactly these, and those that name no platform.
    pub(crate) platforms: Vec<Platform>,
    /// Of the other manifests the documents and configs.
    pub(crate) metadata: bool,
    /// At most so many manifests; 0: all.
    pub(crate) limit: usize,
}

/// What a manifest of an image says.
#[derive(Debug, Clone)]
pub(crate) struct ImageInfo {
    pub(crate) id: ImageId,
    pub(crate) platform: Platform,
    /// Who runs it.
    pub(crate) user: String,
    pub(crate) diff_ids: Vec<DiffId>,
    pub(crate) chain: Vec<ChainId>,
}

/// A document that was loaded.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// As its parent names it.
    pub(crate) descriptor: Descriptor,
    pub(crate) document: Document,
    /// Set for manifests of images.
    pub(crate) image: Option<ImageInfo>,
    /// The config's bytes, of images; of other manifests if it was asked for.
    pub(crate) config: Option<Bytes>,
    /// Whether it was selected: false for documents that were only looked at.
    pub(crate) wanted: bool,
    /// An image whose config could not be loaded: what it is cannot be told yet.
    pub(crate) unread: bool,
}

/// A target with what was loaded of it, parents first.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) target: Descriptor,
    pub(crate) nodes: Vec<Node>,
    /// Documents that could not be loaded.
    pub(crate) missing: Vec<Missing>,
}

impl Tree {
    /// The manifests that were selected.
    pub(crate) fn manifests(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.wanted && n.document.manifest().is_some())
    }

    /// The image for the host, if it was selected.
    pub(crate) fn image_for(&self, platform: &Platform) -> Option<&Node> {
        let matcher = PlatformMatcher::only(platform);
        let rank = |node: &&Node| node.image.as_ref().and_then(|i| matcher.rank(&i.platform));
        self.manifests().filter(|n| rank(n).is_some()).min_by_key(rank)
    }

    /// The gist of every document that was loaded and understood.
    pub(crate) fn summaries(&self) -> Vec<(Digest, ManifestSummary)> {
        let understood = self.nodes.iter().filter(|n| !n.unread);
        understood.map(|n| (n.document.digest().digest().clone(), summary(n))).collect()
    }
}

fn summary(node: &Node) -> ManifestSummary {
    let document = &node.document;
    let manifest = document.manifest();
    let children = document.index().map(|i| i.manifests.as_slice()).unwrap_or_default();
    let image = node.image.as_ref();
    // An artifact's config is a blob like its others: it names no image.
    let config = manifest.map(|m| &m.config).filter(|_| image.is_none());
    let blobs = config.into_iter().chain(manifest.iter().flat_map(|m| &m.layers));
    ManifestSummary {
        size: document.raw().len() as u64,
        media_type: document.media_type().to_owned(),
        image_id: image.map(|i| i.id.clone()),
        config_size: manifest.filter(|_| image.is_some()).map_or(0, |m| m.config.size),
        platform: image.map(|i| i.platform.clone()),
        user: image.map(|i| i.user.clone()).unwrap_or_default(),
        chain: image.map(|i| i.chain.clone()).unwrap_or_default(),
        layers: blobs.map(|blob| (blob.digest.clone(), blob.size)).collect(),
        manifests: children.iter().map(|d| (d.digest.clone(), d.size, d.platform.clone())).collect(),
    }
}

/// Cuts a user's name that no system has: every listing repeats it.
fn bounded(mut user: String) -> String {
    user.truncate(user.floor_char_boundary(MAX_USER_BYTES));
    user
}

/// Loads what `select` wants of `target`. `name` is for errors.
pub(crate) async fn walk(documents: &dyn Documents, name: &str, target: &Descriptor, select: &Select) -> Result<Tree> {
    let mut walk = Walk {
        documents,
        limits: documents.limits(),
        name,
        tree: Tree { target: target.clone(), nodes: Vec::new(), missing: Vec::new() },
        seen: HashMap::new(),
        absent: BTreeSet::new(),
    };
    let Some(root) = walk.load(target).await? else { return Ok(walk.tree) };
    if walk.tree.nodes[root].document.manifest().is_some() {
        walk.single(root, select).await?;
    } else {
        walk.index(root, select).await?;
    }
    Ok(walk.tree)
}

struct Walk<'a> {
    documents: &'a dyn Documents,
    limits: Limits,
    name: &'a str,
    tree: Tree,
    seen: HashMap<Digest, usize>,
    absent: BTreeSet<Digest>,
}

impl Walk<'_> {
    async fn load(&mut self, descriptor: &Descriptor) -> Result<Option<usize>> {
        if let Some(at) = self.seen.get(&descriptor.digest) {
            return Ok(Some(*at));
        }
        if self.absent.contains(&descriptor.digest) {
            return Ok(None);
        }
        if self.tree.nodes.len() >= self.limits.index_documents {
            let limit = self.limits.index_documents;
            return Err(Error::TooMany { digest: self.tree.target.digest.clone(), limit });
        }
        let kind = kind_word(descriptor);
        let Some(raw) = load_bytes(self.documents, self.limits.manifest_bytes, descriptor, kind).await? else {
            self.absent.insert(descriptor.digest.clone());
            self.note_missing(descriptor, kind, descriptor.platform.clone());
            return Ok(None);
        };
        let document = parse(raw, descriptor)?;
        let at = self.tree.nodes.len();
        self.seen.insert(descriptor.digest.clone(), at);
        let descriptor = descriptor.clone();
        self.tree.nodes.push(Node { descriptor, document, image: None, config: None, wanted: false, unread: false });
        Ok(Some(at))
    }

    fn note_missing(&mut self, descriptor: &Descriptor, kind: &'static str, platform: Option<Platform>) {
        self.tree.missing.push(Missing { digest: descriptor.digest.clone(), kind, platform });
    }

    /// Loads a manifest's config, if it is an image's, and learns from it.
    async fn look_into(&mut self, at: usize) -> Result<()> {
        let node = &self.tree.nodes[at];
        let Some(manifest) = node.document.manifest() else { return Ok(()) };
        let layers_only = manifest.layers.iter().all(|l| l.kind().is_layer());
        let is_image = manifest.config.kind() == MediaKind::Config
            && manifest.artifact_type.is_none()
            && layers_only
            && !node.descriptor.is_attestation();
        if !is_image || node.image.is_some() {
            return Ok(());
        }
        let (config, digest, layers) = (manifest.config.clone(), node.descriptor.digest.clone(), manifest.layers.len());
        let named = node.descriptor.platform.clone();
        let Some(raw) = load_bytes(self.documents, self.limits.manifest_bytes, &config, "config").await? else {
            self.note_missing(&config, "config", named);
            self.tree.nodes[at].unread = true;
            return Ok(());
        };
        let parsed =
            ImageConfig::parse(&raw).map_err(|source| Error::Document { digest: config.digest.clone(), source })?;
        if parsed.rootfs.diff_ids.len() != layers {
            let found = parsed.rootfs.diff_ids.len();
            let reason = format!("the manifest has {layers} layers, its config {} has {found} diff IDs", config.digest);
            return Err(Error::Inconsistent { digest, reason });
        }
        // Some builders leave the config's platform empty; then what the index says counts.
        let platform = if parsed.platform.is_unknown() { named.unwrap_or_default() } else { parsed.platform };
        let chain = chain_ids(&parsed.rootfs.diff_ids);
        let id = ImageId::new(config.digest);
        let node = &mut self.tree.nodes[at];
        let user = bounded(parsed.user);
        node.image = Some(ImageInfo { id, platform, user, diff_ids: parsed.rootfs.diff_ids, chain });
        node.config = Some(raw);
        Ok(())
    }

    async fn want(&mut self, at: usize) -> Result<()> {
        self.look_into(at).await?;
        self.tree.nodes[at].wanted = true;
        Ok(())
    }

    async fn single(&mut self, at: usize, select: &Select) -> Result<()> {
        self.want(at).await?;
        let Select::Best(platforms) = select else { return Ok(()) };
        let Some(image) = &self.tree.nodes[at].image else { return Ok(()) };
        if image.platform.is_unknown() || platforms.iter().any(|p| PlatformMatcher::only(p).matches(&image.platform)) {
            return Ok(());
        }
        Err(self.no_platform(platforms, std::slice::from_ref(&image.platform)))
    }

    fn no_platform(&self, wanted: &[Platform], available: &[Platform]) -> Error {
        let join = |platforms: &[Platform]| {
            let texts: BTreeSet<String> = platforms.iter().map(Platform::to_string).collect();
            texts.into_iter().collect::<Vec<_>>().join(", ")
        };
        Error::NoPlatform {
            name: self.name.to_owned(),
            wanted: join(wanted),
            available: if available.is_empty() { "no image at all".to_owned() } else { join(available) },
        }
    }

    async fn index(&mut self, root: usize, select: &Select) -> Result<()> {
        let entries = self.flatten(root).await?;
        match select {
            Select::All | Select::Present => {
                for entry in entries {
                    if let Some(at) = self.load(&entry).await? {
                        self.want(at).await?;
                    }
                }
                Ok(())
            }
            Select::Best(platforms) => self.best(&entries, platforms).await,
            Select::Matching(matching) => self.matching(entries, matching).await,
        }
    }

    async fn matching(&mut self, mut entries: Vec<Descriptor>, matching: &Matching) -> Result<()> {
        let matcher = PlatformMatcher::exactly(&matching.platforms);
        let rank = |entry: &Descriptor| entry.platform.as_ref().map_or(Some(0), |p| matcher.rank(p));
        if matching.limit > 0 {
            entries.sort_by_key(|entry| rank(entry).unwrap_or(usize::MAX));
            entries.truncate(matching.limit);
        }
        for entry in entries {
            if rank(&entry).is_some() {
                if let Some(at) = self.load(&entry).await? {
                    self.want(at).await?;
                }
            } else if matching.metadata
                && let Some(at) = self.load(&entry).await?
            {
                self.look_into(at).await?;
                self.load_config(at).await?;
            }
        }
        Ok(())
    }

    /// Loads a manifest's config, if that was not done.
    async fn load_config(&mut self, at: usize) -> Result<()> {
        let node = &self.tree.nodes[at];
        let is_config =
            |config: &Descriptor| config.kind() == MediaKind::Config && node.config.is_none() && !node.unread;
        let Some(manifest) = node.document.manifest().filter(|m| is_config(&m.config)) else { return Ok(()) };
        let (config, platform) = (manifest.config.clone(), node.descriptor.platform.clone());
        match load_bytes(self.documents, self.limits.manifest_bytes, &config, "config").await? {
            Some(raw) => self.tree.nodes[at].config = Some(raw),
            None => self.note_missing(&config, "config", platform),
        }
        Ok(())
    }

    /// The manifests of an index and of those nested in it, in document order. Marks the indexes as wanted.
    async fn flatten(&mut self, root: usize) -> Result<Vec<Descriptor>> {
        let mut entries = Vec::new();
        let mut listed = BTreeSet::new();
        let mut open = vec![(root, 1)];
        let mut visited = BTreeSet::from([root]);
        while let Some((at, depth)) = open.pop() {
            if depth > self.limits.index_depth {
                let digest = self.tree.nodes[at].descriptor.digest.clone();
                return Err(Error::TooDeep { digest, limit: self.limits.index_depth });
            }
            self.tree.nodes[at].wanted = true;
            let children = self.tree.nodes[at].document.index().map(|i| i.manifests.clone()).unwrap_or_default();
            for child in children {
                match child.kind() {
                    MediaKind::Index => {
                        if let Some(nested) = self.load(&child).await?
                            && visited.insert(nested)
                        {
                            open.push((nested, depth + 1));
                        }
                    }
                    MediaKind::Manifest | MediaKind::Schema1 if listed.insert(child.digest.clone()) => {
                        entries.push(child);
                    }
                    _ => {}
                }
            }
        }
        Ok(entries)
    }

    async fn best(&mut self, entries: &[Descriptor], platforms: &[Platform]) -> Result<()> {
        let mut known: Vec<(Descriptor, Platform)> = Vec::new();
        let mut loose = Vec::new();
        for entry in entries {
            match &entry.platform {
                Some(platform) if platform.is_unknown() => {}
                Some(platform) => known.push((entry.clone(), platform.clone())),
                None if entry.is_attestation() => {}
                None => {
                    let Some(at) = self.load(entry).await? else { continue };
                    self.look_into(at).await?;
                    match &self.tree.nodes[at].image {
                        Some(image) => known.push((entry.clone(), image.platform.clone())),
                        None => loose.push(at),
                    }
                }
            }
        }
        for platform in platforms {
            let matcher = PlatformMatcher::only(platform);
            let ranked = known.iter().filter_map(|(entry, p)| matcher.rank(p).map(|rank| (rank, entry)));
            match ranked.min_by_key(|(rank, _)| *rank) {
                Some((_, entry)) => {
                    let entry = entry.clone();
                    if let Some(at) = self.load(&entry).await? {
                        self.want(at).await?;
                    }
                }
                None if known.is_empty() && !loose.is_empty() => {}
                None => {
                    let available: Vec<Platform> = known.into_iter().map(|(_, p)| p).collect();
                    return Err(self.no_platform(std::slice::from_ref(platform), &available));
                }
            }
        }
        for at in loose {
            self.tree.nodes[at].wanted = true;
        }
        Ok(())
    }
}

async fn load_bytes(
    documents: &dyn Documents,
    limit: u64,
    descriptor: &Descriptor,
    kind: &'static str,
) -> Result<Option<Bytes>> {
    if descriptor.size > limit {
        return Err(Error::TooLarge { digest: descriptor.digest.clone(), size: descriptor.size, limit });
    }
    let Some(raw) = documents.load(descriptor, kind).await? else { return Ok(None) };
    if raw.len() as u64 != descriptor.size {
        let reason = format!("expected {} bytes, found {}", descriptor.size, raw.len());
        return Err(Error::Inconsistent { digest: descriptor.digest.clone(), reason });
    }
    Ok(Some(raw))
}

fn parse(raw: Bytes, descriptor: &Descriptor) -> Result<Document> {
    let document = Document::parse_as(raw, Some(&descriptor.media_type), descriptor.digest.algorithm())
        .map_err(|source| Error::Document { digest: descriptor.digest.clone(), source })?;
    if document.digest().digest() != &descriptor.digest {
        let reason = format!("the bytes hash to {}", document.digest());
        return Err(Error::Inconsistent { digest: descriptor.digest.clone(), reason });
    }
    Ok(document)
}

/// What people call a descriptor's kind.
pub(crate) fn kind_word(descriptor: &Descriptor) -> &'static str {
    match descriptor.kind() {
        MediaKind::Manifest | MediaKind::Schema1 => "manifest",
        MediaKind::Index => "index",
        MediaKind::Config => "config",
        MediaKind::Layer { .. } => "layer",
        MediaKind::Other => "blob",
    }
}
