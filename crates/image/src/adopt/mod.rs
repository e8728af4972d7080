//! Taking over what a containerd's root has, without copying a byte and without changing it; and giving things back in the same way.
//!
//! Who reads that root is not known here: [`Foreign`] says what it has and where. Blobs and files get a second place, by reflink or by
//! name (`orlop_content::Taking`, `orlop_snapshot::linked`). What is there already is passed over, so that an adoption that was stopped
//! goes on when it is asked for again.
//!
//! # Invariants
//! - Nothing is visible before it was verified: a blob is hashed, a record has its whole image and was let in by the gate. A tree is
//!   taken as containerd unpacked it, if each file has the length that the layer's tar says; what it hashes to nobody recorded, so that
//!   later comparisons claim nothing of it.
//! - What containerd removes meanwhile is left, and so is what stands on it: a blob is linked by the descriptor that was hashed, and of a
//!   tree it is asked afterwards whether its snapshot was there all the time.
//! - What is left is said, with the reason ([`Adoption::left`]); nothing else fails because of it.
//! - All of it is held by a lease until the records hold it.
//!
//! # Owners
//! What is adopted for a containerd above ([`orlop_oci::owner`]) goes into its two namespaces: its content is its own at once. Its
//! snapshots are not: it would delete what it does not know. They wait, held by the lease [`WAITING`], until it asks for them by chain ID
//! (the raw surface hands them over).

mod blobs;
mod choose;
mod give;
mod records;
mod trees;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_graph::model::{Inventory, SnapshotRow};
use orlop_metadata::{Labels, Scope};
use orlop_oci::{Digest, owner};

use crate::{Images, Reason, Result, labels};
use choose::Job;
use records::Layers;

pub use choose::plan_adoption;
pub use give::ChainOf;

/// The label of a snapshot that was adopted for an owner, who was not handed it yet.
pub const ADOPTED: &str = "io.orlop.adopted";
/// The lease that holds such snapshots.
pub const WAITING: &str = "adopted";
/// Who looks what is here.
const ACTOR: &str = "orlop adopt";
/// The driver whose trees have the form of containerd's overlayfs snapshotter.
const DRIVER: &str = "overlayfs";

/// What another containerd has, and where.
pub trait Foreign: Send + Sync {
    /// Its rows, as they were read.
    fn inventory(&self) -> &Inventory;

    /// The file of a blob, whether or not it is there.
    fn blob(&self, digest: &Digest) -> PathBuf;

    /// The tree of a snapshot, as overlayfs stacks them; `None` if it has another form.
    fn tree(&self, snapshot: &SnapshotRow) -> Option<PathBuf>;

    /// Whether the snapshot whose tree this is was not removed until now: if it was, what was read of it may be a part.
    fn has(&self, tree: &Path) -> bool;
}

/// What to adopt.
#[derive(Debug, Clone, Default)]
pub struct AdoptRequest {
    /// Namespaces; none: all.
    pub namespaces: Vec<String>,
    /// The containerd above that it is for, by its name here; `None`: this store's own.
    pub owner: Option<String>,
    /// Content and records alone.
    pub no_snapshots: bool,
}

/// What an adoption takes over, or took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adoption {
    /// Namespaces here that get something.
    pub namespaces: Vec<String>,
    /// Blobs taken over, each digest once.
    pub blobs: u64,
    /// Their bytes.
    pub blob_bytes: u64,
    /// Blobs that were here.
    pub blobs_present: u64,
    /// Bytes of blobs that were hashed, or are to be.
    pub hashed_bytes: u64,
    /// Committed snapshots taken over.
    pub snapshots: u64,
    /// What their files take on disk, as their snapshotter counted.
    pub snapshot_bytes: u64,
    /// Snapshots that were here.
    pub snapshots_present: u64,
    /// Snapshots whose files' lengths were compared with their layers.
    pub compared: u64,
    /// Names of records written.
    pub records: Vec<String>,
    /// Records that were here.
    pub records_present: u64,
    /// Leases taken over.
    pub leases: u64,
    /// Files that are inodes of their own and share extents.
    pub cloned_files: u64,
    /// Files that got another name.
    pub linked_files: u64,
    /// What was not taken, and why.
    pub left: Vec<Reason>,
}

