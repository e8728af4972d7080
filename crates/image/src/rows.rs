//! Listing: one row an image, or one row a record.
//!
//! A listing is of one snapshot of the database ([`crate::overview`]). Rows of records need only what their documents say;
//! rows of images need the graph of the whole store, since what other namespaces use is shared too. Either way rows are made
//! one by one when they are asked for, so that ten thousand of them are never there at once.

use std::sync::Arc;

use jiff::Timestamp;
use orlop_metadata::{Labels, ListingRequest, Scope};
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Platform};

use crate::overview::{Depth, Overview};
use crate::reconcile::is_name_of;
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
    /// Platforms that are complete in this namespace.
    pub platforms: Vec<Arc<Platform>>,
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
    pub labels: Arc<Labels>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Target, config and layers of the host's platform, as `ctr` counts.
    pub size: u64,
    /// Platforms that are complete in this namespace.
    pub platforms: Vec<Arc<Platform>>,
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

/// The images of a store; those of the wanted namespace have rows.
pub(crate) struct View {
    overview: Arc<Overview>,
    /// Which records are wanted; `None`: all.
    wanted: Option<Vec<bool>>,
}

impl Images {
    /// One row an image, by first name.
    pub async fn images(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<ImageRow>> {
        Ok(self.image_rows(scope, request).await?.collect())
    }

    /// The same, each row made when it is asked for.
    pub async fn image_rows(
        &self,
        scope: &Scope,
        request: &ListRequest,
    ) -> Result<impl Iterator<Item = ImageRow> + Send + use<>> {
        let view = self.view_of(scope, request, Depth::Images).await?;
        Ok((0..view.overview.graph().images().len()).filter_map(move |at| {
            let image = &view.overview.graph().images()[at];
            image.records.iter().any(|record| view.wants(*record)).then(|| view.image_row(image))
        }))
    }

    /// One row a record, by namespace and name.
    pub async fn records(&self, scope: &Scope, request: &ListRequest) -> Result<Vec<RecordRow>> {
        Ok(self.record_rows(scope, request).await?.collect())
    }

    /// The same, each row made when it is asked for.
    pub async fn record_rows(
        &self,
        scope: &Scope,
        request: &ListRequest,
    ) -> Result<impl Iterator<Item = RecordRow> + Send + use<>> {
        let view = self.view_of(scope, request, Depth::Records).await?;
        let records = 0..view.overview.listing().images.len();
        Ok(records.filter_map(move |at| {
            let is_wanted = view.wants(at);
            is_wanted.then(|| record_row(&view.overview, at))
        }))
    }

    /// The images of the scope's namespace, measured against the whole store.
    pub(crate) async fn view(&self, scope: &Scope) -> Result<View> {
        self.view_of(scope, &ListRequest::default(), Depth::Images).await
    }

    async fn view_of(&self, scope: &Scope, request: &ListRequest, depth: Depth) -> Result<View> {
        let request = ListingRequest {
            namespace: (!request.all_namespaces).then(|| scope.namespace.clone()),
            filters: request.filters.clone(),
        };
        let overview = self.overview(scope, depth).await?;
        self.blocking(move |_| Ok(View { wanted: overview.listing().wanted(&request)?, overview })).await
    }
}

impl View {
    fn wants(&self, record: usize) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted[record])
    }

    /// The image that a record of the wanted namespace belongs to.
    pub(crate) fn image_of(&self, name: &str) -> Option<&orlop_graph::Image> {
        let listed = self.overview.listing().images.iter();
        let at = listed.enumerate().position(|(at, record)| *record.name == *name && self.wants(at))?;
        self.overview.graph().images().iter().find(|image| image.records.contains(&at))
    }

    pub(crate) fn image_row(&self, image: &orlop_graph::Image) -> ImageRow {
        let (listed, records) = (&self.overview.listing().images, self.overview.records());
        let mut row = ImageRow {
            image_id: image.image_id.clone(),
            namespace: (*image.namespace).to_owned(),
            names: Vec::new(),
            hash_references: Vec::new(),
            targets: image.targets.clone(),
            platforms: image.platforms.clone(),
            pinned: image.pinned,
            size: sizes(&image.sizes),
            created_at: Timestamp::MAX,
            updated_at: Timestamp::MIN,
            incomplete: image.incomplete,
        };
        let mut asked = Vec::new();
        for at in &image.records {
            let (record, kind) = (&listed[*at], records.get(*at).kind);
            let name = (*record.name).to_owned();
            match kind.is_hash_reference() {
                false => row.names.push(name),
                true if is_name_of(kind, &record.labels) => asked.push(name),
                true => row.hash_references.push(name),
            }
            row.created_at = row.created_at.min(record.created_at);
            row.updated_at = row.updated_at.max(record.updated_at);
        }
        row.names.extend(asked);
        row
    }
}

fn record_row(overview: &Overview, at: usize) -> RecordRow {
    let (view, record) = (overview.records().get(at), &overview.listing().images[at]);
    RecordRow {
        name: view.name.to_owned(),
        namespace: view.namespace.to_owned(),
        kind: view.kind,
        target: overview.target(at),
        image_id: view.image_id.cloned(),
        labels: record.labels.clone(),
        created_at: record.created_at,
        updated_at: record.updated_at,
        size: view.listed_size,
        platforms: view.platforms.to_vec(),
    }
}

fn sizes(sizes: &orlop_graph::Sizes) -> Sizes {
    Sizes { compressed: sizes.compressed, unpacked: sizes.unpacked, shared: sizes.shared, unique: sizes.unique }
}
