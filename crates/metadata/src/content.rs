//! Content as one namespace sees it.

use jiff::Timestamp;
use orlop_oci::Digest;

use crate::{Labels, Result, Scope, Store};

/// A blob in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Labels, `containerd.io/gc.ref.…` among them.
    pub labels: Labels,
    /// When it came into this namespace.
    pub created_at: Timestamp,
    /// When its labels last changed.
    pub updated_at: Timestamp,
}

/// Plays the roles of `orlop-content` in one namespace, on behalf of a [`Scope`].
///
/// Content that another namespace has is adopted without bytes (containerd's `shared` policy). `Manager::delete` drops
/// this namespace's row only.
#[derive(Clone)]
pub struct ScopedContent {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

impl Store {
    /// Content in a namespace.
    pub fn content(&self, scope: &Scope) -> ScopedContent {
        ScopedContent { store: self.clone(), scope: scope.clone() }
    }
}

impl ScopedContent {
    /// A blob with its labels.
    pub fn stat(&self, digest: &Digest) -> Result<ContentInfo> {
        let _ = (&self.store, &self.scope, digest);
        todo!()
    }

    /// Blobs that match any of `filters` (fields `digest`, `size`, `labels.<key>`), by digest.
    pub fn find(&self, filters: &[String]) -> Result<Vec<ContentInfo>> {
        let _ = filters;
        todo!()
    }

    /// Replaces the labels, or with mask paths `labels.<key>` some of them. An empty value deletes.
    pub fn update(&self, digest: &Digest, labels: Labels, mask: &[String]) -> Result<ContentInfo> {
        let _ = (digest, labels, mask);
        todo!()
    }

    /// Several blobs' labels merged in one transaction: pull's way of writing all `gc.ref` labels at once.
    pub fn label_all(&self, labels: &[(Digest, Labels)]) -> Result<()> {
        let _ = labels;
        todo!()
    }

    /// Drops this namespace's row. Bytes go at the next collection.
    pub fn forget(&self, digest: &Digest) -> Result<()> {
        let _ = digest;
        todo!()
    }
}
