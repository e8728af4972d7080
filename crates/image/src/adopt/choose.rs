//! What of a root is adopted: what its records keep, and leases that have no end; of a containerd that goes on above, everything that
//! it has.
//!
//! Containers are not taken over: they run where they are, on snapshots that stay there. What only a container keeps, or a lease that
//! ends by itself, is left.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use orlop_graph::model::{BlobRow, Kept, LeaseRow, Model, NamespaceId, Node, NodeId, NodeKind, RecordRow, Root};
use orlop_graph::model::{SnapshotKind, SnapshotRow};
use orlop_metadata::{self as metadata, Labels, Scope, Store};
use orlop_oci::{Digest, owner};

use super::{ACTOR, AdoptRequest, Adoption, DRIVER, Foreign};
use crate::labels;

/// A blob to take over.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// As its row says.
    pub(super) size: u64,
    pub(super) labels: Labels,
}

/// A committed snapshot to take over.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) key: String,
    /// Empty: none.
    pub(super) parent: String,
    pub(super) labels: Labels,
    pub(super) at: PathBuf,
    /// Whether something else than a record keeps it.
    pub(super) held: bool,
    /// What it takes, as its snapshotter counted.
    pub(super) bytes: u64,
}

/// What goes into one namespace.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) namespace: String,
    pub(super) blobs: Vec<Blob>,
    /// Each after its parent.
    pub(super) snapshots: Vec<Tree>,
    pub(super) records: Vec<RecordRow>,
    pub(super) leases: Vec<LeaseRow>,
}

impl Blob {
    fn of(row: &BlobRow) -> Self {
        Self { digest: row.digest.clone(), size: row.size, labels: taken(&row.labels) }
    }

    /// The same with other labels.
    pub(super) fn with(&self, labels: Labels) -> Self {
        Self { labels, ..self.clone() }
    }
}

impl Job {
    /// What several namespaces have, each thing once.
    pub(super) fn together(jobs: Vec<Self>, namespace: String) -> Self {
        let mut all = Self { namespace, ..Self::default() };
        let (mut blobs, mut trees) = (HashMap::<Digest, usize>::new(), HashSet::new());
        for job in jobs {
            for blob in job.blobs {
                match blobs.get(&blob.digest) {
                    Some(at) => all.blobs[*at].labels.extend(blob.labels),
                    None => {
                        blobs.insert(blob.digest.clone(), all.blobs.len());
                        all.blobs.push(blob);
                    }
                }
            }
            all.snapshots.extend(job.snapshots.into_iter().filter(|tree| trees.insert(tree.key.clone())));
            all.records.extend(job.records);
        }
        all
    }
}

/// Bytes of a label's key and value together, at most.
const MOST: usize = 4096;

/// Labels as they are kept here: those that only Orlop writes are its own.
pub(super) fn taken(found: &orlop_graph::model::Labels) -> Labels {
    // No client could set longer ones.
    let fits = |key: &str, value: &str| !value.is_empty() && key.len() + value.len() <= MOST;
    let all = found.iter().filter(|(key, value)| !key.starts_with("io.orlop.") && fits(key, value));
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// What to take over, by namespace of the root.
pub(super) fn jobs(foreign: &dyn Foreign, request: &AdoptRequest, told: &mut Adoption) -> Vec<Job> {
    let model = Model::new(foreign.inventory().clone());
    let rows = model.inventory();
    for gap in &rows.gaps {
        told.leave(gap.what.clone(), gap.why.clone());
    }
    let is_wanted = |name: &str| request.namespaces.is_empty() || request.namespaces.iter().any(|n| n == name);
    for name in request.namespaces.iter().filter(|name| rows.namespaces.iter().all(|row| *row.name != ***name)) {
        told.leave(name.clone(), "there is no such namespace");
    }
    let choice = Choice {
        foreign,
        request,
        kept: model.reached(&roots(&model, |root| root == Root::Record)),
        held: model.reached(&roots(&model, |root| root != Root::Record)),
        model: &model,
    };
    let mut jobs = Vec::new();
    for (at, row) in rows.namespaces.iter().enumerate().filter(|(_, row)| is_wanted(&row.name)) {
        let Ok(namespace) = NamespaceId::try_from(at) else { continue };
        match is_taken_over(&row.name) {
            Ok(()) => jobs.push(choice.job(namespace, &row.name, told)),
            Err(why) => told.leave(row.name.to_string(), why),
        }
    }
    jobs
}

/// How it is chosen.
struct Choice<'c> {
    foreign: &'c dyn Foreign,
    request: &'c AdoptRequest,
    model: &'c Model,
    /// What records keep.
    kept: Kept,
    /// What others keep that are taken over.
    held: Kept,
}

