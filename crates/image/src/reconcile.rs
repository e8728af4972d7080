//! The reconciler of hash references (design §7).

use crate::{Images, Result};

/// What a pass changed; all empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Hash references created.
    pub created: Vec<String>,
    /// Records that got labels or another target.
    pub updated: Vec<String>,
    /// Stranded hash references removed.
    pub removed: Vec<String>,
}

impl Images {
    /// Brings the hash references of a namespace in order; does nothing where the namespace is not CRI-managed.
    /// Idempotent: a second pass changes nothing.
    pub async fn reconcile(&self, namespace: &str) -> Result<Reconciled> {
        let _ = namespace;
        todo!()
    }

    /// The same after one record was created, changed or deleted: only what has to do with `name`.
    pub async fn reconcile_image(&self, namespace: &str, name: &str) -> Result<Reconciled> {
        let _ = (namespace, name);
        todo!()
    }
}
