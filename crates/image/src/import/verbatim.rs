//! Importing as containerd's transfer service does: every image gets the names that the rules of a place make of its
//! annotations, images without a name come all the same, and the archive's index may get a name too.

use bytes::Bytes;
use orlop_content::Provider;
use orlop_metadata::{Scope, Store};
use orlop_oci::{Descriptor, Digest, Document, Index, MediaKind, PlatformMatcher, Reference, media_type};
use serde::Serialize;
use tokio::io::AsyncRead;
use tracing::field::Empty;
use tracing::info_span;

use super::files::{File, Files};
use super::layout::{self, Packed};
use crate::error::ArchiveError;
use crate::gate;
use crate::labels;
use crate::place::{archive_records, records};
use crate::pull::document_labels;
use crate::pull::{Nowhere, Plan, Session};
use crate::span::within;
use crate::walk::{self, Tree};
use crate::{Error, Event, Images, ImportAs, Place, Result, Sink};

/// Bytes that tell how a layer is packed.
const MAGIC: usize = 6;

/// The annotations by which an archive names an image.
const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An archive's index as a document, and what it names.
struct Archive {
    index: Descriptor,
    raw: Bytes,
    entries: Vec<Descriptor>,
}

impl Images {
    /// Reads an archive to its end and puts its images to a place. Returns each record with its target, in order.
    ///
    /// # Errors
    /// Nothing becomes visible unless everything that the platforms ask for is there.
    pub async fn import_as(
        &self,
        scope: &Scope,
        archive: &mut (dyn AsyncRead + Send + Unpin),
        request: &ImportAs,
        sink: Sink<'_>,
    ) -> Result<Vec<(String, Descriptor)>> {
        let importing = async {
            let plan = self.place_plan(&request.place)?;
            let written = self
                .under_lease(scope, async |scope| {
                    let mut session = self.session(scope, &Nowhere, sink);
                    let files = session.take_in(archive).await?;
                    session.place_archive(&files, &request.place, &plan).await
                })
                .await?;
            let names: Vec<String> = written.iter().map(|(name, _)| name.clone()).collect();
            self.reconcile_all(scope, &names).await?;
            Ok(written)
        };
        within(info_span!("import", error = Empty), importing).await
    }
}

