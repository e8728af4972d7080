//! All that listing needs, read at once, and followed from then on.
//!
//! Everything comes from one snapshot of the database, so that records, blobs and snapshots belong together whatever
//! other processes do. Digests are numbers of one table, and what rows repeat (media types, platforms, labels) is kept
//! once: of ten thousand images nothing is read that no listing shows.
//!
//! Who keeps a [`Listing`] in memory need not read all of it again: [`Store::renew_listing`] brings it up to date, whichever
//! process changed the store. Of records only what the history names is read; blobs and summaries are left alone while none
//! were added or dropped; and of what must be gone through again, most is known by its place.
//!
//! # Invariants
//! - A listing that was renewed says what one that is read anew would say; numbers, and the order in which digests got
//!   them, may differ.
//! - Rows of `manifest_summary` are never deleted; for records and blobs see [`crate::look`].

mod read;
mod renew;

use std::sync::Arc;

use jiff::Timestamp;
use orlop_oci::{DigestNumber, DigestTable, Platform};

use crate::filter::Filter;
use crate::images::Fields;
use crate::{Labels, Result};
pub(crate) use read::Repeated;
use renew::Extent;

/// Which records of a [`Listing`] are wanted.
#[derive(Debug, Clone, Default)]
pub struct ListingRequest {
    /// The namespace; none: all.
    pub namespace: Option<String>,
    /// containerd's filters over records; none: all.
    pub filters: Vec<String>,
}

/// A record.
#[derive(Debug, Clone)]
pub struct ListedImage {
    /// The namespace, as a position in [`Listing::namespaces`].
    pub namespace: u32,
    /// The name.
    pub name: Arc<str>,
    /// What it points at.
    pub target: DigestNumber,
    /// The target's media type.
    pub media_type: Arc<str>,
    /// The target's size in bytes.
    pub size: u64,
    /// The target's annotations.
    pub annotations: Arc<Labels>,
    /// Labels.
    pub labels: Arc<Labels>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// The gist of a manifest or index, as [`ManifestSummary`](crate::ManifestSummary) says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedManifest {
    /// The document's own size in bytes.
    pub size: u64,
    /// The image ID; none for an index or an artifact.
    pub image_id: Option<DigestNumber>,
    /// The config's size in bytes, if there is a config.
    pub config_size: u64,
    /// The platform; none for an index or an artifact.
    pub platform: Option<Arc<Platform>>,
    /// Chain IDs, lowest first; none unless usage was asked for.
    pub chain: Vec<DigestNumber>,
    /// Layers (or an artifact's blobs) with compressed sizes, lowest first.
    pub layers: Vec<(DigestNumber, u64)>,
    /// An index's manifests with their sizes and platforms.
    pub manifests: Vec<(DigestNumber, u64, Option<Arc<Platform>>)>,
}

/// The state of a store as listings see it.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The digests behind all numbers.
    pub digests: Arc<DigestTable>,
    /// The namespaces behind all positions.
    pub namespaces: Vec<String>,
    /// Records by namespace and name.
    pub images: Vec<ListedImage>,
    /// Blobs by digest: namespace, digest, size in bytes.
    pub blobs: Vec<(u32, DigestNumber, u64)>,
    /// Committed snapshots that are named by a chain ID: namespace, chain ID, bytes. None unless usage was asked for.
    pub snapshots: Vec<(u32, DigestNumber, u64)>,
    /// What is known of manifests, whether or not they are there.
    pub manifests: Vec<(DigestNumber, ListedManifest)>,
    /// How much it is of which state.
    extent: Extent,
}

impl Listing {
    /// Whether each record is wanted, in their order; `None` if all are.
    ///
    /// # Errors
    /// A filter that does not parse.
    pub fn wanted(&self, request: &ListingRequest) -> Result<Option<Vec<bool>>> {
        let filter = Filter::parse(&request.filters)?;
        if request.namespace.is_none() && filter.is_trivial() {
            return Ok(None);
        }
        let namespace = request.namespace.as_ref();
        let of =
            |image: &ListedImage| namespace.is_none_or(|wanted| *wanted == self.namespaces[image.namespace as usize]);
        let passes = |image: &ListedImage| {
            let digest = self.digests.digest(image.target);
            let (name, media_type, labels) = (&*image.name, &*image.media_type, &*image.labels);
            Fields { name, digest: digest.as_str(), media_type, labels, annotations: &image.annotations }
                .match_any_of(&filter)
        };
        Ok(Some(self.images.iter().map(|image| of(image) && (filter.is_trivial() || passes(image))).collect()))
    }
}
