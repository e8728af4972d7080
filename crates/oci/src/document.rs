//! Descriptors, manifests, indexes and configs, with their raw bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::shape::Shape;
use crate::{Algorithm, DiffId, Digest, Digester, ManifestDigest, MediaKind, Platform};

/// Larger manifests are refused before they are parsed: containerd's own bound.
pub const MAX_MANIFEST_BYTES: u64 = 4 * 1048 * 1048;

/// Reads `null` as if the member were absent: programs written in Go write empty lists so.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What a document says about a blob (image-spec descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type; empty only in documents that break the specification.
    #[serde(default, deserialize_with = "null_as_default")]
    pub media_type: String,
    /// The digest of the blob.
    pub digest: Digest,
    /// The size of the blob in bytes.
    pub size: u64,
    /// Other places to fetch from (non-distributable layers).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub urls: Vec<String>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// The blob itself in base64, where it is small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// In an index: the platform of the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The artifact's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor of nothing but type, digest and size.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: None,
        }
    }

    /// What the media type says.
    pub fn kind(&self) -> MediaKind {
        MediaKind::of(&self.media_type)
    }

    /// Whether this is a build attestation (BuildKit's `vnd.docker.reference.type: attestation-manifest`).
    pub fn is_attestation(&self) -> bool {
        self.annotations.get("vnd.docker.reference.type").is_some_and(|v| v == "attestation-manifest")
    }
}

/// The manifest of one image or artifact (image-spec manifest.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// May be absent in OCI documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The artifact's type, where this is not a container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config; its digest is the image ID.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about (a referrer).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests, usually one a platform (image-spec image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// May be absent in OCI documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The artifact's type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests and nested indexes.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
}

/// The part of an image config that a store needs (image-spec config.md); the rest stays in the raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The platform it was built for.
    #[serde(flatten)]
    pub platform: Platform,
    /// The uncompressed layers.
    #[serde(default, deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
    /// When it was made, as the document says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who runs it (`config.User`): a name or number, perhaps with `:group`; empty: nobody in particular.
    #[serde(default, rename = "config", deserialize_with = "user_of", skip_serializing)]
    pub user: String,
}

/// Reads the one member of `config` that a store must tell. What is wrong in the others is the runtime's business.
fn user_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Default, Deserialize)]
    struct Config {
        #[serde(default, rename = "User", deserialize_with = "null_as_default")]
        user: String,
    }
    let raw = Option::<Box<RawValue>>::deserialize(deserializer)?;
    Ok(raw.and_then(|raw| serde_json::from_str::<Config>(raw.get()).ok()).unwrap_or_default().user)
}

/// The uncompressed layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(default, rename = "type", deserialize_with = "null_as_default")]
    pub kind: String,
    /// The digest of each uncompressed layer, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<DiffId>,
}

impl ImageConfig {
    /// Parses a config's bytes.
    pub fn parse(raw: &[u8]) -> Result<Self, DocumentError> {
        check_size(raw)?;
        serde_json::from_slice(raw).map_err(|source| DocumentError::Json { what: "image config", source })
    }
}

/// Why bytes are not a manifest, an index or a config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Larger than [`MAX_MANIFEST_BYTES`].
    #[error("document of {size} bytes is larger than the {MAX_MANIFEST_BYTES} allowed")]
    TooLarge {
        /// What it has.
        size: u64,
    },
    /// Not the JSON that was expected.
    #[error("not a valid {what}: {source}")]
    Json {
        /// What it should have been.
        what: &'static str,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// Docker schema 1, given up by its authors and unverifiable.
    #[error("Docker schema 1 manifests are not supported; push the image again with a current tool")]
    Schema1,
    /// The document is both manifest and index: read differently by different tools, so refused.
    #[error("ambiguous document: it has both {0:?} and {1:?}")]
    Ambiguous(&'static str, &'static str),
    /// A member's name differs from a known one in case only: some programs read it, others do not, so refused.
    #[error("ambiguous document: it has {found:?}, which some programs read as {known:?}")]
    Case {
        /// As the document has it.
        found: String,
        /// As the specification has it.
        known: &'static str,
    },
    /// The media type promises another kind of document than the members make.
    #[error("a document of media type {media_type} must not have {member:?}")]
    Member {
        /// The media type, from inside or outside.
        media_type: String,
        /// The member that does not belong.
        member: &'static str,
    },
    /// The type inside the document contradicts the type it came with.
    #[error("media type mismatch: expected {expected}, the document says {found}")]
    MediaType {
        /// From the descriptor or the Content-Type header.
        expected: String,
        /// From inside.
        found: String,
    },
    /// Neither a manifest nor an index.
    #[error("unknown media type {0:?}: expected an image manifest or an index")]
    Unknown(String),
    /// `schemaVersion` is not 2.
    #[error("schemaVersion is {0}, expected 2")]
    Version(u64),
}

/// A manifest or an index, parsed, with the bytes its digest was computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    raw: Bytes,
    digest: ManifestDigest,
    media_type: String,
    body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    Manifest(Box<ImageManifest>),
    Index(Box<Index>),
}

impl Document {
    /// Parses a manifest or an index. `declared` is the media type it came with, if any.
    pub fn parse(raw: Bytes, declared: Option<&str>) -> Result<Self, DocumentError> {
        Self::parse_as(raw, declared, Algorithm::Sha256)
    }

    /// As [`Document::parse`], naming the document by another algorithm than SHA-256.
    pub fn parse_as(raw: Bytes, declared: Option<&str>, algorithm: Algorithm) -> Result<Self, DocumentError> {
        check_size(&raw)?;
        let media_type = Shape::read(&raw)?.media_type(declared)?;
        let body = match MediaKind::of(&media_type) {
            MediaKind::Manifest => Body::Manifest(from_json(&raw, "image manifest")?),
            MediaKind::Index => Body::Index(from_json(&raw, "image index")?),
            _ => return Err(DocumentError::Unknown(media_type)),
        };
        let mut digester = Digester::new(algorithm);
        digester.update(&raw);
        Ok(Self { digest: ManifestDigest::new(digester.finish()), raw, media_type, body })
    }

    /// The bytes as received.
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The digest of the raw bytes.
    pub const fn digest(&self) -> &ManifestDigest {
        &self.digest
    }

    /// The media type.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The manifest, if this is one.
    pub fn manifest(&self) -> Option<&ImageManifest> {
        match &self.body {
            Body::Manifest(m) => Some(m),
            Body::Index(_) => None,
        }
    }

    /// The index, if this is one.
    pub fn index(&self) -> Option<&Index> {
        match &self.body {
            Body::Manifest(_) => None,
            Body::Index(i) => Some(i),
        }
    }

    /// A descriptor of this document.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest.digest().clone(), self.raw.len() as u64)
    }

    /// What this document refers to, in document order: config before layers, then nothing else. The subject is not a
    /// child: a referrer does not keep what it is about.
    pub fn children(&self) -> Vec<&Descriptor> {
        match &self.body {
            Body::Manifest(m) => std::iter::once(&m.config).chain(&m.layers).collect(),
            Body::Index(i) => i.manifests.iter().collect(),
        }
    }
}

fn from_json<T: serde::de::DeserializeOwned>(raw: &[u8], what: &'static str) -> Result<Box<T>, DocumentError> {
    serde_json::from_slice(raw).map(Box::new).map_err(|source| DocumentError::Json { what, source })
}

fn check_size(raw: &[u8]) -> Result<(), DocumentError> {
    let size = raw.len() as u64;
    if size > MAX_MANIFEST_BYTES { Err(DocumentError::TooLarge { size }) } else { Ok(()) }
}
