//! Images, indexes, attestations and artifacts, made from a few lines and always to the same bytes.
//!
//! ```
//! use orlop_testkit::image::{Content, Image, Layer};
//! use orlop_testkit::tar::Entry;
//!
//! let base = Layer::new(vec![Entry::dir("etc"), Entry::file("etc/hostname", "orlop\n")]);
//! let amd64 = Content::image(&Image::new("linux/amd64").layer(base.clone()));
//! let arm64 = Content::image(&Image::new("linux/arm64").layer(base));
//! let both = Content::index(&[amd64, arm64]);
//! assert_eq!(both.root.media_type, "application/vnd.oci.image.index.v1+json");
//! ```

use std::collections::BTreeMap;

use orlop_oci::{Compression, Descriptor, DiffId, Digest, ImageId, Platform, media_type};
use serde_json::{Map, Value, json};

use crate::compress::pack;
use crate::tar::{Entry, tar};

/// Which family of media types is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flavour {
    /// OCI image specification 1.1.
    #[default]
    Oci,
    /// Docker image manifest, version 2 schema 2.
    Docker,
}

/// One layer of an image to be made.
#[derive(Debug, Clone)]
pub struct Layer {
    tar: Vec<u8>,
    compression: Compression,
    urls: Vec<String>,
    /// Packed bytes that are not what packing the tar gives.
    packed: Option<Vec<u8>>,
}

impl Layer {
    /// A gzip layer of these entries.
    pub fn new(entries: impl AsRef<[Entry]>) -> Self {
        Self::of_tar(tar(entries.as_ref()))
    }

    /// A gzip layer of tar bytes as they are.
    pub fn of_tar(tar: Vec<u8>) -> Self {
        Self { tar, compression: Compression::Gzip, urls: Vec::new(), packed: None }
    }

    /// A layer of packed bytes as they are, broken ones too; `tar` is what the config says they unpack to.
    pub fn of_packed(packed: Vec<u8>, compression: Compression, tar: Vec<u8>) -> Self {
        Self { tar, compression, urls: Vec::new(), packed: Some(packed) }
    }

    /// A gzip layer of one file of `size` bytes that do not compress; `seed` tells files apart.
    pub fn noise(path: &str, seed: u64, size: usize) -> Self {
        Self::new([Entry::file(path, noise(seed, size))])
    }

    /// Packs it differently.
    #[must_use]
    pub fn packed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Makes it non-distributable: named by a URL.
    #[must_use]
    pub fn foreign(mut self, url: &str) -> Self {
        self.urls.push(url.to_owned());
        self
    }

    /// The digest of the tar.
    pub fn diff_id(&self) -> DiffId {
        DiffId::new(Digest::of(&self.tar))
    }

    /// The packed bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.packed.clone().unwrap_or_else(|| pack(&self.tar, self.compression))
    }

    /// The tar.
    pub fn tar(&self) -> &[u8] {
        &self.tar
    }

    fn media_type(&self, flavour: Flavour) -> String {
        let foreign = !self.urls.is_empty();
        let (family, separator) = match (flavour, foreign) {
            (Flavour::Oci, false) => ("application/vnd.oci.image.layer.v1.tar", '+'),
            (Flavour::Oci, true) => ("application/vnd.oci.image.layer.nondistributable.v1.tar", '+'),
            (Flavour::Docker, false) => ("application/vnd.docker.image.rootfs.diff.tar", '.'),
            (Flavour::Docker, true) => ("application/vnd.docker.image.rootfs.foreign.diff.tar", '.'),
        };
        match self.compression {
            Compression::None => family.to_owned(),
            Compression::Gzip => format!("{family}{separator}gzip"),
            Compression::Zstd => format!("{family}{separator}zstd"),
        }
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        out.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(size);
    out
}

/// One image to be made.
#[derive(Debug, Clone)]
pub struct Image {
    platform: Platform,
    flavour: Flavour,
    layers: Vec<Layer>,
    config: Map<String, Value>,
    history: Option<Vec<Value>>,
    annotations: BTreeMap<String, String>,
    subject: Option<Descriptor>,
}

impl Image {
    /// An OCI image without layers for `os/architecture[/variant]`.
    pub fn new(platform: &str) -> Self {
        Self {
            platform: platform.parse().unwrap_or_else(|e| panic!("{e}")),
            flavour: Flavour::Oci,
            layers: Vec::new(),
            config: Map::new(),
            history: None,
            annotations: BTreeMap::new(),
            subject: None,
        }
    }

