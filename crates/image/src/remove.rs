//! Removing: a plan, its hash, and its execution.

use orlop_metadata::Scope;
use orlop_oci::Descriptor;

use crate::{Images, Result, SnapshotRow};

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct RemoveRequest {
    /// Names, digests, image IDs or prefixes. An image ID or manifest digest means every record of the image.
    pub names: Vec<String>,
    /// Execute only if the plan has this hash.
    pub plan: Option<String>,
    /// Also what is pinned.
    pub force: bool,
    /// Give the space back at once instead of keeping it for undo.
    pub no_trash: bool,
}

/// A name and why it is listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Reason {
    /// A record, a blob or an image.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// What a removal would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Plan {
    /// `sha256:…` over everything below.
    #[serde(skip)]
    pub hash: String,
    /// Bytes that the file system gets back at once.
    pub freed_now: u64,
    /// Bytes that it gets back when the trash empties.
    pub freed_when_trash_empties: u64,
    /// Records that go.
    pub records: Vec<String>,
    /// Blobs that go.
    pub blobs: Vec<Descriptor>,
    /// Snapshots that go.
    pub snapshots: Vec<SnapshotRow>,
    /// Records that come back at once, and why.
    pub returns: Vec<Reason>,
    /// Images that no registry is known to supply.
    pub unpullable: Vec<Reason>,
    /// What keeps the rest.
    pub in_use: Vec<Reason>,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq)]
pub struct Removed {
    /// The plan that was executed.
    pub plan: Plan,
    /// Names the undo; none if nothing went to the trash.
    pub trash: Option<String>,
    /// Records that came back at once.
    pub returned: Vec<String>,
}

impl Images {
    /// What removing would do. Changes nothing.
    pub async fn plan_remove(&self, scope: &Scope, request: &RemoveRequest) -> Result<Plan> {
        let _ = (scope, request);
        todo!()
    }

    /// Removes.
    ///
    /// # Errors
    /// [`Error::StalePlan`](crate::Error::StalePlan) if the state has moved, [`Error::Pinned`](crate::Error::Pinned)
    /// without `force`.
    pub async fn remove(&self, scope: &Scope, request: &RemoveRequest) -> Result<Removed> {
        let _ = (scope, request);
        todo!()
    }

    /// Removes every record of the image at once and gives the space back, as CRI's RemoveImage does: pins are not
    /// looked at, and an image that is not there is success. Returns the records removed.
    pub async fn remove_image(&self, scope: &Scope, text: &str) -> Result<Vec<String>> {
        let _ = (scope, text);
        todo!()
    }
}
