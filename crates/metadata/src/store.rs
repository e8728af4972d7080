//! Opening a root; the connection pool; transactions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_content as content;
use orlop_snapshot::Driver;

use crate::Result;

/// On whose behalf a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The namespace.
    pub namespace: String,
    /// The lease that everything made by the call is added to.
    pub lease: Option<String>,
    /// Who, for the history: `orlop pull`, `grpc`, `reconciler`.
    pub actor: String,
}

impl Scope {
    /// A scope without a lease.
    pub fn new(namespace: impl Into<String>, actor: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), lease: None, actor: actor.into() }
    }

    /// The same with a lease.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }
}

/// What a root is opened with.
pub struct OpenOptions {
    /// The raw content store.
    pub content: Arc<dyn content::Store>,
    /// The snapshot drivers, the default one first.
    pub drivers: Vec<Arc<dyn Driver>>,
    /// Never write; fail what would.
    pub read_only: bool,
}

/// A root: the database, the raw content store and the snapshot drivers. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    root: PathBuf,
    options: OpenOptions,
}

impl Store {
    /// Opens or creates `root/meta.db`.
    pub fn open(root: &Path, options: OpenOptions) -> Result<Self> {
        Ok(Self { inner: Arc::new(Inner { root: root.to_owned(), options }) })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The raw content store, without namespaces.
    pub fn raw_content(&self) -> &Arc<dyn content::Store> {
        &self.inner.options.content
    }

    /// A snapshot driver by name.
    pub fn driver(&self, name: &str) -> Result<&Arc<dyn Driver>> {
        self.inner
            .options
            .drivers
            .iter()
            .find(|d| d.name() == name)
            .ok_or_else(|| crate::Error::NotFound { kind: crate::ObjectKind::Snapshotter, name: name.to_owned() })
    }

    /// All drivers, the default one first.
    pub fn drivers(&self) -> &[Arc<dyn Driver>] {
        &self.inner.options.drivers
    }
}