    /// An OCI image without layers for this machine.
    pub fn host() -> Self {
        Self::new(&Platform::host().to_string())
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Writes Docker's media types.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.flavour = Flavour::Docker;
        self
    }

    /// Sets a member of the config's `config` object: `Cmd`, `Env`, `Labels` …; two images with the same layers differ
    /// by it.
    #[must_use]
    pub fn config(mut self, member: &str, value: Value) -> Self {
        self.config.insert(member.to_owned(), value);
        self
    }

    /// Sets what the config says of how it was built, the first step first.
    #[must_use]
    pub fn history(mut self, steps: impl IntoIterator<Item = Value>) -> Self {
        self.history = Some(steps.into_iter().collect());
        self
    }

    /// Adds an annotation to the manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Makes it a referrer of another manifest.
    #[must_use]
    pub fn subject(mut self, subject: &Descriptor) -> Self {
        self.subject = Some(bare(subject));
        self
    }

    fn config_bytes(&self) -> Vec<u8> {
        let step = |i| json!({"created": EPOCH, "created_by": format!("layer {i}")});
        let history = self.history.clone().unwrap_or_else(|| (0..self.layers.len()).map(step).collect());
        let mut config = json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "created": EPOCH,
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(Layer::diff_id).collect::<Vec<_>>()},
            "history": history,
        });
        if let Some(variant) = &self.platform.variant {
            config["variant"] = json!(variant);
        }
        to_bytes(&config)
    }
}

const EPOCH: &str = "2026-01-01T00:00:00Z";

/// A document with everything below it.
#[derive(Debug, Clone)]
pub struct Content {
    /// The document at the top. In an index that names it, it has its platform and annotations.
    pub root: Descriptor,
    /// Every blob by digest, the document at the top too.
    pub blobs: BTreeMap<Digest, Blob>,
}

