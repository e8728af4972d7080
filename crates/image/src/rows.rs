//! Listing: one row an image, or one row a record.
//!
//! A listing is read from one snapshot of the database. Rows of records need only what their documents say; rows of
//! images need the graph of the whole store, since what other namespaces use is shared too. Either way rows are made
//! one by one when they are asked for, so that ten thousand of them are never there at once.

use std::sync::Arc;

use jiff::Timestamp;
use orlop_graph::{Builder, Graph, NumberedManifest, Records};
use orlop_metadata::{Labels, ListedImage, ListedManifest, Listing, ListingRequest, ManifestSummary, Scope};
use orlop_oci::{Descriptor, Digest, ImageId, Kind, Platform, PlatformMatcher};

use crate::reconcile::{is_name_of, is_pinned};
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

/// What is asked of the state of a store: of records alone, or of images.
trait Answers: Sized + Send + 'static {
    const USAGE: bool;
    fn build(builder: Builder) -> Self;
    fn records(&self) -> &Records;
}

impl Answers for Records {
    const USAGE: bool = false;

    fn build(builder: Builder) -> Self {
        builder.build_records()
    }

    fn records(&self) -> &Records {
        self
    }
}

impl Answers for Graph {
    const USAGE: bool = true;

    fn build(builder: Builder) -> Self {
        builder.build()
    }

    fn records(&self) -> &Records {
        self.records()
    }
}

/// Records with the answers to what is asked of them.
struct Answered<A> {
    answers: A,
    /// In the order of the answers.
    listed: Vec<ListedImage>,
}

/// The images of a store; those of the wanted namespace have rows.
pub(crate) struct View(Answered<Graph>);

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
        let view = View(self.answers(scope, request).await?);
        Ok((0..view.0.answers.images().len()).filter_map(move |at| {
            let image = &view.0.answers.images()[at];
            let wanted = image.records.iter().any(|record| view.0.listed[*record].matches);
            wanted.then(|| view.image_row(image))
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
        let Answered { answers, listed } = self.answers::<Records>(scope, request).await?;
        Ok(listed.into_iter().enumerate().map(move |(at, record)| record_row(&answers, at, record)))
    }

    /// The images of the scope's namespace, measured against the whole store.
    pub(crate) async fn view(&self, scope: &Scope) -> Result<View> {
        Ok(View(self.answers(scope, &ListRequest::default()).await?))
    }

    async fn answers<A: Answers>(&self, scope: &Scope, request: &ListRequest) -> Result<Answered<A>> {
        let request = ListingRequest {
            namespace: (!request.all_namespaces).then(|| scope.namespace.clone()),
            filters: request.filters.clone(),
            usage: A::USAGE,
        };
        let first = self.answers_with::<A>(&request, Vec::new()).await?;
        let records = first.answers.records();
        let unknown = records.unknown().into_iter().map(|at| {
            let scope = Scope { namespace: records.get(at).namespace.to_owned(), ..scope.clone() };
            (scope, target(records, at, &first.listed[at]))
        });
        let learnt = self.learn(&unknown.collect::<Vec<_>>()).await?;
        if learnt.is_empty() {
            return Ok(first);
        }
        self.answers_with(&request, learnt).await
    }

    /// Reads the store, and what was learnt although it may not be written.
    async fn answers_with<A: Answers>(
        &self,
        request: &ListingRequest,
        learnt: Vec<(Digest, ManifestSummary)>,
    ) -> Result<Answered<A>> {
        let wanted = PlatformMatcher::only(self.platform());
        let request = request.clone();
        self.blocking(move |store| {
            let Listing { digests, namespaces, images, blobs, snapshots, manifests } = store.listing(&request)?;
            let mut builder = Builder::over(wanted, digests);
            // Namespaces get the numbers they have.
            namespaces.iter().for_each(|name| _ = builder.namespace(name));
            blobs.into_iter().for_each(|(namespace, digest, size)| builder.blob_at(namespace, digest, size));
            snapshots.into_iter().for_each(|(namespace, chain, bytes)| builder.snapshot_at(namespace, chain, bytes));
            manifests.into_iter().for_each(|(digest, manifest)| builder.manifest_at(digest, numbered(manifest)));
            learnt.iter().for_each(|(digest, summary)| builder.manifest(digest, &graph_manifest(summary)));
            for image in &images {
                builder.record_at(image.namespace, image.name.clone(), image.target, is_pinned(&image.labels));
            }
            Ok(Answered { answers: A::build(builder), listed: images })
        })
        .await
    }
}

impl View {
    /// The image that a record of the wanted namespace belongs to.
    pub(crate) fn image_of(&self, name: &str) -> Option<&orlop_graph::Image> {
        let Answered { answers, listed } = &self.0;
        let at = listed.iter().position(|record| record.matches && *record.name == *name)?;
        answers.images().iter().find(|image| image.records.contains(&at))
    }

    pub(crate) fn image_row(&self, image: &orlop_graph::Image) -> ImageRow {
        let Answered { answers, listed } = &self.0;
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
            let (record, kind) = (&listed[*at], answers.records().get(*at).kind);
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

fn record_row(records: &Records, at: usize, record: ListedImage) -> RecordRow {
    let view = records.get(at);
    RecordRow {
        name: view.name.to_owned(),
        namespace: view.namespace.to_owned(),
        kind: view.kind,
        target: target(records, at, &record),
        image_id: view.image_id.cloned(),
        labels: record.labels,
        created_at: record.created_at,
        updated_at: record.updated_at,
        size: view.listed_size,
        platforms: view.platforms.to_vec(),
    }
}

fn target(records: &Records, at: usize, record: &ListedImage) -> Descriptor {
    Descriptor::new(&*record.media_type, records.target_digest(at), record.size)
}

fn sizes(sizes: &orlop_graph::Sizes) -> Sizes {
    Sizes { compressed: sizes.compressed, unpacked: sizes.unpacked, shared: sizes.shared, unique: sizes.unique }
}

fn numbered(manifest: ListedManifest) -> NumberedManifest {
    let ListedManifest { size, image_id, config_size, platform, chain, layers, manifests } = manifest;
    NumberedManifest { size, image_id, config_size, platform, chain, layers, manifests }
}

fn graph_manifest(summary: &ManifestSummary) -> orlop_graph::Manifest {
    orlop_graph::Manifest {
        size: summary.size,
        image_id: summary.image_id.clone(),
        config_size: summary.config_size,
        platform: summary.platform.clone(),
        chain: summary.chain.clone(),
        layers: summary.layers.clone(),
        manifests: summary.manifests.clone(),
    }
}
