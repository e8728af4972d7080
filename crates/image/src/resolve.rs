//! From what people type to what is meant; everything known of one image.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use orlop_metadata::{self as metadata, Image, Scope};
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Platform, Reference, classify};

use crate::catalog::Catalog;
use crate::pull::Stored;
use crate::walk::{self, Select, Tree};
use crate::{Error, ImageRow, Images, Result, SnapshotRow};

/// What a text means.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The records meant: one for a name; all that point at the image for a digest, an image ID or a prefix.
    pub names: Vec<String>,
    /// What they point at.
    pub target: Descriptor,
    /// The image ID of the host's platform, if known.
    pub image_id: Option<ImageId>,
}

/// A document of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentRow {
    /// Type, digest, size.
    pub descriptor: Descriptor,
    /// The bytes as stored; empty if they are missing.
    pub raw: Bytes,
    /// Which platform it is for, if any.
    pub platform: Option<Platform>,
    /// Not in this store.
    pub missing: bool,
}

/// Everything known of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// As listed.
    pub row: ImageRow,
    /// Index, manifests, configs.
    pub documents: Vec<DocumentRow>,
    /// Committed snapshots, lowest first.
    pub snapshots: Vec<SnapshotRow>,
}

impl Images {
    /// Finds what `text` means: a full name, a familiar name, a digest, an image ID, a prefix of a digest that only
    /// one image has, or `name@{N}`: what the name meant N changes ago.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::Ambiguous`] with all that match.
    pub async fn resolve_name(&self, scope: &Scope, text: &str) -> Result<Found> {
        if let Some((name, back)) = earlier(text) {
            return self.resolve_earlier(scope, name, back).await;
        }
        if let Some(record) = self.named_record(scope, text).await? {
            // A hash reference stands for its image, as every client of CRI means it; any other name for itself.
            if classify(&record.name) != Kind::Id {
                let catalog = self.partial_catalog(scope, vec![record]).await?;
                return self.found(&catalog, &catalog.records.iter().collect::<Vec<_>>());
            }
        }
        // What can be no digest is told without reading everything.
        let Some(wanted) = Wanted::of(text) else { return Err(Error::NotFound(text.to_owned())) };
        let digests = match &wanted {
            Wanted::Exactly(digest) => BTreeSet::from([digest.clone()]),
            Wanted::StartingWith(hex) => {
                let (namespace, hex) = (scope.namespace.clone(), hex.clone());
                self.blocking(move |store| Ok(store.digests_starting(&namespace, &hex)?)).await?
            }
        };
        let catalog = self.kin(scope, digests).await?;
        self.by_digest(&catalog, text, &wanted)
    }

