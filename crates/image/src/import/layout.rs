//! What an archive says its images are: an OCI layout's index, or a docker-archive's manifest.

use std::collections::BTreeMap;

use bytes::Bytes;
use orlop_oci::{Descriptor, Digest, ImageConfig, Index, MAX_MANIFEST_BYTES, Reference, media_type};
use serde::{Deserialize, Serialize};

use super::files::{File, Files};
use crate::error::ArchiveError;
use crate::pull::Session;
use crate::{Error, Result};

/// containerd's name of an image in an OCI layout.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The specification's; often only a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Packed copies of layers that the store has, by the digests of the plain ones.
pub(super) type Packed = BTreeMap<Digest, File>;

/// An image of an archive, with the names that the archive gives it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) target: Descriptor,
    pub(super) names: Vec<Given>,
}

/// A name in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    /// A whole reference.
    Full(String),
    /// Only a tag.
    Tag(String),
}

/// An entry of docker-archive's `manifest.json`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct DockerEntry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// The images of an OCI layout's `index.json`: an entry for each target, its names gathered.
pub(super) fn index_entries(raw: &[u8]) -> Result<Vec<Entry>> {
    let index: Index = json_file("index.json", raw)?;
    let mut entries: Vec<Entry> = Vec::new();
    for mut target in index.manifests {
        let annotations = std::mem::take(&mut target.annotations);
        let name = given(&annotations);
        if target.is_attestation() {
            continue;
        }
        match entries.iter_mut().find(|e| e.target.digest == target.digest) {
            Some(entry) => entry.names.extend(name),
            None => entries.push(Entry { target, names: name.into_iter().collect() }),
        }
    }
    Ok(entries)
}

fn given(annotations: &BTreeMap<String, String>) -> Option<Given> {
    if let Some(name) = annotations.get(IMAGE_NAME).filter(|n| !n.is_empty()) {
        return Some(Given::Full(name.clone()));
    }
    let name = annotations.get(REF_NAME).filter(|n| !n.is_empty())?;
    let is_full = name.contains(['/', ':', '@']);
    Some(if is_full { Given::Full(name.clone()) } else { Given::Tag(name.clone()) })
}

pub(super) fn docker_entries(raw: &[u8]) -> Result<Vec<DockerEntry>> {
    json_file("manifest.json", raw)
}

fn json_file<T: serde::de::DeserializeOwned>(name: &str, raw: &[u8]) -> Result<T> {
    serde_json::from_slice(raw).map_err(|source| Error::Archive(ArchiveError::Json { name: name.to_owned(), source }))
}

impl DockerEntry {
    /// The tags as they stand.
    pub(super) fn repo_tags(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().flatten().filter(|n| !n.is_empty())
    }

    pub(super) fn names(&self) -> Vec<Given> {
        self.repo_tags.iter().flatten().filter(|n| !n.is_empty()).cloned().map(Given::Full).collect()
    }

    /// The image ID, if the config is in the archive.
    pub(super) fn image_id(&self, files: &Files) -> Option<Digest> {
        files.blob(&self.config).map(|file| file.digest.clone())
    }

    /// Makes the manifest that a docker-archive lacks, as Docker would push it, and puts it into the store.
    /// A layer of which the store has a packed copy is named by that.
    pub(super) async fn manifest(&self, session: &Session<'_>, files: &Files, packed: &Packed) -> Result<Entry> {
        let config = self.file(files, &self.config)?;
        let layers = self.layers.iter().flatten().map(|path| self.file(files, path));
        let layers = layers.collect::<Result<Vec<&File>>>()?;
        let raw = orlop_content::read_verified(&session.content, &config.digest, MAX_MANIFEST_BYTES).await?;
        check_layers(config, &raw, &layers)?;
        let layers: Vec<&File> = layers.into_iter().map(|layer| packed.get(&layer.digest).unwrap_or(layer)).collect();
        let manifest = DockerManifest {
            schema_version: 2,
            media_type: media_type::DOCKER_MANIFEST,
            config: plain_descriptor(media_type::DOCKER_CONFIG, config),
            layers: layers.iter().map(|layer| plain_descriptor(packing(layer), layer)).collect(),
        };
        let raw = Bytes::from(serde_json::to_vec(&manifest).expect("strings and numbers are JSON"));
        let target = Descriptor::new(media_type::DOCKER_MANIFEST, Digest::of(&raw), raw.len() as u64);
        session.put(&target, "manifest", raw).await?;
        Ok(Entry { target, names: self.names() })
    }

    fn file<'a>(&self, files: &'a Files, path: &str) -> Result<&'a File> {
        let lacks = || Error::Archive(ArchiveError::Lacks { name: path.to_owned(), needed_by: "manifest.json" });
        files.blob(path).ok_or_else(lacks)
    }
}

/// A layer that is not packed hashes to its diff ID: a swapped one is found even without unpacking.
fn check_layers(config: &File, raw: &[u8], layers: &[&File]) -> Result<()> {
    let parsed = ImageConfig::parse(raw).map_err(|source| Error::Document { digest: config.digest.clone(), source })?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        let reason = format!("manifest.json has {} layers, the config has {} diff IDs", layers.len(), diff_ids.len());
        return Err(Error::Inconsistent { digest: config.digest.clone(), reason });
    }
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        if packing(layer) == media_type::DOCKER_LAYER && layer.digest != *diff_id.digest() {
            let (expected, actual) = (diff_id.digest().clone(), layer.digest.clone());
            return Err(Error::DiffId { layer: layer.digest.clone(), expected, actual });
        }
    }
    Ok(())
}

/// The manifest that a docker-archive lacks. The order of the fields is containerd's, so that the digest is the same too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DockerManifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: PlainDescriptor<'a>,
    layers: Vec<PlainDescriptor<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PlainDescriptor<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
}

fn plain_descriptor<'a>(media_type: &'a str, file: &'a File) -> PlainDescriptor<'a> {
    PlainDescriptor { media_type, digest: file.digest.as_str(), size: file.size }
}

fn packing(layer: &File) -> &'static str {
    match layer.magic.as_ref() {
        [0x1f, 0x8b, ..] => media_type::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => media_type::DOCKER_LAYER_ZSTD,
        _ => media_type::DOCKER_LAYER,
    }
}

/// The records' names of an image: what the archive says, completed by `base`, or `fallback` where it says nothing.
pub(super) fn names(entry: &Entry, base: &str, fallback: &str) -> Result<Vec<Reference>> {
    let prefix = if base.is_empty() { fallback } else { base };
    let mut names = Vec::new();
    for given in &entry.names {
        let text = match given {
            Given::Full(name) => name.clone(),
            Given::Tag(tag) => format!("{prefix}:{tag}"),
        };
        names.push(crate::tag::new_name(&text, &entry.target)?);
    }
    if names.is_empty() {
        names.push(format!("{prefix}@{}", entry.target.digest).parse()?);
    }
    Ok(names)
}
