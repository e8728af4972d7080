//! Leases: what keeps objects while nothing else does yet.

use jiff::Timestamp;

use crate::{Labels, Result, Scope, Store};

/// A lease. `containerd.io/gc.expire` and `containerd.io/gc.flat` among its labels have containerd's meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What kind of object a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// `content`.
    Content,
    /// `ingests`.
    Ingests,
    /// `images`.
    Images,
    /// `snapshots/<driver>`.
    Snapshots(String),
}

/// An object that a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// Digest, ref, name or key.
    pub name: String,
}

impl Store {
    /// Makes a lease; `id` empty: one is chosen.
    pub fn create_lease(&self, namespace: &str, id: &str, labels: Labels) -> Result<Lease> {
        let _ = (namespace, id, labels);
        todo!()
    }

    /// Ends a lease. What only it held goes at the next collection.
    pub fn delete_lease(&self, namespace: &str, id: &str) -> Result<()> {
        let _ = (namespace, id);
        todo!()
    }

    /// Leases that match any of `filters` (fields `id`, `labels.<key>`).
    pub fn leases(&self, namespace: &str, filters: &[String]) -> Result<Vec<Lease>> {
        let _ = (namespace, filters);
        todo!()
    }

    /// Adds an object to a lease; it need not exist. An unknown lease is NotFound.
    pub fn add_resource(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<()> {
        let _ = (namespace, lease, resource);
        todo!()
    }

    /// Takes an object out of a lease.
    pub fn delete_resource(&self, namespace: &str, lease: &str, resource: &Resource) -> Result<()> {
        let _ = (namespace, lease, resource);
        todo!()
    }

    /// What a lease holds.
    pub fn resources(&self, namespace: &str, lease: &str) -> Result<Vec<Resource>> {
        let _ = (namespace, lease);
        todo!()
    }

    /// As [`Store::create_lease`] for the scope's own use, with an expiry in seconds from now.
    pub fn scoped_lease(&self, scope: &Scope, seconds: i64) -> Result<Scope> {
        let _ = (scope, seconds);
        todo!()
    }
}