/// A blob and the media type it is referred to by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The media type.
    pub media_type: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Content {
    /// Makes an image.
    pub fn image(image: &Image) -> Self {
        let mut content = Self::empty();
        let docker = image.flavour == Flavour::Docker;
        let config_type = if docker { media_type::DOCKER_CONFIG } else { media_type::OCI_CONFIG };
        let config = content.add(config_type, image.config_bytes());
        let layers: Vec<Descriptor> = image
            .layers
            .iter()
            .map(|layer| {
                let descriptor = content.add(&layer.media_type(image.flavour), layer.bytes());
                Descriptor { urls: layer.urls.clone(), ..descriptor }
            })
            .collect();
        let manifest_type = if docker { media_type::DOCKER_MANIFEST } else { media_type::OCI_MANIFEST };
        let mut manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers});
        if !image.annotations.is_empty() {
            manifest["annotations"] = json!(image.annotations);
        }
        if let Some(subject) = &image.subject {
            manifest["subject"] = json!(subject);
        }
        content.root = content.add(manifest_type, to_bytes(&manifest));
        content.root.platform = Some(image.platform.clone());
        content
    }

    /// Makes an index of images, indexes, attestations and artifacts; a Docker manifest list if the first is Docker's.
    pub fn index(children: &[Self]) -> Self {
        let docker = children.first().is_some_and(|c| c.root.media_type == media_type::DOCKER_MANIFEST);
        let media_type = if docker { media_type::DOCKER_LIST } else { media_type::OCI_INDEX };
        let manifests: Vec<&Descriptor> = children.iter().map(|c| &c.root).collect();
        let mut content = Self::empty();
        content.blobs.extend(children.iter().flat_map(|c| c.blobs.clone()));
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        content.root = content.add(media_type, to_bytes(&index));
        content
    }

    /// Makes an attestation of an image as BuildKit puts it into an index: a manifest of platform `unknown/unknown`
    /// whose layer is an in-toto statement.
    pub fn attestation(of: &Self) -> Self {
        let mut content = Self::empty();
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": "_", "digest": {"sha256": of.root.digest.hex()}}],
            "predicate": {},
        });
        let statement = to_bytes(&statement);
        let diff_id = Digest::of(&statement);
        let layer = content.add("application/vnd.in-toto+json", statement);
        let config = json!({
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        let config = content.add(media_type::OCI_CONFIG, to_bytes(&config));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": config,
            "layers": [layer],
        });
        content.root = content.add(media_type::OCI_MANIFEST, to_bytes(&manifest));
        content.root.platform =
            Some(Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() });
        let note = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        content.root.annotations = BTreeMap::from([
            note("vnd.docker.reference.type", "attestation-manifest"),
            note("vnd.docker.reference.digest", of.root.digest.as_str()),
        ]);
        content
    }

    /// Makes an artifact with the empty config, e.g. an SBOM about `subject`.
    pub fn artifact(artifact_type: &str, blobs: &[(&str, &[u8])], subject: Option<&Descriptor>) -> Self {
        let mut content = Self::empty();
        let config = content.add(media_type::OCI_EMPTY, b"{}".to_vec());
        let layers: Vec<Descriptor> = blobs.iter().map(|(kind, bytes)| content.add(kind, bytes.to_vec())).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config,
            "layers": layers,
        });
        if let Some(subject) = subject {
            manifest["subject"] = json!(bare(subject));
        }
        content.root = content.add(media_type::OCI_MANIFEST, to_bytes(&manifest));
        content.root.artifact_type = Some(artifact_type.to_owned());
        content
    }

    /// Makes a document of any bytes on top of what `self` has: for what no sane program writes.
    #[must_use]
    pub fn with_document(mut self, media_type: &str, bytes: Vec<u8>) -> Self {
        self.root = self.add(media_type, bytes);
        self
    }

    /// A blob's bytes.
    pub fn bytes(&self, digest: &Digest) -> &[u8] {
        &self.blobs[digest].bytes
    }

    /// The parsed document at the top.
    pub fn document(&self) -> Value {
        serde_json::from_slice(self.bytes(&self.root.digest)).expect("made here")
    }

    /// The image ID, if the document at the top is an image.
    pub fn image_id(&self) -> Option<ImageId> {
        let digest = self.document()["config"]["digest"].as_str()?.parse().ok()?;
        Some(ImageId::new(digest))
    }

    /// The digests of the layers, lowest first; none for an index.
    pub fn layers(&self) -> Vec<Digest> {
        let document = self.document();
        let layers = document["layers"].as_array().cloned().unwrap_or_default();
        layers.iter().filter_map(|l| l["digest"].as_str()?.parse().ok()).collect()
    }

    /// Bytes of all blobs together.
    pub fn size(&self) -> u64 {
        self.blobs.values().map(|b| b.bytes.len() as u64).sum()
    }

    /// Blobs in an order in which they can be pushed: whatever a document names comes before it.
    pub fn push_order(&self) -> Vec<(Descriptor, &[u8])> {
        let mut order = Vec::new();
        self.visit(&self.root.digest, &mut order);
        // What nothing names: subjects and the like.
        for digest in self.blobs.keys() {
            self.visit(digest, &mut order);
        }
        order
    }

    fn visit<'a>(&'a self, digest: &Digest, order: &mut Vec<(Descriptor, &'a [u8])>) {
        let Some((digest, blob)) = self.blobs.get_key_value(digest) else { return };
        if order.iter().any(|(d, _)| d.digest == *digest) {
            return;
        }
        if is_document(&blob.media_type) {
            let document: Value = serde_json::from_slice(&blob.bytes).unwrap_or_default();
            let lists = ["manifests", "layers"].iter().filter_map(|m| document[*m].as_array()).flatten();
            for child in std::iter::once(&document["config"]).chain(lists) {
                if let Some(child) = child["digest"].as_str().and_then(|d| d.parse().ok()) {
                    self.visit(&child, order);
                }
            }
        }
        order.push((Descriptor::new(&blob.media_type, digest.clone(), blob.bytes.len() as u64), &blob.bytes));
    }

    fn empty() -> Self {
        Self { root: Descriptor::new("", Digest::of(b""), 0), blobs: BTreeMap::new() }
    }

    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = Digest::of(&bytes);
        let descriptor = Descriptor::new(media_type, digest.clone(), bytes.len() as u64);
        self.blobs.insert(digest, Blob { media_type: media_type.to_owned(), bytes });
        descriptor
    }
}

/// Whether a media type is that of a manifest or an index.
pub fn is_document(media_type: &str) -> bool {
    use orlop_oci::MediaKind::{Index, Manifest};
    matches!(orlop_oci::MediaKind::of(media_type), Manifest | Index)
}

fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(&descriptor.media_type, descriptor.digest.clone(), descriptor.size)
}

fn to_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("values serialise")
}
