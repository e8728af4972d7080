//! Image records.

use jiff::Timestamp;
use orlop_oci::{Descriptor, Digest};

use crate::{Labels, Result, Scope, Store};

/// A name and what it points at.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Any non-empty text.
    pub name: String,
    /// A manifest or index.
    pub target: Descriptor,
    /// Labels.
    pub labels: Labels,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// One step of a [`Store::write_images`] transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum ImageChange {
    /// Creates the record, or updates its target and adds these labels to those it has.
    Upsert {
        /// The name.
        name: String,
        /// The new target.
        target: Descriptor,
        /// Labels to add or replace; an empty value deletes.
        labels: Labels,
    },
    /// Deletes the record if it is there.
    Delete {
        /// The name.
        name: String,
    },
}

impl Store {
    /// One record.
    pub fn image(&self, namespace: &str, name: &str) -> Result<Image> {
        let _ = (namespace, name);
        todo!()
    }

    /// All records that match any of `filters` (containerd's grammar; none: all), ordered by name.
    pub fn images(&self, namespace: &str, filters: &[String]) -> Result<Vec<Image>> {
        let _ = (namespace, filters);
        todo!()
    }

    /// Creates a record; its times are set here.
    pub fn create_image(&self, scope: &Scope, image: Image) -> Result<Image> {
        let _ = (scope, image);
        todo!()
    }

    /// Updates a record as containerd does: an empty mask replaces everything but the creation time; `labels`,
    /// `labels.<key>` (the key may have dots), `target`, `annotations` replace just that.
    pub fn update_image(&self, scope: &Scope, image: Image, mask: &[String]) -> Result<Image> {
        let _ = (scope, image, mask);
        todo!()
    }

    /// Deletes a record; with `target`, only if it points there (else NotFound). Bytes go at the next collection.
    pub fn delete_image(&self, scope: &Scope, name: &str, target: Option<&Digest>) -> Result<Image> {
        let _ = (scope, name, target);
        todo!()
    }

    /// Applies all changes in one transaction, or none.
    pub fn write_images(&self, scope: &Scope, changes: &[ImageChange]) -> Result<()> {
        let _ = (scope, changes);
        todo!()
    }
}
