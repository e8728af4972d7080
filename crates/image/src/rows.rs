//! Listing: one row an image, or one row a record.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use orlop_graph::{Builder, Graph};
use orlop_metadata::{Image, ManifestSummary, Scope};
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Platform, PlatformMatcher};

use crate::reconcile::{is_name, is_pinned};
use crate::{Images, Result};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// containerd's filters over records; none: all.
    pub filters: Vec<String>,
    /// Every namespace instead of the scope's.
    pub all_namespaces: bool,
}

/// What an image takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Its blobs in this store.
    pub compressed: u64,
    /// Its snapshots.
    pub unpacked: u64,
    /// Blobs and snapshots that other images use too.
    pub shared: u64,
    /// Blobs and snapshots that only it uses.
    pub unique: u64,
}

/// One image with all its names.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    /// The image ID of the host's platform, or of the first that is there; none for artifacts.
    pub image_id: Option<ImageId>,
    /// The namespace.
    pub namespace: String,
    /// Tags and other names.
    pub names: Vec<String>,
    /// Records that are hash references.
    pub hash_references: Vec<String>,
    /// What the records point at.
    pub targets: Vec<Digest>,
    /// Platforms that are complete in this store.
    pub platforms: Vec<Platform>,
    /// Whether any record is pinned.
    pub pinned: bool,
    /// What it takes.
    pub size: Sizes,
    /// When the first record was made.
    pub created_at: Timestamp,
    /// When a record last changed.
    pub updated_at: Timestamp,
    /// Something of it is missing.
    pub incomplete: bool,
}

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// The name.
    pub name: String,
    /// The namespace.
    pub namespace: String,
    /// Which kind of name it is.
    pub kind: Kind,
    /// What it points at.
    pub target: Descriptor,
    /// The image ID of the host's platform, if known.
    pub image_id: Option<ImageId>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Target, config and layers of the host's platform, as `ctr` counts.
    pub size: u64,
    /// Platforms that are complete in this store.
    pub platforms: Vec<Platform>,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SnapshotRow {
    /// Its key.
    pub chain_id: String,
    /// Its driver.
    pub snapshotter: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The state of some namespaces with what the graph says of it.
pub(crate) struct View {
    pub(crate) graph: Graph,
    /// The records, in the graph's order.
    pub(crate) records: Vec<(String, Image)>,
}

impl Images {
    /// One row an image, by first name.
    pub async fn images(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<ImageRow>> {
        let view = self.view(scope, request.all_namespaces).await?;
        let wanted = self.filtered(scope, request).await?;
        let rows = view.graph.images().iter();
        let matching = rows.filter(|image| image.records.iter().any(|at| wanted.matches(&view, *at)));
        Ok(matching.map(|image| view.image_row(image)).collect())
    }

    /// One row a record, by namespace and name.
    pub async fn records(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<RecordRow>> {
        let view = self.view(scope, request.all_namespaces).await?;
        let wanted = self.filtered(scope, request).await?;
        let all = (0..view.records.len()).filter(|at| wanted.matches(&view, *at));
        Ok(all.map(|at| view.record_row(at)).collect())
    }

    /// Everything the graph needs of the scope's namespace, or of all.
    pub(crate) async fn view(&self, scope: &Scope, all_namespaces: bool) -> Result<View> {
        let mut namespaces = vec![scope.namespace.clone()];
        if all_namespaces {
            let all = self.blocking(|store| Ok(store.namespaces()?)).await?;
            namespaces = all.into_iter().map(|n| n.name).collect();
        }
        let mut builder = Builder::new(PlatformMatcher::only(&self.settings().platform));
        let mut records = Vec::new();
        for namespace in namespaces {
            let scope = Scope { namespace: namespace.clone(), ..scope.clone() };
            let catalog = self.catalog(&scope).await?;
            for (digest, usage) in self.snapshot_usages(&scope).await? {
                builder.snapshot(&namespace, digest, usage);
            }
            catalog.content.into_iter().for_each(|(digest, size)| builder.blob(digest, size));
            catalog.summaries.into_iter().for_each(|(digest, s)| builder.manifest(digest, graph_manifest(s)));
            for record in catalog.records {
                builder.record(orlop_graph::Record {
                    namespace: namespace.clone(),
                    name: record.name.clone(),
                    target: record.target.digest.clone(),
                    pinned: is_pinned(&record.labels),
                });
                records.push((namespace.clone(), record));
            }
        }
        Ok(View { graph: builder.build(), records })
    }

    /// Chain IDs of all drivers' committed snapshots with their bytes.
    async fn snapshot_usages(&self, scope: &Scope) -> Result<Vec<(Digest, u64)>> {
        let scope = scope.clone();
        self.blocking(move |store| {
            let mut usages = Vec::new();
            for driver in store.drivers() {
                let all = store.snapshots(&scope, driver.name())?.usages()?;
                // A snapshot with another kind of name belongs to no image.
                usages.extend(all.into_iter().filter_map(|(info, usage)| Some((info.name.parse().ok()?, usage.bytes))));
            }
            Ok(usages)
        })
        .await
    }

    async fn filtered(&self, scope: &Scope, request: &ListRequest) -> Result<Wanted> {
        if request.filters.is_empty() {
            return Ok(Wanted(None));
        }
        let (scope, request) = (scope.clone(), request.clone());
        self.blocking(move |store| {
            let namespaces = match request.all_namespaces {
                true => store.namespaces()?.into_iter().map(|n| n.name).collect(),
                false => vec![scope.namespace.clone()],
            };
            let mut wanted = BTreeSet::new();
            for namespace in namespaces {
                let found = store.images(&namespace, &request.filters)?;
                wanted.extend(found.into_iter().map(|image| (namespace.clone(), image.name)));
            }
            Ok(Wanted(Some(wanted)))
        })
        .await
    }
}

/// Records that a filter lets through; `None`: all.
struct Wanted(Option<BTreeSet<(String, String)>>);

impl Wanted {
    fn matches(&self, view: &View, at: usize) -> bool {
        let (namespace, record) = &view.records[at];
        self.0.as_ref().is_none_or(|set| set.contains(&(namespace.clone(), record.name.clone())))
    }
}

impl View {
    /// The image that a record belongs to.
    pub(crate) fn image_of(&self, name: &str) -> Option<&orlop_graph::Image> {
        let at = self.records.iter().position(|(_, record)| record.name == name)?;
        self.graph.images().iter().find(|image| image.records.contains(&at))
    }

    pub(crate) fn image_row(&self, image: &orlop_graph::Image) -> ImageRow {
        let records = || image.records.iter().map(|at| &self.records[*at].1);
        let requested = |name: &String| records().any(|r| r.name == *name && is_name(r));
        let (asked, derived): (Vec<_>, Vec<_>) = image.hash_references.iter().cloned().partition(requested);
        let epoch = Timestamp::UNIX_EPOCH;
        ImageRow {
            image_id: image.image_id.clone(),
            namespace: image.namespace.clone(),
            names: image.names.iter().cloned().chain(asked).collect(),
            hash_references: derived,
            targets: image.targets.clone(),
            platforms: image.platforms.clone(),
            pinned: image.pinned,
            size: sizes(&image.sizes),
            created_at: records().map(|r| r.created_at).min().unwrap_or(epoch),
            updated_at: records().map(|r| r.updated_at).max().unwrap_or(epoch),
            incomplete: image.incomplete,
        }
    }

    fn record_row(&self, at: usize) -> RecordRow {
        let (namespace, record) = &self.records[at];
        let view = &self.graph.records()[at];
        RecordRow {
            name: record.name.clone(),
            namespace: namespace.clone(),
            kind: view.kind,
            target: record.target.clone(),
            image_id: view.image_id.clone(),
            labels: record.labels.clone(),
            created_at: record.created_at,
            updated_at: record.updated_at,
            size: view.listed_size,
            platforms: view.platforms.clone(),
        }
    }
}

fn sizes(sizes: &orlop_graph::Sizes) -> Sizes {
    Sizes { compressed: sizes.compressed, unpacked: sizes.unpacked, shared: sizes.shared, unique: sizes.unique }
}

fn graph_manifest(summary: ManifestSummary) -> orlop_graph::Manifest {
    orlop_graph::Manifest {
        size: summary.size,
        image_id: summary.image_id,
        config_size: summary.config_size,
        platform: summary.platform,
        chain: summary.chain,
        layers: summary.layers,
        manifests: summary.manifests,
    }
}
