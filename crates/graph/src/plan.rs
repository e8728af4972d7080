//! What removing records would do.

use std::collections::BTreeSet;

use orlop_oci::{ChainId, Digest, Kind, Reference, RepositoryName};

use crate::build::{Held, Holder, Numbered};
use crate::intern::{Marks, Number};
use crate::{Graph, Image};

/// What is to be removed.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'r> {
    /// The namespace of the names.
    pub namespace: &'r str,
    /// Full names of records.
    pub names: &'r [&'r str],
    /// Whether hash references are kept in this namespace as CRI wants them. If not, exactly the named records go, as
    /// in containerd.
    pub managed: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A name is not there.
    #[error("no image record {name:?} in namespace {namespace:?}")]
    NotFound {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
}

/// What would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Records that are deleted, as positions in [`Graph::records`], ascending; those that come back too.
    pub records: Vec<usize>,
    /// Hash references among them that come back at once, since something needs them.
    pub returns: Vec<Return>,
    /// Blobs that nothing else needs, with their sizes, sorted.
    pub blobs: Vec<(Digest, u64)>,
    /// Snapshots that nothing else needs, by chain ID, with their sizes, sorted.
    pub snapshots: Vec<(ChainId, u64)>,
    /// Bytes of those blobs and snapshots.
    pub bytes: u64,
    /// What stays although no record would reach it any more, and who holds it; sorted by holder.
    pub in_use: Vec<InUse>,
    /// Bytes that stay since other records use them.
    pub shared: u64,
}

/// A hash reference that comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// Its position in [`Graph::records`].
    pub record: usize,
    /// What needs it.
    pub why: Why,
}

/// What needs a hash reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A name of the same image.
    Name(String),
    /// A record of the same image that is pinned.
    Pinned(String),
    /// A holder of a record of the same image, e.g. a container.
    Holder(String),
}

/// What a holder keeps of the images that go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// The holder's name.
    pub holder: String,
    /// Blobs and snapshots that it keeps.
    pub objects: usize,
    /// Their bytes. What two holders keep is in both.
    pub bytes: u64,
}

/// What becomes of an image's hash references.
#[derive(Default)]
struct Fate {
    going: Vec<usize>,
    returns: Vec<Return>,
    /// They stay, yet will point elsewhere.
    moved: Vec<usize>,
}

impl Graph {
    /// What goes when `request` is carried out.
    ///
    /// In a managed namespace the hash references of an image go with its last name, and `name@digest` with the last
    /// name of its repository; those that are still needed come back. In any other namespace just the names go.
    ///
    /// # Errors
    /// [`PlanError::NotFound`] if a name is not there.
    pub fn plan(&self, request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
        let mut going = BTreeSet::new();
        for name in request.names {
            going.insert(self.find(request.namespace, name).ok_or_else(|| PlanError::NotFound {
                namespace: request.namespace.to_owned(),
                name: (*name).to_owned(),
            })?);
        }
        let mut plan = Plan::default();
        let mut moved = BTreeSet::new();
        if request.managed {
            let asked = going.clone();
            for image in self.images().iter().filter(|image| image.records.iter().any(|r| asked.contains(r))) {
                let fate = self.fate(image, &asked);
                plan.returns.extend(fate.returns);
                going.extend(fate.going);
                moved.extend(fate.moved);
            }
        }
        plan.returns.sort_by_key(|r| r.record);
        let back: BTreeSet<usize> = plan.returns.iter().map(|r| r.record).collect();
        let stays = |r: &usize| (!going.contains(r) || back.contains(r)) && !moved.contains(r);
        self.weigh(&going, stays, &mut plan);
        plan.records = going.into_iter().collect();
        Ok(plan)
    }

    fn find(&self, namespace: &str, name: &str) -> Option<usize> {
        self.records().iter().position(|r| r.name == name && r.namespace == namespace)
    }

    /// What becomes of the hash references of an image in a managed namespace when `asked` go.
    fn fate(&self, image: &Image, asked: &BTreeSet<usize>) -> Fate {
        let record = |at: usize| self.record(at);
        let is_name = |at: &usize| record(*at).is_name;
        let is_id = |at: usize| record(at).kind == Kind::Id;
        let left: Vec<usize> = image.records.iter().copied().filter(|r| !asked.contains(r)).collect();
        let names: Vec<usize> = left.iter().copied().filter(is_name).collect();
        let keeper = self.keeper(image, &left, asked);
        let mut fate = Fate::default();
        let derived = |r: &usize| record(*r).kind.is_hash_reference() && !is_name(r);
        for r in image.records.iter().copied().filter(derived) {
            let needs = |n: &usize| is_id(r) || pairs(record(*n), record(r));
            let needed_by = names.iter().copied().find(needs).map(|n| Why::Name(record(n).name.to_string()));
            let went_with = |n: &usize| asked.contains(n) && pairs(record(*n), record(r));
            match needed_by.or_else(|| keeper.clone()) {
                Some(why) if asked.contains(&r) => fate.returns.push(Return { record: r, why }),
                Some(_) => {}
                None if names.is_empty() || image.records.iter().any(went_with) => fate.going.push(r),
                None => {}
            }
            // An ID record whose target has no name any more will point at what a name that is left points at.
            let strays = names.iter().all(|n| record(*n).target != record(r).target);
            if is_id(r) && keeper.is_none() && !names.is_empty() && strays {
                fate.moved.push(r);
            }
        }
        fate
    }

