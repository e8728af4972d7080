//! From what people type to what is meant; everything known of one image.

use bytes::Bytes;
use orlop_metadata::Scope;
use orlop_oci::{Descriptor, ImageId, Platform};

use crate::{ImageRow, Images, Result, SnapshotRow};

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
    /// Finds what `text` means: a full name, a familiar name, a digest, an image ID, or a prefix of a digest that only
    /// one image has.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound), or [`Error::Ambiguous`](crate::Error::Ambiguous) with all that match.
    pub async fn resolve_name(&self, scope: &Scope, text: &str) -> Result<Found> {
        let _ = (scope, text);
        todo!()
    }

    /// Everything known of one image.
    pub async fn inspect(&self, scope: &Scope, text: &str) -> Result<Inspection> {
        let _ = (scope, text);
        todo!()
    }
}