impl Adoption {
    fn leave(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.left.push(Reason { name: name.into(), reason: reason.into() });
    }

    fn file(&mut self, shared: orlop_content::Shared) {
        let count = if shared.cloned { &mut self.cloned_files } else { &mut self.linked_files };
        *count += 1;
    }
}

impl Images {
    /// Adopts.
    ///
    /// # Errors
    /// What stops all of it: no space, another file system, a store that cannot be written. What became visible until then stays.
    ///
    /// # Cancellation
    /// Stops between two things; the lease ends.
    pub async fn adopt(&self, scope: &Scope, foreign: Arc<dyn Foreign>, request: &AdoptRequest) -> Result<Adoption> {
        let mut done = Adoption::default();
        let jobs = choose::jobs(&*foreign, request, &mut done);
        match &request.owner {
            None => {
                for job in jobs {
                    self.adopt_own(scope, &foreign, job, &mut done).await?;
                }
            }
            Some(name) => self.adopt_for(scope, &foreign, name, jobs, &mut done).await?,
        }
        done.left.sort();
        done.left.dedup();
        Ok(done)
    }

    /// One namespace of this store's own.
    async fn adopt_own(&self, scope: &Scope, foreign: &Arc<dyn Foreign>, job: Job, done: &mut Adoption) -> Result<()> {
        let scope = Scope { namespace: job.namespace.clone(), ..scope.clone() };
        done.namespaces.push(job.namespace.clone());
        self.under_lease(&scope, async |scope| {
            self.take_blobs(&scope, foreign, &job.blobs, done).await?;
            let images = self.whole_images(&scope, &job.records, done).await?;
            let layers = Layers::of(&images);
            let is_named = |tree: &choose::Tree| tree.held || layers.of_chain(&tree.key).is_some();
            let (named, others): (Vec<_>, Vec<_>) = job.snapshots.into_iter().partition(is_named);
            if !others.is_empty() {
                done.leave(format!("{} committed snapshots", others.len()), "their images did not come in");
            }
            self.take_trees(&scope, foreign, named, &layers, done).await?;
            self.forget_left_trees(&scope, &job.blobs).await?;
            self.take_records(&scope, &images, done).await?;
            self.take_leases(&scope, job.leases, done).await
        })
        .await?;
        self.reconcile(&scope.namespace).await.map(drop)
    }

    /// What a containerd above is to find here: its content, and snapshots that wait for it.
    async fn adopt_for(
        &self,
        scope: &Scope,
        foreign: &Arc<dyn Foreign>,
        name: &str,
        jobs: Vec<Job>,
        done: &mut Adoption,
    ) -> Result<()> {
        let content = Scope { namespace: owner::content_namespace(name), ..scope.clone() };
        let snapshots = Scope { namespace: owner::snapshots_namespace(name), ..scope.clone() };
        done.namespaces.extend([content.namespace.clone(), snapshots.namespace.clone()]);
        let all = Job::together(jobs, content.namespace.clone());
        let claim = Labels::from([(labels::GC_ROOT.to_owned(), owner::claim(name))]);
        let claimed: Vec<_> = all.blobs.iter().map(|blob| blob.with(claim.clone())).collect();
        self.under_lease(&content, async |content| {
            self.take_blobs(&content, foreign, &claimed, done).await?;
            if all.snapshots.is_empty() {
                return Ok(());
            }
            let images = self.whole_images(&content, &all.records, done).await?;
            self.wait_for_owner(&snapshots, foreign, name, &images, all, done).await
        })
        .await
    }
}