    /// What keeps a whole image beside names: a pin that stays, or a holder of any of its records. Hash references
    /// carry the pin of their name; it goes with that.
    fn keeper(&self, image: &Image, left: &[usize], asked: &BTreeSet<usize>) -> Option<Why> {
        let record = |at: &usize| self.record(*at);
        let name_goes = image.records.iter().any(|r| asked.contains(r) && record(r).is_name);
        let counts = |r: &&usize| record(r).pinned && (record(r).is_name || !name_goes);
        let pin = left.iter().find(counts).map(|r| Why::Pinned(record(r).name.to_string()));
        pin.or_else(|| {
            let mut holders = self.all.store.holders.iter().filter(|h| *h.namespace == *image.namespace);
            let holds = |h: &&Holder| match &h.held {
                Held::Record(name) => image.records.iter().any(|r| *record(r).name == **name),
                Held::Blob(_) | Held::Chain(_) => false,
            };
            holders.find(holds).map(|h| Why::Holder(h.name.clone()))
        })
    }

    /// Finds what only the going records reach, and what of that others hold.
    fn weigh(&self, going: &BTreeSet<usize>, stays: impl Fn(&usize) -> bool, plan: &mut Plan) {
        let mut kept = self.all.store.marks();
        for r in (0..self.records().len()).filter(stays) {
            let (blobs, snapshots) = self.reached_by(r);
            blobs.for_each(|n| _ = kept.0.insert(n));
            snapshots.for_each(|n| _ = kept.1.insert(n));
        }
        let mut seen = self.all.store.marks();
        let (mut blobs, mut snapshots) = (Vec::new(), Vec::new());
        for r in going {
            let reached = self.reached_by(*r);
            for n in reached.0.filter(|n| seen.0.insert(*n)) {
                if kept.0.contains(n) { plan.shared += self.all.store.blob_size(n) } else { blobs.push(n) }
            }
            for n in reached.1.filter(|n| seen.1.insert(*n)) {
                if kept.1.contains(n) { plan.shared += self.snapshot_size(n) } else { snapshots.push(n) }
            }
        }
        let held = self.held(&blobs, &snapshots, plan);
        blobs.retain(|n| !held.0.contains(*n));
        snapshots.retain(|n| !held.1.contains(*n));
        plan.blobs = blobs.iter().map(|n| (self.all.store.digests.digest(*n), self.all.store.blob_size(*n))).collect();
        plan.blobs.sort_unstable();
        plan.snapshots = snapshots.iter().map(|n| (self.chain(*n), self.snapshot_size(*n))).collect();
        plan.snapshots.sort_unstable();
        plan.bytes = plan.blobs.iter().map(|b| b.1).chain(plan.snapshots.iter().map(|s| s.1)).sum();
    }

    /// Marks what holders keep, and tells what of `blobs` and `snapshots` each keeps.
    fn held(&self, blobs: &[Number], snapshots: &[u32], plan: &mut Plan) -> (Marks, Marks) {
        let (mut all, mut own) = (self.all.store.marks(), self.all.store.marks());
        let mut holders: Vec<&Holder> = self.all.store.holders.iter().collect();
        holders.sort_by_key(|h| &h.name);
        for group in holders.chunk_by(|a, b| a.name == b.name) {
            own.0.clear();
            own.1.clear();
            group.iter().for_each(|holder| self.hold(holder, &mut own));
            let mut in_use = InUse { holder: group[0].name.clone(), objects: 0, bytes: 0 };
            for n in blobs.iter().copied().filter(|n| own.0.contains(*n)) {
                all.0.insert(n);
                in_use.objects += 1;
                in_use.bytes += self.all.store.blob_size(n);
            }
            for n in snapshots.iter().copied().filter(|n| own.1.contains(*n)) {
                all.1.insert(n);
                in_use.objects += 1;
                in_use.bytes += self.snapshot_size(n);
            }
            plan.in_use.extend(Some(in_use).filter(|u| u.objects > 0));
        }
        all
    }

    fn hold(&self, holder: &Holder, own: &mut (Marks, Marks)) {
        match &holder.held {
            Held::Blob(digest) => self.all.store.reach_blob_of(&holder.namespace, digest, own),
            Held::Chain(top) => self.all.store.reach_chain_of(&holder.namespace, top, &mut own.1),
            // In a managed namespace the record comes back; elsewhere containerd lets it go.
            Held::Record(_) => {}
        }
    }

    fn snapshot_size(&self, at: u32) -> u64 {
        self.all.store.snapshots[at as usize].1
    }

    fn chain(&self, at: u32) -> ChainId {
        let ((_, chain), _) = self.all.store.snapshots[at as usize];
        ChainId::new(self.all.store.digests.digest(chain))
    }

    fn record(&self, at: usize) -> &Numbered {
        &self.all.store.records[at]
    }
}

/// Whether `digest` is the hash reference that belongs to `name`: same repository, same target.
fn pairs(name: &Numbered, digest: &Numbered) -> bool {
    let Some((repository, _)) = digest.name.split_once('@') else { return false };
    name.target == digest.target && repository_of(&name.name).is_some_and(|r| r.to_string() == repository)
}

fn repository_of(name: &str) -> Option<RepositoryName> {
    name.parse::<Reference>().ok()?.repository().cloned()
}
