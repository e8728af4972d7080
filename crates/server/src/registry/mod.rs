//! The node's registry: its repositories are the image records of a namespace.
//!
//! [`NodeIndex`] plays `orlop-registry`'s index over [`Images`]: what is pushed to `HOST/path:tag` is the record of that name,
//! with its hash references, at once; and what the store has under such a name, however it came, can be pulled. The bytes are
//! the store's, once ([`content`]). What a push in progress has is held by leases ([`holding`]).
//!
//! # Invariants
//! - Nothing is named without the gate; nothing is removed but by the removal of `orlop rm`, with its undo and events.
//! - A blob is visible in a repository if it was uploaded to it or mounted into it within the last day, or a record of the
//!   repository leads to it.
//! - A client cannot write records of another host than the registry's own name.

mod content;
mod holding;
mod index;
mod mirror;

use std::sync::Arc;

use orlop_image::Images;
use orlop_oci::RepositoryName;
use orlop_registry::Registry;

use self::content::NodeContent;
use self::holding::Holding;
pub use self::index::NodeIndex;
pub use self::mirror::NodeMirror;

/// Which registry a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRegistry {
    /// What stands before the repositories in the names of records: a host, with a port if clients say one.
    pub host: String,
    /// The namespace whose records it has.
    pub namespace: String,
}

impl NodeRegistry {
    /// Whether records can have a name that begins with this host.
    pub fn is_host(host: &str) -> bool {
        RepositoryName::parse(&format!("{host}/any")).is_ok_and(|name| name.domain() == host && name.path() == "any")
    }

    /// The registry over these images. Blocks.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn open(&self, images: &Images) -> orlop_metadata::Result<Registry> {
        let holding = Arc::new(Holding::new(images.store(), self)?);
        let content = NodeContent::new(images.store(), self, holding.clone());
        Ok(Registry::new(Arc::new(content), Arc::new(NodeIndex::new(images, self, holding))))
    }

    /// The index alone. Blocks.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn index(&self, images: &Images) -> orlop_metadata::Result<NodeIndex> {
        Ok(NodeIndex::new(images, self, Arc::new(Holding::new(images.store(), self)?)))
    }
}
