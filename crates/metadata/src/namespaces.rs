//! Namespaces and their labels.

use crate::{Labels, Result, Store};

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its name: containerd's identifier rule, at most 76 characters.
    pub name: String,
    /// Labels.
    pub labels: Labels,
}

impl Store {
    /// All namespaces by name; one exists as soon as something is in it.
    pub fn namespaces(&self) -> Result<Vec<NamespaceInfo>> {
        todo!()
    }

    /// One namespace's labels; an unknown one succeeds empty, as in containerd.
    pub fn namespace(&self, name: &str) -> Result<NamespaceInfo> {
        let _ = name;
        todo!()
    }

    /// Makes a namespace.
    pub fn create_namespace(&self, name: &str, labels: Labels) -> Result<NamespaceInfo> {
        let _ = (name, labels);
        todo!()
    }

    /// Replaces the labels, or with mask paths `labels.<key>` some of them. An empty value deletes.
    pub fn update_namespace(&self, name: &str, labels: Labels, mask: &[String]) -> Result<NamespaceInfo> {
        let _ = (name, labels, mask);
        todo!()
    }

    /// Deletes an empty namespace; FailedPrecondition names what is still in it.
    pub fn delete_namespace(&self, name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }
}