impl Session<'_> {
    async fn place_archive(&self, files: &Files, place: &Place, plan: &Plan) -> Result<Vec<(String, Descriptor)>> {
        let archive = self.archive(files).await?;
        self.put(&archive.index, "index", archive.raw.clone()).await?;
        (self.sink)(Event::Target(archive.index.clone()));
        let trees = self.place_trees(&archive, place, plan).await?;
        let mut changes = records(place, &archive.index);
        for entry in &archive.entries {
            changes.extend(archive_records(place, entry));
        }
        let entries = trees.iter().map(|tree| (tree, tags(&tree.target))).collect();
        self.admit_records(&mut changes, &[&gate::Archive { documents: self, entries }]).await?;
        for tree in &trees {
            self.bring_tree(tree, plan).await?;
        }
        let index = Document::parse(archive.raw.clone(), Some(media_type::OCI_INDEX));
        let index = index.map_err(|source| Error::Document { digest: archive.index.digest.clone(), source })?;
        let index_labels = document_labels(&index);
        let (content, labels) = (self.content.clone(), vec![(archive.index.digest.clone(), index_labels)]);
        self.images.blocking(move |_| Ok(content.label_all(&labels)?)).await?;
        let written = changes.iter().map(|record| (record.name.clone(), record.target.clone())).collect();
        let owned = self.scope.clone();
        let write = move |store: &Store| Ok(store.replace_images(&owned, &changes)?);
        self.finish(trees.iter(), plan, write).await?;
        Ok(written)
    }

    /// Walks what the platforms let through; all of that must be there.
    async fn place_trees(&self, archive: &Archive, place: &Place, plan: &Plan) -> Result<Vec<Tree>> {
        let matcher = PlatformMatcher::exactly(&place.platforms);
        let wanted = |entry: &&Descriptor| {
            place.platforms.is_empty() || entry.platform.as_ref().is_none_or(|platform| matcher.matches(platform))
        };
        let mut trees = Vec::new();
        for entry in archive.entries.iter().filter(wanted) {
            if !matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index) {
                continue;
            }
            let tree = walk::walk(self, "the archive", entry, &plan.select).await?;
            let mut missing = tree.missing.clone();
            missing.extend(self.missing_blobs(&tree).await?);
            if !missing.is_empty() {
                return Err(Error::Incomplete { name: "the archive".to_owned(), missing });
            }
            trees.push(tree);
        }
        if trees.is_empty() {
            return Err(Error::Archive(ArchiveError::Empty));
        }
        Ok(trees)
    }

    async fn archive(&self, files: &Files) -> Result<Archive> {
        if let Some(raw) = files.documents.get("index.json") {
            let parse = |source| Error::Archive(ArchiveError::Json { name: "index.json".to_owned(), source });
            let parsed: Index = serde_json::from_slice(raw).map_err(parse)?;
            let index = Descriptor::new(media_type::OCI_INDEX, Digest::of(raw), raw.len() as u64);
            return Ok(Archive { index, raw: raw.clone(), entries: parsed.manifests });
        }
        let Some(raw) = files.documents.get("manifest.json") else {
            return Err(Error::Archive(ArchiveError::Unknown));
        };
        let mut entries = Vec::new();
        let packed = self.packed().await?;
        for docker in layout::docker_entries(raw)? {
            let mut target = docker.manifest(self, files, &packed).await?.target;
            let tree = walk::walk(self, "the archive", &target, &walk::Select::Present).await?;
            target.platform = tree.manifests().find_map(|n| n.image.as_ref()).map(|i| i.platform.clone());
            let tags: Vec<&String> = docker.repo_tags().collect();
            if tags.is_empty() {
                entries.push(target.clone());
            }
            for tag in tags {
                entries.push(named(target.clone(), tag)?);
            }
        }
        let made = MadeIndex { schema_version: 2, manifests: entries.iter().map(MadeDescriptor::new).collect() };
        let raw = Bytes::from(serde_json::to_vec(&made).expect("strings and numbers are JSON"));
        let index = Descriptor::new(media_type::OCI_INDEX, Digest::of(&raw), raw.len() as u64);
        Ok(Archive { index, raw, entries })
    }

    /// The packed layers that this namespace has, as their labels say.
    async fn packed(&self) -> Result<Packed> {
        let content = self.content.clone();
        let filter = format!("labels.\"{}\"", labels::UNCOMPRESSED);
        let found = self.images.blocking(move |_| Ok(content.find(&[filter])?)).await?;
        let mut packed = Packed::new();
        for blob in found {
            let plain = blob.labels.get(labels::UNCOMPRESSED).and_then(|digest| digest.parse::<Digest>().ok());
            let Some(plain) = plain.filter(|plain| *plain != blob.digest) else { continue };
            let magic = self.content.open(&blob.digest).await?.read_at(0, MAGIC).await?;
            packed.insert(plain, File { digest: blob.digest, size: blob.size, magic });
        }
        Ok(packed)
    }
}

/// The tags that an archive gives an entry.
fn tags(entry: &Descriptor) -> Vec<String> {
    let given = [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| entry.annotations.get(key));
    given.map(|name| name.rsplit(':').next().unwrap_or(name).to_owned()).collect()
}

/// An entry with the annotations that its tag comes to.
fn named(mut target: Descriptor, tag: &str) -> Result<Descriptor> {
    let reference: Reference = tag.parse()?;
    let object = match &reference {
        Reference::Tag { tag, .. } => tag.clone(),
        other => other.to_string(),
    };
    target.annotations.insert(IMAGE_NAME.to_owned(), reference.to_string());
    target.annotations.insert(REF_NAME.to_owned(), object);
    Ok(target)
}

/// The index that a docker-archive lacks. The order of the fields is containerd's, so that its digest is the same too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeIndex<'a> {
    schema_version: u8,
    manifests: Vec<MadeDescriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<MadePlatform<'a>>,
}

#[derive(Serialize)]
struct MadePlatform<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
}

impl<'a> MadeDescriptor<'a> {
    fn new(descriptor: &'a Descriptor) -> Self {
        let platform = descriptor.platform.as_ref().map(|p| MadePlatform {
            architecture: &p.architecture,
            os: &p.os,
            variant: p.variant.as_deref(),
        });
        let (media_type, digest) = (descriptor.media_type.as_str(), descriptor.digest.as_str());
        Self { media_type, digest, size: descriptor.size, annotations: &descriptor.annotations, platform }
    }
}
