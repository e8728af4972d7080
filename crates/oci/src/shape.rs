//! Which kind of document some bytes are, decided before they are parsed as one.
//!
//! Programs disagree about documents that are two things at once (CVE-2021-41190): members of both kinds, a type that
//! contradicts the members, a member written twice, or in another case. What could be read in two ways is refused.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{DocumentError, MediaKind, media_type};

/// The members of a document that decide what it is.
#[derive(Default)]
pub(crate) struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: bool,
    layers: bool,
    config: bool,
    fs_layers: bool,
    other_case: Option<(String, &'static str)>,
}

/// Every member that Orlop reads.
const KNOWN: [&str; 9] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
    "fsLayers",
];

impl Shape {
    pub(crate) fn read(raw: &[u8]) -> Result<Self, DocumentError> {
        let shape: Self =
            serde_json::from_slice(raw).map_err(|source| DocumentError::Json { what: "manifest", source })?;
        if shape.schema_version == Some(1) || shape.fs_layers {
            return Err(DocumentError::Schema1);
        }
        if let Some((found, known)) = shape.other_case {
            return Err(DocumentError::Case { found, known });
        }
        if let Some(version) = shape.schema_version.filter(|v| *v != 2) {
            return Err(DocumentError::Version(version));
        }
        if shape.manifests && shape.layers {
            return Err(DocumentError::Ambiguous("manifests", "layers"));
        }
        if shape.manifests && shape.config {
            return Err(DocumentError::Ambiguous("manifests", "config"));
        }
        Ok(shape)
    }

    /// The document's media type: what it says itself, else what it came with, else what its members make it.
    /// A `declared` type that is no document's (`application/json`, say) is no contradiction and says nothing.
    pub(crate) fn media_type(&self, declared: Option<&str>) -> Result<String, DocumentError> {
        let declared = declared
            .map(bare)
            .filter(|d| matches!(MediaKind::of(d), MediaKind::Manifest | MediaKind::Index | MediaKind::Schema1));
        let inside = self.media_type.as_deref().filter(|m| !m.is_empty());
        let media_type = match (declared, inside) {
            (Some(d), Some(m)) if d != bare(m) => {
                return Err(DocumentError::MediaType { expected: d.to_owned(), found: m.to_owned() });
            }
            (_, Some(m)) => bare(m),
            (Some(d), None) => d,
            (None, None) if self.manifests => media_type::OCI_INDEX,
            (None, None) if self.config => media_type::OCI_MANIFEST,
            (None, None) => "",
        };
        let alien = match MediaKind::of(media_type) {
            MediaKind::Manifest if self.manifests => Some("manifests"),
            MediaKind::Index if self.layers => Some("layers"),
            MediaKind::Index if self.config => Some("config"),
            MediaKind::Manifest | MediaKind::Index => None,
            MediaKind::Schema1 => return Err(DocumentError::Schema1),
            _ => return Err(DocumentError::Unknown(media_type.to_owned())),
        };
        match alien {
            Some(member) => Err(DocumentError::Member { media_type: media_type.to_owned(), member }),
            None => Ok(media_type.to_owned()),
        }
    }
}

fn bare(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or("").trim()
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    /// Duplicate members are found by the stricter parse that follows.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut shape = Shape::default();
        while let Some(key) = map.next_key::<String>()? {
            // `null` is as good as absent.
            let mut present = || Ok::<_, A::Error>(map.next_value::<Option<IgnoredAny>>()?.is_some());
            match key.as_str() {
                "schemaVersion" => shape.schema_version = map.next_value()?,
                "mediaType" => shape.media_type = map.next_value()?,
                "manifests" => shape.manifests |= present()?,
                "layers" => shape.layers |= present()?,
                "config" => shape.config |= present()?,
                "fsLayers" => shape.fs_layers |= present()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    if let Some(known) = KNOWN.iter().find(|k| **k != key && k.eq_ignore_ascii_case(&key)) {
                        shape.other_case = Some((key, known));
                    }
                }
            }
        }
        Ok(shape)
    }
}