impl Choice<'_> {
    fn job(&self, namespace: NamespaceId, name: &str, told: &mut Adoption) -> Job {
        let (model, rows) = (self.model, self.model.inventory());
        let here = |node: &NodeId| model.node(*node).namespace() == namespace;
        let is_taken =
            |node: NodeId| self.request.owner.is_some() || self.kept.contains(node) || self.held.contains(node);
        let mut job = Job { namespace: name.to_owned(), ..Job::default() };
        for node in model.nodes(NodeKind::Blob).filter(here).filter(|node| is_taken(*node)) {
            if let Node::Blob(row) = model.node(node) {
                job.blobs.push(Blob::of(row));
            }
        }
        job.records = rows.records.iter().filter(|row| row.namespace == namespace).cloned().collect();
        job.leases = rows.leases.iter().filter(|row| row.namespace == namespace && lasts(row)).cloned().collect();
        if !self.request.no_snapshots {
            let found = model.nodes(NodeKind::Snapshot).filter(here).filter_map(|node| match model.node(node) {
                Node::Snapshot(row) => Some((row, is_taken(node), self.held.contains(node))),
                _ => None,
            });
            job.snapshots = trees(self.foreign, found.collect(), told);
        }
        job
    }
}

/// Whether things of a namespace of that name can be had here.
fn is_taken_over(name: &str) -> Result<(), String> {
    match owner::is_namespace(name) {
        true => Err("here such a namespace is of a containerd above".to_owned()),
        false => metadata::validate_namespace(name).map_err(|error| error.to_string()),
    }
}

/// What keeps things that are adopted.
fn roots(model: &Model, wanted: impl Fn(Root) -> bool) -> Vec<NodeId> {
    let counts = |(node, root): &&(NodeId, Root)| match root {
        Root::Record | Root::Label | Root::Owner => true,
        Root::Lease => matches!(model.node(*node), Node::Lease(row) if lasts(row)),
        Root::Container | Root::Ingest => false,
    };
    let all = model.roots().iter().filter(counts).filter(|(_, root)| wanted(*root));
    all.map(|(node, _)| *node).collect()
}

/// Whether a lease is no operation's, which would end by itself.
fn lasts(lease: &LeaseRow) -> bool {
    lease.labels.get(labels::GC_EXPIRE).is_none()
}

/// Snapshots that are taken over, each after its parent; says what is left.
fn trees(foreign: &dyn Foreign, found: Vec<(&SnapshotRow, bool, bool)>, told: &mut Adoption) -> Vec<Tree> {
    let (mut active, mut others) = (0_u64, BTreeMap::<String, u64>::new());
    let mut by_key: HashMap<&str, Known<'_>> = HashMap::new();
    let mut unkept = 0_u64;
    for (row, is_taken, held) in found {
        if row.kind != SnapshotKind::Committed {
            active += 1;
        } else if !is_taken {
            unkept += 1;
        } else if let Some(at) = foreign.tree(row).filter(|_| *row.snapshotter == *DRIVER) {
            by_key.insert(&row.key, (row, at, held));
        } else {
            *others.entry(row.snapshotter.to_string()).or_default() += 1;
        }
    }
    if active > 0 {
        told.leave(
            format!("{active} snapshots that are not committed"),
            "they stay where they are: containers are on them",
        );
    }
    if unkept > 0 {
        told.leave(format!("{unkept} committed snapshots"), "no record and no lasting lease keeps them");
    }
    for (snapshotter, count) in others {
        told.leave(
            format!("{count} snapshots of {snapshotter}"),
            "only trees of overlayfs can be shared; they are unpacked anew when needed",
        );
    }
    in_order(&by_key)
}