    /// The record whose name is `text`, as it stands or in normal form.
    pub(crate) async fn named_record(&self, scope: &Scope, text: &str) -> Result<Option<Image>> {
        let mut names = vec![text.to_owned()];
        if let Ok(reference) = text.parse::<Reference>() {
            names.push(reference.to_string());
        }
        let namespace = scope.namespace.clone();
        self.blocking(move |store| {
            for name in names {
                match store.image(&namespace, &name) {
                    Ok(image) => return Ok(Some(image)),
                    Err(metadata::Error::NotFound { .. } | metadata::Error::Invalid { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(None)
        })
        .await
    }

    async fn resolve_earlier(&self, scope: &Scope, name: &str, back: usize) -> Result<Found> {
        let full = name.parse::<Reference>().map_or_else(|_| name.to_owned(), |r| r.to_string());
        let namespace = scope.namespace.clone();
        let target = self.blocking(move |store| Ok(store.earlier_target(&namespace, &full, back)?)).await?;
        Ok(Found { names: Vec::new(), target, image_id: None })
    }

    fn found(&self, catalog: &Catalog, records: &[&Image]) -> Result<Found> {
        let first = records.first().ok_or_else(|| Error::NotFound(String::new()))?;
        Ok(Found {
            names: records.iter().map(|r| r.name.clone()).collect(),
            target: first.target.clone(),
            image_id: catalog.image_id(&first.target.digest, self.platform()),
        })
    }

    /// All records of the one image whose target, manifest or image ID starts like `text`.
    fn by_digest(&self, catalog: &Catalog, text: &str, wanted: &Wanted) -> Result<Found> {
        let matches = |digest: &Digest| wanted.matches(digest);
        let platform = self.platform();
        let mut images: BTreeMap<Digest, Vec<&Image>> = BTreeMap::new();
        for record in &catalog.records {
            let target = &record.target.digest;
            let id = catalog.image_id(target, platform);
            let identity = id.as_ref().map_or_else(|| target.clone(), |id| id.digest().clone());
            if matches(target) || id.as_ref().is_some_and(|id| matches(id.digest())) {
                images.entry(identity).or_default().push(record);
            }
        }
        if images.len() > 1 {
            let candidates = images.into_keys().map(|d| d.to_string()).collect();
            return Err(Error::Ambiguous { text: text.to_owned(), candidates });
        }
        match images.into_values().next() {
            Some(records) => self.found(catalog, &records),
            None => Err(Error::NotFound(text.to_owned())),
        }
    }

    /// Every record of the image that `names` are records of.
    pub(crate) fn siblings<'a>(&self, catalog: &'a Catalog, target: &Digest) -> Vec<&'a Image> {
        let platform = self.platform();
        let id = catalog.image_id(target, platform);
        let same = |record: &&Image| {
            record.target.digest == *target || id.is_some() && catalog.image_id(&record.target.digest, platform) == id
        };
        catalog.records.iter().filter(same).collect()
    }

    /// Everything known of one image.
    pub async fn inspect(&self, scope: &Scope, text: &str) -> Result<Inspection> {
        let found = self.resolve_name(scope, text).await?;
        let view = self.view(scope).await?;
        let image = found.names.first().and_then(|name| view.image_of(name));
        let row = image.map(|image| view.image_row(image)).ok_or_else(|| Error::NotFound(text.to_owned()))?;
        let tree = walk::walk(&Stored(self.store().content(scope)), text, &found.target, &Select::Present).await?;
        let snapshots = self.snapshot_rows(scope, &tree).await?;
        Ok(Inspection { row, documents: documents(tree), snapshots })
    }

    async fn snapshot_rows(&self, scope: &Scope, tree: &Tree) -> Result<Vec<SnapshotRow>> {
        let chain = tree.image_for(self.platform()).and_then(|n| n.image.as_ref());
        let chain = chain.map(|i| i.chain.clone()).unwrap_or_default();
        let scope = scope.clone();
        self.blocking(move |store| {
            let mut rows = Vec::new();
            for driver in store.drivers() {
                let snapshots = store.snapshots(&scope, driver.name())?;
                for chain_id in &chain {
                    let key = chain_id.to_string();
                    match snapshots.usage(&key) {
                        Ok(usage) => rows.push(SnapshotRow {
                            chain_id: key,
                            snapshotter: driver.name().to_owned(),
                            bytes: usage.bytes,
                            inodes: usage.inodes,
                        }),
                        Err(metadata::Error::NotFound { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
            }
            Ok(rows)
        })
        .await
    }
}

/// The digests that a text can mean.
enum Wanted {
    Exactly(Digest),
    StartingWith(String),
}

impl Wanted {
    fn of(text: &str) -> Option<Self> {
        if let Ok(digest) = text.parse() {
            return Some(Self::Exactly(digest));
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = !hex.is_empty() && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| Self::StartingWith(hex.to_owned()))
    }

    fn matches(&self, digest: &Digest) -> bool {
        match self {
            Self::Exactly(exact) => digest == exact,
            Self::StartingWith(hex) => digest.hex().starts_with(hex.as_str()),
        }
    }
}

/// Splits `name@{N}`.
fn earlier(text: &str) -> Option<(&str, usize)> {
    let (name, rest) = text.rsplit_once("@{")?;
    Some((name, rest.strip_suffix('}')?.parse().ok()?))
}

fn documents(tree: Tree) -> Vec<DocumentRow> {
    let mut rows = Vec::new();
    for node in &tree.nodes {
        let platform = node.image.as_ref().map(|i| i.platform.clone()).or(node.descriptor.platform.clone());
        rows.push(DocumentRow {
            descriptor: node.document.descriptor(),
            raw: node.document.raw().clone(),
            platform: platform.clone(),
            missing: false,
        });
        if let (Some(raw), Some(manifest)) = (&node.config, node.document.manifest()) {
            let descriptor = manifest.config.clone();
            rows.push(DocumentRow { descriptor, raw: raw.clone(), platform, missing: false });
        }
    }
    rows.extend(tree.missing.into_iter().map(|missing| {
        let media_type = String::new();
        let descriptor = Descriptor::new(media_type, missing.digest, 0);
        DocumentRow { descriptor, raw: Bytes::new(), platform: missing.platform, missing: true }
    }));
    rows
}
