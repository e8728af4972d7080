//! The raw surface: content, snapshots and diff as a containerd above calls its `proxy_plugins`.
//!
//! Such a containerd keeps namespaces, leases and labels itself and deletes every blob and every snapshot that its plugin
//! lists and that it does not know. So each socket of this kind has an *owner*, and whoever calls there sees and deletes what
//! is that owner's and nothing else.
//!
//! # Invariants
//! - What an owner has lies in two namespaces of its own, [`Owner::content`] and [`Owner::snapshots`]. Bytes are stored once
//!   for all namespaces, and stay as long as any of them needs them.
//! - What an owner wrote or was handed has the label [`CLAIM`], a root for garbage collection, until the owner deletes it. The
//!   label is not shown to the owner, and cannot be taken off by it.
//! - Snapshots without a claim are of images that are being brought for the owner ([`remote`]), or were adopted for it: it does
//!   not see them before it is handed them.
//! - Namespaces and leases in headers mean those of the caller, and are not looked at.

mod content;
mod diff;
pub(crate) mod remote;
mod snapshots;
pub(crate) use snapshots::driver_of;

use std::sync::Arc;

use orlop_api::{LEASE_HEADER, NAMESPACE_HEADER};
use orlop_metadata::Labels;
use orlop_oci::owner;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::Server;

/// The label of what an owner has.
const CLAIM: &str = "containerd.io/gc.root";

/// Who the history names where a containerd beside is given what this store has.
const LENDER: &str = "orlop beside";

/// A namespace has at most 76 characters.
const MAX_OWNER_BYTES: usize = 40;

/// Whose a raw socket is: a name that the operator gives to the containerd above.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner(String);

/// A name that no owner can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("owner {0:?}: expected 1 to 40 lower-case letters and digits, with single hyphens between them")]
pub struct OwnerError(String);

impl Owner {
    /// Checks a name.
    ///
    /// # Errors
    /// If it is empty, too long, or has other characters than lower-case letters, digits, and single hyphens between them.
    pub fn new(name: &str) -> Result<Self, OwnerError> {
        let plain = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let right = name.len() <= MAX_OWNER_BYTES && name.split('-').all(plain);
        if right { Ok(Self(name.to_owned())) } else { Err(OwnerError(name.to_owned())) }
    }

    /// The namespace of its blobs.
    pub fn content(&self) -> String {
        owner::content_namespace(&self.0)
    }

    /// The namespace of its snapshots, and of the blobs that were fetched for them.
    pub fn snapshots(&self) -> String {
        owner::snapshots_namespace(&self.0)
    }

    /// Marks labels as of something that it has.
    fn mark(&self, labels: &mut Labels) {
        set_claim(labels, &Labels::from([(CLAIM.to_owned(), owner::claim(&self.0))]));
    }
}

impl Default for Owner {
    fn default() -> Self {
        Self("containerd".to_owned())
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The services of one owner's socket. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Raw {
    server: Server,
    owner: Arc<Owner>,
    fetches: Arc<remote::Fetches>,
}

impl Raw {
    pub(crate) fn new(server: &Server, owner: Owner) -> Self {
        let fetches = server.fetches(&owner);
        Self { server: server.clone(), owner: Arc::new(owner), fetches }
    }

    pub(crate) const fn server(&self) -> &Server {
        &self.server
    }

    /// The request as the owner's, in one of its namespaces, without a lease.
    fn owned<T>(namespace: &str, mut request: Request<T>) -> Result<Request<T>, Status> {
        let value = MetadataValue::try_from(namespace).map_err(|e| Status::internal(e.to_string()))?;
        request.metadata_mut().insert(NAMESPACE_HEADER, value);
        request.metadata_mut().remove(LEASE_HEADER);
        Ok(request)
    }

    /// Marks labels as of something that the owner has.
    fn mark(&self, labels: &mut Labels) {
        self.owner.mark(labels);
    }

    /// The same for what replaces labels, by a mask.
    fn mark_masked(&self, labels: &mut Labels, mask: Option<&prost_types::FieldMask>) {
        let paths = mask.map_or(&[][..], |mask| &mask.paths);
        let is_meant = |path: &String| path == "labels" || path.strip_prefix("labels.") == Some(CLAIM);
        if paths.is_empty() || paths.iter().any(is_meant) {
            self.mark(labels);
        }
    }

    /// Takes the mark off labels that are shown to the owner.
    fn unmark(&self, labels: &mut Labels) {
        if labels.get(CLAIM).is_some_and(|value| *value == owner::claim(&self.owner.0)) {
            labels.remove(CLAIM);
        }
    }
}

/// Sets an owner's claim on what it is to have. A root that the client sets itself is as good; one without a value is none.
pub(crate) fn set_claim(labels: &mut Labels, claim: &Labels) {
    for (key, value) in claim {
        let own = labels.entry(key.clone()).or_default();
        if own.is_empty() {
            own.clone_from(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_names_that_namespaces_can_be_made_of() {
        for right in ["containerd", "k3s", "microk8s-1", &"a".repeat(40)] {
            let owner = Owner::new(right).unwrap();
            assert_eq!(orlop_metadata::validate_namespace(&owner.content()).ok(), Some(()));
            assert_eq!(orlop_metadata::validate_namespace(&owner.snapshots()).ok(), Some(()));
        }
        for wrong in ["", "-", "a-", "-a", "a--b", "A", "a.b", "a/b", "a b", &"a".repeat(41)] {
            assert_eq!(Owner::new(wrong), Err(OwnerError(wrong.to_owned())));
        }
    }

    #[test]
    fn a_claim_stays_whatever_its_owner_says_of_the_label() {
        let owner = Owner::default();
        for (said, is) in [(None, "owner containerd"), (Some(""), "owner containerd"), (Some("2026"), "2026")] {
            let mut labels = Labels::from([("a".to_owned(), "b".to_owned())]);
            labels.extend(said.map(|value| (CLAIM.to_owned(), value.to_owned())));
            owner.mark(&mut labels);
            assert_eq!((labels.len(), labels[CLAIM].as_str()), (2, is), "{said:?}");
        }
    }
}