/// A snapshot, its tree, and whether something else than a record keeps it.
type Known<'r> = (&'r SnapshotRow, PathBuf, bool);

/// Parents first; what stands on something that is not among them is left out with it.
fn in_order(by_key: &HashMap<&str, Known<'_>>) -> Vec<Tree> {
    let depth = |row: &SnapshotRow| {
        let mut depth = 0;
        let mut at = row.parent.as_deref();
        while let Some(key) = at {
            let (parent, ..) = by_key.get(key)?;
            depth += 1;
            // A database that somebody damaged may have a ring.
            if depth > by_key.len() {
                return None;
            }
            at = parent.parent.as_deref();
        }
        Some(depth)
    };
    let mut all: Vec<_> = by_key.values().filter_map(|known| Some((depth(known.0)?, known))).collect();
    all.sort_by(|a, b| (a.0, &a.1.0.key).cmp(&(b.0, &b.1.0.key)));
    let tree = |(_, (row, at, held)): (usize, &Known<'_>)| Tree {
        key: row.key.to_string(),
        parent: row.parent.as_deref().unwrap_or_default().to_owned(),
        labels: taken(&row.labels),
        at: at.clone(),
        held: *held,
        bytes: row.usage.map_or(0, |usage| usage.bytes),
    };
    all.into_iter().map(tree).collect()
}

/// What adopting would take over, as far as lists tell; `store` is where, if there is one yet. Changes nothing; what incomplete images,
/// policy and damaged blobs leave out, only adopting finds. Blocks.
///
/// # Errors
/// If the store cannot be read.
pub fn plan_adoption(store: Option<&Store>, foreign: &dyn Foreign, request: &AdoptRequest) -> crate::Result<Adoption> {
    let mut planned = Adoption::default();
    let jobs = jobs(foreign, request, &mut planned);
    let mut known = match store {
        Some(store) => stored(store)?,
        None => HashSet::new(),
    };
    match &request.owner {
        None => jobs.iter().try_for_each(|job| foresee(store, job, &job.namespace, &mut known, &mut planned))?,
        Some(name) => {
            let all = Job::together(jobs, owner::content_namespace(name));
            let records = Job { records: Vec::new(), ..all };
            foresee(store, &records, &owner::snapshots_namespace(name), &mut known, &mut planned)?;
        }
    }
    planned.left.sort();
    Ok(planned)
}

/// Every blob that any namespace has.
fn stored(store: &Store) -> crate::Result<HashSet<Digest>> {
    let mut all = HashSet::new();
    for namespace in store.namespaces()? {
        let scope = Scope::new(namespace.name, ACTOR);
        all.extend(store.content(&scope).sizes()?.into_keys());
    }
    Ok(all)
}

/// Counts what of a job is not here yet; `snapshots` is the namespace that its snapshots go into.
fn foresee(
    store: Option<&Store>,
    job: &Job,
    snapshots: &str,
    known: &mut HashSet<Digest>,
    planned: &mut Adoption,
) -> crate::Result<()> {
    planned.namespaces.push(job.namespace.clone());
    for blob in &job.blobs {
        if known.insert(blob.digest.clone()) {
            planned.blobs += 1;
            planned.blob_bytes += blob.size;
            planned.hashed_bytes += blob.size;
        } else {
            planned.blobs_present += 1;
        }
    }
    let here = store.map(|store| store.snapshots(&Scope::new(snapshots, ACTOR), DRIVER)).transpose()?;
    for tree in &job.snapshots {
        if here.as_ref().is_some_and(|here| here.stat(&tree.key).is_ok()) {
            planned.snapshots_present += 1;
        } else {
            planned.snapshots += 1;
            planned.snapshot_bytes += tree.bytes;
        }
    }
    for record in &job.records {
        let same = store.and_then(|store| store.image(&job.namespace, &record.name).ok());
        if same.is_some_and(|image| image.target.digest == record.target) {
            planned.records_present += 1;
        } else {
            planned.records.push(record.name.to_string());
        }
    }
    planned.leases += job.leases.len() as u64;
    Ok(())
}
